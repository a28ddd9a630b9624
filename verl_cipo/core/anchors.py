"""Which attempts become anchors: difficulty-aware selection with a share rho of right ones.

docs/method.md 2, 5, 8 and 12. An anchor is an attempt that the policy is asked to correct. The draw is a hash of (seed,
step, index, session), so it depends neither on the order in which prompts finish nor on their random uids. Prompts that
share an `index`, of several files say, share their draws too, and are then told apart by `origin`.
"""

import heapq
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from verl_cipo.core.draws import lot

# Pass rates and shares are quotients of small integers: far below any difference that means something.
_TOLERANCE = 1e-9

Rank = tuple[int, bytes, str, int]
"""(round, lot, prompt, session): the order in which the attempts of one kind and tier are taken."""


@dataclass(frozen=True)
class Attempt:
    """One verified rollout of a prompt.

    uid: the prompt's id in this step; index: its id in the data set; session: which of its n rollouts;
    correct: the verifier's verdict; score: its raw score; origin: of the prompt, see `lots.origin`;
    correctable: whether a correction prompt can be made of it. One that is not counts for the pass rate of its prompt
    and is never drawn.
    """

    uid: str
    index: int | str
    session: int
    correct: bool
    score: float
    origin: str = ""
    correctable: bool = True

    @property
    def prompt(self) -> str:
        """Orders prompts that share an index: by origin, by the random uid those alone that have it in common too."""
        return f"{self.origin}/{self.uid}" if self.origin else self.uid


class Outcome(NamedTuple):
    """What the attempts of a prompt had come to when one of them was drawn as an anchor.

    prompt_right: how many of them were right; prompt_attempts: how many there were; prompt_score: mean of their raw
    scores; prompt_spread: standard deviation of these, as of the whole population.
    """

    prompt_right: int
    prompt_attempts: int
    prompt_score: float
    prompt_spread: float

    @property
    def pass_rate(self) -> float:
        """Share of right attempts."""
        return self.prompt_right / self.prompt_attempts

    def at_most(self, pass_rate: float) -> bool:
        """Whether no more than this share of the attempts was right."""
        return self.pass_rate <= pass_rate + _TOLERANCE


@dataclass(frozen=True)
class Group:
    """The attempts of one prompt in one step; sessions that failed are left out.

    evicted: whether `algorithm.filter_groups` takes the prompt out of the step, see `no_signal`.
    """

    uid: str
    attempts: tuple[Attempt, ...]
    evicted: bool = False

    def __post_init__(self) -> None:
        sessions = [attempt.session for attempt in self.attempts]
        if len(set(sessions)) != len(sessions):
            raise ValueError(f"group {self.uid!r} has the sessions {sessions}: expected one attempt per session")

    @property
    def pass_rate(self) -> float:
        """Share of right attempts; NaN when every session failed."""
        if not self.attempts:
            return math.nan
        return sum(attempt.correct for attempt in self.attempts) / len(self.attempts)

    @property
    def outcome(self) -> Outcome | None:
        """What a correction's row is told of the attempts; None when every session failed."""
        if not self.attempts:
            return None
        scores = [attempt.score for attempt in self.attempts]
        return Outcome(
            prompt_right=sum(attempt.correct for attempt in self.attempts),
            prompt_attempts=len(scores),
            prompt_score=statistics.fmean(scores),
            prompt_spread=statistics.pstdev(scores),
        )


def no_signal(values: Sequence[float]) -> bool:
    """Whether verl's group filter evicts a prompt whose attempts have these values of its metric; verl's own test."""
    return len(values) > 1 and float(np.std(values)) == 0.0


def medium(pass_rate: float, *, delta_low: float, delta_high: float) -> bool:
    """Whether a prompt is of medium difficulty; both ends are included, NaN is not medium."""
    return delta_low - _TOLERANCE <= pass_rate <= delta_high + _TOLERANCE


