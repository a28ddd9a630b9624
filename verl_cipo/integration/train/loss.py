"""The actor's loss: verl's own, with terms that weigh what they weigh in GRPO; what CIPO adds to it.

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

from verl_cipo.core.aux_loss.distill import NUDGE_WEIGHTS
from verl_cipo.core.aux_loss.losses import PARTNER, SIGN, WEIGHTS, aux_loss
from verl_cipo.core.aux_loss.transfer import TRANSFER_WEIGHTS, regress_loss, transfer_loss
from verl_cipo.core.config import AuxConfig, CIPOConfig, TransferConfig

METRIC = "cipo_aux_loss"
"""Name under which the workers report; verl's trainers put ``actor/`` in front of it."""
TRANSFER_METRIC = "cipo_transfer_loss"
TRANSFERRED, TRANSFERRED_TOKENS = "cipo_transfer_log_prob", "cipo_transfer_tokens"
"""Likewise: sum of the log-probabilities of the tokens of corrections that transfer trains, and their number."""
NUDGE_METRIC = "cipo_nudge_loss"
"""Likewise, of the distillation of attempts under contexts."""
NO_TRANSFER = TransferConfig(kind="none", coef=0.0)
TERM_SCALE = "cipo_term_scale"
"""Goes with the batch to the workers: ``core.advantage.term_scale``; absent: 1."""
TERMS = ("kl_loss_coef", "entropy_coeff")
"""Coefficients of ``actor_rollout_ref.actor`` of the terms that verl's ``ppo_loss`` sums over all rows."""


def normalizer(actor: DictConfig) -> str:
    """By which mode verl's policy loss divides: ``actor.loss_agg_mode``, but for losses that do not read it.

    sapo has a mean over sequences, and geo_mean one over the rows of a micro-batch, whose number does not grow with the
    corrections either (with use_dynamic_bsz about so).
    """
    fixed = OmegaConf.select(actor, "policy_loss.loss_mode") in ("sapo", "geo_mean")
    return "seq-mean-token-mean" if fixed else actor.loss_agg_mode


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
    transfer: TransferConfig = NO_TRANSFER,
    nudge: float = 0.0,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """verl's ``ppo_loss``, its terms scaled, plus what CIPO adds of the micro-batch, each by its coefficient.

    That is the auxiliary loss, transfer, and the distillation of attempts under contexts.

    Micro-batches and ranks hold parts of one sum. verl adds the gradients of micro-batches up and averages over the
    ranks, so each term is multiplied by the number of ranks, as verl's ``agg_loss`` does. Megatron divides by the
    number of micro-batches; verl's engine undoes that outside of the loss.

    Args:
        model_output: ``log_probs`` over the packed tokens of the micro-batch, and what else ``ppo_loss`` reads.
        data: the micro-batch, its fields nested (TransferQueue) or padded (DataProto), where ``aux.coef`` is above 0
            with the three fields named in ``core.aux_loss.losses`` on every row: weights over the response tokens, sign
            and partner a scalar a row; with transfer with that of ``core.aux_loss.transfer``, over the tokens, too, and
            with ``nudge`` with that of ``core.aux_loss.distill``.
        dp_group: passed on.
        config: ``actor_rollout_ref.actor`` as verl's dataclass; ``ppo_loss`` writes ``global_batch_info`` into it.
        aux: kind, coefficient and beta.
        transfer: kind none where it is off.
        nudge: ``algorithm.cipo.nudge.coef``; 0 where it is off.

    Returns:
        the scalar loss, and ``ppo_loss``'s metrics with those above added where there is such a loss, both before
        their coefficients.

    Raises:
        KeyError: the batch lacks one of the fields.
    """
    config = _scaled(config, tu.get_non_tensor_data(data, TERM_SCALE, 1.0))
    loss, metrics = ppo_loss(config, model_output, data, dp_group)
    if aux.coef == 0 and transfer.kind == "none" and nudge == 0:
        return loss, metrics
    log_prob, dp_size = no_padding_2_padding(model_output["log_probs"], data), data["dp_size"]

    def report(name: str, value: torch.Tensor) -> None:
        metrics[name] = Metric(value=dp_size * value, aggregation=AggregationType.SUM)

    if aux.coef > 0:
        fields = data.select(WEIGHTS, SIGN, PARTNER).to_padded_tensor()
        term, value = aux_loss(log_prob, fields[WEIGHTS], fields[SIGN], fields[PARTNER], kind=aux.kind, beta=aux.beta)
        report(METRIC, value)
        loss = loss + aux.coef * dp_size * term
    if transfer.kind != "none":
        fields = data.select(TRANSFER_WEIGHTS, "response_mask").to_padded_tensor()
        weights = fields[TRANSFER_WEIGHTS]
        term = transfer_loss(log_prob, weights, kind=transfer.kind, gamma=transfer.gamma, floor=transfer.floor)
        # The attempts of transfer.own are in rows that the policy loss trains, corrections in rows that it does not.
        corrections = (weights != 0) & (fields["response_mask"] == 0)
        report(TRANSFER_METRIC, term.detach())
        report(TRANSFERRED, torch.where(corrections, log_prob.detach(), 0.0).sum())
        report(TRANSFERRED_TOKENS, corrections.sum())
        loss = loss + transfer.coef * dp_size * term
    if nudge > 0:
        term = regress_loss(log_prob, data.select(NUDGE_WEIGHTS).to_padded_tensor()[NUDGE_WEIGHTS])
        report(NUDGE_METRIC, term.detach())
        loss = loss + nudge * dp_size * term
    return loss, metrics


