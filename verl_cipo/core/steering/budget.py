"""The budget: whether a step's sessions are worth more as corrections or as further attempts.

docs/method.md 18. A step has K slots, one an anchor, of n_corrections sessions each. With budget=auto a slot becomes
the corrections of its anchor, or as many further attempts at a prompt of the step. In prompts without a right attempt
what both have brought decides: w2c, the share of right corrections of wrong attempts, against retry, the share of right
ones among further attempts. Both are measured in every step for nothing. Slots of prompts with a right attempt are
further attempts. These are spread evenly, as GRPO with as many rollouts has them, and start with the attempts: how many
slots of a step become corrections is planned before any verdict.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from verl_cipo.core.anchors import Attempt, Group, Outcome, medium, rounded
from verl_cipo.core.draws import lot
from verl_cipo.core.rows import BASE, CORRECTION, RowTable

NONE = "none"
"""Kind of the slots of wrong anchors in prompts without a right attempt."""
SOME = "some"
"""Kind of those in prompts with one."""
RIGHT = "right"
"""Kind of the slots of right anchors, and of those of whose prompt nothing is known."""
KINDS = (NONE, SOME, RIGHT)

DECAY = 0.95
"""Weight of what was measured one step before: a step has few anchors that count."""
PROBE = 1 / 16
"""Least share of corrections in prompts without a right attempt: so it is noticed when they become worth more."""
WORTH = 2
"""How many times as often as a further attempt a correction has to be right, to be worth its sessions."""
_PRIOR = 2.0
"""Anchors, or prompts, that each side is given for a start; with what both sides have measured together."""
_LEFT_OVER = 1.0
"""Corrections of a kind that are left over for later, at most: a debt must not outlive the share that it is from."""
_SHOWN = 0.5
"""Anchors, or prompts, that a share is shown from on. A step's few prompts with one right attempt say n / (n + 1)."""
_OF_NONE = 0.25
"""Part of the wrong anchors that is taken to be of prompts without a right attempt before any was drawn."""


def kind_of(anchor: Attempt, outcome: Outcome | None) -> str:
    """Of KINDS, that of an anchor's slot; outcome: of the anchor's prompt when it was drawn."""
    if anchor.correct or outcome is None:
        return RIGHT
    return SOME if outcome.prompt_right else NONE


@dataclass(frozen=True)
class Sums:
    """What the mean of one side and its noise follow from: sums over anchors, or over prompts.

    Sessions of one anchor, or of one prompt, are alike: what varies independently are anchors and prompts. Each counts
    with a size (1 for an anchor; for a prompt the share of its attempts that count) and its right part, size times the
    share of right ones. size, right: their sums; size2, right2, cross: sums of size^2, right^2, size * right.
    """

    size: float = 0.0
    right: float = 0.0
    size2: float = 0.0
    right2: float = 0.0
    cross: float = 0.0

    @classmethod
    def of(cls, parts: Iterable[tuple[float, float]]) -> "Sums":
        """From the (size, right) of each anchor or prompt."""
        size, right = np.array([*parts], dtype=np.float64).reshape(-1, 2).T
        return cls(
            size=float(size.sum()),
            right=float(right.sum()),
            size2=float((size**2).sum()),
            right2=float((right**2).sum()),
            cross=float((size * right).sum()),
        )

    @property
    def mean(self) -> float | None:
        """Share of right ones, as it is shown; None where too little was measured."""
        return self.right / self.size if self.size >= _SHOWN else None

    def then(self, new: "Sums") -> "Sums":
        """With the sums of the next step; what was before has the weight DECAY, and so DECAY^2 in squares."""
        return Sums(
            size=DECAY * self.size + new.size,
            right=DECAY * self.right + new.right,
            size2=DECAY**2 * self.size2 + new.size2,
            right2=DECAY**2 * self.right2 + new.right2,
            cross=DECAY**2 * self.cross + new.cross,
        )

    def estimate(self, prior: float) -> tuple[float, float]:
        """Mean and its variance, with _PRIOR anchors or prompts in addition that are all right or all wrong.

        The variance is that of a ratio of sums: sum of (right - mean * size)^2 over (sum of sizes)^2.
        prior: share of right ones among those in addition, in (0, 1).
        """
        size = self.size + _PRIOR
        mean = (self.right + _PRIOR * prior) / size
        squares = self.right2 - 2 * mean * self.cross + mean**2 * self.size2
        squares += _PRIOR * (prior * (1 - mean) ** 2 + (1 - prior) * mean**2)
        return mean, squares / size**2


