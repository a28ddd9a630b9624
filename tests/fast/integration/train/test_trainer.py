"""What the trainer does with a step: the weight of the corrections, the rows of the auxiliary loss, the options.

verl's part of a step is replaced; tests/real has the whole path.
"""

import itertools
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from verl_cipo.core.aux_loss.plan import AuxPlan, NewRow
from verl_cipo.core.config import AuxConfig, CIPOConfig, NudgeConfig, TransferConfig
from verl_cipo.core.keys import RowKey
from verl_cipo.core.metrics import check_names
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.core.steering.budget import PROBE
from verl_cipo.core.steering.guard import ALARMS
from verl_cipo.integration import stopwatch
from verl_cipo.integration.stopwatch import Stopwatch
from verl_cipo.integration.train import estimator, loss
from verl_cipo.integration.train import trainer as trainer_module
from verl_cipo.integration.train.checkpoint import TrainerState
from verl_cipo.integration.train.controller import Controller
from verl_cipo.integration.train.trainer import CIPOTrainerColocateAsync, CIPOTrainerMixin

KEYS = ["a_0_0", "a_1_0", "a_c1_0_0", "a_c1_1_0"]
TABLE = RowTable.of_marks(
    KEYS,
    [
        Mark(correct=True),
        Mark(correct=False),
        Mark(correct=True, anchor_correct=False),
        Mark(correct=False, anchor_correct=False, copied=True),
    ],
    index=[0] * 4,
    scores=np.array([1.0, 0.0, 1.0, 0.0]),
    tokens=np.array([3, 4, 3, 3]),
)


class Verl:
    """verl's part: one update, which asks for the advantages of the batch."""

    def step(self, metrics, timing_raw):
        self._tables.append(TABLE)
        batch = KVBatchMeta(partition_id="train", keys=KEYS, tags=[{} for _ in KEYS])
        batch = self._compute_advantage(batch, metrics)
        metrics["actor/entropy"] = 1.0
        return batch

    def _balance_batch(self, batch, metrics):
        return batch

    def on_init_end(self):
        pass

    def _compute_advantage(self, batch, metrics):
        self.weights.append(estimator._current.get().config.lambda_corr)
        return batch


class Manager:
    rho = 0.3
    shares = None

    def pop_statistics(self):
        return {}


class Trainer(CIPOTrainerMixin, Verl):
    def __init__(self, guard="adapt", lambda_factor=1.0, **options):
        self.cipo = CIPOConfig(preset="stream", guard=guard, **{"lambda_corr": 2.0, **options})
        terms = {"use_kl_loss": False, "kl_loss_coef": 0.0, "entropy_coeff": 0.0}
        actor = {"loss_agg_mode": "token-mean", **terms}
        self.config = OmegaConf.create(
            {
                "algorithm": {"norm_adv_by_std_in_grpo": False},
                "actor_rollout_ref": {"actor": actor, "rollout": {"response_length": 4}},
            }
        )
        state = TrainerState.initial(self.cipo)
        guard_state = replace(state.guard, lambda_factor=lambda_factor)
        self._controller = Controller(self.cipo, replace(state, guard=guard_state))
        self.agent_loop_manager = Manager()
        self.global_steps = 7
        self.weights = []
        self._filters = False
        self._tables, self._aux, self._advantage_seconds, self._rendering = [], [], 0.0, None
        self._scale_of_terms = 1.0
        self._own_time = Stopwatch()


def one_step(trainer) -> dict:
    metrics = {}
    trainer.step(metrics, {})
    return metrics


def test_the_guard_weighs_the_corrections_and_a_step_is_shown_to_it():
    trainer = Trainer(guard="adapt", lambda_factor=0.4)
    metrics = one_step(trainer)
    assert trainer.weights == [pytest.approx(0.8)]
    assert metrics["cipo/copy_rate_failed"] == 0.5 and metrics["cipo/rho"] == 0.3
    assert (metrics["cipo/truncated/base"], metrics["cipo/truncated/correction"]) == (0.5, 0)
    assert {f"cipo/guard/{alarm}" for alarm in ALARMS} <= metrics.keys()


