r"""AIME 2024, papers I and II: 30 problems, answers 0 to 999.

    python data_prep/aime24.py

Hub: HuggingFaceH4/aime_2024 (one split, train: id, problem, solution, answer, url, year). Also read:
Maxwell-Jia/AIME_2024 (ID, Problem, Solution, Answer) and math-ai/aime24 (problem, solution with \boxed{...}).
Always written as test.parquet.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.maths import question_and_answer, whole_number

DATASET = DataSet(
    name="aime24",
    hub="HuggingFaceH4/aime_2024",
    splits={"test": "train"},
    columns=("id", "ID", "problem", "Problem", "answer", "Answer", "solution", "Solution"),
    convert=question_and_answer(
        "HuggingFaceH4/aime_2024",
        question=("problem", "Problem", "question"),
        answer=("answer", "Answer"),
        solution=("solution", "Solution"),
        id=("id", "ID"),
        check=whole_number,
    ),
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
