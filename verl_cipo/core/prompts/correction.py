"""The correction prompt: a question, the policy's own attempt at it, and the request to check and solve.

docs/method.md 3, 19. Nothing here sees the verdict: the text is the same for right and wrong attempts, and with
verdict=told, where all that is shown is wrong, it says so.
"""

import copy
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from verl_cipo.core.config import CIPOConfig, PromptConfig
from verl_cipo.core.contents import Content, alike, last_question, texts_of
from verl_cipo.core.prompts.others import ALONE, Others, Said, draw_others
from verl_cipo.core.prompts.templates import ADJACENT_TEMPLATE, Wording, fill_content, wording
from verl_cipo.core.prompts.texts import around_attempt, attempt_decoder, defused, special_tokens, strip_thinking
from verl_cipo.core.transitions import is_copy

TAIL_MARK = "[...] "
MIN_ATTEMPT_TOKENS = 16
SKIP_REASONS = ("too_long", "no_text_question", "empty_attempt")


@dataclass(frozen=True)
class Excerpt:
    """What of an attempt is shown; cut: `text` is the end of it alone."""

    text: str
    cut: bool

    def __str__(self) -> str:
        return TAIL_MARK + self.text if self.cut else self.text


@dataclass(frozen=True)
class Request:
    """A chat that asks for a correction, and what it shows of each attempt."""

    messages: list[dict]
    shown: tuple[Excerpt, ...]


Chat = Callable[[Sequence[str]], list[dict]]
"""The messages that show these texts of attempts."""


def _begins_answer(message: dict) -> bool:
    return message.get("role") == "assistant" and not message.get("tool_calls")


def _goes_on(messages: list[dict], last: int) -> bool:
    """Whether there is more after message `last`, the user's last, than the beginning of an answer."""
    return not all(map(_begins_answer, messages[last + 1 :]))


def _one_message(messages: list[dict], template: Callable[[Sequence[str]], str], **values: Content) -> Chat:
    """Question, attempts and request as one message of the user. Raises: TypeError when there is no question.

    Media stand where they stood among the question's texts. Where the question itself is kept, they are not repeated.
    """
    last, question = cast(tuple[int, Content], last_question(messages))
    kept = messages[:last]
    if _goes_on(messages, last):
        kept, question = messages, texts_of(question)

    def chat(texts: Sequence[str]) -> list[dict]:
        content = fill_content(template(texts), question=question, attempt=Wording.blocks(texts), **values)
        return [*map(dict, kept), {**messages[last], "content": content}]

    return chat


