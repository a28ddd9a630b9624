r"""Where a solution states its answer: the last answer expression of the text, and of a ground truth.

A solution that corrects another one restates the wrong answer first, so the last expression counts:
`\boxed{2} is wrong, it is \boxed{3}` answers 3. The kinds, and which text they come from:

  box     `\boxed{x}`, `\fbox{x}`, `\boxed 5`                    MATH and most prompts
  hashes  `#### x`                                               GSM8K
  phrase  `Final Answer: The final answer is $x$. I hope`, `Answer: x` on a line of its own    Minerva, DAPO
  prose   `... the answer is x`                                  GSM8K's chain-of-thought prompts

A box is always meant as an answer. The others are also ordinary words and headings (`#### Step 2`, "the final answer
is correct"), so they compete with boxes only where what follows them is written as mathematics, and count otherwise
only in a text that has nothing better.
"""

import json
import re
from collections.abc import Sequence

import numpy as np

from verl_cipo.rewards.math.normal import normalize
from verl_cipo.rewards.math.values import read_number, split_equation

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
# Between boxes that give one answer together: hardly more than a comma, and one at least of these.
_JOINT = re.compile(r"[\s$.\\()]*(?:[,;]|\b(?:and|or)\b|&)[\s$,.\\()]*(?:\b(?:and|or)\b)?[\s$\\()]*")
_CHOICE = re.compile(r"\(?[A-J]\)?\.?")
_BARE_BOX = re.compile(r"[ \t]*([^\s{}$]+)")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_PHRASE = re.compile(
    r"(?:\bfinal\s{1,5}answer\b[*_\s]{0,5}(?:is\b|:|=)|^\W{0,5}(?:the\s{1,5})?answer\b[*_ ]{0,5}:"
    r"|^[#*_ ]{0,8}final\s{1,5}answer[*_ ]{0,5}\n)[*_: \t]{0,10}",
    re.IGNORECASE | re.MULTILINE,
)
_PROSE = re.compile(r"\banswer\b[*_\s]{0,5}(?:is\b|:)[*_: \t]{0,10}", re.IGNORECASE)
_REPEATED_PHRASE = re.compile(r"(?:the\s{1,5})?(?:final\s{1,5})?answer\s{1,5}is\b[: \t]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.;!?](?=\s|\*|$)|,?\s(?:because|since|which|so|as)\s|[.,]?\s*I hope", re.IGNORECASE)
_LAST_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d{1,50})(?:\.\d{1,50})?%?")
_CLOSERS = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_OPENER = re.compile(r"\$\$?|\\\(|\\\[")
# What follows a phrase is looked at no further than this: an answer is short, and a text may be one long line.
_REACH = 2000
_MOST_BOXES = 20


def last_answer(text: str, *, last_number: bool = False) -> str | None:
    """The answer a solution states last, as written, or None when it states none.

    A box that is never closed (the text was cut off in it) is an answer that cannot be read: the empty string.

    Args:
        text: the solution.
        last_number: take the last number of a text without any answer expression (GSM8K's flexible extraction).
    """
    definite: list[tuple[int, str]] = []
    vague: list[tuple[int, str]] = []
    if boxes := _last_boxes(text):
        definite.append(boxes)
    for hashes in _last(_HASHES, text):
        content = hashes.group(1).strip()
        (definite if _is_number(content[:_REACH]) or _CHOICE.fullmatch(content) else vague).append(
            (hashes.start(), content)
        )
    for pattern in (_PHRASE, _PROSE):
        for phrase in _last(pattern, text):
            content = _sentence(text[phrase.end() : phrase.end() + _REACH])
            if content:
                (definite if pattern is _PHRASE and _looks_like_math(content) else vague).append(
                    (phrase.start(), content)
                )
    found = definite or vague
    if found:
        return max(found, key=lambda item: item[0])[1]
    if last_number:
        for number in _last(_LAST_NUMBER, text):
            return number.group()
    return None


