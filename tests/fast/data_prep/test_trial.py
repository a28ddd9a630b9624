"""The tests of code problems are tried on the set's own solutions and on functions that do nothing."""

import json

import pyarrow.parquet as pq
import pytest

from data_prep.common import trial
from data_prep.common.records import Example
from data_prep.common.rows import Dropped
from data_prep.common.trial import readable, tried
from verl_cipo.rewards.outcome import VerifierInfrastructureError

DOUBLE = {"inputs": [[1], [2]], "outputs": [2, 4], "fn_name": "double"}
RIGHT = "def double(n):\n    return 2 * n"


def example(truth: dict, *solutions: str, ability: str = "code") -> Example:
    text = json.dumps(truth)
    values = dict(data_source="d", prompt="p", question="q", ability=ability, ground_truth=text)
    return Example(**values, solutions=solutions)


def reason(truth: dict, *solutions: str) -> str | None:
    ((_, _, dropped),) = tried([(example(truth, *solutions), "f:1")])
    return dropped and str(dropped)


def test_a_row_whose_own_solution_passes_is_kept_and_so_is_one_without():
    assert reason(DOUBLE, RIGHT) is None
    assert reason(DOUBLE) is None


def test_of_several_solutions_one_has_to_pass():
    assert reason(DOUBLE, "print 1", "def double(n): return 1", RIGHT) is None
    assert reason(DOUBLE, "print 1", "def double(n): return 1") == "its own solution does not pass"


def test_how_far_a_solution_came_is_told():
    ((_, where, dropped),) = tried([(example(DOUBLE, "def double(n):\n    return 2"), "f:1")])
    assert where == "f:1"
    assert dropped.detail == "test 2: wrong answer; passed 1 of 2 tests run, 2 in all"


@pytest.mark.parametrize(
    "truth",
    [
        {"asserts": ["assert not f(1)", "assert not f(2)"]},
        {"asserts": ["assert f(1) is None"]},
        {"check": "def check(candidate):\n    for one in candidate(1):\n        assert one", "entry_point": "f"},
        {"check": "def check(candidate):\n    exact = candidate(1) == 2", "entry_point": "f"},
        {"inputs": [[1], [2]], "outputs": [[], []], "fn_name": "f"},
    ],
)
def test_tests_that_a_function_passes_which_does_nothing(truth):
    # The verifier may see to it by itself.
    assert reason(truth) in ("a function that does nothing passes", "tests that the verifier refuses")


@pytest.mark.parametrize(
    "truth",
    [
        {"asserts": ["assert f(1)"]},
        {"inputs": [[1], [2]], "outputs": [None, 1], "fn_name": "f"},
        {"inputs": ["1"], "outputs": ["0"]},
    ],
)
def test_tests_that_it_does_not_pass(truth):
    assert reason(truth) is None


def test_test_code_that_breaks_by_itself():
    broken = {"check": "def check(candidate):\n    assert candidate(encode('a')) == 'a'", "entry_point": "f"}
    assert reason(broken, "def f(s):\n    return s") == "tests that the verifier refuses"


def test_rows_of_other_abilities_are_not_tried():
    ((_, _, dropped),) = tried([(example({}, ability="math"), "f:1")])
    assert dropped is None


def test_the_order_is_kept_whatever_each_takes():
    slow = "import time\ntime.sleep(0.3)\n" + RIGHT
    given = [(example(DOUBLE, slow if number % 3 == 0 else RIGHT), f"f:{number}") for number in range(9)]
    assert [(made, where) for made, where, _ in tried(given)] == given


@pytest.mark.parametrize(
    "truth",
    [
        {"inputs": [[float("nan")]], "outputs": [1], "fn_name": "f"},
        {"inputs": [[1]], "outputs": [[{"a": float("inf")}]], "fn_name": "f"},
        {"inputs": ["1\nNaN"], "outputs": ["1"], "fn_name": "f"},
        {"inputs": ["1"], "outputs": ["[-Infinity]"], "fn_name": "f"},
        {"inputs": ["1"], "outputs": ["1e999"], "fn_name": "f"},
    ],
)
def test_numbers_that_are_not_finite_drop_the_row(truth):
    with pytest.raises(Dropped, match="^a test with NaN or infinity$"):
        readable(example(truth))


def test_tests_in_no_layout_of_the_verifier_drop_the_row():
    with pytest.raises(Dropped, match="^tests that the verifier refuses$") as error:
        readable(example({"inputs": ["not json"], "outputs": ["1"], "fn_name": "f"}))
    assert "inputs[0] is not JSON" in error.value.detail
    readable(example({"inputs": ["nan"], "outputs": ["NaN"]}))  # A program may print it.


