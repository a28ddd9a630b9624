"""One run of the learning experiment: train an arm through verl, sample the held-out problems, keep what came of it.

A run is a folder `{arm}_seed{seed}`; what is done is not done again. `result.json` is written last and says what it was
made with, so that a folder made with other settings is refused and not mixed in.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.experiment import replica
from benchmarks.experiment.arms import Arm
from benchmarks.experiment.options import OWN
from benchmarks.experiment.setting import TURNS, Setting, prepared, record
from examples.tiny.task import Task, overrides
from verl_cipo.evaluation.jsonl import BadLine, BadLinesError, read_objects
from verl_cipo.integration.cpu import launch

RESULT = "result.json"
MADE_WITH = "made_with.json"
WEIGHTS_DIFFER = 1e-3
"""Between the probabilities of a token in training and in vLLM, both in float32: above it, other weights sampled it."""
SUITE = "held_out"
UNTRAINED = {"commit": "", "tokens": 0, "train_s": 0.0, "wall_s": 0.0}


def run(arm: Arm, seed: int, setting: Setting, output: Path, *, engine: str = "verl") -> dict[str, Any]:
    """The result of one run, made now or read from `output`.

    engine: verl, or replica for `experiment.replica`, which has no `commit`.

    Returns:
        `right`: per held-out problem, right attempts out of `samples`; `turns`: per problem, the numbers of
        :data:`TURNS` among its corrections, copies of a wrong attempt the last; `tokens`: generated in training;
        `train_s`: seconds of verl's steps; `wall_s`: with start-up; `commit`: that it was trained with; `made_with`.

    Raises:
        ValueError: the folder holds a run made with other settings.
        TrainingFailed: verl ended with an error.
        RuntimeError: steps are missing, rollouts came from other weights, or the evaluation ended with an error.
    """
    folder = output / f"{arm.name}_seed{seed}"
    made_with = {"arm": record(arm), "seed": seed, "setting": record(setting)}
    _claim(folder, made_with)
    if (folder / RESULT).exists():
        return json.loads((folder / RESULT).read_text())
    task = output / "tasks" / f"seed{seed}"
    if engine == "verl" and (own := [option for option in arm.options if option.startswith(OWN)]):
        raise ValueError(f"arm {arm.name} has {own[0]}, which verl does not know: use --engine replica")
    prepared(setting, seed, task)
    if engine == "replica":
        return _kept(folder, {**replica.run(arm, seed, setting, task, folder), "made_with": made_with})
    trained = _train(arm, seed, setting, task, folder) if arm.algo else UNTRAINED
    evaluation = folder / "evaluation"
    checkpoint = folder / "checkpoint" if arm.algo else task / "model"
    _sample(checkpoint, setting, task, evaluation, log=folder / "evaluate.log")
    return _kept(folder, {**trained, **counts(evaluation), "made_with": made_with})


def _kept(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """`result`, written into the folder of its run."""
    (folder / "result.tmp").write_text(json.dumps(result) + "\n")
    (folder / "result.tmp").replace(folder / RESULT)
    return result


def _claim(folder: Path, made_with: dict[str, Any]) -> None:
    claimed = folder / MADE_WITH
    if claimed.exists() and (before := json.loads(claimed.read_text())) != made_with:
        raise ValueError(f"{folder} holds a run made with {before}, not {made_with}: remove it or use another --output")
    folder.mkdir(parents=True, exist_ok=True)
    claimed.write_text(json.dumps(made_with) + "\n")


def _train(arm: Arm, seed: int, setting: Setting, task: Path, folder: Path) -> dict[str, Any]:
    """Train, and leave the last weights in `checkpoint` as a Hugging Face folder."""
    record = folder / "trained.json"
    if record.exists():
        return json.loads(record.read_text())
    started = time.monotonic()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    shapes = Task(folder=task, train_batch_size=setting.prompts, n=setting.n * arm.rollouts)
    launch.train(
        [
            *overrides(shapes),
            f"algorithm.adv_estimator={arm.algo}",
            f"data.seed={seed}",
            *([f"+algorithm.cipo.seed={seed}"] if arm.algo == "cipo" else []),
            f"actor_rollout_ref.actor.optim.lr={setting.learning_rate}",
            f"trainer.total_training_steps={setting.steps}",
            "trainer.total_epochs=1000",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            f"trainer.save_freq={setting.steps}",
            "actor_rollout_ref.actor.checkpoint.save_contents=[model,hf_model]",
            f"trainer.default_local_dir={folder / 'checkpoints'}",
            *arm.options,
        ],
        output=folder,
    )
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    last = folder / "checkpoints" / f"global_step_{setting.steps}" / "actor" / "huggingface"
    shutil.move(last, folder / "checkpoint")
    shutil.rmtree(folder / "checkpoints")
    steps = [line["data"] for line in launch.metrics_lines(folder / "metrics.jsonl")]
    steps = [data for data in steps if "training/global_step" in data]
    if len(steps) != setting.steps:
        raise RuntimeError(f"{folder / 'metrics.jsonl'} holds {len(steps)} steps of {setting.steps}")
    check_weights(steps, folder)
    rows = setting.prompts * setting.n * arm.rollouts
    found = {
        "commit": _commit(),
        "tokens": round(sum(_generated(data, rows) for data in steps)),
        "train_s": round(sum(data["timing_s/step"] for data in steps), 1),
        "wall_s": round(time.monotonic() - started, 1),
    }
    record.write_text(json.dumps(found) + "\n")
    return found


def check_weights(steps: list[dict[str, float]], folder: Path) -> None:
    """Raise RuntimeError where rollouts came from other weights than the trained ones, say another run's."""
    for number, data in enumerate(steps, 1):
        if not data["training/rollout_probs_diff_max"] < WEIGHTS_DIFFER:
            raise RuntimeError(
                f"{folder}: at step {number} vLLM and the trainer gave a token probabilities that differ by "
                f"{data['training/rollout_probs_diff_max']:.3g}: vLLM did not have the trained weights. Remove the "
                "folder, and start no other verl run beside this one (docs/troubleshooting.md)"
            )


