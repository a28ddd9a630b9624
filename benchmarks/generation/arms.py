"""What is compared."""

from collections.abc import Mapping
from dataclasses import dataclass

from verl_cipo.core.steering.budget import BudgetState, shares


@dataclass(frozen=True)
class Arm:
    """schedule: CIPO's, None for verl's own rollout worker; rollouts: attempts a prompt as a multiple of n;
    budget: CIPO's."""

    schedule: str | None
    rollouts: int = 1
    budget: str = "fixed"

    @property
    def shares(self) -> Mapping[str, float] | None:
        """Of budget=auto, those of a run's first step, as a trainer sets them."""
        return shares(BudgetState()) if self.budget == "auto" else None


ARMS = {
    "grpo": Arm(None),
    "grpo_equal_rollouts": Arm(None, rollouts=2),
    "barrier": Arm("barrier"),
    "streaming": Arm("streaming"),
    "replay": Arm("replay"),
    "auto": Arm("streaming", budget="auto"),
}
RHO = 0.3
"""Share of right anchors, the default of algorithm.cipo.rho_init."""
