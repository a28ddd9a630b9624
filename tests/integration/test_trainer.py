"""The guard in the trainer: what a step shows it, and what it does to the weight of the corrections.

verl's part of a step is replaced; tests/e2e has the whole path.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from verl_cipo.core.advantage import BASE, CORRECTION, Rows
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.guard import ALARMS, GuardState
from verl_cipo.integration import estimator
from verl_cipo.integration.batch_rows import RowTable
from verl_cipo.integration.state import TrainerState
from verl_cipo.integration.trainer import CIPOTrainerMixin

KEYS = ["a_0_0", "a_1_0", "a_c1_0_0", "a_c1_1_0"]
TABLE = RowTable(
    keys=KEYS,
    rows=Rows(
        stream=np.array([BASE, BASE, CORRECTION, CORRECTION], dtype=np.int8),
        group=np.array(["a", "a", "a_c1", "a_c1"], dtype=object),
        session=np.array([key.rsplit("_", 1)[0] for key in KEYS], dtype=object),
        final=np.ones(4, dtype=bool),
        correct=np.array([True, False, True, False]),
        anchor_correct=np.zeros(4, dtype=bool),
    ),
    index=[0] * 4,
    scores=np.array([1.0, 0.0, 1.0, 0.0]),
    tokens=np.array([3, 3, 3, 3]),
    copied=np.array([False, False, False, True]),
)


class Verl:
    """verl's part: one update, which asks for the advantages of the batch."""

    entropy = 1.0

    def step(self, metrics, timing_raw):
        self._tables.append(TABLE)
        batch = KVBatchMeta(partition_id="train", keys=KEYS, tags=[{} for _ in KEYS])
        batch = self._compute_advantage(batch, metrics)
        metrics["actor/entropy"] = self.entropy
        return batch

    def _compute_advantage(self, batch, metrics):
        self.weights.append(estimator._current.get().config.lambda_corr)
        return batch


class Manager:
    rho = 0.3

    def pop_statistics(self):
        return {}


class Trainer(CIPOTrainerMixin, Verl):
    def __init__(self, guard="adapt", alarms=(), lambda_factor=1.0):
        self.cipo = CIPOConfig(guard=guard, lambda_corr=2.0)
        self.config = OmegaConf.create({"actor_rollout_ref": {"actor": {"loss_agg_mode": "token-mean"}}})
        state = TrainerState.initial(self.cipo)
        self._state = replace(state, guard=replace(state.guard, alarms=tuple(alarms), lambda_factor=lambda_factor))
        self.agent_loop_manager = Manager()
        self.global_steps = 7
        self.weights = []


def one_step(trainer) -> dict:
    metrics = {}
    trainer.step(metrics, {})
    return metrics


@pytest.mark.parametrize(("guard", "weight"), [("adapt", 0.8), ("warn", 2.0), ("off", 2.0)])
def test_only_adapt_lowers_the_weight_of_the_corrections(guard, weight):
    trainer = Trainer(guard, alarms=("copying",), lambda_factor=0.4)
    one_step(trainer)
    assert trainer.weights == [pytest.approx(weight)]


def test_a_step_moves_guard_and_rho():
    trainer = Trainer()
    metrics = one_step(trainer)
    guard = trainer._state.guard
    levels = [guard.w2c, guard.accuracy, guard.copy_rate, guard.entropy]
    assert [level.value for level in levels] == pytest.approx([0.5, 0.5, 0.5, 1.0])
    assert guard.c2c.count == 0
    assert metrics["cipo/copy_rate_failed"] == 0.5
    assert {f"cipo/guard/{alarm}" for alarm in ALARMS} <= metrics.keys()
    assert metrics["cipo/lambda"] == 2.0 and metrics["cipo/rho"] == 0.3


def test_off_looks_at_nothing():
    trainer = Trainer("off")
    metrics = one_step(trainer)
    assert trainer._state.guard == GuardState.initial()
    assert not any(name.startswith("cipo/guard") for name in metrics)


def test_an_entropy_that_is_no_number_ends_no_run(caplog):
    trainer = Trainer()
    trainer.entropy = float("nan")
    with caplog.at_level(logging.ERROR, logger="verl_cipo"):
        one_step(trainer)
    assert trainer._state.guard.entropy.count == 0
    assert "actor/entropy is nan" in caplog.text


def test_an_alarm_is_said_once(caplog, monkeypatch):
    from verl_cipo.integration import trainer as module

    def alarmed(state, signals):
        return replace(state, alarms=("copy_rate",))

    monkeypatch.setattr(module, "update_guard", alarmed)
    trainer = Trainer()
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        assert one_step(trainer)["cipo/guard/copy_rate"] == 1.0
        one_step(trainer)
    said = [record for record in caplog.records if "guard:" in record.message]
    assert len(said) == 1 and "step 7" in said[0].message
