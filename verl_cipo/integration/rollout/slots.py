"""What becomes of the slots of a step: corrections of their anchors, or with budget=auto further attempts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from verl_cipo.core.anchors import Attempt, Outcome
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.steering.budget import divide, kind_of, sure
from verl_cipo.integration.rollout.reports import Reports


class Order(NamedTuple):
    """What a prompt is to roll out beside its attempts; further: slots of n_corrections further attempts each.

    anchors: to correct; sessions of the prompt, with schedule=replay candidates of the step before.
    """

    anchors: list[Any]
    further: int


class Slots:
    """Divides the slots of all steps, with what rounding leaves over from one call to the next.

    Args:
        reports: takes the counts, where the budget moves.
    """

    def __init__(self, config: CIPOConfig, reports: Reports):
        self._config = config
        self._reports = reports
        self.carries: dict[str, float] = {}
        """By kind of slot; part of every checkpoint."""

    def sure(self, slots: int, shares: Mapping[str, float] | None) -> int:
        """How many of the next ``slots`` are further attempts whatever the verdicts; see ``core.steering.budget``."""
        return sure(slots, shares, self.carries)

    def divide(
        self, slots: Sequence[tuple[Attempt, Outcome | None]], shares: Mapping[str, float] | None, *, step: int
    ) -> list[bool]:
        """Whether each slot becomes corrections.

        Args:
            slots: the anchor of each, and what its prompt had.
            shares: of ``core.steering.budget``; None with budget=fixed: all do.
        """
        if shares is None:
            return [True] * len(slots)
        kinds = [kind_of(anchor, outcome) for anchor, outcome in slots]
        named = [(kind, anchor) for kind, (anchor, _) in zip(kinds, slots, strict=True)]
        corrected, self.carries = divide(named, shares, self.carries, seed=self._config.seed, step=step)
        self._reports.count_slots(kinds, corrected)
        return corrected
