"""What a run will do that its settings do not say at a glance: told once, in the driver, before it starts."""

import logging

from omegaconf import DictConfig

from verl_cipo.core.config import ROOT, CIPOConfig

logger = logging.getLogger("verl_cipo")


def announce(config: DictConfig, cipo: CIPOConfig) -> None:
    """A line each: what the second turn adds to a validation, what corrections add to the terms of the loss."""
    trainer = config.trainer
    if cipo.val_corrections > 0 and (trainer.val_before_train or trainer.test_freq > 0 or trainer.val_only):
        print(
            f"[verl_cipo] {ROOT}.val_corrections={cipo.val_corrections}: a validation samples "
            f"{1 + cipo.val_corrections} times as many answers as without; set it to 0 for none of them"
        )
    _announce_terms(config, cipo)


def _announce_terms(config: DictConfig, cipo: CIPOConfig) -> None:
    """KL and entropy are sums over rows of both streams, which GRPO's divisor does not follow but in token-mean."""
    actor, n = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.n
    coefficients = {
        "kl_loss_coef": actor.kl_loss_coef if actor.use_kl_loss else 0,
        "entropy_coeff": actor.entropy_coeff,
    }
    on = [f"actor_rollout_ref.actor.{name}={value}" for name, value in coefficients.items() if value]
    if not on or not cipo.rolls_out or cipo.lambda_corr == 0 or actor.loss_agg_mode == "token-mean":
        return
    growth = 1 + cipo.replay_fraction * (cipo.n_corrections or n) / n
    logger.warning(
        "actor_rollout_ref.actor.loss_agg_mode=%s: this sums the loss terms of %s over attempts and corrections, up to "
        "%.3g times the rows of GRPO; for GRPO's weight multiply by %.3g, or use token-mean",
        actor.loss_agg_mode,
        " and ".join(on),
        growth,
        1 / growth,
    )
