"""The program in an answer: which of its fenced code blocks it is, and where that block ends.

Markdown's rules, where an answer keeps them, and otherwise what Python tells: outside of strings and comments it has no
backticks, so three of them end the code, and those in a docstring do not. One pass, as the text may be made to be slow.
"""

import re
import textwrap
from dataclasses import dataclass

# Behind the last of these is what is answered; before it blocks may have been left open.
_END = r"(?:</(?:think|thinking|thoughts?|reasoning)>|<\|end_of_thought\|>)"
_END_OF_THOUGHT = re.compile(rf"^[ \t]*{_END}|{_END}[ \t\r]*$", re.I | re.M)
# A fence behind blanks and the marks of a list.
_FENCE = re.compile(r"(?P<before>[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*)(?P<mark>`{3,}|~{3,})(?P<info>[^`]*)")
# python, Python 3, python3.11, py:solution.py, {.python}, python title=x, solution.py; not pycon, not python-repl.
_PYTHON = re.compile(
    r"(?:\{?\.?(?:lang(?:uage)?[-=:])?(?:i?python|pypy|py)(?:-?\d[\d.]*)?(?![\w.-])(?!\s+(?:repl|console|output)\b)"
    r"|[\w./-]+\.py\b)",
    re.I,
)
# A fence behind text, at the end of its line: `<answer>```python`, `**Solution:** ```py`. In prose more follows.
_LATE_FENCE = re.compile(r"[^`]*(?P<mark>`{3,})(?P<info>[ \t]*[^\s`]+[ \t\r]*)")
_QUOTE = re.compile(r"[ \t]*>[ \t]?")
# What code holds that may hide a fence, and marks outside of it.
_TOKEN = re.compile(
    r"(?P<comment>\#)|(?P<quotes>\"\"\"|''')|(?P<ticks>`{3,})"
    r"|\"(?:[^\"\\]|\\.)*(?:\"|\\?$)|'(?:[^'\\]|\\.)*(?:'|\\?$)"
)
_CODE_LINE = re.compile(
    r"(?:def|class|import|from|for|while|if|with|return)\b|\w[\w.,\[\] ]*=[^=]|.*\b(?:print|input|open)\("
)
_TAG = re.compile(r"(?:</?[a-z][\w-]*>|<\|[^|]{1,40}\|>)?", re.I)
_SESSION = ">>>"


@dataclass(frozen=True)
class _Block:
    """A fenced block. tagged: as Python; else it has no tag. indent: of its fence."""

    tagged: bool
    lines: list[str]
    indent: int

    def code(self) -> str:
        """Without the indentation of its fence; without its own where there is more."""
        code = "\n".join(line[min(self.indent, len(line) - len(line.lstrip(" \t"))) :] for line in self.lines)
        first = next((line for line in self.lines if line.strip()), "")
        code = code.removeprefix("\ufeff")
        return textwrap.dedent(code) if first[:1] in (" ", "\t") else code

    def is_program(self) -> bool:
        """Whether it is more than blank lines and comments, and no session with an interpreter."""
        first = next((line for line in self.lines if line.strip() and line.lstrip()[0] != "#"), _SESSION)
        return not first.lstrip().startswith(_SESSION)

    def is_likely(self) -> bool:
        """Whether it may be a program from the look of its lines."""
        return any(_CODE_LINE.match(line.lstrip(" \t")) for line in self.lines)


def last_program(text: str) -> str | None:
    """The last fenced code block that is tagged as Python, or else the last without a tag; None when there is none.

    What stands behind the end of a thought comes first. A block that is not closed reaches to the end of the text. Of
    the blocks without a tag those that look like code come first: an output is often written like a program.
    """
    ends = [match.end() for match in _END_OF_THOUGHT.finditer(text)] if "</" in text or "<|" in text else []
    for part in (text[ends[-1] :], text) if ends else (text,):
        blocks = _blocks(part.split("\n"))[::-1]
        for choice in (
            (block for block in blocks if block.tagged and block.is_program()),
            (block for block in blocks if block.is_program() and block.is_likely()),
            (block for block in blocks if block.is_program()),
            blocks,
        ):
            for block in choice:
                return block.code()
    return None


def _blocks(lines: list[str]) -> list[_Block]:
    """Those that are tagged as Python or not at all."""
    found = []
    at = 0
    while at < len(lines):
        at += 1
        if "```" not in lines[at - 1] and "~~~" not in lines[at - 1]:
            continue
        _unquote(lines, at - 1)
        line = lines[at - 1]
        opening = _FENCE.fullmatch(line)
        if opening:
            indent = len(opening["before"])
        elif (opening := _LATE_FENCE.fullmatch(line)) and _PYTHON.fullmatch(opening["info"].strip()):
            indent = len(line) - len(line.lstrip(" \t"))
        else:
            continue
        info = opening["info"].strip()
        tagged = bool(_PYTHON.match(info))
        content, at = _content(lines, at, opening["mark"], tagged=tagged)
        if tagged or not info:
            found.append(_Block(tagged, content, indent))
    return found


def _unquote(lines: list[str], start: int) -> None:
    """Takes the marks of a quotation off a line and those behind it, in place; no line becomes another one's."""
    for at in range(start, len(lines)):
        mark = _QUOTE.match(lines[at])
        if not mark:
            break
        lines[at] = lines[at][mark.end() :]


def _content(lines: list[str], start: int, mark: str, *, tagged: bool) -> tuple[list[str], int]:
    """The lines of a block, and the number of the line to go on with.

    tagged: it is Python, so what looks like a fence anywhere in the code is one.
    """
    quotes = ""
    in_string = in_comment = None
    for at in range(start, len(lines)):
        line = lines[at]
        if mark not in line and (quotes or "'''") not in line and (quotes or '"""') not in line:
            continue
        fence = line.lstrip()[: len(mark)] == mark
        if fence and quotes:
            in_string = in_string or (lines[start:at], _behind(lines, at, mark))
        elif fence and (after := _behind(lines, at, mark)) is not None:
            return lines[start:at], after
        position = 0
        while True:
            if quotes:
                closing = line.find(quotes, position)
                if closing < 0:
                    break
                position = closing + len(quotes)
                quotes = ""
            token = _TOKEN.search(line, position)
            if token is None:
                break
            position = token.end()
            if token["quotes"]:
                quotes = token["quotes"]
            elif token["comment"]:
                bare = line.rstrip()
                if bare.endswith(mark) and "`" in mark:
                    in_comment = in_comment or ([*lines[start:at], bare[: -len(mark)]], at + 1)
                break
            elif token["ticks"] and token["ticks"].startswith(mark) and (tagged or not line[position:].strip()):
                return [*lines[start:at], line[: token.start()]], at + 1
    # Where a string never ends, what looked like a fence in it was one.
    spare = in_string if quotes else in_comment
    if spare and spare[1] is not None:
        return spare
    end = len(lines)
    while end > start and _TAG.fullmatch(lines[end - 1].strip()):
        end -= 1
    return lines[start:end], len(lines)


def _behind(lines: list[str], at: int, mark: str) -> int | None:
    """The line to go on with behind the fence in line `at`: that line itself where it opens another block.

    None where the line is no fence that ends the block.
    """
    rest = lines[at].lstrip().lstrip(mark[0])
    info = rest.strip()
    if not info:
        return at + 1
    if _PYTHON.match(info) and _FENCE.fullmatch(lines[at]):
        return at
    if mark[0] == "~":
        return None
    # ```text opens a block; ```</answer> and ``` It prints 9. do not.
    return at if rest[0].isalnum() and _FENCE.fullmatch(lines[at]) else at + 1
