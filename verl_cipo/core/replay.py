"""The replay ratio rho, and the pool of attempts that `schedule: replay` draws anchors from.

docs/method.md 5 and 6. Rho is the share of correct attempts among the anchors, steered by the retention: how often a
correct anchor stays correct. When that is too low, more correct anchors are replayed, so that learning to correct does
not erode what already works.
"""

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from verl_cipo.core.anchors import Attempt, Group, Rank, medium, ranks
from verl_cipo.core.config import CIPOConfig

_MAX_PATIENCE_STEPS = 3


@dataclass(frozen=True)
class RhoState:
    """What the controller remembers between steps; part of every checkpoint.

    rho: share of correct anchors for the next step; prev_retention: of the last step that had one;
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
    with w1, w2, w3 = rho_gain, rho_drop_gain, rho_patience_gain. A retention of None (the step had no correct anchor)
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


@dataclass(frozen=True)
class Candidate:
    """An attempt that may become an anchor of the next step.

    rank: its place among those of its kind, medium difficulty first; payload: what rolling its corrections out takes.
    """

    rank: tuple[bool, Rank]
    attempt: Attempt
    payload: Any

    @property
    def medium(self) -> bool:
        """Whether its prompt is of medium difficulty."""
        return not self.rank[0]


class ReplayPool:
    """The attempts of one step that the next step's anchors are drawn from.

    Of each kind, right and wrong, it keeps the `capacity` that `select_anchors` would take first, whatever rho will
    be: so it is bounded while it fills, and `take` gives what `select_anchors` would have given for the whole step.
    """

    def __init__(self, *, capacity: int, delta_low: float, delta_high: float, seed: int, step: int) -> None:
        self._capacity = capacity
        self._band = {"delta_low": delta_low, "delta_high": delta_high}
        self._draw = {"seed": seed, "step": step}
        self._kept: dict[bool, list[Candidate]] = {True: [], False: []}

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def add(self, group: Group, payloads: Mapping[int, Any]) -> None:
        """Offer the attempts of a finished group; `payloads` has one for each session that is correctable."""
        tier = not medium(group.pass_rate, **self._band)
        for rank, attempt in ranks(group, **self._draw):
            self._keep(Candidate((tier, rank), attempt, payloads[attempt.session]))

    def _keep(self, candidate: Candidate) -> None:
        kept = self._kept[candidate.attempt.correct]
        bisect.insort(kept, candidate, key=lambda other: other.rank)
        del kept[self._capacity :]

    def take(self, limit: Mapping[bool, int]) -> list[Candidate]:
        """Take candidates out, `limit` of right and of wrong ones; a kind that runs short is filled up."""
        budget = sum(limit.values())
        taken = {kind: min(limit[kind], len(self._kept[kind])) for kind in (True, False)}
        for kind in (True, False):
            taken[kind] = min(len(self._kept[kind]), budget - taken[not kind])
        drawn = []
        for kind in (True, False):
            drawn += self._kept[kind][: taken[kind]]
            del self._kept[kind][: taken[kind]]
        return drawn

    def candidates(self) -> list[Candidate]:
        """Everything in the pool, for a checkpoint."""
        return [*self._kept[True], *self._kept[False]]

    def restore(self, candidates: Iterable[Candidate]) -> None:
        """Put back what `candidates` returned."""
        for candidate in candidates:
            self._keep(candidate)
