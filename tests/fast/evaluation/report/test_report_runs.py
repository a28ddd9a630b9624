"""Runs and arms from the command line's words: labels, metrics lines and what is malformed."""

import pytest

from tests.fast.evaluation.report.report_folders import training_step, write_lines, write_metrics, write_run
from verl_cipo.evaluation.jsonl import read_objects
from verl_cipo.evaluation.report.runs import (
    CORRECTIONS,
    UNDER_WAY,
    VALIDATION,
    NothingLoggedError,
    files_of,
    read_arms,
    read_metrics,
)


def test_lines_of_a_step_are_joined_the_later_figure_counts_and_steps_come_in_order(tmp_path):
    path = write_lines(
        tmp_path / "metrics.jsonl",
        [
            {"step": 2, "data": {"a": 1, "b": 2}},
            {"step": 1, "data": {"a": 5}},
            {"step": 2, "data": {"a": 3.5, "name": "text", "none": None}},
        ],
    )
    bad = []

    found, undefined = read_metrics([path], bad)
    assert (found, undefined) == ({1: {"a": 5.0}, 2: {"a": 3.5, "b": 2.0}}, {"none": [2]})
    assert list(found) == [1, 2]
    assert bad == []


def test_starts_of_a_run_are_one_run(tmp_path):
    """A start killed after step 4 and resumed from the checkpoint of step 2; then a third one, from that of step 3."""

    def logged(name, lines):
        return write_lines(tmp_path / name, [{"step": step, "data": data} for step, data in lines])

    def trained(step, loss):
        return step, {"training/global_step": step, "loss": loss}

    logged("metrics_1.jsonl", [(0, {"val": 0.0}), *(trained(step, 1.0) for step in (1, 2, 3, 4))])
    # At its start it validates the model of step 2, which the first one has trained.
    logged("metrics_2.jsonl", [(2, {"val": 0.2}), trained(3, 2.0)])
    logged("metrics_10.jsonl", [(3, {"val": 0.3})])
    logged("metrics.jsonl", [(3, {"val": 0.4}), trained(4, 3.0)])
    logged("metrics_old.jsonl", [trained(9, 9.0)])

    (arm,) = read_arms([str(tmp_path)], [])
    metrics = arm.runs[0].metrics
    assert {step: figures.get("loss") for step, figures in metrics.items()} == {0: None, 1: 1.0, 2: 1.0, 3: 2.0, 4: 3.0}
    assert {step: figures["val"] for step, figures in metrics.items() if "val" in figures} == {0: 0.0, 2: 0.2, 3: 0.4}


def test_a_run_that_has_not_logged_since_its_last_start_is_what_it_was(tmp_path):
    write_lines(tmp_path / "metrics_1.jsonl", [{"step": 1, "data": {"a": 1}}])
    assert read_arms([str(tmp_path)], [])[0].runs[0].metrics == {1: {"a": 1.0}}


def test_what_the_demo_logs_before_it_ends_counts(tmp_path):
    """As the demo's launcher has it: resumed from step 1, and not joined to what the start before logged."""
    write_metrics(tmp_path / "metrics.jsonl", {step: training_step(step, rho=0.1) for step in (1, 2, 3)})
    write_metrics(tmp_path / UNDER_WAY, {2: training_step(2, rho=0.2)})

    (arm,) = read_arms([str(tmp_path)], [])

    assert {step: figures["cipo/rho"] for step, figures in arm.runs[0].metrics.items()} == {1: 0.1, 2: 0.2}


def test_files_of_a_run(tmp_path):
    folder = write_run(tmp_path / "run")
    write_metrics(folder / "metrics_1.jsonl", {1: {"a": 1}})
    write_lines(folder / "rollouts/1.jsonl", [])

    found = {str(file.relative_to(folder)) for file in files_of(folder)}
    assert found == {
        *("metrics_1.jsonl", "metrics.jsonl", "validation/0.jsonl", "validation/2.jsonl"),
        *("validation/corrections/2.jsonl", "hydra/.hydra/config.yaml", "hydra/.hydra/overrides.yaml"),
    }
    assert files_of(folder / "metrics.jsonl") == [folder / "metrics.jsonl"]
    assert files_of(tmp_path / "none") == []


