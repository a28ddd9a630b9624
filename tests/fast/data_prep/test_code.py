"""Tests of code problems: from JSON, from Python source, from statements, from packed text."""

import argparse
import base64
import contextlib
import json
import pickle
import re
import zlib

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.code_contests import python_solutions
from data_prep.common.code import listed_solutions, request, stdin_or_function
from data_prep.common.code import tests as checked
from data_prep.common.leetcode import example_tests
from data_prep.common.python_tests import assert_tests, evalplus_tests, helpers
from data_prep.common.rows import Dropped, PrepError, Row
from data_prep.livecodebench import unpacked
from data_prep.mbpp_plus import entry_point

HELPERS = (
    "import numpy as np\ndef is_floats(x) -> bool:\n    return isinstance(x, float)\n"
    "def assertion(out, exp, atol):\n    exact_match = out == exp\n    assert exact_match\n"
)
LOOP = "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion({}(*inp), exp, {})\n"
ROW = Row({}, "f:1")


def mbpp(inputs: str, results: str, *, loop: str = LOOP.format("f", 0), helpers: str = HELPERS) -> dict:
    source = f"{helpers}inputs = {inputs}\nresults = {results}\n{loop}"
    return evalplus_tests(Row({"test": source}, "f:1"), "test", "f")


def test_prompts_for_programs_functions_and_starter_code():
    assert request("Add.", starter=" \n", fn_name="").startswith("Add.\n\nWrite a Python program that reads standard")
    assert "named `add`" in request("Add.", fn_name="add")
    assert "```python\ndef add():\n```" in request("Add.", starter="def add():\n\n", fn_name="add")


@pytest.mark.parametrize(
    "found", [{}, {"inputs": ["1"]}, {"inputs": ["1"], "outputs": []}, {"inputs": 1, "outputs": 1}]
)
def test_inputs_and_outputs_have_to_match(found):
    with pytest.raises(PrepError, match="f:1: field x: inputs and outputs that do not match; expected two lists"):
        checked(ROW, "x", found, None)


def test_tests_are_cut_checked_and_made_text():
    found = {"inputs": [["1", 2.5], 7, "x"], "outputs": ["1", "2", "3"], "fn_name": None}
    assert checked(ROW, "x", found, 2) == {"inputs": ["1\n2.5", "7"], "outputs": ["1", "2"]}
    with pytest.raises(PrepError, match="a test of a program with dict; expected text or a list of lines"):
        checked(ROW, "x", {"inputs": [{}], "outputs": ["1"]}, None)
    with pytest.raises(PrepError, match="fn_name 'a.b'; expected the name of a function"):
        checked(ROW, "x", {"inputs": [[]], "outputs": [1], "fn_name": "a.b"}, None)
    for empty, reason in (({"inputs": [], "outputs": []}, "no tests"), ({"inputs": ["1"], "outputs": [" "]}, "empty")):
        with pytest.raises(Dropped, match=reason):
            checked(ROW, "x", empty, None)


@pytest.mark.parametrize("outputs", [[None, None], [[None], [None]], ["null", "null"], [None, [None]]])
def test_functions_of_which_nothing_is_expected_are_dropped(outputs):
    with pytest.raises(Dropped, match="all expected results are null"):
        checked(ROW, "x", {"inputs": [[1], [2]], "outputs": outputs, "fn_name": "f"}, None)
    some = {"inputs": [[1], [2]], "outputs": [outputs[0], 1], "fn_name": "f"}
    assert checked(ROW, "x", some, None) == some


def test_numbers_without_end_in_the_text_of_a_program_drop_the_row():
    with pytest.raises(Dropped, match="a test with NaN or infinity"):
        checked(ROW, "x", {"inputs": [["1", float("nan")]], "outputs": ["1"]}, None)


@pytest.mark.parametrize("solutions", [None, "", "[]", []])
def test_no_solutions(solutions):
    assert listed_solutions(Row({"s": solutions}, "f:1"), "s") == []


def test_the_first_solutions_are_read_and_what_is_no_list_of_programs_is_an_error():
    assert listed_solutions(Row({"s": json.dumps(list("abcde"))}, "f:1"), "s") == ["a", "b", "c"]
    assert listed_solutions(Row({"s": ["a"]}, "f:1"), "s") == ["a"]
    for bad in ("[1]", '{"a": "b"}', '"a"'):
        with pytest.raises(PrepError, match="f:1: field s: .*; expected a list of programs"):
            listed_solutions(Row({"s": bad}, "f:1"), "s")


