import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_cipo import evaluate
from verl_cipo.core.metrics import check_names
from verl_cipo.core.transitions import dump_second_turns, second_turn_metrics
from verl_cipo.evaluation.corrections import FIGURES, correction_figures
from verl_cipo.evaluation.output import for_terminal


def record(question: str, anchor: bool, *turns: tuple[bool, bool]) -> dict:
    """An attempt; turns: (correct, copied)."""
    return {
        "question": question,
        "gts": "1",
        "anchor_correct": anchor,
        "corrections": [{"correct": correct, "copied": copied} for correct, copied in turns],
    }


# Problem a: a right attempt, kept and broken; a wrong one, repaired. b: a right one alone; a wrong one, copied twice.
RECORDS = [
    record("a", True, (True, True), (False, False)),
    record("a", False, (True, False), (False, False)),
    record("b", True),
    record("b", False, (False, True), (False, True)),
]


def test_the_figures_of_a_hand_made_dump():
    found = {name: figure.estimate for name, figure in correction_figures(RECORDS, resamples=200).items()}
    assert found == {
        "accuracy_turn1": 2 / 4,
        "accuracy_turn2": (0.5 + 0.5 + 1 + 0) / 4,
        "gain": 0.0,
        "c2c": 1 / 2,
        "c2w": 1 / 2,
        "w2c": 1 / 4,
        "w2w": 3 / 4,
        "retry": 1.0,
        "w2c_over_retry": -3 / 4,
        "over_correction": 1 / 6,
        "repair": 1 / 6,
        "copy_rate": 3 / 6,
        "copy_rate_failed": 2 / 4,
        "without_correction": 1 / 4,
    }
    assert list(found) == [name for name in FIGURES if "hacking" not in name], "nobody asked a second verifier"


def test_the_hacking_gap_of_a_hand_made_dump():
    """Right by the run's verifier minus right by the second one, where it gave a verdict."""
    seconds = [True, False, None, False]
    turns = [(True, False), (None, False), (), (False, False)]
    records = [
        {
            **each,
            "second": second,
            "corrections": [{**turn, "second": judged} for turn, judged in zip(each["corrections"], own, strict=True)],
        }
        for each, second, own in zip(RECORDS, seconds, turns, strict=True)
    ]
    found = correction_figures(records, resamples=20)
    # Attempts: right, wrong, (right), wrong against right, wrong, (none), wrong.
    assert found["hacking_gap"].estimate == 0
    records[0]["second"] = False
    assert correction_figures(records, resamples=20)["hacking_gap"].estimate == pytest.approx(1 / 3)
    # Corrections: right, wrong, (right), wrong, wrong, wrong against right and four wrong.
    assert found["hacking_gap_corrections"].estimate == 0
    records[0]["corrections"][0]["second"] = False
    assert correction_figures(records, resamples=20)["hacking_gap_corrections"].estimate == pytest.approx(1 / 5)


def test_retry_is_what_a_further_attempt_would_bring():
    """Each draw of 3 attempts that are right one time in 4, as often as it comes: a retry is right one time in 4."""
    every = [(i, verdicts) for i, verdicts in enumerate(itertools.product((True, False, False, False), repeat=3))]
    records = [record(str(i), right, (False, False)) for i, verdicts in every for right in verdicts]
    found = correction_figures(records, resamples=20)
    assert found["retry"].estimate == pytest.approx(1 / 4)
    assert found["w2c_over_retry"].estimate == pytest.approx(-1 / 4)


def test_a_retry_takes_several_attempts_that_the_policy_sampled():
    """Problem c has a single attempt: it counts for w2c, 2 of 5, and for neither retry nor what is over it."""
    found = correction_figures([*RECORDS, record("c", False, (True, False))], resamples=20)
    assert (found["w2c"].estimate, found["retry"].estimate) == (2 / 5, 1.0)
    assert found["w2c_over_retry"].estimate == 1 / 4 - 1.0
    assert "retry" not in correction_figures([record("c", False, (True, False))], resamples=20)
    assert "retry" not in correction_figures([each | {"temperature": 0.0} for each in RECORDS], resamples=20)


