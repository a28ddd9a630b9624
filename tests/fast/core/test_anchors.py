import hashlib
import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.anchors import (
    AnchorSelector,
    Attempt,
    Carry,
    Group,
    anchor_budget,
    carried_quotas,
    medium,
    quotas,
    select_anchors,
)

SEEDS = [(1, 1), (1, 2), (2, 1), (11, 1), (1, 11)]
BAND = {"delta_low": 0.375, "delta_high": 0.75}


def group(index, verdicts, uid=None):
    """A prompt whose attempts have the verdicts of a string such as "ccww"."""
    uid = uid or f"u{index}"
    return Group(uid, tuple(Attempt(uid, index, s, v == "c", float(v == "c")) for s, v in enumerate(verdicts)))


def draw(groups, *, budget, rho, seed=1, step=1, **band):
    return select_anchors(groups, budget=budget, rho=rho, seed=seed, step=step, **(BAND | band))


def kinds(anchors):
    return Counter("c" if anchor.correct else "w" for anchor in anchors)


def ids(anchors):
    return [(anchor.index, anchor.session) for anchor in anchors]


# ---- one prompt


def test_pass_rate():
    assert group(0, "ccwwwwww").pass_rate == 0.25
    assert math.isnan(Group("u", ()).pass_rate)


def test_a_session_is_in_a_group_once():
    with pytest.raises(ValueError, match=r"'u'.*\[3, 3\]"):
        Group("u", (Attempt("u", 0, 3, True, 1.0), Attempt("u", 0, 3, True, 1.0)))


def test_the_medium_band_includes_its_ends():
    # 3/8 = .375 and 6/8 = .75 are the ends; 2/8 and 7/8 lie outside.
    assert [medium(k / 8, **BAND) for k in range(9)] == [k in (3, 4, 5, 6) for k in range(9)]
    assert not medium(math.nan, delta_low=0.0, delta_high=1.0)


def test_the_ends_of_the_band_survive_floating_point():
    # 1/3 of 3 and .1 * 3 are not what their decimals say: .1 * 3 = .30000000000000004
    assert medium(0.3, delta_low=0.1 * 3, delta_high=1.0)
    assert medium(0.1 * 3, delta_low=0.0, delta_high=0.3)
    assert not medium(0.3 - 1e-6, delta_low=0.3, delta_high=1.0)
    assert not medium(0.3 + 1e-6, delta_low=0.0, delta_high=0.3)


def test_the_budget_is_rounded_half_up():
    cases = [(128, 1.0), (5, 0.5), (5, 0.49), (3, 0.5), (128, 0.0), (10, 0.35), (4, 2.0)]
    # 128, 2.5 -> 3, 2.45 -> 2, 1.5 -> 2, 0, 3.5 -> 4, 8
    assert [anchor_budget(n, fraction) for n, fraction in cases] == [128, 3, 2, 2, 0, 4, 8]
    # .58 * 25 is 14.499999999999998 in floating point, and 14.5 is meant.
    assert 0.58 * 25 < 14.5 and anchor_budget(25, 0.58) == 15


# ---- select_anchors, by hand


def test_rho_is_the_share_of_correct_anchors():
    groups = [group(i, "ccww") for i in range(10)]
    # round(.3 * 10) = 3; round(.25 * 10) = 2.5 -> 3 (half up); round(.24 * 10) = 2
    assert kinds(draw(groups, budget=10, rho=0.3)) == {"c": 3, "w": 7}
    assert kinds(draw(groups, budget=10, rho=0.25)) == {"c": 3, "w": 7}
    assert kinds(draw(groups, budget=10, rho=0.24)) == {"c": 2, "w": 8}
    assert kinds(draw(groups, budget=10, rho=0.0)) == {"w": 10}
    assert kinds(draw(groups, budget=10, rho=1.0)) == {"c": 10}


def test_medium_prompts_come_first():
    hard, medium_, easy = group("hard", "cwww"), group("medium", "ccww"), group("easy", "cccc")
    # 1/4, 2/4 and 4/4: only the second is in [.375, .75]; it has just the two of each kind that are needed.
    assert set(ids(draw([hard, medium_, easy], budget=4, rho=0.5))) == {("medium", s) for s in range(4)}
    # One more wrong one has to come from the rest: `hard` alone has any.
    anchors = draw([hard, medium_, easy], budget=5, rho=0.4)
    assert Counter(anchor.index for anchor in anchors) == {"medium": 4, "hard": 1}


