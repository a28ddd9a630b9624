"""Fixtures of the converters' tests: the layouts, files in them, and runs of a converter."""

import importlib
import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@dataclass(frozen=True, kw_only=True)
class Case:
    """A converter on a few rows.

    split: of the output; file: the published file without its ending; rows: what it holds; prompt: of the first row,
    whole; truths: ground truths of all rows kept, text or what the JSON text holds; extra: a part of the first row's
    extra_info; options: of the command line; dropped: counts by reason; formats: in which the set is read;
    answers: a response to the first row that is right, and one that is wrong.
    """

    split: str
    file: str
    rows: list
    prompt: str
    truths: list
    extra: dict
    answers: tuple[str, str]
    options: tuple[str, ...] = ()
    dropped: dict = field(default_factory=dict)
    formats: tuple[str, ...] = (".json", ".jsonl", ".parquet", ".arrow")


CASES = {
    name: Case(**values)
    for part in ("training", "evaluation")
    for name, values in runpy.run_path(str(Path(__file__).with_name(f"layouts_{part}.py")))["CASES"].items()
}


def write_rows(path: Path, rows: list) -> Path:
    """A published file: the format is the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    return path


@pytest.fixture(params=CASES)
def name(request) -> str:
    """A data set, by the name of its converter."""
    return request.param


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.fixture
def cases() -> dict[str, Case]:
    return CASES


@pytest.fixture
def write():
    return write_rows


@pytest.fixture
def run(tmp_path):
    """run("gsm8k", source, *options) converts into tmp_path / "out"; returns the exit status."""

    def convert(name: str, source: Path, *options: str) -> int:
        module = importlib.import_module(f"data_prep.{name}")
        arguments = ["--local_dataset_path", str(source), "--local_save_dir", str(tmp_path / "out"), *options]
        return importlib.import_module("data_prep.common.convert").main(module.DATASET, module.__doc__, arguments)

    return convert


@pytest.fixture
def converted(tmp_path, run):
    """converted(name, case) writes the case's rows, converts them and returns the path of the parquet file."""

    def convert(name: str, case: Case) -> Path:
        source = write_rows(tmp_path / "raw" / (case.file + case.formats[0]), case.rows)
        assert run(name, tmp_path / "raw" if source.parent != tmp_path / "raw" else source, *case.options) == 0
        return tmp_path / "out" / f"{case.split}.parquet"

    return convert
