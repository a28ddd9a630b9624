"""Sizes of what is measured. Lengths in tokens, times in seconds."""

from dataclasses import dataclass, field

from benchmarks.generation.engine import Speed


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """One step on the simulated engine.

    The lengths are such that, on this engine, GRPO with twice the rollouts takes 1.70, 1.63 and 1.59 times as long as
    GRPO at 256, 512 and 1,024 sequences: what the simulation that the design rests on had, 1.70, 1.62, 1.59.

    call_s: of a call to Ray or TransferQueue; max_attempt_tokens: algorithm.cipo.prompt.max_attempt_tokens.
    """

    prompts: int = 128
    n: int = 8
    response_length: int = 4096
    prompt_length: int = 8192
    law: str = "lognormal"
    median: float = 600.0
    spread: float = 1.0
    call_s: float = 0.002
    max_attempt_tokens: int | None = None
    speed: Speed = field(default_factory=Speed)


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """Steps with vLLM on the CPU. The longest sequence of the tiny model is 512."""

    rounds: int = 10
    prompts: int = 32
    n: int = 8
    max_seqs: int = 64
    prompt_length: int = 256
    response_length: int = 256
    law: str = "lognormal"
    median: float = 40.0
    spread: float = 1.0
    max_attempt_tokens: int | None = None
    seed: int = 1