def test_round_robin_over_prompts():
    groups = [group(i, "ccwwwwcc") for i in range(4)]
    anchors = draw(groups, budget=12, rho=0.5)
    # 6 of each kind over 4 prompts: every prompt gives 1 of the kind, two of them a second.
    for correct in (True, False):
        given = Counter(anchor.index for anchor in anchors if anchor.correct is correct)
        assert sorted(given.values()) == [1, 1, 2, 2]


def test_a_shortage_of_one_kind_is_filled_by_the_other():
    groups = [group(0, "cwww"), group(1, "wwww")]
    assert kinds(draw(groups, budget=6, rho=0.5)) == {"c": 1, "w": 5}
    assert kinds(draw([group(0, "cccw")], budget=4, rho=0.0)) == {"c": 3, "w": 1}


def test_a_shortage_of_medium_prompts_comes_before_a_shortage_of_a_kind():
    # Wanted are 2 correct and 2 failed; the medium prompt has one correct and one failed, the easy one correct ones.
    anchors = draw([group("m", "cw"), group("e", "cccccccw")], budget=4, rho=0.5)
    assert kinds(anchors) == {"c": 2, "w": 2}
    assert Counter(anchor.index for anchor in anchors) == {"m": 2, "e": 2}


def test_verdicts_may_be_numpy_bools():
    verdicts = np.array([True, False, False])
    attempts = tuple(Attempt("u", 0, session, verdict, 0.0) for session, verdict in enumerate(verdicts))
    assert kinds(draw([Group("u", attempts)], budget=3, rho=0.3)) == {"c": 1, "w": 2}


def test_never_more_than_there_are():
    assert len(draw([group(0, "cw"), Group("gone", ())], budget=9, rho=0.3)) == 2
    assert draw([], budget=9, rho=0.3) == []
    assert draw([group(0, "cw")], budget=0, rho=0.3) == []


def test_the_draw_is_the_same_in_every_process_and_version():
    # The first half of a hash of "seed/step/index/session" sorts a prompt's attempts, the second half the prompts.
    groups = [group(i, "ccwwcwcw") for i in range(6)] + [group("text", "ccww")]

    def hashed(attempt):
        return hashlib.blake2b(f"7/3/{attempt.index}/{attempt.session}".encode(), digest_size=16).digest()

    firsts = [min((a for a in g.attempts if a.correct), key=lambda a: hashed(a)[:8]) for g in groups]
    least = min(firsts, key=lambda a: hashed(a)[8:])
    assert draw(groups, budget=1, rho=1.0, seed=7, step=3) == [least]


def test_seed_and_step_change_the_draw():
    groups = [group(i, "ccwwcwcw") for i in range(6)]
    draws = {(seed, step): ids(draw(groups, budget=4, rho=0.5, seed=seed, step=step)) for seed, step in SEEDS}
    assert len({tuple(drawn) for drawn in draws.values()}) == len(SEEDS)


def test_every_attempt_is_drawn_equally_often():
    # One wrong anchor out of 2 prompts x 2 wrong attempts: 1/4 each, sd sqrt(.25 * .75 / 2000) = .0097.
    groups = [group(0, "ccww"), group(1, "wcwc")]
    drawn = Counter(ids(draw(groups, budget=1, rho=0.0, step=step))[0] for step in range(2000))
    assert set(drawn) == {(0, 2), (0, 3), (1, 0), (1, 2)}
    assert all(abs(count / 2000 - 0.25) < 0.05 for count in drawn.values())


def test_every_prompt_is_drawn_equally_often_whatever_it_could_give():
    # One wrong anchor out of two medium prompts with 5 and 2 wrong attempts: 1/2 each, sd sqrt(.25 / 2000) = .011.
    groups = [group(0, "cccwwwww"), group(1, "ccccccww")]
    drawn = Counter(draw(groups, budget=1, rho=0.0, step=step)[0].index for step in range(2000))
    assert abs(drawn[0] / 2000 - 0.5) < 0.05


def test_prompts_that_share_an_index_are_still_separate():
    groups = [group(0, "ccww", uid=f"u{i}") for i in range(4)]
    anchors = draw(groups, budget=8, rho=0.5)
    assert Counter(anchor.uid for anchor in anchors) == {f"u{i}": 2 for i in range(4)}
    assert draw(groups[::-1], budget=8, rho=0.5) == anchors


# ---- select_anchors, properties

