"""Ask the demo's model a question, and let it correct its answer.

    python examples/tiny/chat.py [QUESTION]

Further options are those of `python -m verl_cipo.chat`, which does the work.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.tiny.evaluate import INSTRUCTION
from examples.tiny.prepare import QUICK
from examples.tiny.problems import sample_problem
from verl_cipo import chat


def main(arguments: Sequence[str] | None = None) -> int:
    """Say what the model has learned, and ask; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"), help="folder of the demo")
    args, more = parser.parse_known_args(arguments)
    model = args.output / "model"
    if not model.is_dir():
        print(f"error: {model} is not there: make demo trains the model", file=sys.stderr)
        return 1
    problem = sample_problem(random.Random(), QUICK.level, from_held_out=True)
    print(f"The model has learned problems such as this one, whose answer is {problem.answer}:\n{problem.question}\n")
    as_in_training = ["--instruction", INSTRUCTION, "--prompt", "standalone=false"]
    return chat.main([*as_in_training, "--checkpoint", str(model), *more])


if __name__ == "__main__":
    sys.exit(main())
