"""What a data_prep file says of a problem, found by the prompt's text in what a dump calls `input`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


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
        """From data_prep's parquet files. Raises: OSError, and what pyarrow raises on other files."""
        return cls((prompt, row["reward_model"]["ground_truth"]) for prompt, row in _rows(files, "reward_model"))


class References(ByPrompt):
    """Programs of the data set that solve a problem; none of some problems."""

    @classmethod
    def read(cls, files: Sequence[Path]) -> "References":
        """From data_prep's parquet files, made with --keep_solutions. Raises: as `HeldOut.read`."""
        return cls((prompt, row["extra_info"].get("solutions") or []) for prompt, row in _rows(files, "extra_info"))


def _rows(files: Sequence[Path], column: str) -> Iterable[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    for file in files:
        for row in pq.read_table(file, columns=["prompt", column]).to_pylist():
            yield row["prompt"][-1]["content"], row
