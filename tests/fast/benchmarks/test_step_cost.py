"""benchmarks/step_cost.py: the arithmetic of a step's tokens by hand, and what is read from the trainer's metrics.

Not covered here: the runs themselves.
"""

import sys
from types import SimpleNamespace

import psutil
import pytest

from benchmarks import step_cost
from benchmarks.cost import measured
from benchmarks.cost.measured import of_step, over_control, predicted
from benchmarks.cost.model import Cost, Lengths, cipo, forward_flops, grpo, shown
from benchmarks.experiment.arms import ARMS, CONTROL
from benchmarks.experiment.setting import TASKS
from benchmarks.json_file import write_json

LENGTHS = Lengths(question=100, answer=1000, shown=1000, frame=50, correction=800)


def test_a_view_shows_what_is_left_of_an_attempt():
    assert shown(1000, "whole", thinking=0.9) == 1000
    assert shown(1000, "no_thinking", thinking=0.75) == 250
    assert shown(1000, "tail", thinking=0.75, limit=400) == 400
    assert shown(1000, "no_thinking", thinking=0.75, limit=400) == 250
    with pytest.raises(ValueError, match=r"thinking = 1.5: expected a share"):
        shown(1000, "whole", thinking=1.5)


def test_the_tokens_of_grpo():
    assert grpo(LENGTHS, 16) == Cost(generated=16000, trained=17600, distinct=16100, pairs=16 * 1100**2 / 2)


def test_the_tokens_of_cipo():
    # 8 attempts of 100 + 1000, and 8 corrections of 100 + 50 + 1000 + 800.
    assert cipo(LENGTHS, 8, corrections=8) == Cost(
        generated=8 * 1000 + 8 * 800,
        trained=8 * 1100 + 8 * 1950,
        distinct=100 + 8 * 1000 + 1150 + 8 * 800,
        pairs=8 * 1100**2 / 2 + 8 * 1950**2 / 2,
    )


def test_sessions_that_do_not_correct_are_attempts():
    assert cipo(LENGTHS, 8, corrections=8, share=0) == grpo(LENGTHS, 16)
    assert cipo(LENGTHS, 8, corrections=8, anchors=0) == grpo(LENGTHS, 8)
    half = cipo(LENGTHS, 8, corrections=8, share=0.5)
    assert (half.generated, half.trained) == (12 * 1000 + 4 * 800, 12 * 1100 + 4 * 1950)
    with pytest.raises(ValueError, match=r"share = 2: expected a share"):
        cipo(LENGTHS, 8, corrections=8, share=2)


def test_with_long_answers_half_as_many_tokens_more_are_trained():
    long = Lengths(question=0, answer=1e6, shown=1e6, frame=0, correction=1e6)
    ratios = cipo(long, 8, corrections=8).over(grpo(long, 16))
    # Half of the rows are twice as long; without repeated prompts, one attempt in 16 responses comes on top.
    assert ratios == pytest.approx({"generated": 1, "trained": 1.5, "distinct": 17 / 16, "pairs": 2.5})


def test_attention_counts_by_pairs():
    cost = Cost(generated=0, trained=10, distinct=10, pairs=50)
    assert forward_flops(cost, parameters=1000, layers=2, hidden=8) == 2 * 1000 * 10 + 4 * 2 * 8 * 50


# ---- what the trainer measured

GRPO = {
    "response_length/mean": 30.0,
    "prompt_length/mean": 40.0,
    "perf/total_num_tokens": 560.0,
    "timing_s/gen": 2.0,
    "timing_s/old_log_prob": 1.0,
    "timing_s/update_actor": 3.0,
    "timing_s/step": 7.0,
}
CIPO = {
    **GRPO,
    "cipo/tokens/base": 100.0,
    "cipo/tokens/correction": 120.0,
    "cipo/rows/correction": 4.0,
    "cipo/rows/padding": 2.0,
    "cipo/seconds/driver": 0.14,
}


def test_the_figures_of_a_step_of_grpo():
    found = of_step(GRPO, rows=8)
    assert (found["generated"], found["trained"], found["rest_s"]) == (240, 560, 1)
    assert (found["corrections"], found["driver_s"], found["driver_share"]) == (0, 0, 0)


def test_the_figures_of_a_step_of_cipo():
    found = of_step(CIPO, rows=8)
    assert (found["generated"], found["corrections"], found["padding"]) == (220, 4, 2)
    assert found["driver_share"] == pytest.approx(0.02)


