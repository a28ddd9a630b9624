"""The correction prompt: a question, the policy's own attempt at it, and the request to check and solve.

METHOD item 2. The text is the same for right and wrong attempts: nothing here sees the verdict.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from verl_cipo.core.config import ROOT, TEMPLATE_ALLOWED, CIPOConfigError, PromptConfig

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

# What is learnt from it is the solution of the first problem; the attempt is at another one, as a worked example.
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
_THINK_BLOCK = re.compile(r"<think>.*?</think>", re.DOTALL)
_TEMPLATE_KEY = f"{ROOT}.prompt.template"


def load_template(template: str) -> str:
    """The built-in template of that name, `template` itself where it is a text, else the text of that file.

    A text holds a placeholder or a line break, which no name or path does. Last line breaks are left out.
    Raises: CIPOConfigError when the file cannot be read as UTF-8 or {question} and {attempt} are not there once each.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    allowed = f"allowed is {TEMPLATE_ALLOWED}"
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


def strip_thinking(text: str) -> str:
    """The attempt without its thinking.

    1. Closed <think>...</think> blocks go.
    2. A </think> that is left closes a block which the chat template opened in the prompt: what follows it stays.
    3. A <think> that is left was cut off by the length limit: what precedes it stays. If nothing precedes it, the
       attempt is one unfinished thought; that thought is then kept without its tag, since nothing else could be shown
       and where the policy ran out of tokens is what it has to correct.

    A thought that was finished but followed by nothing leaves the empty string.
    """
    rest = _THINK_BLOCK.sub("", text).rpartition("</think>")[2]
    before, _, unfinished = rest.partition("<think>")
    return before.strip() or unfinished.strip()


def render(template: str, question: str, attempt: str) -> str:
    """Put question and attempt into the template, literally and in one pass: neither is searched for placeholders."""
    return _fill(template, question=question, attempt=attempt)


def _fill(template: str, **values: str) -> str:
    return _BRACED.sub(lambda match: values.get(match.group(1), match.group()), template)


def _last_question(messages: list[dict]) -> tuple[int | None, str | None]:
    """Position of the last user message, and its content if that is a plain string (it may be an image, say)."""
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=None)
    content = None if last is None else messages[last].get("content")
    return last, content if isinstance(content, str) else None


class CorrectionPrompt:
    """Builds correction prompts that fit `prompt_length` tokens and always hold the whole question.

    count_tokens: tokens of a chat as the rollout will see it, chat template and generation prompt included.
    encode, decode: the tokenizer without special tokens. With the view `tail`, `on_overflow` has nothing to say.
    """

    def __init__(
        self,
        config: PromptConfig,
        *,
        prompt_length: int,
        count_tokens: Callable[[list[dict]], int],
        encode: Callable[[str], list[int]],
        decode: Callable[[list[int]], str],
    ) -> None:
        self._config = config
        self._template = load_template(config.template)
        self._prompt_length = prompt_length
        self._count_tokens = count_tokens
        self._encode = encode
        self._decode = decode

    def minimum_tokens(self) -> int:
        """Tokens of a prompt without question and attempt, plus the 16 of an attempt that is worth showing.

        A `prompt_length` below it can hold no correction.
        """
        empty = [{"role": "user", "content": render(self._template, "", "")}]
        return self._count_tokens(empty) + MIN_ATTEMPT_TOKENS

    def build(self, messages: list[dict], attempt: str) -> tuple[list[dict] | None, str | None]:
        """The chat that asks for a correction of `attempt`, or the reason why there is none.

        The last user message is replaced by the rendered template, what precedes it is kept, what follows it is not.
        Returns (messages, None), or (None, reason) with reason one of
          no_text_question: there is no user message, or its content is not a plain string (an image, say);
          empty_attempt: the view of the attempt holds no text;
          too_long: no more than 15 tokens of an attempt that has to be shortened would fit, or on_overflow is skip.
        """
        return self._fit(messages, attempt, self._template)

    def build_adjacent(
        self, messages: list[dict], attempt: str, *, attempted: list[dict]
    ) -> tuple[list[dict] | None, str | None]:
        """The chat that asks the question of `messages` and shows `attempt` at another problem as a worked example.

        messages: chat of the prompt whose solution is wanted; attempted: chat of the prompt that `attempt` answers, of
        which the last user message is shown. Both questions are kept whole, and the attempt is fitted as in `build`,
        with the same returns; no_text_question is also the reason when `attempted` has no text question.
        The text is ADJACENT_TEMPLATE whatever `template` is.
        """
        _, example = _last_question(attempted)
        if example is None:
            return None, "no_text_question"
        return self._fit(messages, attempt, ADJACENT_TEMPLATE, example=example)

    def _fit(
        self, messages: list[dict], attempt: str, template: str, **values: str
    ) -> tuple[list[dict] | None, str | None]:
        last, question = _last_question(messages)
        if last is None or question is None:
            return None, "no_text_question"
        view = (strip_thinking(attempt) if self._config.attempt_view == "no_thinking" else attempt).strip()
        if not view:
            return None, "empty_attempt"

        def chat(shown: str) -> list[dict]:
            content = _fill(template, question=question, attempt=shown, **values)
            return [*map(dict, messages[:last]), {**messages[last], "content": content}]

        ids = self._encode(view)
        cap = self._config.max_attempt_tokens or len(ids)
        if len(ids) <= cap and self._count_tokens(whole := chat(view)) <= self._prompt_length:
            return whole, None
        if self._config.on_overflow == "skip" and self._config.attempt_view != "tail":
            return None, "too_long"
        # Text cut out and tokenised again may have more tokens than it was cut from, so every candidate is counted.
        keep = min(len(ids), cap, self._prompt_length - self._count_tokens(chat(TAIL_MARK)))
        while keep >= MIN_ATTEMPT_TOKENS:
            # The cut may fall inside a character, which decodes to the replacement character.
            shown = TAIL_MARK + self._decode(ids[-keep:]).lstrip("\ufffd")
            excess = self._count_tokens(shortened := chat(shown)) - self._prompt_length
            if excess <= 0:
                return shortened, None
            keep -= excess
        return None, "too_long"
