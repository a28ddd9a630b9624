"""Two-stream group-relative advantage: GRPO for the attempts and for the corrections of each anchor.

docs/method.md 4, 7, 9 and 10, J = J_rlvr + lambda_corr * J_corr. A base group is the attempts of one prompt, a
correction group the corrections of one anchor. Each stream is normalised by its own size; the clipped surrogate is
positively homogeneous in the advantage, so scaling advantages does that for it and its kind (clip_cov and kl_cov have
terms that do not scale).
"""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from verl_cipo.core.rows import BASE, CORRECTION, PADDING, PLAIN, Rows

SEQ_MEAN_MODES = ("seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
TOKEN_MEAN_MODES = ("token-mean", "seq-mean-token-mean")
"""Those in which what verl reports of a quantity of tokens is a mean over tokens."""
LOSS_AGG_MODES = ("token-mean", "token-sum", *SEQ_MEAN_MODES)

# Elements that are multiplied at once: 4 MiB of float32.
_BLOCK = 1 << 20


def group_relative(
    scores: Tensor,
    group: Sequence[Hashable] | np.ndarray,
    *,
    norm_by_std: bool,
    epsilon: float = 1e-6,
) -> Tensor:
    """(s - mean) / (std + epsilon) within each group, or s - mean; verl's compute_grpo_outcome_advantage bit for bit.

    scores: float32, as verl's rewards are, or float64, shape (N,); group: N hashable names. A group of one has mean 0
    and std 1, as in verl (which has these two in float32 even for float64 scores: equal up to 1e-7 there).
    Groups of one size share one call for their means and one for their std. Returns a new tensor of shape (N,).
    """
    if scores.dim() != 1 or len(group) != len(scores):
        raise ValueError(f"scores {tuple(scores.shape)} and {len(group)} group names: expected one shape (N,)")
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores are {scores.dtype}: expected float32 and float64")
    values = scores.detach().cpu()
    codes = _codes(group)
    grouped = values[torch.from_numpy(np.argsort(codes, kind="stable"))]
    size = np.bincount(codes)
    start = np.cumsum(size) - size
    mean, std = values.new_zeros(len(size)), values.new_ones(len(size))
    for n in np.unique(size[size > 1]):
        same = np.flatnonzero(size == n)
        one_a_line = grouped[torch.from_numpy(start[same, None] + np.arange(n))]
        mean[torch.from_numpy(same)] = one_a_line.mean(dim=1)
        std[torch.from_numpy(same)] = one_a_line.std(dim=1)
    of_row = torch.from_numpy(codes)
    centred = values - mean[of_row]
    return (centred / (std[of_row] + epsilon) if norm_by_std else centred).to(scores.device)


def nudged_relative(
    scores: Tensor,
    group: Sequence[Hashable] | np.ndarray,
    context: np.ndarray,
    *,
    between: float,
    norm_by_std: bool,
    epsilon: float = 1e-6,
    nudged_epsilon: float = 1e-5,
) -> Tensor:
    """Advantage of rollouts of which some have a strategy context (NudgeRL, arXiv 2605.15726; docs/method.md 23).

        A = (s - mean_c) + between * (mean_c - mean),  at the plain prompt  A = s - mean
        result: A - mean A, with norm_by_std over (std A + nudged_epsilon)

    mean: over the group, all attempts of a prompt say; mean_c: over those in it under the same context. The std is the
    sample's, as in GRPO, so that between=1 gives GRPO's advantage up to the epsilons.
    A group without a context, or of one rollout, is :func:`group_relative`'s, bit for bit.

    scores: float32 or float64, shape (N,); group: N hashable names; context: int, shape (N,), PLAIN or a context's
    number. Computed in float64, so that equal scores give exactly 0. Returns a new tensor of shape (N,), like `scores`.
    Raises: as :func:`group_relative`; ValueError on a context of another shape.
    """
    advantage = group_relative(scores, group, norm_by_std=norm_by_std, epsilon=epsilon)
    if context.shape != (len(scores),):
        raise ValueError(f"context {context.shape} and {len(scores)} scores: expected one shape (N,)")
    codes = _codes(group)
    size = np.bincount(codes)
    nudged = (np.bincount(codes, weights=context != PLAIN) > 0) & (size > 1)
    if not nudged.any():
        return advantage
    values = scores.detach().cpu().double().numpy()

    def mean(of: np.ndarray, names: np.ndarray) -> np.ndarray:
        """(N,) the mean of the rows that have a row's name."""
        return (np.bincount(names, weights=of) / np.bincount(names))[names]

    overall, own = mean(values, codes), mean(values, _codes(list(zip(codes.tolist(), context.tolist(), strict=True))))
    found = np.where(context == PLAIN, values - overall, values - own + between * (own - overall))
    found = found - mean(found, codes)
    if norm_by_std:
        squares = np.bincount(codes, weights=found**2)
        found = found / (np.sqrt(squares / np.maximum(size - 1, 1))[codes] + nudged_epsilon)
    of_nudged = torch.from_numpy(nudged[codes]).to(advantage.device)
    return torch.where(of_nudged, torch.from_numpy(found).to(advantage), advantage)


def correction_relative(
    scores: Tensor,
    broken: np.ndarray,
    group: Sequence[Hashable] | np.ndarray,
    *,
    lambda_risk: float,
    norm_by_std: bool,
    context: np.ndarray | None = None,
    between: float = 1.0,
    epsilon: float = 1e-6,
) -> Tensor:
    """Group-relative advantage of corrections, with the penalty for turning a right attempt wrong (docs/method.md 7).

        A = z(scores) - lambda_risk * z(broken),    z(v) = (v - mean v) / (std v + epsilon), or v - mean v

    Without norm_by_std that is r' - mean r' of r' = r - lambda_risk * broken, as the reimplementation has it. With it,
    scores and penalty are each measured by their own std: the penalty then weighs the same whatever the verifier's
    scale, and no scores can give more than (1 + lambda_risk) * (n - 1) / sqrt(n) in a group of n. Where a score is one
    of two values by right and wrong, groups of right anchors weigh 1 + lambda_risk times as much.

    scores: raw verifier scores, shape (N,); broken: bool, shape (N,), a wrong correction of a right anchor;
    group: N hashable names. A group of one has nothing to be compared with and gets 0.
    context, between: as in :func:`nudged_relative`, whose advantage of the scores then takes the place of the first z;
    None where no correction has a context.
    Computed in float64, so that equal scores give exactly 0. Returns a new tensor of shape (N,), like `scores`.
    """
    names = _codes(group)
    context = np.full(len(names), PLAIN) if context is None else context
    how = {"norm_by_std": norm_by_std, "epsilon": epsilon}
    advantage = nudged_relative(scores.double(), names, context, between=between, **how)
    if lambda_risk and broken.any():
        flags = torch.from_numpy(broken.astype(np.float64)).to(advantage)
        advantage = advantage - lambda_risk * group_relative(flags, names, norm_by_std=norm_by_std)
    alone = np.bincount(names)[names] == 1
    return advantage.masked_fill(torch.from_numpy(alone).to(advantage.device), 0.0).to(scores)


def stream_scales(
    *,
    n_base_tokens: int,
    n_corr_tokens: int,
    n_base_seqs: int,
    n_corr_seqs: int,
    lambda_corr: float,
    loss_agg_mode: str,
    n_further_tokens: int = 0,
    n_further_seqs: int = 0,
) -> tuple[float, float]:
    """Factors on the advantages of (base, corrections) that give each stream the mean of its own size.

    With T = Tb + Tc tokens and Nb, Nc sequences (rows) in the batch, Tf and Nf those of further attempts, which are
    among Tb and Nb (0 but with budget=auto), and what verl's agg_loss divides by:
      token-mean   all T tokens                        b = T / Tb,          lambda * b * (Tb - Tf) / (Tc + Tf)
      token-sum    nothing                             b = (Tb - Tf) / Tb,  the same
      seq-mean-*   GRPO's mini-batch size, which the   b = (Nb - Nf) / Nb,  the same of rows
                   trainer keeps
    So J_base is what GRPO has, and lambda weighs J_corr against it whatever the mix. With several mini-batches this
    holds for their sum in token-sum and seq-mean-*, in token-mean as far as they are mixed alike.
    A correction weighs as much against an attempt however many of the sessions for corrections have become further
    attempts: as these become more, the stream of corrections fades. n_base_*: Tb, Nb; n_corr_*: Tc, Nc; n_further_*:
    Tf, Nf. Without corrections the second factor is 0: (1, 0), exactly GRPO, where no attempt is a further one. Without
    base rows there is no size to match: (0, lambda).
    Raises: ValueError on another loss_agg_mode.
    """
    if loss_agg_mode not in LOSS_AGG_MODES:
        raise ValueError(f"loss_agg_mode = {loss_agg_mode!r}: expected one of {', '.join(LOSS_AGG_MODES)}")
    by_rows = loss_agg_mode in SEQ_MEAN_MODES
    n_base, n_corr = (n_base_seqs, n_corr_seqs) if by_rows else (n_base_tokens, n_corr_tokens)
    if n_base == 0:
        return (0.0, float(lambda_corr)) if n_corr else (1.0, 0.0)
    n_further = n_further_seqs if by_rows else n_further_tokens
    own = _own(n_base, n_further)
    size = n_base + n_corr if loss_agg_mode == "token-mean" else own
    return size / n_base, lambda_corr * size * own / (n_base * (n_corr + n_further)) if n_corr else 0.0


def _own(n_base: float, n_further: float) -> float:
    """The size of the attempts that every prompt has, which is what GRPO's would be; of all where those are lost."""
    return n_base - n_further or n_base


def term_scale(rows: Rows, loss_tokens: np.ndarray | None, *, loss_agg_mode: str) -> float:
    """Factor on terms of the loss that are summed over the rows of both streams: entropy, the KL term.

    What verl divides such a sum by does not grow with the rows but in token-mean. With the factor, (Tb - Tf) / T in
    token-sum and (Nb - Nf) / (Nb + Nc) in seq-mean-*, names as in `stream_scales`, a term weighs what it weighs in
    GRPO, as a mean over the rows of both. loss_tokens: as for `two_stream_advantage`, read in token-sum alone. Without
    base rows: 1.
    Raises: ValueError in token-sum without loss_tokens.
    """
    base, corrections = rows.stream == BASE, rows.stream == CORRECTION
    if loss_agg_mode == "token-mean":
        return 1.0
    if loss_agg_mode != "token-sum":
        size = np.ones(len(rows))
    elif loss_tokens is None:
        raise ValueError("loss_tokens is None: allowed in loss_agg_mode = 'token-sum' is an array (N,)")
    else:
        size = loss_tokens
    n_base, n_corr = float(size[base].sum()), float(size[corrections].sum())
    own = _own(n_base, float(size[base & rows.further].sum()))
    return own / (n_base + n_corr) if n_base else 1.0


def two_stream_advantage(
    token_level_rewards: Tensor,
    response_mask: Tensor,
    rows: Rows,
    *,
    lambda_corr: float,
    lambda_risk: float,
    norm_by_std: bool,
    loss_agg_mode: str,
    loss_tokens: np.ndarray | None = None,
    epsilon: float = 1e-6,
    between: float = 1.0,
) -> Tensor:
    """Advantages of a batch that mixes attempts, corrections and padding.

    token_level_rewards: (N, T), raw verifier outcomes (and any KL penalty); response_mask: (N, T), 1 where trained;
    loss_tokens: int, (N,), each row's tokens among those that verl's token-mean divides by, where that is not the sum
    of response_mask: its V1 engines divide by the tokens before rollout correction has rejected any.
    between: of `nudged_relative`, read where rollouts have contexts.
    The sum of a final row's rewards is its session's score; attempts get GRPO's advantage, in groups with a context
    that of `nudged_relative`, corrections that of `correction_relative`. Only final rows enter the statistics of their
    group; a session's advantage goes to all its rows. Padding gets 0 and enters nothing.
    As in verl, a session whose final row has no trained token counts in its group and gets 0 itself.
    Returns (N, T), masked; the inputs are left as they are.
    Raises: ValueError when shapes differ or a session has no final row, or more than one.
    """
    tokens = response_mask.sum(dim=-1).cpu().numpy()
    loss_tokens = tokens if loss_tokens is None else loss_tokens
    if not token_level_rewards.shape == response_mask.shape == (len(rows), *response_mask.shape[1:]) or (
        loss_tokens.shape != (len(rows),)
    ):
        raise ValueError(
            f"token_level_rewards {tuple(token_level_rewards.shape)}, response_mask {tuple(response_mask.shape)}, "
            f"loss_tokens {loss_tokens.shape} and {len(rows)} rows: expected (N, T), (N, T), (N,) and N"
        )
    real = np.flatnonzero(rows.stream != PADDING)
    session = _codes(rows.session[real])
    final = _final_rows(rows, real, session)
    corrections = rows.stream == CORRECTION
    base = rows.stream == BASE
    base_scale, corr_scale = stream_scales(
        n_base_tokens=int(loss_tokens[base].sum()),
        n_corr_tokens=int(loss_tokens[corrections].sum()),
        n_base_seqs=int(base.sum()),
        n_corr_seqs=int(corrections.sum()),
        n_further_tokens=int(loss_tokens[base & rows.further].sum()),
        n_further_seqs=int((base & rows.further).sum()),
        lambda_corr=lambda_corr,
        loss_agg_mode=loss_agg_mode,
    )

    last = rows.take(final)
    scores = token_level_rewards.sum(dim=-1)[torch.from_numpy(final)]
    advantage = torch.zeros_like(scores)
    how = {"norm_by_std": norm_by_std, "epsilon": epsilon}
    if len(one := np.flatnonzero(last.stream == BASE)):
        own = nudged_relative(scores[one], last.group[one], last.context[one], between=between, **how)
        advantage[one] = own * base_scale
    if len(one := np.flatnonzero(last.stream == CORRECTION)):
        broken = last.anchor_correct[one] & ~last.correct[one]
        own = correction_relative(
            scores[one],
            broken,
            last.group[one],
            lambda_risk=lambda_risk,
            context=last.context[one],
            between=between,
            **how,
        )
        advantage[one] = own * corr_scale
    advantage = advantage * torch.from_numpy(tokens[final] > 0).to(advantage)
    per_row = advantage.new_zeros(len(rows))
    per_row[torch.from_numpy(real)] = advantage[torch.from_numpy(session)]
    return _on_tokens(per_row, response_mask)


def _on_tokens(per_row: Tensor, mask: Tensor) -> Tensor:
    """per_row.unsqueeze(-1) * mask, bit for bit, in a fraction of the time; shapes (N,), (N, T) -> (N, T).

    Two things make that product slow on the CPU, where verl's driver computes. The system hands the result's memory
    out page by page; numpy asks for huge pages. And a mask of integers is turned into floats as a whole first, in
    memory of its own; a block's worth of them stays in the cache.
    """
    if mask.device.type != "cpu":
        return per_row.unsqueeze(-1) * mask
    like = torch.empty(0, dtype=torch.result_type(per_row.unsqueeze(-1), mask)).numpy()
    result = torch.from_numpy(np.empty(mask.shape, dtype=like.dtype))
    block = max(1, _BLOCK // max(1, mask.shape[1]))
    for i in range(0, len(mask), block):
        torch.mul(per_row[i : i + block].unsqueeze(-1), mask[i : i + block], out=result[i : i + block])
    return result


def _codes(names: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """int64 (N,): equal for equal names, numbered by first appearance."""
    number: dict[Hashable, int] = {}
    listed = names.tolist() if isinstance(names, np.ndarray) else names
    return np.array([number.setdefault(name, len(number)) for name in listed], dtype=np.int64)


def _final_rows(rows: Rows, real: np.ndarray, session: np.ndarray) -> np.ndarray:
    """Position of each session's final row, in the order of `session`'s codes (the order in which verl adds them)."""
    n_sessions = int(session.max()) + 1 if len(session) else 0
    is_final = rows.final[real]
    count = np.bincount(session[is_final], minlength=n_sessions)
    if (count != 1).any():
        wrong = int(np.flatnonzero(count != 1)[0])
        name = rows.session[real][session == wrong][0]
        raise ValueError(f"session {name!r} has {count[wrong]} final rows: expected 1")
    final = np.empty(n_sessions, dtype=np.int64)
    final[session[is_final]] = real[is_final]
    return final
