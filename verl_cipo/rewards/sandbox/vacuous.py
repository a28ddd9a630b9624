"""Test code that fails nothing: a solution that does nothing, or gives empty values, would pass.

`assert f(1) is None` passes a function without a body, `all(abs(a - b) < 1e-6 for a, b in zip(f(1), [0.5]))` one that
returns []. Such a ground truth is refused before it rewards anything, as outputs that are all empty are. It is found by
running it with such solutions.
"""

import hashlib
from typing import Any

from verl_cipo.rewards.sandbox.cases import CallTest, CheckTest, Test
from verl_cipo.rewards.sandbox.compare import agreements
from verl_cipo.rewards.sandbox.inside.values import encode

# One empty value alone may be what is rightly expected.
_SOLUTIONS: tuple[tuple[Any, ...], ...] = ((None,), ([], ()))
_TIMEOUT_S = 2.0
_MAX_KNOWN = 10_000
_sound: set[bytes] = set()


def refuse_vacuous(tests: list[Test], worker: Any, *, timeout_s: float) -> None:
    """Raises: ValueError when the tests hold test code and fail nothing. worker: of `pool`."""
    checks = [test for test in tests if isinstance(test, CheckTest)]
    if not checks:
        return
    # Calls are compared here and now; test code takes a run.
    calls = [test for test in tests if isinstance(test, CallTest)]
    key = hashlib.sha256(repr([*calls, *checks]).encode("utf-8", "backslashreplace")).digest()
    if key in _sound:
        return
    for values in _SOLUTIONS:
        if all(_all_pass(encode(value), calls, checks, worker, min(timeout_s, _TIMEOUT_S)) for value in values):
            shown = " and of ".join(f"`return {value!r}`" for value in values)
            raise ValueError(f"the ground truth's tests fail nothing: a function of {shown} would pass")
    if len(_sound) >= _MAX_KNOWN:
        _sound.clear()
    _sound.add(key)


def _all_pass(value: Any, calls: list[CallTest], checks: list[CheckTest], worker: Any, timeout_s: float) -> bool:
    return all(any(agreements(value, test, tolerance=0.0)) for test in calls) and all(
        worker.check_constant(test, value, timeout_s=timeout_s).passed for test in checks
    )
