"""The math verifier: a reward function for verl's `reward.custom_reward_function`.

    reward.custom_reward_function.path=pkg://verl_cipo.rewards.math
    reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.timeout_s=5

docs/math-verifier.md says what is accepted, refused and known to be judged wrongly.
"""

import os
from typing import Any

from verl_cipo.rewards.arguments import refuse_unknown
from verl_cipo.rewards.math.answers import last_answer, reference_answers
from verl_cipo.rewards.math.normal import normalize
from verl_cipo.rewards.math.values import contradict, exact_part, tolerance_of, within, without_domains
from verl_cipo.rewards.math.verdict import for_algebra, quick_verdict
from verl_cipo.rewards.math.workers import CheckTimeout, shared_pool
from verl_cipo.rewards.outcome import Outcome, printable, result

_JUDGE = "verl_cipo.rewards.math.judge:judge"
# With several references the best outcome counts.
_RANK = (Outcome.RIGHT, Outcome.WRONG, Outcome.TIMEOUT, Outcome.UNDECIDED, Outcome.UNPARSABLE)
_PRED_CHARS = 200


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict | None = None,
    *,
    timeout_s: float = 5.0,
    workers: int | None = None,
    memory_mb: int = 1024,
    max_chars: int = 1000,
    last_number: bool = False,
    **unknown: Any,
) -> dict[str, float | bool | str]:
    """Judge the answer that a solution states last.

    Args:
        data_source: named in errors; all sources are judged alike.
        solution_str: the policy's text.
        ground_truth: the reference, or several of which any will do; see `answers.reference_answers`.
        extra_info: with the problem's text under `question`, an answer that only repeats an expression of it is wrong;
            with a number under `tolerance`, a number that differs from the reference by so much at most is right.
        timeout_s: processor time of one comparison, seconds.
        workers: worker processes of this process at most; by default as many as it has cores, 2 to 8.
        memory_mb: address space of a worker, MiB.
        max_chars: a longer answer is unparsable.
        last_number: without any answer expression, judge the last number of the text.
        unknown: verl's `reward_router_address` and `reward_model_tokenizer`, which are not used; nothing else.

    Returns:
        score (1.0 or 0.0), acc (bool), pred (the answer as written, its first 200 characters) and outcome (right,
        wrong, unparsable or timeout), as `outcome.result` has them.

    Raises:
        VerifierInfrastructureError: no verdict could be had.
        TypeError: an argument is unknown.
        ValueError: an argument or the tolerance is out of range, or the ground truth holds no answer.
    """
    refuse_unknown(compute_score, unknown)
    workers = default_workers() if workers is None else workers
    for name, value in (
        ("timeout_s", timeout_s),
        ("workers", workers),
        ("memory_mb", memory_mb),
        ("max_chars", max_chars),
    ):
        if not value > 0:
            raise ValueError(f"reward_kwargs.{name} = {value!r} must be above 0")
    try:
        golds = [normalize(gold) for gold in reference_answers(ground_truth)]
    except ValueError as error:
        raise ValueError(f"ground truth of data source {data_source!r}: {error}") from error
    written = last_answer(solution_str, last_number=last_number)
    if written is None or len(written) > max_chars:
        return result(Outcome.UNPARSABLE, printable(written or "", _PRED_CHARS))
    answer = normalize(written)
    question = (extra_info or {}).get("question")
    question = question if isinstance(question, str) else None
    tolerance = tolerance_of(extra_info)
    if tolerance is not None and any(within(gold, answer, tolerance) for gold in golds):
        return result(Outcome.RIGHT, printable(written, _PRED_CHARS))

    outcomes = []
    for gold in golds:
        outcome = _compare(gold, answer, question, timeout_s=timeout_s, workers=workers, memory_mb=memory_mb)
        if outcome is Outcome.RIGHT:
            return result(outcome, printable(written, _PRED_CHARS))
        outcomes.append(outcome)
    return result(min(outcomes, key=_RANK.index), printable(written, _PRED_CHARS))


def default_workers() -> int:
    """As many as this process has cores, 2 to 8. A worker is started when a check finds none idle."""
    return min(max(len(os.sched_getaffinity(0)), 2), 8)


def _compare(
    gold: str, answer: str, question: str | None, *, timeout_s: float, workers: int, memory_mb: int
) -> Outcome:
    if contradict(gold, answer):
        return Outcome.WRONG
    gold, answer = without_domains(exact_part(gold), exact_part(answer))
    if (outcome := quick_verdict(gold, answer, question)) is not None:
        return outcome
    pool = shared_pool(_JUDGE, size=workers, memory_mb=memory_mb)
    try:
        return Outcome(pool.check((for_algebra(gold), for_algebra(answer)), timeout_s=timeout_s))
    except CheckTimeout:
        return Outcome.TIMEOUT
