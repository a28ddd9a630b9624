"""Is a correction worth more than another try for your model, and with which options would CIPO begin?

    python -m verl_cipo.probe --checkpoint DIR --data FILE.parquet [--reward FILE.py:FUNCTION]

Samples attempts at problems of the training data and a correction of each, before any training, and prints what they
say: how many groups have a signal, w->c against retry, how much of the attempts fits the correction prompt, the tokens
of a step, and the options that follow, with the reason of each. Exit status 1 when it could not be done.
"""

import argparse
import sys
from collections.abc import Sequence

from verl_cipo.evaluation.jsonl import told
from verl_cipo.evaluation.probe import command
from verl_cipo.rewards.outcome import VerifierInfrastructureError


def main(arguments: Sequence[str] | None = None) -> int:
    """Probe; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m verl_cipo.probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(arguments))
    except (ValueError, OSError, VerifierInfrastructureError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