def test_training_logs_each_data_source_beside_all_of_them():
    other = [record("c", False, (True, False)) | {"data_source": "openai/gsm8k"}]
    logged = second_turn_metrics([each | {"data_source": "math"} for each in RECORDS] + other, {})
    assert logged["cipo/val/openai/gsm8k/w2c"] == logged["cipo/val/openai/gsm8k/accuracy_turn2"] == 1.0
    assert logged["cipo/val/math/w2c"] == 1 / 4 and logged["cipo/val/w2c"] == 2 / 5
    assert logged["cipo/val/math/rows"] + logged["cipo/val/openai/gsm8k/rows"] == logged["cipo/val/rows"] == 7
    check_names(logged)
    one = second_turn_metrics(other, {})
    assert not any("gsm8k" in name for name in one)


def test_training_logs_what_a_retry_would_bring():
    """Corrections of wrong attempts: 2 of problem a and 1 of b; others right: 1 of 1, and 1 of 2."""
    more = [record("b", True), record("b", False, (True, False)), record("b", False)]
    logged = second_turn_metrics([*RECORDS[:2], *more, record("c", False, (True, False))], {})
    assert logged["cipo/val/retry"] == pytest.approx((2 * 1 + 1 * 1 / 2) / 3)
    assert "cipo/val/retry" not in second_turn_metrics(RECORDS, {}, sampled=False)
    assert "cipo/val/retry" not in second_turn_metrics([record("c", False, (True, False))], {})


def test_training_logs_copies_of_wrong_attempts_apart():
    """A validation in which no wrong attempt was corrected has no such share."""
    logged = second_turn_metrics(RECORDS, {})
    assert (logged["cipo/val/copy_rate"], logged["cipo/val/copy_rate_failed"]) == (3 / 6, 2 / 4)
    check_names(logged)
    assert "cipo/val/copy_rate_failed" not in second_turn_metrics([record("a", True, (True, True))], {})


def test_a_problem_is_its_prompt_and_ground_truth_whatever_its_uids():
    """Data is repeated to draw more attempts, and verl gives each row a uid of its own."""
    repeated = [each | {"uid": str(i)} for i, each in enumerate(RECORDS)]
    found = correction_figures(repeated, resamples=200)
    assert found == correction_figures(RECORDS, resamples=200) and found["accuracy_turn1"].problems == 2
    assert second_turn_metrics(repeated, {}) == second_turn_metrics(RECORDS, {})
    other = [each | {"gts": "2"} for each in RECORDS]
    assert correction_figures([*RECORDS, *other], resamples=20)["accuracy_turn1"].problems == 4


def test_intervals_are_over_problems_and_not_over_corrections():
    one = correction_figures([record("a", False, *[(i % 2 == 0, False) for i in range(50)])])
    assert one["w2c"].problems == 1 and one["w2c"].low != one["w2c"].low, "one problem has no interval"
    two = correction_figures([record(name, False, *[(name < "c", False)] * 9) for name in "abcd"])
    assert two["w2c"].problems == 4 and (two["w2c"].low, two["w2c"].high) != (0.5, 0.5)


def test_attempts_without_a_correction_are_a_share_of_all_attempts():
    """1 of 4 at problem a, 1 of 1 at b: 2 of 5, and not the mean of 1 / 4 and 1."""
    records = [*RECORDS[:2], record("a", False, (True, False)), record("a", True), record("b", True)]
    assert correction_figures(records, resamples=20)["without_correction"].estimate == 2 / 5


def test_a_rate_without_an_attempt_of_its_kind_is_left_out():
    found = correction_figures([record("a", True, (True, False)), record("b", True, (True, False))])
    assert "w2c" not in found and found["c2c"].estimate == 1.0
    assert "copy_rate" not in correction_figures([record("a", True)])
    with pytest.raises(ValueError, match="nothing to report"):
        correction_figures([])


