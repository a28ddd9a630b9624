"""The code verifier: checks a second, fairness, what hostile answers cost and take away."""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator

from benchmarks.sandbox import MAX_PRIME_CODE, MAX_SUBPROCESS, answer, bare_subprocess, bubblewrap, measure, prime_code
from benchmarks.verification import Figure
from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.sandbox.pool import close_pools

WORKERS = 2
THREADS = 8
TIMEOUT_S = 0.5
CALL = json.dumps({"inputs": ["3", "4"], "outputs": ["9", "16"], "fn_name": "f"})
RIGHT = "def f(x): return x * x"
SEND = """
import itertools, os, struct
def send(text):
    body = struct.pack('<I', len(text)) + text.encode()
    for fd in range(3, 32):
        try:
            left = memoryview(body)
            while left: left = left[os.write(fd, left):]
            break
        except OSError: pass
    os._exit(0)
def f(x):
"""
# Claims that are slow to read: elements with equal hashes, many parts, many digits.
CLAIMS = {
    "tuples with equal hashes": "    rows = itertools.islice(itertools.product((-1, -2), repeat=13), 8000)\n"
    "    rows = ['{\"tuple\":[%s%s]}' % ('999,' * 15, ','.join(map(str, row))) for row in rows]\n"
    "    send('{\"value\":{\"set\":[' + ','.join(rows) + ']}}')",
    "integers with equal hashes": "    one = ','.join(str(i * (2 ** 61 - 1)) for i in range(10000))\n"
    "    send('{\"value\":[' + ','.join(['{\"set\":[%s]}' % one] * 3) + ']}')",
    "an error of 4 MiB": "    send('{\"error\":[' + '[],' * 1_300_000 + '[]]}')",
    "an integer of 4 MiB": "    send('{\"value\":' + '9' * 4_000_000 + '}')",
}
HOSTILE = {
    "crash": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "exit": "import os\ndef f(x): os._exit(3)",
    "memory": "def f(x): return bytearray(2 ** 40)",
    "flood": "import os\ndef f(x):\n    while True:\n        for fd in range(3, 32):\n"
    "            try: os.write(fd, b'x' * 60_000)\n            except OSError: pass",
    "claim": SEND + CLAIMS["integers with equal hashes"],
    "endless": "def f(x):\n    while True: pass",
}


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

    per_s = {}
    for one, most in ((bubblewrap, checks), (prime_code, MAX_PRIME_CODE), (bare_subprocess, MAX_SUBPROCESS)):
        with contextlib.redirect_stdout(io.StringIO()):  # prime_code prints
            per_s[one.__name__], _ = measure(one, min(checks, most), WORKERS)
    yield Figure("code", "trivial programs", per_s["bubblewrap"], "1/s", "1000", per_s["bubblewrap"] >= 1000)
    yield Figure("code", "the same with verl's prime_code", per_s["prime_code"], "1/s")
    yield Figure("code", "the same with a bare python -c", per_s["bare_subprocess"], "1/s")


def _fairness(seconds: float) -> Iterator[Figure]:
    counts = _in_threads([lambda: check(RIGHT)] * THREADS, seconds)
    share = min(counts) / max(counts)
    yield Figure("code", f"least of {THREADS} threads' shares, of the largest", share, "", "0.8", share >= 0.8)


def _stalls() -> Iterator[Figure]:
    for name, code in CLAIMS.items():
        check(SEND + code)
        began = time.process_time()
        verdict = check(SEND + code)
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