@dataclass(frozen=True)
class Evidence:
    """What one step tells of both sides, in prompts without a right attempt."""

    w2c: Sums
    retry: Sums


def evidence(table: RowTable, *, evicted: int = 0) -> Evidence:
    """What the rows of a step tell, and how many prompts were evicted (algorithm.filter_groups) for being all wrong.

    w2c: corrections of wrong anchors, an anchor counts as one.

    retry: each of a prompt's attempts is a further one after the others. Where none is right, all of them were wrong
    further attempts; where one is, it was a right one. A further attempt is made where one more is known, the wrong
    anchor: what follows n attempts is lower than what follows n - 1 by the factor n / (n + 1) (of pass rates that are
    Beta(a, b) distributed with a + b = 1; for any a and b it is below 1 and above 1 - 1/n). Further attempts themselves
    count as they are. Attempts whose number depends on the others' verdicts must not be left out in turn, so only those
    that every prompt has are.
    """
    rows = table.rows
    corrections: dict[str, list[bool]] = defaultdict(list)
    for i in np.flatnonzero((rows.stream == CORRECTION) & rows.final & ~rows.anchor_correct):
        outcome = table.outcome[i]
        if outcome is not None and outcome.prompt_right == 0:
            corrections[str(rows.group[i])].append(bool(rows.correct[i]))
    prompts: dict[str, tuple[list[bool], list[bool]]] = defaultdict(lambda: ([], []))
    for i in np.flatnonzero((rows.stream == BASE) & rows.final):
        prompts[str(rows.group[i])][int(rows.further[i])].append(bool(rows.correct[i]))
    return Evidence(
        w2c=Sums.of((1.0, sum(verdicts) / len(verdicts)) for verdicts in corrections.values()),
        retry=Sums.of([_retried(*sides) for sides in prompts.values() if len(sides[0]) > 1] + evicted * [(1.0, 0.0)]),
    )


def _retried(attempts: Sequence[bool], further: Sequence[bool]) -> tuple[float, float]:
    """(size, right) of a prompt, see `evidence`."""
    n, right = len(attempts), sum(attempts)
    if right == 0:
        return 1 + len(further) / n, sum(further) / n
    return (1 / n, 1 / (n + 1)) if right == 1 else (0.0, 0.0)


@dataclass(frozen=True)
class BudgetState:
    """What was measured up to now; part of every checkpoint.

    slots: how many of wrong anchors there were, and of_none: those in prompts without a right attempt; all decayed.
    """

    w2c: Sums = Sums()
    retry: Sums = Sums()
    slots: float = 0.0
    of_none: float = 0.0

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "BudgetState":
        """Back from `to_mapping`, or from what it was when both sides were kept by pass rate.

        Raises: TypeError on an unknown key.
        """
        if isinstance(slots := values["slots"], Mapping):
            of_none = {side: values[side].get(NONE, {}) for side in ("w2c", "retry")}
            values = {**of_none, "slots": sum(slots.values()), "of_none": slots.get(NONE, 0.0)}
        return cls(**{**values, **{side: Sums(**values[side]) for side in ("w2c", "retry")}})


