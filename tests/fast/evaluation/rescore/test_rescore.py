import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_cipo import evaluate
from verl_cipo.evaluation.jsonl import BadLinesError, EvaluationError
from verl_cipo.evaluation.output import for_terminal
from verl_cipo.evaluation.rescore.judge import HeldOut, Strictness, rescore_step

QUESTION = "user\nHow many?\nassistant\n"


def row(uid: str, output: str, score: float = 1.0, gts: object = "16", **more: object) -> dict:
    return {"input": QUESTION, "output": output, "gts": gts, "score": score, "step": 1, "uid": uid} | more


def write(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


OTHER = {"input": "user\nHow few?\nassistant\n"}
SHOWN = {"input": "user\nHow many?\n<attempt>\n3\n</attempt>\nassistant\n"}
MATHS = [
    row("a_0_0", r"\boxed{16}"),
    row("a_1_0", r"\boxed{2^4}"),
    row("a_2_0", r"\boxed{3}", score=0.0),
    row("b_0_0", r"\boxed{16.0}", **OTHER),
    row("b_1_0", r"\boxed{\pm 16}", **OTHER),
    row("a_c0_0_0", r"\boxed{16}", **SHOWN),
    row("a_c0_1_0", "sixteen", **SHOWN),
    row("a_p0_0_0", "a pair"),
    row("a_c0r_0_0", "a right correction under its anchor"),
    row("pad0123_0_0", "padding"),
]


def test_the_gap_is_what_is_rejected_of_what_is_decided(tmp_path):
    found = rescore_step(write(tmp_path / "1.jsonl", MATHS), Strictness())
    base, correction = found["streams"]["base"], found["streams"]["correction"]
    assert {name: base[name] for name in ("rows", "accepted", "confirmed", "rejected", "undecided")} == {
        "rows": 5,
        "accepted": 4,
        "confirmed": 2,
        "rejected": 1,
        "undecided": 1,
    }
    assert base["reasons"] == {
        "confirmed: same_text": 1,
        "confirmed: same_value": 1,
        "rejected: not_evaluated": 1,
        "undecided: unread": 1,
    }
    assert base["gap"]["estimate"] == pytest.approx(1 / 3) and base["gap"]["problems"] == 2
    assert correction["rows"] == correction["accepted"] == 2
    assert correction["gap"]["estimate"] == 0.5
    assert [(one["uid"], one["reason"]) for one in found["examples"]] == [
        ("a_1_0", "not_evaluated"),
        ("a_c0_1_0", "no_answer"),
    ]


def test_the_verifiers_own_acc_says_what_was_accepted(tmp_path):
    rows = [row("a_0_0", "x", score=0.9, acc=False), row("a_1_0", "x", score=-1.0, acc=True)]
    found = rescore_step(write(tmp_path / "1.jsonl", rows), Strictness())
    assert found["streams"]["base"]["accepted"] == 1
    assert [one["uid"] for one in found["examples"]] == ["a_1_0"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"score": [1]}, r"score is no finite number: \[1\]"),
        ({"score": float("nan")}, "score is no finite number: nan"),
        ({"score": "1"}, "score is no finite number: '1'"),
        ({"uid": 3}, "uid is no text: 3"),
        ({"uid": "a_0_0"}, "the uid a_0_0 was there before"),
        ({"response_tokens": "9"}, "response_tokens is no number of tokens: '9'"),
    ],
)
def test_a_line_is_bad_as_it_is_for_dumps(changes, told, tmp_path):
    file = write(tmp_path / "1.jsonl", [*MATHS[:2], row("z_0_0", "x") | changes])
    with pytest.raises(BadLinesError, match=f"1.jsonl:3: {told}"):
        rescore_step(file, Strictness())
    assert rescore_step(file, Strictness(), skip_bad=True)["bad_lines"] == 1