def reference_answers(ground_truth: object) -> list[str]:
    r"""The answers any of which is right.

    Args:
        ground_truth: text that is the answer, plain or in LaTeX, or holds it as `\boxed{...}` or `... #### 42`;
            a number; or several of these of which any will do, as a list, tuple, array or JSON list of texts.

    Raises:
        ValueError: there is no answer in it.
    """
    if isinstance(ground_truth, str):
        several = _json_texts(ground_truth)
    elif isinstance(ground_truth, np.ndarray):
        several = ground_truth.tolist()
    elif isinstance(ground_truth, Sequence):
        several = list(ground_truth)
    else:
        several = None
    if several is not None:
        if not several:
            raise ValueError("the ground truth is an empty list")
        return [answer for item in several for answer in reference_answers(item)]
    if isinstance(ground_truth, bool) or not isinstance(ground_truth, str | int | float | np.number):
        raise ValueError(f"a ground truth is a text, a number or a list of these, not {type(ground_truth).__name__}")
    if isinstance(ground_truth, float | np.floating) and not np.isfinite(ground_truth):
        raise ValueError(f"the ground truth {ground_truth} is no number")
    text = str(ground_truth).strip()
    boxes, hashes = _last(_BOX, text), _last(_HASHES, text)
    if boxes:
        text = _box_content(text, boxes[0].end())
    elif hashes:
        text = hashes[0].group(1).strip()
    if not normalize(text):
        raise ValueError(f"the ground truth {str(ground_truth)[:200]!r} holds no answer")
    return [text]


def _last_boxes(text: str) -> tuple[int, str] | None:
    """Where the last box begins, and what it holds; of boxes side by side, a list of what they hold."""
    starts = [box for box in _BOX.finditer(text)][-_MOST_BOXES:]
    if not starts:
        return None
    contents = [_box_content(text, starts[-1].end())]
    for box, following in zip(starts[-2::-1], starts[:0:-1], strict=True):
        content, end = _box(text, box.end())
        if not content or not _JOINT.fullmatch(text[end : end + _REACH][: max(following.start() - end, 0)] or "?"):
            break
        contents.insert(0, content)
    if len(contents) == 1:
        return starts[-1].start(), contents[0]
    # Of one value written twice, the last.
    distinct = list({_number_or_text(content): content for content in contents}.values())
    return starts[-1].start(), ", ".join(distinct if all(distinct) else distinct[-1:])


def _number_or_text(content: str) -> object:
    return read_number(split_equation(normalize(content))[1]) or content


def _last(pattern: re.Pattern, text: str) -> list[re.Match]:
    """The last match as a list of one, or an empty list."""
    last = None
    for match in pattern.finditer(text):
        last = match
    return [] if last is None else [last]


def _box_content(text: str, start: int) -> str:
    """What the box that was opened before `start` holds, its braces balanced; empty where they are not."""
    return _box(text, start)[0]


def _box(text: str, start: int) -> tuple[str, int]:
    """What a box holds, and where it ends."""
    brace = start
    while brace < len(text) and text[brace] in " \t":
        brace += 1
    if text[brace : brace + 1] != "{":
        bare = _BARE_BOX.match(text, start)
        return (bare.group(1), bare.end()) if bare else ("", start)
    depth, escaped = 0, False
    for position in range(brace, len(text)):
        character = text[position]
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[brace + 1 : position], position + 1
    return "", len(text)


def _sentence(text: str) -> str:
    """The answer that a sentence goes on with: a display formula, else what stands before the sentence's end."""
    text = text.lstrip()
    if repeated := _REPEATED_PHRASE.match(text):
        text = text[repeated.end() :].lstrip()
    opener = _OPENER.match(text)
    if opener and opener.group() in ("$$", r"\["):
        end = text.find(_CLOSERS[opener.group()], opener.end())
        return text[opener.end() : end].strip() if end >= 0 else ""
    line = text.partition("\n")[0]
    # A sentence ends at a full stop outside of a formula.
    inside = [match.span() for match in re.finditer(r"\$[^$]*\$|\\\(.*?\\\)", line)]
    for end in _SENTENCE_END.finditer(line):
        if not any(first <= end.start() < last for first, last in inside):
            line = line[: end.start()]
            break
    return line.strip().strip("*").strip()


def _looks_like_math(content: str) -> bool:
    return content[:1] in ("$", "\\", "(", "[") or _is_number(content)


def _is_number(content: str) -> bool:
    return read_number(split_equation(normalize(content))[1]) is not None


def _json_texts(text: str) -> list[str] | None:
    """The texts of a JSON list of texts, None for any other text: `[1, 2]` is an interval."""
    if not text.lstrip().startswith('["'):
        return None
    try:
        several = json.loads(text)
    except ValueError:
        return None
    return several if all(isinstance(item, str) for item in several) else None
