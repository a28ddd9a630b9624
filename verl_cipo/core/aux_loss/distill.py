"""Distillation of attempts under strategy contexts into the plain prompt: NudgeRL, arXiv 2605.15726, docs/method.md 23.

With x the plain prompt of an attempt y, A its advantage (`advantage.nudged_relative`, of raw scores) and N attempts a
step, added to the loss with `nudge.coef`:

    L = - 1/N sum over attempts of A 1/|y| sum_t log pi(y_t|x)

There is no ratio: under a context y was sampled from another prompt. An attempt at the plain prompt is trained in its
own row, one under a context in a row that is appended. All but log pi is in a field of the row, `NUDGE_WEIGHTS`, so
that the parts of micro-batches and data-parallel ranks add up to the whole; `transfer.regress_loss` is their sum.
"""

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch

from verl_cipo.core.advantage import nudged_relative
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.keys import follows_outputs
from verl_cipo.core.nudge import SKIPPED
from verl_cipo.core.rows import BASE, PLAIN, RowTable

NUDGE_WEIGHTS = "cipo_nudge_weights"
"""What each row carries to the workers: (N, T), float32, signed; 0 where nothing is trained."""
SKIP_REASONS = ("several_outputs", "no_prompt", "unknown_tools")
COUNTED = ("nudge/rows", *(f"{SKIPPED}{reason}" for reason in SKIP_REASONS))


class Distilled(NamedTuple):
    """An attempt under a context that is trained on the plain prompt."""

    key: str
    asked: str | None
    """Key of a row whose prompt is the plain one; None where `question` holds its chat."""
    question: list[dict]
    weight: float
    """Of the row: its advantage over the attempts of the step."""


def distilled_attempts(
    table: RowTable, counts: Counter, *, config: CIPOConfig, norm_by_std: bool, usable: Collection[str]
) -> tuple[dict[str, float], list[Distilled]]:
    """Weights of the attempts at plain prompts, by key, and the attempts under contexts; those left out are counted.

    Attempts without an advantage, or without a token to train, would train nothing and are left out, but count among
    the N. So do those whose agent loop gave several outputs: what all but the first were asked contains the others.
    norm_by_std: whether the run's advantages are divided by the std; usable: keys with a token to train.
    """
    rows = table.rows
    final = np.flatnonzero((rows.stream == BASE) & rows.final)
    advantage = nudged_relative(
        torch.from_numpy(table.scores[final].astype(np.float32)),
        rows.group[final],
        rows.context[final],
        between=config.nudge.between,
        norm_by_std=norm_by_std,
    )
    in_place, appended = {}, []
    for i, own in zip(final.tolist(), advantage.tolist(), strict=True):
        if own == 0 or table.keys[i] not in usable:
            continue
        if follows_outputs(table.keys[i]):
            counts[f"{SKIPPED}several_outputs"] += 1
            continue
        weight = own / len(final)
        if rows.context[i] == PLAIN:
            in_place[table.keys[i]] = weight
            continue
        asked, question = table.plain_prompt(i)
        if asked is None and not question:
            counts[f"{SKIPPED}no_prompt"] += 1
            continue
        appended.append(Distilled(table.keys[i], asked, question, weight))
    return in_place, appended
