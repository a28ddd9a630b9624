"""TACO: 25k programming problems with tests (arXiv 2312.14852).

    python data_prep/taco.py --max_tests 20

Hub: BAAI/TACO, train/*.arrow and test/*.arrow (question, solutions, starter_code, input_output as JSON text,
difficulty, name, source, url, time_limit, memory_limit and others). Problems without tests are dropped.
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
        "taco",
        question=row.text("question"),
        field="input_output",
        found=input_output(row),
        starter=row.text_or_empty("starter_code"),
        max_tests=args.max_tests,
        solutions=listed_solutions(row, "solutions"),
        id=row.text_or_empty("url"),
        extra={"difficulty": row.text_or_empty("difficulty"), "source": row.text_or_empty("source")},
    )


DATASET = DataSet(
    name="taco",
    hub="BAAI/TACO",
    splits={"train": "train", "test": "test"},
    columns=("question", "input_output", "starter_code", "difficulty", "source", "url"),
    extra={"difficulty": pa.string(), "source": pa.string()},
    tried=True,
    solutions=("solutions",),
    convert=convert,
    options=max_tests_option,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
