"""Confidence intervals over problems, by bootstrap, and the paired comparison of two runs.

A figure is a mean over problems, so problems are what is resampled: the samples of one problem are not independent.
The bootstrap is `scipy.stats.bootstrap`, bias-corrected and accelerated (BCa; Efron 1987).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 9999
# Resampled values held at once: 32 MB of float64.
_BATCH_VALUES = 4_000_000
_SAME = 1e-12
"""Of values that are equal but for rounding: how far apart they are, relative to the greatest, or to 1."""


@dataclass(frozen=True)
class Interval:
    """A figure with its interval; low and high are nan where `problems` is too small for one."""

    estimate: float
    low: float
    high: float
    problems: int


def interval(values: ArrayLike, **how: Any) -> Interval:
    """Mean over problems.

    Args:
        values: (P,) float, one a problem.
        how: confidence, resamples and seed of the bootstrap.

    Raises:
        ValueError: there is no problem, or a value is not finite.
    """
    return stratified_interval([values], **how)


def stratified_interval(strata: Sequence[ArrayLike], **how: Any) -> Interval:
    """Mean over benchmarks of the mean over problems; the problems are resampled within their benchmark.

    Args:
        strata: one array of shape (P_b,) a benchmark.

    The rest is as for :func:`interval`. Without two problems in every benchmark there is no interval.
    """
    samples = [_finite(values) for values in strata]

    def mean(*resampled: np.ndarray, axis: int = -1) -> np.ndarray:
        return sum(values.mean(axis=axis) for values in resampled) / len(resampled)

    constant = all(map(_constant, samples))
    return _bootstrap(samples, mean, problems=sum(map(len, samples)), constant=constant, paired=False, **how)


def ratio_interval(parts: ArrayLike, totals: ArrayLike, **how: Any) -> Interval:
    """Sum of parts over sum of totals, for a rate whose base differs between problems, such as w->c.

    Args:
        parts: (P,) float, what counts of each problem: its corrections w->c.
        totals: (P,) float >= 0, out of how many: its corrections of wrong attempts. A problem with 0 says nothing
            about the rate and is left out.

    The rest is as for :func:`interval`. Raises: ValueError when the shapes differ or all totals are 0.
    """
    parts, totals = _finite(parts), _finite(totals)
    if parts.shape != totals.shape or not (totals > 0).any():
        raise ValueError(
            f"parts of shape {parts.shape} over totals of shape {totals.shape}: expected one shape with a total > 0"
        )
    parts, totals = parts[totals > 0], totals[totals > 0]

    def ratio(parts: np.ndarray, totals: np.ndarray, axis: int = -1) -> np.ndarray:
        return parts.sum(axis=axis) / totals.sum(axis=axis)

    constant = _constant(parts / totals)
    return _bootstrap([parts, totals], ratio, problems=len(parts), constant=constant, paired=True, **how)


@dataclass(frozen=True)
class SignTest:
    """Problems whose difference is positive (higher), negative (lower) and 0; p is two-sided."""

    higher: int
    lower: int
    equal: int
    p: float


def sign_test(differences: ArrayLike) -> SignTest:
    """Two-sided sign test of the hypothesis that higher is as likely as lower; equal problems are left out.

    Args:
        differences: (P,) float, one a problem.
    """
    signs = np.sign(_finite(differences))
    higher, lower = int((signs > 0).sum()), int((signs < 0).sum())
    p = float(stats.binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
    return SignTest(higher=higher, lower=lower, equal=len(signs) - higher - lower, p=p)


def _constant(values: np.ndarray) -> bool:
    """Whether all values are equal but for rounding: pass@2 of 1 right of 3 is that of 15 of 36."""
    return bool(np.ptp(values) <= _SAME * max(1.0, np.abs(values).max()))


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape}: expected one or more finite values in one dimension")
    return values


def _bootstrap(
    samples: list[np.ndarray],
    statistic: Callable[..., np.ndarray],
    *,
    problems: int,
    constant: bool,
    paired: bool,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    estimate = float(statistic(*samples))
    if min(map(len, samples)) < 2:
        return Interval(estimate, math.nan, math.nan, problems)
    # BCa divides by the spread of the leave-one-out estimates, which is 0 here.
    if constant:
        return Interval(estimate, estimate, estimate, problems)
    result = stats.bootstrap(
        samples,
        statistic,
        paired=paired,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // max(map(len, samples))),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(estimate, float(low), float(high), problems)
