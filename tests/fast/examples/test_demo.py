"""The demo's options, and what it leaves in its folder."""

import json
import sys

import pytest
from filelock import FileLock

from examples.tiny import chat, prepare, run, show
from examples.tiny.evaluate import INSTRUCTION
from verl_cipo.integration.cpu import launch


@pytest.fixture
def demo(monkeypatch, tmp_path):
    """demo(*options) runs the demo without a model or verl and returns what they would have been started with."""

    def start(*options: str) -> dict:
        started = {}

        def made(folder, settings):
            started.update(folder=folder, prepared_with=settings)

        def train(options, *, output, on_line, resume, env):
            started.update(options=dict(option.split("=", 1) for option in options), resume=resume)
            started["left"] = sorted(path.name for path in output.iterdir() if path.is_dir())
            lines = [{"step": step, "data": {"val-core/openai/gsm8k/acc/mean@2": step / 10}} for step in (0, 1)]
            lines[1]["data"] |= {"training/global_step": 1}
            weights = output / "checkpoints" / "global_step_1" / "actor" / "huggingface"
            weights.mkdir(parents=True)
            (weights / "config.json").touch()
            if "hf_model" in started["options"]["actor_rollout_ref.actor.checkpoint.save_contents"]:
                (weights / "model.safetensors").write_text("trained")
            (output / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("1")
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
    assert options["trainer.save_freq"] == "40"
    assert options["trainer.default_local_dir"] == str(tmp_path / "checkpoints")
    assert options["actor_rollout_ref.rollout.val_kwargs.n"] == "2", "without a second attempt there is no retry"


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
    assert started["options"]["algorithm.adv_estimator"] == "cipo", "for second turns in the validation"
    assert started["options"]["+algorithm.cipo.replay_fraction"] == "0"
    assert started["summary"]["adv_estimator"] == "grpo"


def test_checkpoints_are_saved_as_often_as_asked(demo):
    assert demo("--save-every", "7")["options"]["trainer.save_freq"] == "7"


@pytest.mark.parametrize("resume", [False, True])
def test_only_a_resumed_demo_keeps_what_the_last_one_left(demo, tmp_path, resume):
    left = ["model", "rollouts", "validation"]
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


def test_the_trained_weights_are_kept(demo, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "of_the_run_before").touch()
    demo()
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    assert f"weights: {tmp_path / 'model'}; make chat" in capsys.readouterr().out


def test_no_weights_are_kept_where_verl_saves_none(demo, tmp_path, capsys):
    demo("actor_rollout_ref.actor.checkpoint.save_contents=[model]")
    assert not (tmp_path / "model").exists() and "weights:" not in capsys.readouterr().out


def line(step, **second_turn):
    data = {f"cipo/val/{name}": value for name, value in second_turn.items()}
    return {"step": step, "data": {"val-core/openai/gsm8k/acc/mean@2": 0.5, **data}}


def summary_of(lines):
    return show.summarise(lines, adv_estimator="cipo", trainer="T", wall_s=60.0, peak_rss_mb=100)


def test_the_summary_and_the_table_hold_a_correction_against_a_retry():
    lines = [
        line(0, accuracy_turn2=0.25, w2c=0.125, retry=0.375, c2c=0.75),
        line(20, accuracy_turn2=0.1, w2c=0.1, retry=0.1, c2c=0.1),
        line(40, accuracy_turn2=0.625, w2c=0.5, retry=0.25, c2c=1.0),
    ]
    summary = summary_of(lines)
    assert {name: value for name, value in summary.items() if name.startswith(("turn2", "retry", "w2c", "c2c"))} == {
        **{"turn2_before": 0.25, "w2c_before": 0.125, "retry_before": 0.375, "c2c_before": 0.75},
        **{"turn2_after": 0.625, "w2c_after": 0.5, "retry_after": 0.25, "c2c_after": 1.0},
    }
    assert show.table(summary).splitlines()[1:6] == [
        "right at the first attempt (pass@1)     0.500  0.500",
        "right after the second turn             0.250  0.625",
        "right attempts kept right (c->c)        0.750  1.000",
        "wrong attempts corrected (w->c)         0.125  0.500",
        "the same by another attempt (retry)     0.375  0.250",
    ]


def test_without_second_turns_their_figures_are_left_open():
    summary = summary_of([line(0), line(4)])
    assert summary["retry_before"] is summary["retry_after"] is None
    assert show.table(summary).splitlines()[5].split() == [*"the same by another attempt (retry)".split(), "-", "-"]


def panels_of(monkeypatch, lines, path):
    """Of each panel of the picture: label -> points of its curves, or sizes of its areas at the last step."""
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    show.plot(lines, path)
    assert path.stat().st_size > 0
    panels = []
    for axes in drawn[0].axes:
        found = {curve.get_label(): list(zip(*curve.get_data(), strict=True)) for curve in axes.get_lines()}
        for area in axes.collections:
            (outline,) = area.get_paths()
            last = {y for x, y in outline.vertices if x == lines[-1]["step"]}
            found[area.get_label()] = max(last) - min(last)
        panels.append(found)
    return panels


def test_the_picture_without_corrections_is_of_the_held_out_problems(monkeypatch, tmp_path):
    lines = [line(0, accuracy_turn2=0.25, w2c=0.125, retry=0.375, c2c=0.75), line(1)]
    lines[1]["data"] |= {"cipo/rows/base": 8.0, "cipo/rows/correction": 0.0}
    (panel,) = panels_of(monkeypatch, lines, tmp_path / "curves.png")
    assert panel == {
        "right at the first attempt (pass@1)": [(0, 0.5), (1, 0.5)],
        "right after the second turn": [(0, 0.25)],
        "wrong attempts corrected (w->c)": [(0, 0.125)],
        "the same by another attempt (retry)": [(0, 0.375)],
        "right attempts kept right (c->c)": [(0, 0.75)],
    }


ROWS = {"cipo/rows/base": 8.0, "cipo/rows/correction": 4.0}


def test_the_picture_with_a_fixed_budget_has_the_transitions(monkeypatch, tmp_path):
    lines = [line(0), line(1), line(2)]
    lines[1]["data"] |= ROWS | {"cipo/transitions/w2c": 0.5, "cipo/transitions/w2w": 0.5}
    lines[2]["data"] |= ROWS | {"cipo/transitions/w2c": 1.0, "cipo/transitions/w2w": 0.0}
    _, corrections, rows = panels_of(monkeypatch, lines, tmp_path / "curves.png")
    assert corrections["wrong -> right"] == [(1, 0.5), (2, 0.75)] and corrections["right -> right"] == []
    assert rows == {"attempts": 8, "corrections": 4}


def test_the_picture_with_budget_auto_has_what_decides(monkeypatch, tmp_path):
    lines = [line(0), line(1), line(2)]
    of_step = {"budget/none/share": 0.25, "budget/attempts": 2.0, "rows/aux": 3.0, "transfer/rows": 1.0}
    for made, retry in zip(lines[1:], (0.125, 0.25), strict=True):
        made["data"] |= ROWS | {f"cipo/{name}": value for name, value in of_step.items()}
        made["data"] |= {"cipo/budget/none/retry": retry}
    lines[2]["data"]["cipo/budget/none/w2c"] = 0.5
    _, worth, rows = panels_of(monkeypatch, lines, tmp_path / "curves.png")
    assert worth == {
        "corrections that are right": [(2, 0.5)],
        "further attempts that are right": [(1, 0.125), (2, 0.25)],
        "share of sessions that correct": [(1, 0.25), (2, 0.25)],
    }
    assert rows == {
        "attempts": 6,
        "further attempts": 2,
        "corrections": 4,
        "right attempts as corrections (pairs)": 3,
        "right corrections as first answers": 1,
    }


def test_corrections_are_text_for_people(tmp_path):
    folder = tmp_path / "validation" / "corrections"
    folder.mkdir(parents=True)
    right = {"correction": "2 + 3 = 5.\n#### 5", "correct": True, "copied": False}
    wrong = {"correction": "#### 7", "correct": False, "copied": False}
    attempt = {"question": "What is 2 + 3?\n\nThink.", "attempt": "#### 6", "anchor_correct": False}
    line = json.dumps(attempt | {"corrections": [right, wrong]})
    (folder / "2.jsonl").write_text(line + "\n")
    better = "--- wrong -> right\nWhat is 2 + 3?\nattempt:    #### 6\ncorrection: 2 + 3 = 5.\n            #### 5\n\n"
    assert show.samples(tmp_path, limit=1) == better
    assert show.samples(tmp_path, limit=3).startswith(better + "--- wrong -> wrong\n")
    assert show.samples(tmp_path / "validation", limit=3) == ""


def test_the_demos_model_is_asked_as_it_was_trained(monkeypatch, tmp_path, capsys):
    asked = []
    monkeypatch.setattr(chat.chat, "main", lambda arguments: asked.append(arguments) or 0)
    (tmp_path / "model").mkdir()
    assert chat.main(["--output", str(tmp_path), "Q", "--seed", "1"]) == 0
    as_in_training = ["--instruction", INSTRUCTION, "--prompt", "standalone=false"]
    assert asked == [[*as_in_training, "--checkpoint", str(tmp_path / "model"), "Q", "--seed", "1"]]
    assert "problems such as this one" in capsys.readouterr().out


def test_without_the_demos_model_chat_says_what_makes_it(tmp_path, capsys):
    assert chat.main(["--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'model'} is not there: make demo trains the model\n"
