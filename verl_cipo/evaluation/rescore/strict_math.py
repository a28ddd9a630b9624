r"""A second, stricter judge of math answers, for auditing the verifier of training. It shares no code with it.

It has its own extraction, its own reading of numbers, and its own parser of LaTeX, which evaluates expressions at
random points in floating point; neither math-verify nor SymPy takes part. It decides on evidence only: what it cannot
read, and what floating point cannot tell apart, is undecided.
"""

import re
from fractions import Fraction

from verl_cipo.evaluation.rescore.strict_expressions import parsed, same

CONFIRMED, REJECTED, UNDECIDED = "confirmed", "rejected", "undecided"

_THOUGHT_END = "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(\{)|([^\s{}$]+))")
_NESTED_BOXES = 8
# What follows is taken as the answer. No `.*`: searched from each place of a long line, it takes quadratic time.
_MARK = re.compile(r"(?:####|(?:final answer|answer)\**\s*(?:is|:))[*:\s]*(?=[-$\\(\[\d.])", re.IGNORECASE)
_NUMBERED_HEADING = re.compile(r"\s*####\s*\d{1,2}[.)]\s+[^\W\d_]")
_WORDS = re.compile(r"(?:final answer|answer)\**\s*(?:is|:)\**:?\s*(\S.*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_JOINT = re.compile(r"(?:[\s$,.\\()]*(?:or|and))?[\s$,.\\()]*", re.IGNORECASE)
_DECIMAL = re.compile(
    r"(-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+))(?:e([-+]?\d{1,3})|(?:\\times|\\cdot)10\^\{?(-?\d{1,3})\}?)?"
)
_POWER_OF_TEN = re.compile(r"10\^\{?(-?\d{1,3})\}?")
_RATIO = re.compile(r"(-?)(\d*)\\frac\{(-?\d+)\}\{(-?\d+)\}|(-?)(\d+)/(\d+)")
_MIXED = re.compile(r"(-?\d+)\s+(\d+)\s*/\s*(\d+)")
_SPACED_FRACTION = re.compile(r"\d\s+\d+\s*/")
_WRAPPED = {"(": ")", "{": "}"}
_UNIT = re.compile(
    r"(\\text\{[^{}\d]*\}|(?<=[\d.])(?:[a-z]{3,}|km|cm|mm|ft|mi|kg|mg|m)/(?:[a-z]{3,}|hr?|s)"
    r"|\^\{?\\circ\}?|\\%|%|(?<=[\d.])[a-z]{2,})((?:\^\{?-?\d\}?)?)$"
)
_NO_UNIT = re.compile(r"\b(?:or|and|not)\b|hundred|thousand|illion|dozen|[ap]\.?m\b|\bpi\b", re.IGNORECASE)
_NAME = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z]|[A-Za-z]{4,})(?:_\{?\w+\}?)?")
_HEADING = re.compile(r"[#*_\s]*final answer[*_\s]*", re.IGNORECASE)
# Words, degrees and separators inside of expressions are not read: `1,000x` may be one term or two.
_NOT_READ = re.compile(
    r"(?<![\\A-Za-z])(?:pi|oo|or|[A-Za-z]{3,})|\^\{?(?:st|nd|rd|th)|\\frac\{d|\d,\d{3}(?!\d)|\\(?:circ|text)(?![A-Za-z])|\\\\[A-Za-z]"
)
# Floating point does not see 1 - 2^{-100}.
_TINY = re.compile(r"\^\{?(?:-\d{2,}|[2-9]\d|\d{3,})|[eE]-\d{2,}|0\.0{6,}")
_LOG = re.compile(r"\\log(?![_A-Za-z])")
_TOLERANCE = 1e-9
# Six significant digits: 0.333333 is 1/3, where only one of the two is a decimal of so many.
_ROUNDED = re.compile(r"-?(?:0?\.0*[1-9]\d{5,}|(?=[\d.]{7})[1-9]\d*\.(\d+))")
_ROUNDED_TOLERANCE = 5e-6


