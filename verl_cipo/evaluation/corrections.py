"""What a second turn makes of the first: transition rates, accuracy of both turns, copying, over-correction.

The records are those of `validation_data_dir/corrections/{step}.jsonl`, from training and from `--suite` alike.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from verl_cipo.core.transitions import retried
from verl_cipo.evaluation.intervals import Interval, interval, ratio_interval

FIGURES = {
    "accuracy_turn1": "Share of attempts that are right.",
    "accuracy_turn2": "Share that is right after the correction; an attempt without a correction keeps its verdict.",
    "gain": "accuracy_turn2 - accuracy_turn1.",
    "c2c": "Share of corrections of right attempts that stay right.",
    "c2w": "Share of corrections of right attempts that become wrong.",
    "w2c": "Share of corrections of wrong attempts that become right.",
    "w2w": "Share of corrections of wrong attempts that stay wrong.",
    "retry": "Share of the corrections of wrong attempts that would be right if they were further attempts at the "
    "plain problem: c / (n - 1) where c of n attempts are right. Of problems with several sampled attempts.",
    "w2c_over_retry": "w2c - retry of these problems: what showing the wrong attempt is worth, against sampling once "
    "more without it.",
    "over_correction": "Share of all corrections that turn a right attempt wrong.",
    "repair": "Share of all corrections that turn a wrong attempt right.",
    "copy_rate": "Share of corrections that repeat the attempt up to white space.",
    "copy_rate_failed": "The same of the corrections of wrong attempts: copying a right one is no fault.",
    "without_correction": "Share of attempts without one: it did not fit the prompt, or there was nothing to show.",
}


def correction_figures(
    records: Iterable[Mapping[str, Any]], *, given: bool = False, confidence: float = 0.95, resamples: int = 9999
) -> dict[str, Interval]:
    """The figures of FIGURES, with intervals over problems.

    Args:
        records: one an attempt: uid (of its problem), anchor_correct, corrections with correct and copied each, and
            temperature (default 1): greedy attempts say nothing of what a retry would bring.
        given: the attempts are others', which say nothing of that either.
        confidence: of the intervals.
        resamples: bootstrap resamples.

    Returns:
        One interval a name. A rate without an attempt of its kind is left out.

    Raises:
        ValueError: there is no record.
    """
    per_problem: dict[str, np.ndarray] = {}
    sampled = not given
    for record in records:
        sampled &= record.get("temperature", 1.0) > 0
        turns = record["corrections"]
        first = bool(record["anchor_correct"])
        right = sum(bool(turn["correct"]) for turn in turns)
        second = right / len(turns) if turns else float(first)
        stays = (right, len(turns) - right)
        copies = sum(bool(turn["copied"]) for turn in turns)
        per_problem.setdefault(str(record["uid"]), np.zeros(10))[:] += [
            1,
            first,
            second,
            *(stays if first else (0, 0)),
            *((0, 0) if first else stays),
            copies,
            0 if first else copies,
            not turns,
        ]
    if not per_problem:
        raise ValueError("no record of a correction: nothing to report")
    attempts, first, second, cc, cw, wc, ww, copied, copied_failed, without = np.array(list(per_problem.values())).T
    options = {"confidence": confidence, "resamples": resamples}
    figures = {
        "accuracy_turn1": interval(first / attempts, **options),
        "accuracy_turn2": interval(second / attempts, **options),
        "gain": interval((second - first) / attempts, **options),
        "without_correction": interval(without / attempts, **options),
    }
    right, wrong = cc + cw, wc + ww
    shares = [
        ("c2c", cc, right),
        ("c2w", cw, right),
        ("w2c", wc, wrong),
        ("w2w", ww, wrong),
        ("over_correction", cw, right + wrong),
        ("repair", wc, right + wrong),
        ("copy_rate", copied, right + wrong),
        ("copy_rate_failed", copied_failed, wrong),
    ]
    if sampled and (several := attempts > 1).any():
        asked = wrong[several]
        again = asked * retried(first[several], attempts[several])
        shares += [("retry", again, asked), ("w2c_over_retry", wc[several] - again, asked)]
    for name, parts, totals in shares:
        if totals.any():
            figures[name] = ratio_interval(parts, totals, **options)
    return {name: figures[name] for name in FIGURES if name in figures}


def given_responses(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records for `correction_figures` from the dump of a benchmark whose prompts hold a response to be corrected.

    Args:
        rows: with uid, acc, and anchor_correct and copied as `generate` writes them for CriticBench and DebugBench.
    """
    return [
        {
            "uid": row["uid"].split("_")[0],
            "anchor_correct": row["anchor_correct"],
            "corrections": [{"correct": row["acc"], "copied": row["copied"]}],
        }
        for row in rows
    ]
