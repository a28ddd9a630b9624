"""The demo's options, and what it leaves in its folder."""

import json
import sys

import pytest
from filelock import FileLock

from examples.tiny import prepare, run, show
from verl_cipo.integration.cpu import launch


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
            lines = [{"step": step, "data": {"val-core/openai/gsm8k/acc/mean@1": step / 10}} for step in (0, 1)]
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


def test_a_second_demo_is_refused_before_it_clears_the_folder(demo, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with FileLock(tmp_path / "lock"), pytest.raises(launch.TrainingFailed, match="another run"):
        demo()
    assert (tmp_path / "checkpoints").exists()
