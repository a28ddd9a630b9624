"""pass@K and maj@K of a problem from its n verified samples, without bias.

pass@K is the estimator of Chen et al. (2021), arXiv 2107.03374: of all subsets of K of the n samples, the share that
holds a right one. verl's `best@K` draws the K samples with replacement and so comes out too low: 1 right of 4 gives
.68 where all four together do hold it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> np.ndarray:
    """1 - C(n - c, k) / C(n, k).

    Args:
        n: samples of each problem, int, any shape.
        c: right ones among them, int, of a shape that fits n's.
        k: samples drawn, without replacement.

    Returns:
        float64 of the common shape.

    Raises:
        ValueError: k is below 1 or above an n, or a c lies outside [0, n].
    """
    n, c = np.broadcast_arrays(np.asarray(n, dtype=np.int64), np.asarray(c, dtype=np.int64))
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@{k} of {n.min() if n.size else 0} samples: expected 1 <= k <= n")
    if ((c < 0) | (c > n)).any():
        raise ValueError("the number of right samples lies outside [0, n]")
    # The binomials themselves would overflow from n = 1030 on. Where n - c < k one factor is 0.
    all_wrong = np.ones(n.shape)
    for i in range(k):
        all_wrong = all_wrong * (n - c - i) / (n - i)
    return 1.0 - all_wrong


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... up to n."""
    return [1 << i for i in range(n.bit_length())]


def maj_at_k(
    votes: Sequence[str | None], correct: ArrayLike, ks: Sequence[int], *, draws: int = 1000, seed: int = 0
) -> np.ndarray:
    """How often the answer that most of K samples give is right.

    Expected over the subsets of K samples, and over the answers that share the most votes, one of which is taken at
    random. K = n is exact; smaller K are the mean over `draws` random orders of the samples, whose first K are taken,
    with a standard error of at most .5 / sqrt(draws).

    Args:
        votes: (n,), the answer of each sample; None or an empty one does not vote. Where none does, the
            majority is wrong.
        correct: (n,) bool. Samples with one answer may differ in it: then that answer is right to their share.
        ks: sizes to take, each between 1 and n.
        draws: random orders.
        seed: of the random orders.

    Returns:
        float64, shape (len(ks),).

    Raises:
        ValueError: the lengths differ, or a k lies outside [1, n].
    """
    correct = np.asarray(correct, dtype=bool)
    n = len(votes)
    if correct.shape != (n,):
        raise ValueError(f"{n} votes and verdicts of shape {correct.shape}: expected one length")
    if any(not 1 <= k <= n for k in ks):
        raise ValueError(f"maj@K of {n} samples for K in {list(ks)}: expected 1 <= K <= n")
    code_of: dict[str, int] = {}
    codes = np.array([code_of.setdefault(vote, len(code_of)) if vote else -1 for vote in votes])
    if not code_of:
        return np.zeros(len(ks))
    cast = codes >= 0
    right = np.bincount(codes[cast], weights=correct[cast]) / np.bincount(codes[cast])
    if all(k == n for k in ks):
        orders = np.arange(n)[None]
    else:
        orders = np.random.default_rng(seed).permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
    drawn = codes[orders]
    rows = np.arange(len(drawn))[:, None] * len(code_of)
    counts = np.zeros((len(drawn), len(code_of)), dtype=np.int64)
    shares, counted = {}, 0
    for k in sorted(set(ks)):
        added = drawn[:, counted:k]
        counts += np.bincount((rows + added)[added >= 0], minlength=counts.size).reshape(counts.shape)
        counted = k
        most = counts.max(axis=1, keepdims=True)
        leading = (counts == most) & (most > 0)
        shares[k] = ((leading @ right) / np.maximum(leading.sum(axis=1), 1)).mean()
    return np.array([shares[k] for k in ks])
