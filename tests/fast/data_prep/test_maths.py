"""Reference answers of math sets."""

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.maths import last_boxed, whole_number, without_point_zero
from data_prep.common.rows import PrepError, Row


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{3}", "3"),
        ("First \\boxed{2}, no, \\boxed{3}.", "3"),
        ("$\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"),
        ("\\boxed{a\\\\{b}}", "a\\\\{b}"),
        ("\\fbox{5} and text", "5"),
        ("$\\framebox{204}$ minutes", "204"),
        ("is $\\boxed 2$.", "2"),
        ("\\boxed {7}", "7"),
        ("\\boxed{ x }", "x"),
        ("$\\boxed{-2}$ and $\\boxed{1}$", "-2, 1"),
        ("$\\boxed{-2}$, as $1$ is not $\\boxed{1}$", "1"),
        ("no box", None),
        ("\\boxed{}", None),
        ("\\boxed{1 and cut o", None),
        ("\\boxedpart{1}", None),
        ("\\boxed", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@given(st.text(alphabet="ab{}\\1 ", max_size=30))
def test_balanced_text_comes_back_whole(inside):
    depth, escaped = 0, False
    for character in inside:
        if not escaped:
            depth += (character == "{") - (character == "}")
        escaped = character == "\\" and not escaped
        if depth < 0:
            return
    if depth == 0 and not escaped and inside.strip():
        assert last_boxed(f"\\boxed{{1}} then \\boxed{{{inside}}} end") == inside.strip()


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("025", "25"),
        ("0", "0"),
        ("000", "0"),
        ("999", "999"),
        ("336^\\circ", "336"),
        ("336^{\\circ}", "336"),
        ("33\u00b0", "33"),
    ],
)
def test_aime_answers_lose_leading_zeros_and_degrees(answer, number):
    assert whole_number(Row({}, "f:1"), answer, "answer") == number


@pytest.mark.parametrize("answer", ["1000", "-1", "2.5", "x", "", "3^2", "\\circ", "\u0663"])
def test_what_is_no_aime_answer(answer):
    with pytest.raises(PrepError, match="f:1: field answer: .*; expected a whole number from 0 to 999"):
        whole_number(Row({}, "f:1"), answer, "answer")


@pytest.mark.parametrize(("answer", "number"), [("27.0", "27"), ("-1.0", "-1"), ("2.50", "2.50"), ("x.0", "x.0")])
def test_point_zero(answer, number):
    assert without_point_zero(Row({}, "f:1"), answer, "answer") == number


def test_other_layouts_of_the_same_sets(run, write, tmp_path):
    layouts = {
        "aime24": {"ID": "2024-I-1", "Problem": "Find it.", "Solution": "So 33.", "Answer": 33},
        "aime25": {"question": "Find it.", "answer": "033"},
        "amc23": {"id": 0, "problem": "Find it.", "answer": 33.0, "url": "", "question": None},
        "minerva": {"problem": "Find it.", "solution": "It is \\boxed{33}.", "type": "Astronomy", "idx": 0},
    }
    for name, row in layouts.items():
        source = write(tmp_path / name / "test.jsonl", [row])
        assert run(name, source) == 0
        (made,) = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
        assert made["reward_model"]["ground_truth"] == "33", name
        assert made["extra_info"]["question"] == "Find it."
    source = write(tmp_path / "math-ai" / "test.jsonl", [{"id": 1, "problem": "Find it.", "solution": "\\boxed{033}"}])
    assert run("aime24", source) == 0


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_a_blank_answer_is_taken_from_the_solution(answer, run, write, tmp_path, capsys):
    row = {"problem": "Find it.", "answer": answer, "solution": "x \\boxed{7}"}
    assert run("deepscaler", write(tmp_path / "train.jsonl", [row])) == 0
    (made,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert made["reward_model"]["ground_truth"] == "7"
    source = write(tmp_path / "train.jsonl", [row | {"solution": "It is clear."}])
    assert run("deepscaler", source) == 1
    assert f"{source}:1: field solution: no boxed answer" in capsys.readouterr().err


def test_a_solution_with_several_boxes_has_them_all_as_reference(run, write, tmp_path):
    problem, solution = "Find all solutions.", "They are $\\boxed{-2}$ and $\\boxed{1}$."
    rows = {
        "minerva": {"problem": problem, "solution": solution, "type": "Astronomy", "idx": 0},
        "math_lighteval": {"problem": problem, "solution": solution, "level": "Level 1", "type": "Algebra"},
        "deepscaler": {"problem": problem, "answer": solution},
    }
    for name, row in rows.items():
        source = write(tmp_path / name / "test.jsonl", [row])
        assert run(name, source) == 0
        (made,) = pq.read_table(next((tmp_path / "out").glob("*.parquet"))).to_pylist()
        assert made["reward_model"]["ground_truth"] == "-2, 1", name


def test_rows_without_an_answer_are_named_with_the_option_to_go_on(run, write, tmp_path, capsys):
    answers = ["1", None, "", float("nan"), "2"]
    source = write(tmp_path / "train.jsonl", [{"problem": f"Is {a}?", "answer": a} for a in answers])
    assert run("deepscaler", source) == 1
    assert capsys.readouterr().err == (
        f"error: {source}:2: field answer: null; expected text or a number "
        "(agentica-org/DeepScaleR-Preview-Dataset; --skip_malformed leaves such rows out and counts them)\n"
    )
    assert run("deepscaler", source, "--skip_malformed") == 0
    assert capsys.readouterr().err.count("skipped: ") == 3
    stats = json.loads((tmp_path / "out" / "train_stats.json").read_text())
    assert (stats["kept"], stats["dropped"]) == (2, {"malformed field answer (--skip_malformed)": 3})


@pytest.mark.parametrize(
    ("error", "tolerance"), [(None, None), ("", None), ("1e-1", 0.1), (0.05, 0.05), ("1e-1,1e-2", 0.01), ("1,", None)]
)
def test_the_tolerance_of_an_olympiadbench_row(cases, run, write, tmp_path, error, tolerance):
    source = write(tmp_path / "test.jsonl", [{**cases["olympiadbench"].rows[1], "error": error}])
    assert run("olympiadbench", source) == 0
    (made,) = pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()
    assert made["extra_info"]["tolerance"] == tolerance


@pytest.mark.parametrize("error", ["much", "-1", "0", "inf", "nan"])
def test_what_is_no_tolerance(cases, run, write, tmp_path, capsys, error):
    source = write(tmp_path / "test.jsonl", [{**cases["olympiadbench"].rows[1], "error": error}])
    assert run("olympiadbench", source) == 1
    assert f"test.jsonl:1: field error: {error!r}; expected a tolerance above 0, or none" in capsys.readouterr().err


def test_images_leave_olympiadbench(run, write, cases, tmp_path):
    row = cases["olympiadbench"].rows[0]
    rows = [row, {**row, "modality": "Multimodal"}, {**row, "image_1": {"bytes": "x"}}]
    source = write(tmp_path / "test.jsonl", rows)
    assert run("olympiadbench", source) == 0
    assert '"needs an image": 2' in (tmp_path / "out" / "test_stats.json").read_text()
