"""What each knob may hold: a rule says it in words and checks a value."""

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any, Literal, get_args, get_origin

TEMPLATE_ALLOWED = (
    "math, code, the path of a UTF-8 text file that holds {question} and {attempt} once each, or such a text"
)
REVIEW_ALLOWED = (
    "math, code, the path of a UTF-8 text file that holds neither {question} nor {attempt}, or such a text with a line "
    "break (form=assistant_turn)"
)

REWARD_FUNCTION_ALLOWED = (
    "pkg://package.module:function or path/to/file.py:function of a reward function as verl calls it"
)


@dataclass(frozen=True)
class Rule:
    """What a knob may hold, in words, and the check: `read(value)` returns the value or raises ValueError."""

    allowed: str
    read: Callable[[Any], Any]


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    integer: bool = False,
    null: bool = False,
) -> Rule:
    if low is not None:
        limits = f" >= {low:g}" if high is None else f" in [{low:g}, {high:g}]"
    else:
        limits = (f" > {above:g}" if above is not None else "") + (f" <= {high:g}" if high is not None else "")
    allowed = ("an integer" if integer else "a finite number") + limits + (" or null" if null else "")

    def read(value: Any) -> Any:
        if null and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)):
            raise ValueError
        if not integer:
            try:
                value = float(value)
            except OverflowError as error:
                raise ValueError from error
            if not math.isfinite(value):
                raise ValueError
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError
        if above is not None and value <= above:
            raise ValueError
        return value

    return Rule(allowed, read)


def choice(*options: str) -> Rule:
    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError
        return value

    return Rule("one of " + ", ".join(options), read)


def _read_guard(value: Any) -> str:
    # YAML reads a bare `off` as false.
    return choice("off", "warn", "adapt").read("off" if value is False else value)


def _read_threshold(value: Any) -> float | dict[str, float]:
    if not isinstance(value, Mapping):
        return NUMBER.read(value)
    if not value or not all(isinstance(source, str) for source in value):
        raise ValueError
    return {source: NUMBER.read(threshold) for source, threshold in value.items()}


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _read_text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _read_nudge_template(value: Any) -> str:
    if not isinstance(value, str) or "${" in value:
        raise ValueError
    if any(value.count(name) != 1 for name in ("{question}", "{context}")):
        raise ValueError
    return value


FLAG = Rule("true or false", _read_flag)
NUMBER = number()
SHARE = number(0, 1)
WEIGHT = number(0)
TEXT = Rule("a text", _read_text)
NUDGE_TEMPLATE = Rule("a text that holds {question} and {context} once each, and no ${", _read_nudge_template)

RULES: dict[str, Rule] = {
    "replay_fraction": WEIGHT,
    "n_corrections": number(2, integer=True),
    "lambda_corr": WEIGHT,
    "lambda_risk": WEIGHT,
    "rho_init": SHARE,
    "rho_min": SHARE,
    "rho_max": SHARE,
    "rho_target": SHARE,
    "rho_gain": WEIGHT,
    "rho_drop_gain": WEIGHT,
    "rho_patience_gain": WEIGHT,
    "rho_adaptive": FLAG,
    "delta_low": SHARE,
    "delta_high": SHARE,
    "correct_threshold": Rule("a finite number, or a mapping of data sources to finite numbers", _read_threshold),
    "verifier_retries": number(0, integer=True),
    "second_verifier": Rule(REWARD_FUNCTION_ALLOWED, _read_text),
    "second_verifier_timeout": number(0),
    "correction_timeout": number(0),
    "report_timeout": number(0),
    "guard": Rule("off, warn or adapt", _read_guard),
    "val_corrections": number(0, integer=True),
    "keep_all_wrong": SHARE,
    "seed": number(integer=True),
    "manager": TEXT,
    # prompt
    "template": Rule(TEMPLATE_ALLOWED, _read_text),
    "max_attempt_tokens": number(16, integer=True),
    "thinking_open": TEXT,
    "thinking_close": TEXT,
    "attempts": number(1, 16, integer=True),
    "standalone": FLAG,
    # aux
    "by_signal": FLAG,
    "coef": WEIGHT,
    "beta": WEIGHT,
    # transfer; coef as above
    "below": SHARE,
    "own": FLAG,
    "gamma": number(above=0),
    "floor": number(high=0, null=True),
    # nudge; coef as above, template has a rule of its own
    "contexts": TEXT,
    "plain_share": SHARE,
    "corrections": FLAG,
    "between": WEIGHT,
}
"""Knob -> rule; that of a knob whose type is a Literal follows from it, and a field may bring its own as metadata."""


def rule_of(knob: Field) -> Rule:
    """The rule of a field of a config; null is allowed where it is the default. Raises: KeyError where it has none."""
    if (own := knob.metadata.get("rule")) is not None:
        rule = own
    elif knob.name not in RULES and get_origin(knob.type) is Literal:
        rule = choice(*get_args(knob.type))
    else:
        rule = RULES[knob.name]
    if knob.default is not None:
        return rule
    return Rule(f"{rule.allowed} or null", lambda value: None if value is None else rule.read(value))
