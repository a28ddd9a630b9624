"""The advantage estimator ``cipo`` in verl's registry.

Seam: ``core_algos.register_adv_est``. verl calls an estimator with token-level rewards, response mask, the group
index and ``config.algorithm``, in the batch's row order. Which row is a correction of what is more than that, so the
CIPO trainer lays it out with :func:`rows_of_batch` around verl's own ``_compute_advantage``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from verl_cipo.core.advantage import Rows, two_stream_advantage
from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.stopwatch import Stopwatch

NAME = "cipo"


@dataclass(frozen=True, kw_only=True)
class BatchRows:
    """What the estimator needs to know beside verl's arguments."""

    rows: Rows
    """One entry a row, in the order of the batch."""
    config: CIPOConfig
    loss_agg_mode: str
    """``train.loss.normalizer``: it decides what a stream's own size is."""
    loss_tokens: np.ndarray | None = None
    """(N,) what ``two_stream_advantage`` takes; None: the tokens of the response mask."""
    own_time: Stopwatch = field(default_factory=Stopwatch)
    """Counts the seconds of the estimator."""


_current: ContextVar[BatchRows] = ContextVar("verl_cipo_batch_rows")


@contextmanager
def rows_of_batch(batch_rows: BatchRows) -> Iterator[None]:
    """Let the estimator see ``batch_rows`` while verl computes the advantages of that batch."""
    token = _current.set(batch_rows)
    try:
        yield
    finally:
        _current.reset(token)


def compute_cipo_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two-stream group-relative advantages, docs/method.md 1, 2, 4, 7, 9, 10 and 23.

    Args:
        token_level_rewards: (N, T) raw rewards, with verl's in-reward KL if that is on.
        response_mask: (N, T).
        config: ``config.algorithm``.

    Returns:
        advantages and returns, both (N, T); the same tensor, as in verl's outcome estimators.

    Raises:
        RuntimeError: called by a trainer other than CIPO's.
        ValueError: the batch and the rows laid out for it differ in size.
    """
    try:
        batch_rows = _current.get()
    except LookupError:
        raise RuntimeError(
            "adv_estimator=cipo was called outside the CIPO trainer, so attempts and corrections look alike. "
            "Start training with `python -m verl.trainer.main_ppo algorithm.adv_estimator=cipo`; "
            "`python -m verl_cipo.doctor` says why the switch is off."
        ) from None
    if len(batch_rows.rows.stream) != token_level_rewards.shape[0]:
        raise ValueError(
            f"{token_level_rewards.shape[0]} rows reached the estimator, {len(batch_rows.rows.stream)} were laid out"
        )
    with batch_rows.own_time.running():
        advantages = two_stream_advantage(
            token_level_rewards,
            response_mask,
            batch_rows.rows,
            lambda_corr=batch_rows.config.lambda_corr,
            lambda_risk=batch_rows.config.lambda_risk,
            norm_by_std=config.get("norm_adv_by_std_in_grpo", True),
            loss_agg_mode=batch_rows.loss_agg_mode,
            loss_tokens=batch_rows.loss_tokens,
            between=batch_rows.config.nudge.between,
        )
    return advantages, advantages


def register() -> None:
    """Put the estimator into verl's registry; a second call changes nothing."""
    from verl.trainer.ppo.core_algos import register_adv_est

    register_adv_est(NAME)(compute_cipo_advantage)
