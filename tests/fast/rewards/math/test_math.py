"""The math verifier through its public function, verl's loader and reward manager, and a Ray actor."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

from tests.conftest import ROOT
from verl_cipo.rewards.math import compute_score, workers
from verl_cipo.rewards.math.answers import last_answer
from verl_cipo.rewards.outcome import Outcome, VerifierInfrastructureError, result

PAIRS = [json.loads(line) for line in (Path(__file__).parent / "math_pairs.jsonl").read_text().splitlines()]
DOC = (ROOT / "docs" / "math-verifier.md").read_text()


def outcome(reference, answer, **kwargs):
    return compute_score("test", rf"So it is $\boxed{{{answer}}}$.", reference, **kwargs)["outcome"]


@pytest.fixture(scope="module", autouse=True)
def no_worker_is_left():
    yield
    workers.close_shared_pools()


# The table


def test_agreement_with_the_table_but_for_what_the_docs_list(capsys):
    disagreements = []
    for pair in PAIRS:
        judged = compute_score(pair["set"], pair["solution"], pair["reference"])
        if judged["acc"] != pair["right"]:
            disagreements.append(
                (pair["set"], pair["reference"], judged["pred"], "right" if pair["right"] else "wrong")
            )
    right = sum(pair["right"] for pair in PAIRS)
    with capsys.disabled():
        print(f"\nmath verifier agrees on {len(PAIRS) - len(disagreements)} of {len(PAIRS)} answers ({right} right)")
    row = re.compile(r"^\| (\w+) \| `(.+?)` \| `(.+?)` \| (right|wrong) \|", re.MULTILINE)
    assert disagreements == row.findall(DOC.partition("## Known disagreements")[2])
    assert f"agrees on {len(PAIRS) - len(disagreements)} of {len(PAIRS)}" in DOC


def test_the_table_is_large_and_has_both_kinds_for_every_set():
    assert len({(pair["set"], repr(pair["reference"]), pair["solution"]) for pair in PAIRS}) == len(PAIRS) >= 200
    sets = {"GSM8K", "MATH", "AIME", "AMC", "Minerva", "OlympiadBench", "DAPO", "DeepScaleR"}
    assert {(pair["set"], pair["right"]) for pair in PAIRS} == {
        (name, right) for name in sets for right in (True, False)
    }


# What is returned


def test_every_outcome_has_the_same_keys():
    results = [
        compute_score("test", r"\boxed{x+1}", "1+x"),
        compute_score("test", r"\boxed{x+2}", "1+x"),
        compute_score("test", "no answer", "1+x"),
        compute_score("test", r"\boxed{9^{9^{9^{9}}}x}", "1+x", timeout_s=0.5),
    ]
    assert results == [
        {"score": 1.0, "acc": True, "pred": "x+1", "outcome": "right"},
        {"score": 0.0, "acc": False, "pred": "x+2", "outcome": "wrong"},
        {"score": 0.0, "acc": False, "pred": "", "outcome": "unparsable"},
        {"score": 0.0, "acc": False, "pred": "9^{9^{9^{9}}}x", "outcome": "timeout"},
    ]
    assert [type(value) for value in results[0].values()] == [float, bool, str, str]


def test_an_infrastructure_error_is_never_a_score():
    with pytest.raises(ValueError, match="has no score"):
        result(Outcome.INFRASTRUCTURE_ERROR, "")
    assert VerifierInfrastructureError("x").outcome is Outcome.INFRASTRUCTURE_ERROR


def test_a_worker_that_cannot_start_raises_and_scores_nothing(monkeypatch):
    workers.close_shared_pools()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(VerifierInfrastructureError, match="cannot start a worker for verl_cipo.rewards.math.judge"):
        compute_score("test", r"\boxed{x+1}", "1+x")


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("1" * 900, "1" * 200),
        ("1" * 10**6, "1" * 200),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\ud800", r"\ud800"),
        ("\u2028\u202e", r"\u2028\u202e"),
        ("\ud83d" * 200, (r"\ud83d" * 34)[:200]),
    ],
)
def test_pred_is_one_short_printable_line(answer, shown):
    pred = compute_score("test", rf"\boxed{{{answer}}}", "1")["pred"]
    assert pred == shown
    assert pred.isprintable() and pred.encode()


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"x \vee y", "7"),
        (r"\sum_{k=1}^n k", r"\frac{n(n+1)}{2}"),
        (r"x \equiv 1 \pmod{3}", "x = 4"),
        ("f(n) equals 2 where n is even and otherwise equals 0", "1, 2"),
    ],
)
def test_what_a_reference_says_that_cannot_be_read_is_undecided(reference, answer):
    assert outcome(reference, answer) == "undecided"
    assert outcome(reference, reference) == "right"


def test_an_answer_that_cannot_be_read_is_not_undecided():
    assert outcome("x+1", r"x \vee 7") == "unparsable"
    assert outcome("x+1", r"\frac{0}{0}") == "unparsable"


@pytest.mark.parametrize("text", [r"\boxed{{12 {} ?}}", "#### 12 {} ?"])
@pytest.mark.timeout(20)
def test_a_loop_of_units_is_judged(text):
    for unit in (r"\text{ cm} ", r"\mu m "):
        assert compute_score("test", text.format(unit * 90), "12")["outcome"] != "right"
    assert outcome(r"\frac{dy}{dx}", rf"\frac{{d}}{{{'d' * 60}!}}") == "wrong"


# Arguments


@pytest.mark.parametrize(
    ("kwargs", "error", "said"),
    [
        ({"timeout": 5}, TypeError, r"unknown arguments \['timeout'\].*timeout_s, workers, memory_mb"),
        ({"timeout_s": 0}, ValueError, "reward_kwargs.timeout_s = 0 must be above 0"),
        ({"workers": 0}, ValueError, "reward_kwargs.workers = 0"),
        ({"memory_mb": -1}, ValueError, "reward_kwargs.memory_mb = -1"),
        ({"max_chars": 0}, ValueError, "reward_kwargs.max_chars = 0"),
    ],
)
def test_bad_arguments_are_named(kwargs, error, said):
    with pytest.raises(error, match=said):
        compute_score("test", r"\boxed{1}", "1", **kwargs)


def test_a_ground_truth_without_an_answer_is_a_fault_of_the_data():
    with pytest.raises(ValueError, match="ground truth of data source 'my/set': .* holds no answer"):
        compute_score("my/set", r"\boxed{1}", "")


def test_the_last_number_counts_only_on_request():
    assert compute_score("test", "It is 5.", "5")["outcome"] == "unparsable"
    assert compute_score("test", "It is 5.", "5", last_number=True)["outcome"] == "right"


def test_longer_answers_than_allowed_are_not_read():
    assert outcome("5", "5 \\text{ apples}") == "right"
    assert outcome("5", "5 \\text{ apples}", max_chars=10) == "unparsable"


def test_any_of_several_references_will_do():
    assert outcome(["x+1", "x+2"], "2+x") == "right"
    assert outcome(["x+1", "x+2"], "3+x") == "wrong"
    assert outcome("x+1", r"x \vee 7") == "unparsable"
    assert outcome(["x+1", "Evelyn"], r"x \vee 7") == "wrong"


# Properties


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_the_last_of_two_boxes_decides(first, last):
    score = compute_score("test", rf"\boxed{{{first}}} then \boxed{{{last}}}", str(first))["score"]
    assert score == float(first == last)


@given(st.lists(st.integers(0, 99), min_size=2, max_size=6, unique=True), st.integers(0, 99))
def test_a_list_never_passes_for_one_of_its_members(numbers, gold):
    for separator in (", ", "; ", r" \text{ or } ", " or ", r"\ ", " "):
        assert outcome(str(gold), separator.join(map(str, numbers))) != "right"


@given(st.text(alphabet="\\{}[]()^_+-*/=<>,;|&!%$ 0129xyabctimesfraqlogn\n", max_size=60))
def test_any_answer_gets_a_verdict(answer):
    assert outcome("x+1", answer, timeout_s=2) in {"right", "wrong", "unparsable", "timeout"}


# What must not pass


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("3", "2, 3, 4"),
        ("3", r"2 \text{ or } 3"),
        ("3", r"\pm 3"),
        ("3", "[3, 4]"),
        ("3", r"\text{3 or 4}"),
        ("3", r"3 \text{ (or maybe 4)}"),
        ("3", "1+2"),
        ("3", r"\sqrt{9}"),
        ("3", r"\lfloor \pi \rfloor"),
        ("3", "x"),
        ("3", "3x"),
        ("3", r"3 \ne 4"),
        ("3", r"\frac{3}{0}"),
        ("3", r"\frac{0}{0}"),
        ("3", r"\infty"),
        ("3", r"3?"),
        ("12", "1 2"),
        (r"\sqrt{2}", r"\sqrt{2}, 7"),
        (r"\sqrt{2}", r"\sqrt{2} or 7"),
        (r"\sqrt{2}", r"\sqrt{2} \text{ or 7}"),
        (r"\sqrt{2}", r"\sqrt{2} \text{ if } x = 7"),
        (r"\sqrt{2}", r"\sqrt{2} \vee 7"),
        (r"\sqrt{2}", r"\sqrt{2} \\ 7"),
        (r"\sqrt{2}", r"\pm\sqrt{2}"),
        (r"\sqrt{2}", r"\min(\sqrt{2}, 7)"),
        (r"\sqrt{2}", r"\begin{cases} \sqrt{2} \\ 7 \end{cases}"),
        (r"\sqrt{2}", r"\frac{0}{0}"),
        (r"\sqrt{2}", ""),
        (r"\frac{\pi}{4}", r"\int_0^1 \frac{1}{1+x^2} dx"),
        (r"e", r"\lim_{n\to\infty} (1+1/n)^n"),
        ("m g h", "m"),
        ("x^2+y^2=1", "1"),
        ("x=5", "y=5"),
        ("1:2:3", "1:3:2"),
        ("Evelyn", "Evenly"),
        ("Evelyn", "Evelyn and Carla"),
        ("C", "A, B, C, D"),
        ("C", r"\text{(B) or (C)}"),
        ("B", "B. 5 C. 6"),
        ("B", "B) x C) y"),
        # words behind a number
        ("5", r"5 \text{ squared}"),
        ("5", r"5 \text{ cubed}"),
        ("5", r"5 \text{ twenty-two}"),
        ("5", r"5 \text{ choose two}"),
        ("5", r"5 \text{ times two}"),
        ("5", r"5 \text{ through ten}"),
        ("5", r"5 \text{ otherwise six}"),
        (r"\$5", r"5 \text{ cents}"),
        # chains
        (r"\frac{1}{3}", r"\frac{1}{3} = 0.344"),
        (r"16\pi", r"16\pi = 51.27"),
        ("0.5", r"0.5 = 60\%"),
        ("5", "x = 4 = 5"),
        ("(3,5)", "y=3,x=5"),
        ("(1,2,3)", "z=1,y=2,x=3"),
        ("(1,3)", "b=3,a=1"),
        ("(y,x)=(5,3)", "x=5,y=3"),
        ("y=5,x=3", "(3,5)"),
        ("5", "4 = x = 5"),
        ("1000", "x=1000=999.9"),
        ("50", "x=50=49.9"),
        ("100", "100 = 99.99999"),
        ("100", "x = 100 = 99.99999"),
        ("3.3", r"x=\frac{11}{3}=3.3"),
        ("1668", r"x=\frac{5000}{3}=1,668"),
        ("5", "5 = x = 4"),
        ("5", r"12 \equiv 5 \pmod{10}"),
        # differences beyond the numbers of an expression
        ("|x-25|", "25-x"),
        ("|x-100|", "100-x"),
        ("|y-x-100|", "100-y+x"),
        (r"\sqrt{(x-30)^2}", "30-x"),
        (r"\frac{|x-40|}{x-40}", "-1"),
        (r"\lfloor \frac{n}{100} \rfloor", "0"),
        ("y = |x-25|", "y = 25-x"),
        # equations with a factor of their own
        ("x+y=1", "(x+y-1)(x-5)=0"),
        ("x+y=1", "(x+y-1)(x^2-2)=0"),
        ("y=2x", "y(x-1)=2x(x-1)"),
        ("(3,5)", "y=3, x=5"),
        (r"\frac{1}{2}", r"\frac{1}{2} \text{ or } 0.6"),
        ("C", "(B)(C)"),
        # words at a symbolic answer
        (r"\sqrt{13}", r"\sqrt{13} \text{ squared}"),
        (r"\sqrt{13}", r"\sqrt{13} \text{ million}"),
        (r"\sqrt{13}", r"\text{twice: } \sqrt{13}"),
        (r"\sqrt{13}", r"\sqrt{13} \text{ divided by two}"),
        (r"\pi", r"\pi \text{ plus one}"),
        (r"\pi", r"\text{negative: } \pi"),
        # an equation whose last side is still to be worked out, or is another value
        (r"\frac{\pi^2}{6}", r"S = \sum_{n=1}^{\infty} \frac{1}{n^2}"),
        (r"\frac{\pi^2}{6}", r"\sum_{n=1}^{\infty} \frac{1}{n^2} = \frac{\pi^2}{7}"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^n k"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^nk"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1} ^ n k = \sum_{j=1}^n j"),
        (r"\frac{n(n+1)}{2}", r"\sum_{\{k=1\}}^n k"),
        (r"\frac{\pi}{4}", r"\int_{t=0}^{t=1} \frac{1}{1+t^2} dt"),
    ],
)
def test_what_does_not_pass(reference, answer):
    assert outcome(reference, answer) in {"wrong", "unparsable"}


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("6", r"\gcd(12,18)=6"),
        ("12", r"\text{lcm}(4,6)=12"),
        ("6", "f(2,3)=6"),
        ("10", "C(5,2)=10"),
        ("0.3", "P(X > 2)=0.3"),
        ("0.5", r"\frac{1}{2} = 50\%"),
        (r"50\%", r"\frac{1}{2} = 50\%"),
        ("0.5", r"0.5 = 50\%"),
        (r"\frac13", r"\frac13 = 0.333"),
        (r"x = \frac13", r"x = \frac13 = 0.333"),
        ("0.333", r"\frac13 = 0.333"),
        (r"2\sqrt3", r"2\sqrt3 = 3.46"),
        (r"16\pi", r"A = 16\pi = 50.27"),
        ("2.5", r"\frac{5}{2} \text{ or } 2.5"),
        ("0.5", r"50\% \text{ or } 0.5"),
        ("11+x", r"x+11 \text{ or } 11+x"),
        (r"\$0.50", r"50 \text{ cents}"),
        (r"\$5", r"5 \text{ dollars}"),
        ("5", r"5 \text{ (five)}"),
        ("5", r"5 \text{ times}"),
        ("5", r"5 \text{ two-digit numbers}"),
        ("5", r"5 \text{ four digit numbers}"),
        ("15", r"15 \text{ two point shots}"),
        ("5", r"5 \text{ fewer}"),
        ("5", r"5 \text{ units squared}"),
        ("5", r"\text{The answer is 5}"),
        ("5", "Total: 5"),
        (r"\frac{3}{4}", r"\frac{{3}}{{4}}"),
        ("(3,5)", "y=5,x=3"),
        ("(1,2,3)", "z=3,y=2,x=1"),
        ("(3,5)", "a=3,b=5"),
        ("(3,1)", "b=3,a=1"),
        ("y=5,x=3", "(5,3)"),
        ("y=5,x=3", "(y,x)=(5,3)"),
        ("(y,x)=(5,3)", "y=5,x=3"),
        ("(y,x)=(5,3)", "x=3,y=5"),
        (r"(0,\infty)", r"\mathbb{R}^+"),
        (r"[0,\infty)", r"\mathbb{R}_{\ge 0}"),
        ("(1,2),(3,4)", r"(x,y)\in\{(1,2),(3,4)\}"),
        ("7", r"17 \equiv 7 \pmod{10}"),
        ("B", "B. 5"),
        ("|x-25|", "|25-x|"),
        ("xy=1", r"y=\frac1x"),
        ("y(x-2)=x+1", r"y=\frac{x+1}{x-2}"),
        ("x+y=1", "(x+y-1)(x^2+1)=0"),
        (r"\sqrt{2}", r"\max_{x} f(x) = \sqrt{2}"),
        (r"\frac{\pi^2}{6}", r"\sum_{n=1}^\infty \frac{1}{n^2} = \frac{\pi^2}{6}"),
        (r"\ln 2", r"I = \int_1^2 \frac{dx}{x} = \ln 2"),
    ],
)
def test_other_ways_to_say_it(reference, answer):
    assert outcome(reference, answer) == "right"


@pytest.mark.parametrize(
    ("reference", "solution", "judged"),
    [
        (r"$\boxed{3}$ and $\boxed{5}$", r"$\boxed{3}$ and $\boxed{5}$", "right"),
        (r"$\boxed{3}$ and $\boxed{5}$", r"\boxed{5}", "wrong"),
        ("11+x", r"This yields $\boxed{x+11}$ or $\boxed{11+x}$.", "right"),
        ("5", "We get $\\boxed{5}$.\n\n**Final Answer:** $5$ \u2705", "right"),
        ("5", "We get $\\boxed{6}$.\n\nThus the final answer is $5$, and we are done.", "right"),
        ("5", "We get $\\boxed{5}$.\n\nThus the final answer is $6$, and we are done.", "wrong"),
        ("5", r"We get $\boxed{5}$. The final answer is in \boxed{} as required.", "right"),
        ("5", r"We get $\boxed{5}$. The final answer is \boxed{", "unparsable"),
        ("4", r"\boxed{4} or \boxed{?}", "wrong"),
        ("5", "\\boxed{4} wait\n#### 5 Apples", "right"),
        ("4", "\\boxed{4} wait\n#### 5 Apples", "wrong"),
        ("5", "The final answer is $5$; $6$; $7$", "wrong"),
        ("5", "The final answer is $5$; and $6$", "wrong"),
        ("5", "The final answer is $5$ as well as $6$", "wrong"),
        ("5", "The final answer is $5$; we are done", "right"),
        ("5", "The final answer is $5$ (the smallest one)", "right"),
        ("5", "The final answer is $5$ (and its conjugate)", "wrong"),
        ("5", "The final answer is $5$, with the opposite sign", "wrong"),
        ("5", "The final answer is $5$, per cent", "wrong"),
        ("5", "The final answer is $5$, IV", "wrong"),
        ("5", "The final answer is $5$ is wrong", "wrong"),
        ("5", "The final answer is $5$ is half of it", "wrong"),
        ("5", "The final answer is $5$: its reciprocal", "wrong"),
    ],
)
def test_where_the_answer_is(reference, solution, judged):
    assert compute_score("test", solution, reference)["outcome"] == judged


def test_one_answer_is_not_two_because_of_an_approximation():
    assert outcome(r"\sqrt{2}", r"\sqrt{2} \approx 1.41") == "right"
    assert outcome("1.41", r"\sqrt{2} \approx 1.41") == "wrong"


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("180", r"3\text{ hours} = 180\text{ minutes}"),
        ("24", r"d=2\text{ feet}=24\text{ inches}"),
        ("25", r"x=0.25=25\%"),
        ("3.33", r"v=\frac{10}{3}=3.33\text{ m/s}"),
        ("667", r"x=\frac{2000}{3}=667"),
        ("1667", r"x=\frac{5000}{3}=1,667"),
        ("2e-19", r"E=1.98\times10^{-19}=2.0\times10^{-19}"),
    ],
)
def test_a_chain_may_end_with_the_reference_in_another_unit_or_rounded(reference, answer):
    assert outcome(reference, answer) == "right"


def test_an_expression_of_the_question_is_no_answer_to_it():
    question = r"Factor $x^2 - 4$ completely. \boxed{...}"
    assert outcome("(x-2)(x+2)", "x^2-4") == "right"
    assert outcome("(x-2)(x+2)", "x^2-4", extra_info={"question": question}) == "wrong"
    assert outcome("(x-2)(x+2)", "(x+2)(x-2)", extra_info={"question": question}) == "right"
    # The reference itself may stand in the question, as in: which is larger?
    assert outcome("x^2-4", "x^2 - 4", extra_info={"question": question}) == "right"
    assert outcome("x^2-4", "(x-2)(x+2)", extra_info={"question": None}) == "right"


@pytest.mark.parametrize(
    "question",
    [
        "Factor $x^2-4$.",
        "Factor. x^2 - 4",
        "Factor $(x^2-4)$",
        r"Factor \[ x^{2}-4 \]",
        "Let $f(x)=x^2-4$. Factor it.",
        "Simplify **$x^2-4$**.",
        "- $x^2-4$",
        "* $x^2-4$",
        "_$x^2-4$_",
        "$x^2-4$ - show work",
        "$x^2-4$!",
        "Simplify \u2014 $x^2-4$",
    ],
)
def test_a_copied_term_is_no_answer(question):
    for answer in ("x^2-4", r"x^2-4 \text{ or } x^2-4"):
        assert outcome("(x-2)(x+2)", answer, extra_info={"question": question}) == "wrong"


def test_a_copied_term_with_the_value_of_a_calculator_is_no_answer():
    question, reference = r"Find the exact value of $\sin 75^\circ$.", r"\frac{\sqrt6+\sqrt2}{4}"
    for answer, judged in (
        (r"\sin 75^\circ = 0.966", "wrong"),
        (r"A = \sin 75^\circ = 0.966", "wrong"),
        (r"\sin 75^\circ = \frac{\sqrt2+\sqrt6}{4}", "right"),
        (r"\sin 75^\circ = \frac{\sqrt2}{4}(\sqrt{3}+1)", "right"),
    ):
        assert outcome(reference, answer, extra_info={"question": question}) == judged


def test_a_copied_term_is_no_answer_where_the_reference_is_a_letter_of_the_question():
    question = r"Simplify $\frac{x^2}{x}$ for $x > 0$."
    assert outcome("x", r"\frac{x^2}{x}", extra_info={"question": question}) == "wrong"


@pytest.mark.parametrize(
    ("reference", "answer", "question"),
    [
        ("f(x)=x+1", "x+1", "Find all $f$ with $f(0)=1$ and $f(x+1)=f(x)+1$."),
        ("a_n = 1+n", "n+1", "Let $a_{n+1}=a_n+1$. Find $a_n$."),
        (r"\frac{\pi}{2}", r"\pi/2", r"Find the largest $x \in [0, \pi/2]$."),
        (r"x=\sqrt2", r"\sqrt{2}", r"Let $f(x) = x - \sqrt{2}$. Find its root."),
        (r"x = \frac{n^2-n}{2}", r"\frac{n(n-1)}{2}", r"Show that $\frac{n(n-1)}{2}+1$ are enough. Find $x$."),
        (r"f^{-1}(x)=\frac{x}{x-1}", r"\frac{x}{x-1}", r"Find the inverse of $f(x)=\frac{x}{x-1}$."),
    ],
)
def test_an_answer_that_stands_in_the_question_by_chance(reference, answer, question):
    assert outcome(reference, answer, extra_info={"question": question}) == "right"


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9^{9}}}",
        "x+(10^9)!",
        "(" * 400 + "x" + ")" * 400,
        "{" * 400 + "x" + "}" * 400,
        r"\sqrt{" * 120 + "x" + "}" * 120,
        r"\frac{1}{" * 90 + "x" + "}" * 90,
        "(x+1)^{100000}",
        r"x^{10^{10^{10}}}",
        "1" * 999 + "^{x}",
        "x" * 999,
        "x^" * 499 + "x",
        "-" * 998 + "x",
        "[[" * 400,
        r"\begin{pmatrix}" + "1 & " * 200 + r"1 \end{pmatrix}",
        "\x00\ud800\U0001f600",
    ],
)
def test_hostile_answers_end_in_time_without_passing(answer):
    assert outcome(r"\frac{x}{2}", answer, timeout_s=0.3) in {"wrong", "unparsable", "timeout"}
    assert outcome("1+x", "x+1") == "right"


@pytest.mark.parametrize("solution", ["a" * 10**6, r"\boxed{" + "1" * 10**6 + "}", r"\boxed{" * 10**5, "{" * 10**6])
def test_long_solutions_are_unparsable(solution):
    assert compute_score("test", solution, "x+1")["outcome"] == "unparsable"


AUDIT = r"""
import json, re, sys
from verl_cipo.rewards.math.judge import judge, warm_up
warm_up()
# SymPy makes a number of a numeral's digits by evaluating it, and writes some of its own functions.
harmless = re.compile(r"(Integer|Float) \('?[0-9.]+'?\s?\)|from sympy import \*|def monomial_\w+\(.*", re.DOTALL)
evaluated = []
def hook(event, args):
    if event == "compile" and args[0] is not None and not str(args[1]).endswith(".py"):
        source = args[0].decode() if isinstance(args[0], bytes) else str(args[0])
        if not harmless.fullmatch(source):
            evaluated.append(source[:80])
    if event in ("os.system", "subprocess.Popen", "socket.connect"):
        evaluated.append(event)
