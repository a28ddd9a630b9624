"""The verifiers take what the converters write: right answers pass and wrong ones do not."""

import json

import pyarrow.parquet as pq

from verl_cipo.rewards import code, math
from verl_cipo.rewards.sandbox.cases import read_tests

VERIFIERS = {"math": math.compute_score, "code": code.compute_score}


def test_a_right_answer_passes_and_a_wrong_one_does_not(name, case, converted):
    row = pq.read_table(converted(name, case)).to_pylist()[0]
    verify = VERIFIERS[row["ability"]]
    truth = row["reward_model"]["ground_truth"]
    for answer, wanted in zip(case.answers, (1.0, 0.0), strict=True):
        verdict = verify(row["data_source"], answer, truth, row["extra_info"])
        assert verdict["score"] == wanted, (answer, truth, verdict)


def test_every_ground_truth_for_the_code_verifier_has_one_of_its_layouts(name, case, converted):
    for row in pq.read_table(converted(name, case)).to_pylist():
        if row["ability"] == "code":
            truth = json.loads(row["reward_model"]["ground_truth"])
            tests = read_tests(row["reward_model"]["ground_truth"])
            assert len(tests) == len(truth.get("inputs") or truth.get("asserts") or [1])


def test_criticbench_correction_of_code_and_of_questions(cases, write, run, tmp_path):
    def row(id, source, answer):
        return {**cases["criticbench"].rows[0], "id": id, "question_source": source, "answer": answer}

    asserts = "from math import inf\nassert double(2) == 4\nassert double(0) < inf"
    check = "def check(candidate):\n    assert candidate(3) == 6\n\ncheck(double)"
    rows = [row(0, "GSM8K", [4]), row(1, "MBPP", [asserts]), row(2, "HumanEval", [check])]
    rows.append(row(3, "HotpotQA", ["The Hague", "Den Haag"]))
    write(tmp_path / "raw" / "test.jsonl", rows)
    assert run("criticbench", tmp_path / "raw", "--task", "correction", "--sources", "all") == 0
    rows = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert [row["ability"] for row in rows] == ["math", "code", "code", "math"]
    assert "5." in rows[0]["prompt"][0]["content"] and "wrong" not in rows[0]["prompt"][0]["content"]
    right, wrong = "```python\ndef double(n):\n    return n + n\n```", "```python\ndef double(n):\n    return n\n```"
    answers = [("\\boxed{4}", "\\boxed{5}"), (right, wrong), (right, wrong)]
    answers.append(("\\boxed{Den Haag}", "\\boxed{Leiden}"))
    for row, pair in zip(rows, answers, strict=True):
        verify, truth = VERIFIERS[row["ability"]], row["reward_model"]["ground_truth"]
        assert [verify("", answer, truth)["score"] for answer in pair] == [1.0, 0.0], truth


def test_the_test_of_humaneval_32_is_put_right(write, run, tmp_path):
    test = (
        "import math\n\ndef _poly(xs: list, x: float):\n"
        "    return sum([coeff * math.pow(x, i) for i, coeff in enumerate(xs)])\n\n"
        "def check(candidate):\n    inputs = [[[1, 2]], [[-6, 3]]]\n    results = [-0.5, 2.0]\n"
        "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n"
        "        assert _poly(*candidate(*inp), inp) <= 0.0001\n"
    )
    row = {
        **{"task_id": "HumanEval/32", "entry_point": "find_zero", "test": test},
        **{"prompt": "def find_zero(xs):\n", "canonical_solution": "    return -xs[0] / xs[1]\n"},
    }
    assert run("humaneval_plus", write(tmp_path / "test.jsonl", [row])) == 0
    (made,) = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    truth = made["reward_model"]["ground_truth"]
    for body, score in (("-xs[0] / xs[1]", 1.0), ("-xs[0] / xs[1] - 1", 0.0)):
        answer = f"```python\ndef find_zero(xs):\n    return {body}\n```"
        assert code.compute_score("", answer, truth)["score"] == score
