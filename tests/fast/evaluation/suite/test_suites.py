import importlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.common.convert import main as convert
from tests.conftest import ROOT
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.suite.problems import (
    SUITES_FILE,
    Sampling,
    check_files,
    digest,
    load_suite,
    read_problems,
)
from verl_cipo.evaluation.suite.verifier import Verifier, load_function

ELEVEN = {
    *("aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench"),
    *("livecodebench", "humaneval_plus", "mbpp_plus", "criticbench", "debugbench"),
}
LAYOUTS = runpy.run_path(str(ROOT / "tests" / "fast" / "data_prep" / "layouts_evaluation.py"))["CASES"]


def converter_of(benchmark):
    """(module, options) of a benchmark's converter."""
    _, script, *options = benchmark.converter.split()
    return Path(script).stem, options


@pytest.mark.parametrize("benchmark", load_suite("all"), ids=lambda benchmark: benchmark.name)
def test_a_benchmark_is_what_its_converter_writes_and_its_verifier_judges(benchmark, tmp_path):
    name, options = converter_of(benchmark)
    case = LAYOUTS[name]
    dataset = importlib.import_module(f"data_prep.{name}").DATASET
    task = options[options.index("--task") + 1] if "--task" in options else ""
    assert benchmark.file == f"{dataset.name.format(task=task)}/test.parquet"

    raw = tmp_path / "raw" / f"{case['file']}.json"
    raw.parent.mkdir(parents=True)
    raw.write_text(json.dumps(case["rows"]))
    given = ["--local_dataset_path", str(tmp_path / "raw"), "--local_save_dir", str((tmp_path / benchmark.file).parent)]
    assert convert(dataset, "", [*given, *(["--task", task] if task else [])]) == 0

    (first, *_) = read_problems(benchmark, tmp_path)
    assert first.key == f"{benchmark.name.replace('_', '-')}-0" and "_" not in first.key
    assert first.messages[-1]["role"] == "user" and first.ground_truth
    assert (first.group is None) == (benchmark.group is None), "the group is no field of the file's extra_info"

    # The case's answers are to the critique task.
    answers = (r"\boxed{4}", r"\boxed{5}") if task == "correction" else case["answers"]
    right, wrong = Verifier(load_function(benchmark.verifier)).judge([(first, answer) for answer in answers])
    assert right.correct and not wrong.correct


def test_all_is_the_eleven_benchmarks_of_the_three_suites():
    assert [one.name for one in load_suite("all")] == [
        one.name for part in ("math6", "code", "correction") for one in load_suite(part)
    ]
    assert {converter_of(one)[0] for one in load_suite("all")} == ELEVEN
    tasks = {one.name for one in load_suite("correction")}
    assert tasks == {"criticbench_critique", "criticbench_correction", "debugbench"}


def test_a_benchmark_has_the_suites_sampling_but_for_its_own():
    sampling = {one.name: one.sampling for one in load_suite("math6")}
    assert sampling["aime24"] == Sampling(n=32, temperature=0.6, top_p=0.95, max_tokens=8192)
    assert sampling["math500"] == replace(sampling["aime24"], n=8)
    assert [one.corrections for one in load_suite("correction")] == [0, 0, 0]


def test_missing_data_names_every_converter(tmp_path):
    with pytest.raises(EvaluationError) as error:
        check_files(load_suite("all"), tmp_path)
    for benchmark in load_suite("all"):
        wanted = f"{benchmark.converter} --local_save_dir {tmp_path / Path(benchmark.file).parent}"
        assert wanted in str(error.value)


def write_suites(path, **changes):
    content = yaml.safe_load(SUITES_FILE.read_text())
    content["suites"]["math6"] |= changes
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"sampling": {"n": 0, "temperature": 1.0, "top_p": 1.0, "max_tokens": 9}}, "sampling.n = 0"),
        ({"sampling": {"n": 2, "temperature": 0.0, "top_p": 1.0, "max_tokens": 9}}, "n = 2 with temperature 0"),
        ({"sampling": {"n": 2, "temperature": 1.0, "top_p": 1.5, "max_tokens": 9}}, "top_p = 1.5"),
        ({"sampling": {"n": 2, "temperature": 1.0, "top_p": 1.0}}, "math6.sampling lacks the keys max_tokens"),
        ({"top_k": 3}, r"math6 has the unknown keys \['top_k'\]"),
        ({"sampling": {"n": 2, "temperature": "hot", "top_p": 1.0, "max_tokens": 9}}, "temperature = 'hot'"),
        ({"sampling": {"n": 2, "temperature": 1.0, "top_p": None, "max_tokens": 9}}, "top_p = None"),
        ({"sampling": {"n": 2, "temperature": float("inf"), "top_p": 1.0, "max_tokens": 9}}, "temperature = inf"),
        ({"sampling": {"n": True, "temperature": 1.0, "top_p": 1.0, "max_tokens": 9}}, "n = True"),
        ({"corrections": -1}, "math6.corrections = -1"),
        ({"corrections": True}, "math6.corrections = True"),
        ({"benchmarks": None}, "math6.benchmarks is None: expected a mapping"),
        ({"benchmarks": ["aime24"]}, r"math6.benchmarks is \['aime24'\]: expected a mapping"),
        ({"benchmarks": {"aime42": {}}}, "benchmark 'aime42'"),
        ({"benchmarks": {"aime24": {"nn": 1}}}, r"aime24 has the unknown keys \['nn'\]"),
    ],
)
def test_a_faulty_suite_is_refused_with_its_place(changes, told, tmp_path):
    with pytest.raises(EvaluationError, match=told):
        load_suite("math6", write_suites(tmp_path / "s.yaml", **changes))


