"""Sizes of what is measured. Lengths in tokens, times in seconds."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.generation.engine import Speed
from examples.tiny.task import Task, overrides


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both halves have: prompts a step, attempts a prompt, room, the law of the lengths.

    max_attempt_tokens: algorithm.cipo.prompt.max_attempt_tokens.
    """

    prompts: int
    n: int = 8
    prompt_length: int
    response_length: int
    law: str = "lognormal"
    median: float
    spread: float = 1.0
    max_attempt_tokens: int | None = None

    def options(self, folder: Path, *, phases: int, seed: int) -> list[str]:
        """Options of verl over ``folder``, into which the file that names the agent loop is written.

        Args:
            phases: generation phases of a round; seed: of the lengths.
        """
        # Imports verl, which wants the environment of a run first.
        from benchmarks.generation.agent_loop import NAME, entry

        law = {"law": self.law, "median": self.median, "spread": self.spread}
        loops = folder / "agent_loops.yaml"
        loops.write_text(json.dumps([entry(**law, attempts=self.n, phases=phases, seed=seed)]))  # JSON is YAML
        task = Task(
            folder=folder,
            correction_prompt_length=self.prompt_length,
            response_length=self.response_length,
            train_batch_size=self.prompts,
            n=self.n,
        )
        return [
            *overrides(task),
            f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}",
            f"actor_rollout_ref.rollout.agent.default_agent_loop={NAME}",
        ]


@dataclass(frozen=True, kw_only=True)
class Simulated(Setting):
    """One step on the simulated engine.

    The lengths are such that, on this engine, GRPO with twice the rollouts takes 1.70, 1.63 and 1.59 times as long as
    GRPO at 256, 512 and 1,024 sequences: what the simulation that the design rests on had, 1.70, 1.62, 1.59.

    call_s: of a call to Ray or TransferQueue.
    """

    prompts: int = 128
    prompt_length: int = 8192
    response_length: int = 4096
    median: float = 600.0
    call_s: float = 0.002
    speed: Speed = field(default_factory=Speed)


@dataclass(frozen=True, kw_only=True)
class Vllm(Setting):
    """Steps with vLLM on the CPU. The longest sequence of the tiny model is 512."""

    prompts: int = 32
    prompt_length: int = 256
    response_length: int = 256
    median: float = 40.0
    rounds: int = 10
    max_seqs: int = 64
    seed: int = 1
