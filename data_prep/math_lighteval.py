r"""MATH (Hendrycks et al., arXiv 2103.03874) in the lighteval layout.

    python data_prep/math_lighteval.py --decontaminate ~/data/math500/test.parquet

Hub: DigitalLearningGmbH/MATH-lighteval, the successor of lighteval/MATH; splits train and test; problem, level, type,
solution with the answer in \boxed{...}. MATH-500 is a part of the test split.
"""

import argparse
import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.maths import boxed_answer
from data_prep.common.records import BOXED, Example
from data_prep.common.rows import Row


def convert(row: Row, args: argparse.Namespace) -> Example:
    problem = row.text("problem").strip()
    return Example(
        data_source="lighteval/MATH",
        prompt=f"{problem}\n\n{BOXED}",
        ability="math",
        ground_truth=boxed_answer(row, "solution"),
        question=problem,
        extra={"level": row.text_or_empty("level"), "type": row.text_or_empty("type")},
    )


DATASET = DataSet(
    name="math",
    hub="DigitalLearningGmbH/MATH-lighteval",
    config="data",
    splits={"train": "train", "test": "test"},
    columns=("problem", "level", "type", "solution"),
    extra={"level": pa.string(), "type": pa.string()},
    convert=convert,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
