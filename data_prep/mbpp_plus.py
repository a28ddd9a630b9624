"""MBPP+: 378 short functions, with EvalPlus's tests (arXiv 2305.01210).

    python data_prep/mbpp_plus.py

Hub: evalplus/mbppplus, split test (task_id, code, prompt, source_file, test_imports, test_list, test). `test` compares
in a loop at the top level. As in MBPP's own protocol the prompt shows the asserts of test_list, which give the
function's name; the function tested is the one that the first of them calls and that `code`, the reference, defines.
"""

import argparse
import ast
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.code import max_tests_option, request
from data_prep.common.convert import DataSet, main
from data_prep.common.python_tests import evalplus_tests
from data_prep.common.records import Example
from data_prep.common.rows import Row


def entry_point(row: Row, shown: list[str]) -> str:
    """The function of the reference that the asserts shown call. Raises: PrepError when there is none."""
    try:
        defined = {node.name for node in ast.parse(row.text("code")).body if isinstance(node, ast.FunctionDef)}
        calls = [node.func for text in shown for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except SyntaxError as error:
        raise row.fault("code and test_list", f"no Python source ({error})", "a reference and asserts") from error
    for name in (function.id for function in calls if isinstance(function, ast.Name)):
        if name in defined:
            return name
    raise row.fault("code and test_list", "asserts that call none of its functions", "asserts of one of its functions")


def convert(row: Row, args: argparse.Namespace) -> Example:
    shown = row.scalars("test_list")
    name = entry_point(row, shown)
    question = f"{row.text('prompt').strip()}\n\nYour function has to pass these tests:\n\n" + "\n".join(shown)
    return Example(
        data_source="evalplus/mbppplus",
        prompt=request(question, fn_name=name),
        ability="code",
        ground_truth=json.dumps(evalplus_tests(row, "test", name, args.max_tests)),
        question=question,
        id=row.scalar("task_id"),
        solutions=[row.text("code")],
    )


DATASET = DataSet(
    name="mbpp_plus",
    hub="evalplus/mbppplus",
    splits={"test": "test"},
    columns=("task_id", "code", "prompt", "test_list", "test"),
    tried=True,
    convert=convert,
    options=max_tests_option,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
