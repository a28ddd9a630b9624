"""Which right rollout corrects which failed attempt."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.pairing import pair_up


def group(index, outcomes, uid=None):
    """outcomes: a string of + (right) and - (wrong), one a session."""
    uid = uid or f"u{index}"
    return Group(
        uid,
        tuple(Attempt(uid, index, session, mark == "+", float(mark == "+")) for session, mark in enumerate(outcomes)),
    )


def failed(groups):
    return [attempt for group in groups for attempt in group.attempts if not attempt.correct]


def donors(groups, **key):
    return {
        (pair.anchor.uid, pair.anchor.session): (pair.donor.uid, pair.donor.session, pair.same_prompt)
        for pair in pair_up(groups, failed(groups), **({"seed": 1, "step": 1} | key))
    }


def test_the_same_prompt_comes_first():
    groups = [group(0, "++"), group(1, "-+"), group(2, "+")]
    assert donors(groups) == {("u1", 0): ("u1", 1, True)}


def test_else_the_nearest_prompt_in_the_order_of_index():
    # 5 is nearer to 9 than 1 is in the order (1, 5, 9, 12), where the distance of the numbers does not matter.
    groups = [group(9, "-"), group(1, "+"), group(12, "-"), group(5, "+")]
    assert donors(groups) == {("u9", 0): ("u5", 0, False), ("u12", 0): ("u1", 0, False)}


def test_of_two_equally_near_prompts_it_is_the_following():
    assert donors([group(0, "+"), group(1, "-"), group(2, "+")]) == {("u1", 0): ("u2", 0, False)}


def test_the_order_is_a_ring():
    groups = [group(0, "+"), group(1, "-"), group(2, "-"), group(3, "-"), group(4, "-")]
    assert {uid: donor for (uid, _), (donor, _, _) in donors(groups).items()} == dict.fromkeys(
        ("u1", "u2", "u3", "u4"), "u0"
    )
    groups = [group(0, "-"), group(1, "-"), group(2, "-"), group(3, "-"), group(4, "+"), group(5, "+")]
    # 5 is one step before 0 and two before 1, 4 is two after 2.
    assert [donors(groups)[uid, 0][0] for uid in ("u0", "u1", "u2", "u3")] == ["u5", "u5", "u4", "u4"]


def test_numbers_stand_before_strings_and_one_index_is_ordered_by_uid():
    groups = [group("a", "-"), group(7, "+"), group("b", "+"), group(8, "-")]
    # 7, 8, a, b: the following of a is b, of 8 the nearest is 7.
    assert {uid: donor for (uid, _), (donor, _, _) in donors(groups).items()} == {"ua": "ub", "u8": "u7"}
    groups = [group(0, "-", "x"), group(0, "+", "z"), group(0, "+", "y")]
    # Another prompt, for all that is known: a data set without an index gives 0 to every prompt.
    assert donors(groups) == {("x", 0): ("y", 0, False)}


def test_prompts_without_attempts_take_no_place():
    # 1 does not count: 0 is one step before 2, and 4 two after it.
    groups = [group(0, "+"), group(1, ""), group(2, "-"), group(3, "-"), group(4, "+")]
    assert donors(groups)["u2", 0][0] == "u0"


def test_nothing_right_means_no_pair():
    groups = [group(0, "--"), group(1, "-")]
    assert pair_up(groups, failed(groups), seed=1, step=1) == []


def test_right_anchors_are_left_out_and_the_order_is_that_of_the_anchors():
    groups = [group(0, "+-"), group(1, "-+")]
    (right, wrong), (other, _) = groups[0].attempts, groups[1].attempts
    pairs = pair_up(groups, [other, right, wrong], seed=1, step=1)
    assert [pair.anchor for pair in pairs] == [other, wrong]


def test_an_anchor_of_another_batch_is_an_error():
    with pytest.raises(ValueError, match="anchor of uid 'u5'"):
        pair_up([group(0, "+")], [Attempt("u5", 5, 0, False, 0.0)], seed=1, step=1)


def test_the_donor_is_drawn_evenly_and_anew_for_each_step_seed_and_anchor():
    groups = [group(0, "-++++"), group(1, "-++++")]
    drawn = Counter(donors(groups, step=step)["u0", 0][1] for step in range(1, 2001))
    assert set(drawn) == {1, 2, 3, 4}
    # 500 each, standard deviation 19.
    assert all(400 < count < 600 for count in drawn.values())
    assert len({donors(groups, seed=seed)["u0", 0][1] for seed in range(20)}) > 1
    assert any(donors(groups, step=s)["u0", 0][1] != donors(groups, step=s)["u1", 0][1] for s in range(1, 20))


def test_anchors_of_one_prompt_do_not_all_get_one_donor():
    groups = [group(0, "--------++++++++")]
    assert len({donor for _, donor, _ in donors(groups).values()}) > 2


@given(
    outcomes=st.lists(st.text("+-", max_size=4), min_size=1, max_size=8),
    shuffle=st.randoms(use_true_random=False),
    step=st.integers(0, 5),
)
def test_a_right_donor_from_the_nearest_prompt_whatever_the_order(outcomes, shuffle: random.Random, step):
    groups = [group(index, marks) for index, marks in enumerate(outcomes)]
    found = donors(groups, step=step)
    assert donors(shuffle.sample(groups, len(groups)), step=step) == found
    places = [i for i, marks in enumerate(outcomes) if marks]
    solved = [i for i, marks in enumerate(outcomes) if "+" in marks]
    assert len(found) == (sum(marks.count("-") for marks in outcomes) if solved else 0)
    for (uid, _), (donor, session, same) in found.items():
        own, other = int(uid[1:]), int(donor[1:])
        assert outcomes[other][session] == "+"
        assert same == (uid == donor)

        def distance(place, own=own):
            ahead = (places.index(place) - places.index(own)) % len(places)
            return min(ahead, len(places) - ahead)

        assert distance(other) == min(map(distance, solved))
