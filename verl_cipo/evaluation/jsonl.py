"""JSON lines as verl, its file logger and CIPO write them, with what is wrong in them named by file and line."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHOWN_BAD_LINES = 20


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used, and why."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


class BadLinesError(ValueError):
    """Lines that are no rows; the message names the first ones."""

    def __init__(self, lines: Sequence[BadLine]) -> None:
        self.lines = tuple(lines)
        more = [f"... and {len(lines) - _SHOWN_BAD_LINES} more"] if len(lines) > _SHOWN_BAD_LINES else []
        super().__init__("\n".join([*map(str, lines[:_SHOWN_BAD_LINES]), *more]))


def read_objects(
    path: Path,
    bad: list[BadLine],
    *,
    blank_lines: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, with their line numbers.

    Args:
        path: the file.
        bad: gets the lines that hold none; they are left out.
        blank_lines: whether empty lines are passed over, else they are bad.
        advance: called with the bytes of each line.

    Raises:
        OSError: the file cannot be read.
    """
    # Bytes, split at \n alone: a text file would split at characters that a dump holds unescaped, such as U+2028,
    # and a torn last line may end within a character.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            advance(len(line))
            if blank_lines and not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                torn = "" if line.endswith(b"\n") else "; the file ends in the middle of it"
                bad.append(BadLine(path, number, f"not JSON: {error}{torn}"))
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                bad.append(BadLine(path, number, "not a JSON object"))


def by_step(folder: Path) -> dict[int, Path]:
    """The files ``{step}.jsonl`` of a folder in the order of steps; empty where there are none."""
    found = {int(file.stem): file for file in folder.glob("*.jsonl") if file.stem.isdecimal()}
    return dict(sorted(found.items()))
