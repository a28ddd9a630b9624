"""The correction prompt: a question, the policy's own attempt at it, and the request to check and solve.

docs/method.md 3. The text is the same for right and wrong attempts: nothing here sees the verdict.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError, PromptConfig
from verl_cipo.core.knob_rules import TEMPLATE_ALLOWED
from verl_cipo.core.transitions import is_copy

_HEAD = """{question}

Here is an attempt at this problem:
<attempt>
{attempt}
</attempt>

The attempt may or may not be right. """

TEMPLATES = {
    "math": _HEAD + "Check it step by step, then give a complete solution and the final answer in the format that the "
    "problem asks for.",
    "code": _HEAD + "Check it against the problem step by step, then give the complete corrected or confirmed program "
    "in one fenced code block.",
}

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

TAIL_MARK = "[...] "
MIN_ATTEMPT_TOKENS = 16
SKIP_REASONS = ("too_long", "no_text_question", "empty_attempt")

_BRACED = re.compile(r"\{(\w+)\}")
_PLACEHOLDER = re.compile(r"\{(question|attempt)\}")
_TAG = re.compile(r"</?\w+>")
_TEMPLATE_KEY = f"{ROOT}.prompt.template"


def load_template(template: str) -> str:
    """The built-in template of that name, `template` itself where it is a text, else the text of that file.

    A text holds a placeholder or a line break, which no name or path does. Last line breaks are left out.
    Raises: CIPOConfigError when the file cannot be read as UTF-8 or {question} and {attempt} are not there once each.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    allowed = f"expected {TEMPLATE_ALLOWED}"
    kind, text = "text", template
    if not _PLACEHOLDER.search(template) and "\n" not in template:
        try:
            kind, text = "file", Path(template).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CIPOConfigError(f"{_TEMPLATE_KEY} = {template!r}: {error}; {allowed}") from error
    found = _PLACEHOLDER.findall(text)
    if sorted(found) != ["attempt", "question"]:
        counts = " and ".join(f"{{{name}}} {found.count(name)} times" for name in ("question", "attempt"))
        raise CIPOConfigError(f"{_TEMPLATE_KEY} = {template!r}: the {kind} holds {counts}; {allowed}")
    return text.rstrip("\r\n")


def with_text(config: PromptConfig) -> PromptConfig:
    """`config` with the text of its template's file in place of the path: whoever gets it opens no file.

    Raises: as load_template.
    """
    return config if config.template in TEMPLATES else replace(config, template=load_template(config.template))


def strip_thinking(text: str, opening: str = "<think>", closing: str = "</think>") -> str:
    """The attempt without its thinking, which stands between the markers `opening` and `closing`.

    1. Closed <think>...</think> blocks go.
    2. A </think> that is left closes a block which the chat template opened in the prompt: what follows it stays.
    3. A <think> that is left was cut off by the length limit: what precedes it stays. If nothing precedes it, the
       attempt is one unfinished thought; that thought is then kept without its tag, since nothing else could be shown
       and where the policy ran out of tokens is what it has to correct.

    A thought that was finished but followed by nothing leaves the empty string.
    """
    block = f"{re.escape(opening)}.*?{re.escape(closing)}"
    rest = re.sub(block, "", text, flags=re.DOTALL).rpartition(closing)[2]
    before, _, unfinished = rest.partition(opening)
    return before.strip() or unfinished.strip()


def defused(text: str, control: Collection[str]) -> str:
    """`text` with a space after the first character of every string of `control`, so that it is text and no more.

    Else an attempt that spells a chat template's token, or the tag that ends it in the prompt, would end there, and
    what follows would speak for the user. Strings of one character stay.
    """
    # Those that are not there would make the search many times slower.
    strings = sorted((string for string in control if len(string) > 1 and string in text), key=len, reverse=True)
    if not strings:
        return text
    return re.sub(f"(?=(?:{'|'.join(map(re.escape, strings))}))(.)", r"\1 ", text, flags=re.DOTALL)


def _around_attempt(template: str) -> set[str]:
    """The tags that open before the attempt in `template` and close behind it; not those that tell of a format."""
    before, _, after = template.partition("{attempt}")
    opened = [tag for tag in _TAG.findall(before) if not tag.startswith("</")]
    closed = {tag for tag in _TAG.findall(after) if tag.startswith("</")}
    pairs = [(tag, f"</{tag[1:]}") for tag in opened if f"</{tag[1:]}" not in before]
    return {mark for pair in pairs if pair[1] in closed for mark in pair}


