"""Risk-averse reward shaping: turning a correct attempt wrong costs extra (METHOD item 4)."""

import torch
from torch import Tensor


def risk_penalty(correct: Tensor, anchor_correct: Tensor, is_correction: Tensor, *, lambda_risk: float) -> Tensor:
    """What shaping adds to the raw verifier score, r' = r + penalty.

    correct, anchor_correct, is_correction: bool, shape (N,). Returns float32, shape (N,): -lambda_risk where a
    correction of a correct anchor is wrong, else 0. To be added exactly once, to raw outcomes.
    Raises: ValueError when the shapes differ, TypeError when a tensor is not bool.
    """
    if not correct.shape == anchor_correct.shape == is_correction.shape or correct.dim() != 1:
        raise ValueError(
            f"shapes {tuple(correct.shape)}, {tuple(anchor_correct.shape)}, {tuple(is_correction.shape)}: "
            "allowed is one shape (N,)"
        )
    if not correct.dtype == anchor_correct.dtype == is_correction.dtype == torch.bool:
        raise TypeError(f"dtypes {correct.dtype}, {anchor_correct.dtype}, {is_correction.dtype}: allowed is torch.bool")
    broken = is_correction & anchor_correct & ~correct
    return torch.where(broken, -float(lambda_risk), 0.0)
