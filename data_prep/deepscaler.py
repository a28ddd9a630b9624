r"""DeepScaleR-Preview: 40k competition problems, and any math set with problem and answer.

    python data_prep/deepscaler.py --decontaminate ~/data/aime24/test.parquet

Hub: agentica-org/DeepScaleR-Preview-Dataset, deepscaler.json: a list of objects with problem, answer, solution.
An answer that is itself in \boxed{...} is taken out of it; a row without an answer is one whose solution must hold it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.maths import question_and_answer

DATASET = DataSet(
    name="deepscaler",
    hub="agentica-org/DeepScaleR-Preview-Dataset",
    splits={"train": "train"},
    columns=("problem", "question", "answer", "solution"),
    convert=question_and_answer(
        "agentica-org/DeepScaleR-Preview-Dataset",
        question=("problem", "question"),
        answer=("answer",),
        solution=("solution",),
    ),
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