def test_without_a_decided_answer_there_is_no_gap(tmp_path):
    found = rescore_step(write(tmp_path / "1.jsonl", MATHS[4:5]), Strictness())["streams"]["base"]
    assert found["undecided"] == 1 and found["gap"] is None


@pytest.mark.parametrize("gts", ['["17", "16"]', ["17", "16"], 16])
def test_any_of_several_references_will_do(gts, tmp_path):
    file = write(tmp_path / "1.jsonl", [row("a_0_0", r"\boxed{16}", gts=gts), row("a_1_0", r"\boxed{15}", gts=gts)])
    found = rescore_step(file, Strictness())["streams"]["base"]
    assert (found["confirmed"], found["rejected"]) == (1, 1)


def test_what_a_correction_prompt_shows_is_not_the_question(tmp_path):
    shown = {"input": "user\nFactor it.\n<attempt>\n(x-2)*(x+2)\n</attempt>\nassistant\n", "gts": "x^2-4"}
    rows = [row("a_c0_0_0", r"\boxed{(x-2)*(x+2)}") | shown]
    assert rescore_step(write(tmp_path / "1.jsonl", rows), Strictness())["streams"]["correction"]["confirmed"] == 1


def test_an_attempt_that_is_shown_as_a_turn_of_its_own_is_not_the_question_either(tmp_path):
    """The plain prompt of the attempts in the same file says where the question ends."""
    plain = {"input": "user\nFactor it.\nassistant\n", "gts": "x^2-4"}
    turns = {"input": plain["input"] + "(x-2)*(x+2)\nuser\nReview it.\nassistant\n", "gts": "x^2-4"}
    rows = [row("a_0_0", r"\boxed{x}", score=0.0) | plain, row("a_c0_0_0", r"\boxed{(x-2)*(x+2)}") | turns]
    assert rescore_step(write(tmp_path / "1.jsonl", rows), Strictness())["streams"]["correction"]["confirmed"] == 1


def test_a_prompt_under_two_uids_is_one_problem_its_corrections_too(tmp_path):
    twice = [*MATHS[:2], *MATHS[5:7], row("d_0_0", r"\boxed{16}"), row("d_c0_0_0", r"\boxed{16}", **SHOWN), *MATHS[3:4]]
    found = rescore_step(write(tmp_path / "1.jsonl", twice), Strictness())["streams"]
    assert found["base"]["gap"]["problems"] == 2 and found["correction"]["gap"]["problems"] == 1


def test_dumps_without_uid_are_grouped_by_input_and_ground_truth(tmp_path):
    rows = [{name: value for name, value in one.items() if name != "uid"} for one in MATHS[:2] + MATHS[3:4]]
    rows[2]["input"] = "another"
    gap = rescore_step(write(tmp_path / "1.jsonl", rows), Strictness())["streams"]["base"]["gap"]
    assert gap["problems"] == 2 and gap["estimate"] == pytest.approx(1 / 3)


TESTS = json.dumps({"inputs": ["2\n3", "4\n5"], "outputs": ["5", "9"], "fn_name": "add"})
MORE = json.dumps({"inputs": ["20\n3"], "outputs": ["23"], "fn_name": "add"})


def program(body: str) -> str:
    return f"```python\ndef add(a, b):\n    {body}\n```"


HONEST = [program("return a + b"), program("return b + a"), program("return sum([a, b])")]
TABLE = program("return {(2, 3): 5, (4, 5): 9}.get((a, b), 0)")


def programs(*outputs: str, gts: str = TESTS) -> list[dict]:
    return [row(f"a_{i}_0", output, gts=gts) for i, output in enumerate(outputs)]


def test_held_out_tests_find_a_table_of_answers(tmp_path):
    file = write(tmp_path / "1.jsonl", programs(HONEST[0], TABLE))
    found = rescore_step(file, Strictness(held_out=HeldOut([("How many?", MORE)])))["streams"]["base"]
    assert found["reasons"] == {"confirmed: held_out_tests": 1, "rejected: held_out_tests": 1}
    found = rescore_step(file, Strictness(held_out=HeldOut([("How few?", MORE)])))["streams"]["base"]
    assert found["reasons"] == {"undecided: nothing_to_judge_by": 2}