@pytest.mark.parametrize(
    "content, told",
    [
        ({"benchmarks": {}, "suites": None}, "suites is None: expected a mapping"),
        ({"benchmarks": None, "suites": {}}, "benchmarks is None: expected a mapping"),
        ({"benchmarks": {}, "suites": {"math6": {"suites": None}}}, "math6.suites is None: expected a list"),
        ({"benchmarks": {}, "suites": {6: {}}}, "suite 'math6' is not in .* Expected one of 6"),
        ({"benchmarks": {}, "suites": {}, 3: {}, "x": {}}, r"unknown keys \[3, 'x'\]"),
    ],
)
def test_a_file_of_another_layout_is_refused_with_its_place(content, told, tmp_path):
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(EvaluationError, match=told):
        load_suite("math6", tmp_path / "s.yaml")


def test_a_benchmarks_file_is_a_text(tmp_path):
    content = yaml.safe_load(SUITES_FILE.read_text())
    content["benchmarks"]["aime24"]["file"] = 24
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(EvaluationError, match="benchmarks.aime24.file = 24: expected a text"):
        load_suite("math6", tmp_path / "s.yaml")


def test_an_unknown_suite_is_named_with_the_nearest():
    with pytest.raises(EvaluationError, match="'maths6'.*Did you mean math6.*correction"):
        load_suite("maths6")


def test_a_suite_of_itself_is_refused(tmp_path):
    content = yaml.safe_load(SUITES_FILE.read_text())
    content["suites"]["all"] = {"suites": ["all"]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(EvaluationError, match="made of itself"):
        load_suite("all", tmp_path / "s.yaml")


def write_problems(path, **columns):
    row = {
        "data_source": "s",
        "prompt": [{"role": "user", "content": "q"}],
        "reward_model": {"ground_truth": "1"},
        "extra_info": {"question": "q"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row | columns, row | columns | {"data_source": "t"}]), path)


def test_problems_are_limited_and_their_digest_follows_them(tmp_path):
    (aime, *_) = load_suite("math6")
    write_problems(tmp_path / aime.file)
    two, one = read_problems(aime, tmp_path), read_problems(aime, tmp_path, limit=1)
    assert [problem.data_source for problem in two] == ["s", "t"] and one == two[:1]
    assert digest(one) != digest(two) == digest(read_problems(aime, tmp_path))
    assert digest(one) != digest([replace(one[0], ground_truth="2")])


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt", ["q"]),
        ("prompt", [{"role": "user"}]),
        ("prompt", [{"role": "user", "content": None}]),
        ("reward_model", '{"ground_truth": "1"}'),
        ("reward_model", ["ground_truth"]),
        ("extra_info", '{"index": 0}'),
    ],
)
def test_a_row_that_is_not_as_verl_has_it_is_refused_with_its_column(column, value, tmp_path):
    """Columns of JSON text, as some files have them, among others."""
    (aime, *_) = load_suite("math6")
    write_problems(tmp_path / aime.file, **{column: value})
    with pytest.raises(EvaluationError, match=f"row 0: {column} is .*expected a "):
        read_problems(aime, tmp_path)


def test_a_file_without_a_column_or_for_another_verifier_is_refused(tmp_path):
    (aime, *_) = load_suite("math6")
    write_problems(tmp_path / aime.file, ability="code")
    with pytest.raises(EvaluationError, match="row 0 is for the verifier code, benchmark aime24 has math"):
        read_problems(aime, tmp_path)
    pq.write_table(pa.table({"prompt": ["q"]}), tmp_path / aime.file)
    with pytest.raises(EvaluationError, match="no column data_source, reward_model; it has prompt;.*\n.*aime24.py"):
        read_problems(aime, tmp_path)
