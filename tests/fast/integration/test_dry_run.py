"""The check: what it refuses before a GPU is asked for, with which words, and what it says of a config it accepts.

Not covered: that a config it accepts fits into the memory of a machine.
"""

import re
import runpy
import sys
from importlib.resources import files

import pytest
import yaml
from omegaconf import OmegaConf
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

from verl_cipo import check
from verl_cipo.core.config import ROOT
from verl_cipo.integration import dry_run
from verl_cipo.integration.values import missing_loggers

PACKAGE = "pkg://verl_cipo.config"
BASE = [
    "critic.enable=false",
    "actor_rollout_ref.model.path=/no/such/model",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "actor_rollout_ref.rollout.prompt_length=2048",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=2560",
    "data.train_batch_size=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
]
SEPARATE = [
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=4",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=2",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
]


def composed(*overrides: str, name: str = "cipo_trainer"):
    return dry_run.compose_config(PACKAGE, name, [*BASE, *overrides])


def plan(*overrides: str, **kwargs) -> dry_run.Plan:
    return dry_run.check(composed(*overrides, **kwargs))


def refusal(capsys, *overrides: str, name: str = "cipo_trainer") -> str:
    capsys.readouterr()
    status = check.main(["--config-path", PACKAGE, "--config-name", name, *BASE, *overrides])
    captured = capsys.readouterr()
    assert status == 1
    assert captured.out == ""
    return captured.err[captured.err.index("dry run: refused") :]


@pytest.mark.parametrize(
    ("typed", "key"),
    [("nudge.contexts=hints", "nudge.contexts"), ("budgte=auto", "budget")],
)
def test_a_knob_without_plus_is_told_of_it_where_the_config_has_none(capsys, typed, key):
    status = check.main(
        ["--config-path", "pkg://verl.trainer.config", "--config-name", "ppo_trainer", f"{ROOT}.{typed}"]
    )
    assert status == 1 and f"no knobs of CIPO: add it with +{ROOT}.{key}=..." in capsys.readouterr().err


def test_plan_counts_corrections_updates_and_gpus():
    # 32 * 4 attempts, 16 anchors of 6 corrections; 32 / 8 updates; 8 GPUs are verl's default.
    found = plan("algorithm.cipo.replay_fraction=0.5", "algorithm.cipo.n_corrections=6")
    assert found.rollouts == 128 + 96
    assert found.optimizer_steps == 4
    assert (found.trainer, found.train_gpus, found.rollout_gpus) == ("CIPOTrainerSync", 8, 0)


def test_pairs_generate_nothing():
    assert plan("algorithm.cipo.source=paired", "algorithm.cipo.aux.coef=0.1").rollouts == 128


def test_separate_rollout_takes_as_many_updates_on_gpus_of_its_own():
    found = plan(*SEPARATE)
    assert (found.trainer, found.train_gpus, found.rollout_gpus) == ("CIPOTrainerSeparateAsync", 8, 2)
    assert found.optimizer_steps == 4


def test_epochs_multiply_the_updates():
    assert plan("actor_rollout_ref.actor.ppo_epochs=3").optimizer_steps == 12


def test_config_is_left_as_verl_would_get_it():
    """The trainer's preconditions ran on a copy: no interpolation is resolved, no mode renamed."""
    config = composed("trainer.v1.trainer_mode=colocate_async")
    dry_run.check(config)
    assert config.trainer.v1.trainer_mode == "cipo_colocate_async"
    assert OmegaConf.is_interpolation(config.actor_rollout_ref.rollout, "response_length")


def test_missing_model_is_said_and_not_refused():
    (data, budget) = plan().unchecked
    assert data == "data files"
    assert "/no/such/model" in budget


def test_model_on_this_machine_is_checked_against_the_prompt_budget(task_folder, capsys):
    model = f"actor_rollout_ref.model.path={task_folder / 'model'}"
    words = refusal(capsys, model)
    assert "actor_rollout_ref.rollout.prompt_length=2048" in words and "more than the 512 tokens of" in words
    room = "data.max_response_length=256"
    assert plan(model, room, "actor_rollout_ref.rollout.prompt_length=256", "data.max_prompt_length=64").unchecked == (
        "data files",
    )
    words = refusal(capsys, model, room, "actor_rollout_ref.rollout.prompt_length=20", "data.max_prompt_length=20")
    assert "actor_rollout_ref.rollout.prompt_length=20 is too small for any correction" in words


def test_a_model_folder_that_is_broken_is_not_taken_for_a_missing_one(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "no such type"}')
    words = refusal(capsys, f"actor_rollout_ref.model.path={tmp_path}")
    assert "HFModelConfig" in words


