"""Files and folders that a command's options name: looked at before the work, and written whole."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.jsonl import EvaluationError


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
