"""APPS: programs on standard input and functions, with tests (arXiv 2105.09938).

    python data_prep/apps.py --max_tests 20

Hub: codeparrot/apps, train.jsonl and test.jsonl (problem_id, question, solutions, input_output as JSON text with
inputs, outputs and perhaps fn_name, difficulty, url, starter_code). Problems without tests are dropped.
No real file of the set was read; the layout is from the data card.
"""

import argparse
import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.code import input_output, listed_solutions, max_tests_option, stdin_or_function
from data_prep.common.convert import DataSet, main
from data_prep.common.records import Example
from data_prep.common.rows import Row


def convert(row: Row, args: argparse.Namespace) -> Example:
    return stdin_or_function(
        row,
        "apps",
        question=row.text("question"),
        field="input_output",
        found=input_output(row),
        starter=row.text_or_empty("starter_code"),
        max_tests=args.max_tests,
        solutions=listed_solutions(row, "solutions"),
        id=row.scalar("problem_id", "id"),
        extra={"difficulty": row.text_or_empty("difficulty")},
    )


DATASET = DataSet(
    name="apps",
    hub="codeparrot/apps",
    splits={"train": "train", "test": "test"},
    columns=("problem_id", "id", "question", "input_output", "starter_code", "difficulty"),
    extra={"difficulty": pa.string()},
    tried=True,
    solutions=("solutions",),
    convert=convert,
    options=max_tests_option,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
