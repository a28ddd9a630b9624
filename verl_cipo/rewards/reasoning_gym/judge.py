"""The scorer of a reasoning-gym task on an answer; runs in a worker process, where it may hang, swell or die.

Some scorers evaluate the answer as Python, or hand it to SymPy's `parse_expr`, which does the same. An answer that is
more than a value or a formula does not reach those.
"""

import ast
import functools
import json
import re
from typing import Any

import reasoning_gym

from verl_cipo.rewards.outcome import Outcome
from verl_cipo.rewards.reasoning_gym.entry import load

EVALUATED = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}
"""Tasks whose scorer calls eval() on the answer, for partial credit to a list in Python's notation."""
FORMULAS = {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
"""Tasks whose scorer has SymPy parse the answer."""

_FORMULA = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+|[A-Za-z_]\w*|[-+*/^(),\s])*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_FUNCTIONS = set(
    "sin cos tan sec csc cot asin acos atan sinh cosh tanh asinh acosh atanh exp log ln sqrt abs Abs pi".split()
)


def judge(ground_truth: str, answer: str) -> tuple[str, float]:
    """(outcome, the scorer's value from 0 to 1) for an answer to the entry of `ground_truth`, as `entry.dump` wrote it.

    right: the value 1; unparsable: the scorer would run the answer as a program; undecided: it raised.
    Raises: ValueError when there is no such task.
    """
    asked = load(ground_truth)
    dataset = _dataset(asked["task"], json.dumps(asked["config"], sort_keys=True))
    if not harmless(asked["task"], answer):
        return Outcome.UNPARSABLE.value, 0.0
    try:
        value = float(dataset.score_answer(answer, asked["entry"]))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # Whatever an odd answer makes of a scorer; `warm_up` has seen that the package works.
        return Outcome.UNDECIDED.value, 0.0
    value = min(max(value, 0.0), 1.0)
    return (Outcome.RIGHT if value == 1.0 else Outcome.WRONG).value, value


def harmless(task: str, answer: str) -> bool:
    """Whether the scorer of `task` may have `answer`: it runs no code of it that calls anything."""
    if task in EVALUATED and "(" in answer:
        try:
            ast.literal_eval(answer)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return False
    if task in FORMULAS:
        names = _NAME.findall(answer)
        return bool(_FORMULA.fullmatch(answer)) and all(len(name) == 1 or name in _FUNCTIONS for name in names)
    return True


def warm_up() -> None:
    """See that a verdict can be had: a broken installation must not look like answers that nobody can judge.

    Raises: RuntimeError when the scorer of a sum does not take the right one.
    """
    dataset = _dataset("chain_sum", "{}")
    entry = dataset[0]
    if dataset.score_answer(entry["answer"], entry) != 1.0:
        raise RuntimeError("reasoning-gym's chain_sum refuses its own answer; is the package whole?")


@functools.lru_cache(maxsize=64)
def _dataset(task: str, config: str) -> Any:
    """The task with settings from JSON text; the seed is for its entries alone, and scorers make none."""
    return reasoning_gym.create_dataset(task, **json.loads(config), seed=0)