@pytest.mark.parametrize(
    ("answer", "why"), [("NaN", "NaN"), ("nan", "NaN"), ("$$", "refuses"), ("\\boxed{}", "refuses")]
)
def test_answers_that_are_none_drop_the_row(run, write, tmp_path, answer, why):
    rows = [{"problem": "Is it?", "answer": "1"}, {"problem": "Or?", "answer": answer}]
    assert run("deepscaler", write(tmp_path / "train.jsonl", rows)) == 0
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert (stats["kept"], list(stats["dropped"].values())) == (1, [1]) and why in str(stats["dropped"])


def apps(number: int, solutions: list[str], outputs: list) -> dict:
    tests = {"inputs": [[1], [2]], "outputs": outputs, "fn_name": "double"}
    question = {"problem_id": number, "question": f"Double it, {number}.", "difficulty": "", "starter_code": ""}
    return {**question, "solutions": json.dumps(solutions), "input_output": json.dumps(tests)}


@pytest.fixture
def rows() -> list[dict]:
    return [
        apps(0, [RIGHT], [2, 4]),
        apps(1, [RIGHT], [2, 5]),
        apps(2, [], [2, 5]),
        apps(3, [RIGHT], [None, None]),
        apps(4, [], [[], []]),
        apps(5, [RIGHT], [2, float("nan")]),
    ]


def kept(tmp_path) -> list[str]:
    return [row["extra_info"]["id"] for row in pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()]


def test_what_is_left_of_a_set_and_why(run, write, tmp_path, rows, capsys):
    source = write(tmp_path / "train.jsonl", rows)
    assert run("apps", source) == 0
    assert kept(tmp_path) == ["0", "2"]
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert stats["dropped"] == {
        "a function that does nothing passes": 1,
        "a test with NaN or infinity": 1,
        "all expected results are null": 1,
        "its own solution does not pass": 1,
    }
    assert stats["kept_without_a_solution_to_try"] == 1
    assert {row["row"] for row in stats["dropped_rows"]} == {f"{source}:2", f"{source}:5"}
    assert "without a solution to try" in capsys.readouterr().out


def test_the_trial_can_be_left_out(run, write, tmp_path, rows, monkeypatch):
    monkeypatch.setattr(trial, "tried", None)
    assert run("apps", write(tmp_path / "train.jsonl", rows), "--skip_trial") == 0
    assert kept(tmp_path) == ["0", "1", "2", "4"]


def test_without_a_sandbox_there_is_one_line_that_says_so(run, write, tmp_path, rows, monkeypatch, capsys):
    def missing(*args, **kwargs):
        raise VerifierInfrastructureError("bubblewrap (bwrap) was not found:\ninstall it")

    monkeypatch.setattr("verl_cipo.rewards.code.compute_score", missing)
    assert run("apps", write(tmp_path / "train.jsonl", rows)) == 1
    assert capsys.readouterr().err == (
        "error: tests cannot be tried (bubblewrap (bwrap) was not found: install it); "
        "--skip_trial converts without that\n"
    )
    assert not (tmp_path / "out").exists()


def test_sets_without_code_have_no_such_option(run, write, tmp_path, cases, capsys):
    with pytest.raises(SystemExit):
        run("gsm8k", write(tmp_path / "train.jsonl", cases["gsm8k"].rows), "--skip_trial")


def test_shards_of_debugbench_tell_language_and_bug_by_their_names(run, write, tmp_path, cases, capsys):
    row = dict(cases["debugbench"].rows[0])
    shard = {"description": row.pop("question"), "oracle_code": row.pop("solution"), "content": "It adds."}
    for name in ("language", "category", "subtype", "release_time", "solution_explanation", "bug_explanation"):
        row.pop(name, None)
    for name in ("python3_faulty indexing", "cpp_double", "java_misused == or ="):
        write(tmp_path / "benchmark" / f"{name}.json", [{**row, **shard}])
    assert run("debugbench", tmp_path / "benchmark") == 0
    (made,) = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert made["prompt"][0]["content"] == cases["debugbench"].prompt
    assert (made["extra_info"]["subtype"], made["extra_info"]["category"]) == ("faulty indexing", "")
    assert json.loads((tmp_path / "out" / "test_stats.json").read_text())["dropped"] == {"not Python": 2}
    write(tmp_path / "other" / "rows.json", [{**row, **shard}])
    assert run("debugbench", tmp_path / "other") == 1
    assert "rows.json:1: field language: missing; fields read: " in capsys.readouterr().err


def test_humaneval_with_a_helper_of_the_prompt(run, write, tmp_path):
    prompt = 'def encode(s):\n    return s[::-1]\n\n\ndef decode(s):\n    """Undoes encode."""\n'
    test = "def check(candidate):\n    for s in ('ab', 'abc'):\n        assert candidate(encode(s)) == s\n"
    row = {"task_id": "HumanEval/50", "prompt": prompt, "entry_point": "decode", "test": test}
    source = write(tmp_path / "HumanEval.jsonl", [{**row, "canonical_solution": "    return s[::-1]\n"}])
    assert run("humaneval_plus", source) == 0
    (made,) = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert "def encode" in json.loads(made["reward_model"]["ground_truth"])["setup"]
