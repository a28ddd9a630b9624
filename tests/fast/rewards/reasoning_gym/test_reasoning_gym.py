"""The reward function on real tasks of reasoning-gym, and answers that try to be run."""

import inspect
import json
import re

import pytest

reasoning_gym = pytest.importorskip("reasoning_gym", reason="pip install --no-deps -r requirements/lm.txt")

from reasoning_gym.factory import DATASETS  # noqa: E402

from verl_cipo.rewards.reasoning_gym import compute_score, last_answer  # noqa: E402
from verl_cipo.rewards.reasoning_gym.entry import dump, load  # noqa: E402
from verl_cipo.rewards.reasoning_gym.judge import EVALUATED, FORMULAS, harmless, judge, warm_up  # noqa: E402

SUM = {"question": "2 + 3 =", "answer": "5", "metadata": {"difficulty": {"num_terms": (2, 2)}}}
COUNTDOWN = {"question": "Make 24 of 4 and 6.", "answer": "4 * 6", "metadata": {"numbers": [4, 6], "target": 24}}


def truth(task: str, entry: dict) -> str:
    return dump(task, {}, entry)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer> 5\n</answer> is what I say", "5"),
        ("At first <answer>6</answer>, but no: <answer>5</answer>", "5"),
        ("<answer>6 <answer>5</answer>", "5"),
        ("<answer>a\nb</answer>", "a\nb"),
        ("<answer>5", None),
        ("The answer is 5.", None),
    ],
)
def test_the_last_answer_counts(text, answer):
    assert last_answer(text) == answer


def test_an_answer_is_judged_by_the_scorer_of_its_task():
    right = compute_score("s", "2 + 3 = 5. <answer>5.0</answer>", truth("chain_sum", SUM))
    assert right == {"score": 1.0, "acc": True, "pred": "5.0", "outcome": "right"}
    wrong = compute_score("s", "<answer>6</answer>", truth("chain_sum", SUM))
    assert wrong == {"score": 0.0, "acc": False, "pred": "6", "outcome": "wrong"}
    silent = compute_score("s", "It is 5.", truth("chain_sum", SUM))
    assert silent == {"score": 0.0, "acc": False, "pred": "", "outcome": "unparsable"}
    assert compute_score("s", f"<answer>{'5' * 99}</answer>", truth("chain_sum", SUM), max_chars=98)["acc"] is False


def test_partial_credit_is_an_option_and_changes_no_verdict():
    answer = "<answer>4 + 6</answer>"
    assert compute_score("s", answer, truth("countdown", COUNTDOWN))["score"] == 0.0
    partial = compute_score("s", answer, truth("countdown", COUNTDOWN), partial=True)
    assert (partial["score"], partial["acc"], partial["outcome"]) == (0.05, False, "wrong")
    right = compute_score("s", "<answer>6 * 4</answer>", truth("countdown", COUNTDOWN), partial=True)
    assert (right["score"], right["acc"]) == (1.0, True)


def test_settings_of_the_task_reach_its_scorer():
    entry = {"question": "Make 24.", "answer": "3 * 8 * 1 * 1", "metadata": {}}
    text = "<answer>3 * 8 * 1 * 1</answer>"
    assert compute_score("s", text, dump("puzzle24", {}, entry))["acc"]
    assert not compute_score("s", text, dump("puzzle24", {"min_value": 2}, entry))["acc"]


ATTACKS = ["__import__('os').system('touch {0}')", "open('{0}', 'w')", "[open('{0}', 'w') for _ in [1]]"]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("task", sorted(EVALUATED | FORMULAS))
def test_an_answer_that_is_a_program_does_not_run(task, attack, tmp_path):
    entry = reasoning_gym.create_dataset(task, seed=0, size=1)[0]
    mark = tmp_path / "mark"
    found = judge(truth(task, entry), attack.format(mark))
    assert found == ("unparsable", 0.0) and not mark.exists()


