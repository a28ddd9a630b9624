r"""A second, stricter judge of math answers, for auditing the verifier of training. It shares no code with it.

It has its own extraction, its own reading of numbers, and its own parser of LaTeX, which evaluates expressions at
random points in floating point; neither math-verify nor SymPy takes part. It decides on evidence only: what it cannot
read, and what floating point cannot tell apart, is undecided.
"""

import re
from fractions import Fraction

from verl_cipo.evaluation.rescore.strict_expressions import parsed, same

CONFIRMED, REJECTED, UNDECIDED = "confirmed", "rejected", "undecided"

_THOUGHT = re.compile(r".*</think>", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:(\{)|([^\s{}$]+))")
_MARKED = re.compile(
    r"####\s*(?=[-$\\(\[\d.])(.+)|.*(?:final answer|answer)\**\s*(?:is|:)\**:?\s*(?=[-$\\(\[\d.])(.+)", re.IGNORECASE
)
_WORDS = re.compile(r"(?:final answer|answer)\**\s*(?:is|:)\**:?\s*(\S.*)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_JOINT = re.compile(r"[\s$,.\\()]*(?:or|and)?[\s$,.\\()]*", re.IGNORECASE)
_DECIMAL = re.compile(
    r"(-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+))(?:e([-+]?\d{1,3})|(?:\\times|\\cdot)10\^\{?(-?\d{1,3})\}?)?"
)
_POWER_OF_TEN = re.compile(r"10\^\{?(-?\d{1,3})\}?")
_RATIO = re.compile(r"(-?)(\d*)\\frac\{(-?\d+)\}\{(-?\d+)\}|(-?)(\d+)/(\d+)")
_UNIT = re.compile(r"(\\text\{[^{}\d]*\}|\^\{?\\circ\}?|\\%|%|(?<=[\d.])[a-z]{2,})((?:\^\{?-?\d\}?)?)$")
_NO_UNIT = re.compile(r"\b(?:or|and|not)\b|hundred|thousand|illion|dozen|[ap]\.?m\b|\bpi\b", re.IGNORECASE)
_NAME = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z]|[A-Za-z]{4,})(?:_\{?\w+\}?)?")
_HEADING = re.compile(r"[#*_\s]*final answer[*_\s]*", re.IGNORECASE)
# Words, degrees and separators inside of expressions are not read: `1,000x` may be one term or two.
_NOT_READ = re.compile(
    r"(?<![\\A-Za-z])(?:pi|oo|or|[A-Za-z]{3,})|\^\{?(?:st|nd|rd|th)|\\frac\{d|\d,\d{3}(?!\d)|\\(?:circ|text)(?![A-Za-z])|\\\\[A-Za-z]"
)
# Floating point does not see 1 - 2^{-100}.
_TINY = re.compile(r"\^\{?(?:-\d{2,}|[2-9]\d|\d{3,})|[eE]-\d{2,}|0\.0{6,}")
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
    answers = _answers(_THOUGHT.sub("", solution))
    if not answers:
        return REJECTED, "no_answer"
    golds = _answers(gold) or [gold]
    reference = _canonical(golds[-1])
    if len({_canonical(answer) for answer in answers}) > 1:
        if "," not in reference:
            return REJECTED, "several_answers"
        answers = [",".join(answers)]
    answer = _canonical(answers[-1])
    if _other_names(answers[-1], golds[-1]) or (answer == reference and re.search(r"\d\s+\d", answers[-1] + golds[-1])):
        return UNDECIDED, "unread"
    if answer == reference:
        return CONFIRMED, "same_text"
    (reference, wanted_unit), (answer, unit) = _without_unit(reference), _without_unit(answer)
    percent = ("%" in unit) != ("%" in wanted_unit)
    if unit and wanted_unit and unit != wanted_unit and not percent:
        # cm and centimeters are one; of short names each has its own meaning.
        short = len(unit) <= 4 and len(wanted_unit) <= 4 and {unit, wanted_unit} != {"deg", "rad"}
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
        return REJECTED, "another_value"
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
    for line in reversed(_lines(text)):
        if boxes := _boxes(line):
            return boxes
        if found := _MARKED.search(line):
            return [_SENTENCE_END.split(found[1] or found[2])[0]]
    words = [found[1] for line in text.splitlines() if (found := _WORDS.search(line))]
    return [_SENTENCE_END.split(words[-1])[0]] if words else []


def _lines(text: str) -> list[str]:
    """The lines, of which a box that spans several makes one."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines and _HEADING.fullmatch(lines[-1]):
            lines[-1] += f": {line}" if line.strip() else ""
        elif lines and lines[-1].count("{") > lines[-1].count("}") and _BOX.search(lines[-1]):
            lines[-1] += " " + line
        else:
            lines.append(line)
    return lines


def _boxes(line: str) -> list[str]:
    """What the last boxes of a line hold, those before them too where hardly more than `or` is between."""
    found: list[str] = []
    end = 0
    for box in _BOX.finditer(line):
        if box.start() < end:
            continue
        if not _JOINT.fullmatch(line[end : box.start()]):
            found.clear()
        content, end = (box[2], box.end()) if box[2] else _braced(line, box.end())
        found.append(content)
    return [inner[-1] if (inner := _boxes(content)) else content for content in found]


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
    """The text without spaces, dollar signs, sizes and `x =`, with one way to write fractions."""
    text = text.strip().strip("*").replace("\u2212", "-").replace(r"\$", "").replace("$", "")
    text = re.sub(r"\\(?:left|right)\.|\\(?:left|right|,|;|:|!|quad|displaystyle)(?![A-Za-z])|\\ |~", " ", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace(r"\(", "").replace(r"\)", "")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\^\s*\{(\w)\}", r"^\1", re.sub(r"(?<!\\)\s+", "", text)).rstrip(".")
    if bracketed := re.fullmatch(r"\((-?[\d.]+)\)|\\\{(-?[\d.]+)\\\}|\+([\d.]+)", text):
        return next(filter(None, bracketed.groups()))
    left, sign, right = text.partition("=")
    return right if sign and _NAME.fullmatch(left) and "=" not in right else text


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
    """The number that the text is, None when it is anything else."""
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
