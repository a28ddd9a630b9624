"""DebugBench: LeetCode solutions with a planted bug, to be corrected (arXiv 2401.04621).

    python data_prep/debugbench.py
    python data_prep/debugbench.py --local_dataset_path DebugBench/benchmark

Hub: Rtian/DebugBench, eval.json, 4,253 rows: slug, category, subtype, language (cpp, java, python3), level,
release_time, question, examples (list of text), constraints, solution, solution_explanation, buggy_code,
bug_explanation. Also read: the 51 shards of github.com/thunlp/DebugBench, folder benchmark, which call question and
solution description and oracle_code, have no category, and tell language and subtype by their names, as
"python3_faulty indexing.json".

Only Python is kept: the code verifier runs Python. The paper's verdict is LeetCode's own judge, which cannot be asked
here, so the tests are the two or three examples of each statement, and problems that those cannot decide are dropped
and counted: scores are not comparable with published ones. The reference solution is not in the output.
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.leetcode import example_tests
from data_prep.common.records import Example
from data_prep.common.rows import NULL, Dropped, Row

LANGUAGES = ("cpp", "java", "python3")
TASK = (
    "Here is a program for this problem that has a bug:\n\n```python\n{code}\n```\n\n"
    "Find the bug, then put the complete corrected program in one fenced ```python block, keeping its names."
)


def convert(row: Row, args: argparse.Namespace) -> Example:
    language, subtype = row.text_or_empty("language"), row.text_or_empty("subtype")
    if not language:
        language, _, subtype = row.file.stem.partition("_")
        if language not in LANGUAGES:
            raise row.fault("language", NULL, "it, or a shard named after language and bug")
    if language != "python3":
        raise Dropped("not Python")
    statement, examples = row.text("question", "description").strip(), row.scalars("examples")
    buggy, solution = row.text("buggy_code").strip("\n"), row.text("solution", "oracle_code")
    constraints = row.text_or_empty("constraints").strip()
    shown = [f"Example {number}:\n{example}" for number, example in enumerate(examples, start=1)]
    shown += [f"Constraints:\n{constraints}"] if constraints else []
    question = "\n\n".join([statement, *shown])
    return Example(
        data_source="Rtian/DebugBench",
        prompt=f"{question}\n\n{TASK.format(code=buggy)}",
        ability="code",
        ground_truth=json.dumps(example_tests(examples, solution, statement)),
        question=question,
        id=row.text("slug"),
        extra={
            "response": buggy,
            "response_correct": False,
            "category": row.text_or_empty("category", "Category"),
            "subtype": subtype,
            "level": row.text_or_empty("level"),
        },
        solutions=[solution],
    )


DATASET = DataSet(
    name="debugbench",
    hub="Rtian/DebugBench",
    splits={"test": "test"},
    columns=(
        *("slug", "category", "Category", "subtype", "language", "level", "question", "description", "examples"),
        *("constraints", "solution", "oracle_code", "buggy_code"),
    ),
    extra={
        "response": pa.string(),
        "response_correct": pa.bool_(),
        "category": pa.string(),
        "subtype": pa.string(),
        "level": pa.string(),
    },
    tried=True,
    convert=convert,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