def test_the_budget_goes_to_the_rollout_manager_after_a_step():
    trainer = Trainer(budget="auto")
    metrics = one_step(trainer)
    shares = trainer.agent_loop_manager.shares
    assert shares == trainer._controller.shares and set(shares) == {"none", "some", "right"}
    assert metrics["cipo/budget/none/share"] == PROBE and metrics["cipo/budget/corrections"] == 2
    fixed = Trainer()
    assert not any(name.startswith("cipo/budget") for name in one_step(fixed))
    assert fixed.agent_loop_manager.shares is None


def test_the_run_starts_with_the_shares_of_the_checkpoint(monkeypatch):
    trainer, manager = Trainer(budget="auto"), Manager()
    monkeypatch.setattr(Verl, "fit", lambda self, agent_loop_manager: None, raising=False)
    trainer._pool = None
    trainer.fit(manager)
    assert manager.shares == trainer._controller.shares is not None


def test_the_replay_buffer_is_one_of_ours_where_groups_are_filtered(monkeypatch):
    verls, ours = SimpleNamespace(), SimpleNamespace(pop_counts=lambda: {"filter/attempts": 8.0})
    monkeypatch.setattr(Verl, "_build_replay_buffer", lambda self: verls, raising=False)
    monkeypatch.setattr(Verl, "fit", lambda self, agent_loop_manager: None, raising=False)
    monkeypatch.setattr(trainer_module, "filtering", lambda built, hosts: (built is verls and hosts) and ours)
    trainer = Trainer(schedule="replay")
    assert trainer._build_replay_buffer() is verls and "cipo/filter/attempts" not in one_step(trainer)
    trainer._filters, trainer._pool = True, None
    trainer.replay_buffer = trainer._build_replay_buffer()
    trainer.fit(trainer.agent_loop_manager)
    assert ours.manager is trainer.agent_loop_manager
    assert one_step(trainer)["cipo/filter/attempts"] == 8


def test_the_estimator_weighs_and_punishes_as_configured():
    """Corrections score 1 and 0 - lambda_risk = -3, so +-2 about their mean, times lambda_corr = .5."""
    rows = replace(TABLE.rows, anchor_correct=np.array([False, False, True, True]))
    context = estimator.BatchRows(
        rows=rows,
        config=CIPOConfig(preset="stream", lambda_corr=0.5, lambda_risk=3.0),
        loss_agg_mode="seq-mean-token-mean",
    )
    with estimator.rows_of_batch(context):
        advantages, _ = estimator.compute_cipo_advantage(
            torch.tensor([[1.0], [0.0], [1.0], [0.0]]), torch.ones(4, 1), config={"norm_adv_by_std_in_grpo": False}
        )
    assert advantages[:, 0].tolist() == [0.5, -0.5, 1.0, -1.0]


@pytest.fixture
def balanced(monkeypatch):
    """balanced(trainer, table) -> keys of the batch as verl gets it, keys that were cleared, in_stream of the loss."""

    def balance(trainer, table=TABLE):
        cleared, in_stream = [], []

        def add_aux_rows(batch, *_, **options):
            in_stream.append(options["in_stream"])
            assert options["norm_by_std"] is False
            return batch, SimpleNamespace()

        monkeypatch.setattr(trainer_module, "fetch_table", lambda batch, threshold: table)
        monkeypatch.setattr(tq, "kv_clear", lambda keys, partition_id: cleared.extend(keys))
        monkeypatch.setattr(trainer_module, "add_aux_rows", add_aux_rows)
        tags = [{"status": "success"} for _ in table.keys]
        batch = trainer._balance_batch(KVBatchMeta(partition_id="train", keys=list(table.keys), tags=tags), {})
        return batch.keys, cleared, in_stream

    return balance


