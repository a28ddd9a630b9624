"""Values on their way out of and into a sandbox."""

import collections
import enum
import itertools
import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.rewards.sandbox.inside.values import MAX_DEPTH, MAX_ITEMS, NotPlainError, NoValueError, decode, encode

HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner),
    max_leaves=5,
)  # fmt: skip
PLAIN = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.sets(HASHABLE) | st.dictionaries(HASHABLE, inner),
    max_leaves=10,
)


def through_json(value):
    return decode(json.loads(json.dumps(encode(value))))


@given(PLAIN)
def test_plain_values_come_back_as_they_are(value):
    back = through_json(value)
    assert back == value and repr(type(back)) == repr(type(value))


@given(st.integers(min_value=10**17, max_value=10**5000))
def test_big_integers(value):
    assert through_json(value) == value and through_json(-value) == -value


@pytest.mark.parametrize(
    "value",
    [
        *(range(3), range(10**20), Fraction(1, 3), Decimal("0.10"), collections.deque([1, "a"]), bytearray(b"ab"), int),
        *({1: "a"}.keys(), {1: "a"}.items(), [range(2), Fraction(1, 2)], {Decimal(1): Fraction(1, 3)}),
    ],
)
def test_other_values_of_the_standard_library(value):
    back = through_json(value)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "iterator", [iter([1, 2]), (n for n in (1, 2)), map(int, "12"), reversed([2, 1]), {1: 0, 2: 0}.values()]
)
def test_iterators_come_back_with_what_they_give(iterator):
    assert list(through_json(iterator)) in ([1, 2], [0, 0])


def test_an_iterator_without_end_is_cut_off():
    back = through_json(itertools.count())
    assert list(itertools.islice(back, MAX_ITEMS)) == list(range(MAX_ITEMS))
    with pytest.raises(NoValueError):
        list(back)
    long = through_json("x" * 2**16 for _ in itertools.count())
    assert next(long) == "x" * 2**16
    with pytest.raises(NoValueError):
        list(long)


def test_nan_comes_back():
    assert math.isnan(through_json(float("nan")))


class Evil(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__

    def __abs__(self):
        return "no number"


class Colour(enum.IntEnum):
    RED = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Evil(3), 3),
        (Colour.RED, 3),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.namedtuple("P", "x y")(1, 2), (1, 2)),
        (np.int64(3), 3),
        (np.float64(0.5), 0.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.bool_(True), True),
    ],
)
def test_subclasses_become_plain(value, plain):
    back = through_json(value)
    assert back == plain and type(back) is type(plain)


@pytest.mark.parametrize(
    "value", [object(), lambda: 0, Colour, ..., [object()], {1: object()}, memoryview(b"a"), iter([object()])]
)
def test_what_is_not_plain_does_not_leave(value):
    with pytest.raises(NotPlainError):
        encode(value)


def test_a_depth_below_the_limit_comes_back():
    deep = ()
    for _ in range(MAX_DEPTH // 2):
        deep = ({0: deep},)
    assert through_json(deep) == deep


def test_depth_is_limited():
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(NotPlainError, match="deeper"):
        encode(deep)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"a": 1, "b": 2},
        {"list": [1]},
        {"type": "print"},
        {"type": "no_such_type"},
        {"fraction": [1, 0]},
        {"decimal": "x"},
        {"int": "x"},
        {"int": 3},
        {"bytes": "zz"},
        {"complex": [1, 2, 3]},
        {"dict": [[1]]},
        {"dict": [[[1], 2]]},
        {"set": [[1]]},
        {"tuple": 3},
        [{"__class__": "x"}],
    ],
)
def test_what_encode_never_returns_is_refused(data):
    with pytest.raises(NotPlainError):
        decode(data)
