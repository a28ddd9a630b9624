"""What verl's trainer does with a sampled batch: padding, balancing, advantages, mini-batches, metrics."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.contracts.support.seams import check_parameters, load, parameters, seam

BASE = "verl.trainer.ppo.v1:PPOTrainer"
TRAINER, JOINT = "verl_cipo/integration/train/trainer.py", "verl_cipo/integration/train/joint_update.py"


def put_row(store, key: str, prompt: int = 3, response: int = 2, reward: float = 0.0, **fields) -> None:
    mask = torch.ones(response, dtype=torch.int64)
    rewards = torch.zeros(response)
    rewards[-1] = reward
    row = {
        "prompts": torch.full((prompt,), 5),
        "responses": torch.full((response,), 6),
        "input_ids": torch.tensor([5] * prompt + [6] * response),
        "position_ids": torch.arange(prompt + response),
        "attention_mask": torch.ones(prompt + response, dtype=torch.int64),
        "response_mask": mask,
        "loss_mask": mask,
        "rm_scores": rewards,
        "old_log_probs": torch.full((response,), -0.5),
        "uid": key.rsplit("_", 2)[0],
        "index": 0,
        "extra_fields": {"cipo": {"correct": True}},
        "num_turns": 2,
    }
    tag = {"status": "success", "prompt_len": prompt, "response_len": response, "seq_len": prompt + response}
    store.put(key, {**tag, "global_steps": 1, "min_global_steps": 1, "max_global_steps": 1}, **{**row, **fields})


class Workers:
    """The actor's worker group with two ranks."""

    _dispatch_info = {"actor": [0, 1]}

    def __init__(self):
        self.updates = []

    def update_actor(self, batch):
        self.updates.append(dict(batch.extra_info))
        return {"metrics": {"mfu": [0.5], "cipo_aux_loss": [2.0]}}


@pytest.fixture
def trainer(config):
    config.algorithm.adv_estimator = "contract_probe"
    config.algorithm.rollout_correction = None
    return SimpleNamespace(
        config=config,
        actor_rollout_wg=Workers(),
        tokenizer=SimpleNamespace(eos_token_id=7),
        global_steps=1,
        use_critic=False,
    )


@seam("PPOTrainer._balance_batch", TRAINER, "verl_cipo/integration/train/rows.py")
def test_balancing_pads_to_the_multiple_with_rows_tagged_as_padding(store, trainer):
    for key in ("a_0_0", "a_1_0", "a_c0_0_0"):
        put_row(store, key)
    asked = []
    trainer._get_required_batch_multiple = lambda dp_size: asked.append(dp_size) or 4
    metrics = {}
    batch = load(f"{BASE}._balance_batch")(trainer, store.meta("a_0_0", "a_1_0", "a_c0_0_0"), metrics)
    assert asked == [2], "the multiple is no longer asked of _get_required_batch_multiple(dp_size)"
    assert len(batch.keys) == 4 and {"a_0_0", "a_1_0", "a_c0_0_0"} < set(batch.keys)
    padding = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding", False)]
    assert len(padding) == 1 and padding[0] not in ("a_0_0", "a_1_0", "a_c0_0_0")
    assert len(padding[0].rsplit("_", 2)) == 3, f"the key of a padding row is {padding[0]}, no uid_session_index"
    assert not store.rows[padding[0]]["response_mask"].any(), "a padding row would be trained"
    assert any(name.startswith("global_seqlen/") for name in metrics)


@seam("PPOTrainer._get_required_batch_multiple", TRAINER, JOINT)
def test_verl_pads_to_whole_mini_batches(trainer):
    """CIPO's own multiple takes its place: with twice the rows it would mean twice the optimizer steps."""
    trainer.config.actor_rollout_ref.actor.ppo_mini_batch_size = 6
    trainer.config.actor_rollout_ref.rollout.n = 2
    assert load(f"{BASE}._get_required_batch_multiple")(trainer, 8) == 24