def test_figures_that_are_not_finite_are_no_figures(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "data": {"a": NaN, "b": Infinity, "c": -Infinity, "d": 0, "e": 1' + "0" * 400 + "}}\n")

    undefined = dict.fromkeys("abce", [1])
    assert read_metrics([path], []) == ({1: {"d": 0.0}}, undefined)


def test_null_is_how_the_logger_writes_what_is_not_finite_and_texts_are_no_figures(tmp_path):
    first, second = tmp_path / "metrics_1.jsonl", tmp_path / "metrics.jsonl"
    start = {"training/global_step": 1}
    write_metrics(first, {2: {"a": None}, 3: {**start, "a": None}, 4: {"a": 1.0}})
    write_metrics(second, {3: {**start, "a": 2.0}, 4: {"a": None, "b": "text", "c": [1]}})

    found, undefined = read_metrics([first, second], [])
    assert found == {2: {}, 3: {"training/global_step": 1.0, "a": 2.0}, 4: {}}
    assert undefined == {"a": [2, 4]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"step": 1, "data": {"a"', "not JSON"),
        (b'{"step": 1, "data": {"\xe2\x80', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"step": "1", "data": {}}', "lacks step (int)"),
        (b'{"step": 1}', "lacks data (dict)"),
    ],
)
def test_a_malformed_line_is_named_with_file_and_line_and_the_others_are_kept(tmp_path, line, reason):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0, "data": {"a": 1}}\n\n' + line + b"\n")
    bad = []

    assert read_metrics([path], bad) == ({0: {"a": 1.0}}, {})
    (found,) = bad
    assert str(found).startswith(f"{path}:3: ") and reason in str(found)


def test_a_line_may_hold_unicode_line_ends(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"text": "a\u2028b\x85c"}, {"text": "d"}])

    assert [line["text"] for _, line in read_objects(path, [], {"text": str})] == ["a\u2028b\x85c", "d"]


def test_runs_of_a_label_are_seeds_of_one_arm_in_the_order_given(tmp_path):
    for name in ("one", "two", "three"):
        write_run(tmp_path / name)

    arms = read_arms([f"cipo={tmp_path}/one", str(tmp_path / "two"), f"cipo={tmp_path}/three"], [])

    assert [(arm.label, [run.name for run in arm.runs]) for arm in arms] == [
        ("cipo", ["cipo #1", "cipo #2"]),
        ("two", ["two"]),
    ]
    assert [run.folder for run in arms[0].runs] == [tmp_path / "one", tmp_path / "three"]


def test_the_dumps_of_a_folder_come_by_step_as_numbers(tmp_path):
    folder = write_run(tmp_path / "run")
    write_lines(folder / "validation/10.jsonl", [])
    write_lines(folder / "validation/notes.jsonl", [])
    ((run,),) = (arm.runs for arm in read_arms([str(folder)], []))

    assert list(run.dumps(VALIDATION)) == [0, 2, 10]
    assert run.dumps(CORRECTIONS) == {2: folder / "validation/corrections/2.jsonl"}


def test_a_metrics_file_alone_is_a_run_without_dumps(tmp_path):
    folder = write_run(tmp_path / "run")
    (arm,) = read_arms([str(folder / "metrics.jsonl")], [])
    other = write_metrics(tmp_path / "baseline.jsonl", {1: {"a": 1}})
    (named,) = read_arms([str(other)], [])

    assert (arm.label, arm.runs[0].dumps(VALIDATION)) == ("run", {})
    assert named.label == "baseline"


def test_a_path_with_an_equals_sign_that_exists_is_a_path(tmp_path):
    folder = write_run(tmp_path / "lr=1e-6")

    (arm,) = read_arms([str(folder)], [])

    assert arm.label == "lr=1e-6"


def test_folders_of_one_name_are_not_taken_for_seeds(tmp_path):
    paths = [str(write_run(tmp_path / name / "run")) for name in ("a", "b")]

    with pytest.raises(ValueError, match="another run is called run as well; say which arms"):
        read_arms(paths, [])
    with pytest.raises(ValueError, match="another run is called run as well; say which arms"):
        read_arms([f"run={paths[0]}", paths[1]], [])


def test_what_cannot_be_a_run_is_said(tmp_path):
    folder = write_run(tmp_path / "run")
    write_lines(tmp_path / "empty/metrics.jsonl", [])

    with pytest.raises(NothingLoggedError, match="run x: .*missing is not there; give the folder"):
        read_arms([f"x={tmp_path}/missing"], [])
    with pytest.raises(ValueError, match="run b: .* was given twice"):
        read_arms([f"a={folder}", f"b={folder}/metrics.jsonl"], [])
    with pytest.raises(NothingLoggedError, match="run empty: .* holds no step"):
        read_arms([str(tmp_path / "empty")], [])


def test_a_file_of_another_kind_says_why_it_holds_no_step(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"input": "q", "output": "a", "score": 1.0, "step": 1}])
    with pytest.raises(
        NothingLoggedError, match=r"holds no step that can be read; line 1 of .*a.jsonl lacks data \(di"
    ):
        read_arms([str(path)], [])
