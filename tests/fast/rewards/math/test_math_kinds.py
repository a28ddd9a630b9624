"""Kinds of answers that math-verify, or a verifier around it, judges wrongly: equations without solution, capitals that
are units, differences below floating point, dress, separators, names. One line of `math_kinds.jsonl` is one answer."""

import json
from pathlib import Path

import pytest

from verl_cipo.rewards.math import compute_score, workers

ROWS = [json.loads(line) for line in (Path(__file__).parent / "math_kinds.jsonl").read_text().splitlines()]
KINDS = list(dict.fromkeys(row["kind"] for row in ROWS))


@pytest.fixture(scope="module", autouse=True)
def no_worker_is_left():
    yield
    workers.close_shared_pools()


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind):
    rows = [row for row in ROWS if row["kind"] == kind]
    judged = [(row, compute_score("test", row["solution"], row["reference"])) for row in rows]
    assert [(row, result["outcome"]) for row, result in judged if result["acc"] != row["right"]] == []


@pytest.mark.parametrize("answer", ["1=2", "0=1", r"\pi=3", "2+2=5", r"\frac{1}{2}=\frac{1}{3}"])
def test_a_false_equation_answers_nothing(answer):
    references = {row["reference"] for row in ROWS}
    accepted = [
        gold for gold in references if compute_score("test", rf"\boxed{{{answer}}}", gold)["acc"] and gold != answer
    ]
    assert accepted == []


@pytest.mark.parametrize("answer", ["I", "x=x", r"\emptyset", r"\frac{0}{0}", "x^2=-3.7", r"\{\}", "E"])
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.nightly)])
def test_what_is_true_of_everything_or_nothing_answers_nothing(answer, step):
    """step: by day a third of the references, spread over all kinds."""
    references = sorted({row["reference"] for row in ROWS} - {"I", "E", r"\emptyset", "\u2205", "x=x"})[::step]
    accepted = [gold for gold in references if compute_score("test", rf"\boxed{{{answer}}}", gold)["acc"]]
    assert accepted == []
