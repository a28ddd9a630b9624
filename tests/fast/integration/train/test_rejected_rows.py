"""Rows that rollout correction rejects, by verl itself: the attempts keep GRPO's gradient in both trainers."""

from contextlib import ExitStack

import pytest
import torch
import transfer_queue as tq
from hydra import compose, initialize_config_module
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_add_to_batch

from tests.contracts.support.store import FUNCTIONS, Store
from tests.fast.integration.scored_batch import scored
from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.stopwatch import Stopwatch
from verl_cipo.integration.train.controller import Controller
from verl_cipo.integration.train.estimator import BatchRows, rows_of_batch
from verl_cipo.integration.train.rows import fetch_table
from verl_cipo.integration.train.trainer import CIPOTrainerSync
from verl_cipo.integration.v0.rows import objects, row_table

REJECTION = [
    "algorithm.rollout_correction.rollout_rs=seq_max_k2",
    "algorithm.rollout_correction.rollout_rs_threshold=1",
]
CORRECTIONS = [f"a_c1_{i}_0" for i in range(4)]


def composed(estimator: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                "actor_rollout_ref.rollout.name=vllm",
                f"algorithm.adv_estimator={estimator}",
                "actor_rollout_ref.actor.loss_agg_mode=token-mean",
                *REJECTION,
            ],
        )


def put(store: Store, key: str, *, length: int, reward: float, rejected: bool, mark: dict | None) -> None:
    mask = torch.ones(length, dtype=torch.int64)
    rewards = torch.zeros(length)
    rewards[-1] = reward
    store.put(
        key,
        {"response_len": length},
        uid=key.rsplit("_", 2)[0],
        index=0,
        response_mask=mask,
        loss_mask=mask,
        rm_scores=rewards,
        old_log_probs=torch.full((length,), -0.5),
        # k2 = (log ratio)^2 / 2 = 10 of a rejected row, 0 of the others.
        rollout_log_probs=torch.full((length,), -5.0 if rejected else -0.5),
        extra_fields={} if mark is None else {"cipo": mark},
        data_source="toy",
    )


def trainer(estimator: str = "cipo") -> CIPOTrainerSync:
    """A trainer as `_compute_advantage` finds it."""
    made = object.__new__(CIPOTrainerSync)
    made.config = composed(estimator)
    made.cipo = CIPOConfig(preset="stream", lambda_corr=0.5)
    made._controller = Controller(made.cipo)
    made._advantage_seconds = 0.0
    made._own_time = Stopwatch()
    return made


def gradient_weights(store: Store, batch) -> dict[str, torch.Tensor]:
    """What each token's log-probability is weighed with in token-mean: verl's V1 engines divide by loss_mask."""
    total = sum(int(store.rows[key]["loss_mask"].sum()) for key in batch.keys)
    rows = {key: store.rows[key] for key in batch.keys}
    return {key: row["advantages"] * row["response_mask"] / total for key, row in rows.items()}


@pytest.mark.parametrize("rejected", range(5))
def test_v1_attempts_are_trained_as_without_corrections(monkeypatch, rejected):
    store = Store()
    for name in FUNCTIONS:
        monkeypatch.setattr(tq, name, getattr(store, name))
    attempts = ["a_0_0", "a_1_0", "a_2_0"]
    for i, key in enumerate(attempts):
        # The last attempt is rejected as well, so that both streams lose tokens.
        put(store, key, length=i + 2, reward=float(i == 0), rejected=i == 2, mark={"correct": i == 0})
    for i, key in enumerate(CORRECTIONS):
        mark = {"correct": i == 0, "anchor": 1, "anchor_correct": False, "copied": False}
        put(store, key, length=3, reward=float(i == 0), rejected=i < rejected, mark=mark)

    def weights(keys):
        made = trainer()
        batch = store.meta(*keys)
        made._tables = [fetch_table(batch, threshold=lambda _: 0.5)]
        return gradient_weights(store, made._compute_advantage(batch, {}))

    # Without corrections it is GRPO: 9 tokens.
    alone = weights(attempts)
    assert alone["a_0_0"].tolist() == pytest.approx([(1 - 1 / 3) / (3**-0.5 + 1e-6) / 9] * 2)
    for key in attempts:
        store.rows[key]["response_mask"] = store.rows[key]["loss_mask"]
    joint = weights(attempts + CORRECTIONS)
    for key in attempts:
        assert joint[key].tolist() == pytest.approx(alone[key].tolist())
    # A correction that is left weighs what it weighs when none is rejected: lambda = .5 over its stream's 12 tokens.
    last = joint[CORRECTIONS[3]]
    expected = 0.0 if rejected == 4 else 0.5 * -0.25 / (0.5 + 1e-6) / 12
    assert last.tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize("rejected", range(5))
def test_v0_attempts_are_trained_as_without_corrections(rejected):
    """The V0 trainer packs the mask that is left, so that its engine divides by what was not rejected."""
    batch = scored(["+--", "+---"], extra=False)
    batch.non_tensor_batch["uid"] = objects(["u0"] * 3 + ["u0_c1"] * 4)
    for mark in batch.non_tensor_batch["cipo"][3:]:
        mark |= {"anchor": 1, "anchor_correct": False, "copied": False}
    batch.batch["old_log_probs"] = batch.batch["rollout_log_probs"].clone()
    batch.batch["rollout_log_probs"][[2, *range(3, 3 + rejected)]] -= 9.0
    batch.batch["token_level_rewards"] = batch.batch["rm_scores"]
    rows = row_table(batch).rows
    config = composed("cipo").algorithm

    def weights(part, rows):
        part, _ = compute_rollout_correction_and_add_to_batch(part, config.rollout_correction)
        context = BatchRows(rows=rows, config=CIPOConfig(preset="stream", lambda_corr=0.5), loss_agg_mode="token-mean")
        with ExitStack() as stack:
            stack.enter_context(rows_of_batch(context))
            part = compute_advantage(part, adv_estimator="cipo", config=config)
        mask = part.batch["response_mask"]
        return part.batch["advantages"] * mask / mask.sum()

    alone = weights(batch[:3], rows.take(range(3)))
    joint = weights(batch, rows)
    assert torch.allclose(joint[:3], alone, rtol=1e-5) and alone[:2].abs().sum() > 0


def test_a_row_that_was_finished_before_the_switch_is_an_attempt(monkeypatch):
    """Async trainers resume a GRPO run with its finished trajectories, which no worker of CIPO has marked."""
    store = Store()
    for name in FUNCTIONS:
        monkeypatch.setattr(tq, name, getattr(store, name))
    infos = [{"acc": True, "score": 0.25}, {"acc": 1.0, "overlong_reward": -0.75}, {"acc": 0.0}, None]
    for i, info in enumerate(infos):
        put(store, f"a_{i}_0", length=2, reward=0.25, rejected=False, mark=None)
        store.rows[f"a_{i}_0"]["extra_fields"] = {} if info is None else {"reward_extra_info": info}
    put(store, "b_0_0", length=2, reward=0.25, rejected=False, mark={"correct": True})

    batch = store.meta(*store.rows)
    assert fetch_table(batch, threshold=lambda _: 0.5).rows.correct.tolist() == [True, True, False, False, True]
    table = fetch_table(batch, threshold={"toy": 0.2}.__getitem__)
    assert table.rows.correct.tolist() == [True, True, False, True, True]
    assert not table.rows.anchor_correct.any() and (table.rows.stream == 0).all()
    assert table.attempts()[0][0].pass_rate == 0.75
