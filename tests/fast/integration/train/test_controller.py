"""Rho and the guard from step to step."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from verl_cipo.core.advantage import LOSS_AGG_MODES
from verl_cipo.core.anchors import Outcome
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.core.steering.budget import PROBE, BudgetState
from verl_cipo.core.steering.guard import ALARMS
from verl_cipo.integration.train.checkpoint import TrainerState
from verl_cipo.integration.train.controller import Controller, report_second_turns

NOTHING = RowTable.of_marks([], [], index=[], scores=np.zeros(0), tokens=np.zeros(0))
MEASURED = {
    "cipo/retention": 0.75,
    "cipo/transitions/w2c": 0.5,
    "cipo/copy_rate": 0.25,
    "cipo/accuracy/base": 0.5,
    "actor/entropy": 1.0,
}

MODE = {"loss_agg_mode": "token-mean"}


def controller(*, lambda_factor=1.0, **knobs):
    config = CIPOConfig(preset="stream", lambda_corr=2.0, **knobs)
    state = TrainerState.initial(config)
    return Controller(config, replace(state, guard=replace(state.guard, lambda_factor=lambda_factor)))


def saved(made, folder):
    """The state as a checkpoint has it."""
    config = OmegaConf.create({"trainer": {"default_local_dir": str(folder)}})
    made.save(config, step=7, pool=None)
    return OmegaConf.load(folder / "global_step_7" / "cipo.json")


@pytest.mark.parametrize(("guard", "weight"), [("adapt", 0.8), ("warn", 2.0), ("off", 2.0)])
def test_only_adapt_lowers_the_weight_of_the_corrections(guard, weight):
    assert controller(guard=guard, lambda_factor=0.4).config.lambda_corr == pytest.approx(weight)


def test_a_step_moves_rho_and_the_guard(tmp_path):
    made = controller()
    added = made.observe(MEASURED, NOTHING, step=7, **MODE)
    assert added["cipo/rho"] == 0.3 and added["cipo/lambda"] == 2.0
    assert {f"cipo/guard/{alarm}" for alarm in ALARMS} <= added.keys()
    # .3 * (1 + .8 * (.8 - .75) + .05 * 1 step below the target)
    assert made.rho == pytest.approx(0.3 * 1.09)
    guard = saved(made, tmp_path).guard
    levels = [guard[name].value for name in ("w2c", "accuracy", "copy_rate", "entropy")]
    assert levels == pytest.approx([0.5, 0.5, 0.25, 1.0]) and guard.c2c.count == 0


def test_a_step_moves_the_budget(tmp_path):
    """Four attempts, all wrong, and two corrections of one of them, both right."""
    had = Outcome(0, 4, 0.0, 0.0)._asdict()
    marks = [Mark(correct=False)] * 4 + [Mark(correct=True, anchor=0, anchor_correct=False, **had)] * 2
    keys = [*(f"u_{i}_0" for i in range(4)), "u_c0_0_0", "u_c0_1_0"]
    table = RowTable.of_marks(keys, marks, index=[0] * 6, scores=np.zeros(6), tokens=np.zeros(6))
    made = controller(budget="auto")
    assert made.shares["none"] == PROBE and made.shares["some"] == 0
    added = made.observe({**MEASURED, "cipo/budget/none/slots": 1.0}, table, step=7, **MODE)
    assert added["cipo/budget/none/share"] == PROBE, "that of the step, not of the next one"
    assert (added["cipo/budget/none/w2c"], added["cipo/budget/none/retry"]) == (1.0, 0.0)
    state = OmegaConf.to_container(saved(made, tmp_path).budget)
    assert state["w2c"]["right"] == 1.0 and state["slots"] == state["of_none"] == 1.0
    for step in range(8, 20):
        made.observe({**MEASURED, "cipo/budget/none/slots": 1.0}, table, step=step, **MODE)
    assert made.shares["none"] > 0.5 and made.shares["right"] == made.shares["none"]
    assert made.shares["some"] == 0


def test_a_fixed_budget_is_not_looked_at(tmp_path):
    made = controller()
    assert not any(name.startswith("cipo/budget") for name in made.observe(MEASURED, NOTHING, step=7, **MODE))
    assert made.shares is None
    assert saved(made, tmp_path).budget == BudgetState().to_mapping()


def test_off_looks_at_nothing(tmp_path):
    made = controller(guard="off")
    assert made.observe(MEASURED, NOTHING, step=7, **MODE) == {"cipo/rho": 0.3}
    assert saved(made, tmp_path).guard == saved(controller(), tmp_path).guard


def test_an_entropy_that_is_no_number_ends_no_run(caplog, tmp_path):
    made = controller()
    with caplog.at_level(logging.ERROR, logger="verl_cipo"):
        made.observe({**MEASURED, "actor/entropy": float("nan")}, NOTHING, step=7, **MODE)
    assert "step 7: actor/entropy is nan" in caplog.text
    assert saved(made, tmp_path).guard.entropy.count == 0


@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_an_entropy_that_follows_the_length_of_responses_is_not_watched(mode, tmp_path):
    made = controller()
    made.observe(MEASURED, NOTHING, step=7, loss_agg_mode=mode)
    watched = mode in ("token-mean", "seq-mean-token-mean")
    assert saved(made, tmp_path).guard.entropy.count == int(watched)


def test_an_alarm_is_reported_once(caplog):
    made = controller()
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        # A policy that learns, then one that copies all it is shown.
        steps = [MEASURED] * 30 + [{**MEASURED, "cipo/copy_rate": 1.0, "cipo/transitions/w2c": 0.0}] * 30
        alarms = [
            made.observe(measured, NOTHING, step=step, **MODE)["cipo/guard/copy_rate"]
            for step, measured in enumerate(steps)
        ]
    assert sum(alarms) > 1
    reported = [record.message for record in caplog.records if "repeat the attempt" in record.message]
    assert len(reported) == 1 and f"step {alarms.index(1.0)}," in reported[0]


def test_a_metric_that_is_not_declared_is_named():
    with pytest.raises(KeyError, match="cipo/made_up"):
        controller().observe({"cipo/made_up": 1.0}, NOTHING, step=1, **MODE)


@pytest.mark.parametrize("val_corrections", [0, 1])
def test_the_hacking_gap_of_a_validation_is_reported_and_dumped(val_corrections, tmp_path):
    attempt = {"question": "Q", "session": 0, "attempt": "4", "anchor_correct": True, "score": 1.0, "gts": "4"}
    attempt |= {"second": False, "corrections": []}
    manager = SimpleNamespace(pop_validation=lambda: ([attempt], {"second_verifier/errors": 2.0}))
    config = OmegaConf.create(
        {
            "actor_rollout_ref": {"rollout": {"val_kwargs": {"temperature": 1.0}}},
            "trainer": {"validation_data_dir": str(tmp_path)},
        }
    )
    cipo = CIPOConfig(preset="stream", val_corrections=val_corrections, second_verifier="given.py")
    logged = []
    metrics = report_second_turns(manager, cipo, config, step=3, log_generations=lambda **table: logged.append(table))
    assert metrics["cipo/val/hacking_gap"] == 1 and metrics["cipo/val/second_verifier_errors"] == 2
    assert ("cipo/val/accuracy_turn2" in metrics) == (val_corrections == 1)
    assert json.loads((tmp_path / "corrections" / "3.jsonl").read_text())["second"] is False
    # Without second turns verl has logged the table itself.
    assert [table["scores"] for table in logged] == [[1.0]] * val_corrections


def test_validation_without_a_second_turn_asks_for_none():
    cipo = CIPOConfig(preset="stream", val_corrections=0)
    assert report_second_turns(None, cipo, OmegaConf.create(), step=1, log_generations=pytest.fail) == {}