sys.addaudithook(hook)
for gold, answer in json.loads(sys.stdin.read()):
    judge(gold, answer)
print(json.dumps(evaluated))
eval("len('1')")
print(evaluated)
"""


def test_no_text_is_evaluated_as_python():
    hostile = ["__import__('os').system('true')", "exec('1')", "(1).__class__", r"\text{__import__('os')}", "1+2*3"]
    pairs = [["x+1", answer] for answer in hostile]
    pairs += [[p["reference"], last_answer(p["solution"])] for p in PAIRS if p["set"] in ("MATH", "DeepScaleR")]
    pairs = [[gold, answer] for gold, answer in pairs if answer]
    run = subprocess.run(
        [sys.executable, "-c", AUDIT],
        input=json.dumps(pairs),
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    # The second line shows that the hook does see an evaluation.
    assert run.stdout.splitlines() == ["[]", "[\"len('1')\"]"]


# verl's way to it


class Tokenizer:
    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids.tolist()))


def reward_manager(**reward_kwargs):
    config = OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": {
                    "path": "pkg://verl_cipo.rewards.math",
                    "name": "compute_score",
                    "reward_kwargs": reward_kwargs,
                }
            }
        }
    )
    return NaiveRewardManager(config, Tokenizer(), get_custom_reward_fn(config), reward_router_address="host:1")


def sample(solution: str, ground_truth: str) -> DataProto:
    ids = torch.tensor([[ord(character) for character in solution]])
    batch = TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1)
    row = {"data_source": "s", "reward_model": {"ground_truth": ground_truth}, "extra_info": {"index": 0}}
    return DataProto(batch=batch, non_tensor_batch={key: np.array([value], dtype=object) for key, value in row.items()})


def test_through_verls_loader_and_reward_manager():
    manager = reward_manager(timeout_s=1)
    solutions = [r"\boxed{2} no \boxed{x+1}", r"\boxed{9^{9^{9^{9}}}x}", r"\boxed{x}", "nothing"]

    async def run():
        return await asyncio.gather(*[manager.run_single(sample(solution, "1+x")) for solution in solutions])

    rewards = manager.loop.run_until_complete(run())
    assert [r["reward_extra_info"]["outcome"] for r in rewards] == ["right", "timeout", "wrong", "unparsable"]
    assert [r["reward_score"] for r in rewards] == [1.0, 0.0, 0.0, 0.0]
    assert {tuple(r["reward_extra_info"]) for r in rewards} == {("score", "acc", "pred", "outcome")}


def test_verl_is_told_of_unknown_reward_kwargs():
    manager = reward_manager(time_out=1)
    with pytest.raises(TypeError, match="time_out"):
        manager.loop.run_until_complete(manager.run_single(sample(r"\boxed{1}", "1")))


@pytest.mark.nightly
def test_in_a_ray_actor():
    class Scorer:
        async def score(self, solution):
            # As verl's reward loop: in a thread of the event loop's executor.
            return await asyncio.get_running_loop().run_in_executor(None, compute_score, "s", solution, "1+x")

    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        actor = ray.remote(Scorer).remote()
        solutions = [r"\boxed{x+1}", r"\boxed{x}"] * 3
        scores = ray.get([actor.score.remote(solution) for solution in solutions], timeout=120)
    finally:
        ray.shutdown()
    assert [score["outcome"] for score in scores] == ["right", "wrong"] * 3
