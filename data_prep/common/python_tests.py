"""Tests written as Python source, as the code verifier takes them.

Expected results never enter the sandbox, so tests are taken apart where that is safe: into inputs and outputs where
JSON can hold them, else into asserts of one call each, and only what can be neither stays a function check(candidate).
Nothing of the source is run.
"""

import ast
import json
from typing import Any

from data_prep.common.rows import Row

_STANDARD = {"is_floats", "assertion", "check"}


def evalplus_tests(row: Row, field: str, entry_point: str, max_tests: int | None = None) -> dict[str, Any]:
    """The tests of HumanEval+ or MBPP+ (EvalPlus, arXiv 2305.01210): inputs and results, compared in a loop.

    The loop calls `assertion(f(*inp), exp, atol)`, inside check(candidate) or at the top level. Where inputs and
    results are literals, the comparison is the standard one and atol is 0, they are taken apart; else the whole source
    is kept, whatever max_tests (None: all) says. Where a tuple with floats is expected, a list will do too.
    Raises: PrepError when the source does not parse.
    """
    tree = _parsed(row, field)
    body = [node for node in tree.body if not _is_call_of_check(node)]
    plain = _literal_tests(body, entry_point)
    if plain is None:
        return {"check": _check_source(body, entry_point), "entry_point": entry_point}
    inputs, results = (values[:max_tests] for values in plain)
    if _json_holds(inputs) and _json_holds(results):
        return {"inputs": inputs, "outputs": results, "fn_name": entry_point}
    if "float" in _types(results):  # An assert would compare without EvalPlus's tolerance.
        if _json_holds(inputs) and _json_holds(_as_lists(results)):
            return {"inputs": inputs, "outputs": _as_lists(results), "fn_name": entry_point}
        return {"check": _check_source(body, entry_point), "entry_point": entry_point}
    calls = zip(inputs, results, strict=True)
    asserts = [f"assert {entry_point}({', '.join(map(repr, call))}) == {result!r}" for call, result in calls]
    return {"asserts": asserts}


def assert_tests(row: Row, field: str) -> dict[str, Any]:
    """Tests of MBPP or HumanEval as one source: asserts at the top level, or check(candidate) and a call of it.

    Raises: PrepError when the source is neither.
    """
    tree = _parsed(row, field)
    calls = [node for node in tree.body if _is_call_of_check(node)]
    body = [node for node in tree.body if node not in calls]
    if len(calls) == 1 and any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in body):
        candidate = calls[0].value.args[0]
        return {"check": _unparsed(body), "entry_point": ast.unparse(candidate)}
    asserts = [ast.unparse(node) for node in body if isinstance(node, ast.Assert)]
    if not asserts or calls:
        raise row.fault(field, "neither asserts nor one call of check(name)", "the tests of MBPP or HumanEval")
    setup = _unparsed([node for node in body if not isinstance(node, ast.Assert)])
    return {"asserts": asserts, "setup": setup} if setup else {"asserts": asserts}


def _parsed(row: Row, field: str) -> ast.Module:
    source = row.text(field)
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise row.fault(field, f"no Python source ({error})", "tests as Python source") from error


def _literal_tests(body: list[ast.stmt], entry_point: str) -> tuple[list[Any], list[Any]] | None:
    """(argument lists, results) when the tests are literals that are compared in the standard way, else None."""
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    if "assertion" not in functions or not set(functions) <= _STANDARD:
        return None
    if ast.unparse(functions["assertion"].body[0]) != "exact_match = out == exp":
        return None
    called = "candidate" if "check" in functions else entry_point
    block = functions["check"].body if "check" in functions else body
    statements = [node for node in block if not isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom)]
    if len(statements) != 3 or not isinstance(statements[2], ast.For):
        return None
    wanted = (
        "for (i, (inp, exp)) in enumerate(zip(inputs, results)):",
        f"    assertion({called}(*inp), exp, 0)",
    )
    if ast.unparse(statements[2]).replace("for i, (inp, exp)", "for (i, (inp, exp))").splitlines() != list(wanted):
        return None
    try:
        inputs, results = (_assigned(node, name) for node, name in zip(statements, ("inputs", "results"), strict=False))
    except (ValueError, TypeError):  # what literal_eval raises for what is no literal
        return None
    if not all(isinstance(call, list | tuple) for call in inputs) or len(inputs) != len(results):
        return None
    return inputs, results


def _assigned(node: ast.stmt, name: str) -> list[Any]:
    """The literal list that the statement assigns to `name`. Raises: ValueError when it is something else."""
    if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != name:
        raise ValueError(f"not an assignment to {name}")
    value = ast.literal_eval(node.value)
    ast.literal_eval(repr(value))  # 1e999 is a literal, and the inf that it becomes is none
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} is no list")
    return value


def _check_source(body: list[ast.stmt], entry_point: str) -> str:
    """The tests as a source that defines check(candidate); what stood at the top level moves into it."""
    if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in body):
        return _unparsed(body)
    kept = ast.FunctionDef | ast.Import | ast.ImportFrom
    outer = [node for node in body if isinstance(node, kept)]
    inner = [_Renamed(entry_point).visit(node) for node in body if not isinstance(node, kept)]
    lines = _unparsed(inner).splitlines() or ["pass"]
    return "\n".join([_unparsed(outer), "def check(candidate):", *(f"    {line}" for line in lines)])


class _Renamed(ast.NodeTransformer):
    """Calls of the tested function become calls of `candidate`."""

    def __init__(self, name: str):
        self._name = name

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.copy_location(ast.Name("candidate", node.ctx), node) if node.id == self._name else node


def _is_call_of_check(node: ast.stmt) -> bool:
    """Whether the statement is `check(name)`."""
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and ast.unparse(call.func) == "check" and len(call.args) == 1


def _unparsed(nodes: list[ast.stmt]) -> str:
    return ast.unparse(ast.Module(body=nodes, type_ignores=[]))


def _as_lists(value: Any) -> Any:
    """The value with lists for tuples."""
    return [_as_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _types(value: Any) -> set[str]:
    """The names of all types in the value."""
    items = [*value, *value.values()] if isinstance(value, dict) else value
    inside = items if isinstance(value, list | tuple | set | frozenset | dict) else ()
    return {type(value).__name__}.union(*map(_types, inside))


def _json_holds(value: Any) -> bool:
    """Whether JSON gives the value back as it is: no tuples, sets, complex numbers, infinities, keys but text."""
    if isinstance(value, list):
        return all(_json_holds(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _json_holds(item) for key, item in value.items())
    if isinstance(value, float):
        return json.loads(json.dumps(value)) == value and abs(value) != float("inf")
    return value is None or isinstance(value, bool | int | str)
