"""Tests from the examples in a LeetCode problem's statement."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from data_prep.common.rows import Dropped

_NAME = re.compile(r"\s*,?\s*([A-Za-z_]\w*)\s*=\s*")
_EXAMPLE = re.compile(r"\s*Input:(?P<input>.*?)\n\s*Output:(?P<output>[^\n]*)(?:\n|$)", re.DOTALL)
_SEVERAL = re.compile(
    r"any order|any (?:one )?of them|any valid|multiple (?:valid )?answers|multiple solutions|return any\b", re.I
)
_OWN_TYPES = re.compile(r"\b(?:TreeNode|ListNode|Node)\b")
_DECODER = json.JSONDecoder()


def example_tests(examples: Sequence[str], solution: str, statement: str) -> dict[str, Any]:
    """{"inputs", "outputs", "fn_name"} from texts such as 'Input: n = 4, a = [1,2]\nOutput: 4\nExplanation: ...'.

    solution: a Python reference, class Solution, for the method's name and the order of its arguments; it is not run.
    These are two or three tests, where LeetCode has hundreds.
    Raises: Dropped where the examples cannot decide: several right answers, trees and linked lists, changes in place,
    a class of several methods, values that are not JSON.
    """
    if _SEVERAL.search(statement):
        raise Dropped("several right answers")
    calls = [_call(example) for example in examples]
    if not calls:
        raise Dropped("no examples")
    method = _method(solution, set(calls[0][0]))
    arguments = method.args.args[1:]
    if any(set(given) != {argument.arg for argument in arguments} for given, _ in calls):
        raise Dropped("examples with other arguments than the method")
    return {
        "inputs": [[_typed(given[argument.arg], argument) for argument in arguments] for given, _ in calls],
        "outputs": [wanted for _, wanted in calls],
        "fn_name": method.name,
    }


def _typed(value: Any, argument: ast.arg) -> Any:
    """Examples write 6 for 6.0."""
    is_float = argument.annotation is not None and ast.unparse(argument.annotation) == "float"
    return float(value) if is_float and isinstance(value, int) else value


def _call(example: str) -> tuple[dict[str, Any], Any]:
    match = _EXAMPLE.match(example)
    if match is None:
        raise Dropped("examples in another form")
    given, text = {}, match["input"].strip()
    try:
        while text:
            name = _NAME.match(text)
            if name is None:
                raise ValueError(text)
            given[name[1]], end = _DECODER.raw_decode(text, name.end())
            text = text[end:].strip()
        wanted, end = _DECODER.raw_decode(match["output"].strip())
    except ValueError as error:
        raise Dropped("examples in another form") from error
    if match["output"].strip()[end:]:
        raise Dropped("examples in another form")
    return given, wanted


def _method(solution: str, names: set[str]) -> ast.FunctionDef:
    """The method of class Solution with arguments of these names."""
    try:
        classes = [node for node in ast.parse(solution).body if isinstance(node, ast.ClassDef)]
    except (SyntaxError, ValueError) as error:
        raise Dropped("reference that does not parse") from error
    methods = [node for cls in classes if cls.name == "Solution" for node in cls.body]
    found = [
        node
        for node in methods
        if isinstance(node, ast.FunctionDef) and {argument.arg for argument in node.args.args[1:]} == names
    ]
    if len(found) != 1:
        raise Dropped("no single method with the arguments of the examples")
    signature = " ".join(ast.unparse(part) for part in (found[0].args, found[0].returns) if part is not None)
    if _OWN_TYPES.search(signature):
        raise Dropped("trees or linked lists")
    if isinstance(found[0].returns, ast.Constant) and found[0].returns.value is None:
        raise Dropped("changes its argument in place")
    return found[0]
