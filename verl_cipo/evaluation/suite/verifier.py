"""Answers verified: by the project's verifiers, or a user's reward function, many at a time."""

import asyncio
import contextlib
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_cipo.core.verdict import fault, verdict
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.output import plain
from verl_cipo.evaluation.suite.problems import Problem

BUILT_IN = {
    "math": "verl_cipo.rewards.math:compute_score",
    "code": "verl_cipo.rewards.code:compute_score",
    "critique": "verl_cipo.rewards.critique:compute_score",
    "verl": "verl.utils.reward_score:default_compute_score",
}
_PACKAGE, _FILE, _UNNAMED = "pkg://", "file://", "compute_score"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What a verifier returned for an answer.

    correct: the verdict, as in training (core.verdict); score: the verifier's; extra: what else it returned, as
    `plain` makes it, for dumps.
    """

    correct: bool
    score: float
    extra: Mapping[str, Any]


def load_function(name: str) -> Callable[..., Any]:
    """The reward function `math`, `code`, `critique` or `verl`, or that of `PLACE:function`.

    PLACE is `package.module`, or as verl's custom_reward_function.path has it: `pkg://package.module` or `file.py`.
    After these two, verl's name of a function without one, compute_score, may be left out. `verl` is what verl calls
    where none is configured: its own scorer of the row's data_source.

    Raises: EvaluationError when there is no such function.
    """
    place, _, function = BUILT_IN.get(name, name).rpartition(":")
    if not function.isidentifier():
        place, function = name, _UNNAMED
    if not place or place == name and not place.endswith(".py") and not place.startswith(_PACKAGE):
        expected = "package.module:name, pkg://package.module or file.py:name"
        raise EvaluationError(f"verifier {name!r}: expected {', '.join(BUILT_IN)}, {expected}")
    try:
        return getattr(_module(place.removeprefix(_PACKAGE).removeprefix(_FILE)), function)
    except Exception as error:
        raise EvaluationError(f"verifier {name!r}: {type(error).__name__}: {error}") from error


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Verifier:
    """Calls a reward function as verl does, from `threads` threads; an asynchronous one `threads` times at a time.

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
        # One loop for all calls: a function may keep a session that belongs to its loop.
        self._loop = asyncio.new_event_loop() if inspect.iscoroutinefunction(function) else None

    def judge(self, answers: Sequence[tuple[Problem, str]]) -> list[Verified]:
        """Each answer verified. An error of the function ends it: no verdict is not a wrong answer."""
        if self._loop is not None:
            return self._loop.run_until_complete(self._together(answers))
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._one, answers))

    def try_out(self, problems: Sequence[Problem]) -> None:
        """Judge an empty answer to one problem of each data source, so that what cannot work is known at once.

        Raises: EvaluationError naming the data source, when the function raises or gives no verdict.
        """
        for source, problem in {problem.data_source: problem for problem in reversed(problems)}.items():
            try:
                self.judge([(problem, "")])
            except Exception as error:
                why = error.__cause__ or error
                raise EvaluationError(
                    f"the reward function cannot judge data_source {source!r}: {type(why).__name__}: {why}"
                ) from error

    async def _together(self, answers: Sequence[tuple[Problem, str]]) -> list[Verified]:
        places = asyncio.Semaphore(self._threads)

        async def judged(problem: Problem, text: str) -> Verified:
            async with places:
                with _traced(problem):
                    returned = await self._function(**_arguments(problem, text))
            return self._verified(problem, returned)

        return list(await asyncio.gather(*(judged(*answer) for answer in answers)))

    def _one(self, answer: tuple[Problem, str]) -> Verified:
        problem, text = answer
        with _traced(problem):
            returned = self._function(**_arguments(problem, text))
        return self._verified(problem, returned)

    def _verified(self, problem: Problem, returned: Any) -> Verified:
        info = returned if isinstance(returned, Mapping) else {"score": returned}
        if "score" not in info:
            raise EvaluationError(f"the verifier returned {sorted(info)} for {problem.key}: a dict needs `score`")
        if reason := fault(info["score"], info):
            raise EvaluationError(f"no verdict on {problem.key}: {reason}")
        score = float(info["score"])
        return Verified(
            correct=verdict(score, info, self._threshold),
            score=score,
            extra=plain({name: value for name, value in info.items() if name != "score"}),
        )


def _arguments(problem: Problem, text: str) -> dict[str, Any]:
    return {
        "data_source": problem.data_source,
        "solution_str": text,
        "ground_truth": problem.ground_truth,
        "extra_info": dict(problem.extra_info),
    }


@contextlib.contextmanager
def _traced(problem: Problem) -> Iterator[None]:
    """The command ends with one line for a ValueError: for the function's own, its traceback is needed."""
    try:
        yield
    except ValueError as error:
        raise RuntimeError(f"the reward function failed on {problem.key}") from error
