"""The demo: CIPO in real verl with real vLLM on a CPU, from scratch.

    python examples/tiny/run.py --output outputs/demo            # about 10 minutes on 2 cores
    python examples/tiny/run.py --output outputs/demo --steps 3  # a smoke run

    python examples/tiny/run.py --output outputs/demo --resume   # resumes from the newest checkpoint

Makes a small model, tokenizer and data set (prepare.py), then trains through `verl.trainer.main_ppo` with
`algorithm.adv_estimator=cipo`. Writes metrics.jsonl, curves.png, summary.json, train.log, and the trained weights as a
Hugging Face folder, model/, into --output. `make chat` (chat.py) asks the trained model a question.
Further options go to verl unchanged: `run.py --output DIR +algorithm.cipo.lambda_corr=0.5`.
"""

import argparse
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.tiny import prepare, show
from examples.tiny.task import Task, overrides
from verl_cipo.evaluation.suite.engine import weight_files
from verl_cipo.integration.cpu import launch

STEPS = 40
LEARNING_RATE = 1e-4
"""5e-4 undid the supervised start within ten steps (pass@1 .63 -> .26), 2e-4 learned more slowly than this."""
QUICK_BELOW = 10
"""Runs of fewer steps than this are smoke runs: they use the quickly made model."""
SHOWN = 3
"""Corrections that are printed at the end."""
# GRPO with second turns in its validation is CIPO without corrections in training.
ALGORITHMS = {
    "cipo": ["algorithm.adv_estimator=cipo"],
    "grpo": ["algorithm.adv_estimator=cipo", "+algorithm.cipo.replay_fraction=0"],
}
"""What --algo may be -> its options of verl."""
TRAINER_LINE = re.compile(r"\[verl_cipo\] trainer (\w+)")


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"RL steps (default {STEPS})")
    parser.add_argument("--algo", choices=ALGORITHMS, default="cipo", help="grpo runs the baseline")
    parser.add_argument("--resume", action="store_true", help="resume from the newest checkpoint in --output")
    parser.add_argument(
        "--save-every", type=int, default=0, metavar="STEPS", help="steps between checkpoints (default: one at the end)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the model, the data and their order")
    return start(parser, demo)


def start(parser: argparse.ArgumentParser, demo: Callable[[argparse.Namespace, list[str]], None]) -> int:
    """Parse the command line, with --steps and options for verl in it, and run `demo`; returns the exit code."""
    args, verl_options = parser.parse_known_args()
    if args.steps < 1:
        parser.error(f"--steps {args.steps}: at least 1")
    unknown = [option for option in verl_options if "=" not in option]
    if unknown:
        parser.error(f"neither an option of the demo nor KEY=VALUE for verl: {' '.join(unknown)}")
    # Ended from outside, the run must still end the processes it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Around all of it: --output may be the folder of a run that is under way, which must lose nothing.
    with launch.only_run():
        demo(args, verl_options)
    return 0


def demo(args: argparse.Namespace, verl_options: list[str]) -> None:
    """Make the task, train, write and print the summary, and keep the weights."""
    quick = args.steps < QUICK_BELOW
    started = time.monotonic()
    output = args.output.resolve()
    folder = output / ("task_quick" if quick else "task")
    made = prepare.prepare(folder, replace(prepare.QUICK if quick else prepare.FULL, seed=args.seed))
    print(prepare.report(made, quick))

    if not args.resume:
        forget(output)
    # Another attempt at a problem is what a correction is held against.
    task = Task(folder=folder, val_n=2)
    options = [
        *overrides(task),
        *ALGORITHMS[args.algo],
        f"data.seed={args.seed}",
        f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}",
        f"trainer.total_training_steps={args.steps}",
        "trainer.total_epochs=1000",
        f"trainer.test_freq={args.steps if quick else 20}",
        f"trainer.save_freq={args.save_every or args.steps}",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        *verl_options,
    ]
    resume = output / "checkpoints" if args.resume else None
    train(options, output=output, algo=args.algo, steps=args.steps, seed=args.seed, started=started, resume=resume)
    print(f"\n{show.samples(output, limit=SHOWN)}", end="")
    if keep_weights(output):
        print(f"weights: {output / 'model'}; make chat asks them a question")


def forget(output: Path) -> None:
    """Remove what an earlier run left in its folder, but for the task."""
    for stale in ("rollouts", "validation", "checkpoints", "model"):
        shutil.rmtree(output / stale, ignore_errors=True)


def keep_weights(output: Path) -> bool:
    """Copy the last checkpoint's Hugging Face folder to `model`; False where verl was told to save no such thing."""
    saved = launch.checkpoint_to_resume(output / "checkpoints", output / "metrics.jsonl")
    if saved is None or not weight_files(saved / "actor" / "huggingface"):
        return False
    shutil.rmtree(output / "model", ignore_errors=True)
    shutil.copytree(saved / "actor" / "huggingface", output / "model")
    return True


def train(
    options: list[str],
    *,
    output: Path,
    algo: str,
    steps: int,
    seed: int,
    started: float,
    resume: Path | None,
    env: dict[str, str] | None = None,
) -> None:
    """Train with `options`, show how far it is, and write and print the summary.

    started: `time.monotonic()` when the whole began; resume: folder of the checkpoints to go on from; env: as in
    `launch.train`.
    """
    options = [
        "trainer.val_before_train=true",
        f"trainer.rollout_data_dir={output / 'rollouts'}",
        f"trainer.validation_data_dir={output / 'validation'}",
        f"trainer.default_local_dir={output / 'checkpoints'}",
        *options,
    ]
    with tqdm(total=steps, desc="starting Ray, FSDP2 and vLLM (about 90 s)", unit="step") as bar:

        def advance(line: dict) -> None:
            bar.set_description(f"{algo} training")
            data = line["data"]
            shown = {"right": data.get("cipo/accuracy/base"), "w->c": data.get("cipo/transitions/w2c")}
            bar.set_postfix({name: f"{value:.2f}" for name, value in shown.items() if value is not None})
            bar.update(line["step"] - bar.n)

        peak_mb = launch.train(options, output=output, on_line=advance, resume=resume, env=env)

    lines = launch.metrics_lines(output / "metrics.jsonl")
    trainer = TRAINER_LINE.search((output / "train.log").read_text(errors="replace"))
    summary = show.summarise(
        lines,
        adv_estimator=algo,
        trainer=trainer.group(1) if trainer else "PPOTrainerSync",
        seed=seed,
        wall_s=round(time.monotonic() - started, 1),
        peak_rss_mb=peak_mb,
    )
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    show.plot(lines, output / "curves.png")
    print(show.table(summary))
    print(f"curves: {output / 'curves.png'}  summary: {output / 'summary.json'}  log: {output / 'train.log'}")


if __name__ == "__main__":
    sys.exit(main())
