r"""What can be said of an answer without computer algebra: the same text, numbers, choices, words, and what is refused.

An answer is refused where the algebra system would do the model's work or take one of several answers for it:

- a plain number is asked for and something else is given: `\sqrt{36+64}-3`, `6!`, `2, 3, 4`;
- a sum, product, integral, limit or determinant is left to be evaluated, and the reference has none;
- it is an expression of the question's own text;
- a remark in it joins values or changes them: `\sqrt{2} \text{ or 7}`, `\sqrt{2} \text{ squared}`.
"""

import math
import re

from verl_cipo.rewards.math.copied import is_copied, squeeze
from verl_cipo.rewards.math.normal import TEXT
from verl_cipo.rewards.math.values import (
    KNOWN_UNITS,
    NAME,
    OR,
    Value,
    names_another_value,
    plain_words,
    read_number,
    same_number,
    split_equation,
)
from verl_cipo.rewards.outcome import Outcome

_CHOICE = re.compile(r"\(?([A-J])\)?")
# A list of letters or Roman numerals, as where several choices are right.
_LETTERS = re.compile(r"(?:{0})(?:\s*(?:,|;|\\?&|and|,\s*and)\s*(?:{0}))+".format(r"[A-Z]{1,4}|\([A-Z]\)"))
# An order or a figure's name, which is no product.
_LETTERS_IN_ORDER = re.compile(r"[A-Z]{3,}")
# Letters that can name something, so that an equation with them is not true or false by itself.
_VARIABLE = re.compile(
    r"(?<![A-Za-z\\])(?![ei](?![A-Za-z]))[A-Za-z]|\\(?:text|mathrm|angle|alpha|beta|gamma|theta|lambda)(?![A-Za-z])"
)
# A list, or a number with separators.
_AMBIGUOUS_LIST = re.compile(r"[(\[]?\s?-?[1-9]\d{0,2}(?:,[1-9]\d{2})+\s?[)\]]?")
_LABEL = re.compile(r"(?:\(([A-J])\)|([A-J])[).:](?=\s|$)|([A-J])(?=\s*$))\s*(.*)", re.DOTALL)
_CHOICE_WORD = re.compile(r"(?:option|choice|answer)\s+(?=\(?[A-J]\b)", re.IGNORECASE)
_NOT_AFTER_LABEL = ("(", "^", "_", "=", "+", "-", "*", "/", r"\cup", r"\cap")
_MORE_LETTERS = re.compile(r"\([A-J]\)|(?:\b(?:or|and)\b|[,/&}])\s*\(?[A-J]\b|^[A-J][.)]?$|\b[A-J][.):](?=\s|$)")
_WORD = re.compile(r"[A-Za-z]{3,}")
_ONLY_WORDS = re.compile(r"[A-Za-z][A-Za-z' ,.-]*")
_FUNCTION = re.compile(
    r"(?:np\.|math\.)?(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|pi|lim|max|min|gcd|lcm|det|inf)"
)
_UNEVALUATED = re.compile(
    r"\\(?:sum|prod|i{1,3}nt|oint|lim|det|gcd|lcm|min|max|bmod|pmod|mod|binom(?!\s*\{[^{}]*[A-Za-z])|frac\s*\{\s*d\s*\})(?![A-Za-z])"
    r"|\\[lr](?:floor|ceil)(?![A-Za-z])|\\begin\s*\{vmatrix\}"
)
_CONNECTIVE = re.compile(r"[\s,.]*(?:or|and)[\s,.]*", re.IGNORECASE)
_CONGRUENT = re.compile(
    r"(?:(-?\d{1,50}|[A-Za-z])\s*\\equiv)?\s*(\d{1,50})\s*\(?\\(?:pmod|mod|bmod)\s*\{?\s*(\d{1,50})\s*\}?\s*\)?"
)
_OR = re.compile(OR)
_JOINS = re.compile(r"\d|\b(?:or|and|not|nor|either|maybe)\b", re.IGNORECASE)
_FIRST_REMARK = re.compile(r"^\\text\s*\{[A-Za-z .'()]*(?:[:=]|\bis\b)\s*\}\s*(?=\S)")
_LAST_REMARK = re.compile(r"(?<=\S)\s*" + TEXT.pattern + r"\s*(?:\^\s?(?:\d|\{\s?-?\d\s?\}))?$")
_LAST_DEGREES = re.compile(r"(?<=[\d)}])\s*(?:\\text\s*\{\s*degrees?\s*\}|degrees?)$")
_LAST_UNIT = re.compile(
    r"(?:(?<=[\d)}\s])|(?<=\\pi))\s(?:"
    + "|".join(sorted(n for n in KNOWN_UNITS if len(n) > 1))
    + r")(?:\^\s?(?:\d|\{\s?\d\s?\}))?$"
)
# With two parts it is a fraction as well.
_RATIO = re.compile(r"\d+(?:\s?:\s?\d+){2,}")
# 2:40 is not 1:20.
_TIME = re.compile(r"\d{1,2}\s?:\s?[0-5]\d")
_PERCENT_SIGN = re.compile(r"\s*\\?%$")
# The digits in front of the point and behind it, of no fraction and no mixed number.
_ROUNDED = re.compile(r"[-+]?(?:\\\$)?(\d+)(?:\.(\d+))?(?![\d.]|\s?\\(?:frac|overline)|\s?/|\s\d)")


