"""CIPO's V0 trainer: how it gets verl's place, and what a step does to rows, advantages and mini-batches.

verl's workers are replaced; tests/real/test_v0.py has the whole path. The rollout side: test_v0_rollout.py.
"""

import gc
import weakref
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.trainer import main_ppo_v0
from verl.trainer.ppo.ray_trainer import RayPPOTrainer, compute_advantage

from tests.fast.integration.scored_batch import PAD, R, encode, scored
from verl_cipo.core.advantage import BASE, CORRECTION, two_stream_advantage
from verl_cipo.core.anchors import Outcome
from verl_cipo.core.config import AuxConfig, CIPOConfig, CIPOConfigError, TransferConfig
from verl_cipo.core.steering.budget import Sums
from verl_cipo.integration import ChangedSeamError
from verl_cipo.integration.tools import NO_TOOLS
from verl_cipo.integration.train import estimator
from verl_cipo.integration.train.checkpoint import TrainerState
from verl_cipo.integration.train.controller import Controller
from verl_cipo.integration.train.loss import TERM_SCALE
from verl_cipo.integration.v0 import trainer as legacy
from verl_cipo.integration.v0.rows import objects, row_table

# ---- its place


@pytest.fixture
def verls_place(monkeypatch):
    monkeypatch.setattr(main_ppo_v0, "RayPPOTrainer", RayPPOTrainer)


def test_verls_task_runner_builds_cipos_trainer(verls_place):
    legacy.take_place()
    legacy.take_place()
    runner = main_ppo_v0.TaskRunner.__ray_metadata__.modified_class
    # What cloudpickle, with which Ray sends the class to its actor, takes for the name.
    assert legacy.inspect.unwrap(runner.run).__globals__["RayPPOTrainer"] is legacy.CIPOTrainerV0


def test_a_task_runner_that_builds_something_else_is_loud(verls_place, monkeypatch):
    monkeypatch.setattr(main_ppo_v0, "RayPPOTrainer", object)
    with pytest.raises(ChangedSeamError, match="no longer builds a RayPPOTrainer"):
        legacy.take_place()
    monkeypatch.setattr(main_ppo_v0, "RayPPOTrainer", RayPPOTrainer)
    runner = main_ppo_v0.TaskRunner.__ray_metadata__.modified_class
    monkeypatch.setattr(runner, "run", lambda self, config: None)
    with pytest.raises(ChangedSeamError, match="no longer builds a RayPPOTrainer"):
        legacy.take_place()


def test_another_estimator_is_refused():
    with pytest.raises(CIPOConfigError, match="algorithm.adv_estimator=grpo with CIPO's V0 trainer"):
        legacy.CIPOTrainerV0(OmegaConf.create({"algorithm": {"adv_estimator": "grpo"}}))


def test_a_manager_that_rolls_no_corrections_out_is_refused(monkeypatch):
    monkeypatch.setattr(RayPPOTrainer, "init_workers", lambda self: None)
    trainer = made()
    trainer.async_rollout_manager = object()
    with pytest.raises(CIPOConfigError, match="CIPOAgentLoopManagerV0"):
        trainer.init_workers()


# ---- a step


class Manager:
    rho = 0.3
    shares = None
    pool = None

    def __init__(self, corrections=None):
        self.corrections = corrections

    def pop_second_dispatch(self):
        return [] if self.corrections is None else [self.corrections]

    def pop_statistics(self):
        return {"anchors/total": 2.0}

    def pool_state(self):
        return {"budget": {"none": 0.25}}

    def restore_pool(self, state):
        self.pool = state


class Workers:
    """verl's worker group: what it was asked to train."""

    def __init__(self, ranks):
        self._dispatch_info = {"actor": list(range(ranks))}
        self.trained: list[TensorDict] = []

    def update_actor(self, batch):
        self.trained.append(batch)


