r"""Minerva Math: 272 undergraduate problems of MIT OpenCourseWare (arXiv 2206.14858).

    python data_prep/minerva.py

Hub: math-ai/minervamath (split test: question, answer). Also read: the layout of the Qwen2.5-Math evaluation (problem,
solution with \boxed{...}, type, idx).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.maths import question_and_answer

DATASET = DataSet(
    name="minerva",
    hub="math-ai/minervamath",
    splits={"test": "test"},
    columns=("question", "problem", "answer", "solution", "idx"),
    convert=question_and_answer(
        "math-ai/minervamath",
        question=("question", "problem"),
        answer=("answer",),
        solution=("solution",),
        id=("idx",),
    ),
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