@seam("PPOTrainer._update_actor, worker RPC update_actor", TRAINER, JOINT)
def test_the_actors_workers_are_told_the_mini_batch_size_with_the_batch(store, trainer):
    put_row(store, "a_0_0")
    trainer.config.actor_rollout_ref.actor.ppo_mini_batch_size = 6
    trainer.config.actor_rollout_ref.rollout.n = 2
    metrics = {}
    batch = store.meta("a_0_0")
    assert load(f"{BASE}._update_actor")(trainer, batch, metrics) is batch
    told = trainer.actor_rollout_wg.updates
    assert len(told) == 1 and told[0]["mini_batch_size"] == 12, f"the workers are told {told}"
    assert told[0]["epochs"] == trainer.config.actor_rollout_ref.actor.ppo_epochs
    assert metrics["actor/cipo_aux_loss"] == 2.0, "a loss's metric is no longer logged under actor/"


@seam("TrainingWorker.train_mini_batch", JOINT, "verl_cipo/integration/train/loss.py")
def test_the_workers_cut_mini_batches_in_the_order_of_the_batch(monkeypatch):
    """mini_batch_size counts the rows of all ranks; nothing is shuffled by default."""
    workers = load("verl.workers.engine_workers")
    made = {}

    def make_iterator(data, mini_batch_size, epochs, seed, dataloader_kwargs):
        made.update(mini_batch_size=mini_batch_size, epochs=epochs, dataloader_kwargs=dataloader_kwargs)
        raise InterruptedError

    monkeypatch.setattr(workers.tu, "make_iterator", make_iterator)
    engine = SimpleNamespace(get_data_parallel_size=lambda: 2, get_data_parallel_rank=lambda: 0)
    tensordict = load("tensordict:TensorDict")
    data = tensordict({"position_ids": torch.zeros(4, 3)}, batch_size=4)
    for name, value in {"mini_batch_size": 4, "epochs": 1, "dataloader_kwargs": {"shuffle": False}}.items():
        workers.tu.assign_non_tensor_data(data, name, value)
    with pytest.raises(InterruptedError):
        load("verl.workers.engine_workers:TrainingWorker").train_mini_batch(SimpleNamespace(engine=engine), data)
    assert made == {"mini_batch_size": 2, "epochs": 1, "dataloader_kwargs": {"shuffle": False}}


