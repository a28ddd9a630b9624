from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cipo.rewards.math.normal import normalize
from verl_cipo.rewards.math.values import (
    Value,
    exact_part,
    plain_words,
    read_number,
    same_number,
    split_equation,
)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        (r" $\dfrac{1}{2}$. ", r"\frac{1}{2}"),
        (r"\tfrac12", r"\frac{1}{2}"),
        (r"\left( 1,\, 2 \right)", "( 1, 2 )"),
        (r"10,\!080", "10,080"),
        (r"1{,}234", "1,234"),
        (r"1\,234", "1234"),
        (r"\$18", r"\$18"),
        ("$18$", "18"),
        (r"\( x \)", "x"),
        ("**5**", "5"),
        ("{5}", "5"),
        ("{5}{6}", "{5}{6}"),
        (r"\{5\}", r"\{5\}"),
        ("\u22125\u00b0", r"-5^\circ"),
        ("\u221a3", r"\sqrt{3}"),
        (r"\mathbf{v}", "v"),
        # A row break keeps its backslashes.
        (r"1 & 2 \\ 3 & 4", r"1 & 2 \\ 3 & 4"),
        (r"1 \\[2pt] 2", r"1 \\[2pt] 2"),
    ],
)
def test_normal_form(written, normal):
    assert normalize(written) == normal


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("18", 18, ""),
        ("-18", -18, ""),
        ("033", 33, ""),
        ("1,234,567", 1234567, ""),
        ("3.50", Fraction(7, 2), ""),
        (".5", Fraction(1, 2), ""),
        (r"\$1,200.50", Fraction(2401, 2), ""),
        (r"\frac{3}{4}", Fraction(3, 4), ""),
        (r"-\frac{3}{4}", Fraction(-3, 4), ""),
        (r"\frac{-3}{4}", Fraction(-3, 4), ""),
        ("3/4", Fraction(3, 4), ""),
        (r"3\frac{1}{2}", Fraction(7, 2), ""),
        (r"-3\frac{1}{2}", Fraction(-7, 2), ""),
        ("3 1/2", Fraction(7, 2), ""),
        ("4.5e3", 4500, ""),
        (r"4.5 \times 10^{-3}", Fraction(9, 2000), ""),
        ("10^6", 10**6, ""),
        (r"0.1\overline{6}", Fraction(1, 6), ""),
        (r"0.\overline{142857}", Fraction(1, 7), ""),
        ("(5)", 5, ""),
        (r"\{5\}", 5, ""),
        (r"\text{5}", 5, ""),
        (r"\text{Area: } 5", 5, ""),
        (r"\approx 5", 5, ""),
        (r"50\%", 50, "percent"),
        ("50 percent", 50, "percent"),
        (r"90^\circ", 90, "degree"),
        (r"90^{\circ}\text{C}", 90, "degree"),
        (r"5\text{ cm}", 5, "cm"),
        (r"5 \mathrm{cm}^2", 5, "cm^2"),
        (r"5\text{ square inches}", 5, "in^2"),
        ("5 cm", 5, "cm"),
        ("5cm", 5, "cm"),
        ("5 m", 5, "m"),
        ("5 km/h", 5, ""),
        ("5 apples", 5, ""),
        (r"5\text{th}", 5, ""),
        ("2 million", 2_000_000, ""),
        (r"2 \text{ million dollars}", 2_000_000, ""),
        ("2516_8", 2516, "base 8"),
    ],
)
def test_numbers(text, value, unit):
    assert read_number(text) == Value(Fraction(value), unit)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "5x", "2ab", "5 x", "5 pi", r"5\pi", "3+4", "2^{10}", "6!", r"\sqrt{4}", "1,2", "12,34", "1,2345",
        "1 2", "1..2", "1.2.3", r"\frac{1}{0}", "1/0", r"2\frac{3}{2}", "3 or 4", r"3 \text{ or } 4", "3 and a half",
        r"3 \text{ dozen}", "3 hundredths", r"\text{-}5", r"\text{negative } 5", r"\text{not } 5",
        r"\text{it is not: } 5", "5?", "10^23",
        "3-1/2", r"\frac{1}{2} m v^2", "m", "(3", "{3", "NaN", "inf", "1e9999",
    ],
)  # fmt: skip
def test_what_is_no_number(text):
    assert read_number(text) is None


@pytest.mark.parametrize(
    "unit",
    [
        r"\mathrm{N\cdot m}", "\\text{N\u00b7m}", r"\mathrm{m \cdot s^{-2}}", r"\frac{\text{m}}{\text{s}^2}",
        r"\frac{\text{dollars}}{\text{hour}}", r"\mathrm{J/(mol\cdot K)}", r"\text{J/(mol K)}", r"\mathrm{\mu m}",
        "\\text{\u03bcm}", r"\mathrm{k\Omega}", r"k\Omega", r"\mu m", r"M_\odot", r"\text{M}_{\odot}", "\u20b9",
    ],
)  # fmt: skip
def test_units_as_they_are_written(unit):
    assert read_number(normalize(f"9.8 {unit}")) == Value(Fraction("9.8"))


