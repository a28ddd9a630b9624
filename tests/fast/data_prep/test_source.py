"""Which files are read, and how each format's rows and faults come out."""

import json

import pytest

from data_prep.common.rows import PrepError
from data_prep.common.source import count_rows, find_files, read_rows

ROWS = [{"a": 1, "b": {"c": ["x"]}}, {"a": 2, "b": {"c": []}}]


def names(files):
    return [file.name for file in files]


@pytest.fixture
def folder(tmp_path, write):
    def make(*paths: str):
        for path in paths:
            write(tmp_path / path, ROWS)
        return tmp_path

    return make


def find(path, split, only_split=False, config=None):
    return find_files(path, split, only_split=only_split, config=config)


def test_a_split_is_said_by_a_part_of_the_path(folder):
    root = folder("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-0.parquet")
    assert names(find(root, "train")) == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert names(find(root, "test")) == ["test-0.parquet"]
    assert find(root, "valid") == []


@pytest.mark.parametrize(
    "path", ["train.jsonl", "train/data.json", "x_train.json", "my.train.v2.jsonl", "train2.jsonl"]
)
def test_names_that_say_a_split(folder, path):
    assert len(find(folder(path), "train")) == 1


@pytest.mark.parametrize("path", ["training.jsonl", "retrain.jsonl", "strain/data.json"])
def test_names_that_only_hold_its_letters(folder, path):
    assert find(folder(path), "train") == []


def test_where_there_is_one_split_files_need_not_say_it(folder):
    root = folder("aime2025-I.jsonl", "aime2025-II.jsonl")
    assert names(find(root, "test", only_split=True)) == ["aime2025-I.jsonl", "aime2025-II.jsonl"]
    assert find(root, "test") == []


def test_a_folder_named_like_a_file_is_one(folder):
    """As Spark writes parquet."""
    root = folder("train.parquet/part-0.parquet", "train.parquet/part-1.parquet")
    assert names(find(root, "train")) == ["part-0.parquet", "part-1.parquet"]


def test_where_a_file_says_it_the_others_are_left_out(folder):
    root = folder("test.jsonl", "notes.jsonl")
    assert names(find(root, "test", only_split=True)) == ["test.jsonl"]


def test_only_the_configurations_folder_is_read(folder):
    root = folder("x/main/train.parquet", "x/socratic/train.parquet")
    assert [file.parent.name for file in find(root, "train", config="main")] == ["main"]
    assert len(find(root, "train", config="none")) == 2


def test_one_format_is_read_and_what_lies_beside_data_is_not(folder):
    root = folder("train.jsonl", "train.parquet", "train/state.json", "train/dataset_info.json")
    assert names(find(root, "train")) == ["train.parquet"]
    (root / "train.parquet").unlink()
    (root / "train.jsonl").unlink()
    assert find(root, "train") == []


def test_a_path_of_a_file(folder, tmp_path):
    root = folder("train.jsonl")
    assert find(root / "train.jsonl", "train") == [root / "train.jsonl"]
    assert find(root / "train.jsonl", "test") == []
    assert find(root / "train.jsonl", "test", only_split=True) == [root / "train.jsonl"]
    (tmp_path / "train.csv").write_text("a")
    with pytest.raises(PrepError, match=r"train.csv: the ending is .csv; expected one of .parquet"):
        find(tmp_path / "train.csv", "train")


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".parquet", ".arrow"])
def test_every_format_gives_the_rows_and_their_places(folder, ending):
    path = folder("train" + ending) / ("train" + ending)
    rows = list(read_rows([path, path]))
    assert [row.values for row in rows] == ROWS * 2
    assert [row.where for row in rows] == [f"{path}:1", f"{path}:2"] * 2


def test_only_the_columns_asked_for_are_read_of_parquet(folder):
    path = folder("train.parquet") / "train.parquet"
    assert [row.values for row in read_rows([path], ("a", "none"))] == [{"a": 1}, {"a": 2}]


def test_json_lines_under_the_ending_json_and_blank_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert [(row.values["a"], row.where) for row in read_rows([path])] == [(1, f"{path}:2"), (2, f"{path}:4")]


@pytest.mark.parametrize(
    ("name", "text", "where"), [("a.jsonl", '{"a": 1}\n{"a": ', "a.jsonl:2"), ("a.json", '[{"a": 1}, {', "a.json")]
)
def test_truncated_json_is_named(tmp_path, name, text, where):
    (tmp_path / name).write_text(text)
    with pytest.raises(PrepError, match=rf"{where}: not JSON \(.*\); expected whole JSON in UTF-8"):
        list(read_rows([tmp_path / name]))


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_truncated_binary_files_are_named(tmp_path, write, ending):
    path = write(tmp_path / f"a{ending}", [{"a": "x" * 1000 + str(i)} for i in range(100)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PrepError, match=rf"a{ending}.*unreadable \(.*\); expected a whole"):
        list(read_rows([path]))
    path.write_bytes(b"")
    with pytest.raises(PrepError, match=rf"a{ending}"):
        list(read_rows([path]))


def test_rows_are_counted_where_headers_tell(folder):
    root = folder("train.parquet", "test.jsonl")
    assert count_rows([root / "train.parquet"] * 2) == 4
    assert count_rows([root / "test.jsonl"]) is None


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"a": 1}).encode() + b'\n{"a": "\xff"}\n')
    with pytest.raises(PrepError, match="a.jsonl:2: not JSON"):
        list(read_rows([tmp_path / "a.jsonl"]))
