"""A log of JSON lines that survives when its writer is killed."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.jsonl import EvaluationError


class AppendLog:
    """A JSONL file of units, each of them a fixed number of lines that stand together.

    Opening it takes off what a killed run left half written at its end: a torn last line, and the lines of a last unit
    that is not whole. Everything before stays. `done` holds the keys of the units that are there.

    Args:
        path: made, with its folders, when it is not there.
        key: names the unit of a row.
        lines: lines of each unit.

    Raises:
        EvaluationError: another process writes the file; or a line before the end is not JSON or of a broken unit,
            which no killed run leaves behind.
    """

    def __init__(self, path: Path, *, key: Callable[[dict[str, Any]], str], lines: int = 1) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._key, self._lines = key, lines
        self._file = open(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise EvaluationError(f"{path}: another process is writing it; take another folder") from error
        try:
            self.done = self._recover()
        except BaseException:
            self._file.close()
            raise

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Write whole units; they are on the disk when this returns. What JSON cannot hold is text, as verl has it."""
        lines = (json.dumps(row, ensure_ascii=False, default=str).encode(errors="backslashreplace") for row in rows)
        self._file.write(b"".join(line + b"\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.done.update(self._key(row) for row in rows)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows, one at a time, in the order in which they were written."""
        with open(self.path, encoding="utf-8") as file:
            yield from map(json.loads, file)

    def close(self) -> None:
        """Close the file, which lets another process have it."""
        self._file.close()

    def __enter__(self) -> "AppendLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self) -> set[str]:
        """The keys of the whole units; what follows the last of them is cut off."""
        done: set[str] = set()
        self._file.seek(0)
        whole = at = n = 0
        current = None
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                break
            at += len(line)
            try:
                key = self._key(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise EvaluationError(
                    f"{self.path}:{number}: not a line of this log ({error!r}); fix or remove the file"
                ) from error
            if n == 0 and key in done or n and key != current:
                raise EvaluationError(
                    f"{self.path}:{number}: {key} does not stand with its {self._lines} lines; "
                    "remove the file, or take the n that it was made with"
                )
            current, n = key, n + 1
            if n == self._lines:
                done.add(key)
                whole, n = at, 0
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)
        return done
