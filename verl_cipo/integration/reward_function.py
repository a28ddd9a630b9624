"""A reward function as `algorithm.cipo.second_verifier` names it, loaded by verl's own loader."""

import inspect
import os
from collections.abc import Callable
from typing import Any

from verl_cipo.core.config import ROOT, CIPOConfigError
from verl_cipo.core.knob_rules import REWARD_FUNCTION_ALLOWED

PACKAGE, FILE = "pkg://", "file://"
FUNCTION = "compute_score"
"""verl's name of a custom reward function that has no name."""
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
"""What verl's reward managers call a reward function with."""


def located(named: str) -> str:
    """The name with that of its function, and a file's whole path: workers have another working directory."""
    path, function = _parts(named)
    if not path.startswith(PACKAGE):
        path = os.path.abspath(path.removeprefix(FILE))
    return f"{path}:{function}"


def load(named: str) -> Callable[..., Any]:
    """The function that ``named`` means.

    Raises:
        CIPOConfigError: it cannot be loaded, or not be called as verl calls reward functions; the message says why.
    """
    # verl is half loaded when it loads this package as its plugin.
    from verl.utils.import_utils import load_extern_object

    path, name = _parts(named)
    try:
        function = load_extern_object(module_path=path, object_name=name)
        inspect.signature(function).bind(**dict.fromkeys(ARGUMENTS))
    except Exception as error:
        # verl wraps what a file raises.
        why = error.__cause__ or error
        raise CIPOConfigError(
            f"{ROOT}.second_verifier = {named!r}: {type(why).__name__}: {why}; expected {REWARD_FUNCTION_ALLOWED}"
        ) from error
    return function


def _parts(named: str) -> tuple[str, str]:
    """Path, as verl's loader takes it, and name of the function."""
    path, colon, function = named.rpartition(":")
    return (path, function) if colon and function.isidentifier() else (named, FUNCTION)
