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
# The statements of the standard `assertion(out, exp, atol)`, in the versions that were published: equal, or floats that
# are close.
_COMPARISON = {
    "exact_match = out == exp",
    "if atol == 0 and is_floats(exp):\n    atol = 1e-06",
    "if not exact_match and atol != 0:\n    assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
    "else:\n    assert exact_match",
    "if not exact_match and atol != 0:\n    np.testing.assert_allclose(out, exp, atol=atol)\n"
    "else:\n    assert exact_match",
    "if out != exp and atol != 0:\n    assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
    "else:\n    assert out == exp, f'out: {out}, exp: {exp}'",
    "assert exact_match",
}
# numpy stretches what it compares to one shape, and an empty array to nothing: np.allclose([], 7.5) is true.
_CLOSE = {"allclose", "isclose", "assert_allclose"}
_SAME_SHAPE = """def _in_the_same_shape(compare, got, expected, *args, **kwargs):
    import numpy
    assert numpy.shape(got) == numpy.shape(expected)
    return compare(got, expected, *args, **kwargs)"""


def evalplus_tests(row: Row, field: str, entry_point: str, max_tests: int | None = None) -> dict[str, Any]:
    """The tests of HumanEval+ or MBPP+ (EvalPlus, arXiv 2305.01210): inputs and results, compared in a loop.

    The loop calls `assertion(f(*inp), exp, atol)`, inside check(candidate) or at the top level. Where inputs and
    results are literals, the comparison is the standard one and atol is 0 or 1e-6, they are taken apart; else the whole
    source is kept, whatever max_tests (None: all) says. Where a tuple with floats is expected, a list will do too.
    Raises: PrepError when the source does not parse.
    """
    tree = _parsed(row, field)
    body = [node for node in tree.body if not _is_call_of_check(node)]
    plain = _literal_tests(body, entry_point)
    if plain is None:
        return _as_check(tree, entry_point)
    inputs, results = (values[:max_tests] for values in plain)
    if _json_holds(inputs) and _json_holds(results):
        return {"inputs": inputs, "outputs": results, "fn_name": entry_point}
    if "float" in _types(results):  # An assert would compare without EvalPlus's tolerance.
        if _json_holds(inputs) and _json_holds(_as_lists(results)):
            return {"inputs": inputs, "outputs": _as_lists(results), "fn_name": entry_point}
        return _as_check(tree, entry_point)
    calls = zip(inputs, results, strict=True)
    asserts = [f"assert {entry_point}({', '.join(map(repr, call))}) == {result!r}" for call, result in calls]
    return {"asserts": asserts}


def helpers(prompt: str, test: str, entry_point: str) -> str:
    """The functions of a prompt, with its imports, that the test calls beside the one to be written; "" where none is.

    The published tests of HumanEval/32, 38 and 50 call `poly`, `encode_cyclic` and `encode_shift` of their prompts.
    """
    try:
        body = ast.parse(prompt).body
    except (SyntaxError, ValueError):
        return ""
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef) and node.name != entry_point}
    used, new = set[str](), _names(ast.parse(test)) & functions.keys()
    while new:
        used |= new
        new = set[str]().union(*(_names(functions[name]) for name in new)) & functions.keys() - used
    kept = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom) or getattr(node, "name", "") in used]
    return _unparsed(kept) if used else ""


def assert_tests(row: Row, field: str) -> dict[str, Any]:
    """Tests of MBPP or HumanEval as one source: asserts at the top level, or check(candidate) and a call of it.

    Raises: PrepError when the source is neither.
    """
    tree = _strict(_parsed(row, field))
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
    comparison = [ast.unparse(node) for node in functions["assertion"].body]
    if not set(comparison) <= _COMPARISON or "assert" not in comparison[-1]:
        return None
    called = "candidate" if "check" in functions else entry_point
    block = functions["check"].body if "check" in functions else body
    statements = [node for node in block if not isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom)]
    if len(statements) != 3 or not isinstance(statements[2], ast.For):
        return None
    loop = ast.unparse(statements[2]).replace("for (i, (inp, exp))", "for i, (inp, exp)")
    wanted = f"for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion({called}(*inp), exp, "
    if loop not in (wanted + "0)", wanted + "1e-06)"):
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


def _as_check(tree: ast.Module, entry_point: str) -> dict[str, Any]:
    """The tests as a source that defines check(candidate); what stood at the top level moves into it."""
    body = [node for node in _strict(tree).body if not _is_call_of_check(node)]
    return {"check": _check_source(body, entry_point), "entry_point": entry_point}


def _check_source(body: list[ast.stmt], entry_point: str) -> str:
    if any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in body):
        return _unparsed(body)
    kept = ast.FunctionDef | ast.Import | ast.ImportFrom
    outer = [node for node in body if isinstance(node, kept)]
    inner = [_Renamed(entry_point).visit(node) for node in body if not isinstance(node, kept)]
    lines = _unparsed(inner).splitlines() or ["pass"]
    return "\n".join([_unparsed(outer), "def check(candidate):", *(f"    {line}" for line in lines)])


def _strict(tree: ast.Module) -> ast.Module:
    """The source with comparisons of numpy that ask for the same shape first."""
    strict = _InTheSameShape()
    tree = ast.fix_missing_locations(strict.visit(tree))
    if strict.met:
        tree.body = [*ast.parse(_SAME_SHAPE).body, *tree.body]
    return tree


class _InTheSameShape(ast.NodeTransformer):
    """np.allclose(a, b) becomes _in_the_same_shape(np.allclose, a, b)."""

    met = False

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in _CLOSE or _is_of_math(node.func):
            return node
        self.met = True
        return ast.Call(ast.Name("_in_the_same_shape", ast.Load()), [node.func, *node.args], node.keywords)


def _is_of_math(function: ast.Attribute) -> bool:
    """math.isclose takes two numbers and nothing else."""
    return ast.unparse(function.value) in ("math", "cmath")


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


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


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
