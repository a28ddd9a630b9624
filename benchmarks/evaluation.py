"""How long evaluating a dump takes, and how far pass@K and verl's best@K are off.

    python benchmarks/evaluation.py --json evaluation.json                  # 1,000 problems x 64 samples
    python benchmarks/evaluation.py --bias --json bias.json                 # 10,000 simulated problems a line

The dump is made first, in verl's layout; timed is `python -m verl_cipo.evaluate --dumps` on it, start included. Memory
is the peak of that process. --bias draws problems of a known chance p, each sample right with it, and estimates
1 - (1 - p)^K from n of them.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from verl_cipo.evaluation.intervals import interval
from verl_cipo.evaluation.passk import pass_at_k

CASES = ((4, 4, 0.25), (16, 8, 0.05), (16, 16, 0.05), (64, 32, 0.02), (64, 64, 0.02))


def write_dump(path: Path, *, problems: int, samples: int, chars: int) -> None:
    """A dump of `problems` x `samples` rows with votes; `chars` is the mean length of a response."""
    rng = np.random.default_rng(0)
    words = np.array(["so ", "we ", "add ", "the ", "two ", "sides ", "and ", "find ", "\\frac{1}{2} ", "=\n"])
    text = "".join(rng.choice(words, size=chars))
    with path.open("w") as file:
        for i in range(problems):
            chance = rng.beta(0.5, 0.5)
            for session in range(samples):
                right = bool(rng.random() < chance)
                start = int(rng.integers(chars))
                row = {
                    "input": f"user\nProblem {i}: {text[:400]}\nassistant\n",
                    "output": text[start : start + int(rng.integers(2 * chars))],
                    "gts": str(i),
                    "score": float(right),
                    "step": 1,
                    "acc": right,
                    "pred": str(i if right else i + int(rng.integers(1, 20))),
                    "uid": f"{i:032x}_{session}_0",
                }
                file.write(json.dumps(row) + "\n")


def time_evaluation(*, problems: int, samples: int, chars: int) -> dict[str, Any]:
    """Seconds and peak memory of evaluating such a dump."""
    with tempfile.TemporaryDirectory() as folder:
        dump, figures = Path(folder) / "made.jsonl", Path(folder) / "figures.json"
        write_dump(dump, problems=problems, samples=samples, chars=chars)
        command = [sys.executable, "-m", "verl_cipo.evaluate", "--dumps", dump, "--output", figures]
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds = time.perf_counter() - start
        return {
            "problems": problems,
            "samples": samples,
            "dump_mb": dump.stat().st_size / 1e6,
            "seconds": seconds,
            # Linux counts in KiB.
            "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6,
        }


def bias(*, n: int, k: int, p: float, draws: int) -> dict[str, Any]:
    """Mean error of pass@K and of verl's best@K, each with its 95 % interval over the draws.

    verl's function is called once for every number of right samples that was drawn, in place of once a draw.
    """
    from verl.trainer.ppo.metric_utils import bootstrap_metric

    right = np.random.default_rng(0).binomial(n, p, size=draws)
    truth = 1 - (1 - p) ** k
    best = {c: bootstrap_metric([1.0] * c + [0.0] * (n - c), k, [np.max])[0][0] for c in set(right.tolist())}
    errors = {
        "pass": interval(pass_at_k(n, right, k) - truth),
        "verl_best": interval([best[c] - truth for c in right.tolist()]),
    }
    return {"n": n, "k": k, "p": p, "truth": truth} | {name: vars(error) for name, error in errors.items()}


def main() -> int:
    """Run what was asked for and print it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=64, help="of each problem (default 64)")
    parser.add_argument("--chars", type=int, default=4000, help="mean length of a response (default 4000)")
    parser.add_argument("--bias", action="store_true", help="simulate the estimators' bias in place of timing")
    parser.add_argument("--draws", type=int, default=10_000, help="simulated problems of --bias (default 10000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    figures: Any
    if args.bias:
        figures = [bias(n=n, k=k, p=p, draws=args.draws) for n, k, p in CASES]
        print("| n | K | p | true pass@K | bias of pass@K | bias of verl's best@K |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for line in figures:
            cells = ["{estimate:+.4f} [{low:+.4f}, {high:+.4f}]".format(**line[name]) for name in ("pass", "verl_best")]
            print(f"| {line['n']} | {line['k']} | {line['p']} | {line['truth']:.4f} | {cells[0]} | {cells[1]} |")
    else:
        figures = time_evaluation(problems=args.problems, samples=args.samples, chars=args.chars)
        print("{problems} problems x {samples}, {dump_mb:.0f} MB: {seconds:.1f} s, {peak_mb:.0f} MB".format(**figures))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