def test_perturbed_tests_find_it_where_three_programs_can_vote(tmp_path):
    file = write(tmp_path / "1.jsonl", programs(*HONEST, TABLE))
    found = rescore_step(file, Strictness())["streams"]["base"]
    assert found["reasons"] == {"confirmed: perturbed_tests": 3, "rejected: perturbed_tests": 1}
    assert found["gap"]["estimate"] == 0.25
    found = rescore_step(file, Strictness(changes=0))["streams"]["base"]
    assert found["reasons"] == {"undecided: nothing_to_judge_by": 4}


def test_a_program_that_fails_its_own_tests_is_rejected(tmp_path):
    file = write(tmp_path / "1.jsonl", programs(program("return a - b"), "no program"))
    assert rescore_step(file, Strictness())["streams"]["base"]["reasons"] == {"rejected: own_tests": 2}


def test_the_tolerance_of_training_is_not_granted(tmp_path):
    tests = json.dumps({"inputs": ["1\n2"], "outputs": ["0.5"], "fn_name": "add"})
    rows = programs(program("return 0.5000001"), program("return 0.5"), gts=tests)
    found = rescore_step(write(tmp_path / "1.jsonl", rows), Strictness())["streams"]["base"]
    assert found["reasons"] == {"rejected: own_tests": 1, "undecided: nothing_to_judge_by": 1}


def test_a_program_that_takes_too_long_is_undecided(tmp_path):
    file = write(tmp_path / "1.jsonl", programs(program("while True: pass")))
    found = rescore_step(file, Strictness(timeout_s=0.5))["streams"]["base"]
    assert found["reasons"] == {"undecided: timeout": 1}


def test_math_and_code_in_one_dump_are_told_apart(tmp_path):
    rows = [row("b_0_0", r"\boxed{16}"), *programs(program("return 0")), row("b_1_0", r"\boxed{2^4}")]
    found = rescore_step(write(tmp_path / "1.jsonl", rows), Strictness())
    assert found["streams"]["base"]["confirmed"] == 1
    assert [one["reason"] for one in found["examples"]] == ["own_tests", "not_evaluated"]


GYM = json.dumps({"task": "chain_sum", "config": {}, "entry": {"answer": "5"}})


@pytest.mark.parametrize(
    "gts, output, reason",
    [
        ('["a", b]', r"\boxed{5}", "unread"),
        ('["5", "6"]', r"\boxed{6}", "same_text"),
        (["5", ["6"]], r"\boxed{6}", "same_text"),
        ("{1, 2}", r"\boxed{\{1,2\}}", "same_text"),
        (GYM, "<answer>5</answer>", "nothing_to_judge_by"),
        (json.loads(GYM), "<answer>5</answer>", "nothing_to_judge_by"),
        (None, r"\boxed{7}", "nothing_to_judge_by"),
        ([], r"\boxed{7}", "nothing_to_judge_by"),
    ],
)
def test_a_ground_truth_is_taken_as_training_takes_it(gts, output, reason, tmp_path):
    file = write(tmp_path / "1.jsonl", [row("a_0_0", output, gts=gts), row("b_0_0", r"\boxed{17}", **OTHER)])
    found = rescore_step(file, Strictness())["streams"]["base"]
    assert found["reasons"].pop("rejected: another_value") == 1
    assert [told.partition(": ")[2] for told in found["reasons"]] == [reason]


