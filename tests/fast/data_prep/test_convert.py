"""The loop and the command line that all converters share."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import gsm8k
from data_prep.common import convert, output
from tests.conftest import ROOT


def gsm(question: str, answer: int = 1) -> dict:
    return {"question": question, "answer": f"#### {answer}"}


def table(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def questions(path: Path) -> list[str]:
    return [row["extra_info"]["question"] for row in table(path)]


@pytest.fixture
def gsm_run(write, run, tmp_path):
    """gsm_run(rows, *options, split="train") converts GSM8K rows; returns the exit status."""

    def convert_rows(rows: list, *options: str, split: str = "train") -> int:
        write(tmp_path / "raw" / f"{split}.jsonl", rows)
        return run("gsm8k", tmp_path / "raw", *options)

    return convert_rows


def test_duplicates_go_and_those_with_another_answer_are_counted_apart(gsm_run, tmp_path):
    rows = [gsm("A 3 + 4?", 7), gsm("a 3  +\n4?", 7), gsm("A 3 + 4?", 8), gsm("A 3 - 4?", -1), gsm("A 3 + 4?", 7)]
    assert gsm_run(rows) == 0
    assert questions(tmp_path / "out" / "train.parquet") == ["A 3 + 4?", "A 3 - 4?"]
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert stats["dropped"] == {"duplicate": 2, "duplicate with another answer": 1}


def test_evaluation_splits_keep_duplicates_and_overlaps(gsm_run, tmp_path, write):
    question = "Tom has one two three four five six seven eight nine ten apples now."
    evaluation = write(tmp_path / "evaluation.jsonl", [{"problem": question}])
    assert gsm_run([gsm(question), gsm(question)], "--decontaminate", str(evaluation), split="test") == 0
    assert len(table(tmp_path / "out" / "test.parquet")) == 2


def test_training_rows_that_repeat_an_evaluation_question_go_and_are_named(gsm_run, tmp_path, write, capsys):
    asked = "Tom has one two three four five six seven eight nine ten apples"
    raw = write(tmp_path / "evaluation.jsonl", [{"problem": "Short?"}, {"question": f"{asked}; how many?"}])
    rows = [gsm("One?"), gsm(f"Say: {asked.upper()}!"), gsm("short?"), gsm("Tom has one two three pears; how many?")]
    assert gsm_run(rows, "--decontaminate", str(raw)) == 0
    assert questions(tmp_path / "out" / "train.parquet") == ["One?", "Tom has one two three pears; how many?"]
    reason = f"repeats a question of {raw}"
    assert f"dropped: {reason}" in capsys.readouterr().out
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert stats["dropped"] == {reason: 2}
    train = tmp_path / "raw" / "train.jsonl"
    # 10 of the 12 runs of 4 words, of which the fourth row has two as well.
    share = (8 + 2 / 2) / (8 + 2 / 2 + 2)
    assert stats["dropped_rows"] == [
        {"row": f"{train}:2", "reason": reason, "detail": f"{share:.0%} of {raw}:2"},
        {"row": f"{train}:3", "reason": reason, "detail": f"100% of {raw}:1"},
    ]
    assert gsm_run(rows, "--decontaminate", str(raw), "--decontaminate_n", "13") == 0
    assert len(table(tmp_path / "out" / "train.parquet")) == 3, "of 3 runs of 13 words the second row has one"


def test_evaluation_files_are_all_kept_out_however_they_are_given(gsm_run, tmp_path, write):
    files = [write(tmp_path / f"{name}.jsonl", [{"question": f"{name} question?"}]) for name in ("First", "Second")]
    options = [part for file in files for part in ("--decontaminate", str(file))]
    assert gsm_run([gsm("First question?"), gsm("Second question?"), gsm("Third question?")], *options) == 0
    assert questions(tmp_path / "out" / "train.parquet") == ["Third question?"]


def test_an_evaluation_file_without_a_question_is_refused(gsm_run, tmp_path, write, capsys):
    """A download that broke off keeps nothing out."""
    empty = write(tmp_path / "empty.jsonl", [])
    full = write(tmp_path / "full.jsonl", [{"question": "Asked?"}])
    assert gsm_run([gsm("One?")], "--decontaminate", str(full), str(empty)) == 1
    assert f"--decontaminate {empty}: holds no row" in capsys.readouterr().err


def test_phrases_that_many_training_rows_have_are_no_overlap(gsm_run, tmp_path, write):
    """The rows are looked at twice, so a phrase is known as common before the first row is judged."""
    phrase = "bears dance around an old oak tree in the garden of Eden every night?"
    raw = write(tmp_path / "evaluation.jsonl", [{"problem": f"How many {phrase}"}])
    rows = [gsm(f"At {hour} o'clock {phrase}") for hour in range(20)]
    assert gsm_run([*rows, gsm(f"Say: How many {phrase}")], "--decontaminate", str(raw)) == 0
    assert len(table(tmp_path / "out" / "train.parquet")) == 20
    assert gsm_run(rows[:1], "--decontaminate", str(raw)) == 1, "one row does not show that it is a phrase"


def test_files_made_here_are_read_for_decontamination_by_their_bare_question(gsm_run, tmp_path):
    """Not by the prompt: its instruction is in every row."""
    question = "Sum of one two three four five six seven eight nine ten and eleven?"
    assert gsm_run([gsm(question)], split="test") == 0
    made = tmp_path / "out" / "test.parquet"
    rows = [gsm(question + " Really?"), gsm("Quite another question.")]
    assert gsm_run(rows, "--decontaminate", str(made)) == 0
    assert questions(tmp_path / "out" / "train.parquet") == ["Quite another question."]


def test_a_sample_is_the_same_for_a_seed_whatever_the_order_and_differs_between_seeds(gsm_run, tmp_path):
    rows = [gsm(f"Question {i}?", i) for i in range(200)]
    drawn = []
    for order, seed in ((rows, 1), (rows[::-1], 1), (rows, 2)):
        assert gsm_run(order, "--max_samples", "20", "--seed", str(seed)) == 0
        drawn.append(questions(tmp_path / "out" / "train.parquet"))
        assert [row["extra_info"]["index"] for row in table(tmp_path / "out" / "train.parquet")] == list(range(20))
    kept = [row["question"] for row in rows if row["question"] in drawn[0]]
    assert drawn[0] == kept, "in the order of the file"
    assert set(drawn[0]) == set(drawn[1]) != set(drawn[2])
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert (stats["kept"], stats["dropped"]) == (20, {"not drawn (--max_samples)": 180})


def test_more_samples_than_rows_are_all_rows(gsm_run, tmp_path):
    assert gsm_run([gsm("One?"), gsm("Two?")], "--max_samples", "5") == 0
    assert questions(tmp_path / "out" / "train.parquet") == ["One?", "Two?"]


def test_an_error_leaves_earlier_output_as_it_was(gsm_run, tmp_path, capsys):
    assert gsm_run([gsm("Good?")]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert gsm_run([gsm("Good too?"), {"question": "Bad?", "answer": "no number"}]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: {tmp_path}/raw/train.jsonl:2: field answer: ends in 'no number'; expected a last line '#### number'"
        " (openai/gsm8k; --skip_malformed leaves such rows out and counts them)"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_source_is_not_replaced_by_what_is_made_of_it(tmp_path, run, write, capsys):
    """The hub's own names are those of the output: a copy in ~/data/gsm8k would be lost."""
    source = write(tmp_path / "out" / "train.parquet", [gsm("One?")])
    before = source.read_bytes()
    for given in (tmp_path / "out", source):
        assert run("gsm8k", given) == 1
        assert f"{source} is read, and would be replaced; give another folder" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["train.parquet"]
        assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["test.parquet", "train_stats.json"])