def _commit() -> str:
    """The code that trains, with `-dirty` where it differs from its commit; empty outside of a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def _generated(data: dict[str, float], rows: int) -> float:
    """Tokens generated in a step: CIPO counts its two streams, GRPO's are verl's mean over its rows."""
    if "cipo/tokens/base" in data:
        return data["cipo/tokens/base"] + data.get("cipo/tokens/correction", 0)
    return data["response_length/mean"] * rows


def _sample(checkpoint: Path, setting: Setting, task: Path, output: Path, *, log: Path) -> None:
    """Attempts and corrections at the held-out problems, by the package's own evaluation and verifier."""
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": Task.response_length}
    held_out = {"file": "val.parquet", "converter": "python examples/tiny/prepare.py", "verifier": "math"}
    suites = {
        "benchmarks": {"attempts": held_out, "turns": held_out},
        "suites": {
            "one_turn": {
                "sampling": {**sampling, "n": setting.samples},
                "corrections": 0,
                "benchmarks": {"attempts": None},
            },
            "two_turns": {
                "sampling": {**sampling, "n": setting.turn_samples},
                "corrections": 1,
                "benchmarks": {"turns": None},
            },
            SUITE: {"suites": ["one_turn", "two_turns"]},
        },
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "suites.yaml").write_text(yaml.safe_dump(suites))
    length = Task.correction_prompt_length + Task.response_length
    command = [sys.executable, "-m", "verl_cipo.evaluate", "--suite", SUITE, "--suites", str(output / "suites.yaml")]
    command += ["--checkpoint", str(checkpoint), "--data-dir", str(task / "data"), "--output", str(output)]
    command += ["--prompt", "standalone=false"]  # as in training
    command += ["--engine", f"max_model_len={length}", "dtype=float32", "enforce_eager=true", "max_num_seqs=256"]
    with open(log, "w") as file:
        done = subprocess.run(command, env={**os.environ, **launch.CPU_ENV}, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(
            f"the evaluation of {checkpoint} ended with code {done.returncode}, the end of {log}:\n{tail}"
        )


def counts(evaluation: Path) -> dict[str, Any]:
    """`right` and `turns` of :func:`run`, from the dumps of an evaluation; problems in the order of their numbers."""
    right: dict[str, int] = defaultdict(int)
    for row in _lines(evaluation / "attempts" / "0.jsonl"):
        right[row["uid"].split("_")[0].rpartition("-")[2]] += row["acc"]
    turns: dict[str, dict[str, int]] = {problem: dict.fromkeys(TURNS, 0) for problem in right}
    for attempt in _lines(evaluation / "turns" / "corrections" / "0.jsonl"):
        found = turns[attempt["uid"].rpartition("-")[2]]
        for correction in attempt["corrections"]:
            found[("c" if attempt["anchor_correct"] else "w") + "2" + ("c" if correction["correct"] else "w")] += 1
            found["copies_failed"] += correction["copied"] and not attempt["anchor_correct"]
    order = sorted(right, key=int)
    return {"right": [right[problem] for problem in order], "turns": [turns[problem] for problem in order]}


def _lines(path: Path) -> list[dict[str, Any]]:
    bad: list[BadLine] = []
    rows = [row for _, row in read_objects(path, bad)]
    if bad:
        raise BadLinesError(bad)
    return rows