def ranks(group: Group, *, seed: int, step: int) -> list[tuple[Rank, Attempt]]:
    """Where each correctable attempt of `group` stands among those of its kind (right or wrong) and tier."""
    ranked = []
    for kind in (True, False):
        own = [attempt for attempt in group.attempts if attempt.correctable and attempt.correct == kind]
        lots = sorted((*_lots(seed, step, a), a.session, a) for a in own)
        ranked += [((turn, lot, a.prompt, session), a) for turn, (_, lot, session, a) in enumerate(lots)]
    return ranked


def anchor_budget(n_prompts: int, replay_fraction: float) -> int:
    """Anchors for `n_prompts` prompts: replay_fraction * n_prompts, rounded half up."""
    return rounded(replay_fraction * n_prompts)


def quotas(budget: int, rho: float) -> dict[bool, int]:
    """How many of `budget` anchors are right (True) and wrong (False): round(rho * budget) and the rest."""
    right = rounded(rho * budget)
    return {True: right, False: budget - right}


@dataclass(frozen=True)
class Carry:
    """What rounding has left over so far, in anchors and in right ones; between -1/2 and 1/2."""

    anchors: float = 0.0
    right: float = 0.0


def carried_quotas(
    n_prompts: int, *, replay_fraction: float, rho: float, carry: Carry
) -> tuple[dict[bool, int], Carry]:
    """`quotas` for one of several dispatches, with what rounding left of those before; and what it leaves now.

    So the anchors of any number of dispatches are replay_fraction * prompts, and the right ones among them the sum of
    rho * anchors, up to half an anchor, however small a dispatch is.
    """
    wanted = replay_fraction * n_prompts + carry.anchors
    budget = rounded(wanted)
    wanted_right = rho * budget + carry.right
    right = min(max(rounded(wanted_right), 0), budget)
    return {True: right, False: budget - right}, Carry(anchors=wanted - budget, right=wanted_right - right)


def select_anchors(
    groups: Sequence[Group],
    *,
    budget: int,
    rho: float,
    delta_low: float,
    delta_high: float,
    seed: int,
    step: int,
    first: Callable[[Group], bool] | None = None,
) -> list[Attempt]:
    """Draw `budget` anchors from `groups`, or all attempts if there are fewer.

    round(rho * budget) of them are right and the rest wrong. Each kind comes from prompts of medium difficulty
    first, or from those that `first` names, then from the rest, round-robin over the prompts of a tier: none gives a
    second anchor of a kind before every prompt that has one gave its first. When a kind runs short altogether, the
    other one fills up.
    """
    selector = AnchorSelector(
        schedule="barrier",
        n_groups=len(groups),
        budget=budget,
        rho=rho,
        delta_low=delta_low,
        delta_high=delta_high,
        seed=seed,
        step=step,
        first=first,
    )
    return [anchor for group in groups for anchor in selector.add(group)]


