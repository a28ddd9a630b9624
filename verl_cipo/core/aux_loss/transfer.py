"""Transfer: what corrections find is trained on the plain prompt, docs/method.md 17.

A row holds the plain question x and a correction y of a wrong attempt at it, where few attempts at x are right. y was
sampled with the attempt in view, so pi(y|x) is no ratio's business: each kind has a function of log pi(y_t|x), and what
a row counts for. With P prompts a step, A an advantage and |y| trained tokens, added to the loss with `transfer.coef`:

* regress: -1/P sum over prompts, mean over their rows of A 1/|y| sum_t [log pi(y_t|x) >= floor] log pi(y_t|x). All
  corrections, right and wrong; A = score - mean score of the attempts (RLTF-SD, NudgeRL).
* inject: -1/P sum over prompts of 1/n A 1/|y| sum_t f(p_t), f(p) = p / (p + gamma). One right correction a prompt, as
  one more row of the group of its n attempts; A is GRPO's of that row. The attempts keep theirs (LTE, GOLF).

With `transfer.own` right attempts at such prompts are trained by the same term, where they are: a rare right answer
then counts whoever found it. A is GRPO's among all attempts, or with regress as above, over the number of right ones.

Everything but the function is in a field of the row, `TRANSFER_WEIGHTS`. So the loss is a sum over rows that needs
nothing of another row: it may be split over micro-batches and data-parallel ranks, and the parts add up to the whole.
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from verl_cipo.core.anchors import Outcome
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.draws import lot, origin
from verl_cipo.core.keys import GroupName, RowKey, follows_outputs
from verl_cipo.core.rows import BASE, CORRECTION, PLAIN, RowTable

TRANSFER_WEIGHTS = "cipo_transfer_weights"
"""What each row carries to the workers: (N, T), float32, signed; 0 where nothing is trained."""
SKIPPED = "transfer/skipped/"
ROUNDING = 1e-6
"""Of a score, and of 1 where that is larger: what rounding leaves of no difference, since scores are float32."""
SKIP_REASONS = ("unknown_prompt", "no_prompt", "no_text_question", "unknown_tools", "several_outputs", "no_advantage")


def transfer_weights(token_mask: Tensor, row_weight: Tensor, *, optimizer_steps: int) -> Tensor:
    """The weight of each token's function of its log-probability: that of its row, spread evenly over its tokens.

    Times optimizer_steps: so the term is the batch's in each optimizer step whose mini-batch holds its share of the
    rows, and their mean over the steps is that of the batch exactly.
    token_mask: (N, T), nonzero where the row's policy wrote the token; row_weight: (N,), signed, 0 for other rows.
    Returns float32 (N, T). A row without a token trains nothing.
    Raises: ValueError on other shapes, and fewer than one step.
    """
    if token_mask.dim() != 2 or row_weight.shape != token_mask.shape[:1]:
        raise ValueError(
            f"token_mask {tuple(token_mask.shape)}, row_weight {tuple(row_weight.shape)}: expected (N, T), (N,)"
        )
    if optimizer_steps < 1:
        raise ValueError(f"optimizer_steps = {optimizer_steps!r}: expected >= 1")
    written = token_mask != 0
    per_token = optimizer_steps * row_weight / written.sum(dim=-1).clamp(min=1)
    return (written * per_token.unsqueeze(-1)).float()


def transfer_loss(log_prob: Tensor, weights: Tensor, *, kind: str, gamma: float, floor: float | None) -> Tensor:
    """-(weights * f(log_prob)).sum() over the tokens with a weight; log_prob, weights: (N, T), a scalar.

    regress: f(l) = l, and nothing where l is below the floor, as it is now; null: no floor.
    inject: f(l) = p / (p + gamma) for p = exp(l), which is sigmoid(l - log gamma); its derivative by l is
    gamma p / (p + gamma)^2.
    Raises: ValueError on another kind.
    """
    if kind == "regress":
        return regress_loss(log_prob, weights, floor=floor)
    if kind == "inject":
        return -(weights * torch.sigmoid(torch.where(weights != 0, log_prob, 0.0) - math.log(gamma))).sum()
    raise ValueError(f"kind = {kind!r}: expected regress or inject")


def regress_loss(log_prob: Tensor, weights: Tensor, *, floor: float | None = None) -> Tensor:
    """-(weights * log_prob).sum() over the tokens with a weight, but for those whose log_prob is below the floor.

    log_prob, weights: (N, T), a scalar. The distillation of attempts under contexts is this without a floor.
    """
    trained = weights != 0
    if floor is not None:
        trained = trained & (log_prob.detach() >= floor)
    return -(weights * torch.where(trained, log_prob, 0.0)).sum()


def regressed(score: float, outcome: Outcome) -> float:
    """The advantage of a correction over the attempts: its raw score less their mean; 0 where rounding is all of it."""
    above = score - outcome.prompt_score
    return 0.0 if abs(above) <= ROUNDING * max(abs(score), 1.0) else above


def injected(score: float, outcome: Outcome, *, norm_by_std: bool, epsilon: float = 1e-6) -> float:
    """GRPO's advantage of a correction as one more row of the group of the attempts.

    With n attempts of mean m and population variance v, a score r and M = (n m + r) / (n + 1):
    (r - M) / (std + epsilon), std^2 = (n v + n (r - m)^2 / (n + 1)) / n; without norm_by_std, r - M.
    """
    n, above = outcome.prompt_attempts, regressed(score, outcome)
    advantage = above * n / (n + 1)
    if not norm_by_std:
        return advantage
    return advantage / (math.sqrt(outcome.prompt_spread**2 + above**2 / (n + 1)) + epsilon)


class Moved(NamedTuple):
    """A correction that is trained on the plain prompt."""

    key: str
    prompt: Hashable
    """Equal for the corrections of one prompt."""
    asked: str | None
    """Key of a row whose prompt is the plain one; None where `question` holds it."""
    question: list[dict]
    """The plain chat, where no row of the batch has it as its prompt; else empty."""
    weight: float
    """Of the row: its advantage, over the prompts of the step and its share of its prompt."""


class _Candidate(NamedTuple):
    row: int
    outcome: Outcome
    asked: str | None
    question: list[dict]


def moved_corrections(
    table: RowTable, counts: Counter, *, config: CIPOConfig, step: int, norm_by_std: bool, usable: Collection[str]
) -> list[Moved]:
    """The corrections to train on the plain prompt, and how much; those that cannot be are added to `counts`.

    They are corrections of wrong attempts at prompts of which at most the share `below` of the attempts was right
    when the attempt was drawn. Those of an agent loop that gave several outputs are left out: what the last one answers
    contains the others. Which one is injected is a lot of (seed, step), so neither uids nor the order in which
    rows arrive matter. Rows without an advantage would train nothing and are left out, but count in the mean over the
    rows of their prompt.
    norm_by_std: whether the run's advantages are divided by the std; usable: keys with a token to train.
    """
    transfer, rows = config.transfer, table.rows
    of_prompt: dict[Hashable, list[_Candidate]] = {}
    for i in _in_order(table, usable, seed=config.seed, step=step):
        outcome, asked, question = table.outcome[i], None, table.question[i] or []
        if follows_outputs(table.keys[i]):
            counts[f"{SKIPPED}several_outputs"] += 1
            continue
        if outcome is None:
            counts[f"{SKIPPED}unknown_prompt"] += 1
            continue
        if not outcome.at_most(transfer.below) or (transfer.kind == "inject" and not rows.correct[i]):
            continue
        if table.question[i] is None:
            if config.replays:
                counts[f"{SKIPPED}no_text_question"] += 1
                continue
            asked, question = table.plain_prompt(i)
            if asked is None and not question:
                counts[f"{SKIPPED}no_prompt"] += 1
                continue
        of_prompt.setdefault(_prompt(table, i), []).append(_Candidate(i, outcome, asked, question))

    n_prompts = len(set(rows.group[rows.stream == BASE].tolist()))
    moved = []
    for prompt, own in of_prompt.items():
        if transfer.kind == "inject":
            own = [min(own, key=lambda one: _lot(table, one.row, seed=config.seed, step=step))]
        for i, outcome, asked, question in own:
            score = float(table.scores[i])
            if transfer.kind == "inject":
                advantage, share = injected(score, outcome, norm_by_std=norm_by_std), outcome.prompt_attempts
            else:
                advantage, share = regressed(score, outcome), len(own)
            if advantage == 0:
                counts[f"{SKIPPED}no_advantage"] += 1
                continue
            weight = advantage / share / max(n_prompts, 1)
            moved.append(Moved(table.keys[i], prompt, asked, question, weight))
    return moved


def rare_attempts(
    table: RowTable, counts: Counter, *, config: CIPOConfig, norm_by_std: bool, usable: Collection[str]
) -> dict[str, float]:
    """Key -> weight of the right attempts at prompts of which at most the share `below` is right, over P prompts.

    Those under a strategy context answer another prompt, and those of several outputs a longer one: they are left out,
    the latter are added to `counts`.
    norm_by_std: whether the run's advantages are divided by the std; usable: keys with a token to train.
    """
    groups, key_of = table.attempts()
    context = dict(zip(table.keys, table.rows.context.tolist(), strict=True))
    found = {}
    for group in groups:
        outcome = group.outcome
        if outcome is None or outcome.prompt_right == 0 or not outcome.at_most(config.transfer.below):
            continue
        for attempt in group.attempts:
            key = key_of[attempt]
            if not attempt.correct or key not in usable or context[key] != PLAIN:
                continue
            if follows_outputs(key):
                counts[f"{SKIPPED}several_outputs"] += 1
                continue
            advantage, share = regressed(attempt.score, outcome), outcome.prompt_right
            if config.transfer.kind == "inject":
                n = share = outcome.prompt_attempts
                if norm_by_std and n > 1:
                    advantage /= outcome.prompt_spread * math.sqrt(n / (n - 1)) + 1e-6
            if advantage > 0:
                found[key] = advantage / share / len(groups)
    return found


def _in_order(table: RowTable, usable: Collection[str], *, seed: int, step: int) -> list[int]:
    """Positions of the corrections of wrong attempts, in an order that is the same in a run and its repetition."""
    rows = table.rows
    found = np.flatnonzero((rows.stream == CORRECTION) & rows.final & ~rows.anchor_correct).tolist()
    found = [i for i in found if table.keys[i] in usable]
    return [found[place] for place in table.stable_order([table.keys[i] for i in found], seed=seed, step=step)]


def _prompt(table: RowTable, i: int) -> Hashable:
    """What the corrections of one prompt have in common, of which several prompts may be hosts with schedule=replay."""
    if (question := table.question[i]) is not None:
        return table.index[i], origin(None, question)
    return GroupName.parse(str(table.rows.group[i])).prompt


def _lot(table: RowTable, i: int, *, seed: int, step: int) -> bytes:
    key = RowKey.parse(table.keys[i])
    return lot(seed, step, table.index[i], GroupName.parse(key.group).number, key.session)
