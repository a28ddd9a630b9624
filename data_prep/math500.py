r"""MATH-500: the 500 problems of MATH's test split that PRM800K held out.

    python data_prep/math500.py

Hub: HuggingFaceH4/MATH-500, test.jsonl (problem, solution, answer, subject, level, unique_id).
"""

import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.maths import question_and_answer

DATASET = DataSet(
    name="math500",
    hub="HuggingFaceH4/MATH-500",
    splits={"test": "test"},
    columns=("problem", "answer", "solution", "subject", "level", "unique_id"),
    extra={"subject": pa.string(), "level": pa.string()},
    convert=question_and_answer(
        "HuggingFaceH4/MATH-500",
        question=("problem",),
        answer=("answer",),
        solution=("solution",),
        id=("unique_id",),
        keep=("subject", "level"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
