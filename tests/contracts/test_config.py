"""verl's config: the keys that verl_cipo reads and writes, by whom it is composed, what its dataclasses check."""

import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict

from tests.conftest import ROOT
from tests.contracts.support.seams import load, seam

READ = {
    "verl_cipo/integration/switch.py": """
        algorithm.adv_estimator trainer.use_v1 trainer.v1.trainer_mode critic.enable reward.reward_model.enable
        reward.reward_model.enable_resource_pool algorithm.filter_groups.enable actor_rollout_ref.rollout.n
        distillation.enabled algorithm.rollout_correction.bypass_mode actor_rollout_ref.actor.policy_loss.loss_mode
        actor_rollout_ref.rollout.agent trainer.v1.separate_async.parameter_sync_step
    """,
    "verl_cipo/integration/train/joint_update.py": """
        actor_rollout_ref.actor.ppo_mini_batch_size actor_rollout_ref.actor.use_dynamic_bsz
        actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
        actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu
        actor_rollout_ref.ref.log_prob_use_dynamic_bsz actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu
    """,
    "verl_cipo/integration/rollout/worker.py": """
        actor_rollout_ref.rollout.prompt_length actor_rollout_ref.rollout.val_kwargs.n actor_rollout_ref.rollout.n
        actor_rollout_ref.rollout.full_determinism actor_rollout_ref.rollout.seed data.apply_chat_template_kwargs
    """,
    "verl_cipo/integration/train/estimator.py": "algorithm.norm_adv_by_std_in_grpo",
    "verl_cipo/integration/train/trainer.py": """
        actor_rollout_ref.actor.loss_agg_mode data.train_batch_size trainer.default_local_dir trainer.resume_mode
        trainer.resume_from_path trainer.validation_data_dir actor_rollout_ref.actor
    """,
    "verl_cipo/integration/lengths.py": "actor_rollout_ref.model actor_rollout_ref.model.path data.max_prompt_length",
    "verl_cipo/integration/dry_run.py": """
        trainer.nnodes trainer.n_gpus_per_node actor_rollout_ref.rollout.nnodes
        actor_rollout_ref.rollout.n_gpus_per_node
        actor_rollout_ref.rollout.tensor_model_parallel_size actor_rollout_ref.rollout.data_parallel_size
        actor_rollout_ref.rollout.pipeline_model_parallel_size actor_rollout_ref.actor.strategy
        actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size actor_rollout_ref.rollout.response_length
        actor_rollout_ref.actor.ppo_max_token_len_per_gpu actor_rollout_ref.ref.log_prob_max_token_len_per_gpu
        actor_rollout_ref.rollout.log_prob_use_dynamic_bsz actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu
        actor_rollout_ref.rollout.max_model_len actor_rollout_ref.rollout.name actor_rollout_ref.actor.ppo_epochs
        actor_rollout_ref.ref.fsdp_config trainer.v1.colocate_async
    """,
    "verl_cipo/integration/values.py": """
        data.train_batch_size actor_rollout_ref.actor.optim.lr actor_rollout_ref.actor.clip_ratio
        actor_rollout_ref.actor.clip_ratio_low actor_rollout_ref.actor.clip_ratio_high
        actor_rollout_ref.actor.kl_loss_coef actor_rollout_ref.model.lora_rank actor_rollout_ref.rollout.temperature
        actor_rollout_ref.rollout.top_p actor_rollout_ref.rollout.gpu_memory_utilization
        actor_rollout_ref.rollout.val_kwargs.temperature actor_rollout_ref.rollout.val_kwargs.top_p trainer.logger
    """,
    "examples/tiny/task.py": """
        data.train_files data.val_files data.max_response_length data.seed actor_rollout_ref.rollout.max_num_seqs
        actor_rollout_ref.rollout.calculate_log_probs actor_rollout_ref.rollout.val_kwargs.temperature
        actor_rollout_ref.rollout.val_kwargs.do_sample trainer.logger trainer.val_before_train trainer.test_freq
        trainer.save_freq trainer.total_training_steps trainer.rollout_data_dir
    """,
}


@pytest.mark.parametrize("file", [pytest.param(file, marks=seam("the keys of ppo_trainer", file)) for file in READ])
def test_a_key_that_is_read_is_in_verls_default_config(config, file):
    missing = [
        key
        for key in READ[file].split()
        if OmegaConf.select(config, key, default="absent", throw_on_resolution_failure=False) == "absent"
    ]
    assert not missing, f"verl's ppo_trainer no longer has {missing}"