batches = st.lists(st.text("cw", max_size=8), max_size=8).map(
    lambda texts: [group(i, text) for i, text in enumerate(texts)]
)
settings_of_draw = st.fixed_dictionaries(
    {
        "budget": st.integers(0, 40),
        "rho": st.sampled_from([0.0, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.8, 1.0]) | st.floats(0, 1),
        "seed": st.integers(0, 3),
        "step": st.integers(0, 3),
    }
)


def supply(groups, correct, in_band=None):
    return sum(
        attempt.correct is correct
        for group_ in groups
        if in_band is None or medium(group_.pass_rate, **BAND) is in_band
        for attempt in group_.attempts
    )


def expected_kinds(groups, budget, rho):
    """The quotas, cut to what there is, and what is left over given to the other kind."""
    quota = math.floor(rho * budget + 0.5 + 1e-9)
    right, wrong = supply(groups, True), supply(groups, False)
    c, w = min(quota, right), min(budget - quota, wrong)
    return c + min(right - c, budget - c - w), w + min(wrong - w, budget - c - w)


@given(groups=batches, how=settings_of_draw, data=st.data())
def test_order_and_uids_do_not_matter(groups, how, data):
    shuffled = data.draw(st.permutations(groups))
    renamed = [
        Group(f"r{i}", tuple(replace(a, uid=f"r{i}") for a in group_.attempts)) for i, group_ in enumerate(shuffled)
    ]
    assert draw(shuffled, **how) == draw(groups, **how)
    assert ids(draw(renamed, **how)) == ids(draw(groups, **how))


@given(groups=batches, how=settings_of_draw)
def test_budget_quotas_and_no_duplicates(groups, how):
    anchors = draw(groups, **how)
    everything = [attempt for group_ in groups for attempt in group_.attempts]
    assert len(anchors) == min(how["budget"], len(everything))
    assert len(set(anchors)) == len(anchors) and set(anchors) <= set(everything)
    c, w = expected_kinds(groups, how["budget"], how["rho"])
    assert (sum(a.correct for a in anchors), sum(not a.correct for a in anchors)) == (c, w)


@given(groups=batches, how=settings_of_draw)
def test_the_rest_gives_only_what_the_medium_prompts_cannot(groups, how):
    anchors = draw(groups, **how)
    rates = {group_.uid: group_.pass_rate for group_ in groups}
    for correct in (True, False):
        chosen = [anchor for anchor in anchors if anchor.correct is correct]
        from_medium = [anchor for anchor in chosen if medium(rates[anchor.uid], **BAND)]
        assert len(from_medium) == min(len(chosen), supply(groups, correct, in_band=True))


@given(groups=batches, how=settings_of_draw)
def test_no_prompt_is_ahead_of_another_that_could_give_more(groups, how):
    given_by = defaultdict(int)
    for anchor in draw(groups, **how):
        given_by[anchor.uid, anchor.correct] += 1
    for correct in (True, False):
        for in_band in (True, False):
            tier = [group_ for group_ in groups if medium(group_.pass_rate, **BAND) is in_band]
            most = max((given_by[group_.uid, correct] for group_ in tier), default=0)
            for group_ in tier:
                could = sum(attempt.correct is correct for attempt in group_.attempts)
                assert given_by[group_.uid, correct] >= min(could, most - 1)


# ---- AnchorSelector


def selector(schedule, groups, how):
    return AnchorSelector(schedule=schedule, n_groups=len(groups), **how, **BAND)


def test_barrier_says_nothing_until_the_last_group():
    groups = [group(i, "ccww") for i in range(3)]
    how = {"budget": 4, "rho": 0.5, "seed": 1, "step": 1}
    chooser = selector("barrier", groups, how)
    assert chooser.add(groups[0]) == [] and not chooser.complete
    assert chooser.add(groups[1]) == [] and not chooser.complete
    assert chooser.add(groups[2]) == draw(groups, **how)
    assert chooser.complete


def test_streaming_by_hand():
    # budget 5, rho .4, n 4: ceil(5 * i / 4) = 2, 3, 4, 5 anchors may be out after i groups; 2 are to be correct.
    chooser = selector("streaming", "1234", {"budget": 5, "rho": 0.4, "seed": 1, "step": 1})
    first = chooser.add(group(0, "ccww"))
    # Wanted correct after 1 anchor: round(.4) = 0, after 2: round(.8) = 1.
    assert [anchor.correct for anchor in first] == [False, True]
    assert all(anchor.index == 0 for anchor in first)
    # Not medium (1/8): nothing is given out, though 3 were allowed.
    assert chooser.add(group(1, "cwwwwwww")) == []
    # Medium: 4 are allowed, 2 are out. Right ones due after 3: round(1.2) = 1, after 4: round(1.6) = 2.
    # The new prompt is first in the round-robin: index 0 gave one of each kind already.
    third = chooser.add(group(2, "ccww"))
    assert [anchor.correct for anchor in third] == [False, True]
    assert {anchor.index for anchor in third} == {2}
    assert not chooser.complete
    # The last one is not medium. One wrong anchor is left; 0 and 2 have a wrong attempt more and are medium.
    last = chooser.add(group(3, "wwwwwwww"))
    assert [anchor.correct for anchor in last] == [False]
    assert last[0].index in (0, 2) and last[0] not in first + third
    assert chooser.complete