GRPO = "algorithm.adv_estimator=grpo"
NOTHING_CORRECTED = ("algorithm.cipo.replay_fraction=0", "algorithm.cipo.val_corrections=0")
VALUES = {
    "actor_rollout_ref.actor.kl_loss_coef": ("abc", "a finite number >= 0"),
    "actor_rollout_ref.actor.clip_ratio": ("-1", "a finite number >= 0"),
    "actor_rollout_ref.actor.optim.lr": ("0", "a finite number > 0"),
    "actor_rollout_ref.actor.entropy_coeff": ("high", "a number"),
    "actor_rollout_ref.actor.use_kl_loss": ("maybe", "true or false"),
    "actor_rollout_ref.rollout.gpu_memory_utilization": ("6", "a finite number > 0 <= 1"),
    "actor_rollout_ref.rollout.temperature": ("hot", "a finite number >= 0"),
    "trainer.n_gpus_per_node": ("0", "an integer >= 1"),
    "trainer.logger": ("wandbb", "some of wandb, mlflow"),
}
MEGATRON = "actor_rollout_ref.actor.megatron"
REFUSED = {
    "unknown key of verl": (
        ["data.train_batchsize=1"],
        ["data.train_batchsize: no such key", "did you mean data.train_batch_size?"],
    ),
    "unknown section of verl": (
        ["actor_rollout_ref.rolout.n=4"],
        ["actor_rollout_ref.rolout.n: no such key", "did you mean actor_rollout_ref.rollout.n?"],
    ),
    "unknown key that is like no other": (["trainer.xyzzy=1"], ["trainer.xyzzy", "To append to your config"]),
    "misspelled knob": (
        ["algorithm.cipo.lambda_cor=1"],
        ["algorithm.cipo.lambda_cor = 1", "Did you mean algorithm.cipo.lambda_corr?"],
    ),
    "misspelled knob of a section": (
        ["algorithm.cipo.prompt.templat=math"],
        ["Did you mean algorithm.cipo.prompt.template?"],
    ),
    "unknown estimator": (["algorithm.adv_estimator=cipoo"], ["Unknown advantage estimator", "cipoo"]),
    "unknown knob": (["+algorithm.cipo.lambda_cor=1"], ["algorithm.cipo.lambda_cor", "lambda_corr"]),
    "knob out of range": (["algorithm.cipo.rho_max=2"], ["algorithm.cipo.rho_max", "[0, 1]"]),
    "what the prompt says": (["algorithm.cipo.prompt.verdict=told"], ["prompt.verdict = 'told'", "rho_init=0"]),
    "CIPO's combinations": (["critic.enable=true"], ["critic.enable=True"]),
    "verl's validate_config": (["actor_rollout_ref.actor.use_dynamic_bsz=false"], ["ppo_micro_batch_size"]),
    "rollout dataclass": (["actor_rollout_ref.rollout.expert_parallel_size=2"], ["expert_parallel_size"]),
    "reward function": (["reward.custom_reward_function.path=/no/reward.py"], ["/no/reward.py"]),
    "trainer mode": ([GRPO, "trainer.v1.trainer_mode=later"], ["later", "separate_async"]),
    "V0's schedule": (
        ["trainer.use_v1=false", "algorithm.cipo.schedule=replay"],
        ["algorithm.cipo.schedule", "barrier"],
    ),
    "naive weight transfer": (
        [*SEPARATE, "actor_rollout_ref.rollout.checkpoint_engine.backend=naive"],
        ["nccl", "separate async"],
    ),
    "updates of a step": (
        [*SEPARATE, "trainer.v1.separate_async.parameter_sync_step=2"],
        ["parameter_sync_step=2", "ppo_mini_batch_size=8"],
    ),
    "GRPO's updates of a step": (
        [GRPO, *SEPARATE, "trainer.v1.separate_async.parameter_sync_step=2"],
        ["parameter_sync_step=2", "ppo_mini_batch_size=8"],
    ),
    "engines on training GPUs": (
        ["actor_rollout_ref.rollout.tensor_model_parallel_size=3"],
        ["8 GPUs of training", "engines of 3"],
    ),
    "engines on rollout GPUs": (
        [*SEPARATE, "actor_rollout_ref.rollout.tensor_model_parallel_size=4"],
        ["2 GPUs of rollout", "engines of 4"],
    ),
    "tokens of the actor": (
        ["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=2559"],
        ["actor.ppo_max_token_len_per_gpu=2559", "prompt_length=2048", "response_length=512"],
    ),
    "tokens of the reference": (
        ["actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=2559", "actor_rollout_ref.actor.use_kl_loss=true"],
        ["ref.log_prob_max_token_len_per_gpu=2559"],
    ),
    "tokens of the log-probabilities": (
        ["actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=2559"],
        ["rollout.log_prob_max_token_len_per_gpu=2559"],
    ),
    "cut prompts": (["data.max_prompt_length=4096"], ["prompt_length=2048", "data.max_prompt_length=4096"]),
    "model length": (["actor_rollout_ref.rollout.max_model_len=2559"], ["max_model_len=2559", "2560"]),
}
REFUSED_MEGATRON = {
    "dense layout": ([f"{MEGATRON}.pipeline_model_parallel_size=3"], ["tensor x pipeline x context = 3"]),
    "expert layout": (
        [f"{MEGATRON}.expert_model_parallel_size=8", f"{MEGATRON}.tensor_model_parallel_size=2"],
        ["expert tensor x expert x pipeline = 16"],
    ),
}


