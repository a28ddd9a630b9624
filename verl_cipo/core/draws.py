"""Draws without a random generator: a lot depends on what it is drawn for, not on when or on how many came before."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any


def lot(*names: object, size: int = 8) -> bytes:
    """`size` bytes that are the same in every process and version: BLAKE2b of the names, as printed, joined by "/"."""
    return hashlib.blake2b("/".join(f"{name}" for name in names).encode(), digest_size=size).digest()


def origin(data_source: object, messages: Sequence[Mapping[str, Any]]) -> str:
    """What tells prompts apart that share an index: 16 hex digits of the data source and of all text in the chat.

    messages: role and content each; a content of parts (text, images) counts with its texts.
    """
    texts = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [content]
        texts += [message.get("role"), *(part.get("text") if isinstance(part, Mapping) else part for part in parts)]
    return lot(data_source, *texts).hex()


def session_seed(rollout_seed: int, *, step: int, validate: bool, index: Any, anchor: int | None, session: int) -> int:
    """A 31-bit seed that depends on what the session is and not on when it runs or on its random uid.

    Args:
        index: the prompt's id in the data set.
        anchor: number of the anchor among those of its prompt, None for an attempt.
    """
    return int.from_bytes(lot(rollout_seed, step, validate, index, anchor, session, size=4), "big") >> 1
