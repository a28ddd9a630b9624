"""JSON lines, read so that errors are named by file and line."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHOWN_BAD_LINES = 20
ANSWER, CORRECTED = "a verified answer", "an attempt with its corrections"
"""What a line of a dump is."""
_KINDS = {
    CORRECTED: (
        "a dump of corrections: --second-turns reads it, and the attempts are in the folder above it",
        frozenset(("question", "anchor_correct", "corrections")),
    ),
    ANSWER: (
        "a dump of answers: --dumps and --rescore read it, and a validation's corrections are in corrections/ beside "
        "it",
        frozenset(("input", "output", "score")),
    ),
    "a step's figures": ("a log of metrics: verl_cipo.report reads it", frozenset(("step", "data"))),
}
"""Files that are taken for one another: what a line is -> what to do about such a file, keys of its lines."""


class EvaluationError(ValueError):
    """An evaluation that cannot be done. The message says what is missing or wrong, and what to do."""


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be used, and why. torn: whether the file ends in it, as one that is being written does."""

    path: Path
    line: int
    reason: str
    torn: bool = False

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


class BadLinesError(EvaluationError):
    """Lines that are no rows, among others that are; the message names the first ones."""

    def __init__(self, lines: Sequence[BadLine]) -> None:
        self.lines = tuple(lines)
        more = [f"... and {len(lines) - _SHOWN_BAD_LINES} more"] if len(lines) > _SHOWN_BAD_LINES else []
        super().__init__("\n".join([*map(str, lines[:_SHOWN_BAD_LINES]), *more]))


def told(error: Exception) -> str:
    """What an error says; of the system's the path and the reason, without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return str(error)


def wrong_file(file: Path, bad: Sequence[BadLine], expected: str) -> EvaluationError:
    """The error about a file none of whose lines is what was asked for: leaving lines out would leave nothing.

    Args:
        bad: why the lines are none, at least one.
        expected: what a line should be; of ANSWER and CORRECTED, a file of that kind is not called another one.
    """
    first = next((row for _, row in read_objects(file, [])), {})
    kinds = (told for kind, (told, keys) in _KINDS.items() if kind != expected and first.keys() >= keys)
    instead = next((f"; this is {told}" for told in kinds), "")
    return EvaluationError(f"{file}: no line of it is {expected}; line {bad[0].line} {bad[0].reason}{instead}")


def check_lines(file: Path, bad: Sequence[BadLine], expected: str, *, found: bool, skip_bad: bool) -> None:
    """Whether a file can be used without its bad lines.

    Args:
        file: all of whose lines were read.
        bad, expected: as for `wrong_file`.
        found: whether the file has a line that is not bad. A run that was killed while it wrote its first leaves none.
        skip_bad: bad lines are to be left out.

    Raises: EvaluationError when it is a file of another kind; BadLinesError naming the lines, unless skip_bad.
    """
    if not found and not all(line.torn for line in bad):
        raise wrong_file(file, bad, expected)
    if bad and not skip_bad:
        raise BadLinesError(bad)


def read_objects(
    path: Path,
    bad: list[BadLine],
    fields: Mapping[str, type] | None = None,
    *,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, one a line, with their line numbers; empty lines are passed over.

    Args:
        path: the file.
        bad: gets the lines that hold none, or one without the fields; they are left out.
        fields: keys that an object must have, with their type; `object` allows any.
        advance: called with the bytes of each line.

    Raises:
        OSError: the file cannot be read.
    """
    # Bytes, split at \n alone: a text file would split at characters that a dump holds unescaped, such as U+2028,
    # and a torn last line may end within a character.
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            advance(len(line))
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                torn = not line.endswith(b"\n")
                end = "; the file ends in the middle of it" if torn else ""
                bad.append(BadLine(path, number, f"not JSON: {error}{end}", torn))
                continue
            if not isinstance(value, dict):
                bad.append(BadLine(path, number, "not a JSON object"))
            elif lacking := [
                name if kind is object else f"{name} ({kind.__name__})"
                for name, kind in (fields or {}).items()
                if name not in value or not isinstance(value[name], kind)
            ]:
                bad.append(BadLine(path, number, f"lacks {', '.join(lacking)}"))
            else:
                yield number, value


def inside(run: Path, *places: str) -> Path:
    """The first of the `places` that is a folder of steps in `run`, or `run` itself where there is none."""
    return next((run / place for place in places if by_step(run / place)), run)


def by_step(folder: Path) -> dict[int, Path]:
    """The files ``{step}.jsonl`` of a folder in the order of steps; empty where there are none."""
    found = {int(file.stem): file for file in folder.glob("*.jsonl") if file.stem.isdecimal()}
    return dict(sorted(found.items()))
