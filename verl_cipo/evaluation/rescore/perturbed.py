"""Perturbed tests: do programs that passed a problem's tests still agree on inputs that they were not tuned to?

The right output of a changed input is not known, so the programs vote, each different program once. One that departs
from the majority is rejected: it holds a table of answers, or treats the known inputs apart. Changes keep the shape of
an input (its elements rotated, a number lowered by one), but may break a rule of the problem that only its statement
tells, so this is a sign and no proof; and where most programs of a problem cheat in the same way, it sees nothing.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from verl_cipo.rewards.sandbox.cases import CallTest, ProgramTest, Test
from verl_cipo.rewards.sandbox.claims import Bounds, NoClaimError, canonical, read_value
from verl_cipo.rewards.sandbox.inside.values import NotPlainError, encode

VOTERS = 3
"""Fewer different programs than this are no vote."""
_MAX_OUTPUT = 2**20
_MOST = Bounds(size=2**18, parts=2**15)


def perturb(test: Test, rng: random.Random) -> Test | None:
    """The test with another input, expecting nothing; None where no part of it can be changed."""
    if isinstance(test, CallTest):
        places = [i for i, arg in enumerate(test.args) if _changed(arg, rng) != arg]
        if not places:
            return None
        args = list(test.args)
        place = rng.choice(places)
        args[place] = _changed(args[place], rng)
        return CallTest(test.name, args, test.kwargs, (), exact=False)
    if isinstance(test, ProgramTest):
        lines = test.stdin.split("\n")
        places = [i for i, line in enumerate(lines) if _changed_line(line, alone=len(lines) < 3) != line]
        if not places:
            return None
        place = rng.choice(places)
        lines[place] = _changed_line(lines[place], alone=len(lines) < 3)
        return ProgramTest("\n".join(lines), "")
    return None


def _changed(value: Any, rng: random.Random) -> Any:
    """A value of the same type and shape: lists and texts rotated by one, numbers above 1 lowered by 1."""
    if isinstance(value, list | str) and len(value) > 1:
        return value[1:] + value[:1]
    if isinstance(value, list) and value:
        return [_changed(value[0], rng)]
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return value - 1
    return value


def _changed_line(line: str, *, alone: bool) -> str:
    """A line of three numbers or more rotated; a number alone in the input lowered. Counts of lines stay true."""
    tokens = line.split()
    if len(tokens) >= 3:
        return " ".join(tokens[1:] + tokens[:1])
    if alone and len(tokens) == 1 and tokens[0].isdecimal() and int(tokens[0]) > 1:
        return str(int(tokens[0]) - 1)
    return line


def departures(
    programs: Sequence[str],
    tests: Sequence[Test],
    *,
    changes: int,
    worker: Any,
    timeout_s: float,
    seed: int = 0,
) -> list[bool | None]:
    """For each program, whether it departs from the majority on a changed input.

    Args:
        programs: sources that passed the tests, repetitions among them.
        tests: of their problem.
        changes: changed inputs, at most.
        worker: a worker of `rewards.sandbox.pool`.
        timeout_s: wall clock of one run, seconds.
        seed: of the choice of tests and changes.

    Returns:
        None for all of them where there is no vote: fewer than VOTERS different programs, no input that can be changed,
        or none on which more than half of the programs give the same output.
    """
    different = list(dict.fromkeys(programs))
    if len(different) < VOTERS:
        return [None] * len(programs)
    rng = random.Random(seed)
    candidates = [test for test in tests if isinstance(test, CallTest | ProgramTest)]
    rng.shuffle(candidates)
    inputs = [changed for test in candidates if (changed := perturb(test, rng)) is not None][:changes]
    departing: Counter[str] = Counter()
    voted = False
    for test in inputs:
        outputs = {program: _output(program, test, worker, timeout_s) for program in different}
        (most, votes), *_ = Counter(outputs.values()).most_common(1)
        if most is None or 2 * votes <= len(different):
            continue
        voted = True
        departing.update(program for program, output in outputs.items() if output != most)
    return [departing[program] > 0 if voted else None for program in programs]


def _output(program: str, test: Test, worker: Any, timeout_s: float) -> str | None:
    """What a program makes of an input, as text to compare; None when it fails or takes too long."""
    if isinstance(test, ProgramTest):
        run = worker.program(program, test.stdin, timeout_s=timeout_s, max_stdout=_MAX_OUTPUT)
        if run.end != "exit" or run.code != 0:
            return None
        return " ".join(run.stdout.decode("utf-8", "replace").split())
    try:
        args, kwargs = encode(test.args), encode(test.kwargs)
    except NotPlainError:
        return None
    run = worker.call(program, test.name, args, kwargs, timeout_s=timeout_s, max_claim=_MOST.size)
    try:
        return canonical(read_value(run.claim, _MOST))
    except (NoClaimError, RecursionError):
        return None
