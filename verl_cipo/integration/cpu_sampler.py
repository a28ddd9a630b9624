"""A replay buffer for runs whose steps take less than verl's polling interval.

verl polls every 2.0 s and offers no option for it; a step of the CPU demo generates in well under a second.
Chosen by ``trainer.v1.sampler.custom_sampler``, verl's own extension point, in ``cpu.yaml`` only.
"""

from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_SECONDS = 0.05


class QuickReplayBuffer(ReplayBuffer):
    """verl's synchronous replay buffer, polling every :data:`POLL_SECONDS`."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, poll_interval=POLL_SECONDS, **kwargs)
