"""The pool of attempts that `schedule: replay` draws anchors from, docs/method.md 12."""

import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from verl_cipo.core.anchors import Attempt, Group, Outcome, Rank, medium, ranks


@dataclass(frozen=True)
class Candidate:
    """An attempt that may become an anchor of the next step.

    rank: its place among those of its kind, those of prompts that are drawn first before the others; payload: what
    rolling its corrections out takes; outcome: of its prompt; None in a checkpoint of an older version.
    """

    rank: tuple[bool, Rank]
    attempt: Attempt
    payload: Any
    outcome: Outcome | None = None


class ReplayPool:
    """The attempts of one step that the next step's anchors are drawn from.

    Of each kind, right and wrong, it keeps the `capacity` that `select_anchors` would take first, whatever rho will
    be: so it is bounded while it fills, and `take` gives what `select_anchors` would have given for the whole step.
    """

    def __init__(
        self,
        *,
        capacity: int,
        delta_low: float,
        delta_high: float,
        seed: int,
        step: int,
        first: Callable[[Group], bool] | None = None,
    ) -> None:
        self._capacity = capacity
        self._first = first or (lambda group: medium(group.pass_rate, delta_low=delta_low, delta_high=delta_high))
        self._draw = {"seed": seed, "step": step}
        self._kept: dict[bool, list[Candidate]] = {True: [], False: []}

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def add(self, group: Group, payloads: Mapping[int, Any]) -> None:
        """Offer the attempts of a finished group; `payloads` has one for each session that is correctable."""
        tier, outcome = not self._first(group), group.outcome
        for rank, attempt in ranks(group, **self._draw):
            self._keep(Candidate((tier, rank), attempt, payloads[attempt.session], outcome))

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
