"""The demo with a language model: CIPO in real verl with real vLLM on a CPU.

    python examples/lm/run.py --output outputs/demo-lm
    python examples/lm/run.py --output outputs/demo-lm --steps 2  # a smoke run

SmolLM2-135M-Instruct learns sums of reasoning-gym (prepare.py). Writes metrics.jsonl, curves.png, summary.json,
examples.txt, train.log and the trained weights (model/) into --output. Further options go to verl unchanged, as in
examples/tiny/run.py.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.lm import prepare
from examples.tiny import run as tiny
from examples.tiny import show
from examples.tiny.task import Task, overrides

STEPS = 11
QUICK_BELOW = 5
"""Runs of fewer steps than this are smoke runs: less data, and a warm-up of two steps."""
LEARNING_RATE = 2e-5
PROMPTS, N = 8, 4
THREADS = min(len(os.sched_getaffinity(0)), 4)
"""Of each process: a model of this size keeps them busy."""
SHOWN = 8
"""Corrections in examples.txt, as many of each transition as there are."""
OPTIONS = [
    "reward.custom_reward_function.path=pkg://verl_cipo.rewards.reasoning_gym",
    "reward.custom_reward_function.name=compute_score",
    # The largest weight, the embedding, has 113 MB.
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=256",
    # The logits of a micro-batch are 49,152 numbers a token, padding included.
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1024",
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.rollout.max_num_seqs=64",
    # This tokenizer knows the sentence.
    "++algorithm.cipo.prompt.standalone=null",
]


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo-lm"))
    parser.add_argument("--steps", type=int, default=STEPS, help=f"RL steps (default {STEPS})")
    parser.add_argument("--algo", choices=tiny.ALGORITHMS, default="cipo", help="grpo runs the baseline")
    try:
        return tiny.start(parser, demo)
    except prepare.Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def demo(args: argparse.Namespace, verl_options: list[str]) -> None:
    """Make the task, train, and write and print the summary and a few corrections."""
    quick = args.steps < QUICK_BELOW
    started = time.monotonic()
    output = args.output.resolve()
    folder = output / ("task_quick" if quick else "task")
    settings = prepare.QUICK if quick else prepare.Settings()
    made = prepared(folder, settings)
    print(f"loss of the warm-up {made['loss'][0]} -> {made['loss'][-1]}")
    tiny.forget(output)
    task = Task(
        folder=folder,
        prompt_length=96,
        correction_prompt_length=224,
        response_length=48,
        train_batch_size=PROMPTS,
        n=N,
        val_n=2,
    )
    options = [
        *overrides(task),
        *OPTIONS,
        f"data.val_files={folder / 'data' / 'test.parquet'}",
        *tiny.ALGORITHMS[args.algo],
        f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}",
        f"trainer.total_training_steps={args.steps}",
        "trainer.total_epochs=1000",
        f"trainer.test_freq={args.steps}",
        f"trainer.save_freq={args.steps}",
        "actor_rollout_ref.actor.checkpoint.save_contents=[hf_model]",
        *verl_options,
    ]
    tiny.train(
        options,
        output=output,
        algo=args.algo,
        steps=args.steps,
        seed=settings.seed,
        started=started,
        resume=None,
        env={"OMP_NUM_THREADS": str(THREADS)},
    )
    text = show.samples(output, limit=SHOWN)
    (output / "examples.txt").write_text(text)
    print(f"\n{text}examples: {output / 'examples.txt'}")
    if tiny.keep_weights(output):
        shutil.rmtree(output / "checkpoints")
        print(f"weights: {output / 'model'}")


def prepared(folder: Path, settings: prepare.Settings) -> dict[str, Any]:
    """What `prepare.prepare` returns, from a process of its own: this one would keep 2 GB. Raises: prepare.Missing."""
    prepare.find_weights()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(prepare.prepare, folder, settings).result()


if __name__ == "__main__":
    sys.exit(main())
