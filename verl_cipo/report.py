"""A report of one or more runs: one HTML page that loads nothing, and its pictures.

    python -m verl_cipo.report RUN --output report.html
    python -m verl_cipo.report cipo=run1 cipo=run2 grpo=run3 --output report.html --png pictures
    python -m verl_cipo.report --follow RUN              # a page that follows a run while it trains

A RUN is a folder with metrics.jsonl (and metrics_1.jsonl, ... of earlier starts), and with validation/ where
trainer.validation_data_dir was that; or the metrics file alone. Runs with one label are seeds of one arm.
docs/report.md says what is shown.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verl_cipo.evaluation.files import check_output, write_whole
from verl_cipo.evaluation.jsonl import BadLine, BadLinesError, told
from verl_cipo.evaluation.report.examples import gather
from verl_cipo.evaluation.report.runs import files_of, read_arms, split_label

if TYPE_CHECKING:
    from verl_cipo.evaluation.report.page import Live
    from verl_cipo.evaluation.report.section import Section

LIBRARIES = {"matplotlib": "matplotlib", "jinja2": "jinja2", "yaml": "pyyaml"}
"""What is imported when it is needed -> the package that has it."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m verl_cipo.report", description="A report of one or more runs, as one HTML page."
    )
    made.add_argument("runs", metavar="RUN", nargs="+", help="[label=]folder, or [label=]file of metrics")
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, help="the HTML file to write")
    where.add_argument("--follow", action="store_true", help="serve the page while the runs train, until Ctrl-C")
    made.add_argument("--port", type=_port, default=8000, help="of --follow, 0: any free one, default: %(default)s")
    made.add_argument(
        "--every", type=_positive, default=10, metavar="SECONDS", help="between looks of --follow, default: %(default)s"
    )
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
    """Write what `parser` was asked for with --output. Returns the files written.

    Raises: BadLinesError naming all malformed lines, unless skip_bad; ValueError as in `read_arms`; OSError;
    ImportError without one of LIBRARIES.
    """
    from verl_cipo.evaluation.report import charts

    check_output("--output", args.output, reads=[split_label(given)[1] for given in args.runs])
    if args.png is not None:
        check_output("--png", args.png, folder=True)
    html, found, lines = make_page(args)
    if lines and not args.skip_bad:
        raise BadLinesError(lines)
    write_whole(args.output, html)
    written = [args.output]
    if args.png is not None:
        for chart in (chart for section in found for chart in section.charts):
            written.append(args.png / f"{chart.name}.png")
            write_whole(written[-1], charts.png(chart))
    for line in lines:
        print(f"left out: {line}", file=sys.stderr)
    return written


def make_page(args: argparse.Namespace, live: "Live | None" = None) -> "tuple[str, list[Section], list[BadLine]]":
    """The page's HTML, its sections, and the malformed lines, which are left out.

    live: of a page that is served; what is torn at the end of a file is then being written, and not malformed.
    Raises: ValueError as in `read_arms`; OSError.
    """
    from verl_cipo.evaluation.report import charts, page, sections

    bad: list[BadLine] = []
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
    lines = list({(line.path, line.line): line for line in bad if not (live and line.torn)}.values())
    html = page.page(
        title=args.title,
        arms=arms,
        sections=found,
        examples=examples,
        bad_lines=len(lines),
        window=args.smooth,
        live=live,
    )
    return html, found, lines


def follow_runs(args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C.

    Raises: FileNotFoundError where a run is not there at all; ValueError as in `read_arms`, but for runs that have
    not logged anything yet; OSError where the port is taken; ImportError as in `write_report`.
    """
    from verl_cipo.evaluation.report import live, page

    paths = [split_label(given)[1] for given in args.runs]
    for path in paths:
        path.stat()

    def waiting(what: str, now: "Live") -> str:
        return page.waiting_page(title=args.title, waiting=what, live=now)

    try:
        server = live.LiveServer(args.port, waiting("the files are being read", page.Live("", args.every)))
    except OSError as error:
        raise OSError(f"--port {args.port}: {told(error)}; give another one, or 0 for any free one") from error
    with server:
        print(f"{server.address} shows {', '.join(args.runs)}; Ctrl-C ends it", flush=True)
        try:
            live.follow(
                server,
                make=lambda now: make_page(args, now)[0],
                waiting=waiting,
                watch=lambda: live.state_of(file for path in paths for file in files_of(path)),
                seconds=args.every,
            )
        except KeyboardInterrupt:
            print(f"\nended; to keep the page: python -m verl_cipo.report {shlex.join(args.runs)} --output report.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 with a line on what is wrong."""
    made = parser()
    args = made.parse_args(arguments)
    if args.follow and args.png is not None:
        made.error("--follow writes no pictures: give --png with --output")
    try:
        if args.follow:
            follow_runs(args)
        else:
            print("\n".join(map(str, write_report(args))))
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        print(f"the report needs {error.name}: pip install {LIBRARIES[error.name]}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(told(error), file=sys.stderr)
        if isinstance(error, BadLinesError):
            print("fix or remove these lines, or leave them out with --skip-bad", file=sys.stderr)
        return 1
    return 0


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{value}: expected 0 to 65535")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


if __name__ == "__main__":
    sys.exit(main())
