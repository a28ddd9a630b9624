"""A report of one or more runs: one HTML page that loads nothing, and its pictures.

    python -m verl_cipo.report RUN --output report.html
    python -m verl_cipo.report cipo=run1 cipo=run2 grpo=run3 --output report.html --png pictures

A RUN is a folder with metrics.jsonl (and metrics_1.jsonl, ... of earlier starts), and with validation/ where
trainer.validation_data_dir was that; or the metrics file alone. Runs with one label are seeds of one arm.
docs/report.md says what is shown.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from verl_cipo.evaluation.jsonl import BadLine, BadLinesError, check_output, told, write_whole
from verl_cipo.evaluation.report.examples import gather
from verl_cipo.evaluation.report.runs import read_arms


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m verl_cipo.report", description="A report of one or more runs, as one HTML page."
    )
    made.add_argument("runs", metavar="RUN", nargs="+", help="[label=]folder, or [label=]file of metrics")
    made.add_argument("--output", type=Path, required=True, help="the HTML file to write")
    made.add_argument("--png", type=Path, metavar="DIR", help="also write every picture as a PNG into this folder")
    made.add_argument("--title", default="CIPO report", help="default: %(default)s")
    made.add_argument("--smooth", type=_positive, default=5, metavar="STEPS", help="running mean, default: %(default)s")
    made.add_argument("--examples", type=_positive, default=400, help="corrections to show, default: %(default)s")
    made.add_argument(
        "--characters", type=_positive, default=4000, help="longest text of an example, default: %(default)s"
    )
    made.add_argument("--skip-bad", action="store_true", help="leave malformed lines out, count them and say so")
    return made


def write_report(args: argparse.Namespace) -> list[Path]:
    """Write what `parser` was asked for. Returns the files written.

    Raises: BadLinesError naming all malformed lines, unless skip_bad; FileNotFoundError, ValueError as in `read_arms`;
    ImportError without matplotlib or jinja2.
    """
    from verl_cipo.evaluation.report import charts, page, sections

    bad: list[BadLine] = []
    check_output("--output", args.output)
    if args.png is not None:
        check_output("--png", args.png, folder=True)
    arms = read_arms(args.runs, bad)
    if len(arms) > len(charts.COLORS):
        raise ValueError(
            f"{len(arms)} arms, and {len(charts.COLORS)} colors that can be told apart: give seeds of one arm "
            "the same label, as in cipo=run1 cipo=run2, or make two reports"
        )
    found = sections.sections(arms, window=args.smooth, bad=bad)
    runs = [run for arm in arms for run in arm.runs]
    examples = gather(runs, limit=args.examples, characters=args.characters, bad=bad)
    # A dump of corrections is read for the examples and for pass@K.
    lines = list({(line.path, line.line): line for line in bad}.values())
    if lines and not args.skip_bad:
        raise BadLinesError(lines)
    html = page.page(
        title=args.title,
        arms=arms,
        sections=found,
        examples=examples,
        bad_lines=len(lines),
        window=args.smooth,
    )
    write_whole(args.output, html)
    written = [args.output]
    if args.png is not None:
        for chart in (chart for section in found for chart in section.charts):
            written.append(args.png / f"{chart.name}.png")
            write_whole(written[-1], charts.png(chart))
    for line in lines:
        print(f"left out: {line}", file=sys.stderr)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with a line on what is wrong."""
    args = parser().parse_args(arguments)
    try:
        written = write_report(args)
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "jinja2"):
            raise
        print(f"the report needs {error.name}: pip install {error.name}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(told(error), file=sys.stderr)
        if isinstance(error, BadLinesError):
            print("fix or remove these lines, or leave them out with --skip-bad", file=sys.stderr)
        return 1
    print("\n".join(map(str, written)))
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
