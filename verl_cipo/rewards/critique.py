r"""CriticBench's critique task: is a given response right? (arXiv 2402.14809; data_prep/criticbench.py --task critique)

The paper's figure is F1 with wrong responses as the positive class; an answer without a verdict counts as the wrong
verdict, as in the authors' evaluation.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from verl_cipo.evaluation.intervals import Interval, interval, ratio_interval

_BOX = re.compile(r"\\boxed\s*\{\s*(?:\\text(?:bf|rm)?\s*\{)?\s*\"?([A-Za-z]+)")
_VERDICTS = {"correct": True, "right": True, "wrong": False, "incorrect": False}


def read_verdict(text: str) -> bool | None:
    r"""Whether the critique calls the response right: what its last box says; None when that is no verdict."""
    found = _BOX.findall(text)
    return _VERDICTS.get(found[-1].casefold()) if found else None


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None
) -> dict[str, float | bool | str]:
    """The reward function of the critique task.

    Args:
        data_source: named in errors.
        solution_str: the critique.
        ground_truth: correct or wrong, what the response is.
        extra_info: not used.

    Returns:
        score (1.0 when the verdict is the right one, else 0.0), acc, pred (correct, wrong or empty) and outcome
        (right, wrong or unparsable).

    Raises:
        ValueError: the ground truth is something else.
    """
    if ground_truth not in ("correct", "wrong"):
        raise ValueError(
            f"ground truth of data source {data_source!r} is {ground_truth!r}: allowed is correct or wrong"
        )
    verdict = read_verdict(solution_str)
    pred = "" if verdict is None else "correct" if verdict else "wrong"
    right = pred == ground_truth
    outcome = "right" if right else "wrong" if pred else "unparsable"
    return {"score": float(right), "acc": right, "pred": pred, "outcome": outcome}


def critique_figures(
    rows: Iterable[Mapping[str, Any]], *, confidence: float = 0.95, resamples: int = 9999
) -> dict[str, Interval]:
    """Accuracy, F1, and the share of answers without a verdict, with intervals over problems.

    Args:
        rows: of a dump: uid, gts (correct or wrong), pred (the same, or empty) and acc.

    Returns:
        accuracy, unreadable; and f1, precision and recall of calling a response wrong, left out where there is nothing
        to take them over.
    """
    counts: dict[str, np.ndarray] = {}
    for row in rows:
        of_problem = counts.setdefault(str(row["uid"]).split("_")[0], np.zeros(6))
        is_wrong = row["gts"] == "wrong"
        # No verdict is the wrong verdict: the response is called the opposite of what it is.
        called_wrong = row["pred"] == "wrong" if row["pred"] else not is_wrong
        of_problem += [
            1,
            is_wrong == called_wrong,
            not row["pred"],
            is_wrong and called_wrong,
            called_wrong,
            is_wrong,
        ]
    n, right, unreadable, hits, called, wrong = np.array(list(counts.values())).T
    options = {"confidence": confidence, "resamples": resamples}
    figures = {"accuracy": interval(right / n, **options), "unreadable": interval(unreadable / n, **options)}
    # F1 = 2 TP / (2 TP + FP + FN), and what is called wrong and what is wrong are TP + FP and TP + FN.
    for name, parts, totals in (
        ("f1", 2 * hits, called + wrong),
        ("precision", hits, called),
        ("recall", hits, wrong),
    ):
        if totals.any():
            figures[name] = ratio_interval(parts, totals, **options)
    return figures
