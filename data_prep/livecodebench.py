"""LiveCodeBench, code generation: contest problems by date (arXiv 2403.07974).

    python data_prep/livecodebench.py --start_date 2024-08-01 --end_date 2025-05-01

Hub: livecodebench/code_generation_lite, test.jsonl and test2.jsonl to test6.jsonl; all six are release_v6, and the
last one alone is what v6 adds. Fields: question_title, question_content, platform, question_id, contest_id,
contest_date, starter_code, difficulty, public_test_cases (JSON text), private_test_cases (JSON text, or that text
pickled, packed with zlib and written in base64), metadata (JSON text with func_name). A test has input, output and
testtype. No real file of the set was read; the layout is from the authors' own code.
"""

import argparse
import base64
import binascii
import datetime
import io
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.code import max_tests_option, stdin_or_function
from data_prep.common.convert import DataSet, main
from data_prep.common.records import Example
from data_prep.common.rows import Dropped, Row

CASES = "public_test_cases and private_test_cases"
MAX_UNPACKED = 2**30  # bytes of one problem's private tests; far above any in the set


class _PlainUnpickler(pickle.Unpickler):
    """A pickle of text needs no names; one that asks for any could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def unpacked(packed: str) -> str:
    """The text in base64 of zlib of a pickle. Raises: ValueError when it is anything else."""
    stream = zlib.decompressobj()
    try:
        pickled = stream.decompress(base64.b64decode(packed, validate=True), MAX_UNPACKED)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from error
    if stream.unconsumed_tail or not stream.eof:
        raise ValueError(f"cut off, or more than {MAX_UNPACKED:,} bytes unpacked")
    try:
        text = _PlainUnpickler(io.BytesIO(pickled)).load()
    except Exception as error:  # Broken pickles raise nearly anything.
        raise ValueError(f"broken pickle: {error!r}") from error
    if not isinstance(text, str):
        raise ValueError(f"a pickled {type(text).__name__}")
    return text


def convert(row: Row, args: argparse.Namespace) -> Example:
    date = row.text("contest_date")
    try:
        day = datetime.datetime.fromisoformat(date).date()
    except ValueError as error:
        raise row.fault("contest_date", repr(date), "a date as 2024-08-01T00:00:00") from error
    if (args.start_date and day < args.start_date) or (args.end_date and day > args.end_date):
        raise Dropped("outside --start_date and --end_date")
    cases = [_case(row, case) for case in _cases(row, "public_test_cases") + _cases(row, "private_test_cases")]
    kinds = {case["testtype"] for case in cases}
    if len(kinds) > 1 or not kinds <= {"stdin", "functional"}:
        raise row.fault(CASES, f"testtype {sorted(kinds)}", "stdin or functional")
    found = {"inputs": [case["input"] for case in cases], "outputs": [case["output"] for case in cases]}
    if kinds == {"functional"}:
        metadata = row.parsed("metadata")
        found["fn_name"] = metadata.get("func_name") if isinstance(metadata, dict) else None
        if not found["fn_name"]:
            raise row.fault("metadata", "no func_name", "the name of the tested function")
    return stdin_or_function(
        row,
        "livecodebench/code_generation_lite",
        question=row.text("question_content"),
        field=CASES,
        found=found,
        starter=row.text_or_empty("starter_code"),
        max_tests=args.max_tests,
        id=row.text("question_id"),
        extra={
            "contest_date": day.isoformat(),
            "platform": row.text_or_empty("platform"),
            "difficulty": row.text_or_empty("difficulty"),
        },
    )


def _cases(row: Row, field: str) -> list[Any]:
    text = row.text(field)
    if not text.lstrip().startswith("["):
        try:
            text = unpacked(text)
        except ValueError as error:
            raise row.fault(field, str(error), "JSON, or base64 of zlib of a pickled JSON text") from error
    cases = Row({field: text}, row.where).parsed(field)
    if not isinstance(cases, list):
        raise row.fault(field, type(cases).__name__, "a list of tests")
    return cases


def _case(row: Row, case: Any) -> dict[str, str]:
    if not isinstance(case, dict) or not all(isinstance(case.get(k), str) for k in ("input", "output", "testtype")):
        raise row.fault(CASES, repr(case)[:60], "input, output, testtype as text")
    return case


def options(parser: argparse.ArgumentParser) -> None:
    max_tests_option(parser)
    for name, words in (("--start_date", "first"), ("--end_date", "last")):
        parser.add_argument(name, type=datetime.date.fromisoformat, help=f"{words} contest date to keep, YYYY-MM-DD")


DATASET = DataSet(
    name="livecodebench",
    hub="livecodebench/code_generation_lite",
    splits={"test": "test"},
    columns=(
        *("question_content", "platform", "question_id", "contest_date", "starter_code", "difficulty"),
        *("public_test_cases", "private_test_cases", "metadata"),
    ),
    extra={"contest_date": pa.string(), "platform": pa.string(), "difficulty": pa.string()},
    tried=True,
    convert=convert,
    options=options,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
