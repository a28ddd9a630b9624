"""The content of a chat's messages: text, or parts of which some are text and some media (images, video, audio).

docs/method.md 3. A part is a mapping with a `type`, as verl's data set makes them; its media are the values beside it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

Content = str | list[dict]


def is_content(value: Any) -> TypeGuard[Content]:
    """Whether a message with this content says something: text, the empty one too, or at least one part."""
    if isinstance(value, str):
        return True
    return (
        isinstance(value, list) and bool(value) and all(isinstance(part, Mapping) and "type" in part for part in value)
    )


def last_question(messages: Sequence[Mapping[str, Any]]) -> tuple[int, Content] | None:
    """Position and content of the last user message; None where there is none or it says nothing."""
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=None)
    content = None if last is None else messages[last].get("content")
    return (last, content) if last is not None and is_content(content) else None


def is_media(part: Mapping[str, Any]) -> bool:
    """Whether a part is something else than text."""
    return part["type"] != "text"


def alike(text: str, content: Content) -> Content:
    """`text` as text where `content` is text, else as a part: some chat templates take one of the two alone."""
    return text if isinstance(content, str) else [text_part(text)]


def text_part(text: str) -> dict:
    """A part of text."""
    return {"type": "text", "text": text}


def texts_of(content: Content) -> Content:
    """The content without its media."""
    return content if isinstance(content, str) else [part for part in content if not is_media(part)]


def media_of(messages: Sequence[Mapping[str, Any]]) -> list[dict]:
    """The media of a chat, in their order."""
    return [part for message in messages for part in _parts(message.get("content")) if is_media(part)]


def named_media(content: Any, index: Any) -> Any:
    """The content with `index` of its row in the data set in place of what each of its media is."""
    parts = [{"type": part["type"], "index": index} if is_media(part) else part for part in _parts(content)]
    return parts or content


def without_media(messages: Sequence[Mapping[str, Any]]) -> list[dict] | None:
    """The chat with its media left out, each of which leaves its `type` behind; None where a message says nothing."""
    if not all(is_content(message.get("content")) for message in messages):
        return None
    return _replaced(messages, [{"type": part["type"]} for part in media_of(messages)])


def with_media(messages: Sequence[Mapping[str, Any]], media: Sequence[dict]) -> list[dict] | None:
    """The chat of :func:`without_media` with its media back; None where `media` are not as many, or of other types."""
    if [part["type"] for part in media_of(messages)] != [part["type"] for part in media]:
        return None
    return _replaced(messages, media)


def _replaced(messages: Sequence[Mapping[str, Any]], media: Sequence[dict]) -> list[dict]:
    left, chat = iter(media), []
    for message in messages:
        parts = [next(left) if is_media(part) else part for part in _parts(message["content"])]
        chat.append({**message, "content": parts or message["content"]})
    return chat


def _parts(content: Any) -> list[dict]:
    """Those of a content of parts; none of a text."""
    return content if is_content(content) and not isinstance(content, str) else []
