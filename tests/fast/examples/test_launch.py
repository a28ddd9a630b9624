"""What a resumed run keeps of the metrics of the one that was killed, from where it goes on, and the demo's options."""

import json
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from examples.tiny import launch, prepare, run, show
from examples.tiny.launch import checkpoint_to_resume, merge_metrics, metrics_lines


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


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """demo(*options) runs the demo without a model or verl and returns what they would have been started with."""

    def start(*options: str) -> dict:
        started = {}

        def made(folder, settings):
            started.update(folder=folder, prepared_with=settings)

        def train(options, *, output, on_line, resume):
            started.update(options=dict(option.split("=", 1) for option in options), resume=resume)
            started["left"] = sorted(path.name for path in output.iterdir() if path.is_dir())
            lines = [{"step": step, "data": {f"{show.VAL_PASS1}1": step / 10}} for step in (0, 1)]
            (output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (output / "train.log").write_text("")
            return 1

        monkeypatch.setattr(prepare, "prepare", made)
        monkeypatch.setattr(prepare, "report", lambda *_: "")
        monkeypatch.setattr(launch, "train", train)
        monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
        monkeypatch.setattr(show, "plot", lambda *_: None)
        monkeypatch.setattr(run.signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path), *options])
        assert run.main() == 0
        return started | {"summary": json.loads((tmp_path / "summary.json").read_text())}

    return start


def test_the_demo_by_default(demo, tmp_path):
    started = demo()
    assert started["folder"] == tmp_path / "task" and started["prepared_with"] == prepare.FULL
    options = started["options"]
    assert options["algorithm.adv_estimator"] == "cipo" and options["data.seed"] == "1"
    assert options["trainer.total_training_steps"] == "40" and options["trainer.test_freq"] == "20"
    assert options["trainer.save_freq"] == "-1" and options["trainer.default_local_dir"] == str(
        tmp_path / "checkpoints"
    )


def test_few_steps_are_a_smoke_run_with_the_quick_model(demo, tmp_path):
    started = demo("--steps", "3")
    assert started["folder"] == tmp_path / "task_quick" and started["prepared_with"] == prepare.QUICK
    assert started["options"]["trainer.total_training_steps"] == started["options"]["trainer.test_freq"] == "3"


def test_the_seed_is_that_of_model_data_and_order(demo):
    started = demo("--seed", "5")
    assert started["prepared_with"].seed == 5
    assert started["options"]["data.seed"] == "5" and started["summary"]["seed"] == 5


def test_the_baseline_of_the_demo(demo):
    started = demo("--algo", "grpo")
    assert started["options"]["algorithm.adv_estimator"] == started["summary"]["adv_estimator"] == "grpo"


def test_checkpoints_are_saved_as_often_as_asked(demo):
    assert demo("--save-every", "7")["options"]["trainer.save_freq"] == "7"


@pytest.mark.parametrize("resume", [False, True])
def test_only_a_resumed_demo_keeps_what_the_last_one_left(demo, tmp_path, resume):
    left = ["checkpoints", "rollouts", "validation"]
    for name in left:
        (tmp_path / name).mkdir()
    started = demo(*["--resume"] * resume)
    assert started["left"] == (left if resume else [])
    assert started["resume"] == (tmp_path / "checkpoints" if resume else None)


def test_options_of_verl_come_last(demo):
    assert demo("trainer.save_freq=3", "data.seed=9")["options"]["data.seed"] == "9"


@pytest.mark.parametrize("options", [["--steps", "0"], ["--stepz", "3"], ["loose"]])
def test_wrong_options_of_the_demo_are_refused(demo, options):
    with pytest.raises(SystemExit, match="2"):
        demo(*options)


def test_a_second_run_on_the_machine_is_refused_and_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
    kept = write(tmp_path / "metrics.jsonl", [1, 2], run="first")
    with (
        FileLock(launch.HOST_LOCK),
        pytest.raises(launch.TrainingFailed, match="another run is on this machine .*/lock"),
    ):
        launch.train([], output=tmp_path)
    assert runs(kept) == [(1, "first"), (2, "first")]


def test_a_second_demo_is_refused_before_it_clears_the_folder(demo, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with FileLock(tmp_path / "lock"), pytest.raises(launch.TrainingFailed, match="another run"):
        demo()
    assert (tmp_path / "checkpoints").exists()


def test_a_process_that_holds_the_machine_may_train(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
    with launch.only_run(), launch.only_run():
        pass
    with FileLock(tmp_path / "lock", timeout=0):
        pass
