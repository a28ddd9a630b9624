"""Two steps of the demo with a language model: its real weights and tokenizer through verl and vLLM."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.real.conftest import Run, streams

pytest.importorskip("reasoning_gym", reason="pip install --no-deps -r requirements/lm.txt")

pytestmark = [pytest.mark.real, pytest.mark.nightly, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("demo_lm")
    command = [sys.executable, str(ROOT / "examples" / "lm" / "run.py"), "--output", str(folder), "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return Run.of(folder)


def test_both_steps_train_attempts_and_corrections(demo):
    assert len(demo.steps) == 2
    for step, metrics in enumerate(demo.steps, start=1):
        base, corrections, _ = streams(demo.rollouts(step))
        assert len(base) == 8 and {len(rows) % 4 for rows in base.values()} == {0}
        sampled = sum(map(len, (*base.values(), *corrections.values())))
        assert sampled == metrics["cipo/rows/base"] + metrics["cipo/rows/correction"] == 64
        assert metrics["training/rollout_probs_diff_max"] < 1e-2, "vLLM serves the weights that are trained"


def test_a_correction_prompt_is_written_in_the_models_own_chat(demo):
    corrections = [rows[0] for step in (1, 2) for rows in streams(demo.rollouts(step))[1].values()]
    assert corrections
    for row in corrections:
        shown = row["input"]
        assert shown.startswith("system\nYou are a helpful AI assistant named SmolLM")
        assert "<attempt>\n" in shown and shown.rstrip().endswith("assistant")


def test_the_verdicts_are_those_of_reasoning_gym(demo):
    from verl_cipo.rewards.reasoning_gym import compute_score

    for row in demo.rollouts(2)[:8]:
        assert compute_score("s", row["output"], row["gts"])["score"] == row["score"]


def test_it_validates_before_and_after_and_shows_corrections(demo):
    summary = json.loads((demo.folder / "summary.json").read_text())
    assert summary["steps"] == 2 and 0 <= summary["val_pass1_before"] <= 1 and 0 <= summary["val_pass1_after"] <= 1
    text = (demo.folder / "examples.txt").read_text()
    assert "attempt:    " in text and "correction: " in text


def test_what_verl_says_at_each_session_is_said_once_a_process(demo):
    """Over 200 sessions in one worker; the driver checks prompts, too."""
    assert demo.log.count("No model-specific Continuous Token builder") < 10