def test_a_folder_in_a_files_place_keeps_all_files_from_appearing(name, gsm_run, tmp_path, write, capsys):
    write(tmp_path / "raw" / "train.jsonl", [gsm("One?")])
    (tmp_path / "out" / name).mkdir(parents=True)
    assert gsm_run([gsm("Two?")], split="test") == 1
    assert f"{tmp_path}/out/{name} is a folder; expected a file or nothing there" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_an_error_in_the_last_split_keeps_the_first_from_appearing(gsm_run, write, tmp_path):
    write(tmp_path / "raw" / "train.jsonl", [gsm("Good?")])
    assert gsm_run([gsm("Good?"), {"question": "Bad?"}], split="test") == 1
    assert not (tmp_path / "out").exists()


def test_malformed_rows_can_be_left_out_by_name(gsm_run, tmp_path, capsys):
    assert gsm_run([{"question": "Bad?"}, gsm("Good?")], "--skip_malformed") == 0
    assert questions(tmp_path / "out" / "train.parquet") == ["Good?"]
    assert "skipped: " in (err := capsys.readouterr().err) and "train.jsonl:1: field answer" in err
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert stats["dropped"] == {"malformed field answer (--skip_malformed)": 1}


def test_a_split_of_which_no_row_is_left_is_an_error(gsm_run, tmp_path, capsys, write):
    evaluation = write(tmp_path / "evaluation.jsonl", [{"question": "Only?"}])
    assert gsm_run([gsm("Only?")], "--decontaminate", str(evaluation)) == 1
    assert "no row of the split train is left of 1; {'repeats a question of " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_missing_or_has_no_split_is_an_error(run, tmp_path, write, capsys):
    assert run("gsm8k", tmp_path / "nothing") == 1
    assert f"{tmp_path}/nothing: not found" in capsys.readouterr().err
    write(tmp_path / "raw" / "validation.jsonl", [gsm("One?")])
    assert run("gsm8k", tmp_path / "raw") == 1
    assert "expected train or test in the name of each file" in capsys.readouterr().err


