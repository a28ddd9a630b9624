"""What a data_prep file says of a problem, found by the prompt's text in what a dump calls `input`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.suite.problems import Problem, problems_of, read_table

_REMEDY = "data_prep/ writes such files"


class ByPrompt:
    """Something of each problem.

    Args:
        prompts: (text of the last user message, what belongs to it) of each problem.
    """

    def __init__(self, prompts: Iterable[tuple[str, Any]]) -> None:
        # A dump's input is the chat as the template rendered it: the prompt is somewhere in it.
        self._by_line: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for text, value in prompts:
            text = text.strip()
            self._by_line[max(text.split("\n"), key=len).strip()].append((text, value))

    def find(self, shown: str) -> Any | None:
        """What belongs to the problem whose prompt is in `shown`; None when there is none."""
        for line in shown.split("\n"):
            for text, value in self._by_line.get(line.strip(), ()):
                if text in shown:
                    return value
        return None


class HeldOut(ByPrompt):
    """Ground truths with tests that training did not use."""

    @classmethod
    def read(cls, files: Sequence[Path]) -> "HeldOut":
        """From data_prep's parquet files. Raises: EvaluationError on other files."""
        problems = [problem for file in files for problem in _problems("--held-out", file)]
        return cls((problem.messages[-1]["content"], problem.ground_truth) for problem in problems)


class References(ByPrompt):
    """Programs of the data set that solve a problem; none of some problems."""

    @classmethod
    def read(cls, files: Sequence[Path]) -> "References":
        """From data_prep's parquet files, made with --keep_solutions. Raises: EvaluationError on other files."""
        problems = [problem for file in files for problem in _problems("--references", file)]
        found = [(one.messages[-1]["content"], one.extra_info.get("solutions") or []) for one in problems]
        if not any(solutions for _, solutions in found):
            names = ", ".join(map(str, files))
            raise EvaluationError(
                f"--references {names}: no row has extra_info.solutions; {_REMEDY} with --keep_solutions"
            )
        return cls(found)


def _problems(option: str, file: Path) -> list[Problem]:
    """The rows of a file whose prompts end in a text. Raises: EvaluationError on other files."""
    if not file.is_file():
        raise EvaluationError(f"{option} {file}: no such file, expected a parquet file; {_REMEDY}")
    table = read_table(file, remedy=_REMEDY)
    problems = problems_of(table, range(len(table)), file, name="", remedy=_REMEDY)
    for place, problem in enumerate(problems):
        if not isinstance(said := problem.messages[-1]["content"], str):
            raise EvaluationError(f"{option} {file}: row {place}: the prompt ends in {said!r:.80}, expected a text")
    return problems
