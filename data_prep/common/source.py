"""Where raw rows come from: published files, in a local copy or fetched from the hub, read row by row.

A hub name is fetched file by file rather than through `datasets.load_dataset`: APPS, TACO and LiveCodeBench are
published with loading scripts, which `datasets` no longer runs, and a local copy and the hub then read alike.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from data_prep.common.rows import PrepError, Row

# Best first: where a folder holds the same split in several formats, one of them is read.
FORMATS = (".parquet", ".arrow", ".jsonl", ".json")
# What `datasets` and the hub lay beside the data.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json"}
# CodeContests has rows of tens of MB.
BATCH_ROWS = 16


def fetch(hub: str, revision: str | None, config: str | None) -> Path:
    """The data files of a hub data set, in the hub's cache; of its folder `config` alone where there is one.

    Raises: PrepError when they cannot be had.
    """
    # Imported here: a local copy needs neither it nor the second that it takes.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    def download(folder: str) -> Path:
        patterns = [f"{folder}*{suffix}" for suffix in FORMATS]
        return Path(snapshot_download(hub, repo_type="dataset", revision=revision, allow_patterns=patterns))

    try:
        root = download(f"*{config}/" if config else "")
        return root if any(file.suffix in FORMATS for file in root.rglob("*")) else download("")
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PrepError(
            f"{hub}: could not be fetched from the hub ({reason}); give a local copy with --local_dataset_path"
        ) from error


def find_files(path: Path, split: str, *, only_split: bool, config: str | None) -> list[Path]:
    """The files of one split in a copy of a data set, in one format, sorted.

    path: a file or a folder. A file belongs to `split` when a part of its path says so, such as train-00000-of-00002,
    test5.jsonl or train/data.arrow; where the data set has only one split (`only_split`), files need not say.
    config: the hub's configuration, a folder that is used alone where there is one of that name.
    Raises: PrepError when the path does not exist; returns [] when it holds nothing of this split.
    """
    if not path.exists():
        raise PrepError(f"{path}: not found; expected a file or folder of the data set's published files")
    if path.is_file():
        if path.suffix not in FORMATS:
            raise PrepError(f"{path}: the ending is {path.suffix or 'missing'}; expected one of {', '.join(FORMATS)}")
        return [path] if only_split or _says(path.name, split) else []
    root = next((folder for folder in sorted(path.rglob(config)) if folder.is_dir()), path) if config else path
    # A folder may have such an ending, too: train.parquet with parts in it.
    found = [
        file
        for file in sorted(root.rglob("*"))
        if file.suffix in FORMATS and file.name not in NOT_DATA and file.is_file()
    ]
    said = [file for file in found if _says(str(file.relative_to(root)), split)]
    files = said or (found if only_split else [])
    best = min((FORMATS.index(file.suffix) for file in files), default=0)
    return [file for file in files if file.suffix == FORMATS[best]]


def read_rows(files: Sequence[Path], columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Every row of `files` in order. columns: those to read of parquet files, all where None; absent ones are no error.

    Raises: PrepError naming file and row when a file cannot be read.
    """
    for file in files:
        yield from _READERS[file.suffix](file, columns)


def count_rows(files: Sequence[Path]) -> int | None:
    """The number of rows where the files' own headers tell, else None: for the progress bar."""
    if any(file.suffix != ".parquet" for file in files):
        return None
    return sum(_opened(file, pq.ParquetFile).metadata.num_rows for file in files)


def _says(path: str, split: str) -> bool:
    return re.search(rf"(?:^|[/_.-]){split}\d*(?:[/_.-]|$)", path) is not None


def _opened(file: Path, opener: Callable[[Path], Any]) -> Any:
    try:
        return opener(file)
    except (pa.ArrowException, OSError) as error:
        raise PrepError(f"{file}: unreadable ({_first_line(error)}); expected a whole {file.suffix} file") from error


def _read_parquet(file: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    parquet = _opened(file, pq.ParquetFile)
    present = None if columns is None else [name for name in columns if name in parquet.schema_arrow.names]
    yield from _read_batches(file, lambda: parquet.iter_batches(batch_size=BATCH_ROWS, columns=present))


def _read_arrow(file: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    yield from _read_batches(file, lambda: pyarrow.ipc.open_stream(pa.memory_map(str(file))))


def _read_batches(file: Path, opener: Callable[[], Iterator[pa.RecordBatch]]) -> Iterator[Row]:
    number = 0
    batches = iter(_opened(file, lambda _: opener()))
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise PrepError(f"{file}:{number + 1}: unreadable ({_first_line(error)}); expected a whole file") from error
        if batch is None:
            return
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for values in batch.slice(start, BATCH_ROWS).to_pylist():
                number += 1
                yield Row(values, f"{file}:{number}")


def _read_json_lines(file: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(_parsed(line, f"{file}:{number}"), f"{file}:{number}")


def _read_json(file: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    """A list of rows, or JSON lines under the ending .json, as the hub has them too."""
    with open(file, "rb") as opened:
        start = opened.read(1)
        while start.isspace():
            start = opened.read(1)
    if start != b"[":
        yield from _read_json_lines(file, columns)
        return
    for number, values in enumerate(_parsed(file.read_bytes(), str(file)), start=1):
        yield Row(values, f"{file}:{number}")


def _parsed(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PrepError(f"{where}: not JSON ({_first_line(error)}); expected whole JSON in UTF-8") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_READERS = {".parquet": _read_parquet, ".arrow": _read_arrow, ".jsonl": _read_json_lines, ".json": _read_json}