def made(corrections=None, *, ranks=1, micro=None, reference=None, mini=2, n=4, **knobs):
    """A trainer as it is when verl has made its workers."""
    trainer = object.__new__(legacy.CIPOTrainerV0)
    trainer.cipo = CIPOConfig(preset="stream", schedule="barrier", **knobs)
    trainer.config = OmegaConf.create(
        {
            "algorithm": {"adv_estimator": "cipo", "norm_adv_by_std_in_grpo": True},
            "actor_rollout_ref": {
                "actor": {
                    "ppo_mini_batch_size": mini,
                    "use_dynamic_bsz": micro is None,
                    "ppo_micro_batch_size_per_gpu": micro,
                    "loss_agg_mode": "token-mean",
                },
                "rollout": {"n": n, "response_length": R, "log_prob_micro_batch_size_per_gpu": micro, "agent": {}},
                "ref": {"log_prob_use_dynamic_bsz": False, "log_prob_micro_batch_size_per_gpu": reference},
            },
        }
    )
    trainer._controller = Controller(trainer.cipo)
    trainer._laid_out = ExitStack()
    trainer.async_rollout_manager = Manager(corrections)
    trainer.actor_rollout_wg = Workers(ranks)
    trainer.use_reference_policy = reference is not None
    trainer.use_prefix_grouper = False
    trainer.global_steps = 7
    return trainer


OUTCOMES = ["-+--", "++--", "----", "+---"]
HAD = {
    "u0": Outcome(1, 4, 0.25, 3**0.5 / 4),
    "u1": Outcome(2, 4, 0.5, 0.5),
    "u2": Outcome(0, 4, 0.0, 0.0),
}


def attempts():
    return scored(OUTCOMES, extra=False)


def corrections(outcomes=("+-++", "----", "-+++"), anchors=("u0_c0", "u2_c1", "u1_c0")):
    """Groups of corrections as the manager keeps them; the last anchor was right."""
    batch = scored(list(outcomes), seed=1, extra=False)
    marks = "".join(outcomes)
    batch.non_tensor_batch["uid"] = objects([uid for uid, own in zip(anchors, outcomes, strict=True) for _ in own])
    batch.non_tensor_batch["index"] = np.array([int(uid[1]) for uid in batch.non_tensor_batch["uid"]])
    batch.non_tensor_batch["cipo"] = objects(
        [
            {"correct": mark == "+", "anchor_correct": uid == "u1_c0", "copied": False, **HAD[uid[:2]]._asdict()}
            for mark, uid in zip(marks, batch.non_tensor_batch["uid"], strict=True)
        ]
    )
    return batch


def one_step(trainer, batch, monkeypatch, *, entropy=1.0, reported=None):
    """verl's step between rollout and update; returns its metrics. reported: by the workers."""

    def update(self, batch):
        self.actor_rollout_wg.update_actor(batch.to_tensordict())
        return DataProto(meta_info={"metrics": reported or {}})

    monkeypatch.setattr(RayPPOTrainer, "_update_actor", update)
    metrics = {"actor/entropy": entropy}
    trainer._balance_batch(batch, metrics=metrics)
    batch.batch["token_level_rewards"] = batch.batch["token_level_scores"] = batch.batch["rm_scores"]
    compute_advantage(batch, adv_estimator="cipo", config=trainer.config.algorithm)
    trainer._update_actor(batch)
    return metrics


def test_the_batch_grows_in_place_and_holds_every_row_once(monkeypatch):
    batch, new = attempts(), corrections()
    one_step(made(new), batch, monkeypatch)
    assert sorted(row_table(batch).keys) == sorted(row_table(attempts()).keys + row_table(new).keys)
    by_key = dict(zip(row_table(batch).keys, batch.batch["input_ids"].tolist(), strict=True))
    for part in (attempts(), new):
        for key, ids in zip(row_table(part).keys, part.batch["input_ids"].tolist(), strict=True):
            assert by_key[key] == ids