def test_padding_is_spread_over_the_mini_batches_of_each_rank(balanced, monkeypatch):
    """verl puts it at the end of a rank's rows. Two ranks with two rows of padding each, in an order of verl's own."""

    def pad(self, batch, metrics):
        keys = [*batch.keys[::2], "pad0_0_0", "pad1_0_0", *batch.keys[1::2], "pad2_0_0", "pad3_0_0"]
        return KVBatchMeta(partition_id="train", keys=keys, tags=[{} for _ in keys])

    monkeypatch.setattr(Verl, "_balance_batch", pad)
    trainer = Trainer()
    trainer.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": [0, 1]})
    keys, _, _ = balanced(trainer)
    for part in (keys[:4], keys[4:]):
        assert [key.startswith("pad") for key in part[:2]].count(True) == 1, "a mini-batch of padding alone"
    real = [key for key in keys if not key.startswith("pad")]
    assert sorted(real) == sorted(KEYS)
    monkeypatch.setattr(Verl, "_balance_batch", lambda self, batch, metrics: batch)
    straight, _, _ = balanced(Trainer())
    assert real == [*straight[::2], *straight[1::2]], "rows keep their order"


def test_the_seconds_of_the_driver_are_those_of_our_own_code(monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: float(next(ticks)))
    trainer = Trainer()
    monkeypatch.setattr(Manager, "pop_statistics", lambda self: {"seconds/driver": 10.0})
    # A second for the rows of the estimator and one for the metrics; the clock of the advantages ticks in between.
    assert one_step(trainer)["cipo/seconds/driver"] == pytest.approx(12.0)
    assert one_step(trainer)["cipo/seconds/driver"] == pytest.approx(12.0), "counted from step to step"


def test_what_is_transferred_is_logged_and_is_no_padding(monkeypatch):
    moved = NewRow(key=RowKey("a_c1q", 0), source="a_c1_0_0", messages=[], prompt_ids=[], weight=0.5)
    plan = AuxPlan(rows=[moved], counts=Counter({"transfer/prompts": 1}))

    def step(self, metrics, timing_raw):
        self._tables.append(TABLE)
        self._aux.append(SimpleNamespace(plan=plan))
        metrics |= {"actor/entropy": 1.0, "actor/cipo_transfer_loss": -2.0}
        metrics |= {"actor/cipo_transfer_log_prob": -6.0, "actor/cipo_transfer_tokens": 4.0}
        keys = [*KEYS, "a_c1q_0_0", "padding"]
        return KVBatchMeta(partition_id="train", keys=keys, tags=[{"is_padding": i > 3} for i in range(6)])

    monkeypatch.setattr(Verl, "step", step)
    metrics = one_step(Trainer(transfer=TransferConfig(kind="inject")))
    assert metrics["cipo/rows/padding"] == metrics["cipo/transfer/rows"] == metrics["cipo/transfer/prompts"] == 1
    assert metrics["cipo/transfer/loss"] == -2.0 and metrics["cipo/transfer/mean_log_prob"] == -1.5
    assert not any(name.startswith("actor/cipo") or "/aux" in name for name in metrics)
    check_names(metrics)


def test_what_is_distilled_is_logged_and_is_no_padding(monkeypatch):
    marks = [Mark(correct=True, context=0, question=[]), Mark(correct=False)]
    table = RowTable.of_marks(KEYS[:2], marks, index=[0, 0], scores=np.array([1.0, 0.0]), tokens=np.array([3, 4]))
    plan = AuxPlan(rows=[NewRow(key=RowKey("a_n0", 0), source="a_0_0", messages=[], prompt_ids=[], distilled=0.5)])

    def step(self, metrics, timing_raw):
        self._tables.append(table)
        self._aux.append(SimpleNamespace(plan=plan))
        metrics |= {"actor/entropy": 1.0, "actor/cipo_nudge_loss": 2.0}
        keys = [*KEYS[:2], "a_n0_0_0", "padding"]
        return KVBatchMeta(partition_id="train", keys=keys, tags=[{"is_padding": i > 1} for i in range(4)])

    monkeypatch.setattr(Verl, "step", step)
    metrics = one_step(Trainer(nudge=NudgeConfig(contexts="hints")))
    assert metrics["cipo/rows/padding"] == metrics["cipo/nudge/rows"] == 1 and metrics["cipo/nudge/loss"] == 2.0
    assert metrics["cipo/nudge/context_share"] == 0.5
    assert (metrics["cipo/nudge/accuracy_context"], metrics["cipo/nudge/accuracy_plain"]) == (1.0, 0.0)
    check_names(metrics)


