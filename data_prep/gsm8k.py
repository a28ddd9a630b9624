r"""GSM8K: grade-school word problems, answers after ####.

    python data_prep/gsm8k.py --local_save_dir ~/data/gsm8k

Hub: openai/gsm8k, configuration main; splits train and test; question, answer ("... #### 42"). Prompt and ground truth
are those of verl's own examples/data_preprocess/gsm8k.py.
"""

import argparse
import re
import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.records import Example
from data_prep.common.rows import Row

INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'
_FINAL = re.compile(r"####\s*(-?[0-9.,]+)\s*$")


def convert(row: Row, args: argparse.Namespace) -> Example:
    question, answer = row.text("question"), row.text("answer")
    final = _FINAL.search(answer)
    if final is None:
        raise row.fault("answer", f"ends in {answer[-30:]!r}", "a last line '#### number'")
    return Example(
        data_source="openai/gsm8k",
        prompt=f"{question} {INSTRUCTION}",
        ability="math",
        ground_truth=final.group(1).replace(",", ""),
        question=question,
        extra={"answer": answer},
    )


DATASET = DataSet(
    name="gsm8k",
    hub="openai/gsm8k",
    config="main",
    splits={"train": "train", "test": "test"},
    columns=("question", "answer"),
    extra={"answer": pa.string()},
    convert=convert,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
