"""The figures of a run, and how two runs differ, with their intervals."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from verl_cipo.evaluation.dumps.rows import Sampled
from verl_cipo.evaluation.intervals import CONFIDENCE, RESAMPLES, Interval, SignTest, sign_test, stratified_interval
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.passk import maj_at_k, pass_at_k, powers_of_two

AVG, CHARS, TOKENS, TRUNCATED = "avg@n", "chars", "tokens", "truncated"
OVERALL = "overall"
_ORDER = ("avg", "pass", "maj", CHARS, TOKENS, TRUNCATED)


@dataclass(frozen=True)
class Measured:
    """A problem and its metrics."""

    problem: Sampled
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A benchmark's figures by metric; samples: fewest and most of a problem."""

    problems: int
    samples: tuple[int, int]
    figures: dict[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Run minus baseline over the problems of both, and how many problems went which way."""

    interval: Interval
    signs: SignTest


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """By benchmark and metric; problems counts those of both, only_run and only_baseline those the other lacks."""

    problems: int
    only_run: int
    only_baseline: int
    differences: dict[str, dict[str, Difference]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """confidence of the intervals; resamples and seed of the bootstrap; majority: whether to vote over pred."""

    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int = 0
    majority: bool = True

    def interval(self, strata: Sequence[Sequence[float]]) -> Interval:
        return stratified_interval(strata, confidence=self.confidence, resamples=self.resamples, seed=self.seed)


def values_of(problem: Sampled, settings: Settings) -> dict[str, float]:
    """The metrics of one problem; one that does not follow from its samples is left out.

    avg@n is the share of right samples, which is pass@1. K are the powers of two up to n; maj@1 would be avg@n.
    """
    samples, n = problem.samples, len(problem.samples)
    correct = [sample.correct for sample in samples]
    right, ks = sum(correct), powers_of_two(n)
    values = {AVG: right / n} | {f"pass@{k}": float(pass_at_k(n, right, k)) for k in ks}
    votes = [sample.pred for sample in samples]
    if settings.majority and all(vote is not None for vote in votes):
        shares = maj_at_k(votes, correct, ks[1:], seed=settings.seed)
        values |= {f"maj@{k}": float(share) for k, share in zip(ks[1:], shares, strict=True)}
    for name in (CHARS, TOKENS, TRUNCATED):
        known = [getattr(sample, name) for sample in samples]
        if all(value is not None for value in known):
            values[name] = sum(known) / n
    return values


def measure(problems: Sequence[Sampled], settings: Settings | None = None) -> list[Measured]:
    """The metrics of every problem of a run."""
    settings = settings or Settings()
    return [
        Measured(problem, values_of(problem, settings)) for problem in tqdm(problems, desc="problems", disable=None)
    ]


def summarize(run: Sequence[Measured], settings: Settings | None = None) -> dict[str, Summary]:
    """Figures by benchmark, and under "overall" the mean over benchmarks.

    A figure is the mean over the problems that have it, and is given where half of them or more do: a problem that lost
    samples costs no K, and one that has more than the others adds none. Interval.problems counts them.
    Overall are the figures that every benchmark has; its interval resamples within the benchmarks.

    Raises:
        EvaluationError: a benchmark is called "overall".
    """
    settings = settings or Settings()
    members: dict[str, list[Measured]] = defaultdict(list)
    for measured in run:
        members[measured.problem.benchmark].append(measured)
    if OVERALL in members:
        raise EvaluationError(f"a benchmark is called {OVERALL!r}: give it another name")
    values = {name: _by_metric([measured.values for measured in own]) for name, own in members.items()}
    summary = {
        name: _summary(own, {metric: settings.interval([v]) for metric, v in values[name].items()})
        for name, own in tqdm(members.items(), desc="intervals", unit="benchmark", disable=None)
    }
    if len(members) == 1:
        return summary | {OVERALL: next(iter(summary.values()))}
    return summary | {OVERALL: _summary(run, {m: settings.interval(v) for m, v in _shared(values).items()})}


def compare(run: Sequence[Measured], baseline: Sequence[Measured], settings: Settings | None = None) -> Comparison:
    """Paired difference, run minus baseline, on the problems that both have.

    Problems are matched by input and ground truth, under one benchmark name where both runs use it. Problems of a run
    that are equal in these are averaged. Overall is as in :func:`summarize`, its sign test over all problems.

    Raises:
        EvaluationError: the runs share no problem.
    """
    settings = settings or Settings()
    ours, theirs = _by_name(run), _by_name(baseline)
    names = {key: name for name, key in theirs}
    other_of = {own: own if own in theirs else (names.get(own[1], ""), own[1]) for own in ours}
    pairs = {own: other for own, other in other_of.items() if other in theirs}
    if not pairs:
        raise EvaluationError("the runs share no problem: input and ground truth of all of them differ")
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    for own, other in pairs.items():
        rows[own[0]].append({m: ours[own][m] - theirs[other][m] for m in ours[own] if m in theirs[other]})
    values = {name: _by_metric(own) for name, own in rows.items()}
    differences = {
        name: {metric: _difference([v], settings) for metric, v in own.items()} for name, own in values.items()
    }
    differences[OVERALL] = {metric: _difference(v, settings) for metric, v in _shared(values).items()}
    return Comparison(
        differences=differences,
        problems=len(pairs),
        only_run=len(ours) - len(pairs),
        only_baseline=len(theirs.keys() - set(pairs.values())),
    )


def in_order(metrics: Iterable[str]) -> list[str]:
    """Each metric once: avg@n, pass@K and maj@K by K, then the lengths."""

    def place(metric: str) -> tuple[int, int]:
        kind, _, k = metric.partition("@")
        return _ORDER.index(kind), int(k) if k.isdecimal() else 0

    return sorted(set(metrics), key=place)


def _summary(members: Sequence[Measured], figures: dict[str, Interval]) -> Summary:
    counts = [len(measured.problem.samples) for measured in members]
    return Summary(problems=len(members), samples=(min(counts), max(counts)), figures=figures)


def _difference(strata: Sequence[Sequence[float]], settings: Settings) -> Difference:
    return Difference(interval=settings.interval(strata), signs=sign_test(np.concatenate(strata)))


def _by_name(run: Sequence[Measured]) -> dict[tuple[str, tuple[str, str]], dict[str, float]]:
    """Metrics by benchmark and key; the mean over problems that share both."""
    members: dict[tuple[str, tuple[str, str]], list[dict[str, float]]] = defaultdict(list)
    for measured in run:
        members[measured.problem.benchmark, measured.problem.key].append(measured.values)
    return {
        name: {metric: float(np.mean(values)) for metric, values in _by_metric(rows).items()}
        for name, rows in members.items()
    }


def _by_metric(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """The values of each metric that half of `rows` or more have."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for metric, value in row.items():
            values[metric].append(value)
    return {metric: values[metric] for metric in in_order(values) if 2 * len(values[metric]) >= len(rows)}


def _shared(values: dict[str, dict[str, list[float]]]) -> dict[str, list[list[float]]]:
    """By metric that all benchmarks have, its values in each."""
    first, *others = values.values()
    return {
        metric: [first[metric], *(o[metric] for o in others)] for metric in first if all(metric in o for o in others)
    }