DRAWN = st.lists(
    st.tuples(st.sampled_from("abc"), st.booleans(), st.lists(st.tuples(st.booleans(), st.booleans()), max_size=3)),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(DRAWN)
def test_a_dump_says_what_training_logged_when_attempts_are_even(drawn):
    """Training weighs attempts, this weighs problems: the same where every problem has as many attempts."""
    records = [record(f"{i}", anchor, *turns) for i, (_, anchor, turns) in enumerate(drawn)]
    compare(records, ("accuracy_turn1", "accuracy_turn2", "copy_rate", "c2c", "c2w", "w2c", "w2w"))


@settings(deadline=None)
@given(DRAWN)
def test_rates_of_corrections_are_the_same_when_attempts_are_uneven(drawn):
    compare([record(*each[:2], *each[2]) for each in drawn], ("copy_rate", "c2c", "c2w", "w2c", "w2w", "retry"))


def compare(records: list[dict], names: tuple[str, ...]) -> None:
    logged = second_turn_metrics(records, {})
    found = correction_figures(records, resamples=20)
    for name in names:
        assert (f"cipo/val/{name}" in logged) == (name in found)
        if name in found:
            assert found[name].estimate == pytest.approx(logged[f"cipo/val/{name}"])


def test_a_given_response_is_the_anchor_and_tells_nothing_of_a_retry():
    rows = [
        {
            "input": each["question"],
            "gts": "1",
            "anchor_correct": each["anchor_correct"],
            "acc": right,
            "copied": copied,
        }
        for each in RECORDS
        for right, copied in [(turn["correct"], turn["copied"]) for turn in each["corrections"]]
    ]
    found, of_records = correction_figures(rows, resamples=200), correction_figures(RECORDS, resamples=200)
    assert "retry" not in found and "w2c_over_retry" not in found
    for name in ("c2c", "c2w", "w2c", "w2w", "over_correction", "repair", "copy_rate", "copy_rate_failed"):
        assert found[name] == of_records[name]


def run(*arguments: object) -> int:
    return evaluate.main(list(map(str, arguments)))


def test_the_dumps_of_a_run_are_read(tmp_path, capsys):
    for step in (10, 9):
        dump_second_turns([each | {"data_source": "s"} for each in RECORDS], str(tmp_path), step, temperature=1.0)
    output = tmp_path / "out.json"
    assert run("--second-turns", tmp_path / "corrections", "--output", output, "--markdown") == 0
    steps = json.loads(output.read_text())["steps"]
    assert [step["file"].rpartition("/")[2] for step in steps] == ["9.jsonl", "10.jsonl"]
    assert steps[0]["benchmarks"]["s"]["w2c"]["estimate"] == 0.25
    assert "| 9 | s | 50.0" in output.with_suffix(".md").read_text()
    out = capsys.readouterr().out
    assert out == for_terminal(output.with_suffix(".md").read_text()) and "|" not in out
    # Too wide for a terminal: a line a figure, all of them.
    assert [line.split()[0] for line in out.splitlines()] == ["step", "benchmark", *FIGURES]
    (gain,) = (line for line in out.splitlines() if line.startswith("gain"))
    assert gain.split()[1] == "0.0"


@pytest.mark.parametrize("given", [".", "validation", "validation/corrections"])
def test_a_run_is_taken_as_the_folder_of_its_corrections(given, tmp_path):
    dump_second_turns(RECORDS, str(tmp_path / "validation"), 3, temperature=1.0)
    assert run("--second-turns", tmp_path / given, "--output", tmp_path / "out.json") == 0
    assert not (tmp_path / "out.md").exists(), "nobody asked for it"


def test_a_dump_of_answers_is_named_and_not_called_a_file_of_bad_lines(tmp_path, capsys):
    (tmp_path / "1.jsonl").write_text(json.dumps({"input": "q", "output": "a", "score": 1.0, "gts": "1"}) + "\n")
    for more in ([], ["--skip-bad"]):
        assert run("--second-turns", tmp_path / "1.jsonl", "--output", tmp_path / "out.json", *more) == 1
        told = capsys.readouterr().err
        assert "no line of it is an attempt with its corrections" in told
        assert "this is a dump of answers: --dumps and --rescore read it" in told and "--skip-bad leaves" not in told


def test_a_line_that_is_no_record_is_named(tmp_path, capsys):
    dump_second_turns([each | {"data_source": "s"} for each in RECORDS], str(tmp_path), 1, temperature=1.0)
    file = tmp_path / "corrections" / "1.jsonl"
    file.write_text(file.read_text() + '{"question": "a"}\n{"torn')
    assert run("--second-turns", file, "--output", tmp_path / "out.json") == 1
    told = capsys.readouterr().err
    assert f"{file}:5: lacks anchor_correct (bool), corrections (list)" in told and f"{file}:6: not JSON" in told
    assert run("--second-turns", file, "--output", tmp_path / "out.json", "--skip-bad") == 0
    (step,) = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert step["bad_lines"] == 2 and step["benchmarks"]["s"]["c2c"]["estimate"] == 0.5
    assert run("--second-turns", tmp_path / "gone", "--output", tmp_path / "out.json") == 1


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"corrections": [{"correct": True}]}, "a correction lacks one of correct, copied"),
        ({"corrections": [{"correct": "yes", "copied": False}]}, "a correction lacks one of correct, copied"),
        ({"corrections": ["x"]}, "a correction lacks one of correct, copied"),
        ({"anchor_correct": None}, "lacks anchor_correct (bool)"),
        ({"chat": 3}, "chat is no text: 3"),
        ({"temperature": None}, "temperature is no number: None"),
        ({"temperature": float("nan")}, "temperature is no number: nan"),
        ({"second": "no"}, "second, the second verifier's verdict, is not true, false or null"),
        ({"corrections": [{"correct": True, "copied": False, "second": 1}]}, "second, the second verifier's verdict"),
    ],
)
def test_a_line_that_cannot_be_counted_is_a_bad_line(changes, told, tmp_path, capsys):
    file, output = tmp_path / "1.jsonl", tmp_path / "out.json"
    file.write_text(
        "".join(json.dumps(each | {"data_source": "s"}) + "\n" for each in [*RECORDS, RECORDS[0] | changes])
    )

    assert run("--second-turns", file, "--output", output) == 1
    assert f"{file}:5: {told}" in capsys.readouterr().err

    assert run("--second-turns", file, "--output", output, "--skip-bad") == 0
    (step,) = json.loads(output.read_text())["steps"]
    assert step["bad_lines"] == 1 and step["benchmarks"]["s"]["c2c"]["estimate"] == 0.5

    file.write_text(json.dumps(RECORDS[0] | changes) + "\n")
    assert run("--second-turns", file, "--output", output, "--skip-bad") == 1
    said = capsys.readouterr().err
    assert f"line 1 {told}" in said and "this is" not in said


