"""The figures of a suite from what generation wrote: JSON, and a table to read."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verl_cipo.core.transitions import problem_of
from verl_cipo.evaluation.corrections import correction_figures
from verl_cipo.evaluation.intervals import Interval, interval, ratio_interval
from verl_cipo.evaluation.output import markdown_table, plain, shown
from verl_cipo.evaluation.passk import pass_at_k, powers_of_two
from verl_cipo.evaluation.suite.problems import Benchmark

# Fewer than the default: a suite has some 200 intervals.
_OPTIONS = {"resamples": 2000}
_COLUMNS = (
    ("pass@1", "turn1", "pass@1"),
    ("turn 2", "corrections", "accuracy_turn2"),
    ("gain", "corrections", "gain"),
    ("w->c", "corrections", "w2c"),
    ("retry", "corrections", "retry"),
    ("w->c - retry", "corrections", "w2c_over_retry"),
    ("c->c", "corrections", "c2c"),
    ("over-correction", "corrections", "over_correction"),
    ("copies", "corrections", "copy_rate"),
    ("critique F1", "critique", "f1"),
    ("truncated", "turn1", "truncated"),
)

_Row = Mapping[str, Any]


def benchmark_results(benchmark: Benchmark, folder: Path, step: int) -> dict[str, Any]:
    """All figures of a benchmark.

    Returns:
        problems, attempts, sampling; `turn1`: pass@K for powers of two up to n, response_tokens and truncated;
        `corrections` where there was a second turn or the prompts held a response; `critique` for that task; `groups`:
        pass@1, or the critique's figures, by the benchmark's group. A figure is {estimate, low, high, problems}; low
        and high are None where there are too few problems for an interval.
    """
    rows = list(_rows(folder / f"{step}.jsonl"))
    problems = _by_problem(rows)
    samples = np.array([len(own) for own in problems])
    right = np.array([sum(row["acc"] for row in own) for own in problems])
    found: dict[str, Any] = {
        "problems": len(problems),
        "attempts": len(rows),
        "sampling": asdict(benchmark.sampling),
        "turn1": {
            f"pass@{k}": interval(pass_at_k(samples, right, k), **_OPTIONS) for k in powers_of_two(benchmark.sampling.n)
        }
        | {name: _mean(problems, name) for name in ("response_tokens", "truncated")},
    }
    if benchmark.corrections:
        found["corrections"] = correction_figures(_rows(folder / "corrections" / f"{step}.jsonl"), **_OPTIONS)
    elif "anchor_correct" in rows[0]:
        found["corrections"] = correction_figures(rows, **_OPTIONS)
    if benchmark.verifier == "critique":
        found["critique"] = critique_figures(rows)
    if benchmark.group:
        groups = defaultdict(list)
        for row in rows:
            groups[str(row.get("group"))].append(row)
        found["groups"] = {
            name: critique_figures(own)
            if benchmark.verifier == "critique"
            else {"pass@1": _mean(_by_problem(own), "acc")}
            for name, own in sorted(groups.items())
        }
    return plain(found)


def critique_figures(rows: Iterable[_Row]) -> dict[str, Interval]:
    """Accuracy, F1, and the share of answers that call the response neither right nor wrong, over problems.

    The paper's F1 has wrong responses as the positive class; such an answer counts as a mistake, as in the authors'
    evaluation.

    Args:
        rows: of a dump: input, gts (correct or wrong) and pred (the same, or empty).

    Returns:
        accuracy, unreadable; and f1, precision and recall of calling a response wrong, left out where there is nothing
        to take them over.
    """
    counts = []
    for own in _by_problem(rows):
        wrong = np.array([row["gts"] == "wrong" for row in own])
        unreadable = np.array([not row["pred"] for row in own])
        # Unreadable is a mistake: the response is called the opposite of what it is.
        called = np.where(unreadable, ~wrong, [row["pred"] == "wrong" for row in own])
        each = (wrong == called).mean(), unreadable.mean(), (wrong & called).sum(), called.sum(), wrong.sum()
        counts.append(each)
    accuracy, unreadable, hits, called, wrong = np.array(counts, dtype=float).T
    figures = {"accuracy": interval(accuracy, **_OPTIONS), "unreadable": interval(unreadable, **_OPTIONS)}
    # F1 = 2 TP / (2 TP + FP + FN), and what is called wrong and what is wrong are TP + FP and TP + FN.
    for name, parts, totals in (
        ("f1", 2 * hits, called + wrong),
        ("precision", hits, called),
        ("recall", hits, wrong),
    ):
        if totals.any():
            figures[name] = ratio_interval(parts, totals, **_OPTIONS)
    return figures


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The main figures as a Markdown table, in percent, with their intervals."""
    rows = []
    for name, result in results.items():
        n = result["sampling"]["n"]
        largest = max(powers_of_two(n))
        pass_n = shown(result["turn1"].get(f"pass@{largest}")) + ("" if largest == n else f" (@{largest})")
        cells = [shown(result.get(part, {}).get(figure)) for _, part, figure in _COLUMNS]
        rows.append([name, result["problems"], n, pass_n, *cells])
    return markdown_table(["benchmark", "problems", "n", "pass@n", *(title for title, *_ in _COLUMNS)], rows)


def _by_problem(rows: Iterable[_Row]) -> list[list[_Row]]:
    found: dict[tuple[str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        found[problem_of(row)].append(row)
    return list(found.values())


def _mean(problems: Sequence[Sequence[_Row]], name: str) -> Interval:
    return interval([np.mean([float(row[name]) for row in own]) for own in problems], **_OPTIONS)


def _rows(file: Path) -> Iterable[_Row]:
    with open(file, encoding="utf-8") as lines:
        yield from map(json.loads, lines)
