"""Claims: what a program says it computed, read and compared at a bounded cost."""

import json
import time
from collections import deque
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.rewards.sandbox.test_sandbox_values import HASHABLE, PLAIN
from verl_cipo.rewards.sandbox.claims import (
    Bounds,
    NoClaimError,
    bounds,
    canonical,
    error_name,
    number,
    read_value,
)
from verl_cipo.rewards.sandbox.compare import same_exactly, same_value
from verl_cipo.rewards.sandbox.inside.values import encode

# A claim that is read in full, or hashed, takes seconds.
MOST_S = 0.25


def claim(value) -> bytes:
    return json.dumps({"value": encode(value)}).encode()


@given(PLAIN)
def test_an_equal_value_is_never_too_long(value):
    assert same_exactly(read_value(claim(value), bounds(encode(value))), encode(value))


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ([(0, 1)] * 500, [[0, 1]] * 500),
        ([complex(i, 0) for i in range(500)], list(range(500))),
        ([Fraction(1, 2)] * 500, [0.5] * 500),
        ([0.1 + 0.2] * 500, [0.3] * 500),
        ([Decimal("0.5")] * 500, [0.5] * 500),
        ({i: (i,) for i in range(500)}, {str(i): [i] for i in range(500)}),
        ([False] * 500, [0] * 500),
        ("\u4f60" * 500, "\u4f60" * 500),
        ("[{," * 500, "[{," * 500),
    ],
)
def test_a_value_that_is_right_in_a_longer_form_is_never_too_long(got, expected):
    assert same_value(read_value(claim(got), bounds(encode(expected))), expected, tolerance=1e-6)


@pytest.mark.parametrize(
    "said",
    [
        None,
        b"",
        b"{",
        b"1",
        b"[]",
        b"{}",
        b'{"error": "x"}',
        b'{"value": 1, "error": "x"}',
        b'{"value": ' + b"1" * 5000 + b"}",
        b'{"value": ' + b"1" * 30 + b"}",
        b'{"value": 0.' + b"1" * 30 + b"}",
        b'{"value": [' + b"[]," * 20 + b"[]]}",
        b'{"value": ' + b"[" * 5 + b"\xff",
        b'{"value": "' + b"x" * 5000 + b'"}',
    ],
)
def test_what_cannot_be_right_is_not_read(said):
    with pytest.raises(NoClaimError):
        read_value(said, bounds(1))


def test_depth_beyond_what_is_expected_is_no_crash():
    deep = b'{"value": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    with pytest.raises(NoClaimError):
        read_value(deep, Bounds(size=2**20, parts=2**20))
    nested: list = []
    for _ in range(5000):
        nested = [nested]
    assert same_exactly(nested, encode([])) is False


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (b'{"error": "ValueError"}', "ValueError"),
        (b'{"error": "A", "kind": "ValueError", "args": []}', "A"),
        (b'{"error": 3}', None),
        (b'{"value": 3}', None),
        (b"[", None),
        (None, None),
        (b'{"error": "' + b"x" * 5000 + b'"}', None),
    ],
)
def test_error_name(said, name):
    assert error_name(said) == name


@pytest.mark.parametrize(
    "equal",
    [
        [1, 1.0, True, 1 + 0j, Fraction(1), Decimal("1.0"), Decimal(1)],
        [0, 0.0, -0.0, False, 0j],
        [0.5, Fraction(1, 2), Decimal("0.50")],
        [Fraction(1, 3), Fraction(2, 6)],
        [10**400, 10**400],
        [1e300, int(1e300)],
        [{1, 2.0}, {2, 1}, frozenset({1, 2}), {1: 0, 2: 0}.keys()],
        [{(1, "a")}, {1: "a"}.items()],
        [{1: "a", 2: "b"}, {2: "b", 1.0: "a"}],
        [range(0), range(5, 1)],
        [range(0, 3, 2), range(0, 4, 2)],
        [range(1, 2), range(1, 9, 100)],
        [b"ab", bytearray(b"ab")],
        [deque([1]), deque([1.0])],
        [float("inf"), float("inf")],
    ],
)
def test_equal_in_python(equal):
    assert all(one == equal[0] for one in equal)
    assert len({canonical(encode(one)) for one in equal}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1], (1,)),
        ([1], {1}),
        ("1", 1),
        ("ab", b"ab"),
        ("None", None),
        ([1, 2], [2, 1]),
        ({1: 2}, {(1, 2)}),
        ({"a": 1}, {"a": 2}),
        ([[1], 2], [1, [2]]),
        (["a,b"], ["a", "b"]),
        (['a","b'], ["a", "b"]),
        (Fraction(1, 3), 1 / 3),
        (Decimal("0.1"), 0.1),
        (range(3), [0, 1, 2]),
        (range(3), range(0, 6, 2)),
        (deque([1]), [1]),
        (iter([1]), [1]),
        ({1: 2}.values(), [2]),
        (float("nan"), float("nan")),
        (-1, 1),
        (1 + 1j, 1),
    ],
)
def test_different_in_python(one, other):
    assert one != other
    assert same_exactly(encode(one), encode(other)) is False