def judge(solution: str, gold: str, question: str = "") -> tuple[str, str]:
    r"""Judge the answer that a solution states last.

    Args:
        solution: the policy's text; only what follows its thinking counts.
        gold: the reference, plain or as `\boxed{...}` or `#### ...`.
        question: what was asked, if known: an expression copied from it is no answer.

    Returns:
        CONFIRMED, REJECTED or UNDECIDED, and the reason: same_text, same_value; no_answer, several_answers,
        another_value, another_unit, not_evaluated (a plain number was asked for), copied_from_question; unread.
    """
    answers = _answers(solution.rpartition(_THOUGHT_END)[2])
    if not answers:
        return REJECTED, "no_answer"
    golds = _answers(gold) or [gold]
    reference = _canonical(golds[-1])
    if len({_canonical(answer) for answer in answers}) > 1:
        if "," not in reference:
            return REJECTED, "several_answers"
        answers = [",".join(answers)]
    answer = _canonical(answers[-1])
    spaced = f"{_with_mixed(answers[-1])} and {_with_mixed(golds[-1])}"
    if _SPACED_FRACTION.search(spaced) or answer == reference and re.search(r"\d\s+\d", spaced):
        return UNDECIDED, "unread"
    if _other_names(answers[-1], golds[-1]):
        return UNDECIDED, "unread"
    if answer == reference:
        return CONFIRMED, "same_text"
    (reference, wanted_unit), (answer, unit) = _without_unit(reference), _without_unit(answer)
    percent = ("%" in unit) != ("%" in wanted_unit)
    if unit and wanted_unit and unit != wanted_unit and not percent:
        # cm and centimeters are one; of short names each has its own meaning.
        short = len(unit) <= 4 and len(wanted_unit) <= 4 and {unit, wanted_unit} != {"deg", "rad"}
        short &= ("/" in unit) == ("/" in wanted_unit)
        return (REJECTED, "another_unit") if short else (UNDECIDED, "unread")
    wanted, given = _number(reference), _number(answer)
    if wanted is not None:
        if given is not None:
            close = [wanted, wanted / 100, wanted * 100] if percent else [wanted]
            for half_units in (1, 2):
                if any(_near(answer, given, reference, one, half_units) for one in close):
                    # A decimal may be cut off, where it does not round to the number.
                    return (CONFIRMED, "same_value") if half_units == 1 else (UNDECIDED, "unread")
            return REJECTED, "another_value"
        # A number left to be worked out is no answer to a question that asks for one.
        values = parsed(answer)
        if values is None or _NO_UNIT.search(answer) or _NOT_READ.search(answer) or "deg" in (unit, wanted_unit):
            return UNDECIDED, "unread"
        if "/" in wanted_unit:
            # 10m/s may be a speed, or a fraction of names.
            return UNDECIDED, "unread"
        return REJECTED, "several_answers" if isinstance(values, tuple) else "not_evaluated"
    if answer == reference:
        return CONFIRMED, "same_text"
    if re.search(r"[-+*/^]|\\frac|\\sqrt", answer) and answer in _canonical(question):
        return REJECTED, "copied_from_question"
    values, wanted_values = parsed(answer), parsed(reference)
    if values is None or wanted_values is None or _NOT_READ.search(answer) or _NOT_READ.search(reference):
        return UNDECIDED, "unread"
    if unit != wanted_unit and "deg" in (unit, wanted_unit):
        return UNDECIDED, "unread"
    rounded = bool(_ROUNDED.search(answer)) != bool(_ROUNDED.search(reference))
    tolerance = _ROUNDED_TOLERANCE if rounded else _TOLERANCE
    if not same(wanted_values, values, tolerance):
        # A logarithm without its base is the natural one to some.
        return (UNDECIDED, "unread") if _LOG.search(answer + reference) else (REJECTED, "another_value")
    below_zero = parsed(answer, -1), parsed(reference, -1)
    if None not in below_zero and not same(*below_zero, tolerance):  # pyright: ignore[reportArgumentType]
        return UNDECIDED, "unread"
    return (UNDECIDED, "unread") if _TINY.search(answer + reference) else (CONFIRMED, "same_value")


def _near(answer: str, given: Fraction, reference: str, wanted: Fraction, half_units: int) -> bool:
    """Whether two numbers are equal, or one of six significant digits is so many half units of its last place away."""
    distance = abs(given - wanted)
    return not distance or any(
        _ROUNDED.fullmatch(text) and distance <= Fraction(half_units, 2 * 10 ** len(text.partition(".")[2]))
        for text in (answer, reference)
    )


def _other_names(answer: str, gold: str) -> bool:
    """Whether two equations give values to different names: I = V/R may be V = IR."""
    one, other = (re.sub(r"[\s$]", "", text.partition("=")[0]) if "=" in text else "" for text in (answer, gold))
    return bool(one and other and one != other)


def _answers(text: str) -> list[str]:
    """What the last line with an answer states; several where boxes stand side by side in it.

    Words behind `answer is` count where nothing in the text is marked that looks like mathematics.
    """
    numbered = []
    for line in reversed(_lines(text)):
        if boxes := _boxes(line):
            return boxes
        if marks := list(_MARK.finditer(line)):
            stated = [_SENTENCE_END.split(line[marks[-1].end() :])[0]]
            if not _NUMBERED_HEADING.match(line):
                return stated
            # `#### 1. Check` heads what follows, where there is another answer.
            numbered = numbered or stated
    if numbered:
        return numbered
    words = [found[1] for line in text.splitlines() if (found := _WORDS.search(line))]
    return [_SENTENCE_END.split(words[-1])[0]] if words else []


def _lines(text: str) -> list[str]:
    """The lines, of which a box that spans several makes one."""
    lines: list[list[str]] = []
    depth, boxed = 0, False
    for line in text.splitlines():
        if lines and len(lines[-1]) == 1 and _HEADING.fullmatch(lines[-1][0]):
            line = f": {line}" if line.strip() else ""
            lines[-1] += [line] if line else []
        elif depth > 0 and boxed:
            lines[-1].append(" " + line)
        else:
            lines.append([line])
            depth, boxed = 0, False
        depth += line.count("{") - line.count("}")
        boxed = boxed or _BOX.search(line) is not None
    return ["".join(parts) for parts in lines]


