"""Auxiliary correction losses: verified corrections made likelier, or preferred over the wrong attempt.

docs/method.md 15, added to verl's policy loss with a coefficient. Which tokens it trains, and how much, is a field of
its own, `weights`, so that a row may be trained by it without taking part in the policy loss. Every loss here is a sum
over rows that needs nothing of another row: it may be split over micro-batches and data-parallel ranks, and the parts
add up to the whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from verl_cipo.core.rows import CHOSEN, REJECTED, UNTRAINED

# What each row carries to the workers: (N, T), (N,) and (N,), float32.
WEIGHTS, SIGN, PARTNER = "cipo_aux_weights", "cipo_aux_sign", "cipo_aux_partner"
PAIR = "cipo_aux_pair"
"""int64 (N,), for the partners alone: equal for the two rows of a pair, -1 where a row is in none."""


def aux_weights(token_mask: Tensor, sign: Tensor, *, optimizer_steps: int, share: float = 1.0) -> Tensor:
    """The weight of each token's log-probability in the auxiliary loss.

    A trained row has the weight share * optimizer_steps / (chosen rows of the batch), spread evenly over its trained
    tokens. So the loss is `share` times the mean over chosen rows (pairs, for `contrastive`) of the mean over tokens,
    in each optimizer step whose mini-batch holds its share of them, and their mean over the steps is that of the batch
    exactly.
    token_mask: (N, T), nonzero where the row's policy wrote the token; sign: (N,), CHOSEN, REJECTED or UNTRAINED.
    Returns float32 (N, T), 0 in untrained rows; all 0 when no row is chosen.
    Raises: ValueError on other shapes or signs, fewer than one step, and a row to be trained that has no token.
    """
    if token_mask.dim() != 2 or sign.shape != token_mask.shape[:1]:
        raise ValueError(f"token_mask {tuple(token_mask.shape)}, sign {tuple(sign.shape)}: expected (N, T), (N,)")
    if not torch.isin(sign, torch.tensor([CHOSEN, REJECTED, UNTRAINED], device=sign.device)).all():
        raise ValueError(f"sign holds {sign.unique().tolist()}: expected {CHOSEN}, {REJECTED}, {UNTRAINED}")
    if optimizer_steps < 1:
        raise ValueError(f"optimizer_steps = {optimizer_steps!r}: expected >= 1")
    trained = (token_mask != 0) & (sign != UNTRAINED).unsqueeze(-1)
    tokens = trained.sum(dim=-1)
    if ((sign != UNTRAINED) & (tokens == 0)).any():
        rows = torch.nonzero((sign != UNTRAINED) & (tokens == 0)).flatten().tolist()
        raise ValueError(f"rows {rows} are to be trained and have no token: leave rows with an empty mask out")
    n_chosen = int((sign == CHOSEN).sum())
    per_row = share * optimizer_steps / max(n_chosen, 1) / tokens.clamp(min=1)
    return (trained * per_row.unsqueeze(-1)).float()


def mean_log_prob(log_prob: Tensor, weights: Tensor) -> Tensor:
    """Mean log-probability per trained token of each row, (N, T) and (N, T) -> (N,); 0 for an untrained row."""
    row_weight = weights.sum(dim=-1)
    return (weights * log_prob).sum(dim=-1) / torch.where(row_weight > 0, row_weight, 1.0)


def partner_scores(old_log_prob: Tensor, weights: Tensor, sign: Tensor, pair: Tensor) -> Tensor:
    """For each row of a pair, the other row's mean log-probability per token under the old policy.

    old_log_prob, weights: (N, T); sign: (N,); pair: int64 (N,), equal for the two rows of a pair, read only where sign
    is not UNTRAINED. Returns float32 (N,), 0 outside of pairs; a constant for the loss.
    Raises: ValueError when a pair has not exactly one chosen and one rejected row.
    """
    partner = torch.zeros_like(sign, dtype=torch.float32)
    trained = torch.nonzero(sign != UNTRAINED).flatten()
    if len(trained) == 0:
        return partner
    # By pair, and within a pair the rejected row first.
    order = trained[torch.argsort(sign[trained])]
    order = order[torch.argsort(pair[order], stable=True)]
    first, second = order[0::2], order[1::2]
    if (
        len(order) % 2
        or (pair[first] != pair[second]).any()
        or (sign[first] != REJECTED).any()
        or (sign[second] != CHOSEN).any()
    ):
        rows = list(zip(pair[order].tolist(), sign[order].tolist(), strict=True))
        raise ValueError(f"(pair, sign) of the trained rows: {rows}; expected one {CHOSEN}, one {REJECTED} a pair")
    score = mean_log_prob(old_log_prob.detach(), weights).float()
    partner[first], partner[second] = score[second], score[first]
    return partner


def nll(log_prob: Tensor, weights: Tensor) -> Tensor:
    """-(weights * log_prob).sum(): the negative log-likelihood of the trained tokens; both (N, T), a scalar."""
    return -(weights * log_prob).sum()


def contrastive(log_prob: Tensor, weights: Tensor, sign: Tensor, partner: Tensor, *, beta: float) -> Tensor:
    """Sum over rows of row weight * -logsigmoid(beta * sign * (s - partner)), s the row's mean log-probability.

    The reference-free, length-normalized preference of SimPO (arXiv 2405.14734) without its margin, our choice [W]:
    -logsigmoid(beta * (s_chosen - s_rejected)). The two rows of a pair may lie in different micro-batches or on
    different ranks, hence each sees the other as it was under the old policy. At the old policy the two gradients add
    up to that of the preference; further on each side saturates by itself. Both rows hold the pair's loss, so the sum
    is twice the preference.
    log_prob, weights: (N, T); sign, partner: (N,), see `partner_scores`. Returns a scalar.
    """
    margin = sign * (mean_log_prob(log_prob, weights) - partner)
    return -(weights.sum(dim=-1) * F.logsigmoid(beta * margin)).sum()


def aux_loss(
    log_prob: Tensor, weights: Tensor, sign: Tensor, partner: Tensor, *, kind: str, beta: float
) -> tuple[Tensor, Tensor]:
    """(loss, value): the term to differentiate, and the loss per correction or pair that it stands for, detached.

    kind: nll or contrastive (where the value is half the sum of the two rows). Shapes as in `contrastive`.
    Raises: ValueError on another kind.
    """
    if kind == "nll":
        loss = nll(log_prob, weights)
        return loss, loss.detach()
    if kind == "contrastive":
        loss = contrastive(log_prob, weights, sign, partner, beta=beta)
        return loss, loss.detach() / 2
    raise ValueError(f"kind = {kind!r}: expected nll or contrastive")
