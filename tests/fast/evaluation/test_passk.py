"""pass@K and maj@K against counting, and their bias beside that of verl's estimator."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_cipo.evaluation.intervals import interval
from verl_cipo.evaluation.passk import maj_at_k, pass_at_k, powers_of_two

counts = st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@settings(deadline=None)
@given(counts)
def test_pass_at_k_is_the_closed_form(case):
    n, c, k = case

    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_pass_at_k_of_numbers_known_by_hand():
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)
    assert pass_at_k(64, 0, 64) == 0.0
    assert pass_at_k(100, 37, 1) == pytest.approx(0.37)


def test_problems_may_differ_in_n():
    assert pass_at_k([4, 8, 8], [1, 4, 0], 2) == pytest.approx([1 / 2, 1 - 6 / 28, 0])


def test_pass_at_k_of_thousands_of_samples_does_not_overflow():
    assert pass_at_k(5000, 1, 2500) == pytest.approx(0.5)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), ([8, 4], [1, 1], 8)])
def test_pass_at_k_refuses_what_is_no_count(n, c, k):
    with pytest.raises(ValueError):
        pass_at_k(n, c, k)


def test_powers_of_two():
    assert [powers_of_two(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8], [1, 2, 4, 8]]


def counted_majority(votes, correct, k):
    """maj@k by going through every subset; verdicts agree on an answer."""
    right = dict(zip(votes, correct, strict=True))
    shares = []
    for subset in combinations(votes, k):
        cast = [vote for vote in subset if vote]
        most = max(map(cast.count, cast), default=0)
        leaders = {vote for vote in cast if cast.count(vote) == most}
        shares.append(sum(right[vote] for vote in leaders) / len(leaders) if leaders else 0.0)
    return np.mean(shares)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["1", "2", "3", ""]), min_size=1, max_size=7), st.sets(st.sampled_from(["1", "2"])))
def test_maj_at_k_is_the_mean_over_all_subsets(votes, right):
    correct = [vote in right for vote in votes]
    ks = list(range(1, len(votes) + 1))
    counted = [counted_majority(votes, correct, k) for k in ks]

    # Five standard errors of 4,000 draws.
    assert maj_at_k(votes, correct, ks, draws=4000) == pytest.approx(counted, abs=0.04)
    assert maj_at_k(votes, correct, ks[-1:]) == pytest.approx(counted[-1:], abs=1e-12)


def test_maj_at_n_by_hand():
    # a and b tie: one of two is right. An empty answer does not vote, or it would win here.
    assert maj_at_k(["a", "a", "b", "b", "", None, ""], [1, 1, 0, 0, 0, 0, 0], [7]) == [0.5]
    # One answer, judged right once of twice.
    assert maj_at_k(["a", "a", "b"], [1, 0, 0], [3]) == [0.5]
    assert maj_at_k(["", None], [0, 0], [1, 2]).tolist() == [0.0, 0.0]


def test_maj_at_k_keeps_the_order_of_ks():
    votes, correct = ["a", "a", "b", "c"], [1, 1, 0, 0]

    assert maj_at_k(votes, correct, [4, 1])[::-1] == pytest.approx(maj_at_k(votes, correct, [1, 4]))


def test_maj_at_k_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one length"):
        maj_at_k(["a"], [True, False], [1])
    with pytest.raises(ValueError, match="1 <= K <= n"):
        maj_at_k(["a"], [True], [2])


@pytest.mark.parametrize(("n", "k", "p"), [(4, 4, 0.25), (16, 8, 0.05), (64, 32, 0.02)])
def test_the_estimator_is_unbiased_where_verls_is_not(n, k, p):
    from verl.trainer.ppo.metric_utils import bootstrap_metric

    right = np.random.default_rng(0).binomial(n, p, size=10_000)
    truth = 1 - (1 - p) ** k
    ours = interval(pass_at_k(n, right, k) - truth, resamples=2000)
    by_count = {c: bootstrap_metric([1.0] * c + [0.0] * (n - c), k, [np.max])[0][0] for c in set(right.tolist())}
    verls = interval([by_count[c] - truth for c in right.tolist()], resamples=2000)

    assert ours.low <= 0 <= ours.high
    assert ours.high - ours.low < 0.02
    assert verls.high < -0.03