def test_responses_that_are_as_long_as_one_may_be_are_counted(monkeypatch):
    batch = attempts()
    full = batch.batch["responses"][:, -1] != PAD
    metrics = one_step(made(corrections()), batch, monkeypatch)
    assert 0 < full.sum() < len(full)
    assert metrics["cipo/truncated/base"] == pytest.approx(full.float().mean().item())


def test_a_prompt_that_has_lost_all_attempts_keeps_its_further_ones(monkeypatch):
    batch = attempts()
    for mark in batch.non_tensor_batch["cipo"][12:]:
        mark["lost"] = True
    further = scored(["+-"], seed=2, extra=False)
    further.non_tensor_batch |= {
        "uid": objects(["u3", "u3"]),
        "session_id": np.array([4, 5]),
        "index": np.array([3, 3]),
        "cipo": objects([{"correct": right, "further": True} for right in (True, False)]),
    }
    one_step(made(further), batch, monkeypatch)
    assert sorted(row_table(batch).keys) == sorted([*row_table(attempts()).keys[:12], "u3_4_0", "u3_5_0"])


def with_further(batch):
    """The corrections, and two right further attempts at the first prompt, whose groups of four have one right."""
    more = scored(["++"], seed=2, extra=False)
    more.non_tensor_batch["session_id"] = np.array([4, 5])
    more.non_tensor_batch["cipo"] = objects([{"correct": True, "further": True}] * 2)
    return DataProto.concat([batch, more])


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_further_attempts_join_the_group_of_their_prompt(monkeypatch, weight):
    batch = attempts()
    batch.non_tensor_batch["extra_info"] = objects([{"row": row} for row in range(len(batch))])
    trainer = made(with_further(corrections()), lambda_corr=weight, budget="auto")
    metrics = one_step(trainer, batch, monkeypatch)
    table = row_table(batch)
    assert len(table.keys) == 16 + 2 + (12 if weight else 0)
    rows = {key: row for row, key in enumerate(table.keys)}
    own = [rows[f"u0_{session}_0"] for session in range(6)]
    assert table.rows.further[own].tolist() == [False] * 4 + [True] * 2
    assert {batch.non_tensor_batch["extra_info"][row]["row"] for row in own} <= set(range(4)), "of the same prompt"
    # 1 0 0 0 is now 0 1 0 0 1 1: the right ones are half.
    mask = batch.batch["response_mask"]
    tokens = int(mask.sum())
    factor = tokens / int(mask[torch.from_numpy(table.rows.stream == BASE)].sum())
    expected = 0.5 / (0.3**0.5 + 1e-6) * factor
    assert batch.batch["advantages"][own].max().item() == pytest.approx(expected, rel=1e-4)
    # Two optimizer steps, as GRPO's four prompts take.
    (update,) = trainer.actor_rollout_wg.trained
    assert len(update) == 2 * update["mini_batch_size"]
    assert metrics["cipo/budget/attempts"] == 2 and metrics["cipo/budget/accuracy"] == 1.0
    assert metrics["cipo/accuracy/base"] == 4 / 16 and metrics["cipo/rows/base"] == 18
    assert trainer.async_rollout_manager.shares == trainer._controller.shares != None  # noqa: E711


def test_the_budget_goes_through_the_checkpoint(monkeypatch, tmp_path):
    for name in ("_save_checkpoint", "_load_checkpoint"):
        monkeypatch.setattr(RayPPOTrainer, name, lambda self: 7)
    trainer = made(with_further(corrections()), budget="auto")
    one_step(trainer, attempts(), monkeypatch)
    sides = {"w2c": Sums.of([(1.0, 1.0)] * 20), "retry": Sums.of([(1.0, 0.0)] * 20)}
    measured = replace(trainer._controller._state.budget, **sides)
    trainer._controller._state = replace(trainer._controller._state, budget=measured)
    trainer.config.trainer = {
        "default_local_dir": str(tmp_path),
        "resume_mode": "resume_path",
        "resume_from_path": str(tmp_path / "global_step_7"),
    }
    trainer._save_checkpoint()
    resumed = made(budget="auto")
    resumed.config.trainer = trainer.config.trainer
    assert resumed._controller.shares != trainer._controller.shares
    resumed._load_checkpoint()
    assert resumed.async_rollout_manager.shares == trainer._controller.shares
    assert resumed.async_rollout_manager.pool == {"budget": {"none": 0.25}}


