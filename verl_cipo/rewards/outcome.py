"""What a verifier says about an answer, and what it raises when it can say nothing."""

import enum


class Outcome(str, enum.Enum):
    """The kinds of outcome of a check. All but INFRASTRUCTURE_ERROR are verdicts on the answer."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    UNDECIDED = "undecided"
    TIMEOUT = "timeout"
    INFRASTRUCTURE_ERROR = "infrastructure_error"


class VerifierInfrastructureError(RuntimeError):
    """No verdict could be had: a worker could not be started, the sandbox is missing.

    It says nothing about the answer, so it is raised and never turned into a score of 0.
    """

    outcome = Outcome.INFRASTRUCTURE_ERROR


def printable(text: str, limit: int) -> str:
    """`text` as one line of at most `limit` characters that any terminal and any encoding of Unicode takes.

    What is not printable, line ends and lone surrogates among it, becomes its escape sequence.
    """
    shown = (char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[:limit])
    return "".join(shown)[:limit]


def result(outcome: Outcome, pred: str) -> dict[str, float | bool | str]:
    """The dict a reward function returns; every sample has the same keys, as verl's batches need.

    Args:
        outcome: the verdict.
        pred: the answer that was judged, for dumps; empty where there is none.

    Returns:
        score: 1.0 when the answer is right, else 0.0.
        acc: whether it is right.
        pred: as given.
        outcome: the verdict's name.

    Raises:
        ValueError: for INFRASTRUCTURE_ERROR, which is no verdict; raise VerifierInfrastructureError in its place.
    """
    if outcome is Outcome.INFRASTRUCTURE_ERROR:
        raise ValueError("an infrastructure error has no score: raise VerifierInfrastructureError")
    right = outcome is Outcome.RIGHT
    return {"score": float(right), "acc": right, "pred": pred, "outcome": outcome.value}
