"""prompt_length is checked against the shortest correction prompt, with the tokenizer that verl will load."""

import logging

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from verl.utils import config as verl_config

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration.lengths import check_model, check_prompt_length, load_model


class Words:
    """A word is a token."""

    def apply_chat_template(self, messages, **_):
        return [word for message in messages for word in message["content"].split()]

    def encode(self, text, add_special_tokens):
        return text.split()

    def decode(self, ids, skip_special_tokens):
        return " ".join(ids)


def config(length: int):
    return OmegaConf.create({"data": {}, "actor_rollout_ref": {"rollout": {"prompt_length": length}}})


def needed() -> int:
    with pytest.raises(CIPOConfigError) as error:
        check_prompt_length(config(1), CIPOConfig(preset="stream"), Words())
    return int(str(error.value).split("alone takes ")[1].split()[0])


def test_error_names_key_value_and_what_is_needed():
    with pytest.raises(CIPOConfigError) as error:
        check_prompt_length(config(30), CIPOConfig(preset="stream"), Words())
    message = str(error.value)
    assert message.startswith("actor_rollout_ref.rollout.prompt_length=30 is too small for any correction")
    assert f"{needed()} tokens" in message


def test_just_enough_passes_and_one_less_does_not():
    check_prompt_length(config(needed()), CIPOConfig(preset="stream"), Words())
    with pytest.raises(CIPOConfigError):
        check_prompt_length(config(needed() - 1), CIPOConfig(preset="stream"), Words())


def test_without_corrections_there_is_nothing_to_hold():
    check_prompt_length(config(1), CIPOConfig(preset="stream", replay_fraction=0.0, val_corrections=0), Words())


def test_a_run_without_room_ends_before_ray(task_folder):
    """With the tokenizer of the model."""
    overrides = [
        "algorithm.adv_estimator=cipo",
        "+algorithm.cipo.preset=stream",
        f"actor_rollout_ref.model.path={task_folder / 'model'}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.prompt_length=20",
        "data.max_prompt_length=20",
        "data.max_response_length=20",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose("ppo_trainer", overrides=overrides)
    with pytest.raises(SystemExit, match="verl_cipo: .*prompt_length=20 is too small for any correction"):
        verl_config.validate_config(config=composed, use_reference_policy=False, use_critic=False)


def test_a_driver_that_cannot_read_the_model_leaves_the_check_to_the_trainer(caplog, tmp_path):
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose("ppo_trainer", overrides=[f"actor_rollout_ref.model.path={tmp_path / 'not' / 'here'}"])
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        assert not check_model(composed, CIPOConfig(preset="stream"))
    assert "prompt lengths are checked later" in caplog.text


def test_a_model_section_that_cannot_be_used_is_still_an_error(task_folder):
    with initialize_config_module("verl.trainer.config", version_base=None):
        overrides = [f"actor_rollout_ref.model.path={task_folder / 'model'}", "+actor_rollout_ref.model.no_such_key=1"]
        composed = compose("ppo_trainer", overrides=overrides)
    with pytest.raises((InstantiationException, TypeError), match="no_such_key"):
        load_model(composed)