@pytest.mark.parametrize("estimator", ["cipo", "grpo"])
def test_every_value_that_verl_cannot_use_is_named_at_once(estimator, capsys):
    given = [f"{key}={value}" for key, (value, _) in VALUES.items()]
    message = refusal(capsys, f"algorithm.adv_estimator={estimator}", *given)
    lines = message.removeprefix("dry run: refused, ValuesError: ").splitlines()
    expected = [f"{key}={value}: expected {allowed}" for key, (value, allowed) in VALUES.items()]
    assert len(lines) == len(expected)
    assert all(any(line.startswith(words) for line in lines) for words in expected), message


def test_values_that_follow_from_others_or_are_whole_numbers_are_fine():
    plan("actor_rollout_ref.actor.grad_clip=1", "actor_rollout_ref.rollout.top_p=1", "trainer.logger=console")
    plan("actor_rollout_ref.rollout.val_kwargs.temperature=${actor_rollout_ref.rollout.temperature}")


def test_three_gpus_are_for_the_trainer_that_fills_up(capsys):
    """An optimizer step has 8 x 4 rows. verl asserts in its workers that the ranks divide them."""
    assert plan("trainer.n_gpus_per_node=3").train_gpus == 3
    message = refusal(capsys, GRPO, "trainer.n_gpus_per_node=3")
    assert "ppo_mini_batch_size=8" in message and "32 rows" in message and "3 data-parallel ranks" in message
    # Two GPUs share a sequence, so that there are two ranks.
    plan(GRPO, "trainer.n_gpus_per_node=4", "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2")


def test_the_old_trainers_are_known():
    v0 = ["trainer.use_v1=false", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]
    assert plan(*v0).trainer == "CIPOTrainerV0"
    stock = plan(GRPO, *v0)
    assert (stock.trainer, stock.rollouts, stock.optimizer_steps) == ("RayPPOTrainer", 128, 4)


def test_a_logger_that_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing_loggers(["console", "file", "wandb"]) == ["wandb"]


def test_grpo_with_second_turns_trains_as_many_rollouts_as_grpo():
    """What the scripts run for ALGO=grpo: its validation has second turns, its training no corrections."""
    ours = plan("algorithm.cipo.replay_fraction=0", "actor_rollout_ref.rollout.val_kwargs.n=3")
    stock = plan(GRPO, "actor_rollout_ref.rollout.val_kwargs.n=3")
    assert (ours.rollouts, ours.corrections, ours.optimizer_steps) == (stock.rollouts, 0, stock.optimizer_steps)
    assert (ours.validation_samples, stock.validation_samples) == (6, 3)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, capsys):
    overrides, words = REFUSED[case]
    message = refusal(capsys, *overrides)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("case", REFUSED_MEGATRON)
def test_refused_with_megatron(case, capsys):
    overrides, words = REFUSED_MEGATRON[case]
    message = refusal(capsys, *overrides, name="cipo_megatron_trainer")
    assert all(word in message for word in words), message


def test_sequences_may_be_split_over_gpus():
    plan(
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1280",
        "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2",
    )
    plan(
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=1280",
        f"{MEGATRON}.context_parallel_size=2",
        name="cipo_megatron_trainer",
    )


def test_config_path_is_a_package(capsys):
    assert check.main(["--config-path", "config", *BASE]) == 1
    assert "--config-path config: use pkg://PACKAGE" in capsys.readouterr().err


def test_stdout_is_the_config_and_nothing_else(capsys):
    assert check.main(["--config", *BASE, "--config-name", "cipo_trainer", "data.train_batch_size=16"]) == 0
    captured = capsys.readouterr()
    config = yaml.safe_load(captured.out)
    assert config["data"]["train_batch_size"] == 16
    assert config["trainer"]["v1"]["trainer_mode"] == "cipo_sync"
    assert (
        "dry run: accepted, cipo by CIPOTrainerSync, rollout by vllm\na step: 16 prompts, 128 rollouts (up to 64 of "
        "them corrections), 2 optimizer steps" in captured.err
    )


