r"""CriticBench's critique task: is a given response right? (arXiv 2402.14809; data_prep/criticbench.py)"""

from verl_cipo.rewards.math.answers import last_boxes
from verl_cipo.rewards.math.normal import normalize
from verl_cipo.rewards.math.values import plain_words
from verl_cipo.rewards.outcome import Outcome, result

_LABELS = {"correct": "correct", "right": "correct", "wrong": "wrong", "incorrect": "wrong"}


def read_label(text: str) -> str:
    r"""What the critique calls the response in its last box, `correct` or `wrong`; empty when that is neither."""
    box = last_boxes(text)
    return _LABELS.get(plain_words(normalize(box[1])).strip("*_ .!"), "") if box else ""


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict | None = None
) -> dict[str, float | bool | str]:
    """The reward function of the critique task.

    Args:
        data_source: named in errors.
        solution_str: the critique.
        ground_truth: correct or wrong, what the response is.
        extra_info: not used.

    Returns:
        score (1.0 when the critique is right, else 0.0), acc, pred (correct, wrong or empty) and outcome (right, wrong
        or unparsable).

    Raises:
        ValueError: the ground truth is something else.
    """
    if ground_truth not in ("correct", "wrong"):
        raise ValueError(f"ground truth of data source {data_source!r} is {ground_truth!r}: expected correct or wrong")
    pred = read_label(solution_str)
    return result(Outcome.RIGHT if pred == ground_truth else Outcome.WRONG if pred else Outcome.UNPARSABLE, pred)
