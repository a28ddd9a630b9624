"""How a contract names what it guards.

Every contract carries :func:`seam`: which part of verl it is about, and which of our files stand on it. conftest.py
puts both in front of the message when the contract fails. verl is looked up by :func:`load` while a test runs, never
imported at the top of a file, so that a name that is gone fails the contracts about it and no other.
"""

import ast
import importlib
import inspect
import textwrap
from typing import Any

import pytest

from tests.conftest import ROOT


def seam(what: str, *files: str) -> pytest.MarkDecorator:
    """Mark a contract.

    Args:
        what: the part of verl, as a developer of verl would name it.
        files: our files that stand on it, relative to the repository.

    Raises:
        FileNotFoundError: one of them is gone, so that nobody is sent to it.
    """
    for file in files:
        if not (ROOT / file).exists():
            raise FileNotFoundError(f"the contract on {what} names {file}, which is not there")
    return pytest.mark.seam(what, files)


def load(path: str) -> Any:
    """The object at ``module:name.name``, of a Ray actor class the plain class inside; fails the test if it is gone."""
    module, _, names = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        pytest.fail(f"verl has no module {module}: {error}")
    for name in names.split(".") if names else ():
        if not hasattr(found, name):
            pytest.fail(f"verl has no {path}: {getattr(found, '__name__', found)!s} lacks {name!r}")
        found = getattr(found, name)
    return getattr(getattr(found, "__ray_metadata__", None), "modified_class", found)


def parameters(function: Any) -> list[str]:
    """Names of the parameters, without ``self`` and what Ray adds to the methods of an actor class."""
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "_ray_trace_ctx")]


def check_parameters(path: str, expected: list[str]) -> None:
    """Fail unless the function at ``path`` takes exactly ``expected``, in this order."""
    found = parameters(load(path))
    assert found == expected, f"{path} takes {found}, verl_cipo was written for {expected}"


def check_accepts(path: str, *names: str) -> None:
    """Fail unless the function at ``path`` can be called with keywords ``names``."""
    found = inspect.signature(load(path)).parameters
    missing = [name for name in names if name not in found]
    assert not missing, f"{path} no longer takes {missing}, it takes {list(found)}"


def calls_in_order(path: str, *names: str) -> None:
    """Fail unless the function at ``path`` mentions ``names`` for the first time in this order.

    For functions of verl that cannot be run without a cluster. A name is one that is read: of a function or a value.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(load(path))))
    first: dict[str, tuple[int, int]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            # The end of an attribute is where its name stands.
            place = (node.end_lineno, node.end_col_offset)
            first[name] = min(place, first.get(name, place))
    missing = [name for name in names if name not in first]
    assert not missing, f"{path} no longer uses {missing}"
    found = sorted(names, key=first.__getitem__)
    assert found == list(names), f"{path} uses {found} in this order, verl_cipo was written for {list(names)}"
