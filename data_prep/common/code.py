"""What the converters of code sets share: the request for a program, and tests as the code verifier takes them.

verl's form of tests is {"inputs": [...], "outputs": [...]}: texts for a program on standard input, or, with "fn_name",
argument lists and results of a function.
"""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.common.options import positive
from data_prep.common.records import Example
from data_prep.common.rows import NOT_FINITE, Dropped, Row

# A null, plain, as JSON, and wrapped in a list as APPS and TACO have it.
_NOTHING = (None, [None], "null", "[null]")
# Of a set's own solutions for a problem, so many are tried: some sets have hundreds, and wrong ones among them.
MAX_SOLUTIONS = 3
_FENCE = "Put the complete program in one fenced ```python block."
STDIN = f"Write a Python program that reads standard input and prints the answer to standard output. {_FENCE}"


_DEFINES = re.compile(r"^\s*(?:def|class)\s", re.MULTILINE)


def max_tests_option(parser: argparse.ArgumentParser) -> None:
    """--max_tests: tests cost time at every check, and some problems have hundreds."""
    parser.add_argument("--max_tests", type=positive, help="keep the first MAX_TESTS tests (default: all)")


def request(question: str, *, starter: str = "", fn_name: str = "") -> str:
    """The prompt: a stdin/stdout program, or the function `fn_name`, or the starter code completed."""
    if starter.strip():
        task = f"Complete this code, keeping its names and signature:\n\n```python\n{starter.rstrip()}\n```\n\n{_FENCE}"
    elif fn_name:
        task = f"Write a Python function named `{fn_name}` that solves this. {_FENCE}"
    else:
        task = STDIN
    return f"{question.strip()}\n\n{task}".lstrip()


def tests(row: Row, field: str, found: Mapping[str, Any], max_tests: int | None) -> dict[str, Any]:
    """verl's form of tests that have it nearly: checked, tests of a program as texts, cut to `max_tests`.

    Raises: PrepError when inputs and outputs are not lists of equal length; Dropped when there are none, or when a
    program that prints nothing or a function that returns nothing would pass.
    """
    inputs, outputs, fn_name = found.get("inputs"), found.get("outputs"), found.get("fn_name")
    inputs, outputs = two_lists(row, field, inputs=inputs, outputs=outputs)
    if fn_name and not (isinstance(fn_name, str) and fn_name.isidentifier()):
        raise row.fault(field, f"fn_name {fn_name!r}", "the name of a function, or none")
    if not inputs:
        raise Dropped("no tests")
    inputs, outputs = inputs[:max_tests], outputs[:max_tests]
    if fn_name:
        if all(output in _NOTHING for output in outputs):
            raise Dropped("all expected results are null")
        return {"inputs": inputs, "outputs": outputs, "fn_name": fn_name}
    found = {
        "inputs": [_lines(row, field, item) for item in inputs],
        "outputs": [_lines(row, field, item) for item in outputs],
    }
    if not any(text.strip() for text in found["outputs"]):
        raise Dropped("all expected outputs are empty")
    return found


def two_lists(row: Row, field: str, **pair: Any) -> tuple[list[Any], list[Any]]:
    """The values of the two keywords. Raises: PrepError about `field` where they are not lists of equal length."""
    first, second = pair.values()
    if not isinstance(first, list) or not isinstance(second, list) or len(first) != len(second):
        raise row.fault(field, f"{' and '.join(pair)} that do not match", "two lists of equal length")
    return first, second


def listed_solutions(row: Row, field: str) -> Sequence[str]:
    """The first solutions of APPS and TACO: a list of programs, mostly as JSON text; none where the field is empty."""
    value = row.get(field)[1]
    if isinstance(value, str):
        value = row.parsed(field) if value.strip() else None
    if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise row.fault(field, type(value).__name__, "a list of programs")
    return (value or [])[:MAX_SOLUTIONS]


def stdin_or_function(
    row: Row,
    data_source: str,
    *,
    question: str,
    field: str,
    found: Mapping[str, Any],
    starter: str,
    max_tests: int | None,
    **kept: Any,
) -> Example:
    """An example whose tests decide which kind of program is asked for.

    found: the tests, which errors say are in `field`; kept: id and extra of the example.
    Raises: as `tests`; Dropped when a function is to be completed and its name is not told: such tests, of
    GeeksforGeeks in TACO for one, show its arguments to a reader (`n = 5`), and no program reads them.
    """
    ground_truth = tests(row, field, found, max_tests)
    fn_name = ground_truth.get("fn_name", "")
    if not fn_name and _DEFINES.search(starter):
        raise Dropped("starter code of a function, and tests that do not name it")
    return Example(
        data_source=data_source,
        prompt=request(question, starter=starter if fn_name else "", fn_name=fn_name),
        ability="code",
        ground_truth=json.dumps(ground_truth),
        question=question.strip(),
        **kept,
    )


def input_output(row: Row) -> Mapping[str, Any]:
    """The field input_output of APPS and TACO: an object as JSON text. Raises: Dropped when it is empty."""
    if not row.text_or_empty("input_output").strip():
        raise Dropped("no tests")
    found = row.parsed("input_output")
    if not isinstance(found, Mapping):
        raise row.fault("input_output", type(found).__name__, 'an object {"inputs": [...], "outputs": [...]}')
    return found


def _lines(row: Row, field: str, item: Any) -> str:
    """Some problems give the text as a list of its lines, or a line that is a number as a number."""
    if isinstance(item, list):
        item = "\n".join(_line(row, field, line) for line in item)
    return _line(row, field, item)


def _line(row: Row, field: str, item: Any) -> str:
    if isinstance(item, int | float) and not isinstance(item, bool):
        if isinstance(item, float) and not math.isfinite(item):
            raise Dropped(NOT_FINITE)
        item = str(item)
    if not isinstance(item, str):
        raise row.fault(field, f"a test of a program with {type(item).__name__}", "text or a list of lines")
    return item