def _boxes(line: str, nested: int = 0) -> list[str]:
    """What the last boxes of a line hold, those before them too where hardly more than `or` is between.

    nested: boxes around the line.
    """
    found: list[str] = []
    end = 0
    for box in _BOX.finditer(line):
        if box.start() < end:
            continue
        if not _JOINT.fullmatch(line[end : box.start()]):
            found.clear()
        content, end = (box[2], box.end()) if box[2] else _braced(line, box.end())
        found.append(content)
    if nested == _NESTED_BOXES:
        return found
    return [inner[-1] if (inner := _boxes(content, nested + 1)) else content for content in found]


def _braced(line: str, start: int) -> tuple[str, int]:
    """The text up to the brace that closes the one before `start`, and where that is; empty when it never closes."""
    depth = 1
    for at in range(start, len(line)):
        if line[at - 1] != "\\":
            depth += {"{": 1, "}": -1}.get(line[at], 0)
        if depth == 0:
            return line[start:at], at + 1
    return "", len(line)


def _canonical(text: str) -> str:
    """The text without spaces, dollar signs, sizes, brackets around it and `x =`, with one way to write fractions."""
    text = _with_mixed(text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace(r"\(", "").replace(r"\)", "")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{(\w)\}", r"^\1", re.sub(r"(?<!\\)\s+", "", text)).rstrip(".")
    text = _unwrapped(text)
    if bracketed := re.fullmatch(r"\((-?[\d.]+)\)|\\\{(-?[\d.]+)\\\}|\+([\d.]+)", text):
        return next(filter(None, bracketed.groups()))
    left, sign, right = text.partition("=")
    return _unwrapped(right) if sign and _NAME.fullmatch(left) and "=" not in right else text


def _plain(text: str) -> str:
    """The text without dollar signs and sizes, with spaces for LaTeX's."""
    text = text.strip().strip("*").replace("\u2212", "-").replace(r"\$", "").replace("$", "")
    return re.sub(r"\\(?:left|right)\.|\\(?:left|right|,|;|:|!|quad|displaystyle)(?![A-Za-z])|\\ |~", " ", text).strip()


def _with_mixed(text: str) -> str:
    r"""As `_plain`, with the mixed number `3 1/2` as `3\frac{1}{2}`; what else it is might be 31/2."""
    text = _plain(text)
    mixed = _MIXED.fullmatch(text.rstrip("."))
    if mixed is None or len(text) > 100 or int(mixed[2]) >= int(mixed[3]):
        return text
    return rf"{mixed[1]}\frac{{{mixed[2]}}}{{{mixed[3]}}}"


def _unwrapped(text: str) -> str:
    r"""The text without the brackets or braces around it; `{1,2}` is a set, \{1,2\}, and `(1,2)` stays a pair."""
    for _ in range(_NESTED_BOXES):
        closing = _WRAPPED.get(text[:1])
        if closing is None or text[-1] != closing or len(text) < 3 or text[-2] == "\\":
            return text
        depth = 0
        for token in re.finditer(r"\\.|[(){},]", text[1:-1]):
            depth += (token[0] in "({") - (token[0] in ")}")
            if depth < 0:
                return text
            if token[0] == "," and depth == 0:
                return text if closing == ")" else rf"\{{{text[1:-1]}\}}"
        if depth:
            return text
        text = text[1:-1]
    return text


def _without_unit(text: str) -> tuple[str, str]:
    """A canonical text and the unit that stands behind it, empty where there is none."""
    unit = _UNIT.search(text)
    if unit is None or not unit.start() or _NO_UNIT.search(unit[1]):
        return text, ""
    name = (
        "deg"
        if "circ" in unit[1] or "degree" in unit[1]
        else unit[1].removeprefix(r"\text{").rstrip("}").removeprefix("\\").lower()
    )
    return text[: unit.start()], name + re.sub(r"[{}]", "", unit[2])


def _number(text: str) -> Fraction | None:
    """The number that the text is, None when it is anything else or too long to be read."""
    if len(text) > 1000:
        return None
    if ratio := _RATIO.fullmatch(text):
        sign, whole, top, bottom = ratio.groups()[:4] if ratio[3] else (ratio[5], "", ratio[6], ratio[7])
        value = int(whole or 0) + Fraction(int(top), int(bottom)) if int(bottom) else None
        return value if value is None or not sign else -value
    if power := _POWER_OF_TEN.fullmatch(text):
        return Fraction(10) ** int(power[1])
    decimal = _DECIMAL.fullmatch(text) if len(text) < 100 else None
    if decimal is None:
        return None
    return Fraction(decimal[1].replace(",", "")) * Fraction(10) ** int(decimal[2] or decimal[3] or 0)