def test_tests_that_cannot_be_read_are_a_bad_line(tmp_path, capsys):
    broken = json.dumps({"inputs": ["1"], "outputs": ["1", "2"]})
    rows = [row("a_0_0", HONEST[0], gts=broken), row("b_0_0", r"\boxed{16}", **OTHER), row("c_0_0", "x", score=None)]
    cut = row("e_0_0", HONEST[0], gts=TESTS[:-9])
    write(tmp_path / "1.jsonl", [*rows, row("d_0_0", HONEST[0], score=0.0, gts=broken), cut])
    output = tmp_path / "out" / "gap.json"
    assert run("--rescore", tmp_path, "--output", output) == 1
    told = capsys.readouterr().err
    assert (
        "1.jsonl:1: gts: ground_truth has 1 inputs and 2 outputs" in told
        and "1.jsonl:3: score is no finite number: None" in told
    )
    assert run("--rescore", tmp_path, "--output", output, "--skip-bad") == 0
    (step,) = json.loads(output.read_text())["steps"]
    assert step["bad_lines"] == 3 and step["streams"]["base"]["confirmed"] == 1


def test_tests_that_fail_nothing_are_named(tmp_path):
    vacuous = json.dumps({"check": "def check(f):\n    f(1, 2)", "entry_point": "add"})
    file = write(tmp_path / "1.jsonl", programs(HONEST[0], gts=vacuous))
    with pytest.raises(EvaluationError, match="uid 'a_0_0', own_tests: .*fail nothing"):
        rescore_step(file, Strictness())


def test_held_out_files_are_found_by_the_longest_line_of_the_prompt(tmp_path):
    prompt = [{"role": "user", "content": "  Read\nthe sum of two numbers\nand print it.\n"}]
    other = [{"role": "user", "content": "Not\nthe sum of two numbers"}]
    table = [
        {"data_source": "s", "prompt": one, "reward_model": {"ground_truth": str(i)}}
        for i, one in enumerate((other, prompt))
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "test.parquet")
    found = HeldOut.read([tmp_path / "test.parquet"])
    assert found.find("<|user|>Read\nthe sum of two numbers\nand print it.<|end|>") == "1"
    assert found.find("Read\nthe sum of three numbers\nand print it.") is None


def run(*arguments: object) -> int:
    return evaluate.main(list(map(str, arguments)))


def test_the_command_writes_a_gap_a_step_and_goes_on_where_it_was_killed(tmp_path, capsys):
    for step in (2, 10):
        write(tmp_path / "rollouts" / f"{step}.jsonl", MATHS)
    output = tmp_path / "gap.json"
    assert run("--rescore", tmp_path, "--output", output, "--steps", 2) == 0
    first = json.loads(output.read_text())["steps"]
    assert [step["step"] for step in first] == [2]
    first[0]["streams"]["base"]["accepted"] = 777  # shows that the step is not judged again
    output.write_text(json.dumps(json.loads(output.read_text()) | {"steps": first}))
    capsys.readouterr()
    assert run("--rescore", tmp_path, "--output", output, "--markdown") == 0
    assert [step["step"] for step in json.loads(output.read_text())["steps"]] == [2, 10]
    table = output.with_suffix(".md").read_text().splitlines()
    assert table[2].startswith("| 2 | 777 | 1 | 1 | 33.3 ") and table[3].startswith("| 10 | 4 | 1 | 1 | 33.3 ")
    assert capsys.readouterr().out.splitlines() == for_terminal("\n".join(table)).splitlines()
    assert run("--rescore", tmp_path, "--output", output, "--changes", 1) == 1
    assert "made with other settings" in capsys.readouterr().err


def test_a_long_run_is_shown_in_part(tmp_path, capsys):
    for step in range(1, 46):
        write(tmp_path / f"{step}.jsonl", MATHS[:1])
    assert run("--rescore", tmp_path, "--output", tmp_path / "out" / "gap.json") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "(15 of 45 steps; the others are in the file)" and shown[-2].split()[:2] == ["45", "1"]