def taken_metrics(metrics: dict[str, Any]) -> dict[str, float]:
    """Take what :func:`cipo_loss` reported out of the metrics of an update, which verl has reduced, under CIPO's names.

    verl leaves the update out until ``trainer.critic_warmup``: then there is nothing.
    """
    found = {}
    for name, ours in ((METRIC, "aux"), (TRANSFER_METRIC, "transfer"), (NUDGE_METRIC, "nudge")):
        if (loss := metrics.pop(f"actor/{name}", None)) is not None:
            found[f"cipo/{ours}/loss"] = loss
    total, tokens = (metrics.pop(f"actor/{name}", 0.0) for name in (TRANSFERRED, TRANSFERRED_TOKENS))
    if tokens > 0:
        found["cipo/transfer/mean_log_prob"] = total / tokens
    return found


def install_loss(worker_group: Any, config: DictConfig, cipo: CIPOConfig) -> None:
    """Give the actor's workers CIPO's loss where verl's own does not do."""
    if cipo.adds_loss or scales_terms(config, cipo):
        transfer = cipo.transfer if cipo.transfers else NO_TRANSFER
        nudge = cipo.nudge.coef if cipo.distils else 0.0
        worker_group.set_loss_fn(build_loss(config.actor_rollout_ref.actor, cipo.aux, transfer, nudge))


def _scaled(config: ActorConfig, scale: float) -> ActorConfig:
    """``config`` with the coefficients of its terms times ``scale``; verl's dataclass is frozen."""
    scaled = copy.copy(config)
    for name in TERMS:
        object.__setattr__(scaled, name, scale * getattr(config, name))
    return scaled


def build_loss(
    actor: DictConfig, aux: AuxConfig, transfer: TransferConfig = NO_TRANSFER, nudge: float = 0.0
) -> partial:
    """:func:`cipo_loss` for ``actor_rollout_wg.set_loss_fn``, configured as verl's worker configures ``ppo_loss``.

    Args:
        actor: the node ``actor_rollout_ref.actor`` of the run's config, in its place there (it refers to other nodes).
        aux: ``algorithm.cipo.aux``.
        transfer: ``algorithm.cipo.transfer`` where it is on.
        nudge: ``algorithm.cipo.nudge.coef`` where it is on.
    """
    return partial(cipo_loss, config=omega_conf_to_dataclass(actor), aux=aux, transfer=transfer, nudge=nudge)