@seam("PPOTrainer._compute_advantage", TRAINER, "verl_cipo/integration/train/estimator.py")
def test_an_estimator_gets_rewards_mask_config_and_groups_in_the_order_of_the_batch(store, trainer, monkeypatch):
    keys = ["b_1_0", "a_c2_0_0", "b_0_0"]
    for i, key in enumerate(keys):
        put_row(store, key, response=i + 1, reward=float(i))
    seen = {}

    def estimator(**arguments):
        seen.update(arguments)
        advantages = arguments["token_level_rewards"] + 10 * arguments["response_mask"]
        return advantages, advantages

    registry = load("verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY")
    monkeypatch.setitem(registry, "contract_probe", estimator)
    metrics = {}
    batch = load(f"{BASE}._compute_advantage")(trainer, store.meta(*keys), metrics)
    assert seen["config"] is trainer.config.algorithm
    assert seen["token_level_rewards"].tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 2]]
    assert seen["response_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert list(seen["index"]) == ["b", "a_c2", "b"], "the group is no longer the row's uid"
    assert batch.keys == keys
    assert [store.rows[key]["advantages"].tolist() for key in keys] == [[10], [10, 11], [10, 10, 12]]


@seam("ray_trainer.compute_advantage", "verl_cipo/integration/train/estimator.py")
def test_compute_advantage_takes_what_it_did():
    check_parameters(
        "verl.trainer.ppo.ray_trainer:compute_advantage",
        ["data", "adv_estimator", "gamma", "lam", "num_repeat", "norm_adv_by_std_in_grpo", "config"],
    )


@seam("PPOTrainer._compute_metrics", "verl_cipo/integration/train/aux.py")
def test_rows_tagged_as_padding_stay_out_of_verls_metrics(store, trainer, monkeypatch):
    zeros = torch.zeros(2)
    for key, reward in (("a_0_0", 1.0), ("pad_0_0", 5.0)):
        put_row(store, key, reward=reward, advantages=zeros, returns=zeros)
    store.tags["pad_0_0"]["is_padding"] = True
    seen = []
    module = load("verl.trainer.ppo.v1.trainer_base")

    def compute(batch, **_):
        seen.append(batch.batch["token_level_scores"].sum().item())
        raise InterruptedError

    monkeypatch.setattr(module, "compute_data_metrics", compute)
    trainer._rollout_moe_lb_metrics_accumulator = None
    batch = store.meta("a_0_0", "pad_0_0")
    with pytest.raises(InterruptedError):
        load(f"{BASE}._compute_metrics")(trainer, batch, {}, {}, global_steps=1, epoch=0)
    assert seen == [1.0], "rows of the auxiliary loss alone would count in verl's metrics"


@seam("PPOTrainer._compute_old_log_prob", "verl_cipo/integration/train/aux.py")
def test_old_log_probs_and_entropy_are_written_for_the_rows_responses(store, trainer):
    put_row(store, "a_0_0", prompt=2, response=2)
    put_row(store, "a_c0_0_0", prompt=3, response=1)

    def compute_log_prob(batch):
        for key in batch.keys:
            length = len(store.rows[key]["input_ids"])
            store.rows[key].update(log_probs=-torch.arange(1.0, length + 1), entropy=torch.ones(length))
        return batch

    trainer.actor_rollout_wg.compute_log_prob = compute_log_prob
    trainer.config.actor_rollout_ref.rollout.calculate_log_probs = False
    metrics = {}
    load(f"{BASE}._compute_old_log_prob")(trainer, store.meta("a_0_0", "a_c0_0_0"), metrics)
    assert store.rows["a_0_0"]["old_log_probs"].tolist() == [-2, -3], "log-probs are shifted by one token"
    assert store.rows["a_c0_0_0"]["old_log_probs"].tolist() == [-3]
    assert metrics["actor/entropy"] == pytest.approx(1.0), "the guard reads actor/entropy"


@seam("utils of row padding: PADDING key and tag", "verl_cipo/evaluation/dumps/rows.py")
def test_a_padding_rows_uid_starts_with_pad(store, trainer):
    put_row(store, "a_0_0")
    pad = load("verl.trainer.ppo.padding_utils:upsample_batch_to_divisible_size")
    assert parameters(pad) == ["batch", "batch_multiple", "eos_token_id"]
    batch = pad(store.meta("a_0_0"), 3, 7)
    assert [key.startswith("pad") for key in batch.keys] == [False, True, True]
    assert np.unique([key.rsplit("_", 2)[0] for key in batch.keys[1:]]).size == 1


@seam("core_algos.compute_grpo_outcome_advantage", "benchmarks", "verl_cipo/core/advantage.py")
def test_grpo_subtracts_the_groups_mean_and_divides_by_its_deviation():
    compute = load("verl.trainer.ppo.core_algos:compute_grpo_outcome_advantage")
    rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 5.0]]), torch.ones(3, 2)
    advantages, returns = compute(rewards, mask, np.array(["a", "a", "b"], dtype=object))
    # Mean 0.5, deviation sqrt(0.5) of two samples; a group of one keeps its reward.
    expected = 0.5 / 0.5**0.5
    assert advantages[:, 0].tolist() == pytest.approx([expected, -expected, 5.0], abs=1e-4)
    assert torch.equal(advantages, returns)


@seam("core_algos.compute_grpo_outcome_advantage, rejected rows", "verl_cipo/core/advantage.py")
def test_a_row_that_rollout_correction_rejects_counts_in_its_groups_mean():
    compute = load("verl.trainer.ppo.core_algos:compute_grpo_outcome_advantage")
    advantages, _ = compute(
        token_level_rewards=torch.tensor([[1.0], [0.0], [0.0]]),
        response_mask=torch.tensor([[1], [1], [0]]),
        index=np.array(["a", "a", "a"], dtype=object),
        norm_adv_by_std_in_grpo=False,
    )
    assert advantages.squeeze(1).tolist() == pytest.approx([2 / 3, -1 / 3, 0.0])


@seam("v1.utils.compute_advantage_for_multi_trajectories", "benchmarks", TRAINER)
def test_the_trainers_advantage_function_takes_the_keys_of_the_rows():
    check_parameters(
        "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories",
        [
            *("data", "batch_keys", "adv_estimator", "gamma", "lam", "num_repeat"),
            *("norm_adv_by_std_in_grpo", "config"),
        ],
    )
