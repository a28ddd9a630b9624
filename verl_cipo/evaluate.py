"""Figures for a paper: pass@K, maj@K, corrections, each with its interval.

    python -m verl_cipo.evaluate --dumps PATH... --output FILE.json             from what verl has written
    python -m verl_cipo.evaluate --suite NAME --checkpoint DIR --output DIR     from a checkpoint
    python -m verl_cipo.evaluate --second-turns PATH --output FILE.json         what a run's corrections change
    python -m verl_cipo.evaluate --rescore RUN --output FILE.json               accepted answers, judged more strictly

Each of these has options of its own: add --help behind it. Exit status 1 when the figures could not be had.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from verl_cipo.evaluation import corrections
from verl_cipo.evaluation.dumps import command as dumps
from verl_cipo.evaluation.dumps.rows import CORRECT_THRESHOLD
from verl_cipo.evaluation.files import check_output
from verl_cipo.evaluation.intervals import CONFIDENCE
from verl_cipo.evaluation.jsonl import BadLinesError, EvaluationError, told
from verl_cipo.evaluation.options import real, share
from verl_cipo.evaluation.rescore import command as rescore
from verl_cipo.evaluation.suite import command as suite
from verl_cipo.rewards.outcome import VerifierInfrastructureError

MODES = {"--dumps": dumps, "--suite": suite, "--second-turns": corrections, "--rescore": rescore}
"""By the option that chooses it: a module with `add_arguments`, `run`, and `SHARED_OPTIONS`, names of those below."""


_SHARED_OPTIONS = {
    "--output": {"type": Path, "required": True, "metavar": "FILE.json", "help": "where the figures go"},
    "--confidence": {"type": share, "default": CONFIDENCE, "help": "of intervals (default %(default)s)"},
    "--correct-threshold": {
        "type": real,
        "default": CORRECT_THRESHOLD,
        "metavar": "SCORE",
        "help": "a score above it is right, where there is no acc (default %(default)s)",
    },
    "--skip-bad": {"action": "store_true", "help": "leave lines that are no rows out, and count them"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mode that the arguments name; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    chosen = [mode for option, mode in MODES.items() if option in given]
    if len(chosen) != 1:
        if given & {"-h", "--help"}:
            print(__doc__)
            return 0
        near = [mode for option in given for mode in difflib.get_close_matches(option, MODES, n=1)]
        hint = f"; did you mean {' or '.join(near)}?" if near and not chosen else ""
        print(f"give one of {', '.join(MODES)}{hint} (--help says what each is for)", file=sys.stderr)
        return 2
    mode = chosen[0]
    parser = argparse.ArgumentParser(prog="python -m verl_cipo.evaluate", description=mode.__doc__, allow_abbrev=False)
    mode.add_arguments(parser)
    for option in mode.SHARED_OPTIONS:
        parser.add_argument(option, **_SHARED_OPTIONS[option])
    if given & {"-h", "--help"}:
        parser.print_help()
        return 0
    args = parser.parse_args(arguments)
    try:
        _check_outputs(args, folder="--output" not in mode.SHARED_OPTIONS, resumes=mode is rescore)
        return mode.run(args)
    except (ValueError, OSError, VerifierInfrastructureError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        if isinstance(error, BadLinesError):
            print(f"{len(error.lines)} bad lines; --skip-bad leaves them out", file=sys.stderr)
        return 1


def _check_outputs(args: argparse.Namespace, *, folder: bool, resumes: bool) -> None:
    """Raises: EvaluationError when --output cannot be written. A file that is replaced, and not continued, is named."""
    given = [getattr(args, name, None) for name in ("dumps", "compare", "second_turns", "rescore")]
    reads = [path for one in given if one for path in (one if isinstance(one, list) else [one])]
    if not resumes or not args.output.is_file():
        check_output("--output", args.output, folder=folder, reads=reads)
    for option, suffix in (("csv", ".csv"), ("markdown", ".md")):
        if getattr(args, option, False):
            beside = args.output.with_suffix(suffix)
            if beside == args.output:
                raise EvaluationError(f"--{option} {beside}: is --output itself, which takes JSON: end that in .json")
            check_output(f"--{option}", beside, reads=reads)


if __name__ == "__main__":
    sys.exit(main())
