"""python -m verl_cipo.evaluate --second-turns PATH --output FILE.json: what a run's validation says of corrections.

PATH is a `corrections/{step}.jsonl`, or the folder of them, as CIPO writes below trainer.validation_data_dir.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.append_log import write_whole
from verl_cipo.evaluation.corrections import FIGURES, correction_figures
from verl_cipo.evaluation.intervals import CONFIDENCE
from verl_cipo.evaluation.jsonl import BadLine, BadLinesError, by_step, read_objects
from verl_cipo.evaluation.suite.results import percent, plain

_SHOWN = (
    "accuracy_turn1",
    "accuracy_turn2",
    "c2c",
    "c2w",
    "w2c",
    "retry",
    "w2c_over_retry",
    "w2w",
    "over_correction",
    "copy_rate",
    "copy_rate_failed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of --second-turns."""
    parser.add_argument("--second-turns", type=Path, required=True, metavar="PATH", help="a file, or a folder of steps")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="where the figures go")
    parser.add_argument("--confidence", type=float, default=CONFIDENCE, help=f"of intervals (default {CONFIDENCE})")
    parser.add_argument("--skip-bad", action="store_true", help="leave lines that are no records out, and count them")


def run(args: argparse.Namespace) -> int:
    """Figures of each step and benchmark, as JSON and as a table. Returns the exit status."""
    steps = []
    try:
        for file in _files(args.second_turns):
            records, bad = read_records(file)
            if bad and not args.skip_bad:
                raise BadLinesError(bad)
            benchmarks = sorted({str(record.get("data_source")) for record in records})
            figures = {
                name: correction_figures(
                    [record for record in records if str(record.get("data_source")) == name],
                    confidence=args.confidence,
                )
                for name in benchmarks
            }
            steps.append({"file": str(file), "bad_lines": len(bad), "benchmarks": plain(figures)})
    except BadLinesError as error:
        print(f"error: {error}\n{len(error.lines)} bad lines; --skip-bad leaves them out", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    told = {"confidence": args.confidence, "meanings": FIGURES, "steps": steps}
    write_whole(args.output, json.dumps(told, indent=2, ensure_ascii=False) + "\n")
    table = _markdown(steps)
    write_whole(args.output.with_suffix(".md"), table)
    print(table, end="")
    return 0


def read_records(file: Path) -> tuple[list[dict[str, Any]], list[BadLine]]:
    """The records of a `corrections/{step}.jsonl`, and the lines that are none."""
    records, bad = [], []
    for number, record in read_objects(file, bad):
        if missing := [name for name in ("uid", "anchor_correct", "corrections") if name not in record]:
            bad.append(BadLine(file, number, f"lacks {', '.join(missing)}"))
        else:
            records.append(record)
    return records, bad


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = list(by_step(path).values())
    if not found:
        raise FileNotFoundError(f"{path} is neither a JSONL file nor a folder of {{step}}.jsonl")
    return found


def _markdown(steps: list[dict[str, Any]]) -> str:
    """A row a step and benchmark, in percent with intervals."""
    lines = ["| step | benchmark | " + " | ".join(_SHOWN) + " |", "|" + "---|" * (2 + len(_SHOWN))]
    for step in steps:
        for name, figures in step["benchmarks"].items():
            cells = [percent(figures.get(figure)) for figure in _SHOWN]
            lines.append(f"| {Path(step['file']).stem} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
