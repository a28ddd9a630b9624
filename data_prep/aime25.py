r"""AIME 2025, papers I and II: 30 problems, answers 0 to 999.

    python data_prep/aime25.py

Hub: math-ai/aime25 (split test: problem, answer, id). Also read: opencompass/AIME2025 (question, answer; one JSON lines
file a paper, give the folder that holds both).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.maths import question_and_answer, whole_number

DATASET = DataSet(
    name="aime25",
    hub="math-ai/aime25",
    splits={"test": "test"},
    columns=("id", "problem", "question", "answer"),
    convert=question_and_answer(
        "math-ai/aime25",
        question=("problem", "question"),
        answer=("answer",),
        id=("id",),
        check=whole_number,
    ),
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
