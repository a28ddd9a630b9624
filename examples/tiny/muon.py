"""Muon in float32 (Jordan et al. 2024, kellerjordan.github.io/posts/muon): orthogonalised momentum for matrices.

torch.optim.Muon does the same in bfloat16, which costs ten times as much on CPUs without bfloat16 instructions.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic's coefficients, from the reference


class Muon(torch.optim.Optimizer):
    """A step of `lr` has the root mean square of an AdamW step (Moonlight's 0.2 * sqrt(max(rows, columns))).

    params: 2-D float32 matrices, each with a gradient at every step. momentum: Nesterov.
    """

    def __init__(self, params: Iterable[torch.nn.Parameter], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for param in group["params"]:
                same_shape.setdefault(param.shape, []).append(param)
            for shape, params in same_shape.items():
                updates = orthogonalise(torch.stack([self._nesterov(p, group["momentum"]) for p in params]))
                for param, update in zip(params, updates, strict=True):
                    param.add_(update, alpha=-0.2 * max(shape) ** 0.5 * group["lr"])

    def _nesterov(self, param: torch.nn.Parameter, momentum: float) -> torch.Tensor:
        average = self.state[param].setdefault("average", torch.zeros_like(param))
        average.lerp_(param.grad, 1 - momentum)
        return param.grad.lerp(average, momentum)


def orthogonalise(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Matrices (n, rows, columns) with their singular values moved to about 1, by Newton-Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x
