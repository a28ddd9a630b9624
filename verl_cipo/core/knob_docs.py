"""What docs and command line say of each knob: its default, what it may hold and what it means."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

from verl_cipo.core import config_sections
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.knob_rules import rule_of

SECTIONS: dict[str, type] = {"": CIPOConfig, **config_sections.SECTIONS}
"""Name below `algorithm.cipo` -> its dataclass."""


@dataclass(frozen=True)
class Knob:
    """One knob: its name below `algorithm.cipo`, and texts."""

    name: str
    default: str
    """As a command line or a YAML file would hold it."""
    allowed: str
    meaning: str


def knobs(section: str = "") -> Iterator[Knob]:
    """The knobs of a section of `SECTIONS`, without those of sections in it."""
    cls = SECTIONS[section]
    documented = _meanings(cls)
    for knob in fields(cls):
        if knob.default_factory is MISSING:
            name = f"{section}.{knob.name}" if section else knob.name
            yield Knob(name, _yaml_value(knob.default), rule_of(knob).allowed, documented[knob.name])


def _yaml_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _meanings(cls: type) -> dict[str, str]:
    """Field of a dataclass -> the string beneath it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found
