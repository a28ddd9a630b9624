"""Figures as JSON, CSV and Markdown."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from verl_cipo.evaluation.dumps.rows import Dumps
from verl_cipo.evaluation.dumps.summary import AVG, CHARS, OVERALL, TOKENS, Comparison, Summary, in_order
from verl_cipo.evaluation.intervals import Interval
from verl_cipo.evaluation.output import markdown_table, plain, shown

_CSV_HEAD = ("run", "benchmark", "metric", "estimate", "low", "high", "problems", "higher", "lower", "equal", "p")
_SAME_AS_AVG = "pass@1"
_LENGTHS = (CHARS, TOKENS)


def run_as_json(dumps: Dumps, summary: Mapping[str, Summary]) -> dict[str, Any]:
    """What was read, and the figures by benchmark and metric; null where there is no interval."""
    return {
        "files": [str(path) for path in dumps.files],
        "rows": dumps.rows,
        "skipped": [str(line) for line in dumps.skipped],
        "benchmarks": {
            name: {
                "problems": benchmark.problems,
                "samples": {"min": benchmark.samples[0], "max": benchmark.samples[1]},
                "figures": plain(benchmark.figures),
            }
            for name, benchmark in summary.items()
        },
    }


def comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """Differences by benchmark and metric, with the sign test's counts and p."""
    return {
        **vars(comparison),
        "differences": {
            name: {
                metric: plain(difference.interval) | {"sign_test": vars(difference.signs)}
                for metric, difference in differences.items()
            }
            for name, differences in comparison.differences.items()
        },
    }


def as_csv(summaries: Mapping[str, Mapping[str, Summary]], comparison: Comparison | None = None) -> str:
    """One line a run, benchmark and metric; those of the comparison come as the run "difference"."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_HEAD)
    for run, summary in summaries.items():
        for name, benchmark in summary.items():
            for metric, figure in benchmark.figures.items():
                writer.writerow([run, name, metric, *plain(figure).values(), "", "", "", ""])
    for name, differences in (comparison.differences if comparison else {}).items():
        for metric, difference in differences.items():
            figure, signs = plain(difference.interval), vars(difference.signs)
            writer.writerow(["difference", name, metric, *figure.values(), *signs.values()])
    return file.getvalue()


def as_markdown(
    summaries: Mapping[str, Mapping[str, Summary]], comparison: Comparison | None = None, confidence: float = 0.95
) -> str:
    """A table a run, a line a benchmark; shares in percent, lengths as they are, intervals in brackets."""
    parts = []
    for run, summary in summaries.items():
        metrics = in_order(metric for benchmark in summary.values() for metric in benchmark.figures)
        metrics.remove(_SAME_AS_AVG)
        head = ["benchmark", "problems", "n", *(f"{m} = {_SAME_AS_AVG}" if m == AVG else m for m in metrics)]
        lines = [
            [
                name,
                benchmark.problems,
                "-".join(map(str, sorted(set(benchmark.samples)))),
                *(_cell(metric, benchmark.figures.get(metric), benchmark.problems) for metric in metrics),
            ]
            for name, benchmark in summary.items()
            if name != OVERALL or len(summary) > 2
        ]
        parts.append(f"{run}\n\n{markdown_table(head, lines)}")
    if comparison is not None:
        lines = [
            [
                name,
                metric,
                _cell(metric, difference.interval, difference.interval.problems, sign="+"),
                difference.interval.problems,
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
            f" ({comparison.only_run} and {comparison.only_baseline} of one alone)\n\n{markdown_table(head, lines)}"
        )
    note = f"Shares in percent, with {confidence * 100:g}% intervals (BCa bootstrap over problems).\n"
    return "\n".join([*parts, note])


def _cell(metric: str, figure: Interval | None, problems: int, sign: str = "") -> str:
    scale, form = (1, f"{sign}.0f") if metric in _LENGTHS else (100, f"{sign}.1f")
    text = shown(figure, scale=scale, form=form)
    return text if figure is None or figure.problems == problems else f"{text} ({figure.problems} problems)"
