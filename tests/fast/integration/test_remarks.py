"""What the driver says once of a run's cost."""

import pytest
import verl  # noqa: F401, which registers the resolvers of our configs
from hydra import compose, initialize_config_module

from verl_cipo.integration import remarks, switch


@pytest.fixture
def said(capsys):
    """What is printed of a run with these options."""

    def say(*overrides):
        needed = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=8"]
        with initialize_config_module("verl_cipo.config", version_base=None):
            config = compose("cipo_trainer", overrides=[*needed, *overrides])
        cipo = switch.switch_on(config)
        capsys.readouterr()
        remarks.announce(config, cipo)
        return capsys.readouterr().out

    return say


def test_a_second_turn_multiplies_the_validation(said):
    out = said()
    assert out.count("\n") == 1
    assert "algorithm.cipo.val_corrections=1: a validation samples 2 times as many" in out and "set it to 0" in out
    assert "samples 4 times" in said("algorithm.cipo.val_corrections=3")


def test_a_group_filter_leaves_the_budget_nothing_to_correct(said):
    options = ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc"]
    quiet = "algorithm.cipo.val_corrections=0"
    out = said(*options, quiet)
    assert out.count("\n") == 1 and "algorithm.cipo.budget=auto with algorithm.filter_groups.enable=true" in out
    assert "set algorithm.cipo.keep_all_wrong=0.25" in out and "or algorithm.cipo.budget=fixed" in out
    assert said(*options, quiet, "algorithm.cipo.budget=fixed") == ""
    assert said(*options, quiet, "algorithm.cipo.keep_all_wrong=0.25") == ""


@pytest.mark.parametrize("options", [["algorithm.cipo.val_corrections=0"], ["trainer.val_before_train=false"]])
def test_without_it_or_without_a_validation_nothing_is_said(options, said):
    assert said(*options) == ""
    assert (said(*options, "trainer.test_freq=5") == "") == (options[0] == "algorithm.cipo.val_corrections=0")
