"""The actor's loss: verl's own, with terms that weigh what they weigh in GRPO, and the auxiliary correction loss added.

Seam: ``set_loss_fn`` of verl's actor workers, which takes a function over a micro-batch and calls it as they would
call verl's own ``ppo_loss``. That one is called unchanged, so every registered policy loss, KL and entropy term stays
what it is; the coefficients of the terms are scaled where their sum grows with the corrections.
"""

import copy
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from verl_cipo.core.aux_loss.losses import PARTNER, SIGN, WEIGHTS, aux_loss
from verl_cipo.core.config import AuxConfig, CIPOConfig

METRIC = "cipo_aux_loss"
"""Name under which the workers report; verl's trainers put ``actor/`` in front of it."""
TERM_SCALE = "cipo_term_scale"
"""Goes with the batch to the workers: ``core.advantage.term_scale``; absent: 1."""
TERMS = ("kl_loss_coef", "entropy_coeff")
"""Coefficients of ``actor_rollout_ref.actor`` of the terms that verl's ``ppo_loss`` sums over all rows."""


def scales_terms(config: DictConfig, cipo: CIPOConfig) -> bool:
    """Whether a term of the loss is on whose sum would grow with the corrections, or with further attempts.

    verl's distillation has a loss of its own, which stays.
    """
    actor = config.actor_rollout_ref.actor
    on = (actor.use_kl_loss and actor.kl_loss_coef) or actor.entropy_coeff
    grows = cipo.rolls_out and (cipo.lambda_corr > 0 or cipo.moves_budget)
    distils = OmegaConf.select(config, "distillation.enabled")
    return bool(on and grows and actor.loss_agg_mode != "token-mean" and not distils)


def cipo_loss(
    model_output: dict[str, Any],
    data: TensorDict,
    dp_group: Any = None,
    *,
    config: ActorConfig,
    aux: AuxConfig,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's ``ppo_loss``, its terms scaled, plus ``aux.coef`` times the auxiliary loss of the micro-batch.

    Micro-batches and ranks hold parts of one sum. verl adds the gradients of micro-batches up and averages over the
    ranks, so the term is multiplied by the number of ranks, as verl's ``agg_loss`` does. Megatron divides by the number
    of micro-batches; verl's engine undoes that outside of the loss.

    Args:
        model_output: ``log_probs`` over the packed tokens of the micro-batch, and what else ``ppo_loss`` reads.
        data: the micro-batch, its fields nested (TransferQueue) or padded (DataProto), where ``aux.coef`` is above 0
            with the three fields named in ``core.aux_loss.losses`` on every row: weights over the response tokens, sign
            and partner a scalar a row.
        dp_group: passed on.
        config: ``actor_rollout_ref.actor`` as verl's dataclass; ``ppo_loss`` writes ``global_batch_info`` into it.
        aux: kind, coefficient and beta.

    Returns:
        the scalar loss, and ``ppo_loss``'s metrics with ``cipo_aux_loss`` (before the coefficient) added where there is
        one.

    Raises:
        KeyError: the batch lacks one of the three fields.
    """
    config = _scaled(config, tu.get_non_tensor_data(data, TERM_SCALE, 1.0))
    loss, metrics = ppo_loss(config, model_output, data, dp_group)
    if aux.coef == 0:
        return loss, metrics
    log_prob = no_padding_2_padding(model_output["log_probs"], data)
    fields = data.select(WEIGHTS, SIGN, PARTNER).to_padded_tensor()
    term, value = aux_loss(log_prob, fields[WEIGHTS], fields[SIGN], fields[PARTNER], kind=aux.kind, beta=aux.beta)
    dp_size = data["dp_size"]
    metrics[METRIC] = Metric(value=dp_size * value, aggregation=AggregationType.SUM)
    return loss + aux.coef * dp_size * term, metrics


def install_loss(worker_group: Any, config: DictConfig, cipo: CIPOConfig) -> None:
    """Give the actor's workers CIPO's loss where verl's own does not do."""
    if cipo.aux.coef > 0 or scales_terms(config, cipo):
        worker_group.set_loss_fn(build_loss(config.actor_rollout_ref.actor, cipo.aux))


def _scaled(config: ActorConfig, scale: float) -> ActorConfig:
    """``config`` with the coefficients of its terms times ``scale``; verl's dataclass is frozen."""
    scaled = copy.copy(config)
    for name in TERMS:
        object.__setattr__(scaled, name, scale * getattr(config, name))
    return scaled


def build_loss(actor: DictConfig, aux: AuxConfig) -> partial:
    """:func:`cipo_loss` for ``actor_rollout_wg.set_loss_fn``, configured as verl's worker configures ``ppo_loss``.

    Args:
        actor: the node ``actor_rollout_ref.actor`` of the run's config, in its place there (it refers to other nodes).
        aux: ``algorithm.cipo.aux``.
    """
    return partial(cipo_loss, config=omega_conf_to_dataclass(actor), aux=aux)