def test_lost_attempts_leave_the_batch_and_enter_nothing(monkeypatch):
    batch = attempts()
    for row in (1, 12, 13, 14, 15):
        batch.non_tensor_batch["cipo"][row]["lost"] = True
    trainer = made(corrections())
    one_step(trainer, batch, monkeypatch)
    keys = row_table(batch).keys
    assert len(keys) == 11 + 12 and not {"u0_1_0", "u3_0_0"} & set(keys)
    # u0's right attempt is the lost one: what is left of its group is equal.
    advantages = dict(zip(keys, batch.batch["advantages"].abs().sum(dim=-1).tolist(), strict=True))
    assert advantages["u0_0_0"] == 0 and advantages["u1_0_0"] > 0
    # As many optimizer steps as its four prompts take.
    (update,) = trainer.actor_rollout_wg.trained
    assert len(update) == 2 * update["mini_batch_size"]


def test_advantages_are_those_of_the_rows_whatever_the_trainer(monkeypatch):
    """The V1 trainers call this function on a RowTable too."""
    batch = attempts()
    trainer = made(corrections(), lambda_corr=0.5, ranks=2)
    one_step(trainer, batch, monkeypatch)
    expected = two_stream_advantage(
        batch.batch["rm_scores"],
        batch.batch["response_mask"],
        row_table(batch).rows,
        lambda_corr=0.5,
        lambda_risk=1.0,
        norm_by_std=True,
        loss_agg_mode="token-mean",
    )
    assert torch.equal(batch.batch["advantages"], expected)
    # A wrong correction of a right attempt is worth -1 in its group of -1, 1, 1, 1: mean .5, std 1, times the factor.
    rows = row_table(batch)
    i, j = rows.keys.index("u1_c0_0_0"), rows.keys.index("u1_c0_1_0")
    low, high = (batch.batch["advantages"][row][batch.batch["response_mask"][row] > 0][0] for row in (i, j))
    assert low / high == pytest.approx(-3.0)


def test_without_corrections_advantages_are_grpos_bit_for_bit(monkeypatch):
    batch = attempts()
    one_step(made(replay_fraction=0), batch, monkeypatch)
    ours = batch.batch["advantages"].clone()
    compute_advantage(batch, adv_estimator="grpo", norm_adv_by_std_in_grpo=True)
    assert len(batch) == 16 and torch.equal(ours, batch.batch["advantages"]) and ours.any()


def test_lambda_corr_0_measures_corrections_and_trains_none(monkeypatch):
    batch = attempts()
    metrics = one_step(made(corrections(), lambda_corr=0), batch, monkeypatch)
    assert len(batch) == 16 and (row_table(batch).rows.stream == BASE).all()
    assert metrics["cipo/rows/correction"] == 12 and metrics["cipo/transitions/w2c"] == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("ranks", "micro", "reference", "size"),
    [(1, None, None, 28), (2, None, None, 28), (2, 3, None, 36), (1, None, 5, 30)],
)
def test_as_many_mini_batches_as_grpo_each_with_both_streams(monkeypatch, ranks, micro, reference, size):
    """4 prompts, ppo_mini_batch_size 2: GRPO takes 2 steps. 28 rows; whole micro-batches of 3 on 2 ranks make it 36,
    those of 5 of a reference policy 30."""
    trainer = made(corrections(), ranks=ranks, micro=micro, reference=reference)
    batch = attempts()
    metrics = one_step(trainer, batch, monkeypatch)
    (trained,) = trainer.actor_rollout_wg.trained
    assert len(trained) == size and trained["mini_batch_size"] == size // 2
    assert metrics["cipo/rows/padding"] == size - 28
    assert len(batch) == 28, "padding got into the trainer's batch"
    corrected = np.array(["_c" in uid for uid in trained["uid"]]) & trained["response_mask"].any(-1).numpy()
    real = trained["response_mask"].any(-1).numpy()
    assert real.sum() == 28 and corrected.sum() == 12
    for rank in np.split(np.arange(size), ranks):
        for part in np.split(rank, 2):
            assert 1 <= corrected[part].sum() < real[part].sum()


