"""prompt_length is checked against the shortest correction prompt, with the tokenizer that verl will load."""

import logging
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration.checks import check_prompt_length


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
        check_prompt_length(config(1), CIPOConfig(), Words())
    return int(str(error.value).split("alone takes ")[1].split()[0])


def test_error_names_key_value_and_what_is_needed():
    with pytest.raises(CIPOConfigError) as error:
        check_prompt_length(config(30), CIPOConfig(), Words())
    message = str(error.value)
    assert message.startswith("actor_rollout_ref.rollout.prompt_length=30 is too small for any correction")
    assert f"{needed()} tokens" in message


def test_just_enough_passes_and_one_less_does_not():
    check_prompt_length(config(needed()), CIPOConfig(), Words())
    with pytest.raises(CIPOConfigError):
        check_prompt_length(config(needed() - 1), CIPOConfig(), Words())


def test_without_corrections_there_is_nothing_to_hold():
    check_prompt_length(config(1), CIPOConfig(replay_fraction=0.0, val_corrections=0), Words())


def test_main_ppo_stops_before_ray(task_folder, tmp_path):
    """The real tokenizer, in the user's own command line."""
    command = [
        *(sys.executable, "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=cipo"),
        f"actor_rollout_ref.model.path={task_folder / 'model'}",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.prompt_length=20",
        "data.max_prompt_length=20",
        "data.max_response_length=20",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("verl_cipo: actor_rollout_ref.rollout.prompt_length=20 is too small for any correction")
    assert "Traceback" not in result.stderr
    assert "ray init" not in result.stdout


def test_a_driver_that_cannot_read_the_model_leaves_the_check_to_the_trainer(caplog, tmp_path):
    from hydra import compose, initialize_config_module

    from verl_cipo.integration.checks import check_model

    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose("ppo_trainer", overrides=[f"actor_rollout_ref.model.path={tmp_path / 'not' / 'here'}"])
    with caplog.at_level(logging.WARNING, logger="verl_cipo"):
        assert not check_model(composed, CIPOConfig())
    assert "prompt lengths are checked later" in caplog.text


def test_a_model_section_that_cannot_be_used_is_still_an_error(task_folder):
    from hydra import compose, initialize_config_module
    from hydra.errors import InstantiationException

    from verl_cipo.integration.checks import load_model

    with initialize_config_module("verl.trainer.config", version_base=None):
        overrides = [f"actor_rollout_ref.model.path={task_folder / 'model'}", "+actor_rollout_ref.model.no_such_key=1"]
        composed = compose("ppo_trainer", overrides=overrides)
    with pytest.raises((InstantiationException, TypeError), match="no_such_key"):
        load_model(composed)
