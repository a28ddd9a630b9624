"""Every seam of verl that verl_cipo stands on. A failure here names what a new verl changed."""

import inspect

import pytest
from verl.experimental.agent_loop import AgentLoopOutput
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import (
    AgentLoopManagerTQ,
    AgentLoopWorkerTQ,
    PPOTrainer,
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    get_trainer_cls,
)
from verl.utils import config as verl_config

WORKER = AgentLoopWorkerTQ.__ray_metadata__.modified_class


def parameters(function) -> list[str]:
    # Ray adds _ray_trace_ctx to the methods of an actor class.
    return [name for name in inspect.signature(function).parameters if name not in ("self", "_ray_trace_ctx")]


OVERRIDDEN = {
    (WORKER, "_run_prompt"): ["prompt", "sampling_params", "trajectory", "trace"],
    (WORKER, "_run_agent_loop"): ["sampling_params", "trajectory", "agent_name", "trace", "kwargs"],
    (WORKER, "_compute_score"): ["outputs", "kwargs"],
    (WORKER, "_agent_loop_postprocess"): ["output", "validate", "kwargs"],
    (AgentLoopManagerTQ, "generate_sequences"): ["prompts"],
    (PPOTrainer, "__init__"): ["config"],
    (PPOTrainer, "_init_tokenizer"): [],
    (PPOTrainer, "on_init_end"): [],
    (PPOTrainer, "fit"): ["agent_loop_manager"],
    (PPOTrainer, "step"): ["metrics", "timing_raw"],
    (PPOTrainer, "_balance_batch"): ["batch", "metrics", "logging_prefix", "keep_minibatch"],
    (PPOTrainer, "_get_required_batch_multiple"): ["dp_size"],
    (PPOTrainer, "_update_actor"): ["batch", "metrics"],
    (PPOTrainer, "_compute_advantage"): ["batch", "metrics"],
    (PPOTrainer, "_validate"): [],
    (PPOTrainer, "_save_checkpoint"): [],
    (PPOTrainer, "_load_checkpoint"): [],
}


@pytest.mark.parametrize(("owner", "name"), OVERRIDDEN, ids=lambda value: getattr(value, "__name__", value))
def test_overridden_method_keeps_its_signature(owner, name):
    assert hasattr(owner, name), f"verl no longer has {owner.__name__}.{name}, which verl_cipo overrides"
    found, expected = parameters(getattr(owner, name)), OVERRIDDEN[owner, name]
    assert found == expected, f"{owner.__name__}.{name} takes {found}, verl_cipo was written for {expected}"


def test_validate_config_is_called_by_main_ppo_with_the_whole_config():
    from verl.trainer import main_ppo

    source = inspect.getsource(main_ppo)
    assert "from verl.utils.config import validate_config" in source, "main_ppo gets validate_config from elsewhere"
    assert source.index("validate_config(\n        config=config") < source.index(
        "run_ppo(config, task_runner_class="
    ), "main_ppo no longer validates the config before it starts Ray: the switch would come too late"
    assert parameters(inspect.unwrap(verl_config.validate_config)) == ["config", "use_reference_policy", "use_critic"]


def test_task_runner_asks_for_the_trainer_by_its_configured_mode():
    from verl.trainer.main_ppo import TaskRunnerV1

    source = inspect.getsource(TaskRunnerV1.__ray_metadata__.modified_class.run)
    assert "get_trainer_cls(config.trainer.v1.trainer_mode)" in source, (
        "TaskRunnerV1.run finds its trainer in another way: ${cipo.trainer:...} would not be resolved"
    )


def test_estimator_is_called_with_rewards_mask_config_and_index():
    from verl.trainer.ppo import ray_trainer

    source = inspect.getsource(ray_trainer.compute_advantage)
    for argument in ("token_level_rewards", "response_mask", "config"):
        assert f'"{argument}": ' in source, f"compute_advantage no longer passes {argument} to registered estimators"


TRAINERS = {
    "sync": PPOTrainerSync,
    "colocate_async": PPOTrainerColocateAsync,
    "separate_async": PPOTrainerSeparateAsync,
}


@pytest.mark.parametrize("mode", TRAINERS)
def test_registry_holds_cipo_and_the_trainers_resolve(mode):
    assert core_algos.get_adv_estimator_fn("cipo").__module__ == "verl_cipo.integration.estimator"
    from verl_cipo.integration.switch import resolve_trainer
    from verl_cipo.integration.trainer import CIPOTrainerMixin

    cls = get_trainer_cls(resolve_trainer(mode, "cipo"))
    assert issubclass(cls, TRAINERS[mode]) and cls.verl_mode == mode
    own = [name for name in vars(TRAINERS[mode]) if not name.startswith("__") and name in vars(CIPOTrainerMixin)]
    for name in own:
        assert getattr(cls, name).__qualname__.startswith("CIPOTrainerMixin"), f"{name} of verl hides CIPO's"
    assert cls.__mro__.index(CIPOTrainerMixin) < cls.__mro__.index(TRAINERS[mode])


