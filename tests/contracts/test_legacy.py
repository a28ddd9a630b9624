"""verl's V0 trainer, ``trainer.use_v1=False``: what CIPO's override or call, and in which order it happens."""

import asyncio
import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict

from tests.contracts.support.seams import calls_in_order, check_accepts, check_parameters, load, parameters, seam

V0, WORKER = "verl.trainer.ppo.ray_trainer:RayPPOTrainer", "verl.experimental.agent_loop:AgentLoopWorker"
MANAGER = "verl.experimental.agent_loop:AgentLoopManager"
TRAINER, ROLLOUTS = "verl_cipo/integration/v0/trainer.py", "verl_cipo/integration/v0/rollout.py"
SESSIONS = "verl_cipo/integration/v0/worker.py"
OVERRIDDEN = {
    "init_workers": [],
    "fit": [],
    "_balance_batch": ["batch", "metrics", "logging_prefix", "keep_minibatch"],
    "_compute_old_log_prob": ["batch"],
    "_compute_ref_log_prob": ["batch"],
    "_update_actor": ["batch"],
    "_log_rollout_data": ["batch", "reward_extra_infos_dict", "timing_raw", "rollout_data_dir"],
    "_validate": ["merged"],
    "_maybe_log_val_generations": ["inputs", "outputs", "scores"],
    "_save_checkpoint": [],
    "_load_checkpoint": [],
    "_get_dp_size": ["worker_group", "role"],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=seam(f"RayPPOTrainer.{name}", TRAINER)) for name in OVERRIDDEN]
)
def test_a_method_of_the_v0_trainer_keeps_its_parameters(name):
    check_parameters(f"{V0}.{name}", OVERRIDDEN[name])


@seam("main_ppo_v0.TaskRunner.run", TRAINER)
def test_the_task_runner_builds_its_trainer_by_a_global_name():
    """No option names V0's trainer, so CIPO's takes the name's place before Ray sends the TaskRunner away."""
    run = inspect.unwrap(load("verl.trainer.main_ppo_v0:TaskRunner").run)
    assert "RayPPOTrainer" in run.__code__.co_names, "TaskRunner.run builds its trainer in another way"
    assert "RayPPOTrainer" in run.__globals__ and run.__globals__["RayPPOTrainer"] is not None
    calls_in_order("verl.trainer.main_ppo_v0:TaskRunner.run", "RayPPOTrainer", "init_workers", "fit")


@seam("RayPPOTrainer.fit", TRAINER, ROLLOUTS)
def test_a_step_rolls_out_balances_scores_computes_advantages_trains_and_dumps():
    """_balance_batch is the first call that sees the attempts, _update_actor the last before metrics are logged."""
    calls_in_order(
        f"{V0}.fit",
        *("_load_checkpoint", "_validate", "generate_sequences", "_balance_batch", "_compute_old_log_prob"),
        *("_compute_ref_log_prob", "compute_advantage", "_update_actor", "_save_checkpoint", "_log_rollout_data"),
    )


