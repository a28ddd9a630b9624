"""Figures of a suite: pass@K, second turns, critiques, each over problems."""

from dataclasses import replace

import pytest

from tests.fast.evaluation.suite.scripted import ScriptedEngine, benchmark, generation, problems
from verl_cipo.evaluation.suite.generate import run_benchmark
from verl_cipo.evaluation.suite.results import benchmark_results, critique_figures, markdown
from verl_cipo.evaluation.suite.verifier import Verifier
from verl_cipo.rewards import critique as critique_reward
from verl_cipo.rewards.math import compute_score


def results(folder, made, asked, answer, reward=compute_score) -> dict:
    """Of a benchmark whose answers come from a function of the prompt, or stand in a list."""
    said = iter(answer if isinstance(answer, list) else ())
    engine = ScriptedEngine((lambda prompt, seed: next(said)) if isinstance(answer, list) else answer)
    run_benchmark(made, asked, engine=engine, verifier=Verifier(reward), how=generation(folder))
    return benchmark_results(made, folder / "made_up", 7)


def test_pass_at_k_of_a_benchmark(tmp_path):
    """Problem 1 is right once of 4: pass@2 = 1 - C(3, 2) / C(4, 2) = 1/2; problem 0 never."""
    said = ["hm"] * 4 + ["hm", r"\boxed{1}", "hm", "hm"]
    found = results(tmp_path, benchmark(n=4, corrections=0), problems(2), said)
    assert [found["turn1"][f"pass@{k}"]["estimate"] for k in (1, 2, 4)] == [0.125, 0.25, 0.5]
    assert found["turn1"]["response_tokens"]["estimate"] == pytest.approx((7 * 2 + 9) / 8)
    (row,) = [line for line in markdown({"made_up": found}).splitlines() if "made_up" in line]
    assert row.startswith("| made_up | 2 | 4 | 50.0 [0.0, ") and "| 12.5 [0.0, " in row


def test_a_prompt_that_the_data_repeats_is_one_problem(tmp_path):
    """Problem 0 stands there twice and is right 3 times of 4, problem 1 never: pass@2 = (1 + 0) / 2."""
    asked = [problems(1)[0], replace(problems(1)[0], key="made-up-7"), problems(2)[1]]
    said = [r"\boxed{0}", r"\boxed{0}", r"\boxed{0}", "hm", "hm", "hm"]
    found = results(tmp_path, benchmark(corrections=1), asked, said + [r"\boxed{0}"] * 6)
    assert (found["problems"], found["attempts"]) == (2, 6)
    assert found["turn1"]["pass@1"]["estimate"] == pytest.approx(3 / 8)
    assert found["turn1"]["pass@2"]["estimate"] == pytest.approx(1 / 2)
    assert found["corrections"]["c2c"]["problems"] == 1 and found["corrections"]["w2c"]["problems"] == 2
    # Of problem 0 the other three attempts are all right: one correction of two wrong attempts' three.
    assert found["corrections"]["retry"]["estimate"] == pytest.approx(1 / 3)


def test_corrections_of_given_responses_are_figures_too(tmp_path):
    asked = [
        replace(one, extra_info={"response": rf"\boxed{{{i}}}", "response_correct": i < 2}, group="ab"[i % 2])
        for i, one in enumerate(problems(4))
    ]
    said = [text for text in (r"\boxed{0}", r"\boxed{7}", r"\boxed{2} ", "hm") for _ in range(2)]
    found = results(tmp_path, benchmark(n=2, corrections=0, group="source"), asked, said)
    figures = {name: figure["estimate"] for name, figure in found["corrections"].items()}
    assert (figures["c2c"], figures["c2w"], figures["w2c"], figures["w2w"]) == (0.5, 0.5, 0.5, 0.5)
    assert (figures["over_correction"], figures["copy_rate"]) == (0.25, 0.5)
    assert "retry" not in figures
    assert {name: group["pass@1"]["estimate"] for name, group in found["groups"].items()} == {"a": 1.0, "b": 0.0}


def critique(problem: int, gts: str, pred: str) -> dict:
    return {"input": str(problem), "gts": gts, "pred": pred}


def test_f1_is_of_calling_a_response_wrong():
    # 3 hits, 1 miss, 2 false alarms, 1 rightly called correct
    pairs = [("wrong", "wrong")] * 3 + [("wrong", "correct")] + [("correct", "wrong")] * 2 + [("correct", "correct")]
    found = critique_figures([critique(i, *pair) for i, pair in enumerate(pairs)])
    assert found["accuracy"].estimate == pytest.approx(4 / 7)
    assert found["precision"].estimate == pytest.approx(3 / 5)
    assert found["recall"].estimate == pytest.approx(3 / 4)
    assert found["f1"].estimate == pytest.approx(2 * 3 / (5 + 4))
    assert found["unreadable"].estimate == 0.0


def test_a_critique_that_says_neither_is_a_mistake_either_way():
    rows = [critique(0, "wrong", "wrong"), critique(1, "wrong", ""), critique(2, "correct", "")]
    found = critique_figures(rows)
    assert found["f1"].estimate == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert found["unreadable"].estimate == pytest.approx(2 / 3)
    assert "f1" not in critique_figures([critique(0, "correct", "correct")] * 2)


def test_the_critique_task_from_prompt_to_figures(tmp_path):
    asked = [
        replace(one, ground_truth=label, group=group)
        for one, label, group in zip(problems(3), ["wrong", "wrong", "correct"], ["MATH", "GSM8K", "MATH"], strict=True)
    ]
    made = benchmark(verifier="critique", corrections=0, n=1, group="source")
    found = results(tmp_path, made, asked, lambda prompt, seed: r"\boxed{wrong}", critique_reward.compute_score)
    assert found["critique"]["f1"]["estimate"] == pytest.approx(4 / 5)
    assert found["turn1"]["pass@1"]["estimate"] == pytest.approx(2 / 3)
    assert found["groups"]["GSM8K"]["accuracy"]["estimate"] == 1.0
    assert found["groups"]["MATH"]["accuracy"]["estimate"] == 0.5
    assert "corrections" not in found
