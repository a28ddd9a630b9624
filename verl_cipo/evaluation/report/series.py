"""From the figures of runs to what a chart draws: one curve an arm, with a band over its seeds."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from verl_cipo.evaluation.dumps.rows import NoAttemptError, Options, read_dumps
from verl_cipo.evaluation.jsonl import BadLine
from verl_cipo.evaluation.passk import pass_at_k, powers_of_two
from verl_cipo.evaluation.report.runs import TRAINED, VALIDATION, Arm, Run

TURN1, TURN2 = "cipo/val/accuracy_turn1", "cipo/val/accuracy_turn2"
# verl: val-core/{data source}/{acc, or reward without a verdict}/mean@{n}; a data source may hold slashes.
_PASS1 = re.compile(r"val-core/(?P<source>.+)/(?:acc|reward)/mean@\d+")
_VERLS_TOKENS = ("perf/total_num_tokens", "response_length/mean", "prompt_length/mean")

Points = Mapping[float, float]
"""y by x."""


@dataclass(frozen=True)
class Curve:
    """Mean, least and greatest value over `seeds` runs, at the x that all of them have.

    x, mean, low, high: (N,), N > 0, x ascending; raw: (N,), the values before smoothing, of a single run only.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    raw: np.ndarray | None = None


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each of (N,) values with up to window - 1 before it. Raises: ValueError for a window below 1."""
    if window < 1:
        raise ValueError(f"a window of {window} values: expected 1 or more")
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def combine(runs: Iterable[Points], window: int = 1) -> Curve | None:
    """The curve of an arm's runs, each smoothed by `trailing_mean` first; None where no x is common to all of them.

    Only common x count, so that the mean never jumps because a run ended or measured at other steps.
    """
    points = list(runs)
    common = sorted(set.intersection(*(set(run) for run in points))) if points else []
    if not common:
        return None
    raw = np.array([[run[x] for x in common] for run in points], dtype=float)
    values = np.stack([trailing_mean(row, window) for row in raw])
    return Curve(
        x=np.array(common, dtype=float),
        mean=values.mean(axis=0),
        low=values.min(axis=0),
        high=values.max(axis=0),
        seeds=len(points),
        raw=raw[0] if window > 1 and len(points) == 1 else None,
    )


def metric(name: str) -> Callable[[Run], dict[float, float]]:
    """Reads a metric's values by step, at the steps that have it."""
    return lambda run: {step: figures[name] for step, figures in run.metrics.items() if name in figures}


def benchmark_pass1(run: Run) -> dict[str, dict[float, float]]:
    """verl's own validation: share of attempts that are right (mean score without a verdict) by benchmark and step."""
    found: dict[str, dict[float, float]] = {}
    for step, figures in run.metrics.items():
        for name, value in figures.items():
            match = _PASS1.fullmatch(name)
            if match:
                found.setdefault(match["source"], {})[step] = value
    return found


def mean_pass1(run: Run) -> dict[float, float]:
    """Unweighted mean of `benchmark_pass1` over the benchmarks, at the steps that have all of them."""
    benchmarks = list(benchmark_pass1(run).values())
    if not benchmarks:
        return {}
    steps = set.intersection(*(set(values) for values in benchmarks))
    return {step: float(np.mean([values[step] for values in benchmarks])) for step in sorted(steps)}


def first_turn(arms: Iterable[Arm]) -> tuple[Callable[[Run], dict[float, float]], str]:
    """How pass@1 of the first turn is read, the same way for all runs, and in words what it is a mean over.

    The mean over all attempts, which is what turn 2 can be compared with, unless a run lacks it, as GRPO does.
    """
    if all(metric(TURN1)(run) for arm in arms for run in arm.runs):
        return metric(TURN1), "mean over all attempts"
    return mean_pass1, "unweighted mean over benchmarks"


def attempts_in_training(arms: Iterable[Arm]) -> tuple[bool, str, Callable[[Run], Points]]:
    """How the outcome of training's attempts is read, the same way for all runs: shares of right ones, or mean scores.

    verl's own trainer logs no verdicts. Its mean score is over attempts alone; that of CIPO's trainer is over both
    streams, and is not taken.

    Returns: whether they are shares of right ones, the metric in words, and what reads a run.
    """
    share, score, verls = "cipo/accuracy/base", "cipo/reward/base", "critic/score/mean"
    if all(metric(share)(run) for arm in arms for run in arm.runs):
        return True, share, metric(share)
    return False, f"{score} or {verls}", lambda run: metric(score)(run) or metric(verls)(run)


def rho(run: Run) -> Points:
    """cipo/rho by step, where a step had anchors: with replay_fraction=0 it has no effect."""
    return {
        step: figures["cipo/rho"]
        for step, figures in run.metrics.items()
        if "cipo/rho" in figures and (figures.get("cipo/rows/correction") != 0 or "cipo/aux/pairs" in figures)
    }


