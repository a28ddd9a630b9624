"""The texts of correction prompts: built in, or a template of one's own.

docs/method.md 3, 19. A built-in text is put together from few sentences, so that each of the knobs `attempts`,
`verdict`, `form` and `standalone` changes what it says and nothing else. That of the defaults stands in `TEMPLATES`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from verl_cipo.core.config import ROOT, CIPOConfigError, PromptConfig
from verl_cipo.core.contents import Content, text_part
from verl_cipo.core.knob_rules import REVIEW_ALLOWED, TEMPLATE_ALLOWED


@dataclass(frozen=True)
class _Words:
    """How a request speaks of what it shows."""

    doubt: str
    told: str
    it: str
    mistake: str
    named: str


_ONE = _Words("The attempt may or may not be right.", "The attempt is wrong.", "it", "the mistake", "the attempt")
_SEVERAL = _Words("Each may or may not be right.", "All of them are wrong.", "them", "the mistakes", "the attempts")
_OWN = _Words(
    "Your answer may or may not be right.", "Your answer is wrong.", "it", "the mistake", "your earlier answer"
)

_HEAD = "{question}\n\nHere is an attempt at this problem:\n<attempt>\n{attempt}\n</attempt>\n\n"
_HEAD_SEVERAL = "{question}\n\nHere are attempts at this problem:\n{attempt}\n\n"
_BLOCK = "<attempt>\n{attempt}\n</attempt>"

# Name of a built-in template -> what it asks for: with the verdict hidden, and told.
_ASKED = {
    "math": (
        "Check {it} step by step, then give a complete solution and the final answer in the format that the problem "
        "asks for.",
        "Find {mistake} step by step, then give a complete solution and the final answer in the format that the "
        "problem asks for.",
    ),
    "code": (
        "Check {it} against the problem step by step, then give the complete corrected or confirmed program in one "
        "fenced code block.",
        "Find {mistake} step by step, then give the complete corrected program in one fenced code block.",
    ),
}
_STANDALONE = " What you write must stand on its own: do not mention {named}."


def _request(name: str, words: _Words, config: PromptConfig) -> str:
    told = config.verdict == "told"
    parts = f"{words.told if told else words.doubt} {_ASKED[name][told]}{_STANDALONE if config.standalone else ''}"
    return fill(parts, it=words.it, mistake=words.mistake, named=words.named)


_BRACED = re.compile(r"\{(\w+)\}")
_PLACEHOLDER = re.compile(r"\{(question|attempt)\}")
_TEMPLATE_KEY = f"{ROOT}.prompt.template"


def fill(template: str, **values: str) -> str:
    """Put the values in place of their names, literally and in one pass: none is searched for placeholders."""
    return _BRACED.sub(lambda match: values.get(match.group(1), match.group()), template)


def fill_content(template: str, **values: Content) -> Content:
    """:func:`fill` where a value may be parts: the result then is parts, those as they are and text around them."""
    if all(isinstance(value, str) for value in values.values()):
        return fill(template, **cast(dict[str, str], values))
    parts, text = [], ""
    for i, piece in enumerate(_BRACED.split(template)):
        # Every second piece is a name.
        value = values.get(piece, f"{{{piece}}}") if i % 2 else piece
        if isinstance(value, str):
            text += value
            continue
        parts += [*([text_part(text)] if text else []), *map(dict, value)]
        text = ""
    return [*parts, *([text_part(text)] if text else [])]


def render(template: str, question: str, attempt: str) -> str:
    """Put question and attempt into the template."""
    return fill(template, question=question, attempt=attempt)


TEMPLATES = {name: _HEAD + _request(name, _ONE, PromptConfig()) for name in _ASKED}
"""Name -> built-in text, with all other knobs as by default."""

# What is learned from it is the solution of the first problem; the attempt is at another one, as a worked example.
ADJACENT_TEMPLATE = """{question}

Here is another problem and an attempt at it:
<problem>
{example}
</problem>
<attempt>
{attempt}
</attempt>

The attempt may or may not be right. Take from it what helps, then give a complete solution to the first problem, in \
the format that it asks for."""


@dataclass(frozen=True)
class Wording:
    """The texts of a correction prompt.

    one: with {question} and {attempt}, or with form=assistant_turn the review request, without them; several: the same
    where several attempts are shown, each in a block of its own.
    """

    one: str
    several: str

    def template(self, texts: Sequence[str]) -> str:
        """That for as many attempts."""
        return self.one if len(texts) == 1 else self.several

    @staticmethod
    def blocks(texts: Sequence[str]) -> str:
        """What stands in place of {attempt}."""
        return texts[0] if len(texts) == 1 else "\n".join(fill(_BLOCK, attempt=text) for text in texts)


def wording(config: PromptConfig) -> Wording:
    """What the knobs have a correction prompt say. Raises: CIPOConfigError as :func:`load_template`."""
    name = config.template
    review = config.form == "assistant_turn"
    if name not in TEMPLATES:
        own = load_template(name, review=review)
        _check_own(config)
        return Wording(own, own)
    if review:
        request = _request(name, _OWN, config)
        return Wording(request, request)
    return Wording(_HEAD + _request(name, _ONE, config), _HEAD_SEVERAL + _request(name, _SEVERAL, config))


def _check_own(config: PromptConfig) -> None:
    """Raises: CIPOConfigError where a knob that chooses among built-in texts meets a text of one's own."""
    for key, value, default in (("verdict", config.verdict, "hidden"), ("standalone", bool(config.standalone), False)):
        if value != default:
            raise CIPOConfigError(
                f"{ROOT}.prompt.{key} = {value!r} with {_TEMPLATE_KEY} = {config.template!r}: it chooses among the "
                f"built-in texts; use math or code, or {key} = {default!r} and a text that says it itself"
            )


def load_template(template: str, *, review: bool = False) -> str:
    """The built-in template of that name, `template` itself where it is a text, else the text of that file.

    A text holds a placeholder or a line break, which no name or path does. Last line breaks are left out.
    review: whether it is the request of a review, which follows the attempt in the chat and shows neither it nor the
    question.
    Raises: CIPOConfigError when the file cannot be read as UTF-8, when {question} and {attempt} are not there once each
    or, in a review, are there, and when a review asks for nothing.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    allowed = f"expected {REVIEW_ALLOWED if review else TEMPLATE_ALLOWED}"
    kind, text = "text", template
    if not _PLACEHOLDER.search(template) and "\n" not in template:
        try:
            kind, text = "file", Path(template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CIPOConfigError(f"{_TEMPLATE_KEY} = {template!r}: {error}; {allowed}") from error
    found = _PLACEHOLDER.findall(text)
    if sorted(found) != ([] if review else ["attempt", "question"]):
        counts = " and ".join(f"{{{name}}} {found.count(name)} times" for name in ("question", "attempt"))
        raise CIPOConfigError(f"{_TEMPLATE_KEY} = {template!r}: the {kind} holds {counts}; {allowed}")
    if not text.strip():
        raise CIPOConfigError(f"{_TEMPLATE_KEY} = {template!r}: the {kind} is empty; {allowed}")
    return text.rstrip("\r\n")


def with_text(config: PromptConfig) -> PromptConfig:
    """`config` with the text of its template's file in place of the path: whoever gets it opens no file.

    Raises: as :func:`wording`.
    """
    text = wording(config).one
    if config.template in TEMPLATES:
        return config
    # The line break tells a review, which has no placeholder, from a path.
    return replace(config, template=f"{text}\n" if config.form == "assistant_turn" else text)