@pytest.mark.parametrize(("mode", "scale"), [("token-mean", 1.0), ("seq-mean-token-sum", 16 / 28)])
def test_the_workers_are_told_what_the_terms_of_the_loss_weigh(monkeypatch, mode, scale):
    """16 attempts and 12 corrections."""
    trainer = made(corrections())
    trainer.config.actor_rollout_ref.actor.loss_agg_mode = mode
    one_step(trainer, attempts(), monkeypatch)
    assert trainer.actor_rollout_wg.trained[0][TERM_SCALE] == pytest.approx(scale)


def test_each_rank_gets_its_rows_in_the_order_of_v1(monkeypatch):
    """Rows of one length need no balancing: with one rank the order is the V1 trainers' own."""
    from verl_cipo.integration.train.joint_update import interleaved

    trainer, batch = made(corrections()), attempts()
    one_step(trainer, batch, monkeypatch)
    table = trainer._sampled
    stable = np.array(table.stable_order(table.keys, seed=trainer.cipo.seed, step=7))
    expected = stable[interleaved(table.rows.stream[stable])]
    assert row_table(batch).keys == [table.keys[row] for row in expected]
    assert (row_table(batch).rows.stream == CORRECTION).sum() == 12


@pytest.mark.parametrize("method", ["_compute_old_log_prob", "_compute_ref_log_prob"])
def test_log_probs_come_back_without_padding(monkeypatch, method):
    trainer, batch = made(corrections(), ranks=2, micro=3), attempts()
    seen = []

    def compute(self, batch):
        seen.append(len(batch))
        computed = DataProto.from_dict(tensors={"of": batch.batch["input_ids"].clone()})
        return (computed, 0.5) if method == "_compute_old_log_prob" else computed

    monkeypatch.setattr(RayPPOTrainer, method, compute)
    trainer._balance_batch(batch, {})
    computed = getattr(trainer, method)(batch)
    computed = computed[0] if isinstance(computed, tuple) else computed
    assert seen == [36] and torch.equal(computed.batch["of"], batch.batch["input_ids"])


def test_no_mini_batch_is_padding_alone():
    """28 rows on two ranks in micro-batches of 5: 12 rows fill up, in eight mini-batches of 5."""
    trainer, batch = made(corrections(), ranks=2, micro=5, mini=1), attempts()
    trainer._balance_batch(batch, {})
    trained = (trainer._padding.add(batch).batch["response_mask"].sum(dim=-1) > 0).numpy()
    assert len(trained) == 40 and trained.sum() == len(batch) == 28
    assert all(part.any() for part in np.split(trained, 2 * trainer._steps))


def test_a_step_ends_with_metrics_rho_and_the_guard(monkeypatch):
    trainer = made(corrections())
    metrics = one_step(trainer, attempts(), monkeypatch)
    assert metrics["cipo/rho"] == 0.3 and metrics["cipo/anchors/total"] == 2
    assert metrics["cipo/retention"] == 0.75 and metrics["cipo/reward/base"] == pytest.approx(4 / 16)
    # .3 * (1 + .8 * (.8 - .75) + .05 * 1 step below the target)
    assert trainer.async_rollout_manager.rho == pytest.approx(0.3 * 1.09)


