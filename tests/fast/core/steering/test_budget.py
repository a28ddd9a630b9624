"""What a session is worth as a correction and as a further attempt, and what follows for the slots."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.core.test_anchors import group
from verl_cipo.core.anchors import Attempt, Group, Outcome, select_anchors
from verl_cipo.core.keys import RowKey, correction_group
from verl_cipo.core.metrics import check_names
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.core.steering.budget import (
    DECAY,
    KINDS,
    NONE,
    PROBE,
    RIGHT,
    SOME,
    BudgetState,
    Evidence,
    Spread,
    Sums,
    budget_metrics,
    divide,
    drawn_first,
    evidence,
    kind_of,
    observe_budget,
    planned,
    shares,
    update_budget,
)

HALF = dict.fromkeys(KINDS, 0.5)


def table(prompts, corrections=()):
    """prompts: "cw+c", c and w a right and a wrong attempt, after the plus further ones; corrections: (prompt, number
    of the anchor, right or not, verdicts)."""
    keys, marks = [], []
    for i, verdicts in enumerate(prompts):
        own, _, further = verdicts.partition("+")
        for session, verdict in enumerate(own + further):
            keys.append(str(RowKey(f"u{i}", session)))
            marks.append(Mark(correct=verdict == "c", further=session >= len(own)))
    for prompt, number, anchor_right, verdicts in corrections:
        own = prompts[prompt].partition("+")[0]
        for session, verdict in enumerate(verdicts):
            keys.append(str(RowKey(correction_group(f"u{prompt}", number), session)))
            had = Outcome(own.count("c"), len(own), 0.0, 0.0)._asdict()
            marks.append(Mark(correct=verdict == "c", anchor=number, anchor_correct=anchor_right, **had))
    zeros = np.zeros(len(keys))
    return RowTable.of_marks(keys, marks, index=[0] * len(keys), scores=zeros, tokens=zeros)


def test_a_slot_is_of_the_kind_of_its_anchor_and_of_its_prompt():
    wrong, right = Attempt("u", 0, 0, False, 0.0), Attempt("u", 0, 1, True, 1.0)
    assert kind_of(wrong, Outcome(0, 8, 0.0, 0.0)) == NONE
    assert kind_of(wrong, Outcome(1, 8, 0.125, 0.33)) == kind_of(wrong, Outcome(7, 8, 0.875, 0.33)) == SOME
    assert kind_of(right, Outcome(3, 8, 0.375, 0.5)) == kind_of(wrong, None) == RIGHT


def test_retry_by_hand():
    """Of 4 attempts: none right, one right, two right, all right."""
    found = evidence(table(["wwww", "cwww", "ccww", "cccc"])).retry
    # 4 of 4 wrong of the first; the right one of the second, times 4 / 5.
    assert (found.size, found.right) == pytest.approx((1 + 1 / 4, 4 / 5 / 4))
    assert found.size2 == pytest.approx(1 + 1 / 16), "two prompts"


def test_prompts_that_were_evicted_for_being_all_wrong_are_evidence_of_retry():
    """With a group filter the others of a step have a right attempt each: alone they would say n / (n + 1)."""
    made, zero = table(["cwww", "cwww"]), {"cipo/budget/none/slots": 0.0, "cipo/budget/some/slots": 2.0}
    _, biased = observe_budget(BudgetState(), made, zero)
    assert biased["cipo/budget/none/retry"] == pytest.approx(4 / 5)
    _, less = observe_budget(BudgetState(), table(["cwww"]), zero)
    assert "cipo/budget/none/retry" not in less, "a quarter of a prompt is too little to show"
    _, whole = observe_budget(BudgetState(), made, zero | {"cipo/filter/evicted_all_wrong": 3.0})
    assert whole["cipo/budget/none/retry"] == pytest.approx((2 / 5) / (3 + 2 / 4))
    assert evidence(made, evicted=3).retry == evidence(table(["cwww", "cwww", "wwww", "wwww", "wwww"])).retry


def test_further_attempts_are_evidence_of_their_own_and_are_not_left_out_in_turn():
    """cwww has one right attempt, whatever came in later; wwww has none."""
    assert evidence(table(["cwww+cccw"])).retry == evidence(table(["cwww"])).retry
    found = evidence(table(["wwww+cw"])).retry
    assert (found.size, found.right) == (1 + 2 / 4, 1 / 4)
    assert evidence(table(["cccc+w"])).retry == Sums(), "no anchor is wrong"


def test_w2c_counts_anchors_and_wrong_ones_of_prompts_without_a_right_attempt_alone():
    corrections = [(0, 0, False, "cw"), (0, 1, False, "ww"), (1, 0, True, "ww"), (1, 1, False, "cc")]
    found = evidence(table(["wwww", "cwww"], corrections)).w2c
    assert (found.size, found.right, found.right2) == (2, 0.5, 0.25)


def test_corrections_of_prompts_that_are_not_known_are_no_evidence():
    """Of a pool of an older checkpoint, say."""
    made = table(["wwww"], [(0, 0, False, "cc")])
    old = RowTable(**{**vars(made), "outcome": [None] * len(made.keys)})
    assert evidence(old).w2c == Sums()


@pytest.mark.parametrize("spread", [(0.5, 0.5), (0.3, 0.9), (1.0, 1.0)])
def test_a_correction_that_does_not_look_at_the_attempt_is_worth_a_further_attempt(spread):
    """200000 prompts of 8 attempts, of which one wrong one is corrected as it would be attempted again.

    Leaving attempts out in turn would have an eighth too much without the factor.
    """
    generator = np.random.default_rng(0)
    rates = generator.beta(*spread, size=200_000)
    right = generator.binomial(8, rates)
    found = {c: evidence(table(["c" * c + "w" * (8 - c)])).retry for c in range(9)}
    retry = sum(found[c].right for c in right) / sum(found[c].size for c in right)
    assert retry == pytest.approx(float(rates[right == 0].mean()), rel=0.03)


def test_mean_and_noise_by_hand():
    """Three anchors, one half right, one all right, one all wrong; the prior adds one that is right and one wrong."""
    sums = Sums.of([(1, 0.5), (1, 1.0), (1, 0.0)])
    mean, variance = sums.estimate(0.5)
    assert mean == pytest.approx((1.5 + 1) / 5)
    # deviations 0, 1/2, 1/2 and 1/2, 1/2 of the prior
    assert variance == pytest.approx(4 * 0.25 / 25)


def test_sizes_weigh():
    """A prompt that is half in the class, and a whole one: (1/2, 1/2 right) and (1, 0 right)."""
    sums = Sums.of([(0.5, 0.5), (1, 0)])
    mean, variance = sums.estimate(0.5)
    assert mean == pytest.approx(1.5 / 3.5)
    deviations = [0.5 - mean * 0.5, -mean, 1 - mean, -mean]
    assert variance == pytest.approx(sum(d * d for d in deviations) / 3.5**2)


def test_without_measurements_corrections_are_a_probe_where_no_attempt_is_right():
    assert shares(BudgetState()) == {NONE: 1 / 16, SOME: 0.0, RIGHT: 1 / 64}


def test_a_side_without_measurements_is_neither_favored_nor_put_back():
    assert shares(BudgetState(retry=Sums.of([(1, 0.0)] * 50)))[NONE] <= 0.3
    assert shares(BudgetState(w2c=Sums.of([(1, 1.0)] * 50)))[NONE] <= 0.3


def test_the_share_is_how_much_likelier_corrections_are_worth_twice_a_further_attempt_than_not():
    w2c, retry = Sums.of([(1, 1.0)] * 6 + [(1, 0.0)] * 2), Sums.of([(1, 0.125)] * 8)
    prior = (6 + 1 + 1) / (8 + 8 + 2)
    means = (6 + 2 * prior) / 10, (1 + 2 * prior) / 10
    added = [2 * prior * (1 - mean) ** 2 + 2 * (1 - prior) * mean**2 for mean in means]
    squares = 6 * (1 - means[0]) ** 2 + 2 * means[0] ** 2 + added[0], 8 * (0.125 - means[1]) ** 2 + added[1]
    z = (means[0] - 2 * means[1]) / math.sqrt((squares[0] + 4 * squares[1]) / 100)
    assert z > 0
    assert shares(BudgetState(w2c, retry))[NONE] == pytest.approx(math.erf(z / 2**0.5))


GOOD, BAD = Sums.of([(1, 1.0)] * 200), Sums.of([(1, 0.0)] * 200)


def test_much_worse_corrections_stay_as_a_probe_and_much_better_ones_take_all():
    assert shares(BudgetState(BAD, GOOD))[NONE] == PROBE
    assert shares(BudgetState(GOOD, BAD))[NONE] == pytest.approx(1.0)


def test_corrections_that_are_right_more_often_but_not_twice_as_often_stay_as_a_probe():
    w2c, retry = Sums.of([(1, 0.18)] * 500), Sums.of([(1, 0.1)] * 500)
    assert shares(BudgetState(w2c, retry))[NONE] == PROBE


def test_prompts_with_a_right_attempt_get_further_attempts_however_good_corrections_are():
    assert shares(BudgetState(GOOD, BAD))[SOME] == 0


def test_right_anchors_follow_the_mean_over_the_slots_of_wrong_ones():
    assert shares(BudgetState(GOOD, BAD, slots=4.0, of_none=3.0))[RIGHT] == pytest.approx(3 / 4)


BAND = {"delta_low": 0.3, "delta_high": 0.7}


def with_share(none):
    return dict.fromkeys(KINDS, 0.0) | {NONE: none}


def test_anchors_come_first_from_prompts_without_a_right_attempt_where_corrections_are_worth_more():
    verdicts = ["cccc", "cwww", "wwww", "ccww"]
    groups = [group(i, marks) for i, marks in enumerate(verdicts)]
    chosen = drawn_first(with_share(0.2), **BAND)
    assert [marks for marks, one in zip(verdicts, groups, strict=True) if chosen(one)] == ["wwww"]
    assert not chosen(Group("empty", ()))
    drawn = select_anchors(groups, budget=5, rho=0.0, seed=1, step=1, first=chosen, **BAND)
    assert [anchor.index for anchor in drawn][:4] == [2] * 4 and drawn[4].index in (1, 3)


def test_the_probe_is_drawn_as_soon_as_from_prompts_of_medium_difficulty():
    """Else it would never be measured where there are enough of these."""
    verdicts = ["cccc", "cwww", "wwww", "ccww"]
    groups = [group(i, marks) for i, marks in enumerate(verdicts)]
    chosen = drawn_first(with_share(PROBE), **BAND)
    assert [marks for marks, one in zip(verdicts, groups, strict=True) if chosen(one)] == ["wwww", "ccww"]
    assert not chosen(Group("empty", ()))
    drawn = select_anchors(groups, budget=2, rho=0.0, seed=1, step=1, first=chosen, **BAND)
    assert {anchor.index for anchor in drawn} == {2, 3}


def test_difficulty_alone_decides_without_this_budget():
    assert drawn_first(None, **BAND) is None


def test_what_was_measured_before_fades():
    new = Evidence(Sums.of([(1, 0.5), (1, 1.0)]), Sums.of([(0.5, 0.25)]))
    state = update_budget(BudgetState(), new, slots=7.0, of_none=5.0)
    state = update_budget(state, Evidence(Sums(), Sums()), slots=2.0, of_none=1.0)
    sums = state.w2c
    assert (sums.size, sums.right) == pytest.approx((2 * DECAY, 1.5 * DECAY))
    assert (sums.size2, sums.right2, sums.cross) == pytest.approx((2 * DECAY**2, 1.25 * DECAY**2, 1.5 * DECAY**2))
    assert state.retry.right == pytest.approx(0.25 * DECAY)
    assert (state.slots, state.of_none) == (7 * DECAY + 2, 5 * DECAY + 1)
    assert sums.mean == pytest.approx(0.75), "a mean does not fade"


def test_the_state_goes_through_a_checkpoint():
    new = evidence(table(["wwww", "cwww+c"], [(0, 0, False, "cw")]))
    state = update_budget(BudgetState(), new, slots=2.0, of_none=1.0)
    assert BudgetState.from_mapping(json.loads(json.dumps(state.to_mapping()))) == state
    assert BudgetState.from_mapping(BudgetState().to_mapping()) == BudgetState()


def test_a_checkpoint_by_pass_rate_is_read_for_what_decides():
    w2c, retry = Sums.of([(1, 0.5)]), Sums.of([(1.25, 0.2)])
    sides = {"w2c": {"none": vars(w2c), "low": vars(retry)}, "retry": {"none": vars(retry)}}
    found = BudgetState.from_mapping({**sides, "slots": {"none": 3.0, "low": 1.5, "high": 0.5}})
    assert found == BudgetState(w2c, retry, slots=5.0, of_none=3.0)
    assert BudgetState.from_mapping({"w2c": {}, "retry": {}, "slots": {}}) == BudgetState()


def slots_of(kinds):
    return [(kind, Attempt("u", place, 0, kind == RIGHT, 0.0)) for place, kind in enumerate(kinds)]


def test_rounding_is_carried():
    """A quarter of one slot a call: one of four calls corrects."""
    carries, corrected = {}, []
    for step in range(8):
        own, carries = divide(slots_of([SOME]), HALF | {SOME: 0.25}, carries, seed=1, step=step, most=1)
        corrected += own
    assert corrected == [False, True, False, False, False, True, False, False] and carries == {SOME: 0.0}


kinds_of_calls = st.lists(st.lists(st.sampled_from(KINDS), max_size=12), max_size=8)
some_shares = st.fixed_dictionaries({kind: st.floats(0, 1) for kind in KINDS})


@given(kinds_of_calls, some_shares, st.integers(0, 5))
def test_counts_follow_the_shares_up_to_half_a_slot(calls, chosen, seed):
    carries, corrected, total = {}, Counter(), Counter()
    for step, kinds in enumerate(calls):
        own, carries = divide(slots_of(kinds), chosen, carries, seed=seed, step=step, most=len(kinds))
        assert len(own) == len(kinds)
        corrected.update(kind for kind, kept in zip(kinds, own, strict=True) if kept)
        total.update(kinds)
        for kind in KINDS:
            assert abs(corrected[kind] - chosen[kind] * total[kind]) <= 0.5 + 1e-6


@given(kinds_of_calls, some_shares, st.integers(0, 12))
def test_no_more_become_corrections_than_were_planned(calls, chosen, most):
    """A step may divide its slots in several calls; of what is kept back one slot of a kind is left over."""
    carries, left = {}, most
    for kinds in calls:
        own, carries = divide(slots_of(kinds), chosen, carries, seed=1, step=3, most=left)
        left -= sum(own)
        assert left >= 0 and all(-0.5 - 1e-9 <= carry <= 1 for carry in carries.values())


def test_right_anchors_come_first():
    """A slot of each kind, where one is planned: how many right anchors there are does not depend on the verdicts."""
    slots = slots_of([NONE, RIGHT])
    corrected, carries = divide(slots, dict.fromkeys(KINDS, 1.0), {}, seed=1, step=3, most=1)
    assert corrected == [False, True] and carries == {RIGHT: 0.0, NONE: 1.0}


def test_what_is_planned_by_hand():
    """The mean share of 64 slots is one correction a step; half a slot that was left over makes it two."""
    probe = {NONE: 1 / 16, SOME: 0.0, RIGHT: 1 / 64}
    assert planned(64, probe, {}) == 1 and planned(64, probe, {NONE: 0.25, RIGHT: 0.25}) == 2
    assert planned(16, probe, {}) == planned(64, probe, {NONE: -0.5, RIGHT: -0.25}) == 0 == planned(0, probe, {})
    assert planned(64, dict.fromkeys(KINDS, 1.0), {NONE: 3.0}) == 64


def test_a_debt_does_not_outlive_the_share_that_it_is_from():
    """A quarter of the anchors was of prompts without a right attempt; now all 16 are, and half of them worth it."""
    chosen, carries, found = {NONE: 0.5, SOME: 0.0, RIGHT: 0.125}, {}, []
    for step in range(3):
        most = planned(16, chosen, carries)
        own, carries = divide(slots_of([NONE] * 16), chosen, carries, seed=1, step=step, most=most)
        found.append((most, sum(own), carries[NONE]))
    assert found == [(2, 2, 1.0), (3, 3, 1.0), (3, 3, 1.0)]
    assert planned(16, {NONE: 1 / 16, SOME: 0.0, RIGHT: 1 / 64}, carries) == 1


@given(st.lists(st.sampled_from(KINDS), max_size=12), some_shares, st.randoms())
def test_the_order_of_the_slots_does_not_matter(kinds, chosen, random):
    slots = slots_of(kinds)
    shuffled = random.sample(slots, len(slots))
    (first, carried), (second, other) = (divide(own, chosen, {}, seed=1, step=3, most=6) for own in (slots, shuffled))
    assert dict(zip(slots, first, strict=True)) == dict(zip(shuffled, second, strict=True)) and carried == other


def test_which_slots_are_corrected_is_drawn():
    slots = slots_of([SOME] * 6)
    drawn = {tuple(divide(slots, HALF, {}, seed=seed, step=step, most=6)[0]) for seed in range(4) for step in range(4)}
    assert len(drawn) > 8 and {sum(one) for one in drawn} == {3}


def test_metrics_of_a_step():
    made = table(["wwww+cw", "cwww"], [(0, 1, False, "cw"), (1, 0, True, "cc")])
    counts = {"cipo/budget/slots": 3.0, "cipo/budget/corrected": 2.0, "cipo/budget/none/slots": 2.0}
    state, metrics = observe_budget(BudgetState(), made, counts | {"cipo/budget/some/slots": 1.0})
    check_names(metrics)
    assert metrics == {
        "cipo/budget/correction_share": 2 / 3,
        "cipo/budget/attempts": 2,
        "cipo/budget/accuracy": 0.5,
        "cipo/budget/corrections": 4,
        "cipo/budget/none/share": 1 / 16,
        "cipo/budget/right/share": 1 / 64,
        "cipo/budget/none/w2c": 0.5,
        # 4 wrong attempts, one right and one wrong further one of 6 quarters; the right one of the other, times 4 / 5.
        "cipo/budget/none/retry": pytest.approx((1 / 4 + 1 / 5) / (6 / 4 + 1 / 4)),
    }
    assert (state.slots, state.of_none) == (3, 2)
    nothing = budget_metrics(BudgetState(), HALF, made, {"cipo/budget/slots": 0.0})
    assert not {"cipo/budget/correction_share", "cipo/budget/none/w2c", "cipo/budget/none/retry"} & nothing.keys()


def test_every_kind_is_declared():
    check_names(f"cipo/budget/{kind}/slots" for kind in KINDS)


def test_further_attempts_go_round_the_prompts_where_something_is_wrong():
    spread = Spread(seed=1, step=3)
    for i, verdicts in enumerate(["cccc", "wwww", "cwww", ""]):
        spread.add(group(i, verdicts))
    first, second = spread.take(2), spread.take(2)
    assert set(first) == set(second) == {"u1", "u2"}, "not one that is all right, nor one that has lost all attempts"
    again = Spread(seed=1, step=3)
    for i, verdicts in reversed(list(enumerate(["cccc", "wwww", "cwww", ""]))):
        again.add(group(i, verdicts))
    assert again.take(4) == [*first, *second], "whatever ends first"
    orders = set()
    for step in range(20):
        spread = Spread(seed=1, step=step)
        for i in (1, 2):
            spread.add(group(i, "wwww"))
        orders.add(tuple(spread.take(2)))
    assert len(orders) == 2


def test_what_has_begun_is_dealt_in_the_order_of_the_prompts_and_counts_as_a_turn():
    uids = ["u3", "u1", "u0", "u2"]
    spread = Spread(seed=1, step=3, begun=6, uids=uids)
    assert spread.begun == {"u3": 2, "u1": 2, "u0": 1, "u2": 1}
    for i, verdicts in enumerate(["wwww", "wwww", "cccc", "cwww"]):
        spread.add(group(i, verdicts))
    assert spread.take(4) == [] == spread.take(2), "these six have begun"
    assert spread.take(1) == ["u0"] and sorted(spread.take(3)) == ["u0", "u1", "u3"], "not one that is all right"
    spread = Spread(seed=1, step=3, begun=2, uids=uids[2:])
    spread.add(group(0, "wwww"))
    assert spread.take(5) == ["u0"] * 3


def test_without_a_wrong_attempt_anywhere_all_take_turns():
    spread = Spread(seed=1, step=3)
    for i in range(3):
        spread.add(group(i, "cccc"))
    assert sorted(spread.take(4)[:3]) == ["u0", "u1", "u2"]
