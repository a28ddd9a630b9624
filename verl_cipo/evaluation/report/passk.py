"""pass@K of an arm's runs from the dumps that verl's validation left."""

from collections import defaultdict
from pathlib import Path

import numpy as np

from verl_cipo.evaluation.dumps import rows as dumps
from verl_cipo.evaluation.jsonl import BadLine
from verl_cipo.evaluation.passk import pass_at_k, powers_of_two
from verl_cipo.evaluation.report.runs import VALIDATION, Arm
from verl_cipo.evaluation.report.series import Curve, combine


def pass_curves(arm: Arm, bad: list[BadLine]) -> dict[int, Curve]:
    """pass@K over K at the first and at the last step that all runs of the arm have dumped, by step.

    Empty where there is no such step, one entry where it is the same. `bad` takes malformed lines, which are left out.
    """
    by_run = [run.dumps(VALIDATION) for run in arm.runs]
    common = sorted(set.intersection(*map(set, by_run)))
    curves = {}
    for step in dict.fromkeys([*common[:1], *common[-1:]]):
        curve = combine(pass_by_k(found[step], bad) for found in by_run)
        if curve is not None:
            curves[step] = curve
    return curves


def pass_by_k(path: Path, bad: list[BadLine]) -> dict[float, float]:
    """pass@K by K of one dump: the mean over the problems with at least K samples, then over the benchmarks.

    K are the powers of two up to the median number of samples, as far as every benchmark has a problem with so many.
    """
    run = dumps.read_run([path], dumps.Options(skip_bad=True))
    bad.extend(run.skipped)
    counts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for problem in run.problems:
        counts[problem.benchmark].append((len(problem.samples), sum(sample.correct for sample in problem.samples)))
    median = int(np.median([n for members in counts.values() for n, _ in members]))
    found: dict[float, float] = {}
    for k in powers_of_two(median):
        large = {name: np.array([pair for pair in members if pair[0] >= k]) for name, members in counts.items()}
        if not all(map(len, large.values())):
            break
        found[k] = float(np.mean([pass_at_k(pairs[:, 0], pairs[:, 1], k).mean() for pairs in large.values()]))
    return found
