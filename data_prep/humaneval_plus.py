"""HumanEval+: 164 functions to complete, with EvalPlus's tests (arXiv 2305.01210).

    python data_prep/humaneval_plus.py

Hub: evalplus/humanevalplus, split test (task_id, prompt, canonical_solution, entry_point, test). `test` defines
check(candidate) with the lists inputs and results; how they become tests is said in data_prep/common/python_tests.py.
The published test of HumanEval/32 fails whatever the solution does; it is put right as in EvalPlus's own evaluator.
Also read: HumanEval itself (HumanEval.jsonl of github.com/openai/human-eval), whose tests get the functions of the
prompt that they call.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.code import max_tests_option, request
from data_prep.common.convert import DataSet, main
from data_prep.common.python_tests import evalplus_tests, helpers
from data_prep.common.records import Example
from data_prep.common.rows import Row

# HumanEval/32, find_zero: its result, a number, is unpacked, and the arguments of the polynomial are exchanged.
BROKEN = "assert _poly(*candidate(*inp), inp) <= 0.0001"
FIXED = "assert abs(_poly(*inp, candidate(*inp))) <= 0.0001"


def convert(row: Row, args: argparse.Namespace) -> Example:
    prompt, entry_point = row.text("prompt"), row.text("entry_point")
    test = Row({"test": row.text("test").replace(BROKEN, FIXED)}, row.where)
    tests = evalplus_tests(test, "test", entry_point, args.max_tests)
    if "check" in tests and (setup := helpers(prompt, tests["check"], entry_point)):
        tests["setup"] = setup
    return Example(
        data_source="evalplus/humanevalplus",
        prompt=request("", starter=prompt),
        ability="code",
        ground_truth=json.dumps(tests),
        question=prompt,
        id=row.text("task_id"),
        solutions=[prompt + solution] if (solution := row.text_or_empty("canonical_solution")) else [],
    )


DATASET = DataSet(
    name="humaneval_plus",
    hub="evalplus/humanevalplus",
    splits={"test": "test"},
    columns=("task_id", "prompt", "entry_point", "test"),
    tried=True,
    solutions=("canonical_solution",),
    convert=convert,
    options=max_tests_option,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
