"""What is compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """schedule: CIPO's, None for verl's own rollout worker; rollouts: attempts a prompt as a multiple of n."""

    schedule: str | None
    rollouts: int = 1


ARMS = {
    "grpo": Arm(None),
    "grpo_equal_rollouts": Arm(None, rollouts=2),
    "barrier": Arm("barrier"),
    "streaming": Arm("streaming"),
    "replay": Arm("replay"),
}
RHO = 0.3
"""Share of right anchors, the default of algorithm.cipo.rho_init."""
