"""The text of an attempt: without its thinking, and without what a chat template would take for more than text."""

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from verl_cipo.core.config import PromptConfig

_TAG = re.compile(r"</?\w+>")


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


def around_attempt(template: str) -> set[str]:
    """The tags that open before the attempt in `template` and close behind it; not those that tell of a format."""
    before, _, after = template.partition("{attempt}")
    opened = [tag for tag in _TAG.findall(before) if not tag.startswith("</")]
    closed = {tag for tag in _TAG.findall(after) if tag.startswith("</")}
    pairs = [(tag, f"</{tag[1:]}") for tag in opened if f"</{tag[1:]}" not in before]
    return {mark for pair in pairs if pair[1] in closed for mark in pair}


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
