"""The converter of reasoning-gym, which makes its rows itself."""

import json
import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

pytest.importorskip("reasoning_gym", reason="pip install --no-deps -r requirements/lm.txt")

from data_prep import reasoning_gym as converter  # noqa: E402
from data_prep.common.overlap import text_key  # noqa: E402
from verl_cipo.rewards.reasoning_gym import compute_score  # noqa: E402


@pytest.fixture
def make(tmp_path):
    """make(*options) runs the converter and returns the rows of both splits and their counts."""

    def run(*options: str, train: int = 30, test: int = 10) -> tuple[dict[str, list[dict]], dict[str, dict]]:
        sizes = ["--train_size", str(train), "--test_size", str(test), "--local_save_dir", str(tmp_path / "out")]
        assert converter.main([*options, *sizes]) == 0
        rows = {split: pq.read_table(tmp_path / "out" / f"{split}.parquet").to_pylist() for split in ("train", "test")}
        stats = {split: json.loads((tmp_path / "out" / f"{split}_stats.json").read_text()) for split in rows}
        return rows, stats

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """refused(*options) is the one line that the converter ends with."""

    def run(*options: str) -> str:
        assert converter.main([*options, "--local_save_dir", str(tmp_path / "out")]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.removeprefix("error: ").strip()

    return run


SMALL = ("--tasks", "chain_sum", "--config", "max_terms=2", "max_digits=1")


def test_rows_are_verls(make):
    rows, stats = make("--tasks", "chain_sum", "gcd", "--seed", "7")
    assert {split: len(found) for split, found in rows.items()} == {"train": 60, "test": 20}
    first = rows["test"][0]
    assert first["data_source"] == "reasoning_gym/chain_sum" and first["ability"] == "reasoning"
    assert first["prompt"] == [{"role": "user", "content": f"{first['extra_info']['question']}\n\n{converter.ANSWER}"}]
    assert first["extra_info"]["id"] == "chain_sum:7" and first["extra_info"]["task"] == "chain_sum"
    assert [row["extra_info"]["index"] for row in rows["train"]] == list(range(60))
    assert stats["train"]["kept"] == 60 and stats["train"]["tasks"] == {"chain_sum": {}, "gcd": {}}


def test_no_question_is_there_twice_and_none_in_both_splits(make):
    """Two numbers of one digit make 200 questions, so that 150 of them come with many repeats."""
    rows, stats = make(*SMALL, train=100, test=50)
    keys = {split: [text_key(row["extra_info"]["question"]) for row in found] for split, found in rows.items()}
    assert len(set(keys["train"])) == 100 and len(set(keys["test"])) == 50
    assert not set(keys["train"]) & set(keys["test"])
    repeats = stats["train"]["dropped"]["question is there already"]
    assert repeats > 0 and stats["train"]["read"] == 100 + repeats


def test_the_test_split_is_the_same_for_more_training_rows(make):
    assert make(*SMALL, train=20)[0]["test"] == make(*SMALL, train=60)[0]["test"]
    assert make(*SMALL)[0] != make(*SMALL, "--seed", "500")[0]


def test_settings_change_the_questions(make):
    """max_value is a setting of gcd alone, so that it is named with its task."""
    config = ("chain_sum.min_terms=4", "chain_sum.max_terms=4", "gcd.max_value=30", "size=1")
    with pytest.raises(converter.PrepError, match="size"):
        converter.settings(["chain_sum", "gcd"], config)
    rows, stats = make("--tasks", "chain_sum", "gcd", "--config", *config[:-1])
    assert stats["test"]["tasks"] == {"chain_sum": {"min_terms": 4, "max_terms": 4}, "gcd": {"max_value": 30}}
    terms = [len(row["extra_info"]["question"].split(":")[1].split()[:-1][::2]) for row in rows["train"][:30]]
    assert set(terms) == {4}
    numbers = [
        int(number) for row in rows["train"][30:] for number in re.findall(r"\d+", row["extra_info"]["question"])
    ]
    assert numbers and max(numbers) <= 30


def test_the_reward_function_reads_the_rows(make):
    rows, _ = make(*SMALL)
    for row in rows["test"][:3]:
        truth = row["reward_model"]["ground_truth"]
        answer = json.loads(truth)["entry"]["answer"]
        assert compute_score(row["data_source"], f"<answer>{answer}</answer>", truth)["acc"]
        assert not compute_score(row["data_source"], f"<answer>{answer}1</answer>", truth)["acc"]


def test_a_task_without_one_right_answer_is_kept(make):
    rows, _ = make("--tasks", "graph_color")
    assert json.loads(rows["train"][0]["reward_model"]["ground_truth"])["entry"]["answer"] is None


def test_what_is_refused(refused):
    assert refused("--tasks", "chain_sums").startswith("--tasks chain_sums: no task of reasoning-gym")
    assert "chain_sum" in refused("--tasks", "chain_sums")
    assert refused("--tasks", "gcd", "gcd") == "--tasks: gcd is named 2 times"
    unknown = refused("--tasks", "chain_sum", "--config", "max_term=2")
    assert unknown.startswith("--config max_term: chain_sum has no such setting; it has min_terms=2, max_terms=6")
    assert "--config: chain_sum refuses max_terms=1: max_terms must be" in refused(
        "--tasks", "chain_sum", "--config", "max_terms=1"
    )
    assert "--config: chain_sum refuses max_terms='two'" in refused("--tasks", "chain_sum", "--config", "max_terms=two")
    assert refused("--tasks", "gcd", "--config", "lcm.max_value=2").startswith("--config lcm.max_value=2: expected KEY")
    assert refused("--tasks", "gcd", "--config", "seed=2").startswith("--config seed: gcd has no such setting")
    repeats = refused(*SMALL, "--train_size", "300")
    assert "500 entries in a row were left out, the last one because: question is there already." in repeats


def test_a_task_whose_scorer_takes_any_answer_is_refused(refused):
    """Of reasoning-gym 0.1.25: any text is true in game_of_life_halting, and so is the answer False."""
    assert "the last one because: its scorer takes any answer." in refused("--tasks", "game_of_life_halting")


def test_the_script_finds_the_package_and_not_itself(tmp_path):
    command = [sys.executable, ROOT / "data_prep" / "reasoning_gym.py", "--list"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert "chain_sum: min_terms=2, max_terms=6" in listed and "composite" not in listed


def test_without_the_package_one_line_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['reasoning_gym'] = None; from data_prep.reasoning_gym import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--tasks", "chain_sum", "--local_save_dir", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 1 and "pip install '.[reasoning]'" in found.stderr
    assert len(found.stderr.splitlines()) == 1
