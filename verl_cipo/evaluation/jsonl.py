"""JSON lines, read so that errors are named by file and line; and files that survive when their writer is killed."""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


def existing_folder(option: str, given: str | Path) -> Path:
    """The folder that an option names. Raises: EvaluationError when it is none; a name of the hub is not tried."""
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder
    problem = "is a file, expected a folder" if folder.exists() else "no such folder"
    hub = ""
    if not folder.exists() and not folder.is_absolute() and len(folder.parts) <= 2:
        hub = f"; if it is a name of the Hugging Face hub: hf download {given} --local-dir DIR, and give {option} DIR"
    raise EvaluationError(f"{option} {given}: {problem}{hub}")


def inside(run: Path, *places: str) -> Path:
    """The first of the `places` that is a folder of steps in `run`, or `run` itself where there is none."""
    return next((run / place for place in places if by_step(run / place)), run)


def by_step(folder: Path) -> dict[int, Path]:
    """The files ``{step}.jsonl`` of a folder in the order of steps; empty where there are none."""
    found = {int(file.stem): file for file in folder.glob("*.jsonl") if file.stem.isdecimal()}
    return dict(sorted(found.items()))


def read_earlier(file: Path, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """What an earlier start of the command wrote, with at least these fields; None where there is no such file.

    Raises: EvaluationError when the file is another one.
    """
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{file}: is there, and not JSON ({error}); take another --output") from error
    if not isinstance(found, dict) or any(not isinstance(found.get(name), kind) for name, kind in fields.items()):
        raise EvaluationError(f"{file}: is there, and not of this command; take another --output")
    return found


def same_settings(file: Path, settings: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, Any]:
    """`settings` as JSON holds them.

    Args:
        file: named in the error.
        settings: what is made now depends on them.
        before: those that what is there was made with; None where nothing is there.

    Raises:
        EvaluationError: they differ.
    """
    now = json.loads(json.dumps(settings, default=str))
    changed = [] if before is None else sorted(name for name in now | before if now.get(name) != before.get(name))
    if changed:
        changes = "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
        raise EvaluationError(f"{file} was made with other settings ({changes}): take another --output")
    return now


def check_output(option: str, path: Path, *, folder: bool = False, reads: Iterable[Path] = ()) -> None:
    """Look at where figures are to go, before the work; a file that is there is replaced, and that is said.

    Args:
        option: names the path in errors.
        folder: whether the path is to be a folder; its files are not looked at.
        reads: files that the figures are made from, and folders with JSONL files that they may be made from.

    Raises:
        EvaluationError: a file is where a folder has to be, or the other way round; or the file that is there is
            no regular one, or one of those that are read: it would be lost.
    """
    above = next((parent for parent in path.parents if parent.exists()), path)
    if not above.is_dir():
        raise EvaluationError(f"{option} {path}: {above} is a file, expected a folder")
    if folder and path.exists() and not path.is_dir():
        raise EvaluationError(f"{option} {path}: is a file, expected a folder")
    if not folder and path.is_dir():
        raise EvaluationError(f"{option} {path}: is a folder, expected a file")
    if folder or not path.exists():
        return
    if not path.is_file():
        raise EvaluationError(f"{option} {path}: is a device or a pipe, which a file would replace; give a file's name")
    place = path.resolve()
    for read in map(Path.resolve, reads):
        if place == read or (place.suffix == ".jsonl" and place.is_relative_to(read)):
            raise EvaluationError(f"{option} {path}: is a file that is read, and would be lost; give another name")
    print(f"{option} {path}: is there and will be replaced", file=sys.stderr)


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all; an older one stays until the new one is complete.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes its escape, which in JSON says the same.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.tmp")
    part.write_bytes(content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
    part.replace(file)


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
