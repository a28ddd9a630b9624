"""Figures as JSON, CSV and Markdown."""

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from verl_cipo.evaluation.dumps.rows import Run
from verl_cipo.evaluation.dumps.summary import AVG, CHARS, OVERALL, TOKENS, Benchmark, Comparison, in_order
from verl_cipo.evaluation.intervals import Interval

_CSV_HEAD = ("run", "benchmark", "metric", "estimate", "low", "high", "problems", "higher", "lower", "equal", "p")
_SAME_AS_AVG = "pass@1"
_LENGTHS = (CHARS, TOKENS)


def run_as_json(run: Run, summary: Mapping[str, Benchmark]) -> dict[str, Any]:
    """What was read, and the figures by benchmark and metric; null where there is no interval."""
    return {
        "files": [str(path) for path in run.files],
        "rows": run.rows,
        "skipped": [str(line) for line in run.skipped],
        "benchmarks": {
            name: {
                "problems": benchmark.problems,
                "samples": {"min": benchmark.samples[0], "max": benchmark.samples[1]},
                "figures": {metric: _interval(figure) for metric, figure in benchmark.figures.items()},
            }
            for name, benchmark in summary.items()
        },
    }


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """Differences by benchmark and metric, with the sign test's counts and p."""
    return {
        "problems": comparison.problems,
        "only_run": comparison.only_run,
        "only_baseline": comparison.only_baseline,
        "differences": {
            name: {
                metric: _interval(difference.interval) | {"sign_test": vars(difference.signs)}
                for metric, difference in differences.items()
            }
            for name, differences in comparison.differences.items()
        },
    }


def as_csv(summaries: Mapping[str, Mapping[str, Benchmark]], comparison: Comparison | None = None) -> str:
    """One line a run, benchmark and metric; those of the comparison come as the run "difference"."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for run, summary in summaries.items():
        for name, benchmark in summary.items():
            for metric, figure in benchmark.figures.items():
                writer.writerow([run, name, metric, *_interval(figure).values(), "", "", "", ""])
    for name, differences in (comparison.differences if comparison else {}).items():
        for metric, difference in differences.items():
            writer.writerow(
                ["difference", name, metric, *_interval(difference.interval).values(), *vars(difference.signs).values()]
            )
    return file.getvalue()


def as_markdown(
    summaries: Mapping[str, Mapping[str, Benchmark]], comparison: Comparison | None = None, confidence: float = 0.95
) -> str:
    """A table a run, a line a benchmark; shares in per cent, lengths as they are, intervals in brackets."""
    parts = []
    for run, summary in summaries.items():
        metrics = in_order(metric for benchmark in summary.values() for metric in benchmark.figures)
        metrics.remove(_SAME_AS_AVG)
        head = ["benchmark", "problems", "n", *(f"{m} = {_SAME_AS_AVG}" if m == AVG else m for m in metrics)]
        lines = [
            [
                name,
                str(benchmark.problems),
                "-".join(map(str, sorted(set(benchmark.samples)))),
                *(_cell(metric, benchmark.figures.get(metric), benchmark.problems) for metric in metrics),
            ]
            for name, benchmark in summary.items()
            if name != OVERALL or len(summary) > 2
        ]
        parts.append(f"{run}\n\n{_table(head, lines)}")
    if comparison is not None:
        lines = [
            [
                name,
                metric,
                _cell(metric, difference.interval, difference.interval.problems, sign="+"),
                str(difference.interval.problems),
                f"{difference.signs.higher} / {difference.signs.lower} / {difference.signs.equal}",
                f"{difference.signs.p:.2g}",
            ]
            for name, differences in comparison.differences.items()
            if name != OVERALL or len(comparison.differences) > 2
            for metric, difference in differences.items()
            if metric != _SAME_AS_AVG
        ]
        head = ["benchmark", "metric", "difference", "problems", "higher / lower / equal", "sign test p"]
        parts.append(
            f"difference on {comparison.problems} problems of both"
            f" ({comparison.only_run} and {comparison.only_baseline} of one alone)\n\n{_table(head, lines)}"
        )
    note = f"Shares in per cent, with {confidence * 100:g}% intervals (BCa bootstrap over problems)."
    return "\n\n".join([*parts, note]) + "\n"


def _interval(figure: Interval) -> dict[str, float | int | None]:
    """Without nan, which JSON does not know."""
    return {name: None if math.isnan(value) else value for name, value in vars(figure).items()}


def _cell(metric: str, figure: Interval | None, problems: int, sign: str = "") -> str:
    if figure is None:
        return ""
    scale, form = (1, f"{sign}.0f") if metric in _LENGTHS else (100, f"{sign}.1f")
    text = f"{figure.estimate * scale:{form}}"
    if not math.isnan(figure.low):
        text += f" [{figure.low * scale:{form}}, {figure.high * scale:{form}}]"
    return text if figure.problems == problems else f"{text} ({figure.problems} problems)"


def _table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in [head, rule, *lines]
    )
