"""How many checks a second the code verifier makes, and what it leaves behind.

    python benchmarks/sandbox.py --checks 2000 --json sandbox.json
    python benchmarks/sandbox.py --leaks --checks 10000

A check judges a trivial program by one test. In the same run, from the same number of threads: the verifier with its
bubblewrap backend, verl's prime_code (no sandbox, a process and a manager process a check) and a bare `python -c` a
check (no sandbox, no limits). --leaks runs right, wrong, crashing, flooding and endless programs in place of that, and
counts processes, zombies, descriptors, threads, files and memory after the first tenth of the checks and after all of
them, with the sandboxes closed; exit status 1 when any has grown.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.sandbox.pool import close_pools

CODE = "print(int(input()) * 2)"
TESTS = {"inputs": ["21\n"], "outputs": ["42\n"]}
# Of these a check takes far longer, and fewer give the same figure.
MAX_PRIME_CODE, MAX_SUBPROCESS = 60, 400
MEMORY_GROWTH_MB = 8


def answer(code: str) -> str:
    return f"```python\n{code}\n```"


def bubblewrap(workers: int) -> bool:
    return bool(compute_score("benchmark", answer(CODE), json.dumps(TESTS), workers=workers)["acc"])


def prime_code(workers: int) -> bool:
    from verl.utils.reward_score.prime_code import compute_score as score

    return score(answer(CODE), json.dumps(TESTS), continuous=True)[0] is True


def bare_subprocess(workers: int) -> bool:
    done = subprocess.run([sys.executable, "-c", CODE], input=TESTS["inputs"][0], capture_output=True, text=True)
    return done.stdout == TESTS["outputs"][0]


def measure(check: Callable[[int], bool], n: int, threads: int) -> tuple[float, float]:
    """Checks a second of `n` checks from `threads` threads, and processor time of one, ms, start of sandboxes included.

    Raises: RuntimeError when one is judged wrong.
    """
    used = cpu_s()
    with ThreadPoolExecutor(threads) as executor:
        # So that modules are imported and sandboxes are there.
        warm_up = list(executor.map(check, [threads] * 2 * threads))
        start = time.perf_counter()
        right = list(executor.map(check, [threads] * n))
        seconds = time.perf_counter() - start
    if not all(warm_up + right):
        raise RuntimeError(f"{check.__name__}: a right program was judged wrong")
    close_pools()
    return round(n / seconds, 1), round(1000 * (cpu_s() - used) / (n + len(warm_up)), 2)


def cpu_s() -> float:
    """Processor time of this process and all that it has waited for, seconds."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def left_behind() -> dict[str, float]:
    """What this process and those below it hold."""
    parents, states = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # It has just ended.
            state, parent = path.read_text().rsplit(")", 1)[1].split()[:2]
            parents[int(path.parent.name)], states[int(path.parent.name)] = int(parent), state
    below = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    rows = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(row.split()[1]) for row in rows if row.startswith("VmRSS"))
    return {
        "processes": len(below) - 1,
        "zombies": sum(states[pid] == "Z" for pid in below if pid in states),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "files": sum(len(files) for _, _, files in os.walk(tempfile.gettempdir())),
        "memory_mb": resident / 1024,
    }


def leaks(n: int, threads: int) -> dict[str, dict[str, float]]:
    """What is held before the first check, after `n` // 10 checks of all kinds, and after `n`."""
    kinds = [(CODE, "right"), ("print(0)", "wrong"), ("1 / 0", "wrong"), ("import os\nos._exit(3)", "wrong")] * 50
    kinds += [("while True: print('x' * 99999)", "wrong"), ("import ctypes\nctypes.string_at(0)", "wrong")]
    kinds += [("while True: pass", "timeout")]

    def check(i: int) -> None:
        code, outcome = kinds[i % len(kinds)]
        verdict = compute_score("leaks", answer(code), json.dumps(TESTS), workers=threads, timeout_s=2.0)
        if verdict["outcome"] != outcome:
            raise RuntimeError(f"{code!r} was judged {verdict}")

    def run(first: int, end: int) -> dict[str, float]:
        with ThreadPoolExecutor(threads) as executor:
            # In pieces: the executor keeps 2 kB for each check that it was given.
            for i in range(first, end, 100):
                list(executor.map(check, range(i, min(i + 100, end))))
        close_pools()
        return left_behind()

    with tempfile.TemporaryDirectory() as folder:
        # Of its own, so that only files of this run are counted.
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        return {"before": left_behind(), "first_tenth": run(0, n // 10), "all": run(n // 10, n)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", type=int, default=2000, help="checks of the verifier (default 2000)")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: the CPUs it may use"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE as well")
    parser.add_argument("--leaks", action="store_true", help="count what is left behind")
    args = parser.parse_args()
    machine = {"cpus": len(os.sched_getaffinity(0)), "threads": args.threads, "python": platform.python_version()}
    if args.leaks:
        held = leaks(args.checks, args.threads)
        figures = {**machine, "checks": args.checks, **held}
        first, last = held["first_tenth"], held["all"]
        margin = {"memory_mb": MEMORY_GROWTH_MB}
        grown = [name for name in last if last[name] > first[name] + margin.get(name, 0)]
    else:
        import verl.utils.reward_score.prime_code  # noqa: F401  # its import is no part of a check

        figures = {**machine, "checks": args.checks}
        for check, n in ((bubblewrap, args.checks), (prime_code, MAX_PRIME_CODE), (bare_subprocess, MAX_SUBPROCESS)):
            name = check.__name__.removeprefix("bare_")
            with contextlib.redirect_stdout(io.StringIO()):  # prime_code prints
                per_s, cpu_ms = measure(check, min(n, args.checks), args.threads)
            figures |= {f"{name}_checks_per_s": per_s, f"{name}_cpu_ms_per_check": cpu_ms}
        grown = []
    text = json.dumps(figures, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n", encoding="utf-8")
    if grown:
        print(f"grown: {', '.join(grown)}", file=sys.stderr)
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
