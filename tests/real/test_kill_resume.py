"""The demo, killed with SIGKILL and resumed, against the same demo left alone.

`schedule=replay` and verl's `rollout.full_determinism`: anchors then depend on nothing but the rollouts, and those on
nothing but weights, prompts and seeds. Every metric must come out equal but times, memory and what measures vLLM's
rounding, which depends on the requests that share a batch.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.vllm

STEPS = 5
OPTIONS = [
    "data.train_batch_size=4",
    "data.val_max_samples=8",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.full_determinism=true",
    "+algorithm.cipo.schedule=replay",
]
NOT_REPEATED = ("timing", "perf/", "seconds", "rollout_corr/", "training/rollout_")


def start(output: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "examples" / "tiny" / "run.py"), "--output", str(output)]
    return subprocess.Popen(
        [*command, "--steps", str(STEPS), "--save-every", "1", *options, *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:]


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


def wait_until(process: subprocess.Popen, happened) -> None:
    deadline = time.monotonic() + 600
    while not happened():
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def newest(output: Path) -> int:
    tracker = output / "checkpoints" / "latest_checkpointed_iteration.txt"
    text = tracker.read_text() if tracker.exists() else ""
    return int(text) if text else 0


def logged(output: Path) -> int:
    """The last step of the run that goes on."""
    path = output / "metrics.part.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max([json.loads(line)["step"] for line in lines if line.endswith("\n")], default=0)


def prepared(folder: Path, task_folder: Path) -> Path:
    shutil.copytree(task_folder, folder / "task_quick")
    return folder


@pytest.fixture(scope="session")
def whole(task_folder, tmp_path_factory) -> Path:
    output = prepared(tmp_path_factory.mktemp("whole"), task_folder)
    finish(start(output))
    return output


@pytest.fixture(scope="session")
def killed_twice(task_folder, tmp_path_factory) -> Path:
    output = prepared(tmp_path_factory.mktemp("killed"), task_folder)
    process = start(output)
    # In the middle of a step, some time after a checkpoint.
    wait_until(process, lambda: logged(output) >= 2)
    kill(process)
    assert newest(output) >= 2
    process = start(output, "--resume")
    # While a checkpoint is being written.
    next_one = output / "checkpoints" / f"global_step_{newest(output) + 1}"
    wait_until(process, next_one.exists)
    kill(process)
    assert newest(output) < STEPS
    finish(start(output, "--resume"))
    return output


def metrics(output: Path) -> list[tuple[int, dict]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], {k: v for k, v in line["data"].items() if not any(part in k for part in NOT_REPEATED)})
        for line in lines
    ]


def rollouts(output: Path, step: int) -> list[dict]:
    return [json.loads(line) for line in (output / "rollouts" / f"{step}.jsonl").read_text().splitlines()]


def test_metrics_are_those_of_the_run_that_was_not_killed(whole, killed_twice):
    assert [step for step, _ in metrics(whole)] == list(range(STEPS + 1)), "validation before step 1, then the steps"
    assert metrics(killed_twice) == metrics(whole)


def test_rollouts_are_those_of_the_run_that_was_not_killed(whole, killed_twice):
    for step in range(1, STEPS + 1):
        told = [
            sorted((row["input"], row["output"], row["gts"], row["score"]) for row in rollouts(output, step))
            for output in (whole, killed_twice)
        ]
        assert told[0] == told[1]


def test_state_is_that_of_the_run_that_was_not_killed(whole, killed_twice):
    state = [
        json.loads((output / "checkpoints" / f"global_step_{STEPS}" / "cipo.json").read_text())
        for output in (whole, killed_twice)
    ]
    assert state[0] == state[1]
    assert state[0]["rho"]["prev_retention"] is not None, "rho has not moved: nothing was compared"


def test_replayed_anchors_are_attempts_of_the_step_before(whole):
    first = rollouts(whole, 1)
    assert not any("_c" in row["uid"] for row in first)
    for step in range(2, STEPS + 1):
        before = [row for row in rollouts(whole, step - 1) if "_c" not in row["uid"]]
        shown = {row["uid"].rsplit("_", 2)[0]: row["input"] for row in rollouts(whole, step) if "_c" in row["uid"]}
        assert len(shown) == 4, "one anchor a prompt"
        for text in shown.values():
            assert any(
                f"<attempt>\n{row['output'].strip()}\n</attempt>" in text and question(row) in text for row in before
            )


def question(row: dict) -> str:
    return row["input"].split("user\n", 1)[1].rsplit("assistant", 1)[0].strip()
