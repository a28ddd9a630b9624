"""Comparison of outputs and values; what is expected was computed by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.rewards.sandbox.compare import same_output, same_value
from verl_cipo.rewards.sandbox.inside.values import encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("1\n", "1", True),
        ("1 \n2\n\n", "1\n2", True),
        ("\n1", "1", True),
        ("1  2", "1 2", True),
        ("1\n\n2", "1\n2", False),
        ("1 2", "1\n2", False),
        ("1\n2\n3", "1\n2", False),
        ("1\n2", "1\n2\n3", False),
        ("12", "1 2", False),
        ("yes", "YES", False),
        ("", "", True),
        ("x", "", False),
        ("", "x", False),
        ("1 2 3", "1 2", False),
        ("3.0", "3", True),
        ("+3", "3", True),
        ("03", "3", True),
        ("3.0000001", "3", False),
        ("3", "3.0000001", True),
        ("0.333333", "0.3333333", True),
        ("0.3333", "0.3333333", False),
        ("1000001.0", "1000000.5", True),
        ("1000002.0", "1000000.5", False),
        ("1e3", "1000", True),
        (".5", "0.5", True),
        ("5.", "5.0", True),
        ("nan", "1.0", False),
        ("nan", "nan", True),
        ("inf", "1e308", False),
        ("1_000", "1000", False),
        ("0x10", "16", False),
        ("a 1.0", "a 1.0000000001", True),
        ("1e99999", "1e99998", False),
        ("1" * 5000, "1" * 5000, True),
        ("1" * 5000 + ".0", "1" * 5000, False),
        ("1\r\n2", "1\n2", True),
        ("9007199254740993", "9007199254740992", False),
        ("10", "0010", False),
        ("101", "00101", False),
        ("0010", "0010", True),
        ("7", "+7", False),
        ("100000", "1e5", False),
        ("100000", "1E5", False),
        ("10.0", "010", False),
        ("1.0", "01.0", False),
        ("0.00001", "1e-05", True),
        ("100000000000000000000", "1e+20", True),
        ("15000000000", "1.5E10", True),
        ("0", "-0", True),
        ("-0.0", "0", True),
        ("0.25", ".25", True),
        ("4", "4.", True),
        ("a 10 b", "a 0010 b", False),
    ],
)
def test_same_output(got, expected, same):
    assert same_output(got, expected, tolerance=1e-6) is same


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1, 1, True),
        (1, 2, False),
        (True, 1, True),
        (1.0, 1, True),
        (1, 1.0, True),
        (1.0000001, 1, False),
        (1.0000001, 1.0, True),
        (1.00001, 1.0, False),
        (float("nan"), float("nan"), False),
        (float("inf"), 1.0, False),
        (float("inf"), float("inf"), True),
        (10**400, 1.0, False),
        ("1", 1, False),
        (1, "1", False),
        (None, None, True),
        (None, False, False),
        (0, None, False),
        ((1, (2,)), [1, [2]], True),
        ([1, 2], [1], False),
        ([1], [1, 2], False),
        ("ab", ["a", "b"], False),
        ({1, 2}, [1, 2], False),
        ([], {}, False),
        ({}, [], False),
        ({1: "a"}, {"1": "a"}, True),
        ({1: "a", "1": "a"}, {"1": "a"}, False),
        ({None: 1, True: 2}, {"null": 1, "true": 2}, True),
        ({(1,): 2}, {"(1,)": 2}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1}, {"a": 2}, False),
        ([0.1 + 0.2], [0.3], True),
        (b"a", "a", False),
        (1 + 0j, 1, True),
        ([1], 1, False),
    ],
)
def test_same_value(got, expected, same):
    assert same_value(encode(got), expected, tolerance=1e-6) is same


@given(JSON)
def test_every_json_value_is_itself(value):
    assert same_value(encode(value), value, tolerance=0.0)


@given(JSON, JSON)
def test_without_tolerance_it_is_equality(one, other):
    assert same_value(encode(one), other, tolerance=0.0) == (one == other)


@given(st.text(), st.text())
def test_output_equal_after_blanks_only_if_tokens_are(one, other):
    if same_output(one, other, tolerance=0.0) and not any(char.isdigit() for char in one + other):
        assert one.split() == other.split()