@pytest.mark.parametrize(
    "options",
    [
        [GRPO, "actor_rollout_ref.rollout.max_model_len=2559"],
        [*NOTHING_CORRECTED, "actor_rollout_ref.rollout.max_model_len=2559"],
        ["algorithm.rollout_correction.rollout_is=token", "algorithm.rollout_correction.rollout_is_threshold=0.5_5.0"],
        [
            *(GRPO, "trainer.n_gpus_per_node=8", "actor_rollout_ref.rollout.n=3", "data.train_batch_size=32"),
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2",
        ],
    ],
    ids=["verl shortens GRPO's response", "and one without corrections", "two bounds", "four ranks by the former key"],
)
def test_what_a_run_takes_is_accepted(options):
    plan(*options)


def test_what_a_run_does_without_is_said(capsys):
    loss = "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"
    assert check.main([*BASE, loss, "algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: algorithm.cipo.")]
    assert [note.removeprefix("note: algorithm.cipo.").partition("=")[0] for note in notes] == [
        *("source", "transfer.kind", "budget"),
    ]
    assert "loss_mode=geo_mean" in notes[0] and "keep_all_wrong=0.25" in notes[2]


def test_the_verdict_and_what_is_changed_are_all_that_is_printed(capsys):
    given = ["data.train_batch_size=16", "algorithm.cipo.lambda_corr=0.5", "algorithm.cipo.lambda_risk=1"]
    assert check.main([*BASE, *given]) == 0
    captured = capsys.readouterr()
    (note,) = captured.err.splitlines()
    assert note.startswith("note: the driver cannot load the tokenizer")
    verdict, _, changed = captured.out.partition("\n\n")
    accepted, *others = verdict.splitlines()
    assert accepted == "dry run: accepted, cipo by CIPOTrainerSync, rollout by vllm" and len(others) == 3
    assert "  data.train_batch_size: 16" in changed and "  algorithm.cipo.lambda_corr: 0.5" in changed
    # What has verl's or CIPO's default, given or not, is not among them.
    assert not re.search(r"lambda_risk|rho_init|entropy_coeff|ppo_epochs", changed)
    assert len(changed.splitlines()) < 20


def test_what_verl_prints_is_shown_when_asked_for(capsys):
    assert check.main(["--verbose", *BASE]) == 0
    assert "[validate_config] All configuration checks passed" in capsys.readouterr().err


def test_the_short_command_is_the_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", "--config-path", "config", *BASE])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("verl_cipo.check", run_name="__main__")
    assert ended.value.code == 1 and "--config-path config: use pkg://PACKAGE" in capsys.readouterr().err


def test_plugin_that_is_not_loaded_is_an_error(monkeypatch):
    monkeypatch.setattr(dry_run, "is_switch", lambda _: False)
    with pytest.raises(RuntimeError, match="verl_cipo.doctor"):
        plan()


def test_variables_for_workers_join_those_of_verl():
    """What launch.sh does for the file logger: verl merges its own variables with these."""
    config = composed("+ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH='/a b/m.jsonl'")
    merged = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env)
    assert merged.env_vars.VERL_FILE_LOGGER_PATH == "/a b/m.jsonl"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in merged.env_vars


def source(name: str) -> dict:
    return yaml.safe_load(files("verl_cipo.config").joinpath(f"{name}.yaml").read_text())


def test_megatron_config_has_the_defaults_of_the_other():
    ours, megatron = source("cipo_trainer"), source("cipo_megatron_trainer")
    assert megatron.pop("defaults") == [
        "ppo_trainer",
        {"optional cipo": "open"},
        {"override model_engine": "megatron"},
        {"override hydra/job_logging": "stdout"},
        "_self_",
    ]
    ours.pop("defaults")
    assert megatron == ours


@pytest.mark.parametrize("estimator", ["cipo", "grpo"])
def test_megatron_config_is_verls_megatron(estimator):
    override = f"algorithm.adv_estimator={estimator}"
    ours = composed(override, name="cipo_megatron_trainer")
    by_hand = composed(override, "model_engine=megatron")
    assert ours.actor_rollout_ref.actor.strategy == "megatron"
    assert OmegaConf.to_container(ours, resolve=True) == OmegaConf.to_container(by_hand, resolve=True)
    if estimator == "grpo":
        stock = dry_run.compose_config("pkg://verl.trainer.config", "ppo_megatron_trainer", [*BASE, override])
        del ours.algorithm.cipo, ours.actor_rollout_ref.rollout.agent.agent_loop_manager_class
        assert OmegaConf.to_container(ours, resolve=True) == OmegaConf.to_container(stock, resolve=True)