def test_the_guard_lowers_the_weight_of_the_corrections(monkeypatch):
    def largest(factor):
        trainer, batch = made(corrections(), guard="adapt"), attempts()
        state = TrainerState.initial(trainer.cipo)
        state = replace(state, guard=replace(state.guard, lambda_factor=factor))
        trainer._controller = Controller(trainer.cipo, state)
        one_step(trainer, batch, monkeypatch)
        return batch.batch["advantages"][torch.from_numpy(row_table(batch).rows.stream == CORRECTION)].abs().max()

    assert largest(0.4) == pytest.approx(0.4 * largest(1.0).item())


def test_the_estimator_forgets_the_rows_when_training_ends(monkeypatch):
    trainer, batch = made(corrections()), attempts()
    monkeypatch.setattr(RayPPOTrainer, "fit", lambda self: one_step(self, batch, monkeypatch))
    trainer.fit()
    with pytest.raises(RuntimeError, match="outside the CIPO trainer"):
        compute_advantage(batch, adv_estimator="cipo", config=trainer.config.algorithm)


def test_a_step_keeps_nothing_of_the_one_before():
    trainer = made(corrections())
    with trainer._laid_out:
        trainer._balance_batch(attempts(), {})
        before = weakref.ref(estimator._current.get())
        trainer._balance_batch(attempts(), {})
        gc.collect()
        assert before() is None


class Chat:
    """Rendering, as far as pairs need it."""

    class prompt:
        @staticmethod
        def build(messages, attempt):
            return [{"role": "user", "content": f"fix {attempt}"}], None

        @staticmethod
        def decode(ids):
            return "".join(map(chr, ids))

    tools = NO_TOOLS

    @staticmethod
    def encode(messages, tools):
        return encode(messages[0]["content"])


@pytest.mark.parametrize("kind", ["nll", "contrastive"])
def test_the_auxiliary_loss_gets_its_rows_and_the_trainer_keeps_its_own(monkeypatch, kind):
    trainer = made(corrections(), source="both", replay_fraction=0.5, aux=AuxConfig(coef=0.1, kind=kind))
    trainer._rendering = Chat
    trainer.tokenizer = type("Tokenizer", (), {"pad_token_id": 0})

    def log_prob(self, batch):
        return DataProto.from_dict(tensors={"old_log_probs": -torch.ones(len(batch), R)}), 0.0

    monkeypatch.setattr(RayPPOTrainer, "_compute_old_log_prob", log_prob)
    batch = attempts()
    metrics = one_step(trainer, batch, monkeypatch)
    (trained,) = trainer.actor_rollout_wg.trained
    # Right corrections of wrong attempts: 3, of one attempt; and a right rollout for each of 2 wrong attempts.
    chosen, rejected = (3 + 2, 0) if kind == "nll" else (1 + 2, 1 + 2)
    assert (trained["cipo_aux_sign"] == 1).sum() == chosen and (trained["cipo_aux_sign"] == -1).sum() == rejected
    appended = 2 if kind == "nll" else 5
    assert metrics["cipo/rows/aux"] == appended and metrics["cipo/aux/pairs"] == 2
    assert metrics["cipo/aux/rows"] == chosen
    assert len(batch) == 28 and len(trained) == 28 + appended + metrics["cipo/rows/padding"]
    assert trained["mini_batch_size"] * 2 == len(trained)
    partners = trained["cipo_aux_partner"][trained["cipo_aux_sign"] != 0]
    assert (partners == (-1.0 if kind == "contrastive" else 0.0)).all()


