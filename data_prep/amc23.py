r"""AMC 12 of 2023: 40 problems, numeric answers.

    python data_prep/amc23.py

Hub: math-ai/amc23 (split test: id, question, answer, url). Other copies name the question problem and hold answers as
27.0; they become 27.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.maths import question_and_answer, without_point_zero

DATASET = DataSet(
    name="amc23",
    hub="math-ai/amc23",
    splits={"test": "test"},
    columns=("id", "question", "problem", "answer"),
    convert=question_and_answer(
        "math-ai/amc23", question=("question", "problem"), answer=("answer",), id=("id",), check=without_point_zero
    ),
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
