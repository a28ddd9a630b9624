"""Paired corrections: each failed attempt is given a right rollout of the same step as its correction.

docs/method.md 13 and 14. Nothing is generated: the donor is a right rollout of the same prompt, else of the nearest
prompt that has one, whose solution is then learnt beside the failed attempt as a worked example.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.draws import lot


@dataclass(frozen=True)
class Pair:
    """A failed attempt and the right rollout that corrects it; same_prompt: whether they answer the same question."""

    anchor: Attempt
    donor: Attempt
    same_prompt: bool


def pair_up(groups: Sequence[Group], anchors: Sequence[Attempt], *, seed: int, step: int) -> list[Pair]:
    """One pair for every failed attempt among `anchors`, in their order; none when no rollout of `groups` is right.

    Prompts stand in the order of their `index` (numbers before strings; those that share one are ordered by origin), as
    on a ring. The donor's prompt is the nearest one with a right rollout, the own one first; of two equally near ones
    it is the following. Which of its right rollouts is a hash of (seed, step) and both attempts' index and session, so
    neither the order of `groups` nor that of `anchors` matters. Right anchors need no correction and are left out.
    Raises: ValueError on a failed anchor whose uid is not among `groups`.
    """
    ring = sorted((group for group in groups if group.attempts), key=_place)
    position = {group.uid: i for i, group in enumerate(ring)}
    solved = [i for i, group in enumerate(ring) if any(attempt.correct for attempt in group.attempts)]
    pairs = []
    for anchor in anchors:
        if anchor.correct:
            continue
        if anchor.uid not in position:
            raise ValueError(f"anchor of uid {anchor.uid!r}: expected the {len(ring)} prompts of the batch")
        if not solved:
            break
        own = position[anchor.uid]
        nearest = _nearest(solved, own, len(ring))
        donors = [attempt for attempt in ring[nearest].attempts if attempt.correct]
        drawn_for = (seed, step, anchor.index, anchor.session)
        donor = min(donors, key=lambda attempt: (lot(*drawn_for, attempt.index, attempt.session), attempt.session))
        pairs.append(Pair(anchor=anchor, donor=donor, same_prompt=nearest == own))
    return pairs


def _place(group: Group) -> tuple[bool, int | str, str]:
    first = group.attempts[0]
    return isinstance(first.index, str), first.index, first.prompt


def _nearest(places: list[int], own: int, size: int) -> int:
    """The member of the sorted, non-empty `places` next to `own` on a ring of `size`."""
    i = bisect_left(places, own)
    after, before = places[i % len(places)], places[i - 1]
    return after if (after - own) % size <= (own - before) % size else before
