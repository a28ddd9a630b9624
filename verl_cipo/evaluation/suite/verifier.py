"""Answers verified: by the project's verifiers, or a user's reward function, many at a time."""

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_cipo.core.verdict import fault, verdict
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.suite.problems import Problem

BUILT_IN = {
    "math": "verl_cipo.rewards.math:compute_score",
    "code": "verl_cipo.rewards.code:compute_score",
    "critique": "verl_cipo.rewards.critique:compute_score",
}


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a verifier returned for an answer.

    correct: the verdict, as in training (core.verdict); score: the verifier's; extra: what else it returned, for dumps.
    """

    correct: bool
    score: float
    extra: Mapping[str, Any]


def load_function(name: str) -> Callable[..., Any]:
    """The reward function `math`, `code` or `critique`, else that of `package.module:function` or `file.py:function`.

    Raises: EvaluationError when there is no such function, or it is asynchronous.
    """
    place, _, function = BUILT_IN.get(name, name).rpartition(":")
    if not place:
        raise EvaluationError(f"verifier {name!r}: expected {', '.join(BUILT_IN)}, package.module:name or file.py:name")
    try:
        found = getattr(_module(place), function)
    except (ImportError, OSError, SyntaxError, AttributeError) as error:
        raise EvaluationError(f"verifier {name!r}: {error}") from error
    if inspect.iscoroutinefunction(found):
        raise EvaluationError(f"verifier {name!r} is asynchronous: expected a plain function")
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Verifier:
    """Calls a reward function as verl does, from `threads` threads.

    Args:
        function: `f(data_source, solution_str, ground_truth, extra_info, **kwargs)` giving a score, or a dict with one.
        kwargs: verl's `reward_kwargs`.
        threads: checks at a time; the built-in verifiers work in processes of their own.
        threshold: a score above it is right where the function gives no `acc`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        kwargs: Mapping[str, Any] | None = None,
        threads: int = 4,
        threshold: float = 0.5,
    ) -> None:
        self._function = functools.partial(function, **(kwargs or {}))
        self._threads = threads
        self._threshold = threshold

    def judge(self, answers: Sequence[tuple[Problem, str]]) -> list[Verified]:
        """Each answer verified. An error of the function ends it: no verdict is not a wrong answer."""
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._one, answers))

    def _one(self, answer: tuple[Problem, str]) -> Verified:
        problem, text = answer
        try:
            returned = self._function(
                data_source=problem.data_source,
                solution_str=text,
                ground_truth=problem.ground_truth,
                extra_info=dict(problem.extra_info),
            )
        except ValueError as error:
            # The command ends with one line for a ValueError: for the function's own, its traceback is needed.
            raise RuntimeError(f"the reward function failed on {problem.key}") from error
        info = returned if isinstance(returned, Mapping) else {"score": returned}
        if "score" not in info:
            raise EvaluationError(f"the verifier returned {sorted(info)} for {problem.key}: a dict needs `score`")
        if reason := fault(info["score"], info):
            raise EvaluationError(f"no verdict on {problem.key}: {reason}")
        score = float(info["score"])
        return Verified(
            correct=verdict(score, info, self._threshold),
            score=score,
            extra={name: value for name, value in info.items() if name != "score"},
        )
