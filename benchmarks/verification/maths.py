"""The math verifier: checks a second by kind of answer, beside raw math-verify and verl's scorers on the same pairs.

"symbolic wrong" are pairs of expressions that differ; "symbolic right" pairs that are equal and written differently;
"text" are numbers, letters and words.
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.verification import Figure
from verl_cipo.rewards import math as math_verifier

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
MAX_CHECKS = 400
WANTED = 3.5
"""Times raw math-verify's checks a second of wrong symbolic answers: three times what this verifier once made."""
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


def figures(*, checks: int, seconds: float) -> Iterator[Figure]:
    """Of the math verifier and of others on the same pairs.

    checks: of each kind of answer, at most 400; seconds: of each measurement.
    """
    logging.disable(logging.WARNING)  # math-verify warns at each call that its time limits are off
    every = math_verifier.default_workers()
    judges: list[tuple[str, Judge, int]] = [
        ("raw math-verify", raw_math_verify, 1),
        ("verl's math_verify", verl_math_verify, 1),
        ("verl's prime_math", verl_prime_math, 1),
        ("ours, 1 thread", ours, 1),
        (f"ours, {every} threads", ours, every),
    ]
    raw: dict[str, float] = {}
    for name, judge, threads in judges:
        with ThreadPoolExecutor(threads) as executor:  # workers and tables of parsers are made before the clock starts
            list(executor.map(lambda _, judge=judge: judge("x+1", "x+2"), range(4 * threads)))
        for kind in ("symbolic wrong", "symbolic right", "text"):
            per_s, agreed = rate(judge, pairs(kind, min(checks, MAX_CHECKS)), threads, seconds)
            raw.setdefault(kind, per_s)
            target = WANTED * raw[kind] if judge is ours and kind == "symbolic wrong" else None
            yield Figure(
                *("math", f"{kind}: {name}, {agreed:.0%} as they are", per_s, "1/s"),
                target="" if target is None else f"{target:.3g}",
                met=None if target is None else per_s >= target,
            )
    logging.disable(logging.NOTSET)