def test_an_attempt_is_counted_once(tmp_path, capsys):
    """Beside itself a wrong attempt would be a further one: retry would be lower."""
    lines = [each | {"uid": "u", "session": session, "data_source": "s"} for session, each in enumerate(RECORDS)]
    file, output = tmp_path / "1.jsonl", tmp_path / "out.json"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[1]]))
    assert run("--second-turns", file, "--output", output) == 1
    assert f"{file}:5: session 1 of the uid u was there before" in capsys.readouterr().err
    assert run("--second-turns", file, "--output", output, "--skip-bad") == 0
    (step,) = json.loads(output.read_text())["steps"]
    assert step["benchmarks"]["s"]["retry"]["estimate"] == 1.0


def test_a_dump_that_a_killed_run_left_torn_is_skipped_with_its_step(tmp_path, capsys):
    for step in (1, 2):
        dump_second_turns([each | {"data_source": "s"} for each in RECORDS], str(tmp_path), step, temperature=1.0)
    torn, output = tmp_path / "corrections" / "2.jsonl", tmp_path / "out.json"
    torn.write_text('{"question": "a", "anch')
    assert run("--second-turns", tmp_path, "--output", output) == 1
    assert f"{torn}:1: not JSON" in capsys.readouterr().err
    assert run("--second-turns", tmp_path, "--output", output, "--skip-bad") == 0
    steps = json.loads(output.read_text())["steps"]
    assert [(step["bad_lines"], list(step["benchmarks"])) for step in steps] == [(0, ["s"]), (1, [])]