def quick_verdict(gold: str, answer: str, question: str | None = None) -> Outcome | None:
    """RIGHT, WRONG or UNPARSABLE where the texts decide; None where algebra is needed.

    Args:
        gold: a reference answer, normalized.
        answer: the answer to judge, normalized.
        question: the problem's text where it is known; an answer that only repeats an expression of it is wrong.
    """
    if not answer:
        return Outcome.UNPARSABLE
    if squeeze(gold) == squeeze(answer) or _unwrapped(gold) == _unwrapped(answer):
        return Outcome.RIGHT
    if choice := _CHOICE.fullmatch(_unwrap(gold)):
        return _verdict(_label(answer)[0] == choice[1])
    if letters := _letters(gold):
        return _verdict(letters == _letters(answer))
    if gold_label := _label(gold)[0]:
        # A reference such as `(C) 12` can be met by its letter or by what stands behind it.
        label, value = _label(answer)
        if label and not value:
            return _verdict(label == gold_label)
        if label != gold_label and label:
            return Outcome.WRONG
        return quick_verdict(_label(gold)[1], value, question)
    answer = _residue(_one_of_equals(_label(answer)[1] or answer))
    if _LETTERS_IN_ORDER.fullmatch(_unwrap(gold)):
        return _verdict(False)
    gold_left, gold_right = split_equation(gold)
    left, right = split_equation(answer)
    if NAME.fullmatch(right) and read_number(left) is not None:
        left, right = right, left
    # Of an equation such as x^2 + y^2 = 1 the right side is not the answer.
    gold_number = read_number(gold_right, letters=False) if not gold_left or NAME.fullmatch(gold_left) else None
    if gold_number is not None and not (gold_left and left and squeeze(gold_left) != squeeze(left)):
        number = read_number(right)
        before = [found for side in left.split("=") if (found := read_number(side.strip())) is not None]
        if number is not None and same_number(gold_number, number):
            if before:
                # 0.5 = 50%, while 4 = 5 is false and \frac{1}{3} = 0.333 is to be worked out.
                agree = all(same_number(gold_number, side) or _leads_to(side, number, right) for side in before)
                return Outcome.RIGHT if agree else None
            # 2 + 3 = 5 answers 5, and 1 = 5 does not.
            return None if left and not _VARIABLE.search(left) else Outcome.RIGHT
        if number is not None and any(same_number(gold_number, side) for side in before):
            # A whole number is no rounded one: 100 = 99.99999 is false.
            whole = gold_number.value.denominator == 1 and not any(
                side.unit or side.money for side in (number, *before)
            )
            return Outcome.WRONG if whole else None
        if not _AMBIGUOUS_LIST.fullmatch(gold) and not _in_other_unit(gold_number, right):
            return Outcome.WRONG
    elif gold_left and not left and not _VARIABLE.search(gold_left) and read_number(gold_right) is not None:
        # 2 + 3 = 5 is answered by 5, not by 2 + 3.
        if not _AMBIGUOUS_LIST.fullmatch(answer) and read_number(answer) is None:
            return Outcome.WRONG
    if _TIME.fullmatch(gold) and _TIME.fullmatch(answer):
        return _verdict(squeeze(gold) == squeeze(answer))
    if _RATIO.fullmatch(gold):
        return _verdict(bool(_RATIO.fullmatch(answer)) and _in_lowest_terms(gold) == _in_lowest_terms(answer))
    if _is_words(gold):
        return _verdict(plain_words(gold) == plain_words(answer))
    if _last_unit(gold) and _last_unit(answer) and _last_unit(gold) != _last_unit(answer):
        return Outcome.WRONG
    if any(
        (_JOINS.search(remark) or names_another_value(remark)) and not _CONNECTIVE.fullmatch(remark)
        for remark in TEXT.findall(answer)
    ):
        return Outcome.UNPARSABLE
    if not set(_UNEVALUATED.findall(_last_side(answer))) <= set(_UNEVALUATED.findall(gold)):
        return Outcome.WRONG
    if question is not None and is_copied(gold, answer, question):
        return Outcome.WRONG
    return None


def for_algebra(text: str) -> str:
    r"""The normalized answer as the judge is to read it.

    The label of a choice, what is said in front (`Area:`), and a remark, unit or percent sign at the end are left out.
    """
    text = _label(text)[1] or text
    text = _FIRST_REMARK.sub("", text)
    if read_number(split_equation(text)[0].rpartition("=")[2].strip()) is not None:
        return text  # 0.5 = 50%
    text = _LAST_DEGREES.sub(r"^\\circ", text)
    return _LAST_UNIT.sub("", _LAST_REMARK.sub("", _PERCENT_SIGN.sub("", text))).strip().rstrip(".,;:")