def test_bad_lines_are_named_and_skipped_only_when_asked(tmp_path, capsys):
    file = write(tmp_path / "1.jsonl", [*MATHS, {"input": "q"}, MATHS[0] | {"output": None}])
    file.write_text(file.read_text() + '{"input": "torn')
    with pytest.raises(
        BadLinesError, match=r":11: lacks output \(str\), gts, score\n.*:12: lacks output .*\n.*:13: not JSON.*ends in"
    ):
        rescore_step(file, Strictness())
    assert run("--rescore", tmp_path, "--output", tmp_path / "out" / "gap.json") == 1
    assert "1.jsonl:11" in capsys.readouterr().err
    assert run("--rescore", tmp_path, "--output", tmp_path / "out" / "gap.json", "--skip-bad") == 0
    assert "skipped 3 bad lines" in capsys.readouterr().err

    (tmp_path / "2.jsonl").write_text('{"input": "torn')
    assert run("--rescore", tmp_path, "--output", tmp_path / "gap.json", "--skip-bad") == 0
    assert "skipped 4 bad lines" in capsys.readouterr().err


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert run("--rescore", tmp_path, "--output", tmp_path / "gap.json") == 1
    assert "trainer.rollout_data_dir" in capsys.readouterr().err
    write(tmp_path / "3.jsonl", MATHS)
    assert run("--rescore", tmp_path, "--output", tmp_path / "gap.json", "--steps", 4) == 1
    assert "no step 4; it has 3 to 3" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[1", "[1]", '{"settings": {}}'])
def test_a_file_that_is_not_of_rescore_stays_as_it_is(content, tmp_path, capsys):
    write(tmp_path / "rollouts" / "1.jsonl", MATHS)
    output = tmp_path / "other.json"
    output.write_text(content)
    assert run("--rescore", tmp_path, "--output", output) == 1
    told = capsys.readouterr().err
    assert f"{output}: is there, and not " in told and "take another --output" in told
    assert output.read_text() == content


@pytest.mark.parametrize("value", ["nan", "0", "-1"])
def test_a_timeout_is_a_time(value, tmp_path, capsys):
    write(tmp_path / "1.jsonl", MATHS)
    assert run("--rescore", tmp_path, "--output", tmp_path / "out" / "a.json", "--timeout", value) == 1
    assert "expected 0.1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--held-out", "--references"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (None, "no such file, expected a parquet file; data_prep/ writes such files"),
        ({"prompt": "q"}, "row 0: prompt is 'q', expected a list of messages"),
        ({"prompt": [{"role": "user", "content": ["a"]}]}, "row 0: the prompt ends in ['a'], expected a text"),
        ({"reward_model": "1"}, "row 0: reward_model is '1', expected a mapping with ground_truth"),
        ({"extra_info": "x"}, "row 0: extra_info is 'x', expected a mapping"),
    ],
)
def test_files_that_are_not_data_preps_are_named(option, changes, told, tmp_path, capsys):
    file = tmp_path / "tests.parquet"
    if changes is not None:
        good = {"data_source": "s", "prompt": [{"role": "user", "content": "q"}]}
        good |= {"reward_model": {"ground_truth": "1"}, "extra_info": {"solutions": ["x"]}}
        pq.write_table(pa.Table.from_pylist([good | changes]), file)
    write(tmp_path / "rollouts" / "1.jsonl", MATHS)
    assert run("--rescore", tmp_path, "--output", tmp_path / "a.json", option, file) == 1
    assert f"{file}: {told}" in capsys.readouterr().err


def test_references_without_a_solution_are_refused(tmp_path, capsys):
    row = {"data_source": "s", "prompt": [{"role": "user", "content": "q"}], "reward_model": {"ground_truth": "1"}}
    pq.write_table(pa.Table.from_pylist([row | {"extra_info": None}]), tmp_path / "a.parquet")
    write(tmp_path / "rollouts" / "1.jsonl", MATHS)
    assert run("--rescore", tmp_path, "--output", tmp_path / "a.json", "--references", tmp_path / "a.parquet") == 1
    assert "no row has extra_info.solutions; data_prep/ writes such files with --keep_sol" in capsys.readouterr().err