def test_a_split_that_the_source_lacks_is_said(gsm_run, capsys):
    assert gsm_run([gsm("One?")], split="test") == 0
    assert "train: no file of it in " in capsys.readouterr().out


def test_rows_are_written_in_groups_of_bounded_size(gsm_run, tmp_path, monkeypatch):
    monkeypatch.setattr(output, "GROUP_ROWS", 3)
    assert gsm_run([gsm(f"Question {i}?") for i in range(7)]) == 0
    metadata = pq.ParquetFile(tmp_path / "out" / "train.parquet").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [3, 3, 1]
    monkeypatch.setattr(output, "GROUP_BYTES", 1)
    assert gsm_run([gsm(f"Question {i}?") for i in range(2)]) == 0
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").metadata.num_row_groups == 2


def test_options_and_source_are_recorded(gsm_run, tmp_path):
    assert gsm_run([gsm("One?")], "--seed", "7") == 0
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert stats["options"]["seed"] == 7
    assert (stats["source"], stats["files"]) == (str(tmp_path / "raw"), ["train.jsonl"])


def test_the_hub_is_read_like_a_local_copy_at_the_revision_asked_for(tmp_path, write, monkeypatch):
    import huggingface_hub

    write(tmp_path / "3f2a" / "main" / "train-00000-of-00001.parquet", [gsm("One?")])
    write(tmp_path / "3f2a" / "socratic" / "train-00000-of-00001.parquet", [gsm("Other?")])
    asked = []

    def snapshot_download(repo_id, *, allow_patterns, **options):
        asked.append((repo_id, allow_patterns[0], options))
        # As if the first look, for the folder of the configuration, had found nothing.
        return str(tmp_path / ("3f2a" if len(asked) == 2 else "none"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    arguments = ["--local_save_dir", str(tmp_path / "out"), "--hf_revision", "v1"]
    assert convert.main(gsm8k.DATASET, gsm8k.__doc__, arguments) == 0
    options = {"repo_type": "dataset", "revision": "v1"}
    assert asked == [("openai/gsm8k", "*main/*.parquet", options), ("openai/gsm8k", "*.parquet", options)]
    assert questions(tmp_path / "out" / "train.parquet") == ["One?"]
    assert json.loads((tmp_path / "out" / "train_stats.json").read_text())["source"] == "openai/gsm8k@3f2a"


def test_a_hub_out_of_reach_is_one_line(tmp_path):
    command = [sys.executable, "data_prep/gsm8k.py", "--local_save_dir", str(tmp_path / "out")]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: openai/gsm8k: ") and line.endswith("give a local copy with --local_dataset_path")


def test_a_killed_conversion_leaves_no_part_of_a_file(tmp_path, write):
    """Killed without a chance to clean up, in the middle of the rows and with a row group on the disk."""
    source = write(tmp_path / "raw" / "train.jsonl", [gsm(f"Question {i}?") for i in range(50)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train.parquet").write_bytes(b"earlier")
    code = (
        "import os, signal, sys\n"
        "from data_prep import gsm8k\n"
        "from data_prep.common import convert, output\n"
        "output.GROUP_ROWS = 10\n"
        "add = output.ParquetSink.add\n"
        "def killing(self, example):\n"
        "    add(self, example)\n"
        "    if self.count == 25:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "output.ParquetSink.add = killing\n"
        "convert.main(gsm8k.DATASET, gsm8k.__doc__, sys.argv[1:])\n"
    )
    arguments = ["--local_dataset_path", str(source), "--local_save_dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert left == {"train.parquet"}
    assert (tmp_path / "out" / "train.parquet").read_bytes() == b"earlier"
    assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".train.parquet.")], "it did write"


def test_extra_fields_that_are_not_the_schemas_are_an_error(tmp_path):
    from data_prep.common.records import Example, schema

    example = Example(data_source="d", prompt="p", ability="math", ground_truth="1", question="q", extra={"level": "1"})
    with (
        output.parquet_sink(tmp_path / "a.parquet", schema({}), "train") as sink,
        pytest.raises(KeyError, match="level"),
    ):
        sink.add(example)


def test_a_file_in_the_folders_place_is_named(gsm_run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for below in ("file", "file/out"):
        assert gsm_run([gsm("One?")], "--local_save_dir", str(tmp_path / below)) == 1
        told = f"error: --local_save_dir {tmp_path / below}: {tmp_path / 'file'} is a file; expected a folder\n"
        assert capsys.readouterr().err.endswith(told)


def test_files_that_are_replaced_are_named(gsm_run, tmp_path, capsys):
    assert gsm_run([gsm("One?")]) == 0
    assert "replaced" not in capsys.readouterr().err
    assert gsm_run([gsm("Two?")]) == 0
    assert f"replaced: {tmp_path / 'out' / 'train.parquet'}\n" in capsys.readouterr().err
