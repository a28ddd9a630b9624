"""What a step of an arm is worth: how fast pass@1 grows, to first order, over GRPO with as many responses.

    python benchmarks/step_gain.py --task hard --seed 5 --after 100 --batches 120 \\
        --arms balanced balanced+aux.coef=0 balanced_own grpo_own

Two runs of one arm end some points apart, which is as much as arms do. This asks for less. At one policy, which GRPO
has trained for --after steps, each arm of the learning experiment rolls out its steps and takes none. Adam moves
parameter i by the learning rate times m_i / sqrt(v_i), where m and v follow the means of the gradient g and of g^2, so

    gain = sum_i G_i E[g_i] / sqrt(E[g_i^2])

is proportional to what a step adds to pass@1, whose gradient G a larger sample gives. It falls with what points
elsewhere and with noise. Both means are over the arm's batches, which hold the same problems in all arms. The standard
error is a jackknife over ten blocks of them. Behind an arm knobs may follow, `balanced+aux.coef=0.05`. The replica
rolls out: plain PyTorch, no verl.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.experiment.arms import ARMS, CONTROL, Arm
from benchmarks.experiment.options import KNOB
from benchmarks.experiment.replica import Replica
from benchmarks.experiment.setting import TASKS, Setting, prepared
from benchmarks.json_file import write_json
from benchmarks.transfer import Goal, flat_gradient, read_questions

BLOCKS = 10
SAMPLES = 16
"""Attempts at each training problem for the gradient of pass@1."""


class Still(Replica):
    """A trainer that takes no step, and keeps the gradient of each."""

    def __init__(self, folder: Path, arm: Arm, seed: int, setting: Setting, weights: dict[str, Tensor]):
        super().__init__(folder, arm, seed, setting)
        self.policy.model.load_state_dict(weights)
        self.gradients: list[Tensor] = []

    def _take(self) -> float:
        self.gradients.append(flat_gradient(self.policy))
        return float(self.gradients[-1].norm())


def gain(goal: Tensor, gradients: Tensor) -> float:
    """Sum over parameters of goal * mean / root of the mean square; goal: (P,), gradients: (batches, P)."""
    mean, square = gradients.mean(dim=0), (gradients**2).mean(dim=0)
    return float(-(goal * mean / (square.sqrt() + 1e-8)).sum())


def without_blocks(goal: Tensor, gradients: Tensor) -> np.ndarray:
    """(BLOCKS,) the gain without each of ten blocks of batches. Raises: ValueError on fewer batches than blocks."""
    if len(gradients) < BLOCKS:
        raise ValueError(f"{len(gradients)} batches: expected {BLOCKS} or more")
    blocks = np.array_split(np.arange(len(gradients)), BLOCKS)
    rest = [np.setdiff1d(np.arange(len(gradients)), block) for block in blocks]
    return np.array([gain(goal, gradients[torch.from_numpy(places)]) for places in rest])


def jackknife_error(values: np.ndarray) -> float:
    """Standard error of a figure from its values without each block."""
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))


def arm_of(text: str) -> Arm:
    """An arm of the experiment, with the knobs behind it. Raises: argparse.ArgumentTypeError on an unknown arm."""
    name, *own = text.split("+")
    if name not in ARMS or ARMS[name].algo is None:
        trained = ", ".join(arm.name for arm in ARMS.values() if arm.algo)
        raise argparse.ArgumentTypeError(f"{name}: expected one of {trained}")
    return replace(ARMS[name], name=text, options=(*ARMS[name].options, *(f"{KNOB}{knob}" for knob in own)))


def compare(goal: Tensor, gradients: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Of each arm: gain over that of the first, less 1, its standard error, and the mean length of a gradient."""
    base, *_ = gradients.values()
    whole, parts = gain(goal, base), without_blocks(goal, base)
    return {
        name: {
            "gain": gain(goal, own) / whole - 1,
            "gain_se": jackknife_error(without_blocks(goal, own) / parts),
            "length": float(own.norm(dim=1).mean()),
        }
        for name, own in gradients.items()
    }


def table(found: dict[str, dict[str, float]]) -> str:
    """In Markdown."""
    lines = [f"| arm | gain of a step, over {CONTROL} | length of a gradient |", "|---|---|---|"]
    for name, one in found.items():
        lines.append(f"| {name} | {100 * one['gain']:+.1f} % ± {100 * one['gain_se']:.1f} | {one['length']:.2f} |")
    return "\n".join(lines)


def measure(folder: Path, setting: Setting, arms: Sequence[Arm], args: argparse.Namespace) -> dict[str, Any]:
    """Train the policy, take the gradient of pass@1 and those of the arms, CONTROL first."""
    # Seeds of their own, so that no sample is shared with the arms' steps.
    trainer = Replica(folder, ARMS[CONTROL], args.seed + 1000, setting)
    for step in tqdm(range(1, args.after + 1), desc=CONTROL, dynamic_ncols=True, disable=not args.after):
        trainer.step(step)
    weights = {name: value.clone() for name, value in trainer.policy.model.state_dict().items()}
    goal = Goal.of(trainer.policy, read_questions(folder), samples=SAMPLES)
    print(f"gradient of pass@1: length {goal.length:.3f}, cosine of its two halves {goal.agreement:.2f}", flush=True)
    gradients = {}
    for arm in (ARMS[CONTROL], *arms):
        still = Still(folder, arm, args.seed, setting, weights)
        for step in tqdm(range(1, args.batches + 1), desc=arm.name, dynamic_ncols=True):
            still.step(step)
        gradients[arm.name] = torch.stack(still.gradients)
    return {"agreement": goal.agreement, "arms": compare((goal.halves[0] + goal.halves[1]) / 2, gradients)}


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), default="full", help="of the learning experiment, default full")
    parser.add_argument("--seed", type=int, default=2, help="of the task, its model and the sampling (default 2)")
    parser.add_argument("--after", type=int, default=0, help="steps of GRPO before (default 0, the starting model)")
    parser.add_argument("--batches", type=int, default=120, help="steps of each arm (default 120)")
    parser.add_argument("--arms", type=arm_of, nargs="+", required=True, metavar="ARM[+KNOB=VALUE...]")
    parser.add_argument("--output", type=Path, default=Path("outputs/step_gain"), help="where tasks are kept")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    if args.batches < BLOCKS:
        parser.error(f"--batches {args.batches}: expected {BLOCKS} or more")
    setting, folder = TASKS[args.task], args.output / args.task / f"seed{args.seed}"
    prepared(setting, args.seed, folder)
    found = measure(folder, setting, args.arms, args)
    print(table(found["arms"]))
    if args.json:
        write_json(args.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
