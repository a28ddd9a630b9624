"""Open-Reasoner-Zero's math collection, 57k, 72k or hard 13k.

    python data_prep/orz_math.py --local_dataset_path orz_math_57k_collected.json

Published at github.com/Open-Reasoner-Zero/Open-Reasoner-Zero, data/orz_math_*.json, as a list of conversations:
[{"from": "human", "value": question}, {"from": "assistant", "ground_truth": {"value": answer}}]. The hub's
Open-Reasoner-Zero/orz_math_57k_collection has the two turns as fields "0" and "1"; that layout was not seen, only read
about.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.records import BOXED, Example
from data_prep.common.rows import PrepError, Row


def convert(row: Row, args: argparse.Namespace) -> Example:
    turns = row.values
    if isinstance(turns, dict):
        turns = [turns.get("0"), turns.get("1")]
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns[:2]):
        raise PrepError(f"{row.where}: no conversation; expected a list of two turns, human and assistant")
    human, assistant = Row({"[0].value": turns[0].get("value")}, row.where), Row(turns[1], row.where)
    question = human.text("[0].value").strip()
    return Example(
        data_source="Open-Reasoner-Zero/orz_math",
        prompt=f"{question}\n\n{BOXED}",
        ability="math",
        ground_truth=assistant.struct("ground_truth").scalar("ground_truth.value"),
        question=question,
    )


DATASET = DataSet(
    name="orz_math",
    hub="Open-Reasoner-Zero/orz_math_57k_collection",
    splits={"train": "train"},
    columns=("0", "1"),
    convert=convert,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