def test_ratios_are_taken_within_a_round():
    rounds = [
        {"control": {"step_s": 2.0}, "cipo": {"step_s": 3.0}},
        {"control": {"step_s": 10.0}, "cipo": {"step_s": 11.0}},
        {"control": {"step_s": 5.0}},
    ]
    assert over_control(rounds, "cipo", "control", "step_s") == pytest.approx({"mean": 1.3, "low": 1.1, "high": 1.5})
    with pytest.raises(ValueError, match="no round has runs of both grpo and control"):
        over_control(rounds, "grpo", "control", "step_s")


def test_the_prediction_takes_the_lengths_of_the_control():
    # 8 attempts of 40 + 30 and 8 corrections of 40 + 10 + 29 + 30, over 16 attempts.
    found = predicted({"prompt": 40.0, "response": 30.0}, n=8, prompts=2, corrections=16, frame=10)
    assert found == pytest.approx({"generated": 1, "trained": (8 * 70 + 8 * 109) / (16 * 70)})
    # Half of the anchors were corrected.
    found = predicted({"prompt": 40.0, "response": 30.0}, n=8, prompts=2, corrections=8, frame=10)
    assert found["trained"] == pytest.approx((12 * 70 + 4 * 109) / (16 * 70))


def test_processor_seconds_are_those_between_the_steps(monkeypatch):
    spent = iter([5.0, 8.0, 13.0])
    monkeypatch.setattr(measured.psutil, "Process", lambda: Parent(next(spent)))
    time = measured.ProcessorTime()
    for step in (2, 3, 4):
        time({"step": step})
    assert time.a_step(2) == {"training_cpu_s": 4, "engine_cpu_s": 0, "rollout_cpu_s": 0, "driver_cpu_s": 0, "cpu_s": 8}
    with pytest.raises(ValueError, match="the last step logged is 4: expected more than 4"):
        time.a_step(4)


class Parent:
    """Of two processes that spent so much, and of one that has ended."""

    def __init__(self, spent: float):
        self.spent = spent

    def children(self, recursive: bool) -> list:
        return [Process("ray::WorkerDict.update", self.spent), Process("python", self.spent), Ended("", 0)]


class Process(SimpleNamespace):
    def __init__(self, title: str, spent: float):
        super().__init__(title=title, spent=spent)

    def cmdline(self) -> list[str]:
        return [self.title, ""]

    def cpu_times(self):
        return SimpleNamespace(user=self.spent - 1, system=1.0)


class Ended(Process):
    def cpu_times(self):
        raise psutil.NoSuchProcess(1)


# ---- the command


def figures(**changed) -> dict[str, float]:
    return {**of_step(GRPO, rows=8), **dict.fromkeys((*measured.ROLES, "cpu_s"), 9.0), **changed}


def test_runs_that_are_there_are_read_and_compared(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_cost, "prepared", lambda *_: {})
    monkeypatch.setattr(step_cost, "make_tokenizer", lambda _: None)
    monkeypatch.setattr(measured, "frame_tokens", lambda _: 10)
    for arm, found in ((CONTROL, figures()), ("cipo", figures(step_s=10.5, corrections=128.0))):
        write_json(
            tmp_path / "round1" / arm / "figures.json",
            {"made_with": {"steps": 8, "options": [*ARMS[arm].options]}, "figures": found},
        )
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--output", str(tmp_path), "--arms", "cipo"])
    assert step_cost.main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| cipo ")]
    assert lines[0].split(" | ")[1:3] == ["240", "560"]
    # 10.5 s over 7, and the prediction of the test above.
    assert lines[1].split(" | ")[7] == "1.500" and lines[1].endswith("| 1.279 |")


def test_a_folder_of_another_run_is_refused(tmp_path):
    write_json(tmp_path / "figures.json", {"made_with": {"steps": 3, "options": []}, "figures": figures()})
    with pytest.raises(ValueError, match="holds a run made with .*'steps': 3.* remove it"):
        step_cost.run(ARMS["grpo"], TASKS["demo"], tmp_path, tmp_path, steps=8, options=[])


def test_an_unknown_arm_ends_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--arms", "cipo", "base"])
    with pytest.raises(SystemExit):
        step_cost.main()
    assert "--arms base: expected of" in capsys.readouterr().err


def test_the_model_needs_no_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_cost.py", "--model"])
    assert step_cost.main() == 0
    told = capsys.readouterr().out
    # (8 x 2198 + 8 x (150 + 60 + 2048 + 2048)) / (16 x 2198)
    assert "| 2,048 | whole | 1 | 1.48 |" in told
    checked = {tuple(line.split(" | ")[:3]): line.split(" | ")[4:] for line in told.splitlines() if "cipo" in line}
    counted, predicted_ratio = checked["| full", "cipo", "5"]
    assert abs(float(counted) - float(predicted_ratio.removesuffix(" |"))) < 0.05
