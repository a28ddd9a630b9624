"""Examples of corrections: which are taken, from where, and how long they may be."""

import pytest

from tests.fast.evaluation.report.report_folders import second_turn, write_lines, write_run
from verl_cipo.evaluation.report.examples import cut, gather
from verl_cipo.evaluation.report.runs import read_arms


def runs_of(*folders):
    return [run for arm in read_arms(list(map(str, folders)), []) for run in arm.runs]


def test_every_correction_becomes_an_example_with_both_verdicts(tmp_path):
    found = gather(runs_of(write_run(tmp_path / "run")), limit=400, characters=1000, bad=[])

    assert found.found == {"w2c": 7, "c2w": 1, "c2c": 1, "w2w": 2}
    assert [example.transition for example in found.shown] == ["w2c"] * 7 + ["c2w", "c2c", "w2w", "w2w"]
    spoiled = found.shown[7]
    assert (spoiled.question, spoiled.attempt, spoiled.correction) == ("spoiled", "42", "43")
    assert (spoiled.run, spoiled.step, spoiled.truth, spoiled.source) == ("run", 2, "42", "openai/gsm8k")
    assert [example.copied for example in found.shown[8:]] == [True, False, True]


def test_the_room_is_shared_by_runs_and_transitions_and_filled_evenly(tmp_path):
    runs = runs_of(write_run(tmp_path / "a"), write_run(tmp_path / "b"))

    found = gather(runs, limit=24, characters=1000, bad=[])

    repaired = [example.question for example in found.shown if (example.run, example.transition) == ("a", "w2c")]
    assert repaired == ["repaired 0", "repaired 2", "repaired 4"]
    assert found.found["w2c"] == 14
    assert len(found.shown) == 2 * (3 + 1 + 1 + 2)


def test_the_newest_dump_is_read(tmp_path):
    folder = write_run(tmp_path / "run")
    write_lines(folder / "validation/corrections/10.jsonl", [second_turn("new", "1", False, ("2", True))])

    (example,) = gather(runs_of(folder), limit=9, characters=100, bad=[]).shown

    assert (example.question, example.step) == ("new", 10)


def test_a_run_without_dumps_gives_nothing(tmp_path):
    found = gather(runs_of(write_run(tmp_path / "run") / "metrics.jsonl"), limit=9, characters=100, bad=[])

    assert found.shown == ()


@pytest.mark.parametrize("broken", ["anchor_correct", "question", "corrections"])
def test_a_malformed_line_is_named_and_left_out(tmp_path, broken):
    folder = write_run(tmp_path / "run")
    line = second_turn("q", "1", False, ("2", True))
    del line[broken]
    path = write_lines(folder / "validation/corrections/3.jsonl", [second_turn("whole", "1", True, ("1", True)), line])
    bad = []

    found = gather(runs_of(folder), limit=9, characters=100, bad=bad)

    assert [example.question for example in found.shown] == ["whole"]
    assert [(item.path, item.line) for item in bad] == [(path, 2)] and broken in bad[0].reason


def test_a_question_with_images_is_shown_with_their_places(tmp_path):
    """As core.transitions.attempt_record writes it."""
    folder = write_run(tmp_path / "run")
    parts = [{"type": "text", "text": "How many in "}, {"type": "image", "index": 7}, {"type": "text", "text": "?"}]
    lines = [second_turn("q", "1", False, ("2", True)) | {"question": asked} for asked in (parts, 3)]
    path = write_lines(folder / "validation/corrections/3.jsonl", lines)
    bad = []

    (example,) = gather(runs_of(folder), limit=9, characters=100, bad=bad).shown

    assert example.question == "How many in [image]?"
    assert [str(line) for line in bad] == [f"{path}:2: question is neither text nor parts: 3"]


def test_a_malformed_correction_is_named_and_left_out(tmp_path):
    folder = write_run(tmp_path / "run")
    line = second_turn("q", "1", False, ("2", True), ("3", True))
    del line["corrections"][0]["correct"]
    write_lines(folder / "validation/corrections/3.jsonl", [line])
    bad = []

    (example,) = gather(runs_of(folder), limit=9, characters=100, bad=bad).shown

    assert example.correction == "3"
    assert len(bad) == 1


def test_long_texts_lose_their_middle():
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 3) == "a\n[\u2026 4 characters left out \u2026]\nfg"
    assert cut("abcdefg", 1) == "\n[\u2026 6 characters left out \u2026]\ng"
