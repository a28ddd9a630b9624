"""CodeContests: AlphaCode's contest problems (Science 378, 2022), tests on standard input and output.

    python data_prep/code_contests.py --max_tests 20

Hub: deepmind/code_contests, data/{train,valid,test}-*.parquet (name, description, public_tests, private_tests and
generated_tests as structs of the lists input and output, source and difficulty as numbers, cf_rating, time_limit,
input_file, output_file, solutions and others). The files are of many GB, and are streamed. Tests are taken in the order
public, private, generated. Problems that read or write named files, or whose text has a picture in it, are dropped.
No real file of the set was read; the layout is from the data card.
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.code import MAX_SOLUTIONS, max_tests_option, request, tests, two_lists
from data_prep.common.convert import DataSet, main
from data_prep.common.records import Example
from data_prep.common.rows import Dropped, Row

KINDS = ("public_tests", "private_tests", "generated_tests")
PYTHON = (3, "PYTHON3")


def python_solutions(row: Row) -> list[str]:
    """The first solutions in Python 3; none where the field was not read."""
    if row.get("solutions")[1] is None:
        return []
    found = row.struct("solutions")
    languages, programs = found.get("solutions.language")[1] or [], found.get("solutions.solution")[1] or []
    pairs = zip(*two_lists(row, "solutions", language=languages, solution=programs), strict=True)
    return [program for language, program in pairs if language in PYTHON][:MAX_SOLUTIONS]


def convert(row: Row, args: argparse.Namespace) -> Example:
    description = row.text("description").strip()
    if row.text_or_empty("input_file") or row.text_or_empty("output_file"):
        raise Dropped("reads or writes a named file")
    if "<image>" in description:
        raise Dropped("needs an image")
    inputs, outputs = [], []
    for kind in KINDS:
        if row.get(kind)[1] is not None:
            found = row.struct(kind)
            given, wanted = found.get(f"{kind}.input")[1] or [], found.get(f"{kind}.output")[1] or []
            given, wanted = two_lists(row, kind, input=given, output=wanted)
            inputs += given
            outputs += wanted
    return Example(
        data_source="codecontests",
        prompt=request(description),
        ability="code",
        ground_truth=json.dumps(tests(row, "tests", {"inputs": inputs, "outputs": outputs}, args.max_tests)),
        question=description,
        id=row.text("name"),
        extra={"difficulty": row.scalar_or_empty("difficulty"), "cf_rating": row.scalar_or_empty("cf_rating")},
        solutions=python_solutions(row),
    )


DATASET = DataSet(
    name="code_contests",
    hub="deepmind/code_contests",
    config="data",
    splits={"train": "train", "valid": "valid", "test": "test"},
    columns=("name", "description", *KINDS, "difficulty", "cf_rating", "input_file", "output_file"),
    extra={"difficulty": pa.string(), "cf_rating": pa.string()},
    tried=True,
    solutions=("solutions",),
    convert=convert,
    options=max_tests_option,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