@pytest.mark.parametrize(
    ("between", "expected"), [(1.1, [0.4875, -0.5125, 0.5375, -0.5125]), (0.0, [0.625, -0.375, 0.125, -0.375])]
)
def test_the_estimator_compares_contexts(between, expected):
    """1, 0, 1 under contexts 0, 0, 1 and 0 at the plain prompt: tests/fast/core/test_nudge.py has both by hand."""
    rows = replace(TABLE.rows, stream=np.zeros(4, np.int8), group=np.array(["a"] * 4), context=np.array([0, 0, 1, -1]))
    config = CIPOConfig(preset="stream", nudge=NudgeConfig(contexts="hints", between=between))
    laid_out = estimator.BatchRows(rows=rows, config=config, loss_agg_mode="seq-mean-token-mean")
    with estimator.rows_of_batch(laid_out):
        advantages, _ = estimator.compute_cipo_advantage(
            torch.tensor([[1.0], [0.0], [1.0], [0.0]]), torch.ones(4, 1), config={"norm_adv_by_std_in_grpo": False}
        )
    assert advantages[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_corrections_without_weight_leave_the_batch(balanced, weight):
    keys, cleared, _ = balanced(Trainer(lambda_corr=weight))
    assert sorted(keys) == (KEYS if weight else KEYS[:2])
    assert cleared == ([] if weight else KEYS[2:])


@pytest.mark.parametrize(("coef", "weight", "in_stream"), [(0.0, 2.0, []), (0.5, 2.0, [True]), (0.5, 0.0, [False])])
def test_rows_for_the_auxiliary_loss_are_added_where_it_is_on(balanced, coef, weight, in_stream):
    trainer = Trainer(lambda_corr=weight, aux=AuxConfig(coef=coef))
    assert balanced(trainer)[2] == in_stream
    assert len(trainer._aux) == len(in_stream)


def test_the_order_of_the_prompts_is_drawn_by_the_seed(balanced):
    uids = "abcdefgh"
    nothing = np.zeros(8)
    keys = [f"{uid}_0_0" for uid in uids]
    eight = RowTable.of_marks(keys, [Mark(correct=True)] * 8, index=range(8), scores=nothing, tokens=nothing)
    orders = {seed: tuple(balanced(Trainer(seed=seed), eight)[0]) for seed in (1, 2, 3)}
    assert len(set(orders.values())) == 3
    assert orders[2] == tuple(balanced(Trainer(seed=2), eight)[0])


PREFERS, INJECTS = AuxConfig(coef=0.5, kind="contrastive", by_signal=False), TransferConfig(kind="inject", coef=8.0)
NO_AUX, OFF = AuxConfig(coef=0.0, by_signal=False), TransferConfig(kind="none", coef=0.0)


@pytest.mark.parametrize(
    ("knobs", "installed"),
    [
        ({}, []),
        ({"aux": PREFERS}, [(PREFERS, OFF, 0.0)]),
        ({"transfer": INJECTS}, [(NO_AUX, INJECTS, 0.0)]),
        ({"transfer": INJECTS, "aux": PREFERS}, [(PREFERS, INJECTS, 0.0)]),
        ({"transfer": INJECTS, "aux": PREFERS, "replay_fraction": 0}, [(PREFERS, OFF, 0.0)]),
        ({"transfer": TransferConfig(kind="inject", coef=0)}, []),
        ({"nudge": NudgeConfig(contexts="hints", coef=0.2), "replay_fraction": 0}, [(NO_AUX, OFF, 0.2)]),
        ({"nudge": NudgeConfig(contexts="hints", coef=0)}, []),
        ({"nudge": NudgeConfig(coef=0.2)}, []),
    ],
)
def test_the_loss_is_installed_where_it_has_weight(monkeypatch, knobs, installed):
    losses = []
    monkeypatch.setattr(loss, "build_loss", lambda actor, *added: added)
    trainer = Trainer(**knobs)
    trainer.actor_rollout_wg = SimpleNamespace(set_loss_fn=losses.append)
    trainer.on_init_end()
    assert losses == installed


def test_the_loss_is_installed_where_a_term_would_grow_with_the_corrections(monkeypatch):
    losses = []
    monkeypatch.setattr(loss, "build_loss", lambda actor, *added: added)
    trainer = Trainer()
    trainer.actor_rollout_wg = SimpleNamespace(set_loss_fn=losses.append)
    trainer.config.actor_rollout_ref.actor.update(entropy_coeff=0.01, loss_agg_mode="token-mean")
    trainer.on_init_end()
    assert losses == []
    trainer.config.actor_rollout_ref.actor.loss_agg_mode = "seq-mean-token-mean"
    trainer.on_init_end()
    assert losses == [(NO_AUX, OFF, 0.0)]
    # Two attempts and two corrections.
    monkeypatch.setattr(trainer, "_loss_tokens", lambda batch: np.array([3, 3, 3, 3]))
    one_step(trainer)
    assert trainer._scale_of_terms == 0.5


@pytest.mark.parametrize(
    ("knobs", "put"),
    [
        ({}, False),
        ({"aux": AuxConfig(coef=0.5)}, True),
        ({"transfer": TransferConfig(kind="inject")}, True),
        ({"nudge": NudgeConfig(contexts="hints")}, True),
        ({"nudge": NudgeConfig(contexts="hints", coef=0)}, False),
    ],
)
def test_the_update_gets_the_fields_of_the_loss(knobs, put):
    seen = []

    def put_fields(batch, *, optimizer_steps, config):
        seen.append(config)
        return batch

    trainer = Trainer(**knobs)
    trainer._tables, trainer._aux = [TABLE], [SimpleNamespace(put_fields=put_fields)]
    trainer._optimizer_steps = lambda: 1
    trainer._compute_advantage(KVBatchMeta(partition_id="train", keys=KEYS, tags=[{} for _ in KEYS]), {})
    assert seen == [trainer.cipo] * put


def test_timeouts_stand_still_while_the_engines_sleep():
    said = []
    trainer = object.__new__(CIPOTrainerColocateAsync)
    trainer.checkpoint_manager = SimpleNamespace(
        abort_replicas=lambda: said.append("abort"),
        sleep_replicas=lambda: said.append("sleep"),
        update_weights=lambda step: said.append("update"),
        resume_generation_replicas=lambda: said.append("resume"),
    )
    trainer.agent_loop_manager = SimpleNamespace(
        engines_sleep=lambda: said.append("clock stops"), engines_wake=lambda: said.append("clock goes on")
    )
    trainer.curr_step_profile, trainer.timing_raw, trainer.global_steps = False, {}, 1
    trainer.on_sample_end()
    trainer.on_step_end()
    assert said == ["abort", "sleep", "clock stops", "update", "resume", "clock goes on"]


@pytest.mark.parametrize("val_corrections", [0, 1])
def test_a_validation_logs_one_table_with_what_there_is(monkeypatch, val_corrections):
    logged = []

    def validate(self):
        self._maybe_log_val_generations(inputs=["Q"], outputs=["5"], scores=[0.0])
        return {"val": 1.0}

    record = {"question": "Q", "session": 0, "attempt": "5", "anchor_correct": False, "score": 0.0, "corrections": []}
    monkeypatch.setattr(Verl, "_validate", validate, raising=False)
    monkeypatch.setattr(Verl, "_maybe_log_val_generations", lambda self, **table: logged.append(table), raising=False)
    trainer = Trainer()
    trainer.cipo = CIPOConfig(preset="stream", val_corrections=val_corrections)
    trainer.agent_loop_manager = SimpleNamespace(pop_validation=lambda: ([record], {}))
    trainer.config.actor_rollout_ref.rollout = {"val_kwargs": {"temperature": 1.0}}
    trainer.config.trainer = {}
    metrics = trainer._validate()
    assert metrics["val"] == 1 and ("cipo/val/accuracy_turn2" in metrics) == bool(val_corrections)
    (table,) = logged
    assert table["outputs"] == [["5"], ["5\n\n--- wrong, not corrected"]][val_corrections]