@pytest.mark.parametrize(("kind", "weights"), [("regress", [0.75, -0.25, 0.75, 0.75]), ("inject", [0.6 / 0.3**0.5])])
@pytest.mark.parametrize("norm_by_std", [True, False])
def test_corrections_are_transferred_and_counted(monkeypatch, kind, weights, norm_by_std):
    """Of prompt 0, of whose four attempts one is right; those of prompt 2 are as wrong as its attempts."""
    trainer = made(corrections(), transfer=TransferConfig(kind=kind, below=0.25))
    trainer.config.algorithm.norm_adv_by_std_in_grpo = norm_by_std
    trainer._rendering, trainer.tokenizer = Chat, type("Tokenizer", (), {"pad_token_id": 0})
    reported = {"actor/cipo_transfer_loss": [-1.0, -3.0], "actor/loss": [2.0]}
    reported |= {"actor/cipo_transfer_log_prob": [-3.0, -6.0], "actor/cipo_transfer_tokens": [1.0, 2.0]}
    metrics = one_step(trainer, attempts(), monkeypatch, reported=reported)
    (trained,) = trainer.actor_rollout_wg.trained
    moved = trained["cipo_transfer_weights"].sum(-1)
    # Two optimizer steps, four prompts; regress: four rows; inject: four attempts.
    found = sorted(moved[moved != 0].tolist())
    if kind == "inject" and not norm_by_std:
        # 1 - 2 / 5
        weights = [0.6]
    expected = sorted(2 / 4 / 4 * weight for weight in weights)
    assert found == pytest.approx(expected, rel=1e-5)
    assert {uid for uid, weight in zip(trained["uid"], moved, strict=True) if weight} == {"u0_c0q"}
    assert metrics["cipo/transfer/rows"] == len(weights) and metrics["cipo/transfer/prompts"] == 1
    assert metrics["cipo/transfer/skipped/no_advantage"] == (4 if kind == "regress" else 0)
    assert metrics["cipo/transfer/loss"] == -2 and metrics["cipo/transfer/mean_log_prob"] == -3
    assert len(trained) == 28 + len(weights) + metrics["cipo/rows/padding"]
    assert "cipo_aux_sign" not in trained.keys() and "cipo/aux/rows" not in metrics


def test_the_dump_names_the_rows(monkeypatch):
    written = {}
    monkeypatch.setattr(RayPPOTrainer, "_log_rollout_data", lambda self, batch, infos, *_: written.update(infos))
    trainer, batch = made(corrections()), attempts()
    trainer._balance_batch(batch, {})
    trainer._log_rollout_data(batch, {"acc": [0] * 28}, {}, "folder")
    assert written["uid"] == row_table(batch).keys and written["acc"] == [0] * 28


@pytest.mark.parametrize("val_corrections", [0, 1])
def test_a_validation_logs_one_table_with_what_there_is(monkeypatch, val_corrections):
    logged = []

    def validate(self, merged):
        self._maybe_log_val_generations(inputs=["Q"], outputs=["5"], scores=[0.0])
        return {"val": 1.0}

    record = {"question": "Q", "session": 0, "attempt": "5", "anchor_correct": False, "score": 0.0, "corrections": []}
    monkeypatch.setattr(RayPPOTrainer, "_validate", validate)
    monkeypatch.setattr(RayPPOTrainer, "_maybe_log_val_generations", lambda self, **table: logged.append(table))
    trainer = made()
    trainer.global_steps = 1
    trainer.cipo = CIPOConfig(preset="stream", val_corrections=val_corrections)
    trainer.async_rollout_manager = SimpleNamespace(pop_validation=lambda: ([record], {}))
    trainer.config.actor_rollout_ref.rollout = {"val_kwargs": {"temperature": 1.0}}
    trainer.config.trainer = {}
    metrics = trainer._validate()
    assert metrics["val"] == 1 and ("cipo/val/accuracy_turn2" in metrics) == bool(val_corrections)
    (table,) = logged
    assert table["outputs"] == [["5"], ["5\n\n--- wrong, not corrected"]][val_corrections]
