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
