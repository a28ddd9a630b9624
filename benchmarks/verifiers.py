"""How fast the verifiers are beside others, in one table.

    python benchmarks/verifiers.py
    python benchmarks/verifiers.py --only math --json verifiers.json

math: checks a second by kind of answer, of `verl_cipo.rewards.math` from one thread and from as many as it has workers,
of raw math-verify (parse and verify, its own time limits off) and of verl's math_verify and prime_math, on the same
pairs and in the same run. "symbolic wrong" are pairs of expressions that differ; "symbolic right" pairs that are equal
and written differently; "text" are numbers, letters and words.
"""

import argparse
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from verl_cipo.rewards import math as math_verifier

Row = dict[str, Any]
Judge = Callable[[str, str], bool]

EXPRESSIONS = (
    (r"x^2+{n}x+1", r"1+x({n}+x)", r"x^2+{n}x-1"),
    (r"\frac{{x+{n}}}{{y}}", r"\frac{{x}}{{y}}+\frac{{{n}}}{{y}}", r"\frac{{x-{n}}}{{y}}"),
    (r"{n}\sqrt{{3}}\pi", r"\pi\sqrt{{3}}\cdot {n}", r"{n}\sqrt{{2}}\pi"),
    (r"e^{{{n}x}}-1", r"-1+(e^x)^{{{n}}}", r"e^{{-{n}x}}-1"),
    (r"\sin^2({n}x)", r"1-\cos^2({n}x)", r"1+\cos^2({n}x)"),
    (r"(a+{n}b)^2", r"a^2+2\cdot {n}ab+({n}b)^2", r"a^2+({n}b)^2"),
    (r"\ln({n}x)", r"\ln {n}+\ln x", r"\ln {n}\cdot\ln x"),
    (r"({n}, \frac{{\pi}}{{3}})", r"({n}, \pi/3)", r"(\frac{{\pi}}{{3}}, {n})"),
    (r"y={n}x+2", r"{n}x-y+2=0", r"y={n}x-2"),
    (r"\frac{{n(n+{n})}}{{2}}", r"\frac{{n^2+{n}n}}{{2}}", r"\frac{{n(n-{n})}}{{2}}"),
)
TEXTS = (("{n}", "{n}.0", True), (r"\frac{{{n}}}{{7}}", "{n}/7", True), ("{n}", "1{n}", False), ("C", "B", False))


def pairs(kind: str, n: int) -> list[tuple[str, str, bool]]:
    """References, answers and whether they are right; no two references are alike."""
    made = []
    for i in range(n):
        number = 3 + i // len(EXPRESSIONS)
        if kind == "text":
            gold, answer, right = TEXTS[i % len(TEXTS)]
        else:
            gold, equal, other = EXPRESSIONS[i % len(EXPRESSIONS)]
            right = kind == "symbolic right"
            answer = equal if right else other
        made.append((gold.format(n=number), answer.format(n=number), right))
    return made


def ours(gold: str, answer: str) -> bool:
    return bool(math_verifier.compute_score("benchmark", rf"\boxed{{{answer}}}", gold)["acc"])


def raw_math_verify(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    read = [parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer)]  # pyright: ignore
    return verify(*read, timeout_seconds=None)


def verl_math_verify(gold: str, answer: str) -> bool:
    from verl.utils.reward_score.math_verify import compute_score

    return compute_score(rf"\boxed{{{answer}}}", gold) == 1.0


def verl_prime_math(gold: str, answer: str) -> bool:
    from verl.utils.reward_score.prime_math import compute_score

    return bool(compute_score(rf"\boxed{{{answer}}}", gold)[0])


def rate(judge: Judge, made: list[tuple[str, str, bool]], threads: int, limit_s: float) -> tuple[float, float]:
    """Checks a second, and the share judged as it is; ends after `limit_s` seconds."""
    start, done, agreed = time.perf_counter(), 0, 0

    def work(pair: tuple[str, str, bool]) -> bool | None:
        return None if time.perf_counter() - start > limit_s else judge(pair[0], pair[1]) == pair[2]

    with ThreadPoolExecutor(threads) as executor:
        for verdict in executor.map(work, made) if threads > 1 else map(work, made):
            done += verdict is not None
            agreed += verdict is True
    return done / (time.perf_counter() - start), agreed / done


def math_part(n: int, limit_s: float) -> list[Row]:
    """One row a kind of answer and judge."""
    logging.disable(logging.WARNING)  # math-verify warns at each call that its time limits are off
    every = math_verifier.default_workers()
    judges: list[tuple[str, Judge, int]] = [
        ("verl_cipo, 1 thread", ours, 1),
        (f"verl_cipo, {every} threads", ours, every),
        ("raw math-verify", raw_math_verify, 1),
        ("verl math_verify", verl_math_verify, 1),
        ("verl prime_math", verl_prime_math, 1),
    ]
    rows: list[Row] = []
    for name, judge, threads in judges:
        with ThreadPoolExecutor(threads) as executor:  # workers and tables of parsers are made before the clock starts
            list(executor.map(lambda _, judge=judge: judge("x+1", "x+2"), range(4 * threads)))
        for kind in ("symbolic wrong", "symbolic right", "text"):
            per_second, agrees = rate(judge, pairs(kind, n), threads, limit_s)
            rows.append({"part": "math", "what": kind, "verifier": name, "per second": per_second, "agrees": agrees})
    return rows


PARTS: dict[str, Callable[[int, float], list[Row]]] = {"math": math_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    parser.add_argument("--checks", type=int, default=400, help="of each kind, at most")
    parser.add_argument("--limit-s", type=float, default=20.0, help="seconds for each row, at most")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    rows = [
        row
        for name in ([options.only] if options.only else PARTS)
        for row in PARTS[name](options.checks, options.limit_s)
    ]
    load = " ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}, Python {platform.python_version()}\n")
    print("| part | what | verifier | checks a second | agrees |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['part']} | {row['what']} | {row['verifier']} | {row['per second']:.0f} | {row['agrees']:.0%} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
