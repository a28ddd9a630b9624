"""What the verifiers do in a second, beside others, and what hostile answers take away from it, in one table.

    python benchmarks/verifiers.py --json verifiers.json
    python benchmarks/verifiers.py --only math

Math: checks a second by kind of answer, of `verl_cipo.rewards.math`, raw math-verify and verl's scorers on the same
pairs. Code: checks a second of a trivial program, beside verl's prime_code and a bare `python -c` a check; the shares
of 8 threads on 2 sandboxes; the processor time of this process for answers made to cost it; checks a second where half
the answers are hostile, beside what 2 workers could make of the time that each takes alone. All in one run; exit status
1 when a target is missed.
"""

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.json_file import write_json
from benchmarks.verification import code, maths

PARTS = {"math": maths.figures, "code": code.figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one verifier's part; default: all")
    parser.add_argument("--checks", type=int, default=3000, help="of the trivial program (default 3000)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement under load (default 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    args = parser.parse_args()
    figures = []
    print(f"{os.cpu_count()} CPUs\n\n| verifier | what | measured | target | met |\n|---|---|---|---|---|")
    for name in [args.only] if args.only else PARTS:
        for figure in PARTS[name](checks=args.checks, seconds=args.seconds):
            figures.append(figure)
            met = {None: "", True: "yes", False: "no"}[figure.met]
            shown = f"{figure.value:.3g} {figure.unit}".strip()
            print(f"| {figure.verifier} | {figure.what} | {shown} | {figure.target} | {met} |", flush=True)
    if args.json:
        write_json(args.json, [asdict(figure) for figure in figures])
    return int(any(figure.met is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