def test_the_first_python_solutions_of_code_contests():
    found = {"language": [2, 3, 1, 3, 3, 3], "solution": list("abcdef")}
    assert python_solutions(Row({"solutions": found}, "f:1")) == ["b", "d", "e"]
    assert python_solutions(Row({}, "f:1")) == []


@pytest.mark.parametrize("changed", [{"language": 3}, {"solution": True}, {"language": [3]}])
def test_solutions_of_code_contests_that_do_not_match(changed):
    solutions = {"language": [3, 3], "solution": ["a", "b"]} | changed
    with pytest.raises(PrepError, match="f:1: field solutions: language and solution that do not match; expected two"):
        python_solutions(Row({"solutions": solutions}, "f:1"))


def test_a_whole_number_that_no_float_holds_is_text_for_a_program():
    digits = 10**400
    assert checked(ROW, "x", {"inputs": [digits], "outputs": ["1"]}, None)["inputs"] == [str(digits)]


def test_evalplus_values_that_json_holds_become_inputs_and_outputs():
    assert mbpp("[[1, 'a'], [2, 'b']]", "[[1.5], None]") == {
        "inputs": [[1, "a"], [2, "b"]],
        "outputs": [[1.5], None],
        "fn_name": "f",
    }


def test_evalplus_values_that_json_changes_become_asserts():
    assert mbpp("[[(1,), 'b']]", "[{3}]") == {"asserts": ["assert f((1,), 'b') == {3}"]}
    assert mbpp("[[{2: 'b'}]]", "[3]") == {"asserts": ["assert f({2: 'b'}) == 3"]}


@pytest.mark.parametrize(
    "comparison",
    [
        "exact_match = out == exp\n    if atol == 0 and is_floats(exp):\n        atol = 1e-6\n"
        "    if not exact_match and atol != 0:\n        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
        "    else:\n        assert exact_match",
        "if atol == 0 and is_floats(exp):\n        atol = 1e-6\n"
        "    if out != exp and atol != 0:\n        assert np.allclose(out, exp, rtol=1e-07, atol=atol)\n"
        "    else:\n        assert out == exp, f'out: {out}, exp: {exp}'",
    ],
)
@pytest.mark.parametrize("atol", ["0", "1e-06"])
def test_evalplus_comparisons_that_were_published_are_the_standard_one(comparison, atol):
    helpers = (
        f"import numpy as np\ndef is_floats(x):\n    return True\ndef assertion(out, exp, atol):\n    {comparison}\n"
    )
    found = mbpp("[[1]]", "[1.5]", helpers=helpers, loop=LOOP.format("f", atol))
    assert found == {"inputs": [[1]], "outputs": [1.5], "fn_name": "f"}


def test_a_comparison_without_an_assert_is_not_the_standard_one():
    assert "check" in mbpp("[[1]]", "[2]", helpers=HELPERS.replace("    assert exact_match\n", ""))


def test_evalplus_tuples_with_floats_keep_the_tolerance():
    assert mbpp("[[1]]", "[(1.5, 2.5)]") == {"inputs": [[1]], "outputs": [[1.5, 2.5]], "fn_name": "f"}
    assert mbpp("[[(1,)]]", "[(1.5, 2.5)]")["entry_point"] == "f"


@pytest.mark.parametrize(
    "change",
    [
        {"loop": LOOP.format("f", "1e-4")},
        {"loop": LOOP.format("g", 0)},
        {"loop": LOOP.replace("{}(*inp)", "set({}(*inp))").format("f", 0)},
        {"helpers": HELPERS.replace("out == exp", "abs(out - exp) < 1")},
        {"helpers": HELPERS + "def ref_func(x):\n    return x\n"},
        {"helpers": HELPERS + "scale = 2\n"},
    ],
)
def test_evalplus_comparisons_that_are_not_the_standard_one_stay_source(change):
    found = mbpp("[[1]]", "[2]", **change)
    assert set(found) == {"check", "entry_point"}
    names = {}
    exec(found["check"].replace("import numpy as np", ""), names)  # our own source, made above
    names["g"] = lambda x: 2
    if "set" not in change.get("loop", ""):
        names["check"](lambda x: 2)


