"""Every converter on rows in the published layout, in every format; what verl reads from the result."""

import importlib
import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

VERL_KEYS = ["data_source", "prompt", "ability", "reward_model", "extra_info"]


def parsed(truth: str):
    return json.loads(truth) if truth.startswith("{") else truth


def test_every_converter_has_a_case(cases):
    # reasoning_gym reads no files: test_reasoning_gym.py.
    names = {path.stem for path in (ROOT / "data_prep").glob("*.py")} - {"__init__", "reasoning_gym"}
    assert names == set(cases)


def test_rows_become_what_they_have_to_in_every_format(name, case, write, run, tmp_path):
    for ending in case.formats:
        write(tmp_path / ending / (case.file + ending), case.rows)
        assert run(name, tmp_path / ending, *case.options) == 0
        rows = pq.read_table(tmp_path / "out" / f"{case.split}.parquet").to_pylist()
        assert list(rows[0]) == VERL_KEYS
        assert rows[0]["prompt"] == [{"role": "user", "content": case.prompt}]
        assert [parsed(row["reward_model"]["ground_truth"]) for row in rows] == case.truths
        assert {row["reward_model"]["style"] for row in rows} == {"rule"}
        assert {key: rows[0]["extra_info"][key] for key in case.extra} == case.extra
        assert [row["extra_info"]["index"] for row in rows] == list(range(len(case.truths)))
        assert {row["extra_info"]["split"] for row in rows} == {case.split}
        assert {row["ability"] for row in rows} <= {"math", "code"}
        assert not any(row["data_source"].startswith("numina") for row in rows)
        stats = json.loads((tmp_path / "out" / f"{case.split}_stats.json").read_text())
        assert (stats["read"], stats["kept"]) == (len(case.rows), len(case.truths))
        assert stats["dropped"] == case.dropped
        example = json.loads((tmp_path / "out" / f"{case.split}_example.json").read_text())
        assert example == rows[0]
        shutil.rmtree(tmp_path / "out")


def test_verl_reads_the_file_and_gives_the_prompt_to_the_chat_template(name, case, converted, tmp_path):
    from omegaconf import OmegaConf
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from verl.utils.dataset.rl_dataset import RLHFDataset

    words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}{% endfor %}"
    config = OmegaConf.create({"cache_dir": str(tmp_path / "cache"), "max_prompt_length": 4096})
    dataset = RLHFDataset(str(converted(name, case)), tokenizer, config)
    assert len(dataset) == len(case.truths)
    item = dataset[0]
    assert item["raw_prompt"] == [{"role": "user", "content": case.prompt}]
    assert item["index"] == 0
    assert parsed(item["reward_model"]["ground_truth"]) == case.truths[0]


def test_a_row_with_a_missing_field_is_named_and_nothing_is_written(name, case, write, run, tmp_path, capsys):
    """The fields whose loss has to be an error: all that the question and the ground truth come from."""
    needed = {
        "gsm8k": ("question", "answer"),
        "math_lighteval": ("problem", "solution"),
        "dapo_math": ("prompt", "reward_model"),
        "deepscaler": ("problem", "answer"),
        "apps": ("question", "problem_id"),
        "taco": ("question",),
        "code_contests": ("name", "description"),
        "aime24": ("problem", "answer"),
        "aime25": ("problem", "answer"),
        "amc23": ("question", "answer"),
        "math500": ("problem", "answer"),
        "minerva": ("question", "answer"),
        "olympiadbench": ("question", "final_answer", "is_multiple_answer"),
        "livecodebench": ("question_content", "question_id", "contest_date", "public_test_cases", "private_test_cases"),
        "humaneval_plus": ("task_id", "prompt", "entry_point", "test"),
        "mbpp_plus": ("task_id", "code", "prompt", "test_list", "test"),
        "criticbench": ("id", "question", "question_source", "response_label", "answer"),
        "debugbench": ("slug", "language", "question", "examples", "buggy_code", "solution"),
    }
    for missing in needed.get(name, ()):
        row = {
            key: value
            for key, value in case.rows[0].items()
            if key not in (missing, "solution" * (missing == "answer"))
        }
        source = write(tmp_path / "raw" / (case.file + ".jsonl"), [case.rows[0], row])
        assert run(name, tmp_path / "raw", *case.options) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {source}:2: field "), line
        assert missing in line and "expected" in line
        assert not (tmp_path / "out").exists()


def test_command_line_help_as_a_script_and_as_a_module(name):
    module = importlib.import_module(f"data_prep.{name}")
    assert f"python data_prep/{name}.py" in module.__doc__
    if name not in ("gsm8k", "math_lighteval"):  # The others start alike; two processes each take their time.
        return
    for command in ([f"data_prep/{name}.py"], ["-m", f"data_prep.{name}"]):
        done = subprocess.run(
            [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "--local_dataset_path" in done.stdout and "--decontaminate" in done.stdout


def test_converters_import_neither_torch_nor_verl_nor_datasets(cases):
    code = "import sys, " + ", ".join(f"data_prep.{name}" for name in cases)
    code += "; assert not {'torch', 'verl', 'verl_cipo', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("name", ["apps", "code_contests", "humaneval_plus", "livecodebench", "taco"])
def test_max_tests_keeps_the_first_tests(name, cases, write, run, tmp_path):
    case = cases[name]
    write(tmp_path / "raw" / (case.file + ".jsonl"), case.rows)
    assert run(name, tmp_path / "raw", *case.options, "--max_tests", "1") == 0
    rows = pq.read_table(tmp_path / "out" / f"{case.split}.parquet").to_pylist()
    kept = [parsed(row["reward_model"]["ground_truth"]).get("inputs") for row in rows]
    whole = [truth.get("inputs") for truth in case.truths]
    assert kept == [inputs and inputs[:1] for inputs in whole]
    assert kept != whole, "the case has a row of more than one test"