def _leads_to(side: Value, number: Value, written: str) -> bool:
    r"""Whether a side of a chain is the same as its last one, `written`: 3 hours = 180 minutes, \frac{10}{3} = 3.33.

    Of two different units neither is converted. A last side is rounded where it has two digits or more.
    """
    if "percent" in (side.unit, number.unit) or (side.money != number.money and "cent" in (side.unit, number.unit)):
        return same_number(side, number)
    if side.unit and number.unit and side.unit != number.unit:
        return True
    decimal = _ROUNDED.match(written.replace(",", ""))
    digits = (decimal[1] + (decimal[2] or "")).lstrip("0") if decimal else ""
    # Half of the last place: of 2.0 \times 10^{-19}, of 12 million.
    return len(digits) >= 2 and abs(side.value - number.value) <= abs(number.value) / (2 * int(digits))


def _one_of_equals(answer: str) -> str:
    r"""The first of several ways to write one number: `\frac{5}{2}` of `\frac{5}{2} \text{ or } 2.5`."""
    ways = _OR.split(answer)
    numbers = [read_number(way.strip()) for way in ways]
    one = numbers[0]
    if one is not None and all(number is not None and same_number(one, number) for number in numbers):
        return ways[0].strip()
    return answer


def _residue(answer: str) -> str:
    r"""The 7 of `17 \equiv 7 \pmod{10}`, `n \equiv 7 \pmod{10}` and `7 \pmod{10}`; any other answer as it is."""
    if congruent := _CONGRUENT.fullmatch(answer):
        number, residue, modulus = congruent[1], int(congruent[2]), int(congruent[3])
        true = number is None or number.isalpha() or (int(number) - residue) % (modulus or 1) == 0
        if residue < modulus and true:
            return str(residue)
    return answer


def _last_side(answer: str) -> str:
    r"""The 1 of `\lim_{x \to 0} \frac{\sin x}{x} = 1`; all of `\sum_{k=1}^n k`, where `=` is in an index."""
    left, right = split_equation(answer)
    return right if left.count("{") == left.count("}") else answer


def _verdict(right: bool) -> Outcome:
    return Outcome.RIGHT if right else Outcome.WRONG


def _in_lowest_terms(ratio: str) -> list[int]:
    parts = [int(part) for part in ratio.split(":")]
    divisor = math.gcd(*parts) or 1
    return [part // divisor for part in parts]


def _unwrap(text: str) -> str:
    return " ".join(TEXT.sub(r"\1", text).split())


def _unwrapped(text: str) -> str:
    return squeeze(_unwrap(text)).rstrip(".,;:")


def _letters(text: str) -> frozenset[str]:
    """The letters of a list of choices; empty where the text is none."""
    plain = _unwrap(text)
    return frozenset(re.findall("[A-Z]+", plain)) if _LETTERS.fullmatch(plain) else frozenset()


def _in_other_unit(gold: Value, answer: str) -> bool:
    r"""Whether degrees are asked for and the answer is written with \pi."""
    return gold.unit == "degree" and r"\pi" in answer


def _last_unit(text: str) -> str:
    """The known unit that stands at the end of an expression, with its power; empty for none."""
    unit = _LAST_REMARK.search(text) or _LAST_UNIT.search(text)
    number = read_number("1" + unit[0] if unit[0][:1].isspace() else "1 " + unit[0]) if unit else None
    return number.unit if number else ""


def _label(text: str) -> tuple[str, str]:
    """The letter of a multiple choice in front of an answer, and the answer behind it.

    Without a letter the first is empty and the second the text. So it is where several letters are given, and where
    the letter is part of an expression such as `(A)(B)`.
    """
    wrapped = TEXT.match(text)
    whole = f"{wrapped[1].strip()} {text[wrapped.end() :]}" if wrapped else text
    label = _LABEL.fullmatch(_CHOICE_WORD.sub("", whole.strip()))
    if label is None or label[4].startswith(_NOT_AFTER_LABEL) or _MORE_LETTERS.search(label[4]):
        return "", text
    return label[1] or label[2] or label[3], label[4].strip()


def _is_words(gold: str) -> bool:
    r"""Whether a reference is words rather than mathematics: `Evelyn`, `\text{June } 20`, `\text{no solution}`."""
    outside = TEXT.sub("", gold)
    inside = " ".join(TEXT.findall(gold)).replace(".", "")
    if outside != gold:
        if any(_CONNECTIVE.fullmatch(remark) for remark in TEXT.findall(gold)):
            return False
        return bool(re.search(r"[A-Za-z]{2,}", inside)) and not re.search(r"[A-Za-z\\=<>^]", outside)
    return bool(_ONLY_WORDS.fullmatch(gold) and _WORD.search(gold) and not _FUNCTION.match(gold))
