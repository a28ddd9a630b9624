"""Replay buffers for runs whose steps take less than verl's polling interval.

verl polls every 2.0 s and offers no option for it; a step of the CPU demo generates in well under a second.
Chosen by ``trainer.v1.sampler.custom_sampler``, verl's own extension point, in ``cpu.yaml`` only.
"""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

POLL_SECONDS = 0.05


def quick_replay_buffer(trainer_mode: str, **kwargs: Any) -> ReplayBuffer:
    """verl's replay buffer for ``trainer_mode``, polling every :data:`POLL_SECONDS`."""
    buffer = ReplayBuffer if trainer_mode == "sync" else ReplayBufferAsync
    return buffer(trainer_mode=trainer_mode, poll_interval=POLL_SECONDS, **kwargs)
