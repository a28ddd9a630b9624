"""The code verifier: checks a second, fairness, what hostile answers cost and take away."""

import contextlib
import io
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.verification import Figure
from benchmarks.verification.hostile import SEND, sending
from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.sandbox.pool import close_pools

WORKERS = 2
THREADS = 8
TIMEOUT_S = 0.5
CALL = json.dumps({"inputs": ["3", "4"], "outputs": ["9", "16"], "fn_name": "f"})
RIGHT = "def f(x): return x * x"
TRIVIAL = "print(int(input()) * 2)"
TESTS = {"inputs": ["21\n"], "outputs": ["42\n"]}
# Of these a check takes far longer, and fewer give the same figure.
MAX_PRIME_CODE, MAX_PYTHON = 60, 400
# Each stands for a kind of claim that is slow to read.
CLAIMS = {
    "set_of_tuples": "tuples with equal hashes",
    "three_sets": "integers with equal hashes",
    "error_of_lists": "an error of 4 MiB",
    "long_integer": "an integer of 4 MiB",
}
HOSTILE = {
    "crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "exit": "import os\ndef f(x): os._exit(3)",
    "memory": "def f(x): return bytearray(2 ** 40)",
    "flood": "import os\ndef f(x):\n    while True:\n        for fd in range(3, 32):\n"
    "            try: os.write(fd, b'x' * 60_000)\n            except OSError: pass",
    "claim": f"{SEND}\ndef f(x):\n{sending('three_sets', '    ')}",
    "endless": "def f(x):\n    while True: pass",
}


def answer(code: str) -> str:
    return f"```python\n{code}\n```"


def ours() -> bool:
    return bool(compute_score("benchmark", answer(TRIVIAL), json.dumps(TESTS), workers=WORKERS)["acc"])


def prime_code() -> bool:
    from verl.utils.reward_score.prime_code import compute_score as score

    return score(answer(TRIVIAL), json.dumps(TESTS), continuous=True)[0] is True


def bare_python() -> bool:
    done = subprocess.run([sys.executable, "-c", TRIVIAL], input=TESTS["inputs"][0], capture_output=True, text=True)
    return done.stdout == TESTS["outputs"][0]


def measure(check: Callable[[], bool], n: int) -> tuple[float, float]:
    """Checks a second of `n` checks from two threads, and processor time of one, ms, start of sandboxes included.

    Raises: RuntimeError when one is judged wrong.
    """
    used = cpu_s()
    with ThreadPoolExecutor(WORKERS) as executor:
        # So that modules are imported and sandboxes are there.
        warm_up = [one.result() for one in [executor.submit(check) for _ in range(2 * WORKERS)]]
        start = time.perf_counter()
        right = [one.result() for one in [executor.submit(check) for _ in range(n)]]
        seconds = time.perf_counter() - start
    if not all(warm_up + right):
        raise RuntimeError(f"{check.__name__}: a right program was judged wrong")
    close_pools()
    return n / seconds, 1000 * (cpu_s() - used) / (n + len(warm_up))


def cpu_s() -> float:
    """Processor time of this process and all that it has waited for, seconds."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def check(code: str) -> dict:
    return compute_score("benchmark", answer(code), CALL, workers=WORKERS, timeout_s=TIMEOUT_S)


def figures(*, checks: int, seconds: float) -> Iterator[Figure]:
    """Of the code verifier. checks: of the trivial program; seconds: of each measurement under load."""
    yield from _checks_a_second(checks)
    yield from _fairness(seconds)
    yield from _stalls()
    yield from _hostile_load(seconds)
    close_pools()


def _checks_a_second(checks: int) -> Iterator[Figure]:
    import verl.utils.reward_score.prime_code  # noqa: F401  # its import is no part of a check

    for what, one, most, target in (
        ("trivial programs", ours, checks, 1000),
        ("the same with verl's prime_code", prime_code, MAX_PRIME_CODE, None),
        ("the same with a bare python -c", bare_python, MAX_PYTHON, None),
    ):
        with contextlib.redirect_stdout(io.StringIO()):  # prime_code prints
            per_s, cpu_ms = measure(one, min(checks, most))
        yield Figure("code", what, per_s, "1/s", str(target or ""), None if target is None else per_s >= target)
        yield Figure("code", f"{what}: processor time of one", cpu_ms, "ms")


def _fairness(seconds: float) -> Iterator[Figure]:
    counts = _in_threads([lambda: check(RIGHT)] * THREADS, seconds)
    share = min(counts) / max(counts)
    yield Figure("code", f"least of {THREADS} threads' shares, of the largest", share, "", "0.8", share >= 0.8)


def _stalls() -> Iterator[Figure]:
    for claim, name in CLAIMS.items():
        code = f"{SEND}\ndef f(x):\n{sending(claim, '    ')}"
        check(code)
        began = time.process_time()
        verdict = check(code)
        cost = 1000 * (time.process_time() - began)
        if verdict["acc"]:
            raise RuntimeError(f"{name}: judged {verdict}")
        yield Figure("code", f"this process's time for {name}", cost, "ms", "50", cost <= 50)


def _hostile_load(seconds: float) -> Iterator[Figure]:
    """Half of the threads check right programs, the others all kinds of hostile ones in turn."""
    alone = {}
    for name, code in {"right": RIGHT, **HOSTILE}.items():
        check(code)
        began = time.perf_counter()
        for _ in range(3):
            verdict = check(code)
        alone[name] = (time.perf_counter() - began) / 3
        if verdict["acc"] is not (name == "right"):
            raise RuntimeError(f"{name}: judged {verdict}")
    # Each waits for its turn, so all threads make as many checks.
    mean = alone["right"] / 2 + sum(alone[name] for name in HOSTILE) / len(HOSTILE) / 2
    possible = WORKERS / mean

    def hostile(first: int) -> Callable[[], dict]:
        codes = list(HOSTILE.values())
        order = iter(codes[first:] + codes * 10**4)
        return lambda: check(next(order))

    lost = []

    def right() -> None:
        verdict = check(RIGHT)
        if not verdict["acc"]:
            lost.append(verdict)

    counts = _in_threads([right, hostile(0), right, hostile(1), right, hostile(3), right, hostile(5)], seconds)
    per_s = sum(counts) / seconds
    yield Figure("code", "checks where half are hostile", per_s, "1/s", f"{possible / 2:.3g}", per_s >= possible / 2)
    yield Figure("code", "right programs that lost their score beside them", len(lost), "", "0", not lost)


def _in_threads(works: list[Callable[[], object]], seconds: float) -> list[int]:
    """How often each work was done, over and over, in a thread of its own."""
    counts = [0] * len(works)
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        while time.monotonic() < end:
            works[number]()
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts
