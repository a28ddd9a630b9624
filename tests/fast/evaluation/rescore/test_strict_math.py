import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from verl_cipo.evaluation.rescore.strict_math import CONFIRMED, REJECTED, UNDECIDED, judge
from verl_cipo.rewards.math.answers import reference_answers

PAIRS = [
    json.loads(line)
    for line in (ROOT / "tests" / "fast" / "rewards" / "math" / "math_pairs.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize(
    "solution, gold, wanted",
    [
        (r"\boxed{18}", "18", (CONFIRMED, "same_text")),
        ("so\n#### 1,234", "1234", (CONFIRMED, "same_value")),
        (r"\boxed{\dfrac{3}{4}}", r"\frac34", (CONFIRMED, "same_text")),
        (r"\boxed{3\frac12}", "3.5", (CONFIRMED, "same_value")),
        (r"\boxed{4.5 \times 10^{3}}", "4500", (CONFIRMED, "same_value")),
        (r"\boxed{50\%}", "0.5", (CONFIRMED, "same_value")),
        (r"\boxed{5 \text{ cm}}", "5", (CONFIRMED, "same_value")),
        (r"\boxed{2\sqrt{2}}", r"\sqrt{8}", (CONFIRMED, "same_value")),
        (r"\boxed{(x+2)(x-2)}", "x^2-4", (CONFIRMED, "same_value")),
        (r"\boxed{1,2}", r"\{2, 1\}", (CONFIRMED, "same_value")),
        (r"\boxed{x = 5}", "5", (CONFIRMED, "same_text")),
        ("The final answer is $5$. I hope it is correct.", "5", (CONFIRMED, "same_text")),
        ("\\boxed{2} is wrong.\nIt is \\boxed{3}", "3", (CONFIRMED, "same_text")),
        (r"Not \boxed{2}, which I checked, but \boxed{3}", "3", (CONFIRMED, "same_text")),
        (r"<think>\boxed{4}</think>\boxed{3}", "3", (CONFIRMED, "same_text")),
        (r"<think>\boxed{3}</think>I give up", "3", (REJECTED, "no_answer")),
        ("It may be 3 or so", "3", (REJECTED, "no_answer")),
        (r"\boxed{2} or \boxed{3}", "3", (REJECTED, "several_answers")),
        (r"\boxed{3, 4}", "4", (REJECTED, "several_answers")),
        (r"\boxed{17}", "18", (REJECTED, "another_value")),
        (r"\boxed{0.33}", r"\frac{1}{3}", (REJECTED, "another_value")),
        (r"\boxed{[1, 2)}", "(1, 2)", (REJECTED, "another_value")),
        (r"\boxed{(2, 1)}", "(1, 2)", (REJECTED, "another_value")),
        (r"\boxed{5 \text{ m}}", r"5 \text{ cm}", (REJECTED, "another_unit")),
        (r"\boxed{2^4}", "16", (REJECTED, "not_evaluated")),
        (r"\boxed{\sqrt{36+64}-3}", "7", (REJECTED, "not_evaluated")),
        (r"\boxed{x \in \mathbb{R}}", "x > 2", (UNDECIDED, "unread")),
        (r"\boxed{\pm 3}", "3", (UNDECIDED, "unread")),
        (r"\boxed{2 \text{ million}}", "2", (UNDECIDED, "unread")),
        (r"\boxed{\left(\frac{3}{4}\right)}", r"\frac{3}{4}", (CONFIRMED, "same_text")),
        (r"\boxed{x = (\frac{3}{4})}", "0.75", (CONFIRMED, "same_value")),
        (r"\boxed{(x+1)(x-1)}", "x^2-1", (CONFIRMED, "same_value")),
        (r"\boxed{{25}}", "25", (CONFIRMED, "same_text")),
        (r"\boxed{{1,234}}", "1234", (UNDECIDED, "unread")),
        (r"\boxed{\{2, 1\}}", "{1, 2}", (CONFIRMED, "same_value")),
        (r"\boxed{\{1, 3\}}", "{1, 2}", (REJECTED, "another_value")),
        (r"\boxed{(1, 2)}", "{1, 2}", (REJECTED, "another_value")),
        (r"\boxed{3 1/2}", r"3\frac{1}{2}", (CONFIRMED, "same_text")),
        (r"\boxed{3 1/2}", "3 1/2", (CONFIRMED, "same_text")),
        (r"\boxed{-3\ 1/2}", "-3.5", (CONFIRMED, "same_value")),
        (r"\boxed{3 1/2}", "31/2", (REJECTED, "another_value")),
        (r"\boxed{12 34/2}", "617", (UNDECIDED, "unread")),
        (r"\boxed{10 km/h}", "10", (CONFIRMED, "same_value")),
        (r"\boxed{10 km/h}", r"10 \text{ km/h}", (CONFIRMED, "same_value")),
        (r"\boxed{11 km/h}", "10", (REJECTED, "another_value")),
        (r"\boxed{10 m/s}", "10 km/h", (REJECTED, "another_unit")),
        (r"\boxed{10 kmph}", "10 km/h", (UNDECIDED, "unread")),
        (r"\boxed{\frac{10m}{s}}", "10m/s", (UNDECIDED, "unread")),
        (r"\boxed{\log 2}", r"\ln 2", (UNDECIDED, "unread")),
        ("#### **5**", "5", (CONFIRMED, "same_text")),
        ("**Answer:** **5**", "5", (CONFIRMED, "same_text")),
        ("The answer is 4. No, the answer is 5.", "5", (CONFIRMED, "same_text")),
        ("So \\boxed{5}\n\n#### 1. Verification\n5 = 5", "5", (CONFIRMED, "same_text")),
        ("#### 1. Read\nWe see.\n#### 2. Add\n#### 7", "7", (CONFIRMED, "same_text")),
        ("#### 7. It is seven", "7", (CONFIRMED, "same_text")),
    ],
)
def test_verdicts(solution, gold, wanted):
    assert judge(solution, gold) == wanted


def test_an_expression_of_the_question_is_no_answer():
    answer = r"\boxed{x^2 - 4}"
    assert judge(answer, "(x-2)(x+2)", "Factor $x^2-4$.") == (REJECTED, "copied_from_question")
    assert judge(answer, "(x-2)(x+2)", "Multiply $(x-2)(x+2)$.") == (CONFIRMED, "same_value")


def test_on_the_hand_written_pairs_it_confirms_nothing_wrong():
    """It is to be independent of the verifier and surer than it, and may leave open what it cannot read."""
    found: dict[tuple, list] = {}
    for pair in PAIRS:
        outcome, _ = judge(pair["solution"], reference_answers(pair["reference"])[0])
        found.setdefault((pair["right"], outcome), []).append(pair["solution"])
    assert (False, CONFIRMED) not in found
    assert found[True, REJECTED] == [r"Putting this together, we get $\boxed{2^4}$."]
    decided = sum(len(pairs) for (_, outcome), pairs in found.items() if outcome != UNDECIDED)
    assert decided >= 175, f"only {decided} of {len(PAIRS)} decided"


def test_on_kinds_that_are_often_misjudged_it_confirms_nothing_wrong_and_rejects_nothing_right():
    rows = [
        json.loads(line)
        for line in (ROOT / "tests" / "fast" / "rewards" / "math" / "math_kinds.jsonl").read_text().splitlines()
    ]
    judged = [
        (row["reference"], row["solution"], row["right"], judge(row["solution"], row["reference"])) for row in rows
    ]
    opposite = {True: REJECTED, False: CONFIRMED}
    assert [row for row in judged if row[3][0] == opposite[row[2]]] == []
    assert sum(row[3][0] != UNDECIDED for row in judged) >= 100


@pytest.mark.parametrize(
    "answer",
    ["9^{9^{9^{9}}}", "(" * 249 + "x" + ")" * 249, r"\frac{1}{0}", "x" * 10_000, "{", r"\sqrt[0]{x}", "10^999"],
)
def test_hostile_answers_are_quick_and_raise_nothing(answer):
    started = time.process_time()
    assert judge(rf"\boxed{{{answer}}}", "x+1")[0] in (UNDECIDED, REJECTED)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "wait so it is ", "answer ", "answer is ", "answer is: : ", "#### ", "#", "#### * ", "\\boxed{\n", "\\boxed{",
        "{(", "1 ", "1 1/", "\\text{", "1a", ". ", "</think", "final answer\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("around", ["\\boxed{{5}}\n{}", "\\boxed{{5}}{}\\boxed{{6}}", "\\boxed{{{}}}", "#### {}"])
def test_the_time_of_a_long_text_is_linear(text, around):
    long = around.format(text * (120_000 // len(text)))
    started = time.process_time()
    judge(long, "5")
    assert time.process_time() - started < 2


def test_boxes_in_boxes_and_digits_without_end_raise_nothing():
    assert judge("\\boxed{" * 3 + "5" + "}" * 3, "5") == (CONFIRMED, "same_text")
    assert judge("\\boxed{" * 3000 + "5" + "}" * 3000, "5")[0] in (UNDECIDED, REJECTED)
    assert judge(rf"\boxed{{{'1' * 6000}/3}}", "5")[0] in (UNDECIDED, REJECTED)


def test_what_is_too_long_or_too_big_is_left_open():
    assert judge(rf"\boxed{{{'+'.join('x' * 200)}}}", "200x") == (CONFIRMED, "same_value")
    assert judge(rf"\boxed{{{'+'.join('x' * 300)}}}", "300x") == (UNDECIDED, "unread")
    assert judge(rf"\boxed{{x+{'9' * 400}}}", f"x+{'8' * 400}") == (UNDECIDED, "unread")


@settings(deadline=None)
@given(st.text(max_size=60), st.text(min_size=1, max_size=20))
def test_no_text_raises(solution, gold):
    assert judge(solution, gold)[0] in (CONFIRMED, REJECTED, UNDECIDED)
    assert judge(rf"\boxed{{{solution}}}", gold)[0] in (CONFIRMED, REJECTED, UNDECIDED)


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_whole_numbers_are_exact(one, other):
    assert (judge(rf"\boxed{{{one}}}", str(other))[0] == CONFIRMED) == (one == other)
