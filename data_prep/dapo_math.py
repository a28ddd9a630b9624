"""DAPO-Math-17k: competition problems with whole-number answers (arXiv 2503.14476).

    python data_prep/dapo_math.py --decontaminate ~/data/aime24/test.parquet ~/data/aime25/test.parquet

Hub: BytedTsinghua-SIA/DAPO-Math-17k; one split, train, in verl's own schema: prompt (one user message),
reward_model.ground_truth, extra_info.index (a UUID). Each problem is there about a hundred times, so de-duplication
leaves about 17,000 of 1.8 million rows. The published prompt asks for a last line "Answer: ..."; it is taken off, and
the answer is asked for in \\boxed{} as in the other sets. No real file of the set was read; the layout is from code
that loads it.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.records import BOXED, Example
from data_prep.common.rows import Row

PREFIX = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem."
)
SUFFIX = 'Remember to put your answer on its own line after "Answer:".'


def convert(row: Row, args: argparse.Namespace) -> Example:
    messages = row.get("prompt")[1]
    if not isinstance(messages, list) or len(messages) != 1 or not isinstance(messages[0], dict):
        raise row.fault("prompt", "no single message", "a list of one message with role and content")
    text = Row({"prompt[0].content": messages[0].get("content")}, row.where).text("prompt[0].content")
    question = text.strip().removeprefix(PREFIX).removesuffix(SUFFIX).strip()
    if not question:
        raise row.fault("prompt", "instructions without a problem", "a problem")
    return Example(
        data_source="BytedTsinghua-SIA/DAPO-Math-17k",
        prompt=f"{question}\n\n{BOXED}",
        ability="math",
        ground_truth=row.struct("reward_model").scalar("reward_model.ground_truth"),
        question=question,
        id=row.struct("extra_info").scalar_or_empty("extra_info.index"),
    )


DATASET = DataSet(
    name="dapo_math",
    hub="BytedTsinghua-SIA/DAPO-Math-17k",
    splits={"train": "train"},
    columns=("prompt", "reward_model", "extra_info"),
    convert=convert,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
