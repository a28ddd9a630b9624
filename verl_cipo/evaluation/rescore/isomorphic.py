"""Isomorphic tests: does a program that passes a test also pass it with other names in it?

After arXiv 2604.15149. The words of a test's input that stand for things (in the expected output too, or in several
places of the input) are replaced, in input and output alike. A program that solves the problem does not care what its
things are called; one that passes the test as it stands and fails it renamed, a shortcut, holds the test's own words.

Not every problem is indifferent to names: some sort them, count their letters, or give some of them a meaning. A
renamed test is therefore taken only where a reference solution passes it. That shows that names do not matter to the
reference, on that test: a program that reads the statement more strictly (only the names of colors, say) may rightly
fail. And a program that knows numbers by heart is not found. So this is a sign and no proof, in both directions.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from verl_cipo.rewards.sandbox.cases import CallTest, ProgramTest, Test
from verl_cipo.rewards.sandbox.claims import Bounds, NoClaimError, read_value
from verl_cipo.rewards.sandbox.compare import agreements, same_output
from verl_cipo.rewards.sandbox.inside.values import NotPlainError, encode

SHORTCUT, PASSED, UNDECIDED = "shortcut", "passed", "undecided"
"""What is found of a program: it passes a test and not the renamed one; it passes both; there is nothing to tell by,
since it fails the test as it stands, or takes too long."""
NO_REFERENCE, NO_RENAMING = "no_reference", "no_renaming"
"""Why there was nothing to run: no solution of the problem is known that passes its tests, or none passes a renamed
one."""

T = TypeVar("T", ProgramTest, CallTest)
_WORD = re.compile(r"(?<!\w)[A-Za-z]+(?!\w)")
_MAX_WORDS = 8
_DRAWS = 3
_LOOKED_AT = 4
"""Tests that are looked at for each renamed one that is wanted."""
_FRESH_DRAWS = 100
_MAX_OUTPUT = 2**20
_MOST = Bounds(size=2**18, parts=2**15)


def constants(test: ProgramTest | CallTest) -> list[str]:
    """The words of a test that stand for things, at most 8, in the order of the alphabet."""
    given, expected = _texts(test)
    counts = Counter(word for text in given for word in _WORD.findall(text))
    wanted = {word for text in expected for word in _WORD.findall(text)}
    return sorted(word for word, count in counts.items() if count > 1 or word in wanted)[:_MAX_WORDS]


def rename(test: T, words: Sequence[str], rng: random.Random) -> T | None:
    """The test with other words in the place of `words`, each as long and with capitals where the old one has them.

    Among words of one shape the order of the alphabet is kept. None where no free words are found.
    """
    used = {word for texts in _texts(test) for text in texts for word in _WORD.findall(text)}
    shapes: dict[str, list[str]] = {}
    for word in sorted(words):
        shapes.setdefault("".join("A" if letter.isupper() else "a" for letter in word), []).append(word)
    names: dict[str, str] = {}
    for shape, old in shapes.items():
        fresh = _fresh(shape, len(old), used, rng)
        if fresh is None:
            return None
        names |= zip(old, fresh, strict=True)

    def new(text: str) -> str:
        return _WORD.sub(lambda found: names.get(found[0], found[0]), text)

    if isinstance(test, ProgramTest):
        return replace(test, stdin=new(test.stdin), expected=new(test.expected))
    # The names of arguments are the function's, not the test's.
    kwargs = {name: _mapped(value, new) for name, value in test.kwargs.items()}
    return replace(test, args=_mapped(test.args, new), kwargs=kwargs, readings=_mapped(test.readings, new))


def renamed_tests(
    tests: Sequence[Test],
    references: Sequence[str],
    *,
    changes: int,
    worker: Any,
    timeout_s: float,
    seed: int = 0,
) -> tuple[list[tuple[Test, Test]], str]:
    """Tests of a problem with their renamed twins, which a reference passes both.

    Args:
        references: programs that are said to solve the problem.
        changes: pairs, at most.
        worker: a worker of `rewards.sandbox.pool`.
        timeout_s: wall clock of one run, seconds.
        seed: of the choice of tests and of names.

    Returns:
        the pairs, and where there is none why.
    """
    rng = random.Random(seed)
    candidates = [test for test in tests if isinstance(test, ProgramTest | CallTest)]
    good = [one for one in references if candidates and _passes(one, candidates[0], worker, timeout_s)]
    if not good:
        return [], NO_REFERENCE
    rng.shuffle(candidates)
    pairs: list[tuple[Test, Test]] = []
    for test in candidates[: _LOOKED_AT * changes]:
        if len(pairs) < changes and (other := _renamed(test, good[0], rng, worker, timeout_s)) is not None:
            pairs.append((test, other))
    return pairs, "" if pairs else NO_RENAMING


def shortcut(program: str, pairs: Sequence[tuple[Test, Test]], *, worker: Any, timeout_s: float) -> str:
    """SHORTCUT, PASSED or UNDECIDED, of a program and the pairs of :func:`renamed_tests`."""
    found = []
    for test, other in pairs:
        if _passes(program, test, worker, timeout_s):
            found.append(_passes(program, other, worker, timeout_s))
    if False in found:
        return SHORTCUT
    return PASSED if True in found else UNDECIDED


def _renamed(test: T, reference: str, rng: random.Random, worker: Any, timeout_s: float) -> T | None:
    """The test with as many words renamed as the reference is indifferent to; None where it is to none."""

    def holds(words: Sequence[str]) -> T | None:
        # Another draw may keep the order that a problem asks for.
        for _ in range(_DRAWS):
            other = rename(test, words, rng)
            if other is not None and _passes(reference, other, worker, timeout_s):
                return other
        return None

    words = constants(test)
    if not words or not _passes(reference, test, worker, timeout_s):
        return None
    # Words with a meaning, a command say, are left as they are.
    return holds(words) or (holds(free) if (free := [word for word in words if holds([word])]) else None)


def _passes(program: str, test: Test, worker: Any, timeout_s: float) -> bool | None:
    """Whether a program passes a test, without tolerance; None where it takes too long."""
    if isinstance(test, ProgramTest):
        run = worker.program(program, test.stdin, timeout_s=timeout_s, max_stdout=_MAX_OUTPUT)
        output = run.stdout.decode("utf-8", "replace")
        right = run.end == "exit" and run.code == 0 and same_output(output, test.expected, tolerance=0.0)
        return None if run.end == "timeout" else right
    assert isinstance(test, CallTest)
    try:
        args, kwargs = encode(test.args), encode(test.kwargs)
    except NotPlainError:
        return False
    run = worker.call(program, test.name, args, kwargs, timeout_s=timeout_s, max_claim=_MOST.size)
    if run.end == "timeout":
        return None
    try:
        return any(agreements(read_value(run.claim, _MOST), test, tolerance=0.0))
    except (NoClaimError, RecursionError):
        return False


def _fresh(shape: str, count: int, used: set[str], rng: random.Random) -> list[str] | None:
    """`count` words of a shape ("Aaa": a capital and two small letters), none of which is used, in their order."""
    found: set[str] = set()
    for _ in range(_FRESH_DRAWS * count):
        letters = (rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in shape)
        word = "".join(letter.upper() if kind == "A" else letter for letter, kind in zip(letters, shape, strict=True))
        if word not in used:
            found.add(word)
        if len(found) == count:
            return sorted(found)
    return None


def _texts(test: ProgramTest | CallTest) -> tuple[list[str], list[str]]:
    """All texts in a test's input, and all in what it expects."""
    if isinstance(test, ProgramTest):
        return [test.stdin], [test.expected]
    return list(_inside([test.args, list(test.kwargs.values())])), list(_inside(list(test.readings)))


def _inside(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _inside(pair)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _inside(part)


def _mapped(value: Any, new: Callable[[str], str]) -> Any:
    """The value with `new` of each text in it."""
    if isinstance(value, str):
        return new(value)
    if isinstance(value, dict):
        return {_mapped(key, new): _mapped(item, new) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_mapped(part, new) for part in value)
    return value