@pytest.mark.parametrize("sign", ["\u00a5", "\u20b9", "\u20ac", r"\$"])
def test_signs_of_currencies(sign):
    assert read_number(normalize(f"{sign}10")) == Value(Fraction(10))


@pytest.mark.parametrize("unit", [r"^2\text{m}", r"\times \text{two}", r"\text{m} ?", r"\frac{1}{x}", r"\text{m} = 2"])
def test_what_is_no_unit(unit):
    assert read_number(normalize(f"9.8{unit}")) is None


@pytest.mark.parametrize(
    "unit", [r"\text{ cm} ", r"\mu m ", r"\mu \text{m} ", r"\mu k\Omega ", r"\Omega ", r"\frac{\text{m}}{\text{s}} "]
)
@pytest.mark.timeout(20)
def test_a_hundred_units_and_no_unit_do_not_hold_it_up(unit):
    for end in ("?", "= 12", r"\ldots"):
        assert read_number(normalize(f"12 {unit * 100}{end}")) is None


def test_a_letter_behind_a_reference_is_a_variable():
    assert read_number("5 m", letters=False) is None
    assert read_number(r"5\text{ m}", letters=False) == Value(Fraction(5), "m")


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("1/3", "0.333333", True),
        ("1/3", "0.33333", False),
        ("100", "100.00001", False),
        ("100.5", "100.5000001", True),
        ("100.5", "100.50001", False),
        ("1000000", "1000001", False),
        ("0.0000001", "0", False),
        ("0", "0.0000001", False),
        ("-5", "5", False),
        ("50%", "0.5", True),
        ("0.5", "50%", True),
        ("50%", "50", True),
        ("50", "50%", True),
        ("50%", "5000%", False),
        ("50%", "0.5%", False),
        ("1/4", "0.25%", False),
        ("0.5%", "0.5", False),
        ("50%", r"50^\circ", False),
        ("5 cm", "5", True),
        ("5", "5 cm", True),
        ("5 cm", "5 centimeters", True),
        ("5 cm", "5 mm", False),
        ("5 cm", "5 cm^2", False),
        ("101_2", "101", True),
        ("101_2", "101_3", False),
    ],
)
def test_same_numbers(gold, answer, same):
    gold, answer = read_number(gold), read_number(answer)
    assert gold is not None and answer is not None
    assert same_number(gold, answer) is same


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_the_same_when_they_are_equal(a, b):
    first, second = read_number(f"{a:,}"), read_number(str(b))
    assert first is not None and second is not None
    assert same_number(first, second) == (a == b)


@given(st.fractions(max_denominator=10**6))
def test_fractions_are_read_exactly(fraction):
    expected = Value(fraction)
    sign = "-" if fraction < 0 else ""
    top, bottom = abs(fraction.numerator), fraction.denominator
    assert read_number(f"{sign}\\frac{{{top}}}{{{bottom}}}") == expected
    assert read_number(f"{sign}{top}/{bottom}") == expected


@given(st.text(alphabet="{}\\$^_ .,%()0123xe=fractext/-", max_size=80))
def test_any_text_is_read_and_normal_form_is_final(text):
    normal = normalize(text)
    assert normalize(normal) == normal
    read_number(normal)
    exact_part(normal)
    split_equation(normal)
    plain_words(normal)


def test_equations():
    assert split_equation("x = 5") == ("x", "5")
    assert split_equation("a = b = 5") == ("a = b", "5")
    assert split_equation("5") == ("", "5")
    for several in ("x=1, y=2", "x=2 or x=3", r"x=2 \text{ or } x=3", "x <= 5", r"x \le y < z = 3"):
        assert split_equation(several) == ("", several)


def test_of_a_value_and_its_approximation_the_value_counts():
    assert exact_part(r"\sqrt{2} \approx 1.41") == r"\sqrt{2}"
    assert exact_part(r"x_1 \approx 1.41") == "x_1 = 1.41"
    assert exact_part(r"\approx 1.41") == "1.41"
    assert exact_part("1.41") == "1.41"


def test_words():
    assert plain_words(r"\text{A Parallelogram}") == "parallelogram"
    assert plain_words(r"\text{June } 20") == plain_words(r"\textbf{June 20}") == "june 20"
    assert plain_words(r"6:00 \text{ p.m.}") == "6:00 pm"
    assert plain_words("the") == "the"