def test_streaming_takes_from_earlier_prompts_what_a_new_one_lacks():
    # budget 6, n 3, rho .5: 2, 4, 6 allowed. The first prompt gives 2, the second of two attempts both of its own;
    # had the budget been larger, the first would have to fill up:
    chooser = selector("streaming", "123", {"budget": 9, "rho": 0.5, "seed": 1, "step": 1})
    assert Counter(a.index for a in chooser.add(group(0, "ccccwwww"))) == {0: 3}
    # 6 allowed, 3 out; the new prompt has only 2 attempts, the third comes from prompt 0.
    assert Counter(a.index for a in chooser.add(group(1, "cw"))) == {1: 2, 0: 1}


def test_streaming_does_not_overdraw_a_kind_for_want_of_the_other():
    # All right is medium here: with rho .25 only round(.25 * 4) = 1 of 4 anchors is to be correct.
    chooser = AnchorSelector(
        schedule="streaming", n_groups=2, budget=4, rho=0.25, delta_low=0.5, delta_high=1.0, seed=1, step=1
    )
    assert kinds(chooser.add(group(0, "cccc"))) == {"c": 1}
    assert kinds(chooser.add(group(1, "ccww"))) == {"w": 2, "c": 1}


def test_a_group_without_attempts_counts():
    how = {"budget": 2, "rho": 0.5, "seed": 1, "step": 1}
    for schedule in ("streaming", "barrier"):
        chooser = selector(schedule, "12", how)
        first = chooser.add(group(0, "cw"))
        last = chooser.add(Group("gone", ()))
        assert chooser.complete and len(first + last) == 2


def test_misuse_is_refused():
    how = {"budget": 2, "rho": 0.5, "seed": 1, "step": 1}
    chooser = selector("streaming", "12", how)
    chooser.add(group(0, "cw"))
    with pytest.raises(ValueError, match="'u0' was already added"):
        chooser.add(group(0, "cw"))
    chooser.add(group(1, "cw"))
    with pytest.raises(ValueError, match="'u2' is one more than the 2"):
        chooser.add(group(2, "cw"))
    with pytest.raises(ValueError, match="schedule = 'replay'"):
        selector("replay", "12", how)
    with pytest.raises(ValueError, match=r"rho = 1\.5"):
        selector("barrier", "12", how | {"rho": 1.5})
    with pytest.raises(ValueError, match="budget = -1"):
        selector("barrier", "12", how | {"budget": -1})


def test_no_groups_are_complete_at_once():
    assert selector("streaming", "", {"budget": 2, "rho": 0.5, "seed": 1, "step": 1}).complete


@given(groups=batches, how=settings_of_draw)
def test_barrier_is_select_anchors(groups, how):
    chooser = selector("barrier", groups, how)
    decided = [chooser.add(group_) for group_ in groups]
    assert all(not some for some in decided[:-1])
    assert [anchor for some in decided for anchor in some] == draw(groups, **how)


@given(groups=batches, how=settings_of_draw, data=st.data())
def test_streaming_selects_as_many_of_each_kind_as_barrier(groups, how, data):
    arrival = data.draw(st.permutations(groups))
    chooser = selector("streaming", groups, how)
    quota = math.floor(how["rho"] * how["budget"] + 0.5 + 1e-9)
    seen, out = set(), []
    for i, group_ in enumerate(arrival, start=1):
        new = chooser.add(group_)
        seen |= set(group_.attempts)
        assert set(new) <= seen and not set(new) & set(out)
        out += new
        assert len(out) <= math.ceil(how["budget"] * i / len(groups))
        if i < len(groups):
            assert sum(a.correct for a in out) <= quota
            assert sum(not a.correct for a in out) <= how["budget"] - quota
            assert all(medium(g.pass_rate, **BAND) for g in arrival[:i] if set(g.attempts) & set(out))
            assert not new or medium(group_.pass_rate, **BAND)
    assert chooser.complete
    assert kinds(out) == kinds(draw(groups, **how))


