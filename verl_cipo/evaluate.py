"""Figures for a paper: pass@K, maj@K, corrections, each with its interval.

    python -m verl_cipo.evaluate --dumps PATH... --output FILE.json             from what verl has written
    python -m verl_cipo.evaluate --suite NAME --checkpoint DIR --output DIR     from a checkpoint
    python -m verl_cipo.evaluate --second-turns PATH --output FILE.json         what a run's corrections change
    python -m verl_cipo.evaluate --rescore RUN --output FILE.json               accepted answers, judged more strictly

Each of these has options of its own: add --help behind it. Exit status 1 when the figures could not be had.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

# An option chooses the mode; a mode's module is only imported when it is wanted, since some need vLLM.
MODES = {
    "--dumps": "verl_cipo.evaluation.dumps.command",
    "--suite": "verl_cipo.evaluation.suite.command",
    "--second-turns": "verl_cipo.evaluation.suite.second_turns",
    "--rescore": "verl_cipo.evaluation.rescore.command",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mode that the arguments name; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = {argument.partition("=")[0] for argument in arguments}
    chosen = [option for option in MODES if option in given]
    if len(chosen) != 1:
        asked = bool(given & {"-h", "--help"})
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        if not asked:
            print(f"give one of {', '.join(MODES)}", file=sys.stderr)
        return 0 if asked else 2
    mode = importlib.import_module(MODES[chosen[0]])
    parser = argparse.ArgumentParser(prog="python -m verl_cipo.evaluate", description=mode.__doc__, allow_abbrev=False)
    mode.add_arguments(parser)
    if given & {"-h", "--help"}:
        parser.print_help()
        return 0
    return mode.run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
