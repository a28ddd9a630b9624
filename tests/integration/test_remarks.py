"""What the driver says once of a run's cost and of its loss."""

import logging

import pytest
from hydra import compose, initialize_config_module

from verl_cipo.integration import remarks, switch

ACTOR = "actor_rollout_ref.actor"
SEQ = f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"
KL = [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef=0.01"]


@pytest.fixture
def said(caplog, capsys):
    """What is said of a run with these options: printed, and warned of."""

    def say(*overrides):
        needed = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=8"]
        with initialize_config_module("verl_cipo.config", version_base=None):
            config = compose("cipo_trainer", overrides=[*needed, *overrides])
        cipo = switch.switch_on(config)
        caplog.clear()
        capsys.readouterr()
        with caplog.at_level(logging.WARNING, logger="verl_cipo"):
            remarks.announce(config, cipo)
        return capsys.readouterr().out, caplog.messages

    return say


def test_a_second_turn_multiplies_the_validation(said):
    out, _ = said()
    assert out.count("\n") == 1
    assert "algorithm.cipo.val_corrections=1: a validation samples 2 times as many" in out and "set it to 0" in out
    assert "samples 4 times" in said("algorithm.cipo.val_corrections=3")[0]


@pytest.mark.parametrize("options", [["algorithm.cipo.val_corrections=0"], ["trainer.val_before_train=false"]])
def test_without_it_or_without_a_validation_nothing_is_said(options, said):
    assert said(*options)[0] == ""
    assert (said(*options, "trainer.test_freq=5")[0] == "") == (options[0] == "algorithm.cipo.val_corrections=0")


def test_terms_that_grow_with_the_corrections_are_named_with_a_factor(said):
    """8 attempts and .5 x 4 corrections a prompt: 10 rows for GRPO's 8."""
    few = ["algorithm.cipo.replay_fraction=0.5", "algorithm.cipo.n_corrections=4"]
    _, (line,) = said(SEQ, *KL, *few)
    assert "loss_agg_mode=seq-mean-token-mean" in line and f"{ACTOR}.kl_loss_coef=0.01" in line
    assert "up to 1.25 times the rows of GRPO" in line and "multiply by 0.8" in line
    _, (line,) = said(f"{ACTOR}.loss_agg_mode=token-sum", f"{ACTOR}.entropy_coeff=0.001")
    assert f"{ACTOR}.entropy_coeff=0.001" in line and "kl_loss_coef" not in line and "multiply by 0.5" in line


@pytest.mark.parametrize(
    "options",
    [
        [SEQ],
        KL,
        [SEQ, f"{ACTOR}.kl_loss_coef=0.01"],
        [SEQ, f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef=0"],
        [SEQ, *KL, "algorithm.cipo.lambda_corr=0"],
        [SEQ, *KL, "algorithm.cipo.replay_fraction=0"],
        [SEQ, *KL, "algorithm.cipo.source=paired", "algorithm.cipo.aux.coef=0.1"],
    ],
    ids=["no term", "token-mean", "KL off", "no weight", "measured only", "no corrections", "pairs"],
)
def test_nothing_is_said_where_nothing_grows(options, said):
    assert said(*options)[1] == []
