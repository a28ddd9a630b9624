"""budget=auto in the demo: counts as drawn, groups of unequal size, and a run that is killed and resumed."""

import json
import shutil

import pytest
import torch

from tests.real import demo
from tests.real.conftest import PROMPTS, N, Run, streams
from tests.real.demo import STEPS
from tests.real.test_kill_resume import metrics
from verl_cipo.core.steering.budget import PROBE

pytestmark = [pytest.mark.real, pytest.mark.nightly]

SLOTS = 3 * PROMPTS
AUTO = ("+algorithm.cipo.budget=auto", "+algorithm.cipo.replay_fraction=3")
"""With slots enough that some of the probe are corrections."""


@pytest.fixture(scope="session")
def budget_run(task_folder, tmp_path_factory) -> Run:
    folder = demo.prepared(tmp_path_factory.mktemp("budget"), task_folder)
    demo.finish(demo.start(folder, *AUTO))
    return Run.of(folder)


@pytest.fixture(scope="session")
def resumed_budget_run(task_folder, tmp_path_factory) -> Run:
    """Killed in the middle of a step, when a step with slots is in a checkpoint."""
    folder = demo.prepared(tmp_path_factory.mktemp("budget_killed"), task_folder)
    process = demo.start(folder, *AUTO)
    demo.wait_until(process, lambda: demo.logged(folder) >= 2)
    demo.kill(process)
    assert 2 <= demo.newest(folder) < STEPS
    output = tmp_path_factory.mktemp("budget_resumed") / "demo"
    shutil.copytree(folder, output)
    demo.finish(demo.start(output, "--resume", *AUTO))
    return Run.of(output)


def test_sessions_of_a_step_are_as_drawn(budget_run):
    moved = 0
    for step, measured in enumerate(budget_run.steps, start=1):
        slots, corrected = measured["cipo/budget/slots"], measured["cipo/budget/corrected"]
        assert slots == measured["cipo/anchors/total"] == (SLOTS if step > 1 else 0), "replay: none in step 1"
        assert measured["cipo/budget/corrections"] == measured["cipo/rows/correction"] == N * corrected
        assert measured["cipo/budget/attempts"] == N * (slots - corrected)
        assert measured["cipo/rows/base"] == N * (PROMPTS + slots - corrected)
        base, corrections, _ = streams(budget_run.rollouts(step))
        sizes = sorted(map(len, base.values()))
        assert len(sizes) == PROMPTS and sum(sizes) == measured["cipo/rows/base"]
        assert {size % N for size in sizes} == {0} and sum(map(len, corrections.values())) == N * corrected
        moved += slots - corrected
    assert 0 < moved < SLOTS * (STEPS - 1), "no slot has moved, or all have: nothing was tested"


@pytest.fixture(scope="session", params=["V1", "V0"])
def early_run(request, run_alone, tmp_path_factory) -> Run:
    """Further attempts start with the attempts, and corrections when their anchor is drawn; 64 slots a step."""
    return run_alone(
        tmp_path_factory.mktemp("early"),
        "algorithm.adv_estimator=cipo",
        "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16",
        "+algorithm.cipo.budget=auto",
        "+algorithm.cipo.replay_fraction=4",
        f"trainer.use_v1={request.param == 'V1'}",
    )


def test_sessions_of_a_step_are_as_planned_where_they_start_with_the_attempts(early_run):
    for step, measured in enumerate(early_run.steps, start=1):
        corrected = measured["cipo/budget/corrected"]
        assert measured["cipo/budget/slots"] == measured["cipo/anchors/total"] == 64
        assert corrected <= 1 or step > 1, "the mean share at the start is one in 64"
        assert measured["cipo/budget/attempts"] == N * (64 - corrected)
        base, corrections, _ = streams(early_run.rollouts(step))
        assert sum(map(len, base.values())) == measured["cipo/rows/base"] == N * (16 + 64 - corrected)
        assert {len(rows) % N for rows in base.values()} == {0} and len(base) == 16
        assert sum(map(len, corrections.values())) == N * corrected
        uids = [row["uid"] for rows in base.values() for row in rows]
        assert len(set(uids)) == len(uids), "a session twice"


def test_the_share_starts_as_a_probe_and_both_sides_are_measured(budget_run):
    """What the share becomes depends on what the model finds; prompts with a right attempt have none."""
    first, *_, last = budget_run.steps
    assert first["cipo/budget/none/share"] == PROBE
    assert PROBE <= last["cipo/budget/none/share"] <= 1
    assert {"cipo/budget/none/w2c", "cipo/budget/none/retry"} <= last.keys()


def test_as_many_optimizer_steps_as_grpo(budget_run):
    assert budget_run.optimizer_steps(STEPS) == {2.0 * STEPS}


def test_a_killed_run_goes_on_as_if_it_had_not_been_killed(budget_run, resumed_budget_run):
    runs = (budget_run, resumed_budget_run)
    assert metrics(resumed_budget_run) == metrics(budget_run)
    for step in range(1, STEPS + 1):
        both = [sorted((row["input"], row["output"], row["score"]) for row in run.rollouts(step)) for run in runs]
        assert both[0] == both[1]
    folders = [run.folder / "checkpoints" / f"global_step_{STEPS}" for run in runs]
    states = [json.loads((folder / "cipo.json").read_text())["budget"] for folder in folders]
    carries = [torch.load(folder / "cipo_pool.pt", weights_only=False)["budget"] for folder in folders]
    assert states[0] == states[1] and carries[0] == carries[1]
    assert states[0]["w2c"] and states[0]["retry"], "nothing was measured"
