"""Dumps as verl writes them: what is a problem, which row counts, and what is no row."""

import json

import pytest

from verl_cipo.core.verdict import verdict
from verl_cipo.evaluation.dumps.rows import Options, Sample, find_files, read_dumps, reward_and_info
from verl_cipo.evaluation.jsonl import BadLinesError, EvaluationError

UID = "0135f9ff-21c8-4ddd-9d25-d2634f36cb1b"


def row(**changes):
    return {"input": "user\n1+1?\nassistant\n", "output": "2", "gts": "2", "score": 1.0, "step": 4} | changes


def write(path, *rows, end="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in rows]
    path.write_text("\n".join(lines) + end)
    return path


def test_rows_of_a_prompt_are_its_samples(tmp_path):
    path = write(
        tmp_path / "val" / "4.jsonl",
        row(uid=f"{UID}_0_0", acc=True, pred="2"),
        row(uid=f"{UID}_1_0", output="three", score=0.0, acc=False, pred="3"),
        row(uid="7e57_0_0", input="another"),
    )
    run = read_dumps([path])

    assert [len(problem.samples) for problem in run.problems] == [2, 1]
    assert run.problems[0].key == ("user\n1+1?\nassistant\n", '"2"')
    assert run.problems[0].samples == [
        Sample(correct=True, chars=1, pred="2"),
        Sample(correct=False, chars=5, pred="3"),
    ]
    assert {problem.benchmark for problem in run.problems} == {"val"}
    assert (run.files, run.rows, run.skipped) == ((path,), {"attempts": 3}, ())


def test_without_a_uid_a_problem_is_its_input_and_ground_truth(tmp_path):
    path = write(tmp_path / "a.jsonl", row(), row(input="b"), row(score=0.0), row(gts="3"), row(gts="3"))
    run = read_dumps([path])

    assert [len(problem.samples) for problem in run.problems] == [2, 1, 2]
    assert [sample.correct for sample in run.problems[0].samples] == [True, False]


def test_equal_prompts_with_different_uids_are_one_problem(tmp_path):
    """verl gives each row of its validation data a uid, and the data is repeated for more samples."""
    rows = [row(uid=f"{prompt}_{session}_0", score=float(prompt == "a")) for prompt in "abc" for session in (0, 1)]
    other = [row(uid="d_0_0", gts="3"), row(uid="e_0_0", input="x"), row(uid="f_0_0", data_source="other")]
    run = read_dumps([write(tmp_path / "x.jsonl", *rows, *other)])

    assert [len(problem.samples) for problem in run.problems] == [6, 1, 1, 1]
    assert [problem.prompts for problem in run.problems] == [3, 1, 1, 1]
    assert [sample.correct for sample in run.problems[0].samples] == [True, True, False, False, False, False]
    assert run.rows == {"attempts": 9}


def test_a_uid_is_one_problem_whatever_its_inputs_are(tmp_path):
    """The rows of an agent's later turns hold more of the conversation."""
    rows = [row(uid="a_0_0"), row(uid="a_0_1", input="longer"), row(uid="a_1_0", input="other")]
    run = read_dumps([write(tmp_path / "x.jsonl", *rows)])

    assert [len(problem.samples) for problem in run.problems] == [2]


def test_problems_of_two_files_are_apart(tmp_path):
    run = read_dumps([write(tmp_path / "a" / "x.jsonl", row()), write(tmp_path / "b" / "x.jsonl", row())])

    assert [len(problem.samples) for problem in run.problems] == [1, 1]


def test_ground_truths_may_be_lists(tmp_path):
    run = read_dumps([write(tmp_path / "a.jsonl", row(gts=["1", "2"]), row(gts=["1", "2"]), row(gts=None))])

    assert [len(problem.samples) for problem in run.problems] == [2, 1]


def test_corrections_pairs_and_padding_are_no_samples(tmp_path):
    tails = ("0_0", "1_0", "c0_0_0", "c1_3_0", "c0r_0_0", "c0a_1_0", "c0q_2_0", "p1_0_0")
    rows = [row(uid=f"{UID}_{tail}") for tail in tails]
    run = read_dumps([write(tmp_path / "3.jsonl", *rows, row(uid=f"pad{'0' * 32}_0_0"))])

    assert [len(problem.samples) for problem in run.problems] == [2]
    assert run.rows == {"attempts": 2, "corrections": 2, "auxiliary": 4, "padding": 1}


def test_the_last_output_of_a_session_is_its_answer(tmp_path):
    rows = [row(uid=f"{UID}_0_{index}", output="x" * (index + 1), score=float(index == 1)) for index in (0, 10, 2, 1)]
    run = read_dumps([write(tmp_path / "3.jsonl", *rows)])

    assert run.problems[0].samples == [Sample(correct=False, chars=11)]
    assert run.rows == {"attempts": 1, "earlier outputs": 3}


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({"score": 1.0}, True),
        ({"score": 0.0}, False),
        ({"score": 0.5}, False),
        ({"score": 0.9, "acc": False}, False),
        ({"score": 0.1, "acc": True}, True),
        ({"score": 0.1, "acc": 1.0}, True),
        ({"score": 1.5, "acc": 0.0}, False),
        ({"score": -1.0, "acc": -1.0}, False),
        ({"score": 0.3, "acc": None}, False),
        ({"score": True}, True),
    ],
)
def test_verdict_by_acc_else_by_score(fields, right):
    assert verdict(*reward_and_info(fields), 0.5) is right


