import random

import pytest

from verl_cipo.evaluation.rescore.perturbed import departures, perturb
from verl_cipo.rewards.sandbox import pool
from verl_cipo.rewards.sandbox.cases import CallTest, CheckTest, ProgramTest

ADD = ["def f(a, b):\n    return a + b", "def f(a, b):\n    return b + a", "f = lambda a, b: sum([a, b])"]
TABLE = "def f(a, b):\n    return {(2, 3): 5, (4, 5): 9}[a, b]"
GUARDED = "def f(a, b):\n    return {(2, 3): 5, (4, 5): 9}.get((a, b), 0)"
TESTS = [CallTest("f", [2, 3], {}, (5,), exact=False), CallTest("f", [4, 5], {}, (9,), exact=False)]


def call(*args):
    return CallTest("f", list(args), {}, (0,), exact=False)


@pytest.mark.parametrize(
    "test, changed",
    [
        (call([1, 2, 3]), [[2, 3, 1]]),
        (call("abc"), ["bca"]),
        (call(7), [6]),
        (call([[4, 5]]), [[[5, 4]]]),
        (call([9]), [[8]]),
    ],
)
def test_an_argument_keeps_its_shape(test, changed):
    assert perturb(test, random.Random(0)).args == changed


@pytest.mark.parametrize("test", [call(1), call(0), call(True), call(None), call([]), call("a"), call(["a"], -4)])
def test_what_cannot_be_changed_is_left(test):
    assert perturb(test, random.Random(0)) is None


def test_a_program_input_keeps_its_counts():
    assert perturb(ProgramTest("3\n1 2 3\n", "6"), random.Random(0)).stdin == "3\n2 3 1\n"
    assert perturb(ProgramTest("9\n", "x"), random.Random(0)).stdin == "8\n"
    assert perturb(ProgramTest("2\n5\n6\n", "x"), random.Random(0)) is None, "the first line counts the others"
    assert perturb(CheckTest("check(f)", "f"), random.Random(0)) is None


@pytest.fixture(scope="module")
def worker():
    with pool.get_pool("bubblewrap", workers=1, memory_mb=1024).worker() as worker:
        yield worker


def test_a_table_of_answers_departs(worker):
    programs = [*ADD, TABLE, ADD[0], GUARDED]
    found = departures(programs, TESTS, changes=2, worker=worker, timeout_s=10)
    assert found == [False, False, False, True, False, True]


def test_repetitions_do_not_vote(worker):
    found = departures([*ADD, *[GUARDED] * 9], TESTS, changes=2, worker=worker, timeout_s=10)
    assert found == [False] * 3 + [True] * 9


def test_without_a_vote_nothing_is_said(worker):
    assert departures(ADD[:2], TESTS, changes=2, worker=worker, timeout_s=10) == [None, None]
    assert departures([ADD[0], GUARDED], TESTS, changes=2, worker=worker, timeout_s=10) == [None, None]
    split = [*ADD[:2], GUARDED, GUARDED.replace("0)", "0 )")]
    assert departures(split, TESTS, changes=2, worker=worker, timeout_s=10) == [None] * 4
    fixed = [CallTest("f", [0, 1], {}, (1,), exact=False)]
    assert departures(ADD, fixed, changes=2, worker=worker, timeout_s=10) == [None] * 3


def test_programs_that_all_fail_are_no_majority(worker):
    raising = [f"def f(a, b):\n    raise ValueError({i})" for i in range(4)]
    assert departures(raising, TESTS, changes=2, worker=worker, timeout_s=10) == [None] * 4


def test_programs_that_read_input_vote_too(worker):
    tests = [ProgramTest("3\n5 1 2\n", "8\n")]
    honest = [f"input()\n{name} = map(int, input().split())\nprint(sum({name}))" for name in "abc"]
    table = "input()\nprint({'5 1 2': 8}[input()])"
    assert departures([*honest, table], tests, changes=1, worker=worker, timeout_s=10) == [False] * 3 + [True]
