"""The scorers of reasoning-gym's tasks (arXiv 2505.24760) as a reward function.

    reward.custom_reward_function.path=pkg://verl_cipo.rewards.reasoning_gym
    +reward.custom_reward_function.reward_kwargs.partial=true

data_prep/reasoning_gym.py writes the data. The answer is the text of the last <answer>...</answer>. The task's own
scorer judges it in a worker process, where it may hang or swell.
"""

import importlib.util
import re
from typing import Any

from verl_cipo.rewards.arguments import refuse_unknown
from verl_cipo.rewards.math import default_workers
from verl_cipo.rewards.math.workers import CheckTimeout, shared_pool
from verl_cipo.rewards.outcome import Outcome, printable, result
from verl_cipo.rewards.reasoning_gym.entry import load

if importlib.util.find_spec("reasoning_gym") is None:
    raise ImportError(
        "reasoning-gym is not installed: pip install '.[reasoning]' in verl_cipo's folder (it takes a C compiler)"
    )

_JUDGE = "verl_cipo.rewards.reasoning_gym.judge:judge"
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_PRED_CHARS = 200


def last_answer(text: str) -> str | None:
    """The text of the last <answer>...</answer>, without white space around it; None where there is none."""
    found = _ANSWER.findall(text)
    return found[-1].strip() if found else None


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    partial: bool = False,
    timeout_s: float = 10.0,
    workers: int | None = None,
    memory_mb: int = 4096,
    max_chars: int = 10_000,
    **unknown: Any,
) -> dict[str, float | bool | str]:
    """Judge the answer that a solution states last by the scorer of its task.

    Args:
        data_source: named in errors.
        solution_str: the policy's text.
        ground_truth: task, its settings and the entry, as `entry.dump` writes them.
        extra_info: not used.
        partial: give the scorer's own value, 0 to 1, as the score. Some give 0.01 to any answer, or credit for a right
            answer among other text. What is right (`acc`) stays the same: the value 1.
        timeout_s: processor time of one check, seconds.
        workers: worker processes of this process at most; by default as many as it has cores, 2 to 8.
        memory_mb: address space of a worker, MiB.
        max_chars: a longer answer is unparsable.
        unknown: verl's `reward_router_address` and `reward_model_tokenizer`, which are not used; nothing else.

    Returns:
        score, acc (bool), pred (the first 200 characters of the answer) and outcome: right, wrong, unparsable (no
        answer, or one that the scorer would run as a program), timeout, or undecided where the scorer raised.

    Raises:
        VerifierInfrastructureError: no verdict could be had.
        TypeError: an argument is unknown.
        ValueError: an argument is out of range, or the ground truth is no entry.
    """
    refuse_unknown(compute_score, unknown)
    workers = default_workers() if workers is None else workers
    limits = {"timeout_s": timeout_s, "workers": workers, "memory_mb": memory_mb, "max_chars": max_chars}
    for name, value in limits.items():
        if not value > 0:
            raise ValueError(f"reward_kwargs.{name} = {value!r} must be above 0")
    try:
        load(ground_truth)
    except ValueError as error:
        raise ValueError(f"ground truth of data source {data_source!r}: {error}") from error
    answer = last_answer(solution_str)
    pred = printable(answer or "", _PRED_CHARS)
    if not answer or len(answer) > max_chars:
        return result(Outcome.UNPARSABLE, pred)
    pool = shared_pool(_JUDGE, size=workers, memory_mb=memory_mb)
    try:
        outcome, value = pool.check((ground_truth, answer), timeout_s=timeout_s)
    except CheckTimeout:
        return result(Outcome.TIMEOUT, pred)
    verdict = result(Outcome(outcome), pred)
    return {**verdict, "score": value} if partial else verdict
