r"""Answers as text and as numbers: what can be judged without a computer algebra system.

Reading a number is bounded and evaluates nothing: digits, fractions of digits, powers of ten. `2^{10}` and `3+4` are
no numbers here.
"""

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from verl_cipo.rewards.math.normal import TEXT

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:\ \d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)\s?(?P<money>\\\$\s?)?
    (?:
        (?P<whole>\d+)?\s?\\frac\s?\{{\s?(?P<top>[+-]?{_DIGITS})\s?\}}\s?\{{\s?(?P<bottom>[+-]?{_DIGITS})\s?\}}
      | (?:(?P<plain_whole>\d+)\s(?!0))?(?P<plain_top>{_DIGITS})\.?\s?/\s?(?P<plain_bottom>{_DIGITS})(?:\.(?!\d))?
      | 10\s?\^\s?(?:\{{\s?(?P<pure>[+-]?\d{{1,3}})\s?\}}|(?P<pure1>\d))
      | (?P<before>\d*)\.(?P<once>\d*)\s?\\overline\s?\{{(?P<again>\d+)\}}
      | (?P<decimal>{_DECIMAL})(?:[eE](?P<e>[+-]?\d{{1,3}})
                                 |\s?(?:\\times|\\cdot|[*xX])\s?10\s?\^\s?(?:\{{\s?(?P<ten>[+-]?\d{{1,3}})\s?\}}|(?P<ten1>\d)))?
    )
    (?P<rest>.*)
    """,
    re.VERBOSE | re.DOTALL,
)
_EQUATION = re.compile(r"(?P<left>[^,;<>]*[^,;<>\\!])=(?P<right>[^=]*)", re.DOTALL)
# What a function is applied to: \gcd(12, 18) = 6, P(X > 2) = 0.3.
_ARGUMENTS = re.compile(r"(?<=[A-Za-z}])\s?(?:\([^()]*\)|\[[^\[\]]*\])")
_APPROXIMATELY = re.compile(r"(?:\\approx|\\sim|approximately|about|roughly)(?![A-Za-z])\s*", re.IGNORECASE)
_REMARK = re.compile(r"[A-Za-z .'()]*(?:[:=]|\bis\b)\s*")
_SAID = re.compile(r"[A-Za-z]{3}[A-Za-z .'()]*(?::|\bis\b)\s*")
NAME = re.compile(
    r"(?:\\[A-Za-z]+|[A-Za-z]|[A-Z][A-Za-z]+|[A-Za-z]{4,})'?\s?(?:_\s?(?:\w|\\[A-Za-z]+|\{\s?(?:\w+|\\[A-Za-z]+|"
    + TEXT.pattern
    + r")\s?\}))?\s?(?:\(\s?\w+\s?\))?"
    r"|" + TEXT.pattern
)
_BASE = re.compile(r"_\s?(?:\{\s?(\d+)\s?\}|(\d))")
_PERCENT = re.compile(r"(?:\\?%|percent|per cent|pct\.?|percentage points?)$", re.IGNORECASE)
_DEGREES = re.compile(r"(?:\^\s?\{?\s?\\circ\s?\}?|\\degree|degrees?)(?:\s?[CF])?$", re.IGNORECASE)
_UNIT = re.compile(r"(?P<words>[A-Za-z][A-Za-z./' -]*)(?:\^\s?\{?\s?(?P<power>-?\d)\s?\}?)?")
# Units with products, quotients, powers and signs of their own: \text{kg m}^2/\text{s}, \frac{\text{m}}{\text{s}^2}.
# In an answer a letter behind \mu is one too, and \Omega and M_\odot are.
_FACTOR, _FACTOR_OF_LETTERS = (
    re.compile(
        r"(?:\\(?:text|mathrm|mbox)\s*\{\s*(?=[A-Za-z\\])"
        r"(?:[A-Za-z./ ()*-]|\^-?\d|\\(?:cdot|times|mu|Omega)(?![A-Za-z]))+\}"
        + signs
        + r")(?:_\s?(?:\\odot|\{\s?\\odot\s?\}))?(?:\s?\^\s?(?:-?\d|\{\s?-?\d+\s?\}))?"
    )
    for signs in ("", r"|\\mu\s*[A-Za-z]|(?:[kM]\s?)?\\Omega(?![A-Za-z])|M(?=_\s?\{?\s?\\odot)")
)
_UNIT_FRACTION = re.compile(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
# A factor, once it is known to be one, and the signs between factors.
_BETWEEN_FACTORS = re.compile(r"(?:\\mu\s*)?\0(?:(?:[\s*/]|\\cdot|\\times|\\mu)*\0)*")
_ORDINAL = re.compile(r"\^?\s?\{?\s*-?(?:st|nd|rd|th)(?![A-Za-z])\s*\}?\s*")

_MAGNITUDES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
OR = r",?\s*(?:\\text\s*\{\s*or\s*\}|\bor\b)"
"""Pattern of what stands between several answers, or several ways to write one."""
# Words that make several values of one, or another value.
_JOINING = frozenset("or and not no nor either maybe negative minus plus".split())
_SPELLED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
_CHANGING = frozenset(_SPELLED) - {"one"} | frozenset(
    "thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion "
    "half halves third thirds fourths fifths sixths eighths tenths hundredths thousandths dozen score mod pi sqrt root "
    "factorial infinity twice thrice divided multiplied choose otherwise else except unless".split()
)
_NO_UNIT = _JOINING | _CHANGING | frozenset("to by over than but".split())
# `5 cm squared` is an area, `5 squared` is 25.
_POWER_WORD = re.compile(r"\W*(?:squared|cubed|doubled|tripled|halved)\b", re.IGNORECASE)
# Of two-digit numbers, and of two point shots, there may be five.
_ADJECTIVE = re.compile(
    rf"\b(?:{'|'.join(_SPELLED)})(?:-(?=[a-z])|\s(?=(?:digit|point|letter|sided|way|year|bedroom|person)\s[a-z]))",
    re.IGNORECASE,
)
_MONEY = re.compile(r"\\\$|\bdollars?\b", re.IGNORECASE)
_LETTER_UNITS = frozenset("mgshlLJNWVKCFA")
_UNITS = {
    "mm": ("mm", "millimeter", "millimeters"), "cm": ("cm", "centimeter", "centimeters"),
    "m": ("m", "meter", "meters", "metre", "metres"), "km": ("km", "kilometer", "kilometers"),
    "in": ("in", "inch", "inches"), "ft": ("ft", "foot", "feet"), "mi": ("mile", "miles"),
    "g": ("g", "gram", "grams"), "kg": ("kg", "kilogram", "kilograms"), "lb": ("lb", "lbs", "pound", "pounds"),
    "s": ("s", "sec", "second", "seconds"), "min": ("min", "minute", "minutes"), "h": ("h", "hr", "hour", "hours"),
    "yd": ("yd", "yard", "yards"), "L": ("l", "liter", "liters", "litre", "litres"), "mph": ("mph",),
    "cent": ("cent", "cents"), "day": ("day", "days"), "year": ("year", "years"),
    "percent": ("percent",), "degree": ("degree",),
}  # fmt: skip
KNOWN_UNITS = {name: unit for unit, names in _UNITS.items() for name in names}
_BRACKETED_FRACTION = re.compile(r"^(-?)\(?(-?\d+)\)?\s?/\s?\(?(\d+)\)?(?=$|\s)")
_BRACKETED_IN_BASE = re.compile(r"^\((\d+)\)(?=\s?_\s?\{?\s?\d+\s?\}?$)")
_WRAPPED = re.compile(r"\(([^()]*)\)|\\\{([^{},]*)\\\}|" + TEXT.pattern)
# What a variable may be, behind a formula: `\text{ for all } x \in \mathbb{R}`, `, k \in \mathbb{Z}`.
_MAY_HAVE_DOMAIN = re.compile(r"\bfor (?:all|any|every|each)\b|\\forall|\\mathbb")
_DOMAIN = re.compile(
    r"(?P<formula>[^<>]*[^<>\s,;(])"
    r"(?:[\s,;]*(?P<open>\()?\s*(?P<all>for (?:all|any|every|each)(?: real| rational)?(?: numbers?)?|\\forall)"
    r"|\s*(?:[,;]|(?P<bracket>\())\s*(?:(?:where|for|with)\s)?|\s(?:where|for|with)\s)\s*"
    r"[A-Za-z](?P<set>\s?\\in\s?\\mathbb\s?\{?\s?[NQRZ]\s?\}?(?:\s?[\^_]\s?\{?[+*>0]+\}?)?)?"
    r"(?(open)\s*\))(?(bracket)\s*\))"
)
_OTHER_RELATION = re.compile(r"\\(?:[lg]eq?|[lg]t|neq?|in|leqslant|geqslant)(?![A-Za-z])")
# Six significant digits: 0.333333 is 1/3 and 0.3333 is not.
_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True)
class Value:
    """A number with what stands behind it.

    value: the number as written, 50 for `50%`.
    unit: a known unit's short name with its power ("cm^2"), the power of an unknown one ("^2"), "percent", "degree",
        "base 8", or empty.
    step: a unit of the last place of a decimal that was written with six significant digits or more; else 0.
    money: whether a currency sign or "dollars" stands by it.
    """

    value: Fraction
    unit: str = ""
    step: Fraction = field(default=Fraction(0), compare=False)
    money: bool = field(default=False, compare=False)

    def times(self, factor: Fraction | int) -> "Value":
        return Value(self.value * factor, self.unit, abs(self.step * factor), self.money)


def plain_words(text: str) -> str:
    """The normalized answer as words: no text commands, no case, no articles, single spaces."""
    words = TEXT.sub(r" \1 ", text).replace("\\$", "$").replace("\\", " ")
    words = re.sub(r"[{}\"'`]|,(?=\s|$)", " ", re.sub(r"\.(?!\d)", "", words)).casefold().split()
    while words and words[0] in ("the", "a", "an") and len(words) > 1:
        words = words[1:]
    return " ".join(words)


def exact_part(text: str) -> str:
    r"""A normalized answer without the approximation that it gives of itself: `\sqrt{2}` of `\sqrt{2} \approx 1.41`.

    One value is judged, never both. `x \approx 5` gives the value of a name and is read as `x = 5`.
    """
    left, right = _approximated(text)
    if NAME.fullmatch(left) and right:
        return f"{left} = {right}"
    return left or right


def without_domains(gold: str, answer: str) -> tuple[str, str]:
    r"""Two normalized answers without what they say of a variable's values; as they are where they say two things.

    An inequality keeps it: `x > 0` and `x > 0, x \in \mathbb{Z}` are different.
    """
    (formula, domain), (other, other_domain) = _domain(gold), _domain(answer)
    return (gold, answer) if domain and other_domain and domain != other_domain else (formula, other)


def _domain(text: str) -> tuple[str, str]:
    """The formula, and the set behind it, empty where only `for all x` or nothing is said."""
    if not _MAY_HAVE_DOMAIN.search(text):
        return text, ""
    said = _DOMAIN.fullmatch(" ".join(TEXT.sub(r" \1 ", text).split()))
    if said is None or not (said["all"] or said["set"]) or _OTHER_RELATION.search(said["formula"]):
        return text, ""
    return said["formula"], re.sub(r"[\s{}]", "", said["set"] or "")


def contradict(gold: str, answer: str) -> bool:
    """Whether two answers both give approximations of themselves, which differ by more than a hundredth."""
    if r"\approx" not in gold or r"\approx" not in answer:
        return False
    one, other = (read_number(_approximated(text)[1]) for text in (gold, answer))
    return one is not None and other is not None and abs(one.value - other.value) > abs(one.value) / 100


def _approximated(text: str) -> tuple[str, str]:
    """What is approximated and the number behind the sign; the text and nothing where there is no such pair."""
    left, sign, right = text.partition(r"\approx")
    left, right = left.strip(), right.strip()
    return (left, right) if sign and read_number(right) is not None else (text, "")


def names_another_value(text: str) -> bool:
    """Whether words behind an answer may change it or give another one: `, or six`, `, squared`."""
    return _holds(_CHANGING | _JOINING - {"and"}, text) or bool(_POWER_WORD.match(text))


def split_equation(text: str) -> tuple[str, str]:
    """The sides of the last equals sign of a normalized answer; ("", text) for none, or for several equations."""
    sides = _EQUATION.fullmatch(_ARGUMENTS.sub(lambda match: "_" * len(match[0]), text))
    if sides is None or _holds(_JOINING, sides["left"]):
        return "", text
    at = sides.start("right")
    return text[: at - 1].strip(), text[at:].strip()


def read_number(text: str, *, letters: bool = True) -> Value | None:
    r"""The number a normalized answer is, or None.

    Read are integers with or without thousands separators, decimals, fractions, mixed numbers and powers of ten, each
    also with a currency sign, a unit, a percent or degree sign, a number base.

    Args:
        text: the answer.
        letters: whether a letter behind a space may be a unit: 5 m. In a reference it is a variable.
    """
    prefix = TEXT.match(text)
    if (
        prefix
        and prefix.end() < len(text)
        and (_REMARK.fullmatch(prefix[1]) or _APPROXIMATELY.fullmatch(prefix[1].strip()))
        and not _holds(_JOINING, prefix[1])
    ):
        text = text[prefix.end() :].strip()
    while wrapped := _WRAPPED.fullmatch(text):
        text = next(group for group in wrapped.groups() if group is not None).strip().rstrip(".,;")
    said = _SAID.match(text)
    if said and not _holds(_JOINING | _CHANGING, said[0]):
        text = text[said.end() :]
    if approximately := _APPROXIMATELY.match(text):
        text = text[approximately.end() :]
    text = _BRACKETED_FRACTION.sub(r"\1\2/\3", _BRACKETED_IN_BASE.sub(r"\1", text))
    match = _NUMBER.fullmatch(text)
    if match is None or (value := _value(match)) is None:
        return None
    rest = match["rest"]
    if ordinal := _ORDINAL.match(TEXT.sub(r"\1", rest).strip()):
        rest = " " + TEXT.sub(r"\1", rest).strip()[ordinal.end() :]
    if value in range(len(_SPELLED)) and TEXT.sub(r"\1", rest).strip(" ()").lower() == _SPELLED[int(value)]:
        rest = ""  # 5 (five)
    scale, rest = _magnitude(rest)
    unit = _unit(rest, attached=not rest[:1].isspace(), letters=letters)
    if unit is None:
        return None
    money = bool(match["money"] or _MONEY.search(rest))
    return Value(value, unit, _step(match), money).times(-scale if match["sign"] == "-" else scale)


def same_number(gold: Value, answer: Value) -> bool:
    """Whether two numbers are equal to six significant digits.

    Two known units that differ make them different; a unit on one side only is not held against the other. 50% is 0.5
    and, where the other side has no unit, 50; but 0.5% is not 0.5, where the sign can only have been a mistake.
    """
    if gold.unit == answer.unit:
        return _close(gold, answer)
    if (gold.money and answer.unit == "cent") or (answer.money and gold.unit == "cent"):
        return _close(*(n.times(Fraction(1, 100)) if n.unit == "cent" else n for n in (gold, answer)))
    if gold.unit and answer.unit:
        # Of a unit that is not known, only its power is.
        (name, _, power), (other, _, other_power) = gold.unit.partition("^"), answer.unit.partition("^")
        return not (name and other) and power == other_power and _close(gold, answer)
    if "percent" not in (gold.unit, answer.unit):
        return _close(gold, answer)
    if abs(gold.value) >= 1 and _close(gold, answer):
        return True
    return _close(*(n.times(Fraction(1, 100)) if n.unit == "percent" else n for n in (gold, answer)))


def _close(gold: Value, answer: Value) -> bool:
    """Whether two numbers are equal to six significant digits: to a millionth, or one is the other rounded or cut."""
    distance = abs(gold.value - answer.value)
    if gold.value.denominator == 1 and answer.value.denominator == 1:
        return not distance
    return distance <= _TOLERANCE * min(1, abs(gold.value)) or any(
        is_rounded(decimal.value, decimal.step, exact.value) for decimal, exact in ((gold, answer), (answer, gold))
    )


def is_rounded(decimal: Any, step: Any, exact: Any) -> bool:
    """Whether a decimal with this last place is an exact number, rounded or cut off."""
    return abs(exact - decimal) <= step / 2 or (decimal * exact > 0 and 0 <= abs(exact) - abs(decimal) < step)


def _value(match: re.Match) -> Fraction | None:
    """The magnitude of a matched number; None for a division by zero."""
    top, bottom = match["top"] or match["plain_top"], match["bottom"] or match["plain_bottom"]
    if top is not None:
        top, bottom = (int(re.sub("[, ]", "", part)) for part in (top, bottom))
        whole = int(match["whole"] or match["plain_whole"] or 0)
        # Without a proper fraction `2\frac{3}{2}` may be a product: no mixed number.
        if bottom == 0 or (whole and not 0 < top < bottom):
            return None
        return whole + Fraction(top, bottom)
    if match["again"] is not None:
        once, again = match["once"], match["again"]
        period = Fraction(int(again), 10 ** len(once) * (10 ** len(again) - 1))
        return int(match["before"] or 0) + Fraction(int(once or 0), 10 ** len(once)) + period
    if match["decimal"] is None:
        return Fraction(10) ** int(match["pure"] or match["pure1"])
    exponent = match["e"] or match["ten"] or match["ten1"] or "0"
    return Fraction(re.sub("[, ]", "", match["decimal"])) * Fraction(10) ** int(exponent)


def _step(match: re.Match) -> Fraction:
    """A unit of the last place of a decimal of at least six significant digits; 0 for any other number."""
    whole, point, places = (match["decimal"] or "").partition(".")
    if not point or len(re.sub(r"\D", "", whole + places).lstrip("0")) < 6:
        return Fraction(0)
    exponent = int(match["e"] or match["ten"] or match["ten1"] or "0")
    return Fraction(10) ** (exponent - len(places))


def _magnitude(rest: str) -> tuple[int, str]:
    """The factor of `million` and its like in front of the unit, and what follows it."""
    words = TEXT.sub(r" \1 ", rest)
    first = words.split(maxsplit=1)
    if first and first[0].lower() in _MAGNITUDES:
        return _MAGNITUDES[first[0].lower()], " " + (first[1] if len(first) > 1 else "")
    return 1, rest


def _unit(rest: str, *, attached: bool, letters: bool) -> str | None:
    """The unit that `rest` is, empty for none or an unknown one; None when it is no unit and the text no number."""
    words = _ADJECTIVE.sub("", TEXT.sub(r" \1 ", rest)).strip()
    if words.startswith("(") and words.endswith(")"):
        words = words[1:-1].strip()
    if words in ("", r"\$"):
        return ""
    if _POWER_WORD.match(words):
        return None
    if base := _BASE.fullmatch(words):
        return f"base {base[1] or base[2]}"
    if _PERCENT.fullmatch(words):
        return "percent"
    if _DEGREES.fullmatch(words):
        return "degree"
    unit = _UNIT.fullmatch(words)
    if unit is None and _is_compound(rest, letters=letters):
        return None if _holds(_NO_UNIT, words.replace(r"\times", " ")) else ""
    if unit is None or _holds(_NO_UNIT, unit["words"]):
        return None
    name = unit["words"].strip(" .")
    if TEXT.search(rest) is None:
        parts = re.split(r"[ ./'-]+", name)
        single = [part for part in parts if len(part) == 1]
        if not all(_names_unit(part, attached=attached) for part in parts):
            return None
        if single and (not letters or ("/" not in name and len(parts) > 1)):
            return None
    elif len(name) == 1 and name not in _LETTER_UNITS:
        return None
    for prefix, power in (("square ", "2"), ("cubic ", "3")):
        if name.lower().startswith(prefix) and name[len(prefix) :].lower() in KNOWN_UNITS:
            return f"{KNOWN_UNITS[name[len(prefix) :].lower()]}^{power}"
    return KNOWN_UNITS.get(name.lower(), "") + (f"^{unit['power']}" if unit["power"] else "")


def _is_compound(rest: str, *, letters: bool) -> bool:
    """Whether `rest` is made of units. The factors are taken out first, so that no text can be read in two ways."""
    factors = (_FACTOR_OF_LETTERS if letters else _FACTOR).sub("\0", rest.strip())
    return bool(_BETWEEN_FACTORS.fullmatch(_UNIT_FRACTION.sub(r"\1/\2", factors)))


def _names_unit(part: str, *, attached: bool) -> bool:
    """Whether letters in a formula are a unit's name, not variables as in 5x, 2ab and m v^2."""
    return part.lower() in KNOWN_UNITS or (not attached and (len(part) > 2 or part in _LETTER_UNITS))


def _holds(words: frozenset[str], text: str) -> bool:
    return not words.isdisjoint(re.findall(r"[a-z]+", text.lower()))


# As in OlympiadBench's own judge: 4.3 is within 0.1 of 4.2, though not in binary floats.
_SLACK = Fraction(101, 100)


def tolerance_of(extra_info: dict | None) -> float | None:
    """The tolerance of a row; None where it has none. Raises: ValueError when it is no number above 0."""
    given = (extra_info or {}).get("tolerance")
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise ValueError(f"extra_info.tolerance = {given!r}: expected a number above 0, or none")
    return float(given)


def within(gold: str, answer: str, tolerance: float) -> bool:
    """Whether two normalized answers are numbers that differ by `tolerance` at most, in no two different units."""
    expected, given = read_number(split_equation(gold)[1], letters=False), read_number(split_equation(answer)[1])
    if expected is None or given is None or (expected.unit and given.unit and expected.unit != given.unit):
        return False
    return abs(expected.value - given.value) <= Fraction(tolerance) * _SLACK
