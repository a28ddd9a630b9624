"""Whether the tests of a code problem tell right from wrong, tried in the code verifier's own sandbox.

A solution that the set gives has to pass, and a function that does nothing must not.
"""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_prep.common.records import Example
from data_prep.common.rows import NOT_FINITE, Dropped, PrepError

# What a function that does nothing gives back: without a word, or as an empty list, which vacuous loops pass.
_NOTHING = ("None", "[]")
_MAX_WORKERS = 16
# Three times the verifier's own: trials keep all cores busy.
_TIMEOUT_S, _TOTAL_TIMEOUT_S = 30.0, 180.0


def tried(examples: Iterable[tuple[Example, str]]) -> Iterator[tuple[Example, str, Dropped | None]]:
    """The examples and the places of their rows as they came, with what each trial raised.

    Raises: PrepError when nothing can be tried because the sandbox is missing.
    """
    workers = min(_MAX_WORKERS, max(2, len(os.sched_getaffinity(0))))
    waiting: deque = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for example, where in examples:
            waiting.append((example, where, pool.submit(_trial, example, workers)))
            if len(waiting) > 2 * workers:
                example, where, trial = waiting.popleft()
                yield example, where, trial.result()
        for example, where, trial in waiting:
            yield example, where, trial.result()
    finally:
        pool.shutdown(cancel_futures=True)


def readable(example: Example) -> None:
    """Raises: Dropped when the verifier cannot read the answer or the tests, or they are or hold NaN or infinity."""
    # Imported here: converters start, and say what their options are, without the verifiers.
    from verl_cipo.rewards.math.answers import reference_answers
    from verl_cipo.rewards.sandbox.cases import CallTest, read_tests

    if example.ability == "math":
        if example.ground_truth.casefold() == "nan":
            raise Dropped("an answer that is NaN")
        try:
            reference_answers(example.ground_truth)
        except ValueError as error:
            raise Dropped("an answer that the verifier refuses", str(error)) from error
        return
    try:
        tests = read_tests(example.ground_truth)
    except ValueError as error:
        raise Dropped("tests that the verifier refuses", str(error)) from error
    # Asserts are compared by Python, and infinity equals itself.
    values = [(test.args, test.readings) for test in tests if isinstance(test, CallTest) and not test.exact]
    if not _finite(values):
        raise Dropped(NOT_FINITE)


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return all(map(_finite, inside))


def _trial(example: Example, workers: int) -> Dropped | None:
    if example.ability != "code":
        return None
    try:
        _check_solutions(example, workers)
        _check_nothing(example, workers)
    except Dropped as reason:
        return reason
    return None


def _check_solutions(example: Example, workers: int) -> None:
    """Raises: Dropped when the set gives solutions and none passes."""
    failed = []
    for solution in example.solutions:
        outcome, how = _verdict(example, solution, workers)
        if outcome == "right":
            return
        failed.append((outcome, how))
    if failed:
        outcome, how = failed[0]
        late = "its own solution runs out of time"
        raise Dropped(late if outcome == "timeout" else "its own solution does not pass", how)


def _check_nothing(example: Example, workers: int) -> None:
    """Raises: Dropped when a function that does nothing passes."""
    from verl_cipo.rewards.sandbox.cases import ProgramTest, read_tests

    test = read_tests(example.ground_truth)[0]
    if isinstance(test, ProgramTest):  # Expected outputs that are all empty are refused without a run.
        return
    for value in _NOTHING:
        outcome, _ = _verdict(example, f"def {test.name}(*args, **kwargs):\n    return {value}\n", workers)
        if outcome == "right":
            raise Dropped("a function that does nothing passes", f"{test.name} returns {value}")


def _verdict(example: Example, program: str, workers: int) -> tuple[str, str]:
    """The outcome of the program, and how far it came."""
    from verl_cipo.rewards.code import compute_score
    from verl_cipo.rewards.outcome import VerifierInfrastructureError

    answer = f"```python\n{program}\n```"
    try:
        verdict = compute_score(
            example.data_source,
            answer,
            example.ground_truth,
            timeout_s=_TIMEOUT_S,
            total_timeout_s=_TOTAL_TIMEOUT_S,
            workers=workers,
        )
    except ValueError as error:
        raise Dropped("tests that the verifier refuses", str(error)) from error
    except VerifierInfrastructureError as error:
        reason = " ".join(str(error).split())
        raise PrepError(f"tests cannot be tried ({reason}); --skip_trial converts without that") from error
    return str(verdict["outcome"]), str(verdict["pred"])
