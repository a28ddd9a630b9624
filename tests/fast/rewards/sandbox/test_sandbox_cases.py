"""Ground truths and the tests in them."""

import json

import pytest

from verl_cipo.rewards.sandbox.cases import CallTest, CheckTest, ProgramTest, read_tests


def test_program():
    assert read_tests('{"inputs": ["1", ["2", "3"]], "outputs": [["4", "5"], "6"]}') == [
        ProgramTest("1", "4\n5"),
        ProgramTest("2\n3", "6"),
    ]


def test_call_in_verls_layout():
    (test,) = read_tests({"inputs": ['[1, 2]\n"a"'], "outputs": ['{"x": 3}'], "fn_name": "f"})
    assert test == CallTest("f", [[1, 2], "a"], {}, ({"x": 3},), exact=False)


def test_call_in_apps_layout():
    tests = read_tests({"inputs": [[[1], "a"], [[2], "b"]], "outputs": ["3", [4]], "fn_name": "f"})
    assert tests == [
        CallTest("f", [[1], "a"], {}, ("3",), exact=False),
        CallTest("f", [[2], "b"], {}, ([4],), exact=False),
    ]


def test_wrapped_outputs_have_two_readings():
    tests = read_tests({"inputs": [[1], [2]], "outputs": [[[3]], ["x"]], "fn_name": "f"})
    assert [test.readings for test in tests] == [([[3]], [3]), (["x"], "x")]


def test_integer_keys_of_arguments():
    (test,) = read_tests({"inputs": ['{"1": 2, "-3": 4}\n{"a": 1}\n{}'], "outputs": ["0"], "fn_name": "f"})
    assert test.args == [{1: 2, -3: 4}, {"a": 1}, {}]


def test_none_is_as_good_as_absent():
    assert read_tests({"inputs": ["1"], "outputs": ["2"], "fn_name": None, "setup": None}) == [ProgramTest("1", "2")]


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("assert f(1, [2]) == {3: (4,)}", CallTest("f", [1, [2]], {}, ({3: (4,)},), exact=True)),
        ("assert 5 == f(x=-1)", CallTest("f", [], {"x": -1}, (5,), exact=True)),
        ("assert f(1) == 2, 'message'", CallTest("f", [1], {}, (2,), exact=True)),
        ("assert sum(1, 2) == 3", CallTest("sum", [1, 2], {}, (3,), exact=True)),
    ],
)
def test_assert_that_is_a_call(source, call):
    assert read_tests({"asserts": [source], "setup": "import math"}) == [call]


@pytest.mark.parametrize(
    "source",
    [
        "assert f(1)",
        "assert f(1) != 2",
        "assert f(x) == 2",
        "assert f(**{'a': 1}) == 2",
        "assert set(f(1)) == {2}",
        "assert math.isclose(f(1), 2)",
        "assert f(f(1)) == 2",
        "assert helper(f(1)) == 2",
        "assert f(1) == 2 and f(2) == 3",
        "for i in range(3):\n    assert f(i) == i",
        "def check(c):\n    assert c(1) == f(1)\ncheck(f)",
    ],
)
def test_other_asserts_are_test_code(source):
    setup = "import math\nx = 1\ndef helper(a): return a"
    assert read_tests({"asserts": [source], "setup": setup}) == [CheckTest(f"{setup}\n{source}\n", "f")]


def test_a_solution_named_like_a_builtin():
    tests = read_tests({"asserts": ["assert sum(1, 2) == 3", "assert abs(sum(1, 2) - 3) < 1"]})
    assert [test.name for test in tests] == ["sum", "sum"]


def test_entry_point_says_which_name_is_the_solutions():
    (test,) = read_tests({"asserts": ["assert g(f(1)) == 2"], "setup": "from helpers import *", "entry_point": "f"})
    assert test.name == "f"


def test_check():
    (test,) = read_tests({"check": "def check(candidate):\n    assert candidate(g(1)) == 2", "entry_point": "f"})
    assert test.name == "f" and test.source.endswith("\ncheck(f)\n")
    assert read_tests({"check": "", "entry_point": "Solution().f"})[0].name == "f"


def test_verls_assert_case():
    data = {"assert_case": ["assert f(1) == 2"], "inputs": [""], "outputs": [None], "fn_name": "f"}
    assert read_tests(data) == [CallTest("f", [1], {}, (2,), exact=True)]


@pytest.mark.parametrize(
    ("ground_truth", "said"),
    [
        ("", "ground_truth is not JSON"),
        ("[1]", "ground_truth is a list"),
        ({}, r"has the keys \[\]"),
        ({"inputs": ["1"]}, r"has the keys \['inputs'\]"),
        ({"inputs": ["1"], "outputs": ["2"], "fn_nam": "f"}, "fn_nam"),
        ({"inputs": [], "outputs": []}, "at least one"),
        ({"inputs": "1", "outputs": ["2"]}, "inputs is '1'"),
        ({"inputs": ["1"], "outputs": ["2", "3"]}, "1 inputs and 2 outputs"),
        ({"inputs": [1], "outputs": ["2"]}, r"inputs\[0\] is a int"),
        ({"inputs": ["1"], "outputs": [["a", 2]]}, r"outputs\[0\] is a list"),
        ({"inputs": ["1", "2"], "outputs": ["", " \n"]}, "outputs are all empty"),
        ({"inputs": ["1"], "outputs": ["2"], "fn_name": "f()"}, r"fn_name = 'f\(\)'"),
        ({"inputs": ["x"], "outputs": ["2"], "fn_name": "f"}, r"inputs\[0\] is not JSON"),
        ({"inputs": ["1"], "outputs": ["x"], "fn_name": "f"}, r"outputs\[0\] is not JSON"),
        ({"inputs": [1], "outputs": ["2"], "fn_name": "f"}, r"inputs\[0\] is a int"),
        ({"asserts": []}, "at least one"),
        ({"asserts": ["assert f("]}, r"asserts\[0\] is not Python"),
        ({"asserts": [3]}, r"asserts\[0\] is a int"),
        ({"asserts": ["assert 1 == 1"]}, "asserts call nothing"),
        ({"asserts": ["assert len([1]) + 1 == 2"]}, "asserts call nothing"),
        ({"asserts": ["assert same(f(1), 2)"]}, r"asserts call \['f', 'same'\]"),
        ({"asserts": ["assert f(1) == 2", "assert g(1) == 2"]}, r"asserts call \['f', 'g'\]"),
        ({"asserts": ["assert f(1) == 2", "assert 1 == 1"]}, r"asserts\[1\] does not call f"),
        ({"asserts": ["assert f(1) == 2"], "entry_point": "g"}, r"asserts\[0\] does not call g"),
        ({"asserts": ["assert f(1) == 2"], "setup": 3}, "setup is a int"),
        ({"asserts": ["assert g(f(1))"], "setup": "def"}, "setup is not Python"),
        ({"check": "def check(c): pass"}, "entry_point"),
        ({"check": "def check(c): pass", "entry_point": "f(1)"}, r"entry_point = 'f\(1\)'"),
        ({"check": "def check(c)", "entry_point": "f"}, "check is not Python"),
    ],
)
def test_malformed(ground_truth, said):
    with pytest.raises(ValueError, match=said):
        read_tests(ground_truth if isinstance(ground_truth, str) else json.dumps(ground_truth))