BARE = {"input": "q", "output": "a", "gts": "7", "step": 3, "uid": "u_0_0"}


@pytest.mark.parametrize(
    ("fields", "threshold", "right"),
    [
        # A bare number, filed under acc, meets the threshold; an overlong penalty is in score and reward alone.
        ({"score": 0.3, "acc": 0.3}, 0.2, True),
        ({"score": 0.3, "acc": 0.3}, 0.4, False),
        ({"score": -0.2, "reward": -0.2, "acc": 0.3, "overlong_reward": -0.5, "overlong": True}, 0.2, True),
        ({"score": 0.5, "reward": 0.5, "acc": 1.0}, 0.5, True),
        # A dict's own score stands over the reward; its acc, if a number, is right above .5 whatever the threshold.
        ({"score": 0.9, "reward": 0.4, "pred": "7"}, 0.5, True),
        ({"score": 0.9, "reward": 0.9, "acc": 0.0, "pred": "7"}, -1.0, False),
        ({"score": 0.9, "reward": 0.4, "acc": 0.0}, -1.0, False),
        ({"score": 0.0, "reward": 0.0, "acc": False, "error": "no boxed answer"}, 0.5, False),
        # Another row's verifier returns a dict: null here, the reward is left.
        ({"score": None, "reward": 1.0, "acc": 1.0, "pred": None}, 0.5, True),
    ],
)
def test_the_verdict_of_training_is_read_off_a_dump(fields, threshold, right):
    assert verdict(*reward_and_info(BARE | fields), threshold) is right


def test_rows_that_verl_gave_no_verdict_are_no_samples(tmp_path):
    faults = [row(score=0.0, acc=0.0, timeout=True, error=None), row(score=0.0, acc=0.0, timeout=None, error="503")]
    run = read_dumps([write(tmp_path / "a.jsonl", row(score=1.0, acc=1.0, timeout=None, error=None), *faults)])

    assert [sample.correct for problem in run.problems for sample in problem.samples] == [True]
    assert run.rows == {"attempts": 1, "without a verdict": 2}


def test_a_verifiers_own_error_is_a_wrong_answer(tmp_path):
    wrong = row(score=0.0, reward=0.0, acc=False, error="no boxed answer")
    run = read_dumps([write(tmp_path / "a.jsonl", row(score=1.0, reward=1.0, acc=True, error=None), wrong)])

    assert [sample.correct for problem in run.problems for sample in problem.samples] == [True, False]


def test_a_null_score_is_the_reward(tmp_path):
    path = write(tmp_path / "a.jsonl", row(score=None, reward=1.0))

    assert read_dumps([path]).problems[0].samples[0].correct


def test_the_threshold_reaches_the_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", row(score=0.3))

    assert [read_dumps([path], Options(correct_threshold=t)).problems[0].samples[0].correct for t in (0.2, 0.4)] == [
        True,
        False,
    ]


def test_benchmark_by_row_then_by_the_dump_of_corrections_then_by_name(tmp_path):
    dump = write(
        tmp_path / "val" / "4.jsonl",
        row(uid="a_0_0", data_source="aime24"),
        row(uid="b_0_0"),
        row(uid="c_0_0"),
    )
    write(tmp_path / "val" / "corrections" / "4.jsonl", {"uid": "b", "data_source": "amc23"}, {"uid": "a"})
    plain = write(tmp_path / "math500.jsonl", row())

    assert [p.benchmark for p in read_dumps([dump, plain]).problems] == ["aime24", "amc23", "val", "math500"]
    assert [p.benchmark for p in read_dumps([dump], Options(name="mine")).problems] == ["aime24", "amc23", "mine"]


def test_a_bad_line_beside_the_dump_is_named_with_its_file(tmp_path):
    dump = write(tmp_path / "4.jsonl", row(uid="a_0_0"))
    beside = write(tmp_path / "corrections" / "4.jsonl", {"uid": ["a"], "data_source": "amc23"})

    with pytest.raises(BadLinesError, match="uid is no text: \\['a'\\]") as caught:
        read_dumps([dump])
    assert str(caught.value).startswith(f"{beside}:1: ")
    dump.write_text("")
    with pytest.raises(EvaluationError, match="no attempt in"):
        read_dumps([dump], Options(skip_bad=True))


