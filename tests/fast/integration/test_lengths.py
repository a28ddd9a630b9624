"""Lengths that verl compares in its workers, at the first long sequence, are compared at the switch."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl.utils import config as verl_config

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration import lengths, switch

WORKER = "actor_rollout_ref"
ROOM = [
    f"{WORKER}.rollout.name=vllm",
    f"{WORKER}.rollout.n=4",
    f"{WORKER}.rollout.prompt_length=2048",
    f"{WORKER}.rollout.response_length=512",
    f"{WORKER}.actor.use_dynamic_bsz=true",
]
ACTOR, ROLLOUT, REF = (
    f"{WORKER}.actor.ppo_max_token_len_per_gpu",
    f"{WORKER}.rollout.log_prob_max_token_len_per_gpu",
    f"{WORKER}.ref.log_prob_max_token_len_per_gpu",
)
KL = f"{WORKER}.actor.use_kl_loss=true"
ULYSSES = "fsdp_config.ulysses_sequence_parallel_size=2"
CONTEXT = f"{WORKER}.actor.megatron.context_parallel_size=2"


def composed(*overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            overrides=["algorithm.adv_estimator=cipo", "+algorithm.cipo.preset=stream", *ROOM, *overrides],
        )


def refusal(*overrides) -> str:
    with pytest.raises(CIPOConfigError) as refused:
        switch.switch_on(composed(*overrides))
    return str(refused.value)


@pytest.mark.parametrize("trainer", ["true", "false"], ids=["V1", "V0"])
@pytest.mark.parametrize("engine", ["dp", "megatron"])
@pytest.mark.parametrize("key", [ACTOR, ROLLOUT, REF])
def test_a_micro_batch_holds_the_longest_sequence(key, engine, trainer):
    run = [f"model_engine={engine}", f"trainer.use_v1={trainer}", KL, f"{ACTOR}=2560", f"{ROLLOUT}=2560"]
    switch.switch_on(composed(*run, f"{key}=2560"))
    message = refusal(*run, f"{key}=2559")
    assert message.startswith(f"{key}=2559 is less than the longest sequence")
    assert "rollout.prompt_length=2048 and actor_rollout_ref.rollout.response_length=512" in message
    assert "set it to 2560 or more" in message


def test_two_keys_inherit_the_actors():
    message = refusal(KL, f"{ACTOR}=2000", f"{ROLLOUT}=2560", f"{REF}=2560")
    assert message.startswith(f"{ACTOR}=2000")
    assert refusal(f"{ACTOR}=2000").startswith(f"{ACTOR}=2000")
    switch.switch_on(composed(KL, f"{ACTOR}=2560"))


@pytest.mark.parametrize(
    "split",
    [
        [f"{WORKER}.actor.{ULYSSES}", f"{WORKER}.ref.{ULYSSES}"],
        [f"{WORKER}.actor.ulysses_sequence_parallel_size=2"],
        ["model_engine=megatron", CONTEXT],
    ],
    ids=["ulysses", "its former key", "context parallel"],
)
def test_gpus_that_share_a_sequence(split):
    switch.switch_on(composed(KL, *split, f"{ACTOR}=1280"))
    message = refusal(KL, *split, f"{ACTOR}=1279")
    assert "over the 2 GPUs that share a sequence: set it to 1280 or more" in message


@pytest.mark.parametrize(
    ("engine", "split"), [("veomni", "ulysses_parallel_size"), ("torchtitan", "tensor_parallel_size")]
)
def test_engines_whose_reference_follows_the_actor(engine, split):
    run = [f"model_engine={engine}", KL, f"{WORKER}.actor.{engine}.{split}=2"]
    switch.switch_on(composed(*run, f"{ACTOR}=1280"))
    assert refusal(*run, f"{ACTOR}=1279").startswith(f"{ACTOR}=1279")


def test_the_reference_does_not_inherit_the_actors_sequence_parallelism():
    """verl's ref.fsdp_config has a size of its own, 1."""
    split = [f"{WORKER}.actor.{ULYSSES}", f"{ACTOR}=1280"]
    assert refusal(KL, *split).startswith(f"{REF}=1280")
    switch.switch_on(composed(*split))


