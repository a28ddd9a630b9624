import pickle
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.fast.core.test_anchors import BAND, group, ids
from verl_cipo.core.anchors import Group, quotas, select_anchors
from verl_cipo.core.replay import ReplayPool

shares = st.floats(0, 1)
some_groups = st.lists(st.text("cw", min_size=0, max_size=6), max_size=8)


def pool_of(groups, *, capacity, step=3, seed=1):
    pool = ReplayPool(capacity=capacity, seed=seed, step=step, **BAND)
    for each in groups:
        pool.add(each, {attempt.session: f"text {attempt.uid}/{attempt.session}" for attempt in each.attempts})
    return pool


@given(some_groups, st.integers(0, 12), shares, st.randoms())
def test_the_pool_draws_what_select_anchors_would_have_drawn(verdicts, budget, rho, random):
    groups = [group(i, v) for i, v in enumerate(verdicts)]
    expected = select_anchors(groups, budget=budget, rho=rho, seed=1, step=3, **BAND)
    random.shuffle(groups)
    drawn = pool_of(groups, capacity=budget).take(quotas(budget, rho))
    assert sorted(ids(c.attempt for c in drawn)) == sorted(ids(expected))
    assert all(c.payload == f"text {c.attempt.uid}/{c.attempt.session}" for c in drawn)


def test_the_pool_is_bounded_and_prefers_medium_prompts():
    # 2 right and 2 wrong of 4 are medium; 1 right of 8 is not.
    pool = pool_of([group(0, "cwwwwwww"), group(1, "ccww")], capacity=2)
    assert len(pool) == 4
    kept = pool.candidates()
    assert [(c.attempt.index, c.attempt.correct) for c in kept] == [(1, True), (1, True), (1, False), (1, False)]


def test_what_was_drawn_is_gone():
    pool = pool_of([group(0, "ccww")], capacity=4)
    first = pool.take(quotas(3, 0.5))  # round(.5 * 3) = 2 right ones
    assert [c.attempt.correct for c in first] == [True, True, False]
    rest = pool.take(quotas(3, 0.5))
    assert [c.attempt.correct for c in rest] == [False]
    assert first[-1].attempt.session != rest[0].attempt.session
    assert len(pool) == 0


def test_a_candidate_carries_what_its_prompt_had():
    assert [c.outcome for c in pool_of([group(0, "cwww")], capacity=4).candidates()] == [group(0, "cwww").outcome] * 4


def test_a_candidate_of_an_older_checkpoint_knows_nothing_of_its_prompt():
    (old,) = pool_of([group(0, "w")], capacity=1).candidates()
    del old.__dict__["outcome"]
    read = pickle.loads(pickle.dumps(old))
    assert "outcome" not in read.__dict__ and read.outcome is None
    pool = ReplayPool(capacity=1, seed=1, step=3, **BAND)
    pool.restore([replace(read, payload="other")])
    assert pool.take({True: 0, False: 1}) == [replace(read, payload="other", outcome=None)]


@given(some_groups, st.integers(0, 8), shares)
def test_a_restored_pool_draws_the_same(verdicts, budget, rho):
    pool = pool_of([group(i, v) for i, v in enumerate(verdicts)], capacity=8)
    again = ReplayPool(capacity=8, seed=1, step=3, **BAND)
    again.restore(pool.candidates())
    assert again.take(quotas(budget, rho)) == pool.take(quotas(budget, rho))


def test_a_pool_of_a_checkpoint_from_before_prompts_had_an_origin():
    """Attempts were saved without origin and correctable; unpickled, they have the defaults."""
    pool = pool_of([group(0, "ccww")], capacity=4)
    old = pool.candidates()
    for candidate in old:
        del candidate.attempt.__dict__["origin"], candidate.attempt.__dict__["correctable"]
    again = ReplayPool(capacity=4, seed=1, step=3, **BAND)
    again.restore(pickle.loads(pickle.dumps(old)))
    newer = Group("v", tuple(replace(a, uid="v", origin="b") for a in group(0, "ccww").attempts))
    again.add(newer, dict.fromkeys(range(4), "text"))
    assert {candidate.attempt.uid for candidate in again.take({True: 4, False: 4})} == {"u0", "v"}


def test_what_cannot_be_corrected_is_not_in_the_pool():
    whole = group(0, "ccww")
    offered = Group(whole.uid, tuple(replace(a, correctable=a.session == 3) for a in whole.attempts))
    pool = ReplayPool(capacity=4, seed=1, step=3, **BAND)
    pool.add(offered, {3: "text"})
    assert ids(candidate.attempt for candidate in pool.candidates()) == [(0, 3)]