@pytest.mark.parametrize(
    ("inputs", "results"),
    [("[[x]]", "[2]"), ("[[1]]", "[inf]"), ("[[1]]", "[1e999]"), ("[[1e999]]", "[2]"), ("[1]", "[2]")],
)
def test_evalplus_values_that_are_no_literals_stay_source(inputs, results):
    assert set(mbpp(inputs, results)) == {"check", "entry_point"}


def test_evalplus_source_that_does_not_parse_is_an_error():
    with pytest.raises(PrepError, match="f:1: field test: no Python source"):
        mbpp("[", "]")


def test_evalplus_tests_are_cut():
    source = f"{HELPERS}inputs = [[1], [2], [3]]\nresults = [1, 2, 3]\n{LOOP.format('f', 0)}"
    assert evalplus_tests(Row({"test": source}, "f:1"), "test", "f", 2)["inputs"] == [[1], [2]]


def test_asserts_and_check_functions():
    assert assert_tests(Row({"a": "import math\nassert f(1) == 2\nassert f(2)"}, "f:1"), "a") == {
        "asserts": ["assert f(1) == 2", "assert f(2)"],
        "setup": "import math",
    }
    assert assert_tests(Row({"a": "assert f(1)"}, "f:1"), "a") == {"asserts": ["assert f(1)"]}
    check = assert_tests(Row({"a": "def check(candidate):\n    assert candidate(1)\n\ncheck(f)\n"}, "f:1"), "a")
    assert check == {"check": "def check(candidate):\n    assert candidate(1)", "entry_point": "f"}
    for bad in ("x = 1", "check(f)", "assert f(1)\ncheck(f)"):
        with pytest.raises(PrepError, match="neither asserts nor one call of check"):
            assert_tests(Row({"a": bad}, "f:1"), "a")


def passes(check: str, candidate) -> bool:
    """Whether a candidate passes test code of ours."""
    names = {}
    exec(check, names)
    try:
        names["check"](candidate)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(
    "comparison",
    [
        "assert np.allclose(candidate(1), 7.5)",
        "assert numpy.allclose(candidate(1), 7.5, atol=1e-3)",
        "np.testing.assert_allclose(candidate(1), 7.5, atol=1e-3)",
        "assert np.isclose(candidate(1), 7.5).all()",
    ],
)
def test_numpy_compares_in_the_same_shape_alone(comparison):
    source = f"import numpy\nimport numpy as np\ndef check(candidate):\n    {comparison}\ncheck(f)\n"
    check = assert_tests(Row({"a": source}, "f:1"), "a")["check"]
    assert passes(check, lambda n: 7.5) and passes(check, lambda n: 7.5 + 1e-9)
    assert not any(passes(check, lambda n, wrong=wrong: wrong) for wrong in ([], [7.5], 7.6, [[]]))


def test_lists_that_are_close_pass_and_asserts_have_what_they_need():
    asserts = assert_tests(Row({"a": "import numpy as np\nassert np.allclose(f(1), [1.0, 2.0])"}, "f:1"), "a")
    for value, right in (([1, 2], True), ([], False), ([[1, 2]], False)):
        names = {"f": lambda n, value=value: value}
        exec(asserts["setup"], names)
        with contextlib.nullcontext() if right else pytest.raises(AssertionError):
            exec(asserts["asserts"][0], names)


def test_math_isclose_is_left_alone():
    assert "shape" not in str(assert_tests(Row({"a": "import math\nassert math.isclose(f(1), 2)"}, "f:1"), "a"))


PROMPT = (
    "import math\ndef unused(x):\n    return x\ndef one(x):\n    return math.floor(x)\n"
    'def two(x):\n    return one(x)\ndef f(x):\n    """Does it."""\n'
)


def test_the_helpers_of_a_prompt_that_a_test_calls():
    found = helpers(PROMPT, "def check(candidate):\n    assert candidate(two(1.5)) == 1", "f")
    names = {}
    exec(found, names)
    assert names["two"](2.5) == 2
    assert "unused" not in found and "def f" not in found
    assert helpers(PROMPT, "def check(candidate):\n    assert candidate(1) == 1", "f") == ""
    assert helpers("What is it?", "assert two(1)", "f") == ""


