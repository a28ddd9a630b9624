"""The tests of a problem, read from verl's ground truth."""

import ast
import builtins
import json
import symtable
from dataclasses import dataclass
from typing import Any

_LAYOUTS = (
    "{inputs, outputs}, {inputs, outputs, fn_name}, {asserts, entry_point?, setup?}, "
    "{assert_case, entry_point?, setup?} or {check, entry_point, setup?}"
)
_NO_LITERAL = object()


@dataclass(frozen=True)
class ProgramTest:
    """A program reads `stdin` and is to write `expected`."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class CallTest:
    """A call of function `name` is to return a value.

    readings: what is expected; where a data set's layout can be read in two ways, one for each. A program has to agree
    with the same reading in all tests. exact: Python's own ==, as in an assert; otherwise `compare.same_value`.
    """

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    readings: tuple[Any, ...]
    exact: bool


@dataclass(frozen=True)
class CheckTest:
    """Test code that calls the solution's function `name` and raises where it is wrong."""

    source: str
    name: str


Test = ProgramTest | CallTest | CheckTest


def read_tests(ground_truth: str | dict[str, Any], max_tests: int | None = None) -> list[Test]:
    """The tests in a ground truth: a JSON object, or its text; the first max_tests of them.

    Raises:
        ValueError: it is none of the layouts that docs/code-verifier.md lists, with what is wrong and where, or a
            program that does nothing would pass.
    """
    tests = _read_tests(ground_truth)[:max_tests]
    if all(isinstance(test, ProgramTest) and not test.expected.strip() for test in tests):
        raise ValueError("outputs are all empty: a program that does nothing would pass")
    if all(isinstance(test, CallTest) and None in test.readings for test in tests):
        raise ValueError("outputs are all null: a function that does nothing would pass")
    return tests


def _read_tests(ground_truth: str | dict[str, Any]) -> list[Test]:
    data = _json(ground_truth, "ground_truth") if isinstance(ground_truth, str) else ground_truth
    if not isinstance(data, dict):
        raise ValueError(f"ground_truth is a {type(data).__name__}: expected an object, {_LAYOUTS}")
    # A column of a parquet file holds every key, with None where a row has none; verl fills two beside assert_case.
    given = {key: value for key, value in data.items() if value is not None}
    if "assert_case" in given:
        given["asserts"] = given.pop("assert_case")
        given.pop("inputs", None)
        given.pop("outputs", None)
        given.pop("fn_name", None)
    keys = given.keys()
    if {"inputs", "outputs"} <= keys <= {"inputs", "outputs", "fn_name"}:
        inputs, outputs = _list(given, "inputs"), _list(given, "outputs")
        if len(inputs) != len(outputs):
            raise ValueError(f"ground_truth has {len(inputs)} inputs and {len(outputs)} outputs: expected one each")
        name = given.get("fn_name")
        return _call_tests(name, inputs, outputs) if name else _program_tests(inputs, outputs)
    if {"asserts"} <= keys <= {"asserts", "entry_point", "setup"}:
        sources = [_source(item, f"asserts[{i}]") for i, item in enumerate(_list(given, "asserts"))]
        return _assert_tests(sources, _source(_text(given, "setup"), "setup"), _text(given, "entry_point"))
    if {"check", "entry_point"} <= keys <= {"check", "entry_point", "setup"}:
        # LeetCode's methods are named Solution().f, and a call finds them by f.
        entry_point = _text(given, "entry_point").removeprefix("Solution().")
        if not entry_point.isidentifier():
            raise ValueError(f"entry_point = {entry_point!r}: expected a name")
        source = f"{_text(given, 'setup')}\n{_text(given, 'check')}\ncheck({entry_point})\n"
        return [CheckTest(_source(source, "check"), entry_point)]
    raise ValueError(f"ground_truth has the keys {sorted(data)}: expected {_LAYOUTS}")


def _program_tests(inputs: list[Any], outputs: list[Any]) -> list[Test]:
    return [
        ProgramTest(_lines(one, f"inputs[{i}]"), _lines(other, f"outputs[{i}]"))
        for i, (one, other) in enumerate(zip(inputs, outputs, strict=True))
    ]


def _call_tests(name: Any, inputs: list[Any], outputs: list[Any]) -> list[Test]:
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"fn_name = {name!r}: expected a name")
    pairs = []
    for i, (given, expected) in enumerate(zip(inputs, outputs, strict=True)):
        if isinstance(given, str):
            # verl's layout: one JSON value a line, and the output as JSON.
            args = [_with_int_keys(_json(line, f"inputs[{i}]")) for line in given.split("\n")] if given.strip() else []
            expected = _json(expected, f"outputs[{i}]") if isinstance(expected, str) else expected
        elif isinstance(given, list):
            args = given
        else:
            raise ValueError(f"inputs[{i}] is a {type(given).__name__}: expected a list, or text with JSON lines")
        pairs.append((args, expected))
    # APPS and TACO wrap the outputs of many, not all, problems in a list.
    wrapped = all(isinstance(expected, list) and len(expected) == 1 for _, expected in pairs)
    return [
        CallTest(name, args, {}, (expected, expected[0]) if wrapped else (expected,), exact=False)
        for args, expected in pairs
    ]


