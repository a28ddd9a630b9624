"""The figures of a suite from what generation wrote: JSON, and a table to read."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from verl_cipo.evaluation.corrections import correction_figures, given_responses
from verl_cipo.evaluation.intervals import Interval, interval
from verl_cipo.evaluation.passk import pass_at_k, powers_of_two
from verl_cipo.evaluation.suite.problems import Benchmark
from verl_cipo.rewards.critique import critique_figures

# Fewer than the default: a suite has some 200 intervals.
RESAMPLES = 2000


def benchmark_results(benchmark: Benchmark, folder: Path, step: int, *, confidence: float = 0.95) -> dict[str, Any]:
    """All figures of a benchmark.

    Returns:
        problems, attempts, sampling; `turn1`: pass@K for powers of two up to n, response_tokens and truncated;
        `corrections` where there was a second turn or the prompts held a response; `critique` for that task; `groups`:
        pass@1, or the critique's figures, by the benchmark's group. A figure is {estimate, low, high, problems}; low
        and high are None where there are too few problems for an interval.
    """
    rows = list(_rows(folder / f"{step}.jsonl"))
    options = {"confidence": confidence, "resamples": RESAMPLES}
    problems = _per_problem(rows, lambda row: bool(row["acc"]))
    n = benchmark.sampling.n
    found: dict[str, Any] = {
        "problems": len(problems),
        "attempts": len(rows),
        "sampling": asdict(benchmark.sampling),
        "turn1": {f"pass@{k}": interval(pass_at_k(n, problems.sum(axis=1), k), **options) for k in powers_of_two(n)}
        | {
            name: interval(_per_problem(rows, lambda row, name=name: float(row[name])).mean(axis=1), **options)
            for name in ("response_tokens", "truncated")
        },
    }
    if benchmark.corrections:
        found["corrections"] = correction_figures(_rows(folder / "corrections" / f"{step}.jsonl"), **options)
    elif "anchor_correct" in rows[0]:
        found["corrections"] = correction_figures(given_responses(rows), given=True, **options)
    if benchmark.verifier == "critique":
        found["critique"] = critique_figures(rows, **options)
    if benchmark.group:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            groups.setdefault(str(row.get("group")), []).append(row)
        found["groups"] = {
            name: critique_figures(rows_of, **options)
            if benchmark.verifier == "critique"
            else {"pass@1": interval(_per_problem(rows_of, lambda row: bool(row["acc"])).mean(axis=1), **options)}
            for name, rows_of in sorted(groups.items())
        }
    return plain(found)


def plain(value: Any) -> Any:
    """The value as JSON holds it: intervals as mappings, nan as None."""
    if isinstance(value, Interval):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The main figures as a Markdown table, in percent, with their intervals."""
    columns = (
        ("pass@1", "turn1", "pass@1"),
        ("turn 2", "corrections", "accuracy_turn2"),
        ("w->c", "corrections", "w2c"),
        ("retry", "corrections", "retry"),
        ("w->c - retry", "corrections", "w2c_over_retry"),
        ("c->c", "corrections", "c2c"),
        ("over-correction", "corrections", "over_correction"),
        ("copies", "corrections", "copy_rate"),
        ("critique F1", "critique", "f1"),
        ("truncated", "turn1", "truncated"),
    )
    lines = [
        "| benchmark | problems | n | pass@n | " + " | ".join(title for title, *_ in columns) + " |",
        "|" + "---|" * (len(columns) + 4),
    ]
    for name, result in results.items():
        n = result["sampling"]["n"]
        largest = max(powers_of_two(n))
        cells = [percent(result["turn1"].get(f"pass@{largest}")) + ("" if largest == n else f" (@{largest})")]
        cells += [percent(result.get(part, {}).get(figure)) for _, part, figure in columns]
        lines.append(f"| {name} | {result['problems']} | {n} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def percent(figure: Mapping[str, Any] | None) -> str:
    """A figure of JSON in percent, with its interval if it has one; empty for None."""
    if figure is None:
        return ""
    value = f"{100 * figure['estimate']:.1f}"
    if figure["low"] is None:
        return value
    return f"{value} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _per_problem(rows: list[dict[str, Any]], value: Any) -> np.ndarray:
    """(P, n) float, a row a problem."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(row["uid"].split("_")[0], []).append(float(value(row)))
    return np.array(list(values.values()))


def _rows(file: Path) -> Iterable[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines:
        yield from map(json.loads, lines)
