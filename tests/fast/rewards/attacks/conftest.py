"""Hostile programs against the real bubblewrap backend; where it cannot run the tests fail and say what to install."""

import json

import pytest

from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.sandbox.pool import STARTERS, Worker

SETTINGS = {"workers": 1, "timeout_s": 10.0, "memory_mb": 512}


@pytest.fixture(scope="session")
def worker():
    """A worker of the bubblewrap backend, closed at the end."""
    worker = Worker(STARTERS["bubblewrap"], memory_mb=512)
    yield worker
    worker.close()


@pytest.fixture
def held(worker):
    """Runs a program that says "held" when its attack was refused and "escaped" when it was not."""

    def run(code: str, stdin: str = "", said: str = "held") -> None:
        run = worker.program(code, stdin, timeout_s=20, max_stdout=2**20)
        assert (run.end, run.code, run.stdout.decode().strip()) == ("exit", 0, said), run

    return run


@pytest.fixture
def judge():
    """judge(program, ground truth, ...): the whole verifier's verdict on a program."""

    def judge(code: str, ground_truth: dict, **settings) -> dict:
        text = f"This is it.\n```python\n{code}\n```\n"
        return compute_score("attack", text, json.dumps(ground_truth), **{**SETTINGS, **settings})

    return judge


@pytest.fixture(autouse=True)
def still_works(worker, judge):
    """No attack may spoil what comes after it."""
    yield
    run = worker.program("print(int(input()) + 1)", "41\n", timeout_s=20, max_stdout=100)
    assert (run.end, run.code, run.stdout) == ("exit", 0, b"42\n")
    right = {"inputs": ["1\n2", "3\n4"], "outputs": ["3", "7"], "fn_name": "add"}
    assert judge("def add(a, b):\n    return a + b", right)["acc"] is True