def test_the_attack_would_run_without_that(tmp_path):
    dataset = reasoning_gym.create_dataset("n_queens", seed=0, size=1)
    dataset.score_answer(ATTACKS[0].format(tmp_path / "mark"), dataset[0])
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("answer", ["eval(x)", "x.y", "chr(9)", "'a'", "x[0]", "lambda: 1", "a = 1", "x; y", "__x__"])
def test_what_is_no_formula(answer):
    assert not harmless("countdown", answer)
    assert harmless("chain_sum", answer), "its scorer evaluates nothing"


@pytest.mark.parametrize("answer", ["(3 + 4)*2/7 - 1.5", "x**2*sin(2*x)/2 + C", "-3*log(x) + exp(x)", ".5^2"])
def test_formulas_reach_the_scorers(answer):
    assert harmless("simple_integration", answer)


@pytest.mark.parametrize("answer", ["[['Q', '_'], ['_', 'Q']]", "(1, 2)", "Q _\n_ Q", "1 2 3"])
def test_values_reach_the_scorers(answer):
    assert harmless("n_queens", answer)


def test_all_scorers_that_evaluate_are_known():
    """Those that do so to what the task itself made are left out."""
    own = {"codeio", "number_sorting", "bitwise_arithmetic"}
    evaluating = set()
    for name, (dataset, _) in DATASETS.items():
        source = inspect.getsource(inspect.getmodule(dataset.score_answer))
        if re.search(r"\b(?:eval|exec|sympify|parse_expr)\(", source) and "score_answer" in vars(dataset):
            evaluating.add(name)
    # Its parser of logic is its own; basic_arithmetic evaluates its own expressions.
    assert evaluating - own - {"propositional_logic", "basic_arithmetic"} == EVALUATED | FORMULAS


def test_an_answer_that_takes_too_long_has_a_verdict():
    found = compute_score("s", "<answer>9**9**9**9</answer>", truth("countdown", COUNTDOWN), timeout_s=2)
    assert (found["outcome"], found["score"]) == ("timeout", 0.0)


def test_every_task_takes_its_own_answers_and_no_odd_one():
    """Through the text of the ground truth. Two take long to make an entry; one scorer takes any answer."""
    for name in sorted(DATASETS.keys() - {"composite", "knight_swap", "rubiks_cube", "game_of_life_halting"}):
        entry = reasoning_gym.create_dataset(name, seed=3, size=5)[0]
        kept = {key: entry[key] for key in ("question", "answer", "metadata")}
        text = dump(name, {}, kept)
        assert load(text) == {"task": name, "config": {}, "entry": kept}
        if entry["answer"] is not None:
            assert judge(text, entry["answer"]) == ("right", 1.0), name
        for odd in ("\u00e4", "[" * 50, "{}", "1e999", "null", "-", "None"):
            outcome, value = judge(text, odd)
            assert outcome in ("wrong", "undecided", "unparsable") and value < 1, (name, odd)


def test_tuples_and_keys_that_are_no_text_come_back():
    entry = {"question": "q", "answer": None, "metadata": {"board": ((1, 2), (3,)), "edges": {1: [2], (0, 1): "x"}}}
    assert load(dump("t", {"a": (1, 2)}, entry)) == {"task": "t", "config": {"a": (1, 2)}, "entry": entry}


def test_what_cannot_come_back_is_refused():
    with pytest.raises(ValueError, match="an entry of t holds what JSON cannot"):
        dump("t", {}, {"question": object()})
    with pytest.raises(ValueError, match="does not come back from JSON as it was"):
        dump("t", {}, {"metadata": float("nan")})


@pytest.mark.parametrize("bad", ["5", "not JSON", json.dumps({"task": "chain_sum"}), None])
def test_a_ground_truth_of_another_kind_is_an_error(bad):
    with pytest.raises(ValueError, match="ground truth of data source 's'.*data_prep/reasoning_gym.py"):
        compute_score("s", "<answer>5</answer>", bad)


def test_unknown_and_impossible_arguments_are_refused():
    with pytest.raises(TypeError, match="unknown arguments \\['partly'\\]"):
        compute_score("s", "", truth("chain_sum", SUM), partly=True)
    with pytest.raises(ValueError, match="reward_kwargs.timeout_s = 0 must be above 0"):
        compute_score("s", "", truth("chain_sum", SUM), timeout_s=0)


def test_the_worker_starts_only_where_the_package_works():
    warm_up()