def update_budget(state: BudgetState, new: Evidence, *, slots: float, of_none: float) -> BudgetState:
    """The state after a step; slots, of_none: of the step."""
    return BudgetState(
        w2c=state.w2c.then(new.w2c),
        retry=state.retry.then(new.retry),
        slots=DECAY * state.slots + slots,
        of_none=DECAY * state.of_none + of_none,
    )


def shares(state: BudgetState) -> dict[str, float]:
    """Share of the slots of each of KINDS that are corrections, in [0, 1].

    Of wrong anchors in prompts without a right attempt that is how much likelier a correction is worth its sessions
    than not, P(w2c > WORTH retry) - P(w2c < WORTH retry), with both means taken as normal and independent, and at least
    PROBE. There GRPO has no signal, and what a correction finds can be trained on the plain prompt. In all other
    prompts it is 0, however much corrections are worth: there further attempts teach the first turn more, and pairs the
    second one. Of right anchors, whose corrections cannot gain, it is the mean over the slots of wrong ones.
    """
    share = _share(state.w2c, state.retry)
    part = state.of_none / state.slots if state.slots else _OF_NONE
    return {NONE: share, SOME: 0.0, RIGHT: share * part}


def _share(w2c: Sums, retry: Sums) -> float:
    # Both sides start from what they have in common: a side with few measurements is neither favored nor put back.
    prior = (w2c.right + retry.right + _PRIOR / 2) / (w2c.size + retry.size + _PRIOR)
    (mean, variance), (other, noise) = w2c.estimate(prior), retry.estimate(prior)
    return max(math.erf((mean - WORTH * other) / math.sqrt(2 * (variance + WORTH**2 * noise))), PROBE)


def drawn_first(
    shares: Mapping[str, float] | None, *, delta_low: float, delta_high: float
) -> Callable[[Group], bool] | None:
    """Whether anchors are drawn from a prompt before others; None: by its difficulty, as without this budget.

    With budget=auto only corrections of prompts without a right attempt can be worth something. Where they are, anchors
    come first from these; where they are a probe, as soon as from prompts of medium difficulty.
    shares: of `shares`; None with budget=fixed.
    """
    if shares is None:
        return None
    if shares[NONE] > PROBE:
        return lambda group: group.pass_rate == 0
    return lambda group: group.pass_rate == 0 or medium(group.pass_rate, delta_low=delta_low, delta_high=delta_high)


def divide(
    slots: Sequence[tuple[str, Attempt]],
    shares: Mapping[str, float],
    carries: Mapping[str, float],
    *,
    seed: int,
    step: int,
    most: int,
) -> tuple[list[bool], dict[str, float]]:
    """Whether each slot becomes corrections, and what is left over now.

    Of each kind, share * slots + what was left over become corrections, rounded: over any number of calls they follow
    the share up to half a slot, where `most` keeps nothing back; of that one slot is left over. Right anchors come
    first: how many there are is known before. Which ones is drawn by a hash of (seed, step, index, session).

    Args:
        slots: kind and anchor of each.
        shares: of `shares`.
        carries: what earlier calls left over, by kind; a kind that is missing has 0.
        most: corrections in all.
    """
    carries = dict(carries)
    corrected = [False] * len(slots)
    for kind in reversed(KINDS):
        own = [place for place, (name, _) in enumerate(slots) if name == kind]
        if not own:
            continue
        own.sort(key=lambda place: _place(slots[place][1], seed, step))
        wanted = shares[kind] * len(own) + carries.get(kind, 0.0)
        count = min(max(rounded(wanted), 0), len(own), most - sum(corrected))
        carries[kind] = min(wanted - count, _LEFT_OVER)
        for place in own[:count]:
            corrected[place] = True
    return corrected, carries


def planned(slots: int, shares: Mapping[str, float], carries: Mapping[str, float]) -> int:
    """How many of a step's slots are to become corrections, before its verdicts are known.

    As many as are expected, with the kinds of anchors that the steps before had, and what these have left over.

    Args:
        shares: of `shares`; that of RIGHT is the mean over the slots.
        carries: of `divide`, before the step.
    """
    return min(max(rounded(shares[RIGHT] * slots + sum(carries.values())), 0), slots)


