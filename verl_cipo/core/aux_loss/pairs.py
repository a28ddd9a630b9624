"""Pairs: attempts, each with a right rollout of the same step as its correction, docs/method.md 13 and 14.

The right rollout is of the same prompt, else of the nearest prompt that has one, whose solution is then learnt beside
the wrong attempt as a worked example. Nothing is generated.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from verl_cipo.core.anchors import Attempt, Group, anchor_budget, quotas, select_anchors
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.draws import lot

SKIPPED = "aux/skipped/"


@dataclass(frozen=True)
class Pair:
    """An attempt and the right rollout that follows it; same_prompt: whether they answer the same question."""

    anchor: Attempt
    donor: Attempt
    same_prompt: bool


def draw_pairs(groups: Sequence[Group], counts: Counter, *, config: CIPOConfig, step: int) -> list[Pair]:
    """Attempts, drawn as anchors are, each with a right rollout.

    round(replay_fraction * prompts) attempts of `groups` are drawn at most, prompts of medium difficulty first; the
    share `rho_init` is right, none for the contrastive loss, which would make what is shown less likely. Those without
    a pair are added to `counts`: no_donor, no rollout is right; other_question, the right rollout is of another prompt,
    which the contrastive loss has no use for: an attempt answers its own question.
    """
    rho = 0.0 if config.aux.contrastive else config.rho_init
    anchors = []
    for right, count in quotas(anchor_budget(len(groups), config.replay_fraction), rho).items():
        drawn = select_anchors(
            groups,
            budget=count,
            rho=float(right),
            delta_low=config.delta_low,
            delta_high=config.delta_high,
            seed=config.seed,
            step=step,
        )
        anchors += [anchor for anchor in drawn if anchor.correct == right]
    pairs = pair_up(groups, anchors, seed=config.seed, step=step)
    useful = [pair for pair in pairs if pair.same_prompt or not config.aux.contrastive]
    counts[f"{SKIPPED}no_donor"] += len(anchors) - len(pairs)
    counts[f"{SKIPPED}other_question"] += len(pairs) - len(useful)
    return useful


def pair_up(groups: Sequence[Group], anchors: Sequence[Attempt], *, seed: int, step: int) -> list[Pair]:
    """One pair for each of `anchors`, in their order; none when no rollout of `groups` is right.

    Prompts stand in the order of their `index` (numbers before strings; those that share one are ordered by origin), as
    on a ring; one that the step has twice stands there once. The donor's prompt is the nearest one with a right
    rollout, the own one first; of two equally near ones it is the following. Which of its right rollouts is a hash of
    (seed, step) and both attempts' index and session, so neither the order of `groups` nor that of `anchors` matters. A
    right anchor is its own donor where it is alone. Of two copies of a prompt the own one comes first among equals.
    Raises: ValueError on an anchor whose uid is not among `groups`.
    """
    problems: dict[object, list[Group]] = {}
    for group in sorted((group for group in groups if group.attempts), key=_place):
        first = group.attempts[0]
        problems.setdefault((first.index, first.origin) if first.origin else group.uid, []).append(group)
    ring = [[attempt for group in own for attempt in group.attempts] for own in problems.values()]
    position = {group.uid: i for i, own in enumerate(problems.values()) for group in own}
    solved = [i for i, attempts in enumerate(ring) if any(attempt.correct for attempt in attempts)]
    pairs = []
    for anchor in anchors:
        if anchor.uid not in position:
            raise ValueError(f"anchor of uid {anchor.uid!r}: expected one of the {len(ring)} prompts of the batch")
        if not solved:
            break
        own = position[anchor.uid]
        nearest = _nearest(solved, own, len(ring))
        right = [attempt for attempt in ring[nearest] if attempt.correct]
        donors = [attempt for attempt in right if attempt != anchor] or right
        drawn_for = (seed, step, anchor.index, anchor.session)
        donor = min(
            donors,
            key=lambda one: (lot(*drawn_for, one.index, one.session), one.session, one.uid != anchor.uid),
        )
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