def render(template: str, question: str, attempt: str) -> str:
    """Put question and attempt into the template, literally and in one pass: neither is searched for placeholders."""
    return _fill(template, question=question, attempt=attempt)


def _fill(template: str, **values: str) -> str:
    return _BRACED.sub(lambda match: values.get(match.group(1), match.group()), template)


def _last_question(messages: list[dict]) -> tuple[int, str] | None:
    """Position and content of the last user message; None where there is none or it is no plain string (an image)."""
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=None)
    content = None if last is None else messages[last].get("content")
    return (last, content) if last is not None and isinstance(content, str) else None


@dataclass(frozen=True)
class Excerpt:
    """What of an attempt is shown; cut: `text` is the end of it alone."""

    text: str
    cut: bool


@dataclass(frozen=True)
class Request:
    """A chat that asks for a correction, and what it shows of the attempt."""

    messages: list[dict]
    shown: Excerpt


def _goes_on(messages: list[dict], last: int) -> bool:
    """Whether there is more after message `last`, the user's last, than the beginning of an answer."""
    return any(message.get("role") != "assistant" or message.get("tool_calls") for message in messages[last + 1 :])


def _chat(messages: list[dict], template: str, **values: str) -> list[dict]:
    """`messages`, whose last question is one, with `template` filled in. Raises: TypeError when there is none."""
    last, question = cast(tuple[int, str], _last_question(messages))
    asked = {**messages[last], "content": _fill(template, question=question, **values)}
    return [*map(dict, messages if _goes_on(messages, last) else messages[:last]), asked]


