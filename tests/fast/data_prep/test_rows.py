"""Checked access to raw rows: what passes, and what an error says."""

import json

import pytest

from data_prep.common.rows import Dropped, PrepError, Row


def fails(call, *names, message: str) -> None:
    with pytest.raises(PrepError) as error:
        call(*names)
    assert str(error.value) == message


def test_the_first_name_that_is_there_counts():
    row = Row({"question": None, "problem": "Two?"}, "f:1")
    assert row.text("question", "problem") == "Two?"
    assert row.get("a", "b") == ("a or b", None)


def test_text_has_to_be_text_that_is_not_blank():
    row = Row({"a": 3, "b": " \n", "c": " x "}, "f:7")
    assert row.text("c") == " x "
    fails(row.text, "a", message="f:7: field a: int 3; expected text that is not blank")
    fails(row.text, "b", message="f:7: field b: blank text; expected text that is not blank")
    missing = "missing; fields read: a, b, c"
    fails(row.text, "d", "e", message=f"f:7: field d or e: {missing}; expected text that is not blank")
    fails(Row({"d": None}, "f:7").text, "d", "e", message="f:7: field d or e: null; expected text that is not blank")
    fails(Row({}, "f:7").text, "d", message="f:7: field d: missing; fields read: none; expected text that is not blank")
    many = Row({f"a{i}": 1 for i in range(14)}, "f:7")
    with pytest.raises(PrepError, match="missing; fields read: a0, .*, a11 and 2 more; expected"):
        many.text("d")


def test_text_that_utf8_cannot_hold_is_an_error():
    row = Row({"a": "x\ud800"}, "f:1")
    message = "f:1: field a: half a surrogate pair at 1; expected text that UTF-8 can hold"
    for accessor in (row.text, row.text_or_empty, row.scalar):
        fails(accessor, "a", message=message)


def test_text_or_empty_takes_null_and_no_number():
    row = Row({"a": None, "b": 1}, "f:1")
    assert row.text_or_empty("a") == row.text_or_empty("none") == ""
    fails(row.text_or_empty, "b", message="f:1: field b: int 1; expected text or null")


@pytest.mark.parametrize(("value", "text"), [(27.0, "27"), (2.5, "2.5"), (-3, "-3"), (" 1/2 ", "1/2"), (0, "0")])
def test_scalars_as_text(value, text):
    assert Row({"a": value}, "f:1").scalar("a") == text


@pytest.mark.parametrize("value", [True, None, "", [], {}])
def test_what_is_no_scalar(value):
    with pytest.raises(PrepError, match="f:1: field a: .*; expected text or a number"):
        Row({"a": value}, "f:1").scalar("a")


def test_nan_is_null_and_infinity_is_no_scalar():
    """json.loads takes both, and pandas writes NaN for null."""
    row = Row(json.loads('{"a": NaN, "b": 1, "c": -Infinity, "d": 1e999}'), "f:1")
    assert row.scalar("a", "b") == "1"
    assert row.scalar_or_empty("a") == row.text_or_empty("a") == ""
    fails(row.scalar, "a", message="f:1: field a: null; expected text or a number")
    for name in "cd":
        fails(row.scalar, name, message=f"f:1: field {name}: an infinite number; expected text or a finite number")


def test_the_file_of_a_row():
    assert Row({}, "/a b:c/x_y.json:12").file.stem == "x_y"


def test_flags_are_true_or_false_alone():
    assert Row({"a": False}, "f:1").flag("a") is False
    fails(Row({"a": "True"}, "f:1").flag, "a", message="f:1: field a: str 'True'; expected true or false")


def test_lists_of_scalars_name_the_bad_item():
    assert Row({"a": ["x", 1]}, "f:1").scalars("a") == ["x", "1"]
    fails(Row({"a": "x"}, "f:1").scalars, "a", message="f:1: field a: str 'x'; expected a list of text or numbers")
    fails(Row({"a": [None]}, "f:1").scalars, "a", message="f:1: field a: null; expected text or a number")


def test_fields_of_an_object_are_named_with_it():
    inner = Row({"a": {"b": 1}}, "f:1").struct("a")
    assert inner.scalar("a.b") == "1"
    fails(inner.text, "a.c", message="f:1: field a.c: missing; fields read: a.b; expected text that is not blank")
    fails(Row({"a": []}, "f:1").struct, "a", message="f:1: field a: list []; expected an object")


def test_rows_that_are_no_objects():
    fails(Row([1], "f:3").text, "a", "b", message="f:3: list [1]; expected an object with the field a or b")


def test_parsed_json_text():
    assert Row({"a": '{"b": [1]}'}, "f:1").parsed("a") == {"b": [1]}
    with pytest.raises(PrepError, match=r"f:1: field a: not JSON \(.*\); expected JSON as text"):
        Row({"a": "{"}, "f:1").parsed("a")
    fails(Row({"a": {}}, "f:1").parsed, "a", message="f:1: field a: dict {}; expected JSON as text")


def test_integers_beyond_what_python_reads_drop_the_row():
    with pytest.raises(Dropped, match="thousands of digits"):
        Row({"a": "[" + "9" * 5000 + "]"}, "f:1").parsed("a")


def test_long_values_are_cut_in_errors():
    with pytest.raises(PrepError) as error:
        Row({"a": ["x" * 1000]}, "f:1").text("a")
    assert len(str(error.value)) < 150