@seam("the defaults of ppo_trainer", "verl_cipo/integration/switch.py")
def test_the_defaults_are_those_that_cipo_goes_by(config):
    assert config.trainer.use_v1 is True, "V1 is no longer the default trainer"
    assert config.trainer.v1.trainer_mode == "sync" and config.critic.enable is None
    assert config.algorithm.adv_estimator == "gae"
    assert OmegaConf.select(config, "actor_rollout_ref.rollout.agent.agent_loop_manager_class") is None
    assert OmegaConf.select(config, "trainer.v1.sync.parameter_sync_step", default=1) == 1


@seam("the struct flag of the config", "verl_cipo/integration/switch.py", "verl_cipo/integration/train/trainer.py")
def test_a_new_key_can_be_written_with_open_dict(config):
    with pytest.raises(HydraException), initialize_config_module("verl.trainer.config", version_base=None):
        compose("ppo_trainer", overrides=["algorithm.cipo=1"])
    with initialize_config_module("verl.trainer.config", version_base=None):
        assert compose("ppo_trainer", overrides=["+algorithm.cipo.lambda_corr=0.5"]).algorithm.cipo.lambda_corr == 0.5
    with open_dict(config):
        config.algorithm.cipo = {"lambda_corr": 1.0}
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = "a.b"
    made = load("verl.utils.config:omega_conf_to_dataclass")(config.actor_rollout_ref.rollout)
    assert made.agent.agent_loop_manager_class == "a.b", "the manager's class is no field of AgentLoopConfig"
    assert made.prompt_length == config.data.max_prompt_length


def leaves(node, path=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@seam("pkg://verl.trainer.config", "verl_cipo/config/cpu.yaml", "verl_cipo/config/cipo_trainer.yaml")
@pytest.mark.parametrize("name", ["cpu", "cipo_trainer", "cipo_megatron_trainer"])
def test_our_configs_stand_on_verls_by_its_searchpath(name):
    own = yaml.safe_load((ROOT / "verl_cipo" / "config" / f"{name}.yaml").read_text())
    with initialize_config_module("verl_cipo.config", version_base=None):
        made = compose(name)
    assert made.trainer.use_v1 is True, "nothing of verl's ppo_trainer was composed"
    del own["hydra"], own["defaults"]
    for key, value in leaves(own):
        if isinstance(value, str) and value.startswith("${"):
            continue
        assert OmegaConf.select(made, key) == value, f"{name}.yaml sets {key}, which did not get into the config"


@seam("model_engine in the defaults of ppo_trainer", "verl_cipo/config/cipo_megatron_trainer.yaml")
def test_the_engine_is_chosen_by_model_engine():
    with initialize_config_module("verl.trainer.config", version_base=None):
        made = compose("ppo_trainer", overrides=["model_engine=megatron"])
    assert made.actor_rollout_ref.actor.strategy == "megatron"
    for key in (
        *("context_parallel_size", "pipeline_model_parallel_size", "tensor_model_parallel_size"),
        *("expert_tensor_parallel_size", "expert_model_parallel_size"),
    ):
        assert key in made.actor_rollout_ref.actor.megatron, f"actor.megatron no longer has {key}"


@seam(
    "main_ppo --config-path, --config-name",
    "verl_cipo/config/cipo_trainer.yaml",
    "verl_cipo/integration/cpu/launch.py",
)
def test_main_ppo_composes_a_config_of_another_package():
    """Hydra's own --cfg job prints the config of the real entry point and runs nothing."""
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo", "--config-path", "pkg://verl_cipo.config"),
        *("--config-name", "cpu", "--cfg", "job", "algorithm.adv_estimator=grpo"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-500:]
    made = yaml.safe_load(done.stdout)
    assert made["trainer"]["device"] == "cpu" and made["algorithm"]["adv_estimator"] == "grpo"


@seam("utils.config.omega_conf_to_dataclass", "verl_cipo/integration/lengths.py", "verl_cipo/integration/dry_run.py")
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("actor", "loss_agg_mode", "sideways"), ("rollout", "unknown_key", 1)],
)
def test_dataclasses_refuse_what_cannot_be(config, section, key, value):
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = 1
    node = config.actor_rollout_ref[section]
    with open_dict(config):
        OmegaConf.update(node, key, value)
    with pytest.raises(Exception, match=str(value) if key != "unknown_key" else key):
        load("verl.utils.config:omega_conf_to_dataclass")(node)


@seam("trainer.ppo.utils.need_critic, need_reference_policy", "verl_cipo/integration/dry_run.py")
def test_only_gae_asks_for_a_critic_and_only_kl_for_a_reference(config):
    critic, reference = (load(f"verl.trainer.ppo.utils:{name}") for name in ("need_critic", "need_reference_policy"))
    assert critic(config) is True
    config.algorithm.adv_estimator = "cipo"
    assert critic(config) is False and not reference(config)
    config.actor_rollout_ref.actor.use_kl_loss = True
    assert reference(config)