def test_an_acc_that_no_float_holds_is_none():
    assert verdict(*reward_and_info({"score": 1.0, "acc": 10**400}), 0.5)


def test_lengths_and_truncation_where_the_dump_or_a_tokenizer_tells(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        row(output="one two three"),
        row(output="one", truncated=True),
        row(output="one", finish_reason="length"),
        row(output="one two three", finish_reason="stop", response_tokens=9),
    )
    counting = Options(count_tokens=lambda text: len(text.split()), max_tokens=3)
    told = [(s.tokens, s.truncated) for s in read_dumps([path]).problems[0].samples]
    counted = [(s.tokens, s.truncated) for s in read_dumps([path], counting).problems[0].samples]

    assert told == [(None, None), (None, True), (None, True), (9, False)]
    assert counted == [(3, True), (1, True), (1, True), (9, False)]


def test_a_folder_is_its_newest_step_or_the_one_asked_for(tmp_path):
    for step in (0, 9, 10):
        write(tmp_path / "val" / f"{step}.jsonl", row())
    write(tmp_path / "suite" / "aime24.jsonl", row())
    write(tmp_path / "suite" / "amc23.jsonl", row())

    assert [file.name for file in find_files(tmp_path / "val")] == ["10.jsonl"]
    assert [file.name for file in find_files(tmp_path / "val", 9)] == ["9.jsonl"]
    assert [file.name for file in find_files(tmp_path / "suite")] == ["aime24.jsonl", "amc23.jsonl"]
    with pytest.raises(FileNotFoundError, match="no dump of step 3; it has 0, 9, 10"):
        find_files(tmp_path / "val", 3)
    write(tmp_path / "metrics.jsonl", {"step": 0})
    with pytest.raises(FileNotFoundError, match=f"did you mean {tmp_path / 'val'}\\?"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither"):
        find_files(tmp_path / "missing")


BAD = {
    "not JSON": '{"input": "a", "out',
    "not a JSON object": "[1]",
    "lacks output, score": '{"input": "a"}',
    "lacks input, output, score": '{"uid": "a", "anchor_correct": true}',
    "input is no text": json.dumps(row(input=3)),
    "output is no text": json.dumps(row(output=None)),
    "uid is no text": json.dumps(row(uid=3)),
    "score is no finite number: nan": json.dumps(row(score=float("nan"))),
    "score is no finite number: None": json.dumps(row(score=None)),
    "score is no finite number: 1000": json.dumps(row(score=10**400)),
    "response_tokens is no number of tokens: '12'": json.dumps(row(response_tokens="12")),
    "response_tokens is no number of tokens: nan": json.dumps(row(response_tokens=float("nan"))),
    "response_tokens is no number of tokens: -1": json.dumps(row(response_tokens=-1)),
    "truncated is neither true nor false: 'false'": json.dumps(row(truncated="false")),
    "not JSON: maximum recursion": "[" * 100_000,
    "was there before": json.dumps(row(uid="a_0_0")),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_line_is_named_and_only_skipped_when_asked(tmp_path, reason):
    path = write(tmp_path / "a.jsonl", row(uid="a_0_0"), "", BAD[reason], row(uid="a_1_0"))

    with pytest.raises(BadLinesError, match=reason) as caught:
        read_dumps([path])
    assert str(caught.value).startswith(f"{path}:3: ")
    run = read_dumps([path], Options(skip_bad=True))
    assert len(run.problems[0].samples) == 2
    assert [(bad.path, bad.line) for bad in run.skipped] == [(path, 3)]
    assert run.rows == {"attempts": 2}


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path):
    path = write(tmp_path / "a.jsonl", row())
    path.write_bytes(path.read_bytes() + b'{"input": "\xff"}\n')

    assert [bad.line for bad in read_dumps([path], Options(skip_bad=True)).skipped] == [2]


def test_a_torn_last_line_is_called_so(tmp_path):
    path = write(tmp_path / "a.jsonl", row(), json.dumps(row())[:30], end="")

    with pytest.raises(BadLinesError, match="a.jsonl:2: .*the file ends in the middle of it"):
        read_dumps([path])


def test_of_many_bad_lines_the_first_are_shown_and_all_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", row(), *["{"] * 30)

    with pytest.raises(BadLinesError) as caught:
        read_dumps([path])
    assert len(caught.value.lines) == 30
    assert str(caught.value).count("a.jsonl:") == 20
    assert str(caught.value).endswith("... and 10 more")


def test_what_holds_no_attempt_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no attempt"):
        read_dumps([write(tmp_path / "a.jsonl", row(uid="a_c0_0_0"))])


def test_one_file_twice_is_an_error(tmp_path):
    path = write(tmp_path / "val" / "1.jsonl", row())

    with pytest.raises(ValueError, match="given twice"):
        read_dumps([path, tmp_path / "val"])
