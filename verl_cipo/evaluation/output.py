"""How figures are written: as JSON, and as Markdown tables."""

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.files import write_whole
from verl_cipo.evaluation.intervals import Interval

_WIDTH = 120
"""Of a terminal that does not say."""


def plain(value: Any) -> Any:
    """The value as JSON holds it: intervals as mappings, numpy's and torch's as numbers and lists, nan as None."""
    if isinstance(value, Interval):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and math.isnan(value) else value


def write_json(file: Path, value: Any) -> None:
    """Write a value, as `plain` makes it, whole or not at all."""
    write_whole(file, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of cells as text, each on one line; all columns but the first are aligned right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    lines = [[" ".join(str(cell).split()).replace("|", r"\|") for cell in row] for row in (head, rule, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def for_terminal(text: str) -> str:
    """`text` with aligned columns for Markdown tables; of one too wide, with more columns than rows, these swap."""
    made: list[str] = []
    for is_table, group in itertools.groupby(text.splitlines(), key=lambda line: line.startswith("| ")):
        lines = list(group)
        made += _aligned([_cells(line) for line in lines]) if is_table else lines
    return "".join(f"{line}\n" for line in made)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _aligned(rows: list[list[str]]) -> list[str]:
    """Rows of a Markdown table, the second of which is its rule."""
    table = [rows[0], *rows[2:]]
    lines = _columns(table)
    wide = shutil.get_terminal_size((_WIDTH, 0)).columns
    if max(map(len, lines)) <= wide or len(table) >= len(table[0]):
        return lines
    return _columns([list(column) for column in zip(*table, strict=True)])


def _columns(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def shown(figure: Interval | Mapping[str, Any] | None, *, scale: float = 100, form: str = ".1f") -> str:
    """A figure, in percent unless `scale` is another, with its interval if it has one; empty for None.

    figure: as an interval, or as JSON holds one.
    """
    if figure is None:
        return ""
    found = plain(figure)
    text = f"{found['estimate'] * scale:{form}}"
    return text if found["low"] is None else f"{text} [{found['low'] * scale:{form}}, {found['high'] * scale:{form}}]"
