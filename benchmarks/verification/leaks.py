"""What many checks of the code verifier leave behind: processes, zombies, descriptors, threads, files and memory.

    python benchmarks/verification/leaks.py --checks 10000

Right, wrong, crashing, flooding and endless programs are judged. What is held is counted after the first tenth of the
checks and after all of them, with the sandboxes closed; exit status 1 when any of it has grown.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.sandbox.pool import close_pools

TESTS = {"inputs": ["21\n"], "outputs": ["42\n"]}
MEMORY_GROWTH_MB = 8


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
    kinds = [
        ("print(int(input()) * 2)", "right"),
        ("print(0)", "wrong"),
        ("1 / 0", "wrong"),
        ("import os\nos._exit(3)", "wrong"),
    ] * 50
    kinds += [("while True: print('x' * 99999)", "wrong"), ("import ctypes\nctypes.string_at(0)", "wrong")]
    kinds += [("while True: pass", "timeout")]

    def check(i: int) -> None:
        code, outcome = kinds[i % len(kinds)]
        verdict = compute_score("leaks", f"```python\n{code}\n```", json.dumps(TESTS), workers=threads, timeout_s=2.0)
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
    parser.add_argument("--checks", type=int, default=10_000, help="default 10000")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: the CPUs it may use"
    )
    args = parser.parse_args()
    held = leaks(args.checks, args.threads)
    figures = {"checks": args.checks, "threads": args.threads, **held}
    print(json.dumps(figures, indent=2))
    first, last = held["first_tenth"], held["all"]
    margin = {"memory_mb": MEMORY_GROWTH_MB}
    grown = [name for name in last if last[name] > first[name] + margin.get(name, 0)]
    if grown:
        print(f"grown: {', '.join(grown)}", file=sys.stderr)
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
