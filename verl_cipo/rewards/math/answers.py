r"""Where a solution states its answer: the last answer expression of the text, and of a ground truth.

A solution that corrects another one restates the wrong answer first, so the last expression counts:
`\boxed{2} is wrong, it is \boxed{3}` answers 3. The kinds, and which text they come from:

  box     `\boxed{x}`, `\fbox{x}`, `\boxed 5`                    MATH and most prompts
  hashes  `#### x`                                               GSM8K
  tag     `<answer>x</answer>`                                   R1's template
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

from verl_cipo.rewards.math.normal import TEXT, normalize
from verl_cipo.rewards.math.values import names_another_value, read_number, split_equation

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])")
# Between boxes that give one answer together: hardly more than a comma, and one at least of these. A name may stand in
# front of the second box that stands in front of the first, too.
_JOINT = re.compile(
    r"[\s$.\\()]*(?:[,;]|\b(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\}|&)[\s$,.\\()]*(?:\b(?:and|or)\b)?[\s$\\()]*"
    r"(?:(?P<name>[A-Za-z])\s?=\s?)?"
)
# Boxes and tags that say where the answer belongs: \boxed{}, \boxed{...}, \boxed{your answer}, <answer> and </answer>.
_PLACEHOLDER = re.compile(
    r"(?:\u2026|\\[lc]?dots|\\boxed\s*\{\s*\}|(?:(?:the|your) )?(?:final )?answer|and)?", re.IGNORECASE
)
_CHOICE = re.compile(r"\(?[A-J]\)?\.?")
_BARE_BOX = re.compile(r"[ \t]*([^\s{}$]+)")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\n]*)")
_HEADING = re.compile(
    r"\d+\s+(?:Verification|Verify|Checking|(?:Check|Step|Solution|Explanation|Note|Conclusion|Proof)s?|Summary)\b.*"
)
_PHRASE = re.compile(
    r"(?:\bfinal\s{1,5}answer\b[*_\s]{0,5}(?:is\b|:|=)|^\W{0,5}(?:the\s{1,5})?answer\b[*_ ]{0,5}:"
    r"|^[#*_ ]{0,8}(?:final\s{1,5})?answer[*_ ]{0,5}\n"
    # The same in Chinese.
    r"|\u7b54\u6848[*_\s]{0,5}(?:\u662f|\u4e3a|\u70ba|[:\uff1a]))[*_: \t\uff1a]{0,10}",
    re.IGNORECASE | re.MULTILINE,
)
_PROSE = re.compile(r"\banswer\b[*_\s]{0,5}(?:is\b|:)[*_: \t]{0,10}", re.IGNORECASE)
_REPEATED_PHRASE = re.compile(r"(?:the\s{1,5})?(?:final\s{1,5})?answer\s{1,5}is\b[: \t]*", re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"[.!?]?\s*</answer>|[.!?](?=\s|\*|$)|\u3002|\uff0c(?=\s*[\u4e00-\u9fff])|;(?=\s|\*|$)(?!\s*(?:and\s|or\s)?\s*(?:[$\d+-]|\\))"
    r"|,?\s(?:because|since|which|so|(?<!\bwell\s)as(?!\s+well\s))\s|[.,]?\s*I hope",
    re.IGNORECASE,
)
_LAST_NUMBER = re.compile(r"-?\$?(?:\d{1,3}(?:,\d{3})+|\d{1,50})(?:\.\d{1,50})?%?")
# What an answer is decorated with: bold type, squares, check marks.
_DRESS = re.compile("[\\s*_\u220e\u2500-\u27bf\u2b00-\u2bff\ufe0f\U0001f000-\U0001faff]+$")
_FORMULA = re.compile(r"\$(?:\\.|[^$\\])+\$|\\\(.*?\\\)")
# What goes on after a formula without being a part of the answer, and what is a part of it all the same.
_ASIDE = re.compile(
    r"[\s*_]*(?:[,;:(\u2013\u2014]|-\s|\b(?:satisfies|gives|works|and (?:it|we|this))\b"
    r"|\b(?:is|are|was) (?:the )?(?:least|largest|smallest|greatest|positive|number|only)\b)",
    re.IGNORECASE,
)
# Words by which a remark changes the formula in front of it, adds to it or takes it back; and Roman numerals.
_CHANGES = re.compile(
    r"\b(?:conjugates?|reciprocals?|inverses?|opposites?|negat\w*|signs?|reversed|both|versus|also|candidates?|wrong"
    r"|incorrect|false|unknown|per ?cent|factors?|as well as|perhaps|possibly|its (?:square|cube|root))\b"
    r"|\b(?-i:(?=[IVXLC]{2})[IVXLC]+)\b",
    re.IGNORECASE,
)
_OTHER_VALUE = re.compile(r"[\d$\\=<>^]|\b(?![aAI]\b)[A-Za-z]\b")
_WORD = re.compile(r"(?<![A-Za-z\\])(?!(?:and|sqrt|log|sin|cos|tan|exp|min|max)\b)[A-Za-z]{3,}")
_TAG = "<answer>", "</answer>"
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
    if boxes := last_boxes(text):
        definite.append(boxes)
    for hashes in _last(_HASHES, text):
        content = hashes.group(1).strip()
        number = _is_number(content[:_REACH]) and not _HEADING.fullmatch(content)
        (definite if number or _CHOICE.fullmatch(content) else vague).append((hashes.start(), content))
    if tagged := _last_tag(text):
        (definite if _looks_like_math(tagged[1]) or not _is_prose(tagged[1]) else vague).append(tagged)
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
    boxes, hashes = last_boxes(text), _last(_HASHES, text)
    if boxes:
        text = boxes[1]
    elif hashes:
        text = hashes[0].group(1).strip()
    if not normalize(text):
        raise ValueError(f"the ground truth {str(ground_truth)[:200]!r} holds no answer")
    return [text]


def last_boxes(text: str) -> tuple[int, str] | None:
    """Where the last box begins, and what it holds; of boxes side by side, a list of what they hold.

    Behind a filled box, an empty one only repeats where the answer belongs. A box that is never closed is empty.
    """
    found = [(box, *_box(text, box.end())) for box in list(_BOX.finditer(text))[-_MOST_BOXES:]]
    filled = [at for at, (_, content, end) in enumerate(found) if end is None or not _is_placeholder(content)]
    if not found:
        return None
    found = found[: filled[-1] + 1] if filled else found[-1:]
    last, content, _ = found.pop()
    contents, joints = [content], []
    following = last
    while found:
        box, content, end = found.pop()
        joint = (
            _JOINT.fullmatch(text[end : end + _REACH][: max(following.start() - end, 0)]) if content and end else None
        )
        name = joint["name"] if joint else None
        if not joint or (name and not re.search(rf"\b{name}\s?=\s?$", text[: box.start()][-9:])):
            break
        contents.insert(0, content)
        joints.append(joint[0])
        following = box
    if len(contents) > 1:
        # Of one value written twice, the last.
        distinct = list({_number_or_text(content): content for content in contents}.values())
        contents = distinct if all(distinct) else distinct[-1:]
    between = r" \text{ or } " if all(re.search(r"\bor\b", joint) for joint in joints) else ", "
    return last.start(), between.join(contents)


def _is_placeholder(content: str) -> bool:
    return bool(_PLACEHOLDER.fullmatch(TEXT.sub(r"\1", content[:_REACH]).strip("$ .")))


def _number_or_text(content: str) -> object:
    return read_number(split_equation(normalize(content))[1]) or content


def _last_tag(text: str) -> tuple[int, str] | None:
    """Where the last pair of answer tags begins, and what it holds, unless that is nothing or a placeholder."""
    end = text.rfind(_TAG[1])
    start = text.rfind(_TAG[0], 0, max(end, 0))
    content = text[start + len(_TAG[0]) : end].strip() if start >= 0 else ""
    return None if _is_placeholder(content) else (start, content)


def _last(pattern: re.Pattern, text: str) -> list[re.Match]:
    """The last match as a list of one, or an empty list."""
    last = None
    for match in pattern.finditer(text):
        last = match
    return [] if last is None else [last]


def _box(text: str, start: int) -> tuple[str, int | None]:
    """What the box that was opened before `start` holds, and where it ends; nothing and None where it is not closed."""
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
    return "", None


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
    line = _DRESS.sub("", line.strip().strip("*"))
    formula = _FORMULA.match(line)
    if formula and not _is_prose(formula[0]) and _is_aside(line[formula.end() :]):
        return formula[0]
    return line


def _is_aside(text: str) -> bool:
    """Whether what follows a formula is no part of the answer: `, and we are done`, `(simplified)`, `is least`."""
    if _OTHER_VALUE.search(text) or _CHANGES.search(text) or names_another_value(text):
        return False
    return not re.search(r"\w", text) or bool(_ASIDE.match(text))


def _looks_like_math(content: str) -> bool:
    if _is_number(content) or content[:1] == "$" or content[:2] == r"\(":
        return True
    return content[:1] in ("\\", "(", "[") and not _is_placeholder(content) and not _is_prose(content)


def _is_prose(content: str) -> bool:
    """Whether words stand in it that are no product of three letters."""
    words = _WORD.findall(TEXT.sub("", content))
    return len(words) > 1 or any(len(word) > 3 for word in words)


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