def _own_turn(messages: list[dict], review: str) -> Chat:
    """The attempt as the assistant's answer to the chat, and a request to review it; in parts where the question is."""
    _, question = cast(tuple[int, Content], last_question(messages))
    end = len(messages)
    while end and _begins_answer(messages[end - 1]):
        end -= 1

    def chat(texts: Sequence[str]) -> list[dict]:
        (text,) = texts
        turns = (("assistant", text), ("user", review))
        return [*map(dict, messages[:end]), *({"role": who, "content": alike(what, question)} for who, what in turns)]

    return chat


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
        self._wording = wording(config)
        self.prompt_length = prompt_length
        """Tokens that a prompt may have."""
        self.count_tokens = count_tokens
        """Tokens of a chat."""
        self._encode = encode
        self.decode = decode
        """Text of an attempt's tokens."""
        self._control = {*control, *around_attempt(self._wording.one), *around_attempt(ADJACENT_TEMPLATE)}

    @functools.cached_property
    def in_validation(self) -> "CorrectionPrompt":
        """The same where it is not known which attempts are wrong: none is said to be."""
        hidden = copy.copy(self)
        hidden._config = self._config.in_validation
        hidden._wording = wording(hidden._config)
        return hidden

    def minimum_tokens(self) -> int:
        """Tokens of a prompt without question and attempt, plus the 16 of an attempt that is worth showing.

        A `prompt_length` below it can hold no correction.
        """
        return self.count_tokens(self._chat([{"role": "user", "content": ""}])([""])) + MIN_ATTEMPT_TOKENS

    def build(self, messages: list[dict], attempt: str) -> tuple[list[dict] | None, str | None]:
        """The chat that asks for a correction of `attempt`, or the reason why there is none.

        With form=message the last user message is replaced by the rendered template, and what precedes it is kept.
        Where a tool's result follows it, say, all messages are kept and the rendered template is one more. With
        form=assistant_turn all messages are kept, and the attempt and the request follow as two more. The beginning of
        an answer, text of the assistant and nothing else, is left out.
        A question of parts (text, images, video, audio) stays one: the template's text goes around them, and all media
        of the chat are there once, in their order.
        Returns (messages, None), or (None, reason) with reason one of
          no_text_question: there is no user message, or its content is neither a string nor a list of parts;
          empty_attempt: the view of the attempt holds no text, or the chat template shows nothing of it;
          too_long: no more than 15 tokens of an attempt that has to be shortened would fit, or on_overflow is skip.
        """
        request, reason = self.request(messages, attempt)
        return (None if request is None else request.messages), reason

    def request(self, messages: list[dict], attempt: str, others: Others = ALONE) -> tuple[Request | None, str | None]:
        """`build`, with other attempts beside `attempt`, and what the chat shows of each.

        The room is shared fairly: none gets more than its share, and what one leaves goes to those that need more. One
        of the others that would be cut to less than 16 tokens is left out, and where it is `attempt` that would, the
        last drawn of the others. At most as many are shown as the config says.
        """
        if last_question(messages) is None:
            return None, "no_text_question"
        chat = self._chat(messages)
        request, reason = self._fit(chat, attempt, others.first(self._config.attempts - 1))
        if request is not None and not self._renders(chat, request.messages):
            return None, "empty_attempt"
        return request, reason

    def refusals(self, messages: list[dict], attempts: Sequence[str]) -> list[str | None]:
        """Of each attempt at one prompt the reason why `build` has no chat for it, None where it has.

        Cheaper than `build`: where an attempt may be shortened, and 16 tokens of it fit, no attempt is counted. The
        shortened one may then still turn out too long, if a tokenizer makes more tokens of a text once it is cut, or
        empty, if the chat template leaves it out.
        """
        if last_question(messages) is None:
            return ["no_text_question"] * len(attempts)
        if self._may_cut:
            frame = self.count_tokens(self._chat(messages)([TAIL_MARK]))
            if frame + MIN_ATTEMPT_TOKENS <= self.prompt_length:
                return [None if self.view(attempt) else "empty_attempt" for attempt in attempts]
        return [self.request(messages, attempt)[1] for attempt in attempts]

    def view(self, text: str) -> str:
        """What of an attempt, or of an answer that is held against it, counts: see `attempt_view`."""
        if self._config.attempt_view == "no_thinking":
            text = strip_thinking(text, self._config.thinking_open, self._config.thinking_close)
        return defused(text, self._control).strip()

    def beside(self, anchor: Said, wrong: Iterable[Said], *, seed: int, step: int, index: int | str) -> Others:
        """Which of the `wrong` attempts at the prompt of `anchor` are shown with it, see `draw_others`.

        An answer is the verifier's `pred`, or else the view of the text up to white space.
        """
        if self._config.attempts == 1:
            return ALONE
        count = self._config.attempts - 1
        return draw_others(anchor, wrong, answer=self._answer, count=count, seed=seed, step=step, index=index)

    def _answer(self, said: Said) -> str:
        pred = "" if said.pred is None else str(said.pred)
        return pred or " ".join(self.view(said.text).split())

    def repeats(self, shown: Sequence[Excerpt], answer: str) -> bool:
        """Whether `answer`, looked at as attempts are, repeats what was shown of one, up to white space."""
        view = self.view(answer)
        return any(is_copy(excerpt.text, view, cut=excerpt.cut) for excerpt in shown)

    def build_adjacent(
        self, messages: list[dict], attempt: str, *, attempted: list[dict]
    ) -> tuple[list[dict] | None, str | None]:
        """The chat that asks the question of `messages` and shows `attempt` at another problem as a worked example.

        messages: chat of the prompt whose solution is wanted; attempted: chat of the prompt that `attempt` answers, of
        which the last user message is shown. Both questions are kept whole, and the attempt is fitted as in `build`,
        with the same returns; no_text_question is also the reason when `attempted` has no question, or more than that,
        a tool's result say, belongs to it. Media of the question of `attempted` follow those of `messages`.
        The text is ADJACENT_TEMPLATE whatever the knobs of the texts are.
        """
        asked = last_question(attempted)
        if asked is None or _goes_on(attempted, asked[0]) or last_question(messages) is None:
            return None, "no_text_question"
        chat = _one_message(messages, lambda _: ADJACENT_TEMPLATE, example=asked[1])
        request, reason = self._fit(chat, attempt, ALONE)
        return (None if request is None else request.messages), reason

    def shows_attempts(self) -> bool:
        """Whether the chat template renders the attempt; some leave earlier turns of the assistant out."""
        chat = self._chat([{"role": "user", "content": "?"}])
        return self._renders(chat, chat(["attempt"]))

    def _renders(self, chat: Chat, messages: list[dict]) -> bool:
        return not self._own_turn or self.count_tokens(messages) > self.count_tokens(chat([""]))

    @property
    def _may_cut(self) -> bool:
        return self._config.on_overflow == "tail" or self._config.attempt_view == "tail"

    @property
    def _own_turn(self) -> bool:
        return self._config.form == "assistant_turn"

    def _chat(self, messages: list[dict]) -> Chat:
        if self._own_turn:
            return _own_turn(messages, self._wording.one)
        return _one_message(messages, self._wording.template)

    def _fit(self, chat: Chat, attempt: str, others: Others) -> tuple[Request | None, str | None]:
        views = [self.view(text) for text in (attempt, *others.texts)]
        if not views[0]:
            return None, "empty_attempt"
        ids = [self._encode(view) for view in views]
        places = [i for i in others.order if views[i]]
        while True:
            found = self._excerpts(chat, [views[i] for i in places], [ids[i] for i in places])
            if isinstance(found, list):
                return Request(chat([str(excerpt) for excerpt in found]), tuple(found)), None
            beside = [i for i in places if i != 0]
            if not beside:
                return None, "too_long"
            places.remove(max([places[i] for i in found if places[i] != 0] or beside))

    def _excerpts(self, chat: Chat, views: list[str], ids: list[list[int]]) -> list[Excerpt] | set[int]:
        """What is shown of each text so that all fit, or the places of those of which that would be too little."""
        caps = [min(len(own), self._config.max_attempt_tokens or len(own)) for own in ids]
        if caps == [len(own) for own in ids] and self._excess(chat, views) <= 0:
            return [Excerpt(view, cut=False) for view in views]
        if not self._may_cut:
            return {i for i, own in enumerate(ids) if caps[i] < len(own)}
        room = self._room(chat, caps, ids)
        while True:
            # Text cut out and tokenised again may have more tokens than it was cut from, so every candidate is counted.
            shares = fair_shares(caps, room)
            short = {i for i, own in enumerate(ids) if shares[i] < min(len(own), MIN_ATTEMPT_TOKENS)}
            if short:
                return short
            found = [self._end(*each) for each in zip(views, ids, shares, strict=True)]
            excess = self._excess(chat, [str(excerpt) for excerpt in found])
            if excess <= 0:
                return found
            room -= excess

    def _room(self, chat: Chat, caps: list[int], ids: list[list[int]]) -> int:
        """Tokens that the texts of attempts may have together, beside the marks of those that are then cut."""
        cut: set[int] = set()
        while True:
            left = -self._excess(chat, [TAIL_MARK if i in cut else "" for i in range(len(ids))])
            shares = fair_shares(caps, left)
            found = {i for i, own in enumerate(ids) if shares[i] < len(own)}
            if found <= cut:
                return min(left, sum(caps))
            cut |= found

    def _excess(self, chat: Chat, texts: list[str]) -> int:
        """Tokens that the chat has too many; below 0, those that are left."""
        return self.count_tokens(chat(texts)) - self.prompt_length

    def _end(self, view: str, ids: list[int], keep: int) -> Excerpt:
        if keep == len(ids):
            return Excerpt(view, cut=False)
        # The cut may fall inside a character, which decodes to the replacement character.
        return Excerpt(self.decode(ids[-keep:]).lstrip("\ufffd"), cut=True)


def fair_shares(wanted: Sequence[int], room: int) -> list[int]:
    """`room` shared out: each gets what it wants, at most an equal share, and what one leaves goes to the others."""
    left, share = max(room, 0), 0
    for n, want in enumerate(sorted(wanted)):
        share = left // (len(wanted) - n)
        if want > share:
            break
        left -= want
    return [min(want, share) for want in wanted]


def correction_prompt(
    cipo: CIPOConfig,
    tokenizer: Any,
    *,
    prompt_length: int,
    count_tokens: Callable[[list[dict]], int],
    media_tokens: Collection[str] = (),
) -> CorrectionPrompt:
    """The correction prompt.

    count_tokens: of a chat as it will be rendered; media_tokens: texts that a processor takes for images and the like,
    special tokens or not.
    """
    return CorrectionPrompt(
        cipo.prompt,
        prompt_length=prompt_length,
        count_tokens=count_tokens,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=attempt_decoder(tokenizer, cipo.prompt),
        control={*special_tokens(tokenizer).values(), *media_tokens},
    )