@given(PLAIN, PLAIN)
def test_the_canonical_text_is_equality(one, other):
    assert same_exactly(encode(one), encode(other)) == (one == other)


@given(HASHABLE, HASHABLE)
def test_the_canonical_text_is_equality_of_elements(one, other):
    assert same_exactly(encode({one}), encode({other})) == (one == other)


@pytest.mark.parametrize(
    "data",
    [
        *({}, {"a": 1, "b": 2}, {"list": [1]}, {"int": "x"}, {"int": 3}, {"complex": [1, 2, 3]}, {"complex": ["a", 1]}),
        *({"dict": [[1]]}, {"dict": 3}, {"tuple": 3}, {"fraction": [1, 0]}, {"fraction": [1]}, {"decimal": "x"}),
        *({"decimal": "sNaN"}, {"decimal": "1e99999999"}, {"fraction": [1, {"int": "0x1" + "0" * 3000}]}),
        *({"range": [1, 2, 0]}, {"range": [1, 2]}, {"range": ["a", "b", "c"]}, {"iterator": [1]}, {"cut": [1]}),
        {"values": [1]},
    ],
)
def test_what_equals_nothing(data):
    with pytest.raises(NoClaimError):
        canonical(data)
    assert same_value(data, 1, tolerance=1e-6) is False
    assert number(data) is None


def cost(said: bytes, expected, *, exact: bool) -> float:
    """Processor time of the comparison of a claim, seconds, with the best of two tries to leave other work out."""
    tries = []
    for _ in range(2):
        began = time.thread_time()
        try:
            value = read_value(said, bounds(encode(expected)))
            if exact:
                same_exactly(value, encode(expected))
            else:
                same_value(value, expected, tolerance=1e-6)
        except NoClaimError:
            pass
        tries.append(time.thread_time() - began)
    return min(tries)


COLLIDING = [i * (2**61 - 1) for i in range(10_000)]
# -1 and -2 have one hash.
EQUAL_HASHES = [[-1 - (i >> bit & 1) for bit in range(13)] for i in range(8000)]
EXPECTED = [9, [[1, "a"]] * 500, {str(i): [i] for i in range(500)}, "text " * 500, 0.5]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("expected", EXPECTED, ids=["int", "lists", "dict", "text", "float"])
@pytest.mark.parametrize(
    "said",
    [
        json.dumps({"value": {"set": [{"int": hex(i)} for i in COLLIDING]}}),
        json.dumps(
            {"value": {"set": [{"tuple": [999] * 15 + [-1 - (i >> j & 1) for j in range(13)]} for i in range(8000)]}}
        ),
        json.dumps({"value": {"dict": [[{"int": hex(i)}, 0] for i in COLLIDING]}}),
        '{"value": ' + "9" * 4_000_000 + "}",
        '{"value": 0.' + "9" * 4_000_000 + "}",
        '{"value": 1e' + "9" * 4_000_000 + "}",
        '{"value": {"int": "0x' + "f" * 4_000_000 + '"}}',
        '{"value": {"fraction": [{"int": "0x' + "f" * 2_000_000 + '"}, {"int": "0x' + "7" * 1_999_999 + '"}]}}',
        '{"value": {"decimal": "' + "9" * 4_000_000 + '"}}',
        '{"value": {"decimal": "1e999999999"}}',
        '{"value": {"range": [0, 999999999999999, 1]}}',
        '{"value": [' + "[]," * 1_300_000 + "[]]}",
        '{"value": ' + "[" * 2_000_000 + "]" * 2_000_000 + "}",
        '{"value": {"set": [' + "{}," * 1_300_000 + "{}]}}",
        '{"value": {"dict": [' + "[0,0]," * 600_000 + "[0,0]]}}",
        '{"value": "' + "\\ud800" * 600_000 + '"}',
        '{"value": ' + " " * 4_000_000 + "9}",
        '{"error": [' + "[]," * 1_300_000 + "[]]}",
    ],
    ids=lambda said: said[:40],
)
def test_no_claim_of_megabytes_costs_much(said, expected, exact):
    assert cost(said.encode(), expected, exact=exact) < MOST_S
    assert error_name(said.encode()) is None


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner) | st.builds(
        lambda kind, items: {kind: items},
        st.sampled_from("tuple set frozenset dict int complex bytes fraction range decimal keys iterator".split()),
        st.lists(inner),
    ),
    max_leaves=40,
)  # fmt: skip


@given(JSON_LIKE, st.integers(1, 20_000), st.sampled_from(EXPECTED), st.booleans())
def test_well_formed_claims_cost_little(part, times, expected, exact):
    """Any part repeated up to the 4 MiB that a run may claim."""
    text = json.dumps(part)
    repeated = ",".join([text] * min(times, 2**22 // (len(text) + 1) + 1))
    for said in (f'{{"value": [{repeated}]}}', f'{{"value": {{"set": [{repeated}]}}}}'):
        assert cost(said.encode(), expected, exact=exact) < MOST_S
