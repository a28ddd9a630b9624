"""The demo as a process: started, killed, waited for. One run of it is the same as another, step by step."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.conftest import ROOT

STEPS = 4
# `schedule=replay` and verl's `rollout.full_determinism`: anchors then depend on nothing but the rollouts, and those on
# nothing but weights, prompts and seeds.
OPTIONS = [
    "trainer.logger=[console,file,tensorboard]",
    "trainer.log_val_generations=2",
    "data.train_batch_size=4",
    "data.val_max_samples=16",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.full_determinism=true",
    "+algorithm.cipo.preset=stream",
    "+algorithm.cipo.schedule=replay",
    "+algorithm.cipo.source=both",
    "+algorithm.cipo.aux.coef=0.5",
    # Of so few prompts few mostly fail.
    "+algorithm.cipo.transfer.kind=regress",
    "+algorithm.cipo.transfer.below=1",
]


def prepared(folder: Path, task_folder: Path) -> Path:
    """``folder`` with a copy of the model and the data, where the demo looks for them."""
    shutil.copytree(task_folder, folder / "task_quick")
    return folder


def start(output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "examples" / "tiny" / "run.py"), "--output", str(output)]
    return subprocess.Popen(
        [*command, "--steps", str(STEPS), "--save-every", "1", *options, *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TENSORBOARD_DIR": str(output / "tensorboard")},
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for its end and return what it printed."""
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:]
    return out


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher, verl's driver, Ray and all workers at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            os.kill(member.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    psutil.wait_procs(family, timeout=30)


def wait_until(process: subprocess.Popen, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not happened():
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def newest(output: Path) -> int:
    """The last step with a checkpoint."""
    tracker = output / "checkpoints" / "latest_checkpointed_iteration.txt"
    text = tracker.read_text() if tracker.exists() else ""
    return int(text) if text else 0


def logged(output: Path) -> int:
    """The last step of the run that goes on."""
    path = output / "metrics.part.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max([json.loads(line)["step"] for line in lines if line.endswith("\n")], default=0)