def test_the_function_that_mbpp_tests_call():
    row = Row({"code": "def helper(x):\n    return x\ndef main(x):\n    return helper(x)"}, "f:1")
    assert entry_point(row, ["assert set(main([1])) == set([1])"]) == "main"
    with pytest.raises(PrepError, match="asserts that call none of its functions"):
        entry_point(row, ["assert other(1)"])
    with pytest.raises(PrepError, match="no Python source"):
        entry_point(row, ["assert ("])


SOLUTION = "class Solution:\n    def help(self, x): pass\n    def go(self, {}):\n        pass"


def examples(text: str, arguments: str, statement: str = "Do it.") -> dict:
    return example_tests([text], SOLUTION.format(arguments), statement)


def test_examples_become_calls_in_the_order_of_the_method():
    found = examples('Input: s = "a,b = c", n = [[1],null]\nOutput: true\nExplanation: so.', "n: List, s: str")
    assert found == {"inputs": [[[[1], None], "a,b = c"]], "outputs": [True], "fn_name": "go"}


def test_integers_for_float_arguments_become_floats():
    found = examples("Input: a = 6, b = 6\nOutput: 1", "a: float, b: int")
    assert found["inputs"] == [[6.0, 6]] and type(found["inputs"][0][0]) is float


@pytest.mark.parametrize(
    ("text", "arguments", "statement", "reason"),
    [
        ("Input: n = 1\nOutput: 2", "n", "Return the answer in any order.", "several right answers"),
        ("Input: n = 1\nOutput: 2", "n", "Return any such number.", "several right answers"),
        ("Input\n[1]\nOutput\n[2]", "n", "", "examples in another form"),
        ("Input: n = 0011\nOutput: 2", "n", "", "examples in another form"),
        ("Input: n = 1\nOutput: 2 (10)", "n", "", "examples in another form"),
        ("Input: n = 1\nOutput: two", "n", "", "examples in another form"),
        ("Input: n = 1\nOutput: 2", "m", "", "no single method"),
        ("Input: n = 1\nOutput: 2", "n: Optional[TreeNode]", "", "trees or linked lists"),
    ],
)
def test_examples_that_cannot_decide_drop_the_problem(text, arguments, statement, reason):
    with pytest.raises(Dropped, match=reason):
        examples(text, arguments, statement)


def test_other_problems_that_examples_cannot_decide():
    text = "Input: n = 1\nOutput: 2"
    with pytest.raises(Dropped, match="in place"):
        example_tests([text], "class Solution:\n    def go(self, n) -> None:\n        pass", "")
    with pytest.raises(Dropped, match="does not parse"):
        example_tests([text], "class Solution", "")
    with pytest.raises(Dropped, match="no examples"):
        example_tests([], SOLUTION.format("n"), "")
    with pytest.raises(Dropped, match="other arguments"):
        example_tests([text, "Input: m = 1\nOutput: 2"], SOLUTION.format("n"), "")


def pack(pickled: bytes) -> str:
    return base64.b64encode(zlib.compress(pickled)).decode()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_packed_text_of_every_pickle_protocol(protocol):
    assert unpacked(pack(pickle.dumps('[{"input": "1"}]', protocol))) == '[{"input": "1"}]'


class Runs:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle ran code",))


@pytest.mark.parametrize("thing", [Runs(), print, argparse.Namespace(a=1)])
def test_pickles_that_ask_for_names_are_refused(thing):
    with pytest.raises(ValueError, match="asks for"):
        unpacked(pack(pickle.dumps(thing)))


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (pack(pickle.dumps([1])), "a pickled list"),
        (pack(b""), "broken pickle"),
        (pack(b"\x80"), "truncated"),
        (base64.b64encode(zlib.compress(pickle.dumps("[]"))[:-8]).decode(), "cut off"),
        ("not base64!", "base64"),
        (base64.b64encode(b"not zlib").decode(), "incorrect header"),
    ],
)
def test_broken_packed_text(packed, message):
    with pytest.raises(ValueError, match=message):
        unpacked(packed)


@given(st.binary(max_size=40))
def test_whatever_the_bytes_are_they_are_text_or_an_expected_error(pickled):
    with contextlib.suppress(ValueError):
        assert isinstance(unpacked(pack(pickled)), str)


