"""A V1 trainer of verl that starts everything and then only generates: each arm's phase, round by round, timed.

All arms share the vLLM server, its weights, the verifiers and TransferQueue; each schedule has its own rollout manager.
A phase ends when the replay buffer gives the rows out, as for a training step. Round 0 warms up and is not kept: it is
also the step whose attempts the first timed `replay` draws its anchors from.
"""

import itertools
import json
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer
from verl.utils import tensordict_utils as tu

from benchmarks.generation.arms import ARMS, RHO, Arm
from verl_cipo.integration.rollout.manager import CIPOAgentLoopManager

NAME = "generation_phases"


@register_trainer(NAME)
class GenerationPhases(PPOTrainerSync):
    """Options of the config, beside verl's.

    generation.rounds: to time, after the first; generation.output: file of the figures, a JSON line a phase;
    generation.max_attempt_tokens: algorithm.cipo.prompt.max_attempt_tokens.
    """

    def __init__(self, config: DictConfig):
        with open_dict(config):
            # Branches of verl test it against its own names.
            config.trainer.v1.trainer_mode = "sync"
        super().__init__(config)

    def fit(self, agent_loop_manager: Any) -> None:
        """Generate; ``agent_loop_manager`` is verl's own, for the arms without corrections."""
        options = self.config.generation
        managers = {
            name: agent_loop_manager if arm.schedule is None else self._manager(arm) for name, arm in ARMS.items()
        }
        batches = itertools.cycle(self.train_dataloader)
        with open(Path(options.output), "w") as file:
            for number in range(options.rounds + 1):
                batch = next(batches)
                names = list(ARMS)
                # None is always the first, or always after the same one.
                order = [names[(number + i) % len(names)] for i in range(len(names))][:: 1 if number % 2 else -1]
                for place, name in enumerate(order):
                    self.agent_loop_manager = managers[name]
                    figures = self._phase(dict(batch), ARMS[name].rollouts, number * len(ARMS) + place)
                    file.write(json.dumps({"round": number, "arm": name, **figures}) + "\n")
                    file.flush()

    def _manager(self, arm: Arm) -> CIPOAgentLoopManager:
        config = self.config.copy()
        with open_dict(config):
            prompt = {"max_attempt_tokens": config.generation.max_attempt_tokens}
            config.algorithm.cipo = {"schedule": arm.schedule, "budget": arm.budget, "prompt": prompt}
        manager = CIPOAgentLoopManager.create(
            config=config,
            llm_client=self.get_llm_client(),
            teacher_client=self.get_teacher_client(),
            reward_loop_worker_handles=self.get_reward_handles(),
        )
        manager.rho, manager.shares = RHO, arm.shares
        return manager

    def _phase(self, fields: dict[str, Any], rollouts: int, step: int) -> dict[str, float]:
        """Generate one batch; seconds, rows and response tokens."""
        self.global_steps = step
        fields["uid"] = np.array([str(uuid.uuid4()) for _ in fields["raw_prompt"]], dtype=object)
        batch = tu.get_tensordict(fields)
        tu.assign_non_tensor_data(batch, "global_steps", step)
        tu.assign_non_tensor_data(batch, "__rollout_n__", rollouts * self.config.actor_rollout_ref.rollout.n)
        started = time.monotonic()
        prompts = self._submit_batch_to_rollout(batch)
        rows, _ = self.replay_buffer.sample(global_steps=step, partition_id="train", batch_size=prompts)
        seconds = time.monotonic() - started
        tq.kv_clear(keys=rows.keys, partition_id=rows.partition_id)
        return {
            "seconds": seconds,
            "rows": len(rows.keys),
            "tokens": sum(tag["response_len"] for tag in rows.tags),
        }