def test_passes_that_are_not_made_have_no_limit():
    switch.switch_on(composed(f"{REF}=1"))
    switch.switch_on(composed(KL, f"{REF}=1", f"{WORKER}.model.lora_rank=8"))
    switch.switch_on(composed(KL, f"{REF}=1", f"{WORKER}.ref.log_prob_use_dynamic_bsz=false"))
    fixed = f"{WORKER}.actor.use_dynamic_bsz=false"
    switch.switch_on(composed(KL, fixed, f"{ACTOR}=1", f"{ROLLOUT}=1", f"{REF}=1"))


def test_a_limit_that_is_left_open_is_one_that_verl_cannot_work_with():
    assert refusal(f"{ROLLOUT}=null").startswith(f"{ROLLOUT}=None")


def test_the_engine_holds_the_longest_sequence():
    assert refusal(f"{WORKER}.rollout.max_model_len=2559").startswith(f"{WORKER}.rollout.max_model_len=2559 is less")
    switch.switch_on(composed(f"{WORKER}.rollout.max_model_len=2560"))


def test_prompts_are_not_cut():
    message = refusal("data.max_prompt_length=2049")
    assert "actor_rollout_ref.rollout.prompt_length=2048" in message and "data.max_prompt_length=2049" in message


@pytest.mark.parametrize("nested", [False, True])
def test_the_models_own_limit_holds_where_none_is_given(nested):
    def model(positions):
        text = SimpleNamespace(max_position_embeddings=positions)
        return SimpleNamespace(text_config=text) if nested else text

    lengths.check_model_length(composed(), model(2560))
    lengths.check_model_length(composed(f"{WORKER}.rollout.max_model_len=2560"), model(2559))
    with pytest.raises(CIPOConfigError, match=r"rollout\.prompt_length=2048 .*more than the 2559 tokens of "):
        lengths.check_model_length(composed(), model(2559))


@given(prompt=st.integers(1, 5000), response=st.integers(1, 5000), gpus=st.integers(1, 8), tokens=st.integers(1, 10000))
def test_what_is_accepted_is_what_verl_can_split(prompt, response, gpus, tokens):
    """verl: max_token_len_per_gpu * sp_size >= length of every sequence; and the value that is named suffices."""
    config = OmegaConf.create(
        {
            "data": {"max_prompt_length": 1},
            "algorithm": {"use_kl_in_reward": False},
            WORKER: {
                "actor": {
                    "strategy": "fsdp2",
                    "use_dynamic_bsz": True,
                    "use_kl_loss": False,
                    "ppo_max_token_len_per_gpu": tokens,
                    "fsdp_config": {"ulysses_sequence_parallel_size": gpus},
                },
                "ref": {"log_prob_use_dynamic_bsz": True},
                "rollout": {
                    "prompt_length": prompt,
                    "response_length": response,
                    "max_model_len": None,
                    "log_prob_max_token_len_per_gpu": 10_000,
                },
            },
        }
    )
    try:
        lengths.check_lengths(config)
    except CIPOConfigError as error:
        assert tokens * gpus < prompt + response
        config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu = int(str(error).split("set it to ")[1].split()[0])
        lengths.check_lengths(config)
    else:
        assert tokens * gpus >= prompt + response


def test_a_run_that_would_fail_in_a_worker_ends_before_ray(task_folder):
    config = composed(f"{ACTOR}=2559", f"{WORKER}.model.path={task_folder / 'model'}")
    with pytest.raises(SystemExit, match=f"verl_cipo: {ACTOR}=2559 is less than the longest sequence"):
        verl_config.validate_config(config=config, use_reference_policy=False, use_critic=False)


@pytest.mark.parametrize(("knobs", "refused"), [({}, True), ({"replay_fraction": 0, "val_corrections": 0}, False)])
def test_without_corrections_a_response_is_shortened_as_with_grpo(knobs, refused):
    options = [f"{WORKER}.rollout.max_model_len=2000"]
    config = composed(*options)
    if refused:
        with pytest.raises(CIPOConfigError, match="max_model_len=2000"):
            lengths.check_lengths(config, corrects=CIPOConfig(preset="stream", **knobs).corrects)
    else:
        lengths.check_lengths(config, corrects=CIPOConfig(preset="stream", **knobs).corrects)