def _assert_tests(sources: list[str], setup: str, entry_point: str) -> list[Test]:
    """Each `assert f(1, 2) == 3` as a call and the value to compare, anything else as test code."""
    calls = [_literal_call(source) for source in sources]
    wholes = [f"{setup}\n{source}\n" for source in sources]
    names = {call.name for call in calls if call}
    for call, whole in zip(calls, wholes, strict=True):
        names |= set() if call else _undefined_calls(whole)
    if entry_point:
        names = {entry_point}
    if len(names) != 1:
        # The others may be helpers that are given expected outputs; a program could define them as it likes.
        raise ValueError(
            f"asserts call {sorted(names) or 'nothing'} that they and setup do not define: expected one name, the "
            "solution's; define the others in setup, or say which it is in entry_point"
        )
    (name,) = names
    for i, (call, whole) in enumerate(zip(calls, wholes, strict=True)):
        if name not in ({call.name} if call else _called_names(whole)):
            raise ValueError(f"asserts[{i}] does not call {name}")
    return [call or CheckTest(whole, name) for call, whole in zip(calls, wholes, strict=True)]


def _literal_call(source: str) -> CallTest | None:
    """The test in `assert f(literals) == literal`, either way round; None of anything else."""
    body = ast.parse(source).body
    if len(body) != 1 or not isinstance(body[0], ast.Assert) or not isinstance(body[0].test, ast.Compare):
        return None
    compare = body[0].test
    if len(compare.ops) != 1 or not isinstance(compare.ops[0], ast.Eq):
        return None
    for call, other in ((compare.left, compare.comparators[0]), (compare.comparators[0], compare.left)):
        expected = _literal(other)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and expected is not _NO_LITERAL:
            args = [_literal(arg) for arg in call.args]
            kwargs = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
            if None not in kwargs and not any(value is _NO_LITERAL for value in (*args, *kwargs.values())):
                return CallTest(call.func.id, args, kwargs, (expected,), exact=True)
    return None


def missing_names(source: str) -> set[str]:
    """What no solution can give to test code: names that it neither defines nor gets from Python, modules it imports.

    Empty where the imported names are unknown (`from helpers import *`).
    """
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    if any(alias.name == "*" for node in imports for alias in node.names):
        return set()
    modules = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in imports if isinstance(node, ast.ImportFrom) and node.module}
    return _undefined(source) | {module.partition(".")[0] for module in modules}


def _undefined_calls(source: str) -> set[str]:
    """Names that test code calls and neither defines nor gets from Python."""
    return _undefined(source) & _called_names(source)


def _undefined(source: str) -> set[str]:
    """Names that test code uses and neither defines nor gets from Python."""
    defined: set[str] = set()
    missing: set[str] = set()
    tables = [symtable.symtable(source, "<test>", "exec")]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            at_top = table.get_type() == "module"
            if at_top and (symbol.is_assigned() or symbol.is_imported()):
                defined.add(symbol.get_name())
            elif symbol.is_global() and symbol.is_assigned():
                defined.add(symbol.get_name())
            elif at_top or symbol.is_global():
                missing.add(symbol.get_name())
    return missing - defined - set(vars(builtins))


def _called_names(source: str) -> set[str]:
    functions = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {function.id for function in functions if isinstance(function, ast.Name)}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return _NO_LITERAL


def _with_int_keys(arg: Any) -> Any:
    """JSON has text keys only; where all look like integers they were integers, as in the grader of verl's layout."""
    if isinstance(arg, dict) and arg and all(key.lstrip("-").isdecimal() for key in arg):
        return {int(key): value for key, value in arg.items()}
    return arg


def _lines(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    raise ValueError(f"{where} is a {type(value).__name__}: expected text, or a list of lines")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _list(data: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(data[key], list) or not data[key]:
        raise ValueError(f"{key} is {data[key]!r}: expected a list with at least one entry")
    return data[key]


def _text(data: dict[str, Any], key: str) -> str:
    if not isinstance(value := data.get(key, ""), str):
        raise ValueError(f"{key} is a {type(value).__name__}: expected text")
    return value


def _source(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where} is a {type(value).__name__}: expected Python source")
    try:
        ast.parse(value)
    except SyntaxError as error:
        raise ValueError(f"{where} is not Python: {error}") from error
    return value
