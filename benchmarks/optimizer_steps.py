"""Optimizer steps, rows and padding rows of GRPO and CIPO at equal settings, counted in real runs.

    python benchmarks/optimizer_steps.py                                # about 4 minutes on 2 cores
    python benchmarks/optimizer_steps.py --json outputs/optimizer_steps.json --mini-batches 4 --steps 2

Both train the quickly made model of examples/tiny through `verl.trainer.main_ppo` with the same prompts, rollouts and
`ppo_mini_batch_size`. The steps are read off the optimizer's own state in the last checkpoint, the rows off verl's
dumps of the rollouts, which list what was trained.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.json_file import write_json
from examples.tiny import prepare
from examples.tiny.task import Task, overrides
from verl_cipo.integration.cpu import launch

PROMPTS, N = 8, 4


def count(folder: Path, task: Path, algo: str, *, steps: int, mini_batches: int, options: list[str]) -> dict[str, int]:
    """Train ``steps`` iterations with ``algo`` and count what was done."""
    launch.train(
        [
            *overrides(Task(folder=task, train_batch_size=PROMPTS, n=N, val_n=1)),
            f"algorithm.adv_estimator={algo}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // mini_batches}",
            f"trainer.total_training_steps={steps}",
            f"trainer.save_freq={steps}",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            f"trainer.rollout_data_dir={folder / 'rollouts'}",
            f"trainer.default_local_dir={folder / 'checkpoints'}",
            *options,
        ],
        output=folder,
        timeout=900,
    )
    actor = folder / "checkpoints" / f"global_step_{steps}" / "actor"
    optimizer = torch.load(actor / "optim_world_size_1_rank_0.pt", weights_only=False)["state"]
    taken = {int(getattr(state["step"], "_local_tensor", state["step"])) for state in optimizer.values()}
    if len(taken) != 1:
        raise RuntimeError(f"parameters took different numbers of optimizer steps: {sorted(taken)}")
    rows = [
        json.loads(line)["uid"]
        for step in range(1, steps + 1)
        for line in (folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()
    ]
    padding = sum(uid.startswith("pad") for uid in rows)
    return {"optimizer_steps": taken.pop(), "rows": len(rows) - padding, "padding_rows": padding}


def main() -> int:
    """Run both and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="iterations of each run (default 2)")
    parser.add_argument("--mini-batches", type=int, default=2, help=f"mini-batches of {PROMPTS} prompts (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args, options = parser.parse_known_args()
    if PROMPTS % args.mini_batches:
        parser.error(f"--mini-batches {args.mini_batches}: expected the divisors of {PROMPTS}")
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        task = Path(scratch) / "task"
        prepare.prepare(task, prepare.QUICK)
        for algo in ("grpo", "cipo"):
            figures[algo] = count(
                Path(scratch) / algo,
                task,
                algo,
                steps=args.steps,
                mini_batches=args.mini_batches,
                options=options if algo == "cipo" else [o for o in options if "algorithm.cipo" not in o],
            )
    print(f"{args.steps} iterations, {PROMPTS} prompts x {N} rollouts, {args.mini_batches} mini-batches each")
    print(f"{'':6}{'optimizer steps':>17}{'rows':>8}{'padding rows':>14}")
    for algo, row in figures.items():
        print(f"{algo:6}{row['optimizer_steps']:>17}{row['rows']:>8}{row['padding_rows']:>14}")
    if args.json:
        write_json(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
