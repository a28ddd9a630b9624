"""What becomes of the slots of a step: corrections of their anchors, or with budget=auto further attempts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from verl_cipo.core.anchors import Attempt, Group, Outcome
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.steering.budget import Spread, divide, kind_of, planned
from verl_cipo.integration.rollout.reports import Reports


class Order(NamedTuple):
    """What a prompt is to roll out beside its attempts; further: slots of n_corrections further attempts each.

    anchors: to correct; sessions of the prompt, with schedule=replay candidates of the step before.
    """

    anchors: list[Any]
    further: int


class Slots:
    """Divides the slots of all steps, with what is left over from one call to the next.

    Args:
        reports: takes the counts, where the budget moves.
    """

    def __init__(self, config: CIPOConfig, reports: Reports):
        self._config = config
        self._reports = reports
        self.carries: dict[str, float] = {}
        """By kind of slot; part of every checkpoint."""

    def begin(
        self,
        count: int,
        shares: Mapping[str, float] | None,
        *,
        step: int,
        uids: Sequence[str] = (),
    ) -> "StepSlots":
        """The ``count`` slots of a step, or of a dispatch.

        Args:
            shares: of ``core.steering.budget``; None with budget=fixed: all become corrections.
            uids: its prompts, at which further attempts start at once; empty: all slots wait for verdicts.
        """
        most = planned(count, shares, self.carries) if shares is not None and uids else count
        spread = Spread(seed=self._config.seed, step=step, begun=count - most, uids=uids)
        return StepSlots(self, shares, spread, step=step, most=most)

    def divide(
        self,
        slots: Sequence[tuple[Attempt, Outcome | None]],
        shares: Mapping[str, float] | None,
        *,
        step: int,
        most: int | None = None,
        kept: str | None = None,
    ) -> list[bool]:
        """Whether each slot becomes corrections.

        Args:
            slots: the anchor of each, and what its prompt had.
            shares: as of :meth:`begin`.
            most: corrections in all; None: any number.
            kept: uid of a prompt that is there for its corrections (keep_all_wrong): they are made, whatever the share.
        """
        if shares is None:
            return [True] * len(slots)
        kinds = [kind_of(anchor, outcome) for anchor, outcome in slots]
        free = [place for place, (anchor, _) in enumerate(slots) if anchor.uid != kept]
        named = [(kinds[place], slots[place][0]) for place in free]
        most = (len(slots) if most is None else most) - (len(slots) - len(free))
        some, self.carries = divide(named, shares, self.carries, seed=self._config.seed, step=step, most=most)
        corrected = [True] * len(slots)
        for place, one in zip(free, some, strict=True):
            corrected[place] = one
        self._reports.count_slots(kinds, corrected)
        return corrected


class StepSlots:
    """The slots of one step, see :meth:`Slots.begin`."""

    def __init__(self, slots: Slots, shares: Mapping[str, float] | None, spread: Spread, *, step: int, most: int):
        self.shares = shares
        self._slots, self._spread, self._step, self._left = slots, spread, step, most

    @property
    def begun(self) -> Counter:
        """uid -> slots of further attempts that start with the attempts."""
        return self._spread.begun

    def add(self, group: Group) -> None:
        """A prompt whose attempts have ended: further ones that have not begun may be made at it."""
        self._spread.add(group)

    def divide(
        self, anchors: Sequence[tuple[Attempt, Outcome | None]], *, kept: str | None = None
    ) -> tuple[list[bool], list[str]]:
        """Whether each anchor is corrected, and for each slot of further attempts that has not begun its prompt's uid.

        Args:
            anchors: with what the prompt of each had.
            kept: as of :meth:`Slots.divide`.
        """
        corrected = self._slots.divide(anchors, self.shares, step=self._step, most=self._left, kept=kept)
        self._left -= corrected.count(True)
        return corrected, self._spread.take(corrected.count(False))
