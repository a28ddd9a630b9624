"""How corrections change the verdict: c->c, c->w, w->c, w->w, and whether they merely copy.

w->c falling while c->c rises is the sign of the copying collapse: the policy repeats what it is shown.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Transitions:
    """Counts of corrections by verdict on (anchor, correction): c is correct, w is wrong."""

    cc: int
    cw: int
    wc: int
    ww: int

    @classmethod
    def from_arrays(cls, anchor_correct: ArrayLike, correct: ArrayLike) -> "Transitions":
        """Count; both are bool of shape (N,), one entry per correction."""
        anchor, result = np.asarray(anchor_correct, dtype=bool), np.asarray(correct, dtype=bool)
        if anchor.shape != result.shape or anchor.ndim != 1:
            raise ValueError(f"shapes {anchor.shape} and {result.shape}: allowed is one shape (N,)")
        return cls(
            cc=int((anchor & result).sum()),
            cw=int((anchor & ~result).sum()),
            wc=int((~anchor & result).sum()),
            ww=int((~anchor & ~result).sum()),
        )

    @property
    def c2c(self) -> float | None:
        """Share of corrections of correct anchors that stay correct; None without such an anchor."""
        return self.cc / (self.cc + self.cw) if self.cc + self.cw else None

    @property
    def w2c(self) -> float | None:
        """Share of corrections of failed anchors that become correct; None without such an anchor."""
        return self.wc / (self.wc + self.ww) if self.wc + self.ww else None

    @property
    def retention(self) -> float | None:
        """What steers rho (core.replay): c2c."""
        return self.c2c

    def rates(self) -> dict[str, float]:
        """c2c, c2w, w2c, w2w given the kind of anchor; the rates of a kind without an anchor are left out."""
        rates = {}
        if self.c2c is not None:
            rates.update(c2c=self.c2c, c2w=1.0 - self.c2c)
        if self.w2c is not None:
            rates.update(w2c=self.w2c, w2w=1.0 - self.w2c)
        return rates


def is_copy(attempt: str, correction: str, *, cut: bool = False) -> bool:
    """Whether the correction repeats the attempt, up to white space.

    cut: `attempt` is the end of a longer text, and may begin inside a word: it is held against as much of the end of
    the correction.
    """
    shown, answer = attempt.split(), correction.split()
    if cut and shown:
        answer = answer[-len(shown) :]
        if answer and answer[0].endswith(shown[0]):
            answer[0] = shown[0]
    return shown == answer


def retried(right: ArrayLike, attempts: ArrayLike) -> np.ndarray:
    """Of each problem, what a further attempt in place of a correction of one of its wrong attempts would score.

    That is the share of right ones among the other attempts, c / (n - 1). A correction of a wrong attempt is to be held
    against it, since a policy that does not look at the attempt does as well. Averaged over corrections of wrong
    attempts it is free of bias, however many a problem has; for a problem without one it has no meaning, and may be
    above 1. It is biased where problems were chosen by their c, as the anchors of training are.

    Args:
        right: (P,) int, right attempts of each problem, sampled independently.
        attempts: (P,) int, all its attempts, at least 2.

    Raises:
        ValueError: a problem has fewer than 2 attempts.
    """
    right, attempts = np.asarray(right), np.asarray(attempts)
    if (attempts < 2).any():
        raise ValueError(f"a problem with {attempts.min()} attempts: what a further one brings takes at least 2")
    return right / (attempts - 1)
