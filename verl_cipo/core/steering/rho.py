"""The replay ratio rho: the share of right attempts among the anchors, steered by the retention.

docs/method.md 5. The retention is how often a right anchor stays right. When it is too low, more right anchors
are replayed, so that learning to correct does not erode what already works.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from verl_cipo.core.config import CIPOConfig

_MAX_PATIENCE_STEPS = 3


@dataclass(frozen=True)
class RhoState:
    """What the controller remembers between steps; part of every checkpoint.

    rho: share of right anchors for the next step; prev_retention: of the last step that had one;
    steps_below_target: consecutive measured steps, the last one included, with retention below the target.
    """

    rho: float
    prev_retention: float | None
    steps_below_target: int

    @classmethod
    def initial(cls, config: CIPOConfig) -> "RhoState":
        """The state before step 1."""
        return cls(rho=config.rho_init, prev_retention=None, steps_below_target=0)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "RhoState":
        """Back from `to_mapping`. Raises: TypeError on a missing or an unknown key."""
        return cls(**values)


def update_rho(state: RhoState, retention: float | None, *, config: CIPOConfig) -> RhoState:
    """One step of the controller.

    rho <- clip(rho * (1 + w1 * (target - ret) + w2 * max(0, prev_ret - ret) + w3 * min(steps_below, 3)), min, max)
    with w1, w2, w3 = rho_gain, rho_drop_gain, rho_patience_gain. A retention of None (the step had no right anchor)
    leaves the state as it is. With rho_adaptive off, rho stays and the retention is still tracked.
    """
    if retention is None:
        return state
    below = state.steps_below_target + 1 if retention < config.rho_target else 0
    rho = state.rho
    if config.rho_adaptive:
        drop = 0.0 if state.prev_retention is None else max(0.0, state.prev_retention - retention)
        growth = (
            config.rho_gain * (config.rho_target - retention)
            + config.rho_drop_gain * drop
            + config.rho_patience_gain * min(below, _MAX_PATIENCE_STEPS)
        )
        rho = min(max(rho * (1.0 + growth), config.rho_min), config.rho_max)
    return RhoState(rho=rho, prev_retention=retention, steps_below_target=below)


def resumed_rho(saved: RhoState, config: CIPOConfig, *, rho_init: float | None) -> RhoState:
    """The state of a checkpoint as the knobs of the run that resumes it allow it.

    rho_init: that of the run that saved it, None where it is not known. rho starts anew at config.rho_init where it
    does not adapt, or where that knob has changed; else it is clipped to the range. The retentions measured stay.
    """
    if not config.rho_adaptive or rho_init not in (None, config.rho_init):
        return replace(saved, rho=config.rho_init)
    return replace(saved, rho=min(max(saved.rho, config.rho_min), config.rho_max))