def pass_curves(arm: Arm, bad: list[BadLine], empty: list[Path]) -> dict[int, Curve]:
    """pass@K over K at the first and at the last step that all runs of the arm have dumped, by step.

    Empty where there is no such step, one entry where it is the same. A step of which a dump holds no attempt, as that
    of a run killed while it wrote, counts as not dumped.

    Args:
        arm: the runs.
        bad: takes malformed lines, which are left out.
        empty: takes the dumps without an attempt.
    """
    by_run = [run.dumps(VALIDATION) for run in arm.runs]
    common = sorted(set.intersection(*map(set, by_run)))

    def first_of(steps: Iterable[int]) -> dict[int, Curve]:
        for step in steps:
            pass_of = {found[step]: pass_by_k(found[step], bad) for found in by_run}
            empty.extend(path for path, values in pass_of.items() if not values and path not in empty)
            if (curve := combine(pass_of.values())) is not None:
                return {step: curve}
        return {}

    first = first_of(common)
    left = [step for step in common if step not in first and not any(found[step] in empty for found in by_run)]
    return first | first_of(reversed(left)) if first else first


def pass_by_k(path: Path, bad: list[BadLine]) -> dict[float, float]:
    """pass@K by K of one dump: the mean over the problems with at least K samples, then over the benchmarks.

    K are the powers of two up to the median number of samples, as far as every benchmark has a problem with so many.
    Empty where the dump holds no attempt.
    """
    try:
        dumps = read_dumps([path], Options(skip_bad=True, progress=False))
    except NoAttemptError as error:
        bad.extend(error.bad)
        return {}
    bad.extend(dumps.skipped)
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for problem in dumps.problems:
        counts[problem.benchmark].append((len(problem.samples), sum(sample.correct for sample in problem.samples)))
    median = int(np.median([n for members in counts.values() for n, _ in members]))
    found: dict[float, float] = {}
    for k in powers_of_two(median):
        large = [np.array([pair for pair in members if pair[0] >= k]) for members in counts.values()]
        if not all(map(len, large)):
            break
        found[k] = float(np.mean([pass_at_k(pairs[:, 0], pairs[:, 1], k).mean() for pairs in large]))
    return found


def tokens_of_attempts(figures: Mapping[str, float]) -> float | None:
    """Response tokens of a step's attempts; None where they cannot be told.

    verl's own trainer logs the tokens of prompts and responses together, and the mean lengths of both.
    """
    if "cipo/tokens/base" in figures:
        return figures["cipo/tokens/base"]
    total, response, prompt = (figures.get(name) for name in _VERLS_TOKENS)
    if total is None or response is None or prompt is None or response + prompt == 0:
        return None
    return total * response / (response + prompt)


def tokens(run: Run) -> dict[float, float]:
    """`tokens_of_attempts` by step."""
    counts = {step: tokens_of_attempts(figures) for step, figures in run.metrics.items()}
    return {step: count for step, count in counts.items() if count is not None}


def tokens_before(run: Run) -> dict[float, float]:
    """Response tokens, of attempts and of corrections, that were generated up to each step, from the first one logged.

    It ends before the first training step without a count: the sum would be wrong from there on.
    """
    found, total = {}, 0.0
    for step, figures in run.metrics.items():
        of_attempts = tokens_of_attempts(figures)
        if TRAINED in figures and of_attempts is None:
            break
        total += (of_attempts or 0.0) + figures.get("cipo/tokens/correction", 0.0)
        found[step] = total
    return found if total else {}


def against_tokens(arm: Arm, values: Callable[[Run], Points]) -> Curve | None:
    """The arm's curve of `values` with the mean number of tokens generated before as x; None as in `combine`."""
    by_step = [(values(run), tokens_before(run)) for run in arm.runs]
    curve = combine({step: y for step, y in ys.items() if step in tokens} for ys, tokens in by_step)
    if curve is None:
        return None
    spent = [np.mean([tokens[step] for _, tokens in by_step]) for step in curve.x]
    return replace(curve, x=np.array(spent))


def alarms(run: Run, prefix: str = "cipo/guard/") -> dict[str, list[int]]:
    """The steps at which each of the guard's alarms was on, by the alarm's name; empty where none was recorded."""
    found: dict[str, list[int]] = {}
    for step, figures in run.metrics.items():
        for name, value in figures.items():
            if name.startswith(prefix):
                found.setdefault(name.removeprefix(prefix), []).extend([step] if value else [])
    return found


def ranges(steps: list[int]) -> list[tuple[int, int]]:
    """Ascending steps as unbroken ranges, both ends included: [3, 4, 5, 9] as [(3, 5), (9, 9)]."""
    found: list[tuple[int, int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found