@seam("RayPPOTrainer._get_dp_size, _balance_batch", TRAINER)
def test_balancing_reorders_the_batch_in_place():
    data = load("verl:DataProto").from_dict(
        tensors={"attention_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]]), "place": torch.arange(4)}
    )
    trainer = SimpleNamespace(actor_rollout_wg=None, _get_dp_size=lambda group, role: 2)
    metrics = {}
    load(f"{V0}._balance_batch")(trainer, data, metrics=metrics)
    places = data.batch["place"].tolist()
    assert sorted(places) == [0, 1, 2, 3]
    lengths = [2, 1, 2, 1]
    assert sum(lengths[place] for place in places[:2]) == 3, f"the ranks' shares are not balanced: {places}"
    assert any(name.startswith("global_seqlen/") for name in metrics)


@seam("RayPPOTrainer._update_actor, worker RPC update_actor", TRAINER, "verl_cipo/integration/train/joint_update.py")
def test_the_workers_are_told_the_mini_batch_size_with_the_batch(config, monkeypatch):
    # verl 0.9.0 needs flash-attention for it.
    monkeypatch.setattr(load("verl.trainer.ppo.ray_trainer"), "left_right_2_no_padding", lambda batch: batch)
    config.actor_rollout_ref.actor.ppo_mini_batch_size = 6
    config.actor_rollout_ref.rollout.n = 2
    get, assign = (load(f"verl.utils.tensordict_utils:{name}") for name in ("get_non_tensor_data", "assign_non_tensor"))
    seen = []

    def update_actor(batch):
        seen.append(get(batch, "mini_batch_size", None))
        answer = TensorDict({}, batch_size=[])
        assign(answer, metrics={"mfu": 0.5, "cipo_aux_loss": 2.0})
        return answer

    ids = torch.ones(2, 3, dtype=torch.int64)
    batch = load("verl:DataProto").from_dict(
        tensors={
            **{"input_ids": ids, "attention_mask": ids, "position_ids": ids, "prompts": ids[:, :2]},
            **{"responses": ids[:, 2:], "response_mask": ids[:, 2:]},
        }
    )
    trainer = SimpleNamespace(config=config, actor_rollout_wg=SimpleNamespace(update_actor=update_actor))
    output = load(f"{V0}._update_actor")(trainer, batch)
    assert seen == [12], f"the workers are told {seen}"
    assert output.meta_info["metrics"]["actor/cipo_aux_loss"] == 2.0


@seam("utils.metric.reduce_metrics", TRAINER)
def test_metrics_of_an_update_may_be_reduced_before_the_trainer_does():
    """It takes means of lists, and leaves a number as it is."""
    reduce_metrics, metric = load("verl.utils.metric:reduce_metrics"), load("verl.utils.metric:Metric")
    once = reduce_metrics({"a": [1.0, 3.0], "max_b": [1.0, 3.0], "c": metric("sum", 4.0), "d": 5.0})
    assert once == {"a": 2.0, "max_b": 3.0, "c": 4.0, "d": 5.0}
    assert reduce_metrics(dict(once)) == once
    fit = inspect.getsource(load("verl.trainer.ppo.ray_trainer:RayPPOTrainer").fit)
    assert 'reduce_metrics(actor_output.meta_info["metrics"])' in fit


@seam("AgentLoopManager.__init__", ROLLOUTS)
def test_the_manager_keeps_the_workers_class_that_is_set_before_its_constructor():
    made = object.__new__(load(MANAGER))
    made.agent_loop_workers_class = "ours"
    made.__init__(OmegaConf.create({"actor_rollout_ref": {"rollout": {}, "model": {}}}), llm_client=None)
    assert made.agent_loop_workers_class == "ours" and made.config is not None
    names = load(f"{MANAGER}._init_agent_loop_workers").__code__.co_names
    assert "agent_loop_workers_class" in names, "the manager takes its workers' class from elsewhere"
    assert parameters(load(f"{MANAGER}.generate_sequences")) == ["prompts"]


@seam("AgentLoopWorker.generate_sequences", SESSIONS)
def test_each_row_reaches_run_agent_loop_with_all_its_columns():
    """A column of CIPO's is one more keyword; what comes back goes to _postprocess in the order of the rows."""
    seen, joined = [], []

    async def run_agent_loop(sampling_params, trajectory, **kwargs):
        seen.append((trajectory, kwargs))
        return kwargs["uid"]

    def postprocess(inputs, input_non_tensor_batch=None, validate=False):
        joined.append((inputs, sorted(input_non_tensor_batch), validate))
        return "output"

    rollout = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "calculate_log_probs": False}
    rollout |= {"repetition_penalty": 1.0, "agent": {"default_agent_loop": "single_turn_agent"}}
    worker = object.__new__(load(WORKER))
    worker.__dict__.update(
        config=OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}}),
        rollout_config=OmegaConf.create(rollout),
        _run_agent_loop=run_agent_loop,
        _postprocess=postprocess,
    )
    batch = load("verl:DataProto")(
        batch=TensorDict({"x": torch.zeros(2, 1)}, batch_size=[2]),
        non_tensor_batch={
            "uid": np.array(["a", "a_c0"], dtype=object),
            "index": np.array([3, 3]),
            "__cipo_anchor__": np.array([None, {"text": "T"}], dtype=object),
        },
        meta_info={"global_steps": 7, "validate": False},
    )
    method = inspect.unwrap(load(f"{WORKER}.generate_sequences"))
    assert asyncio.run(method(worker, batch)) == "output"
    assert [kwargs["uid"] for _, kwargs in seen] == ["a", "a_c0"]
    assert seen[1][1]["__cipo_anchor__"] == {"text": "T"}, "a column of a dispatched batch is lost"
    assert seen[0][0]["step"] == 7 and seen[0][0]["validate"] is False
    assert joined[0][0] == ["a", "a_c0"] and joined[0][2] is False
    check_accepts(f"{WORKER}._postprocess", "inputs", "input_non_tensor_batch", "validate")


@seam("_InternalAgentLoopOutput", SESSIONS)
def test_an_output_of_a_session_is_padded_and_takes_further_fields():
    fields = set(load("verl.experimental.agent_loop.agent_loop:_InternalAgentLoopOutput").model_fields)
    wanted = {"response_ids", "attention_mask", "reward_score", "extra_fields"}
    assert wanted <= fields, f"it lacks {sorted(wanted - fields)}"