def test_packed_text_is_bounded(monkeypatch):
    from data_prep import livecodebench

    monkeypatch.setattr(livecodebench, "MAX_UNPACKED", 1000)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        unpacked(pack(pickle.dumps("x" * 10_000)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("private_test_cases", "eyJ", "field private_test_cases: .*expected JSON, or base64 of zlib"),
        ("private_test_cases", '["x"]', "field public_test_cases and private_test_cases: 'x'; expected input"),
        ("public_test_cases", "{}", "expected JSON, or base64"),
        ("metadata", "{}", "field metadata: no func_name"),
        ("contest_date", "soon", "field contest_date: 'soon'; expected a date"),
        ("private_test_cases", '[{"input": "1", "output": "1", "testtype": "stdin"}]', "testtype .*expected stdin or"),
    ],
)
def test_malformed_livecodebench_rows(cases, run, write, tmp_path, capsys, field, value, message):
    row = {**cases["livecodebench"].rows[1], field: value}
    source = write(tmp_path / "raw" / "test.jsonl", [row])
    assert run("livecodebench", source) == 1
    assert re.search(message, capsys.readouterr().err)


def test_livecodebench_by_date_with_both_ends_included(cases, run, write, tmp_path):
    dates = ["2024-12-31T23:59:59", "2025-01-01T00:00:00", "2025-02-01T12:00:00", "2025-02-02T00:00:00"]
    row = cases["livecodebench"].rows[0]
    source = write(tmp_path / "test.jsonl", [{**row, "contest_date": date, "question_id": date} for date in dates])
    assert run("livecodebench", source, "--start_date", "2025-01-01", "--end_date", "2025-02-01") == 0
    kept = [row["extra_info"]["id"] for row in pq.read_table(tmp_path / "out" / "test.parquet").to_pylist()]
    assert kept == dates[1:3]


@pytest.mark.parametrize("name", ["apps", "livecodebench"])
def test_functions_are_asked_for_with_their_starter_code(cases, converted, name):
    _, row = pq.read_table(converted(name, cases[name])).to_pylist()
    starter = cases[name].rows[1]["starter_code"].rstrip()
    assert (
        f"\n\nComplete this code, keeping its names and signature:\n\n```python\n{starter}\n```"
        in (row["prompt"][0]["content"])
    )


def test_a_function_to_complete_whose_tests_do_not_name_it_is_dropped():
    tests = {"inputs": ["n = 5\nk = 3\narr[] = {5,10,30,20,15}"], "outputs": ["35"]}
    how = {"question": "Complete minTime().", "field": "x", "max_tests": None, "id": "", "extra": {}}
    with pytest.raises(Dropped, match="starter code of a function"):
        stdin_or_function(
            ROW, "taco", found=tests, starter="class Solution:\n    def minTime (self, arr, n, k):\n", **how
        )
    kept = stdin_or_function(ROW, "taco", found=tests, starter="# your code goes here\n", **how)
    assert "standard input" in kept.prompt


def test_code_contests_takes_tests_in_order_and_drops_pictures(cases, run, write, tmp_path):
    row = {
        **cases["code_contests"].rows[0],
        "public_tests": {"input": ["1"], "output": ["a"]},
        "private_tests": {"input": ["2"], "output": ["b"]},
        "generated_tests": {"input": ["3"], "output": ["c"]},
    }
    rows = [row, {**row, "description": "See <image>.", "name": "pictured"}]
    write(tmp_path / "raw" / "train.jsonl", rows)
    assert run("code_contests", tmp_path / "raw", "--max_tests", "2", "--skip_trial") == 0
    (made,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert json.loads(made["reward_model"]["ground_truth"]) == {"inputs": ["1", "2"], "outputs": ["a", "b"]}


@pytest.mark.parametrize("keep", [True, False])
def test_solutions_are_written_when_they_are_asked_for(cases, run, write, tmp_path, keep):
    row = cases["code_contests"].rows[0]
    write(tmp_path / "raw" / "train.jsonl", [row])
    options = ["--skip_trial", *(["--keep_solutions"] if keep else [])]
    assert run("code_contests", tmp_path / "raw", *options) == 0
    (made,) = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    (python_3,) = [program for program in row["solutions"]["solution"] if "main()" not in program]
    assert made["extra_info"].get("solutions") == ([python_3] if keep else None)
    assert python_3 not in made["prompt"][0]["content"]