class AnchorSelector:
    """Decides the anchors of one submitted batch of `n_groups` prompts as their groups finish.

    quota: how many of the `budget` anchors are right and wrong; None is that of `quotas`. first: which prompts are
    drawn from before the others; None: those of medium difficulty, which is what medium means below.

    barrier: everything is decided at the last group, by the rule of `select_anchors`.
    streaming: after i groups ceil(budget * i / n_groups) anchors may have been given out. A group of medium difficulty
    releases what is due, out of all medium attempts seen so far and in the order of `select_anchors`, such that the
    running share of right anchors stays closest to rho and no kind exceeds its quota. The last group releases
    everything that is left, by the rule of `select_anchors`: so both schedules give equally many anchors, and equally
    many of each kind.

    `finish` takes the groups so far for all that there are. A group that is `owed` an anchor gives a wrong one at once.
    """

    def __init__(
        self,
        *,
        schedule: str,
        n_groups: int,
        budget: int,
        rho: float,
        delta_low: float,
        delta_high: float,
        seed: int,
        step: int,
        quota: Mapping[bool, int] | None = None,
        first: Callable[[Group], bool] | None = None,
    ) -> None:
        if schedule not in ("streaming", "barrier"):
            raise ValueError(f"schedule = {schedule!r}: expected one of streaming, barrier")
        if n_groups < 0 or budget < 0 or not 0 <= rho <= 1:
            raise ValueError(
                f"n_groups = {n_groups!r}, budget = {budget!r}, rho = {rho!r}: expected >= 0, >= 0 and [0, 1]"
            )
        self._streaming = schedule == "streaming"
        self._n_groups = n_groups
        self._budget = budget
        self._rho = rho
        self._first = first or (lambda group: medium(group.pass_rate, delta_low=delta_low, delta_high=delta_high))
        self._draw = {"seed": seed, "step": step}
        self._quota = quotas(budget, rho) if quota is None else quota
        self._taken = {True: 0, False: 0}
        self._waiting: dict[tuple[bool, bool], list[tuple[Rank, Attempt]]] = {
            (is_medium, kind): [] for is_medium in (True, False) for kind in (True, False)
        }
        self._seen: set[str] = set()
        self._finished = False

    @property
    def complete(self) -> bool:
        """Whether every group was added, so that no further anchor will come."""
        return self._finished or len(self._seen) >= self._n_groups

    @property
    def wrong_left(self) -> int:
        """How many wrong anchors the quota still has."""
        return self._quota[False] - self._taken[False]

    def finish(self) -> list[Attempt]:
        """No further group will come: the anchors that are left, none where it was complete."""
        if self.complete:
            return []
        self._finished = True
        return self._take_rest()

    def add(self, group: Group, *, owed: bool = False) -> list[Attempt]:
        """Take a finished group (once each; it may have no attempts) and return the anchors decided now.

        They may belong to any group added so far. owed: whether one of them is a wrong attempt of this group, which
        must have one that is correctable. Raises: ValueError on more groups than `n_groups` and on a group that was
        added before.
        """
        if self.complete:
            raise ValueError(f"group {group.uid!r} is one more than the {self._n_groups} that were announced")
        if group.uid in self._seen:
            raise ValueError(f"group {group.uid!r} was already added")
        self._seen.add(group.uid)
        is_first = self._first(group)
        ranked = ranks(group, **self._draw)
        own: list[Attempt] = []
        if owed:
            own.append(ranked.pop(next(i for i, (_, attempt) in enumerate(ranked) if not attempt.correct))[1])
            self._taken[False] += 1
        for rank, attempt in ranked:
            heapq.heappush(self._waiting[is_first, attempt.correct], (rank, attempt))
        if self.complete:
            return own + self._take_rest()
        if self._streaming and is_first:
            return own + self._take_released()
        return own

    def _take_released(self) -> list[Attempt]:
        """Out of the medium prompts, up to the budget released so far and to each kind's quota."""
        released = math.ceil(self._budget * len(self._seen) / self._n_groups)
        anchors: list[Attempt] = []
        while (taken := sum(self._taken.values())) < released:
            preferred = rounded(self._rho * (taken + 1)) > self._taken[True]
            for kind in (preferred, not preferred):
                if self._waiting[True, kind] and self._taken[kind] < self._quota[kind]:
                    anchors.append(self._pop(kind, tier=True))
                    break
            else:
                break
        return anchors

    def _take_rest(self) -> list[Attempt]:
        """Fill the quotas, then let either kind fill what the other one could not."""
        anchors: list[Attempt] = []
        for limit in (self._quota, {True: self._budget, False: self._budget}):
            for kind in (True, False):
                for tier in (True, False):
                    while (
                        self._waiting[tier, kind]
                        and self._taken[kind] < limit[kind]
                        and sum(self._taken.values()) < self._budget
                    ):
                        anchors.append(self._pop(kind, tier=tier))
        return anchors

    def _pop(self, kind: bool, *, tier: bool) -> Attempt:
        self._taken[kind] += 1
        return heapq.heappop(self._waiting[tier, kind])[-1]


def _lots(seed: int, step: int, attempt: Attempt) -> tuple[bytes, bytes]:
    """The attempt's lot within its prompt and the one among the prompts of a round.

    Two independent ones: were the least of a prompt's lots also its lot among the prompts, those with more attempts of
    the kind would be drawn more often.
    """
    drawn = lot(seed, step, attempt.index, attempt.session, size=16)
    return drawn[:8], drawn[8:]


def rounded(value: float) -> int:
    """The next integer, halves up."""
    return math.floor(value + 0.5 + _TOLERANCE)
