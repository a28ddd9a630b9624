"""An entry of a reasoning-gym task as the text of a ground truth, and back.

JSON alone would turn tuples into lists and numbers that are keys into text, and some scorers would then take no answer.
"""

import json
from collections.abc import Mapping
from typing import Any

_TUPLE, _PAIRS = "__tuple__", "__pairs__"


def dump(task: str, config: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """JSON text of a task's name, its settings where they are not the defaults, and one entry.

    entry: question, answer and metadata, as the task's data set gives them.
    Raises: ValueError when the text does not give back the same, so that a scorer might judge something else.
    """
    whole = {"task": task, "config": dict(config), "entry": dict(entry)}
    try:
        text = json.dumps(_plain(whole), ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"an entry of {task} holds what JSON cannot: {error}") from error
    if load(text) != whole:
        raise ValueError(f"an entry of {task} does not come back from JSON as it was")
    return text


def load(text: str) -> dict[str, Any]:
    """What `dump` was given. Raises: ValueError when the text is nothing that it wrote."""
    try:
        found = json.loads(text, object_hook=_restored)
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"no JSON text ({error}); data_prep/reasoning_gym.py writes it") from error
    if not isinstance(found, dict) or not {"task", "config", "entry"} <= found.keys():
        raise ValueError("expected an object with task, config and entry, as data_prep/reasoning_gym.py writes it")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(item) for key, item in value.items()}
        return {_PAIRS: [[_plain(key), _plain(item)] for key, item in value.items()]}
    return value


def _restored(found: dict[str, Any]) -> Any:
    if found.keys() == {_TUPLE}:
        return tuple(found[_TUPLE])
    if found.keys() == {_PAIRS}:
        return dict(found[_PAIRS])
    return found
