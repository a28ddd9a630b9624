import pytest

from tests.fast.evaluation.suite.scripted import ScriptedEngine, benchmark, generation, problems
from verl_cipo.evaluation.suite.generate import run_benchmark
from verl_cipo.evaluation.suite.results import benchmark_results
from verl_cipo.evaluation.suite.verdicts import Verifier
from verl_cipo.rewards.critique import compute_score, critique_figures, read_verdict


@pytest.mark.parametrize(
    "text, verdict",
    [
        (r"It is \boxed{correct}.", True),
        (r"\boxed{\text{Wrong}}", False),
        (r"At first \boxed{correct}, but no: \boxed{ incorrect }", False),
        ("The response is wrong.", None),
        (r"\boxed{42}", None),
        ("", None),
    ],
)
def test_the_verdict_is_what_the_last_box_says(text, verdict):
    assert read_verdict(text) is verdict


def test_a_verdict_is_scored_against_the_label():
    right = compute_score("s", r"\boxed{wrong}", "wrong")
    assert right == {"score": 1.0, "acc": True, "pred": "wrong", "outcome": "right"}
    assert compute_score("s", r"\boxed{wrong}", "correct")["outcome"] == "wrong"
    assert compute_score("s", "no idea", "correct") == {"score": 0.0, "acc": False, "pred": "", "outcome": "unparsable"}
    with pytest.raises(ValueError, match="'s' is '4': allowed is correct or wrong"):
        compute_score("s", "", "4")


def critique(uid: int, gts: str, pred: str) -> dict:
    return {"uid": f"c-{uid}_0_0", "gts": gts, "pred": pred}


def test_f1_is_of_calling_a_response_wrong():
    # 3 hits, 1 miss, 2 false alarms, 1 rightly called correct
    pairs = [("wrong", "wrong")] * 3 + [("wrong", "correct")] + [("correct", "wrong")] * 2 + [("correct", "correct")]
    found = critique_figures([critique(i, *pair) for i, pair in enumerate(pairs)], resamples=200)
    assert found["accuracy"].estimate == pytest.approx(4 / 7)
    assert found["precision"].estimate == pytest.approx(3 / 5)
    assert found["recall"].estimate == pytest.approx(3 / 4)
    assert found["f1"].estimate == pytest.approx(2 * 3 / (5 + 4))
    assert found["unreadable"].estimate == 0.0


def test_an_answer_without_a_verdict_is_a_mistake_either_way():
    rows = [critique(0, "wrong", "wrong"), critique(1, "wrong", ""), critique(2, "correct", "")]
    found = critique_figures(rows, resamples=50)
    assert found["f1"].estimate == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert found["unreadable"].estimate == pytest.approx(2 / 3)
    assert "f1" not in critique_figures([critique(0, "correct", "correct")] * 2, resamples=50)


def test_the_critique_task_from_prompt_to_figures(tmp_path):
    labels = ["wrong", "wrong", "correct"]
    asked = [
        type(one)(**{**vars(one), "ground_truth": label, "group": group})
        for one, label, group in zip(problems(3), labels, ["MATH", "GSM8K", "MATH"], strict=True)
    ]
    made = benchmark(verifier="critique", corrections=0, n=1, group="source")
    engine = ScriptedEngine(lambda prompt, seed: r"\boxed{wrong}")
    run_benchmark(made, asked, engine=engine, verifier=Verifier(compute_score), how=generation(tmp_path))
    found = benchmark_results(made, tmp_path / "made_up", 7)
    assert found["critique"]["f1"]["estimate"] == pytest.approx(4 / 5)
    assert found["turn1"]["pass@1"]["estimate"] == pytest.approx(2 / 3)
    assert found["groups"]["GSM8K"]["accuracy"]["estimate"] == 1.0
    assert found["groups"]["MATH"]["accuracy"]["estimate"] == 0.5
    assert "corrections" not in found
