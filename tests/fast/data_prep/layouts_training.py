"""The training sets: rows in the published layout, with what has to become of them. Loaded by conftest."""

import json

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
STDIN = (
    "\n\nWrite a Python program that reads standard input and prints the answer to standard output. "
    "Put the complete program in one fenced ```python block."
)
SUM = "a, b = map(int, input().split())\nprint(a {} b)"


def boxed(right: str, wrong: str) -> tuple[str, str]:
    return f"So it is \\boxed{{{right}}}.", f"So it is \\boxed{{{wrong}}}."


def program(right: str, wrong: str) -> tuple[str, str]:
    return f"```python\n{right}\n```", f"```python\n{wrong}\n```"


CASES = {
    "gsm8k": dict(
        split="train",
        file="main/train-00000-of-00001",
        rows=[
            {"question": "Ann has 1,000 eggs and buys 5.", "answer": "1000 + 5 = <<1000+5=1005>>1005\n#### 1,005"},
            {"question": "Tom owes 3.", "answer": "He has -3.\n#### -3"},
        ],
        prompt='Ann has 1,000 eggs and buys 5. Let\'s think step by step and output the final answer after "####".',
        truths=["1005", "-3"],
        extra={"answer": "1000 + 5 = <<1000+5=1005>>1005\n#### 1,005"},
        answers=("1000 + 5\n#### 1005", "1000 + 5\n#### 1004"),
    ),
    "math_lighteval": dict(
        split="train",
        file="data/train-00000-of-00001",
        rows=[
            {
                "problem": "What is $\\frac12+\\frac14$?",
                "level": "Level 1",
                "type": "Algebra",
                "solution": "First \\boxed{2} parts, then $\\boxed{\\frac{3}{4}}$.",
            },
            {"problem": "How many?", "level": "Level 5", "type": "Counting", "solution": "There are $\\boxed 2$."},
        ],
        prompt="What is $\\frac12+\\frac14$?" + BOXED,
        truths=["\\frac{3}{4}", "2"],
        extra={"level": "Level 1", "type": "Algebra"},
        answers=boxed("0.75", "0.7"),
    ),
    "dapo_math": dict(
        split="train",
        file="data/dapo-math-17k-train",
        rows=[
            {
                "data_source": "math_dapo",
                "prompt": [
                    {
                        "content": "Solve the following math problem step by step. The last line of your response "
                        "should be of the form Answer: $Answer (without quotes) where $Answer is the answer to the "
                        "problem.\n\n"
                        'Find $2+2$.\n\nRemember to put your answer on its own line after "Answer:".',
                        "role": "user",
                    }
                ],
                "ability": "MATH",
                "reward_model": {"ground_truth": "4", "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": "9a9b6eb4"},
            }
        ],
        prompt="Find $2+2$." + BOXED,
        truths=["4"],
        extra={"id": "9a9b6eb4", "question": "Find $2+2$."},
        answers=boxed("4", "5"),
    ),
    "deepscaler": dict(
        split="train",
        file="deepscaler",
        rows=[
            {"problem": "Solve $x^2=2$, $x>0$.", "answer": "\\sqrt{2}", "solution": ""},
            {"problem": "And $x=3$?", "answer": "\\boxed{3}", "solution": "Clear."},
            {"problem": "And $x=4$?", "answer": None, "solution": "It is \\boxed{4}."},
        ],
        prompt="Solve $x^2=2$, $x>0$." + BOXED,
        truths=["\\sqrt{2}", "3", "4"],
        extra={},
        answers=boxed("2^{1/2}", "2"),
    ),
    "orz_math": dict(
        split="train",
        file="orz_math_57k_collected",
        rows=[
            [{"from": "human", "value": "What is $3!$?"}, {"from": "assistant", "ground_truth": {"value": "6"}}],
        ],
        prompt="What is $3!$?" + BOXED,
        truths=["6"],
        extra={},
        answers=boxed("6", "9"),
        formats=(".json", ".jsonl"),
    ),
    "apps": dict(
        split="train",
        file="train",
        rows=[
            {
                "problem_id": 7,
                "question": "Add two numbers.",
                "solutions": json.dumps(["print(1)", "import sys\nprint(sum(map(int, sys.stdin.read().split())))"]),
                "input_output": json.dumps({"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}),
                "difficulty": "interview",
                "url": "https://example.com/7",
                "starter_code": "",
            },
            {
                "problem_id": 8,
                "question": "Add.",
                "solutions": "",
                "input_output": json.dumps({"fn_name": "add", "inputs": [[1, 2]], "outputs": [3]}),
                "difficulty": "introductory",
                "url": "",
                "starter_code": "\ndef add(a, b):\n\t",
            },
            {"problem_id": 9, "question": "None.", "input_output": "", "difficulty": "", "starter_code": ""},
        ],
        prompt="Add two numbers." + STDIN,
        truths=[
            {"inputs": ["1 2\n", "3\n4"], "outputs": ["3\n", "7"]},
            {"inputs": [[1, 2]], "outputs": [3], "fn_name": "add"},
        ],
        extra={"id": "7", "difficulty": "interview"},
        answers=program("import sys\nprint(sum(map(int, sys.stdin.read().split())))", "print(3)"),
        dropped={"no tests": 1},
    ),
    "taco": dict(
        split="train",
        file="train/data-00000-of-00009",
        rows=[
            {
                "question": "Add two numbers.",
                "solutions": "[]",
                "starter_code": "",
                "input_output": json.dumps({"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]}),
                "difficulty": "EASY",
                "raw_tags": "[]",
                "name": "A",
                "source": "codeforces",
                "url": "https://example.com/a",
                "Expected Auxiliary Space": None,
                "time_limit": "2 seconds",
            }
        ],
        prompt="Add two numbers." + STDIN,
        truths=[{"inputs": ["1 2", "3 4"], "outputs": ["3", "7"]}],
        extra={"id": "https://example.com/a", "difficulty": "EASY", "source": "codeforces"},
        answers=program(SUM.format("+"), SUM.format("*")),
    ),
    "code_contests": dict(
        split="train",
        file="data/train-00000-of-00039",
        rows=[
            {
                "name": "1_A. Sum",
                "description": "Add two numbers.\n",
                "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
                "private_tests": {"input": [], "output": []},
                "generated_tests": {"input": ["3 4\n"], "output": ["7\n"]},
                "source": 2,
                "difficulty": 7,
                "cf_rating": 800,
                "solutions": {"language": [2, 3], "solution": ["int main() {}", SUM.format("+")]},
                "input_file": "",
                "output_file": "",
            },
            {
                "name": "2_A. File",
                "description": "Read a file.",
                "public_tests": {"input": ["1"], "output": ["1"]},
                "private_tests": {"input": [], "output": []},
                "generated_tests": {"input": [], "output": []},
                "source": 2,
                "difficulty": 7,
                "cf_rating": 0,
                "solutions": {"language": [], "solution": []},
                "input_file": "input.txt",
                "output_file": "",
            },
        ],
        prompt="Add two numbers." + STDIN,
        truths=[{"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}],
        extra={"id": "1_A. Sum", "difficulty": "7", "cf_rating": "800"},
        answers=program(SUM.format("+"), SUM.format("*")),
        dropped={"reads or writes a named file": 1},
    ),
}
