"""TransferQueue and verl's replay buffer: how rows are found, fetched, changed and cleared; verl's tensor helpers."""

import time
from types import SimpleNamespace

import pytest
import torch
import transfer_queue as tq
from tensordict import NonTensorData, TensorDict

from tests.contracts.support.seams import calls_in_order, check_accepts, check_parameters, load, parameters, seam

BUFFER = "verl.trainer.ppo.v1.replay_buffer"
ROWS, AUX = "verl_cipo/integration/train/rows.py", "verl_cipo/integration/train/aux.py"


@seam("transfer_queue, the functions on keys", ROWS, AUX, "verl_cipo/integration/train/trainer.py")
def test_rows_are_read_written_and_cleared_by_key():
    check_accepts("transfer_queue:kv_batch_get", "keys", "partition_id", "select_fields")
    check_accepts("transfer_queue:kv_batch_put", "keys", "partition_id", "fields", "tags")
    check_accepts("transfer_queue:kv_clear", "keys", "partition_id")


@seam("transfer_queue.KVBatchMeta", ROWS, AUX, "verl_cipo/integration/train/trainer.py")
def test_a_batch_is_keys_and_tags_in_an_order_that_can_be_changed():
    tags = [{"n": 0}, {"n": 1}, {"n": 2}]
    meta = tq.KVBatchMeta(partition_id="train", keys=["a", "b", "c"], tags=tags, fields=["uid"], extra_info={"x": 1})
    kept = meta.select_keys(["c", "a"])
    assert kept.keys == ["c", "a"] and [tag["n"] for tag in kept.tags] == [2, 0]
    assert kept.partition_id == "train" and kept.extra_info == {"x": 1} and kept.fields == ["uid"]
    meta.reorder([2, 0, 1])
    assert meta.keys == ["c", "a", "b"] and [tag["n"] for tag in meta.tags] == [2, 0, 1], "reorder is not in place"
    assert len(meta) == 3


@seam("ReplayBuffer.__init__", "verl_cipo/integration/cpu/sampler.py")
@pytest.mark.parametrize("name", ["ReplayBuffer", "ReplayBufferAsync"])
def test_a_buffer_can_be_made_with_a_poll_interval(name):
    made = load(f"{BUFFER}:{name}")(
        trainer_mode="sync" if name == "ReplayBuffer" else "colocate_async",
        poll_interval=0.25,
        trainer_config={},
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        refill_fn=None,
    )
    assert made.poll_interval == 0.25


@seam("PPOTrainer._build_replay_buffer, trainer.v1.sampler.custom_sampler", "verl_cipo/integration/cpu/sampler.py")
def test_a_custom_sampler_is_a_function_called_with_keywords(config, tmp_path):
    (tmp_path / "sampler.py").write_text("def make(trainer_mode, **kwargs):\n    return trainer_mode, kwargs\n")
    config.trainer.v1.sampler.custom_sampler = {"path": str(tmp_path / "sampler.py"), "name": "make"}
    trainer = SimpleNamespace(config=config, trainer_mode="sync", _add_prompts_to_generate=None)
    mode, kwargs = load("verl.trainer.ppo.v1:PPOTrainer._build_replay_buffer")(trainer)
    assert mode == "sync"
    taken = parameters(load(f"{BUFFER}:ReplayBuffer.__init__"))
    assert set(kwargs) <= set(taken), f"verl gives a sampler {sorted(kwargs)}, its own takes {taken}"


@seam("ReplayBuffer._materialize_batch", "verl_cipo/integration/rollout/worker.py", ROWS)
def test_a_prompts_rows_are_those_whose_key_begins_with_its_uid(store):
    """So corrections, {uid}_c{anchor}_..., are sampled with the prompt that they were rolled out with."""
    tags = {key: {"key": key} for key in ("a", "a_0_0", "b_0_0", "a_c1_0_0", "ab_0_0", "a_c1_1_0")}
    batch = load(f"{BUFFER}:ReplayBuffer._materialize_batch")(SimpleNamespace(), "train", ["a"], tags)
    assert [key for key in batch.keys if key != "a"] == ["a_0_0", "a_c1_0_0", "a_c1_1_0"]
    assert [tag["key"] for tag in batch.tags] == batch.keys
    assert ("clear", ["a"]) in store.log, "the prompt's own key is no longer cleared"


@seam("ReplayBuffer.sample", "verl_cipo/integration/rollout/worker.py", "verl_cipo/integration/rollout/coordinator.py")
def test_a_prompt_is_sampled_once_its_status_is_terminal(store, monkeypatch):
    buffer = load(f"{BUFFER}:ReplayBuffer")(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=1,
        max_off_policy_strategy="drop",
        sampler_kwargs={},
        poll_interval=0.0,
    )
    prompts = {"a": "finished", "b": "running", "c": "failure"}
    for uid, status in prompts.items():
        store.put(uid, {"is_prompt": True, "status": status, "global_steps": 1})
        store.put(f"{uid}_c0_0_0", {"status": "success"})
    monkeypatch.setattr(tq, "kv_list", lambda partition_id=None: {"train": dict(store.tags)})
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("two prompts have ended, verl waits for more"))
    batch, _ = buffer.sample(global_steps=1, partition_id="train", batch_size=2)
    assert sorted(batch.keys) == ["a_c0_0_0", "c_c0_0_0"]


FILTER = "verl_cipo/integration/train/replay_buffer.py"