class Spread:
    """Whose turn it is for further attempts, among the prompts of a step whose attempts have ended.

    One that has got the fewest so far; prompts with a wrong attempt before those without, since only there a further
    one can tell something; among equals the lot of (seed, step, index) decides.

    Args:
        begun: slots that start with the attempts; they are dealt to `uids`, all prompts of the step, in their order.
    """

    def __init__(self, *, seed: int, step: int, begun: int = 0, uids: Sequence[str] = ()) -> None:
        self.begun = Counter(uids[i % len(uids)] for i in range(begun))
        """uid -> slots that start with the attempts."""
        self._not_due = begun
        self._draw = (seed, step)
        self._turns: list[tuple[bool, int, bytes, str, str]] = []

    def add(self, group: Group) -> None:
        """A prompt whose attempts have ended; one without any gets no further ones."""
        if group.attempts:
            first = group.attempts[0]
            turn = (
                group.pass_rate == 1,
                self.begun[group.uid],
                lot(*self._draw, "further", first.index),
                first.prompt,
                group.uid,
            )
            heapq.heappush(self._turns, turn)

    def take(self, count: int) -> list[str]:
        """The prompts, by uid, of the next `count` slots of further attempts but those that have begun.

        Raises: IndexError where none was added.
        """
        due = max(count - self._not_due, 0)
        self._not_due -= count - due
        chosen = []
        for _ in range(due):
            all_right, given, drawn, prompt, uid = self._turns[0]
            heapq.heapreplace(self._turns, (all_right, given + 1, drawn, prompt, uid))
            chosen.append(uid)
        return chosen


def _place(anchor: Attempt, seed: int, step: int) -> tuple[bytes, str, int]:
    return lot(seed, step, "budget", anchor.index, anchor.session), anchor.prompt, anchor.session


def budget_metrics(
    state: BudgetState, used: Mapping[str, float], table: RowTable, measured: Mapping[str, float]
) -> dict[str, float]:
    """``cipo/budget/*`` of a step, but what the rollout side counts; means over next to nothing are left out.

    Args:
        state: after the step.
        used: the step's `shares`.
        measured: the rollout side's counts, with ``cipo/budget/slots`` and ``cipo/budget/corrected``.
    """
    rows = table.rows
    further = (rows.stream == BASE) & rows.final & rows.further
    metrics = {
        "attempts": float(further.sum()),
        "corrections": float(((rows.stream == CORRECTION) & rows.final).sum()),
        **{f"{kind}/share": used[kind] for kind in (NONE, RIGHT)},
    }
    if slots := measured.get("cipo/budget/slots"):
        metrics["correction_share"] = measured["cipo/budget/corrected"] / slots
    if further.any():
        metrics["accuracy"] = float(rows.correct[further].mean())
    for side, sums in (("w2c", state.w2c), ("retry", state.retry)):
        if sums.mean is not None:
            metrics[f"{NONE}/{side}"] = sums.mean
    return {f"cipo/budget/{name}": value for name, value in metrics.items()}


def observe_budget(
    state: BudgetState, table: RowTable, measured: Mapping[str, float]
) -> tuple[BudgetState, dict[str, float]]:
    """The state after a step, and the step's `budget_metrics`.

    Args:
        table: all rows that were rolled out.
        measured: the rollout side's counts, with ``cipo/budget/*/slots`` of each of KINDS, and with a group filter
            ``cipo/filter/evicted_all_wrong``.
    """
    none, some = (measured.get(f"cipo/budget/{kind}/slots", 0.0) for kind in (NONE, SOME))
    evicted = round(measured.get("cipo/filter/evicted_all_wrong", 0.0))
    after = update_budget(state, evidence(table, evicted=evicted), slots=none + some, of_none=none)
    return after, budget_metrics(after, shares(state), table, measured)
