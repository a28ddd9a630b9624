"""Figures of the learning experiment over seeds, and its paired differences.

Two arms of one seed start from the same model and are asked the same held-out problems, so they are compared seed by
seed. A seed draws its own problems, starting model, order of data and rollouts: the seeds are the independent units.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.experiment.runs import TURNS
from verl_cipo.evaluation.intervals import stratified_interval
from verl_cipo.evaluation.passk import pass_at_k

KS = (1, 8, 32)
RATES = ("w2c", "retry", "w2c_over_retry", "c2w", "c2c", "turn2", "copy_rate_failed")
COSTS = ("tokens", "train_s", "wall_s")
STARTS = {"hard": (-1.0, 0.125), "medium": (0.125, 0.5), "easy": (0.5, 1.0)}
"""Held-out problems by the share of samples that the model before training solved: above the first, at most the
second."""

Runs = Mapping[int, Mapping[str, Any]]
"""The results of one arm by seed."""


def per_problem(result: Mapping[str, Any], k: int) -> np.ndarray:
    """(P,) unbiased pass@k of each held-out problem. Raises: ValueError when k is above the number of samples."""
    return pass_at_k(result["made_with"]["setting"]["samples"], np.array(result["right"]), k)


def rates(result: Mapping[str, Any]) -> dict[str, float]:
    """The correction turn of one run: w2c and c2c are shares of the wrong and of the right attempts, c2w = 1 - c2c;
    retry is w2c as it would be with a further attempt in place of each correction, w2c_over_retry what is between them;
    turn2 is a share of all corrections, copy_rate_failed of those of wrong attempts. nan where there was no such
    attempt."""
    total = {name: sum(problem[name] for problem in result["turns"]) for name in TURNS}
    wrong, right = total["w2c"] + total["w2w"], total["c2c"] + total["c2w"]
    # Shares of a problem's samples, which were drawn apart from the attempts of its correction turns.
    solved = per_problem(result, 1)
    again = sum(
        (problem["w2c"] + problem["w2w"]) * float(share) for problem, share in zip(result["turns"], solved, strict=True)
    )
    return {
        "w2c": total["w2c"] / wrong if wrong else math.nan,
        "retry": again / wrong if wrong else math.nan,
        "w2c_over_retry": (total["w2c"] - again) / wrong if wrong else math.nan,
        "c2w": total["c2w"] / right if right else math.nan,
        "c2c": total["c2c"] / right if right else math.nan,
        "turn2": (total["w2c"] + total["c2c"]) / (wrong + right),
        "copy_rate_failed": total["copies_failed"] / wrong if wrong else math.nan,
    }


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """All figures of one run: pass@K for the K of :data:`KS` that its samples allow, the rates, the costs."""
    samples = result["made_with"]["setting"]["samples"]
    found = {f"pass@{k}": float(per_problem(result, k).mean()) for k in KS if k <= samples}
    return found | rates(result) | {name: float(result[name]) for name in COSTS}


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds, its 95 % interval by Student's t (None below two seeds), and the values."""
    mean, ci95 = float(np.mean(values)), None
    if len(values) > 1:
        half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
        ci95 = [mean - float(half), mean + float(half)]
    return {"mean": mean, "ci95": ci95, "values": list(values)}


def summary_of(runs: Runs) -> dict[str, Any]:
    """Every figure of an arm over its seeds."""
    found = [figures_of(runs[seed]) for seed in sorted(runs)]
    return {"seeds": sorted(runs)} | {name: over_seeds([figures[name] for figures in found]) for name in found[0]}


def difference(arm: Runs, control: Runs) -> dict[str, Any]:
    """Arm minus control over the seeds that both have.

    Returns:
        `seeds`, and by figure: `diff`, the mean over seeds; `ci95`, by Student's t over the seeds, which holds for
        another seed (None below two seeds); for pass@K also `ci95_problems`, by bootstrap over the problems within the
        seeds, which holds for other problems asked of these very models. Empty without a common seed.
    """
    seeds = sorted(set(arm) & set(control))
    if not seeds:
        return {}
    mine, theirs = [figures_of(arm[seed]) for seed in seeds], [figures_of(control[seed]) for seed in seeds]
    found: dict[str, Any] = {"seeds": seeds}
    for name in mine[0]:
        found[name] = _gap([a[name] - b[name] for a, b in zip(mine, theirs, strict=True)])
    for k in KS:
        if f"pass@{k}" in found:
            paired = [per_problem(arm[seed], k) - per_problem(control[seed], k) for seed in seeds]
            within = stratified_interval(paired, resamples=2000)
            found[f"pass@{k}"]["ci95_problems"] = [within.low, within.high]
    return found


def difference_by_start(arm: Runs, control: Runs, base: Runs) -> dict[str, Any]:
    """Arm minus control in pass@1 over the seeds that all three have, apart for the problems of each of :data:`STARTS`.

    Returns:
        `seeds`, and by kind of problem: `diff`, `ci95` and `values` as in :func:`difference`, `problems`, how many of
        the kind there are in all these seeds. Empty without a common seed; a kind that a seed lacks is left out.
    """
    seeds = sorted(set(arm) & set(control) & set(base))
    found: dict[str, Any] = {"seeds": seeds} if seeds else {}
    for kind, (above, most) in STARTS.items():
        start = [per_problem(base[seed], 1) for seed in seeds]
        chosen = [(above < solved) & (solved <= most) for solved in start]
        if seeds and all(one.any() for one in chosen):
            gaps = [per_problem(arm[seed], 1) - per_problem(control[seed], 1) for seed in seeds]
            found[kind] = _gap([float(gap[one].mean()) for gap, one in zip(gaps, chosen, strict=True)])
            found[kind]["problems"] = int(sum(one.sum() for one in chosen))
    return found


def _gap(values: Sequence[float]) -> dict[str, Any]:
    over = over_seeds(values)
    return {"diff": over["mean"], "ci95": over["ci95"], "values": over["values"]}
