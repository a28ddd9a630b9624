"""The evaluation sets: rows in the published layout, with what has to become of them. Loaded by conftest."""

import base64
import json
import pickle
import zlib

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
STDIN = (
    "\n\nWrite a Python program that reads standard input and prints the answer to standard output. "
    "Put the complete program in one fenced ```python block."
)
FENCE = "Put the complete program in one fenced ```python block."


def starter(code: str) -> str:
    return f"Complete this code, keeping its names and signature:\n\n```python\n{code}\n```\n\n{FENCE}"


def boxed(right: str, wrong: str) -> tuple[str, str]:
    return f"So it is \\boxed{{{right}}}.", f"So it is \\boxed{{{wrong}}}."


def program(right: str, wrong: str) -> tuple[str, str]:
    return f"```python\n{right}\n```", f"```python\n{wrong}\n```"


PRIVATE = json.dumps([{"input": "3 4\n", "output": "7\n", "testtype": "stdin"}])
PACKED = base64.b64encode(zlib.compress(pickle.dumps(PRIVATE))).decode()
EVALPLUS = """
import numpy as np
from math import inf

def is_floats(x) -> bool:
    # check if it is float; List[float]; Tuple[float]
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)):
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False


def assertion(out, exp, atol):
    exact_match = out == exp

    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if not exact_match and atol != 0:
        np.testing.assert_allclose(out, exp, atol=atol)
    else:
        assert exact_match
"""
HUMANEVAL_TEST = (
    EVALPLUS
    + """

def check(candidate):
    inputs = [[[1, 2, 3], 2], [[], 0]]
    results = [[2, 3], []]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""
)
HUMANEVAL_PROMPT = 'def at_least(numbers: list, low: int) -> list:\n    """The numbers >= low."""\n'
MBPP_TEST = (
    EVALPLUS
    + """
inputs = [[(3, 4), (4, 5)], [(1,), (1, 2)]]
results = [(4,), (1,)]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(shared(*inp), exp, 0)
"""
)
CODE = "class Solution:\n    def add(self, a: int, b: int) -> int:\n        "
SUM = "a, b = map(int, input().split())\nprint(a {} b)"

CASES = {
    "aime24": dict(
        split="test",
        file="data/train-00000-of-00001",
        rows=[
            {
                "id": 60,
                "problem": "Find $n$.",
                "solution": "Thus \\boxed{025}.",
                "answer": "025",
                "url": "",
                "year": "2024",
            },
        ],
        prompt="Find $n$." + BOXED,
        truths=["25"],
        extra={"id": "60"},
        answers=boxed("25", "52"),
    ),
    "aime25": dict(
        split="test",
        file="test",
        rows=[{"problem": "Find the sum of all bases.", "answer": "70", "id": "0"}],
        prompt="Find the sum of all bases." + BOXED,
        truths=["70"],
        extra={"id": "0"},
        answers=boxed("70", "7"),
    ),
    "amc23": dict(
        split="test",
        file="test-00000-of-00001",
        rows=[{"id": 0, "question": "How far is it?", "answer": "27.0", "url": ""}],
        prompt="How far is it?" + BOXED,
        truths=["27"],
        extra={"id": "0"},
        answers=boxed("27", "26"),
    ),
    "math500": dict(
        split="test",
        file="test",
        rows=[
            {
                "problem": "Convert $(0,3)$ to polar coordinates.",
                "solution": "It is $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}$.",
                "answer": "\\left( 3, \\frac{\\pi}{2} \\right)",
                "subject": "Precalculus",
                "level": 2,
                "unique_id": "test/precalculus/807.json",
            }
        ],
        prompt="Convert $(0,3)$ to polar coordinates." + BOXED,
        truths=["\\left( 3, \\frac{\\pi}{2} \\right)"],
        extra={"id": "test/precalculus/807.json", "subject": "Precalculus", "level": "2"},
        answers=boxed("(3, \\pi/2)", "(3, \\pi)"),
    ),
    "minerva": dict(
        split="test",
        file="test",
        rows=[{"question": "Find the diameter in $\\mathrm{cm}$.", "answer": "1.6"}],
        prompt="Find the diameter in $\\mathrm{cm}$." + BOXED,
        truths=["1.6"],
        extra={"id": ""},
        answers=boxed("1.6", "16"),
    ),
    "olympiadbench": dict(
        split="test",
        file="OlympiadBench/OE_TO_maths_en_COMP/OE_TO_maths_en_COMP",
        rows=[
            {
                "id": 1606,
                "question": "Find all $x$ with $x^2=1$.",
                "solution": ["By symmetry."],
                "final_answer": ["$1$,$-1$"],
                "context": "Let $x$ be real.",
                "modality": "Text-only",
                "difficulty": "Competition",
                "is_multiple_answer": True,
                "unit": "km",
                "answer_type": "Numerical",
                "error": None,
                "subfield": "Algebra",
            },
            {
                "id": 1607,
                "question": "How steep?",
                "solution": ["See."],
                "final_answer": ["\\$5", "6"],
                "context": None,
                "modality": "Text-only",
                "difficulty": "Competition",
                "is_multiple_answer": False,
                "unit": None,
                "answer_type": "Numerical",
                "error": "1e-1",
                "subfield": "Geometry",
            },
        ],
        prompt="Let $x$ be real.\n\nFind all $x$ with $x^2=1$."
        + BOXED
        + " If there are several answers, give them all in one \\boxed{}, separated by commas."
        " The answer is in the unit km; leave the unit out.",
        truths=["1,-1", "\\$5, 6"],
        extra={"id": "1606", "is_multiple_answer": True, "unit": "km", "answer_type": "Numerical", "tolerance": None},
        answers=boxed("-1, 1", "1"),
    ),
    "livecodebench": dict(
        split="test",
        file="test6",
        rows=[
            {
                "question_title": "Sum",
                "question_content": "Add two numbers.",
                "platform": "atcoder",
                "question_id": "abc_a",
                "contest_id": "abc",
                "contest_date": "2025-01-04T00:00:00",
                "starter_code": "",
                "difficulty": "easy",
                "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
                "private_test_cases": PACKED,
                "metadata": "{}",
            },
            {
                "question_title": "Add",
                "question_content": "Return the sum.",
                "platform": "leetcode",
                "question_id": "3000",
                "contest_id": "w1",
                "contest_date": "2025-02-01T00:00:00",
                "starter_code": CODE,
                "difficulty": "easy",
                "public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}]),
                "private_test_cases": "[]",
                "metadata": '{"func_name": "add"}',
            },
            {
                "question_title": "Old",
                "question_content": "Old.",
                "platform": "leetcode",
                "question_id": "1",
                "contest_id": "w0",
                "contest_date": "2024-12-31T23:59:59",
                "starter_code": "",
                "difficulty": "easy",
                "public_test_cases": "[]",
                "private_test_cases": "[]",
                "metadata": "{}",
            },
        ],
        options=("--start_date", "2025-01-01"),
        prompt="Add two numbers." + STDIN,
        truths=[
            {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]},
            {"inputs": ["1\n2"], "outputs": ["3"], "fn_name": "add"},
        ],
        extra={"id": "abc_a", "contest_date": "2025-01-04", "platform": "atcoder", "difficulty": "easy"},
        answers=program(SUM.format("+"), SUM.format("*")),
        dropped={"outside --start_date and --end_date": 1},
    ),
    "humaneval_plus": dict(
        split="test",
        file="data/test-00000-of-00001",
        rows=[
            {
                "task_id": "HumanEval/0",
                "prompt": HUMANEVAL_PROMPT,
                "canonical_solution": "    return [n for n in numbers if n >= low]\n",
                "entry_point": "at_least",
                "test": HUMANEVAL_TEST,
            }
        ],
        prompt=starter(HUMANEVAL_PROMPT.rstrip()),
        truths=[{"inputs": [[[1, 2, 3], 2], [[], 0]], "outputs": [[2, 3], []], "fn_name": "at_least"}],
        extra={"id": "HumanEval/0"},
        answers=program(
            HUMANEVAL_PROMPT + "    return [n for n in numbers if n >= low]", HUMANEVAL_PROMPT + "    return numbers"
        ),
    ),
    "mbpp_plus": dict(
        split="test",
        file="data/test-00000-of-00001",
        rows=[
            {
                "task_id": 2,
                "code": "def shared(a, b):\n  return tuple(x for x in a if x in b)",
                "prompt": "Write a function to find the shared elements.",
                "source_file": "Benchmark Questions Verification V2.ipynb",
                "test_imports": [],
                "test_list": ["assert set(shared((3, 4), (4, 5))) == set((4,))"],
                "test": MBPP_TEST,
            }
        ],
        prompt="Write a function to find the shared elements.\n\nYour function has to pass these tests:\n\n"
        "assert set(shared((3, 4), (4, 5))) == set((4,))\n\n"
        f"Write a Python function named `shared` that solves this. {FENCE}",
        truths=[{"asserts": ["assert shared((3, 4), (4, 5)) == (4,)", "assert shared((1,), (1, 2)) == (1,)"]}],
        extra={"id": "2"},
        answers=program("def shared(a, b):\n  return tuple(x for x in a if x in b)", "def shared(a, b):\n  return a"),
    ),
    "criticbench": dict(
        split="test",
        file="test",
        rows=[
            {
                "id": 0,
                "question": "What is 2+2?",
                "question_source": "GSM8K",
                "question_type": "math",
                "response": "It is 5.",
                "response_label": False,
                "answer": ["4"],
            },
            {
                "id": 1,
                "question": "Who?",
                "question_source": "HotpotQA",
                "question_type": "commonsense",
                "response": "Me.",
                "response_label": True,
                "answer": ["me", "I"],
            },
        ],
        options=("--task", "critique"),
        prompt="What is 2+2?\n\nHere is a response to this:\n<response>\nIt is 5.\n</response>\n\n"
        "Is the response right? Check it step by step, then put your verdict, correct or wrong, within \\boxed{}.",
        truths=["wrong"],
        extra={"id": "0", "task": "critique", "source": "GSM8K", "response_correct": False, "answers": ["4"]},
        answers=boxed("wrong", "correct"),
        dropped={"source not asked for (--sources)": 1},
    ),
    "debugbench": dict(
        split="test",
        file="debugbench_test",
        rows=[
            {
                "slug": "add-two",
                "category": "logic error",
                "subtype": "operation error",
                "language": "python3",
                "level": "easy",
                "release_time": 1679828439,
                "question": "Return the sum.",
                "examples": ["Input: a = 1, b = 2\nOutput: 3\nExplanation: 1 + 2.", "Input: a = 0, b = 5\r\nOutput: 5"],
                "constraints": "0 <= a <= 9",
                "solution": CODE + "return a + b",
                "solution_explanation": "",
                "buggy_code": "\n" + CODE + "return a * b\n",
                "bug_explanation": "wrong sign",
            },
            {
                "slug": "add-two",
                "category": "syntax error",
                "subtype": "illegal keywords",
                "language": "cpp",
                "level": "easy",
                "release_time": 1679828439,
                "question": "Return the sum.",
                "examples": ["Input: a = 1, b = 2\nOutput: 3"],
                "constraints": "",
                "solution": "int add;",
                "solution_explanation": "",
                "buggy_code": "int ad;",
                "bug_explanation": "",
            },
        ],
        prompt="Return the sum.\n\nExample 1:\nInput: a = 1, b = 2\nOutput: 3\nExplanation: 1 + 2.\n\n"
        "Example 2:\nInput: a = 0, b = 5\r\nOutput: 5\n\nConstraints:\n0 <= a <= 9\n\n"
        f"Here is a program for this problem that has a bug:\n\n```python\n{CODE}return a * b\n```\n\n"
        "Find the bug, then put the complete corrected program in one fenced ```python block, keeping its names.",
        truths=[{"inputs": [[1, 2], [0, 5]], "outputs": [3, 5], "fn_name": "add"}],
        extra={"id": "add-two", "response": CODE + "return a * b", "response_correct": False, "level": "easy"},
        answers=program(CODE + "return a + b", CODE + "return a * b"),
        dropped={"not Python": 1},
    ),
}
