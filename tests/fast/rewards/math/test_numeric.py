"""Values of expressions: random ones against floating point, and small differences."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.rewards.math.expressions import parse
from verl_cipo.rewards.math.judge import judge
from verl_cipo.rewards.math.normal import normalize
from verl_cipo.rewards.math.numeric import same
from verl_cipo.rewards.math.tokens import Unreadable, tokens


def tree(text):
    return parse(tokens(normalize(text)))


# Random expressions as trees of this test's own: how they are written, and what they are worth in floating point.

LEAVES = st.one_of(st.integers(0, 12).map(str), st.sampled_from(["x", "y", r"\pi", "I", "E_0", "n"]))
BINARY = st.sampled_from(["+", "-", "*", "/"])


def compound(children):
    return st.one_of(
        st.tuples(BINARY, children, children),
        st.tuples(st.just("^"), children, st.integers(0, 3).map(str)),
        st.tuples(st.sampled_from(["sin", "cos", "exp", "abs", "sqrt", "neg"]), children),
    )


EXPRESSIONS = st.recursive(LEAVES, compound, max_leaves=7)


def written(part):
    if isinstance(part, str):
        return part
    inner = [written(child) for child in part[1:]]
    return {
        "+": lambda a, b: f"({a}+{b})", "-": lambda a, b: f"({a}-({b}))", "*": lambda a, b: rf"({a})\cdot({b})",
        "/": lambda a, b: rf"\frac{{{a}}}{{{b}}}", "^": lambda a, b: f"({a})^{{{b}}}", "sin": lambda a: rf"\sin({a})",
        "cos": lambda a: rf"\cos({a})", "exp": lambda a: f"e^{{{a}}}", "abs": lambda a: f"|{a}|",
        "sqrt": lambda a: rf"\sqrt{{{a}}}", "neg": lambda a: f"(-({a}))",
    }[part[0]](*inner)  # fmt: skip


def worth(part, point):
    if isinstance(part, str):
        return point[part] if part in point else float(part)
    values = [worth(child, point) for child in part[1:]]
    return {
        "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b,
        "^": math.pow, "sin": math.sin, "cos": math.cos, "exp": math.exp, "abs": abs, "sqrt": math.sqrt,
        "neg": lambda a: -a,
    }[part[0]](*values)  # fmt: skip


POINTS = [
    {"x": 0.7, "y": 1.9, r"\pi": math.pi, "I": 2.3, "E_0": 0.4, "n": 3.0},
    {"x": 1.3, "y": 0.6, r"\pi": math.pi, "I": 0.9, "E_0": 1.7, "n": 5.0},
]


def differ(one, other):
    """Whether floating point shows at one of the points that two expressions are not equal."""
    for point in POINTS:
        try:
            a, b = worth(one, point), worth(other, point)
        except (ArithmeticError, ValueError):
            continue
        if math.isfinite(a) and math.isfinite(b) and 1e-12 < max(abs(a), abs(b)) < 1e12:
            if abs(a - b) > 1e-5 * max(abs(a), abs(b)) and abs(a - b) > 1e-9:
                return True
    return False


@given(EXPRESSIONS, EXPRESSIONS)
def test_no_pair_that_differs_numerically_is_accepted(one, other):
    if differ(one, other):
        assert judge(normalize(written(one)), normalize(written(other))) != "right"


def changed(part, at):
    """The expression with one leaf or operator changed, and how many places were passed."""
    if isinstance(part, str):
        return ("x" if part != "x" else "y") if at == 0 else part, at - 1
    if at == 0 and part[0] in "+-*/":
        return ({"+": "-", "-": "+", "*": "/", "/": "*"}[part[0]], *part[1:]), -1
    at -= 1
    children = []
    for child in part[1:]:
        child, at = changed(child, at)
        children.append(child)
    return (part[0], *children), at


@given(EXPRESSIONS, st.integers(0, 12))
def test_no_expression_with_one_place_changed_is_accepted(one, at):
    other, _ = changed(one, at)
    if differ(one, other):
        assert judge(normalize(written(one)), normalize(written(other))) != "right"


@given(EXPRESSIONS)
def test_an_expression_is_what_it_was_with_its_terms_in_another_order(one):
    rewritten = f"{written('x')}+({written(one)})-x"
    try:
        verdict = same(tree(written(one)), tree(rewritten))
    except Unreadable:
        pytest.fail(f"not read: {rewritten}")
    assert verdict is not False


def test_a_value_that_is_lost_beside_another_tells_nothing():
    """At y = -9 it is e^{-729}, of which x + e^{-729} - x has nothing left."""
    assert same(tree("e^{y^3}"), tree("x+e^{y^3}-x")) is True
    assert same(tree("e^{-1000}"), tree("e^{-1001}")) is False
    assert same(tree("0"), tree("e^{-1000}")) is not True


@given(st.integers(2, 9), st.integers(20, 400), st.integers(1, 5))
def test_small_values_are_compared_relatively(base, power, more):
    gold = rf"\frac{{1}}{{{base}^{{{power}}}}}"
    assert same(tree(gold), tree(rf"{base}^{{-{power}}}")) is True
    for text in (gold, f"x+{gold}", f"1-{gold}", rf"\sqrt{{2}}\cdot{gold}"):
        assert same(tree(text), tree(text.replace(str(power), str(power + more)))) is False


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ("e^{-60}", "e^{-50}", False),
        ("1-e^{-100}", "1-e^{-101}", False),
        (r"\frac{1}{2006!}", r"\frac{1}{2004!}", False),
        (r"\sin\pi", "0", True),
        (r"(10^{40}+\sqrt{2})-10^{40}", r"\sqrt{2}", True),
        (r"\sqrt{x^2}", "x", False),
        (r"\sqrt{x^2}", "|x|", True),
        (r"\ln x^2", r"2\ln|x|", True),
        (r"2\arcsin\sqrt{a}", r"\arccos(1-2a)", True),
        (r"e^{i\pi/3}", r"\frac12+\frac{\sqrt3}{2}i", True),
        (r"(-1)^n", r"\cos n\pi", True),
        (r"\binom{2n}{n}", r"\frac{(2n)!}{n!n!}", True),
        (r"\frac{0}{0}", "1", None),
        (r"\sum_{k=1}^n k", r"\frac{n(n+1)}{2}", None),
        (r"9^{9^{9^{9}}}x", "x", None),
    ],
)
def test_values(one, other, verdict):
    assert same(tree(one), tree(other)) is verdict


@pytest.mark.parametrize(
    "text", ["", "x+", "(x", "x)", r"\frac{1}", "1 2", "x^", r"x \vee y", r"\sqrt", "{}", "_2", r"\\", "a & b"]
)
def test_what_is_no_expression(text):
    with pytest.raises(Unreadable):
        tree(text)
