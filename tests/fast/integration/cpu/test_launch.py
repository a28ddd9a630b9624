"""What a resumed run keeps of the metrics of the one that was killed, from where it goes on, one run a machine."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from verl_cipo.integration.cpu import launch
from verl_cipo.integration.cpu.launch import checkpoint_to_resume, merge_metrics, metrics_lines


def write(path: Path, steps: list[int], *, run: str, cut: str = "") -> Path:
    lines = [
        json.dumps({"step": step, "data": {"run": run} | ({"training/global_step": step} if step else {})})
        for step in steps
    ]
    path.write_text("".join(f"{line}\n" for line in lines) + cut)
    return path


def runs(path: Path) -> list[tuple[int, str]]:
    return [(line["step"], line["data"]["run"]) for line in metrics_lines(path)]


def checkpoints(folder: Path, steps: list[int], *, newest: int) -> Path:
    for step in steps:
        (folder / f"global_step_{step}").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(newest))
    return folder


def test_steps_that_were_taken_again_replace_the_first_ones(tmp_path):
    kept = write(tmp_path / "kept", [0, 1, 2, 3], run="killed")
    fresh = write(tmp_path / "fresh", [3, 4], run="resumed", cut='{"step": 5, "da')
    merge_metrics(kept, fresh)
    assert runs(kept) == [(0, "killed"), (1, "killed"), (2, "killed"), (3, "resumed"), (4, "resumed")]
    assert not fresh.exists()


def test_a_run_that_logged_nothing_leaves_the_metrics_alone(tmp_path):
    kept = write(tmp_path / "kept", [0, 1], run="killed")
    merge_metrics(kept, write(tmp_path / "fresh", [], run="resumed", cut='{"st'))
    merge_metrics(kept, tmp_path / "never there")
    assert runs(kept) == [(0, "killed"), (1, "killed")]


def test_the_first_run_has_nothing_to_merge_with(tmp_path):
    merge_metrics(tmp_path / "kept", write(tmp_path / "fresh", [0, 1], run="first"))
    assert runs(tmp_path / "kept") == [(0, "first"), (1, "first")]


def test_the_newest_whole_checkpoint_is_resumed(tmp_path):
    # 3 was being written.
    folder = checkpoints(tmp_path / "c", [1, 2, 3], newest=2)
    assert checkpoint_to_resume(folder, write(tmp_path / "m", [0, 1, 2, 3], run="r")).name == "global_step_2"


def test_a_checkpoint_whose_step_was_not_logged_is_passed_over(tmp_path):
    folder = checkpoints(tmp_path / "c", [1, 2, 3], newest=3)
    assert checkpoint_to_resume(folder, write(tmp_path / "m", [0, 1, 2], run="r")).name == "global_step_2"


def test_without_a_checkpoint_or_a_logged_step_the_run_starts_anew(tmp_path):
    metrics = write(tmp_path / "m", [0], run="r")
    assert checkpoint_to_resume(tmp_path / "none", metrics) is None
    assert checkpoint_to_resume(checkpoints(tmp_path / "c", [1], newest=1), metrics) is None
    assert checkpoint_to_resume(tmp_path / "c", tmp_path / "none") is None


def test_a_second_run_on_the_machine_is_refused_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
    kept = write(tmp_path / "metrics.jsonl", [1, 2], run="first")
    with (
        FileLock(launch.HOST_LOCK),
        pytest.raises(launch.TrainingFailed, match="another run is on this machine .*/lock"),
    ):
        launch.train([], output=tmp_path)
    assert runs(kept) == [(1, "first"), (2, "first")]


def test_a_process_that_holds_the_machine_may_train(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
    with launch.only_run(), launch.only_run():
        pass
    with FileLock(tmp_path / "lock", timeout=0):
        pass


@pytest.mark.parametrize(("cluster", "address"), [(None, "local"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_a_run_starts_a_ray_of_its_own_or_joins_the_one_that_is_named(tmp_path, monkeypatch, cluster, address):
    """Without that it would join, and fail in, any Ray that runs on the machine."""
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "address: $RAY_ADDRESS"\n')
    program.chmod(0o755)
    monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
    monkeypatch.setattr(launch.sys, "executable", str(program))
    launch.train([], output=tmp_path / "run", cluster=cluster)
    assert (tmp_path / "run" / "train.log").read_text() == f"address: {address}\n"