@given(n=st.integers(1, 12), rho=st.floats(0, 1), budget=st.integers(0, 24), step=st.integers(0, 3))
def test_with_enough_of_both_the_running_share_follows_rho(n, rho, budget, step):
    chooser = AnchorSelector(schedule="streaming", n_groups=n, budget=budget, rho=rho, seed=1, step=step, **BAND)
    out = []
    for i in range(n):
        # 24 of each kind: any prompt could fill the whole budget alone.
        out += chooser.add(group(i, "cw" * 24))
        if i < n - 1:
            assert len(out) == math.ceil(budget * (i + 1) / n)
            assert abs(sum(a.correct for a in out) - rho * len(out)) <= 0.5 + 1e-6
    assert len(out) == budget


# ---- prompts that share an index, attempts that cannot be corrected, and several dispatches


def of_origin(origin, uid, verdicts="ccww", index=0):
    return Group(uid, tuple(replace(a, origin=origin) for a in group(index, verdicts, uid=uid).attempts))


@given(st.permutations(["f", "g", "h"]), settings_of_draw)
def test_prompts_that_share_an_index_are_told_apart_by_origin_and_not_by_their_random_uid(uids, how):
    """Three files number their prompts from 0: a second run has other uids, and draws the same."""

    def drawn(uids):
        groups = [of_origin(origin, uid) for origin, uid in zip(["a", "b", "c"], uids, strict=True)]
        return [(anchor.origin, anchor.session) for anchor in draw(groups, **how)]

    assert drawn(uids) == drawn(["1", "2", "3"])


def test_prompts_that_are_the_same_in_all_are_still_separate():
    groups = [of_origin("a", uid) for uid in ("u", "v")]
    assert Counter(anchor.uid for anchor in draw(groups, budget=8, rho=0.5)) == {"u": 4, "v": 4}


def test_what_cannot_be_corrected_uses_up_no_anchor_and_counts_for_the_pass_rate():
    def without(verdicts, *sessions):
        own = group(0, verdicts)
        return Group(own.uid, tuple(replace(a, correctable=a.session not in sessions) for a in own.attempts))

    # 2 of 4 are right: medium, though of what is left all are wrong.
    medium_, hard = without("ccww", 0, 1), group(1, "wwww")
    for schedule in ("barrier", "streaming"):
        chooser = selector(schedule, "12", {"budget": 2, "rho": 0.5, "seed": 1, "step": 1})
        anchors = chooser.add(medium_) + chooser.add(hard)
        assert ids(anchors) in ([(0, 2), (0, 3)], [(0, 3), (0, 2)])
    assert draw([without("cw", 0, 1)], budget=2, rho=0.5) == []


@given(
    size=st.sampled_from([1, 2, 4, 15]) | st.integers(1, 40),
    fraction=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1.0, 2.5]) | st.floats(0, 3),
    rhos=st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=60),
)
def test_rounding_is_carried_from_dispatch_to_dispatch(size, fraction, rhos):
    carry, anchors, right, wanted_right = Carry(), 0, 0, 0.0
    for k, rho in enumerate(rhos, start=1):
        quota, carry = carried_quotas(size, replay_fraction=fraction, rho=rho, carry=carry)
        assert quota[True] >= 0 and quota[False] >= 0
        budget = sum(quota.values())
        anchors, right, wanted_right = anchors + budget, right + quota[True], wanted_right + rho * budget
        assert abs(anchors - fraction * size * k) <= 0.5 + 1e-6
        assert abs(right - wanted_right) <= 0.5 + 1e-6


def test_dispatches_of_one_prompt_by_hand():
    carry, budgets, right = Carry(), [], []
    for _ in range(8):
        quota, carry = carried_quotas(1, replay_fraction=0.25, rho=0.5, carry=carry)
        budgets.append(sum(quota.values()))
        right.append(quota[True])
    # .25, .5 -> 1, .75 - 1 = -.25, 0, .25, ...: the halves are rounded up.
    assert budgets == [0, 1, 0, 0, 0, 1, 0, 0]
    assert right == [0, 1, 0, 0, 0, 0, 0, 0], "half of them"


def test_the_first_dispatch_is_rounded_as_one_alone():
    for n, fraction, rho in ((128, 1.0, 0.3), (5, 0.5, 0.5), (3, 0.1, 1.0)):
        quota, _ = carried_quotas(n, replay_fraction=fraction, rho=rho, carry=Carry())
        assert quota == quotas(anchor_budget(n, fraction), rho)
