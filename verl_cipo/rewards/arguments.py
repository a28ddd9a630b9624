"""What a reward function refuses: verl passes `reward_kwargs` on as they are, so a misspelt one arrives here."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

_OF_VERL = {"reward_router_address", "reward_model_tokenizer"}
"""What verl passes to every reward function, and which the verifiers do not use."""


def refuse_unknown(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Raise TypeError when an argument among `names` is not verl's own; the message tells what `function` knows."""
    if unknown := set(names) - _OF_VERL:
        parameters = inspect.signature(function).parameters.values()
        *known, last = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        raise TypeError(
            f"{function.__name__} got unknown arguments {sorted(unknown)}: "
            f"reward_kwargs may set {', '.join(known)} and {last}"
        )