def test_verl_knows_each_trainer_by_the_mode_it_was_registered_for():
    for mode, trainer in TRAINERS.items():
        assert get_trainer_cls(mode) is trainer


def test_a_session_takes_its_staleness_from_the_output_and_its_step_from_the_prompt():
    """The tags by which verl's asynchronous trainers judge how old a row is; a correction is a session like others."""
    source = inspect.getsource(WORKER._agent_loop_postprocess)
    for tag in (
        '"global_steps": kwargs["global_steps"]',
        '"min_global_steps": field["extra_fields"].get("min_global_steps")',
        '"max_global_steps": field["extra_fields"].get("max_global_steps")',
    ):
        assert tag in source, f"verl's staleness tags changed: {tag}"


def test_reissued_prompts_lose_their_corrections_with_their_attempts():
    """After a resume in an asynchronous mode, prompts in flight are rolled out anew."""
    source = inspect.getsource(PPOTrainer._reissue_inflight_prompts)
    assert 'key.split("_", 1)[0] in inflight_uid_set' in source
    assert "self.agent_loop_manager.generate_sequences(batch)" in source


def test_verl_seeds_a_request_only_where_it_has_no_seed():
    from verl.workers.rollout.vllm_rollout import vllm_async_server

    source = inspect.getsource(vllm_async_server)
    assert 'sampling_params.setdefault("seed", self.replica_rank + self.config.seed)' in source, (
        "verl no longer seeds the requests of rollout.full_determinism this way: look at integration/seeds.py"
    )


def test_verl_scores_only_an_output_without_a_reward():
    source = inspect.getsource(WORKER._compute_score)
    assert "if final_output.reward_score is None and" in source, "a failed verification would not be asked again"


def test_the_loss_of_the_workers_can_be_set():
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    for worker in (ActorRolloutRefWorker, TrainingWorker):
        assert parameters(worker.set_loss_fn) == ["loss_fn"], f"{worker.__name__}.set_loss_fn changed"
    from verl.workers.utils.losses import ppo_loss

    assert parameters(ppo_loss) == ["config", "model_output", "data", "dp_group"]


def test_rows_tagged_as_padding_stay_out_of_verls_metrics():
    source = inspect.getsource(PPOTrainer._compute_metrics)
    assert 'not tag.get("is_padding", False)' in source, "rows of the auxiliary loss would enter verl's metrics"


def test_worker_is_a_ray_actor_class_with_a_plain_class_inside():
    assert inspect.isclass(WORKER)
    assert WORKER.__name__ == "AgentLoopWorkerTQ"


def test_sessions_are_awaited_before_the_status_is_written():
    source = inspect.getsource(WORKER._run_prompt)
    assert source.index("_settle_session_tasks(tasks)") < source.index('tag={"status": status}'), (
        "verl writes a prompt's status before its sessions have ended: corrections would come too late"
    )


def test_replay_buffer_finds_rows_by_the_uid_before_the_underscore():
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    assert 'key.split("_")[0]' in inspect.getsource(ReplayBuffer._materialize_batch), (
        "corrections ({uid}_c{session}_...) would not be sampled with their prompt"
    )


def test_row_key_is_uid_session_index():
    assert 'keys.append(f"{uid}_{session_id}_{i}")' in inspect.getsource(WORKER._agent_loop_postprocess)


def test_score_is_computed_before_the_rows_are_stored():
    source = inspect.getsource(WORKER._agent_loop_postprocess)
    assert source.index("self._compute_score(") < source.index("async_kv_batch_put(")


def test_agent_loop_output_carries_extra_fields_into_the_row():
    output = AgentLoopOutput(
        prompt_ids=[1], response_ids=[2], response_mask=[1], metrics={}, extra_fields={"cipo": {"correct": True}}
    )
    assert output.as_dict()["extra_fields"] == {"cipo": {"correct": True}}


def test_actor_update_takes_its_mini_batch_size_from_extra_info():
    source = inspect.getsource(PPOTrainer._update_actor)
    assert '"mini_batch_size": ppo_mini_batch_size' in source
    assert source.index("batch.extra_info.update(extra_info)") < source.index(
        "self.actor_rollout_wg.update_actor(batch)"
    )