class CorrectionPrompt:
    """Builds correction prompts that fit `prompt_length` tokens and always hold the whole question.

    count_tokens: tokens of a chat as the rollout will see it, chat template and generation prompt included.
    encode, decode: the tokenizer without special tokens. With the view `tail`, `on_overflow` has nothing to say.
    control: texts that the tokenizer reads as special tokens. They are defused where an attempt spells them, and so are
    the tags that the template puts around the attempt.
    """

    def __init__(
        self,
        config: PromptConfig,
        *,
        prompt_length: int,
        count_tokens: Callable[[list[dict]], int],
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
        control: Collection[str] = (),
    ) -> None:
        self._config = config
        self._template = load_template(config.template)
        self._prompt_length = prompt_length
        self._count_tokens = count_tokens
        self._encode = encode
        self.decode = decode
        """Text of an attempt's tokens."""
        self._control = {*control, *_around_attempt(self._template), *_around_attempt(ADJACENT_TEMPLATE)}

    def minimum_tokens(self) -> int:
        """Tokens of a prompt without question and attempt, plus the 16 of an attempt that is worth showing.

        A `prompt_length` below it can hold no correction.
        """
        empty = [{"role": "user", "content": render(self._template, "", "")}]
        return self._count_tokens(empty) + MIN_ATTEMPT_TOKENS

    def build(self, messages: list[dict], attempt: str) -> tuple[list[dict] | None, str | None]:
        """The chat that asks for a correction of `attempt`, or the reason why there is none.

        The last user message is replaced by the rendered template, and what precedes it is kept. Where a tool's
        result follows it, say, all messages are kept and the rendered template is one more; the beginning of an answer,
        text of the assistant and nothing else, is left out.
        Returns (messages, None), or (None, reason) with reason one of
          no_text_question: there is no user message, or its content is not a plain string (an image, say);
          empty_attempt: the view of the attempt holds no text;
          too_long: no more than 15 tokens of an attempt that has to be shortened would fit, or on_overflow is skip.
        """
        request, reason = self.request(messages, attempt)
        return (None if request is None else request.messages), reason

    def request(self, messages: list[dict], attempt: str) -> tuple[Request | None, str | None]:
        """`build`, and what the chat shows of the attempt."""
        return self._fit(messages, attempt, self._template)

    def refusals(self, messages: list[dict], attempts: Sequence[str]) -> list[str | None]:
        """Of each attempt at one prompt the reason why `build` has no chat for it, None where it has.

        Cheaper than `build`: where an attempt may be shortened, and 16 tokens of it fit, no attempt is counted. The
        shortened one may then still turn out too long, if a tokenizer makes more tokens of a text once it is cut.
        """
        if _last_question(messages) is None:
            return ["no_text_question"] * len(attempts)
        if self._may_cut:
            frame = self._count_tokens(_chat(messages, self._template, attempt=TAIL_MARK))
            if frame + MIN_ATTEMPT_TOKENS <= self._prompt_length:
                return [None if self.view(attempt) else "empty_attempt" for attempt in attempts]
        return [self.request(messages, attempt)[1] for attempt in attempts]

    def view(self, text: str) -> str:
        """What of an attempt, or of an answer that is held against it, counts: see `attempt_view`."""
        if self._config.attempt_view == "no_thinking":
            text = strip_thinking(text, self._config.thinking_open, self._config.thinking_close)
        return defused(text, self._control).strip()

    def repeats(self, shown: Excerpt, answer: str) -> bool:
        """Whether `answer`, looked at as the attempt was, repeats what was shown of that, up to white space."""
        return is_copy(shown.text, self.view(answer), cut=shown.cut)

    def build_adjacent(
        self, messages: list[dict], attempt: str, *, attempted: list[dict]
    ) -> tuple[list[dict] | None, str | None]:
        """The chat that asks the question of `messages` and shows `attempt` at another problem as a worked example.

        messages: chat of the prompt whose solution is wanted; attempted: chat of the prompt that `attempt` answers, of
        which the last user message is shown. Both questions are kept whole, and the attempt is fitted as in `build`,
        with the same returns; no_text_question is also the reason when `attempted` has no text question, or more than
        that, a tool's result say, belongs to it.
        The text is ADJACENT_TEMPLATE whatever `template` is.
        """
        asked = _last_question(attempted)
        if asked is None or _goes_on(attempted, asked[0]):
            return None, "no_text_question"
        request, reason = self._fit(messages, attempt, ADJACENT_TEMPLATE, example=asked[1])
        return (None if request is None else request.messages), reason

    @property
    def _may_cut(self) -> bool:
        return self._config.on_overflow == "tail" or self._config.attempt_view == "tail"

    def _fit(
        self, messages: list[dict], attempt: str, template: str, **values: str
    ) -> tuple[Request | None, str | None]:
        if _last_question(messages) is None:
            return None, "no_text_question"
        view = self.view(attempt)
        if not view:
            return None, "empty_attempt"

        def chat(shown: str) -> list[dict]:
            return _chat(messages, template, attempt=shown, **values)

        ids = self._encode(view)
        cap = self._config.max_attempt_tokens or len(ids)
        if len(ids) <= cap and self._count_tokens(whole := chat(view)) <= self._prompt_length:
            return Request(whole, Excerpt(view, cut=False)), None
        if not self._may_cut:
            return None, "too_long"
        # Text cut out and tokenised again may have more tokens than it was cut from, so every candidate is counted.
        keep = min(len(ids), cap, self._prompt_length - self._count_tokens(chat(TAIL_MARK)))
        while keep >= MIN_ATTEMPT_TOKENS:
            # The cut may fall inside a character, which decodes to the replacement character.
            end = self.decode(ids[-keep:]).lstrip("\ufffd")
            excess = self._count_tokens(shortened := chat(TAIL_MARK + end)) - self._prompt_length
            if excess <= 0:
                return Request(shortened, Excerpt(end, cut=True)), None
            keep -= excess
        return None, "too_long"


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Id -> text of the tokens that a tokenizer leaves out with ``skip_special_tokens`` and finds in a text."""
    # A tokenizer that is none of transformers' own need not tell.
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {number: token.content for number, token in added.items() if token.special}


def attempt_decoder(tokenizer: Any, prompt: PromptConfig) -> Callable[[Sequence[int]], str]:
    """Text of an attempt's tokens without special tokens, but for those that mark thinking."""
    markers = (prompt.thinking_open, prompt.thinking_close)
    special = special_tokens(tokenizer)
    hidden = {number for number, text in special.items() if not any(text in marker for marker in markers)}
    if len(hidden) == len(special):
        return lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
    return lambda ids: tokenizer.decode([i for i in ids if i not in hidden], skip_special_tokens=False)


def correction_prompt(
    cipo: CIPOConfig, tokenizer: Any, *, prompt_length: int, count_tokens: Callable[[list[dict]], int]
) -> CorrectionPrompt:
    """The correction prompt; ``count_tokens`` knows the chat as it will be rendered."""
    return CorrectionPrompt(
        cipo.prompt,
        prompt_length=prompt_length,
        count_tokens=count_tokens,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=attempt_decoder(tokenizer, cipo.prompt),
        control=special_tokens(tokenizer).values(),
    )
