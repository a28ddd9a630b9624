"""Have a checkpoint name strategies for the problems of a training file, for algorithm.cipo.nudge.

    python -m verl_cipo.contexts --checkpoint DIR --data FILE.parquet --output FILE.parquet -n 4

Samples strategies for each problem from the problem alone, no answer and no attempt in view, and writes the file again
with a column that holds them. Train with data.train_files=FILE.parquet +algorithm.cipo.nudge.contexts=COLUMN. Exit
status 1 when it could not be done.
"""

import argparse
import sys
from collections.abc import Sequence

from verl_cipo.evaluation import strategies
from verl_cipo.evaluation.jsonl import told


def main(arguments: Sequence[str] | None = None) -> int:
    """Sample and write; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m verl_cipo.contexts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    strategies.add_arguments(parser)
    try:
        return strategies.run(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