@seam("ReplayBuffer.__init__, its attributes", FILTER)
@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
def test_a_buffer_keeps_its_arguments_under_their_names(config, mode):
    """So one of ours is made of them, and the trainer's choice of them stays verl's."""
    config.algorithm.filter_groups = {"enable": True, "metric": "acc", "max_inflight_gen_batches": 1}
    trainer = SimpleNamespace(config=config, trainer_mode=mode, _add_prompts_to_generate=print)
    base = load("verl.trainer.ppo.v1:PPOTrainer")
    trainer._resolve_filter_groups_metric = lambda: base._resolve_filter_groups_metric(trainer)
    built = base._build_replay_buffer(trainer)
    assert type(built).__name__ == ("ReplayBuffer" if mode == "sync" else "ReplayBufferAsync")
    taken = {name: getattr(built, name) for name in parameters(load(f"{BUFFER}:ReplayBuffer.__init__"))}
    assert taken["refill_fn"] is print and taken["filter_groups_metric"] == "acc"
    if mode == "sync":
        assert taken["train_batch_size"] == config.data.train_batch_size and taken["gen_batch_size"] == 1


FILTERED = {
    "_dapo_filtered_keys": ["partition_id"],
    "_sampleable_terminal_keys": ["partition_id", "eviction_reasons"],
    "_evict_terminal_groups": ["global_steps", "partition_id", "eviction_reasons"],
    "_clear_groups": ["partition_id", "uids"],
    "_select_prompt_uids": ["partition_id", "sampleable_keys", "batch_size"],
    "_materialize_batch": ["partition_id", "selected_prompt_uids", "partition_snapshot"],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=seam(f"ReplayBuffer.{name}", FILTER)) for name in FILTERED])
def test_what_the_filter_overrides_keeps_its_parameters(name):
    check_parameters(f"{BUFFER}:ReplayBuffer.{name}", FILTERED[name])
    assert name not in vars(load(f"{BUFFER}:ReplayBufferAsync")), "the asynchronous buffer has one of its own"


@seam("ReplayBuffer.sample, its order", FILTER)
def test_a_look_at_the_rows_precedes_evictions_and_those_what_is_sampled():
    """The coordinator is asked whom it has admitted after the rows were looked at; these are selected at the end."""
    calls_in_order(
        f"{BUFFER}:ReplayBuffer.sample",
        *("_sync_metadata_from_transfer_queue", "_terminal_eviction_reasons", "_evict_terminal_groups"),
        *("_sampleable_terminal_keys", "refill_fn", "_select_prompt_uids", "_clear_groups", "_materialize_batch"),
    )


@seam("AgentLoopOutput.as_dict, its rm_scores", "verl_cipo/integration/rollout/groups.py")
def test_the_reward_that_groups_are_filtered_by_is_stored_in_single_precision():
    from verl_cipo.integration.rollout.groups import REWARD, metric_of

    output = load("verl.experimental.agent_loop:AgentLoopOutput")(
        prompt_ids=[1], response_ids=[2, 3], response_mask=[1, 1], reward_score=0.1, metrics={}
    )
    assert output.as_dict()["rm_scores"].sum().item() == metric_of(output, REWARD) != 0.1


TENSORDICT = "verl.utils.tensordict_utils"


@seam("tensordict_utils.assign_non_tensor_data, get_non_tensor_data", "verl_cipo/integration/rollout/manager.py")
def test_a_batch_can_carry_an_object_for_all_its_rows():
    data = TensorDict({"x": torch.zeros(2)}, batch_size=2)
    load(f"{TENSORDICT}:assign_non_tensor_data")(data, "ticket", {"batch": 3})
    get = load(f"{TENSORDICT}:get_non_tensor_data")
    assert get(data, "ticket", None) == {"batch": 3} and get(data, "absent", False) is False
    assert isinstance(data.get("ticket"), NonTensorData)


@seam("tensordict_utils.list_of_dict_to_tensordict", AUX)
def test_rows_of_different_lengths_become_one_batch():
    rows = [
        {"ids": torch.tensor([1]), "uid": "a", "raw_prompt": [{"role": "user"}], "multi_modal_inputs": {}},
        {"ids": torch.tensor([2, 3]), "uid": "b", "raw_prompt": [], "multi_modal_inputs": {}},
    ]
    data = load(f"{TENSORDICT}:list_of_dict_to_tensordict")(rows)
    assert len(data) == 2 and data["ids"].is_nested
    assert [row.tolist() for row in data["ids"].unbind()] == [[1], [2, 3]]
    assert list(data["uid"]) == ["a", "b"]
    # As aux.py reads a row back.
    assert data[1]["ids"].tolist() == [2, 3] and data[1]["uid"] == "b"


@seam("workers.utils.padding.response_to_nested", AUX)
def test_a_padded_field_over_the_response_becomes_a_nested_one():
    path = "verl.workers.utils.padding:response_to_nested"
    check_parameters(path, ["tensor", "response_mask"])
    mask = torch.nested.as_nested_tensor([torch.ones(1), torch.ones(3)], layout=torch.jagged)
    found = load(path)(torch.tensor([[1.0, 9.0, 9.0], [2.0, 3.0, 4.0]]), mask)
    assert [row.tolist() for row in found.unbind()] == [[1.0], [2.0, 3.0, 4.0]]


@seam("verl.DataProto", "verl_cipo/integration/v0/rows.py")
def test_a_padded_batch_holds_tensors_objects_and_meta_information():
    path = "verl:DataProto"
    batch = TensorDict({"x": torch.zeros(2, 1)}, batch_size=[2])
    made = load(path)(batch=batch, non_tensor_batch={}, meta_info={"step": 1})
    assert len(made) == 2 and made.batch is batch and made.meta_info == {"step": 1} and made.non_tensor_batch == {}
