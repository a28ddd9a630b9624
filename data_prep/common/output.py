"""Files that appear whole or not at all."""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.common.records import Example
from data_prep.common.rows import PrepError

GROUP_ROWS = 1000
GROUP_BYTES = 64 * 2**20


class Output:
    """A set of files in one folder, put in place together when the `with` block ends well, else none of them.

    Each is written under a hidden name beside its place, flushed to the disk and moved over; a file that is
    replaced is named. A process that is killed leaves at most such a hidden file, never a part of a file under its own
    name.

    sources: files that are read, none of which may be replaced.
    """

    def __init__(self, folder: Path, sources: Iterable[Path] = ()):
        self.folder = folder
        self._sources = {file.resolve() for file in sources}
        self._waiting: dict[Path, Path] = {}
        self._made = not folder.exists()

    def __enter__(self) -> "Output":
        # Its own message would be "[Errno 17]" or "[Errno 20]".
        above = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not above.is_dir():
            raise PrepError(f"--local_save_dir {self.folder}: {above} is a file; expected a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def path(self, name: str) -> Path:
        """Where to write the file that becomes `name`. Raises: PrepError when it cannot, or would replace a source."""
        place = self.folder / name
        if place.is_dir():
            raise PrepError(f"--local_save_dir {self.folder}: {place} is a folder; expected a file or nothing there")
        if place.resolve() in self._sources:
            raise PrepError(
                f"--local_save_dir {self.folder}: {place} is read, and would be replaced; give another folder"
            )
        waiting = self.folder / f".{name}.{os.getpid()}.tmp"
        self._waiting[waiting] = place
        return waiting

    def json(self, name: str, value: Any) -> None:
        """Write a JSON file for people to read."""
        self.path(name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for waiting in self._waiting:
                waiting.unlink(missing_ok=True)
            if self._made and not any(self.folder.iterdir()):
                self.folder.rmdir()
            return
        for waiting in self._waiting:
            _flush(waiting)
        for waiting, place in self._waiting.items():
            if place.exists():
                print(f"replaced: {place}", file=sys.stderr)
            os.replace(waiting, place)
        _flush(self.folder)


class ParquetSink:
    """Writes examples as parquet, a row group at a time, and numbers them from 0."""

    def __init__(self, path: Path, schema: pa.Schema, split: str):
        self.first: dict[str, Any] | None = None
        self.count = 0
        self._schema = schema
        self._extra = set(schema.field("extra_info").type.names)
        self._split = split
        self._group: list[dict[str, Any]] = []
        self._group_bytes = 0
        self._writer = pq.ParquetWriter(path, schema)

    def add(self, example: Example) -> None:
        """Raises: KeyError when the example's fields of extra_info are not those of the schema."""
        row = example.row(self._split, self.count)
        if set(row["extra_info"]) != self._extra:  # Arrow would leave fields out, or fill them up, without a word.
            raise KeyError(f"extra_info has {sorted(row['extra_info'])}; the schema has {sorted(self._extra)}")
        self.first = self.first or row
        self.count += 1
        self._group.append(row)
        self._group_bytes += example.size
        if len(self._group) >= GROUP_ROWS or self._group_bytes >= GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        if self._group:
            self._write_group()
        self._writer.close()

    def _write_group(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._group, schema=self._schema))
        self._group, self._group_bytes = [], 0


@contextlib.contextmanager
def parquet_sink(path: Path, schema: pa.Schema, split: str) -> Iterator[ParquetSink]:
    """A sink that is closed, whatever happens."""
    sink = ParquetSink(path, schema, split)
    with contextlib.closing(sink):
        yield sink


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
