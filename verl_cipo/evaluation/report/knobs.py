"""The section on settings: knobs of CIPO, and the options of verl that a command line gave, of all arms."""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError
from verl_cipo.evaluation.report.runs import Arm
from verl_cipo.evaluation.report.section import Section, Table
from verl_cipo.evaluation.report.settings import Settings, leaves

_OF_A_RUN = ("trainer.experiment_name", "trainer.project_name", "trainer.logger", "trainer.resume_from_path")
_NONE = "\u2013"
_LONGEST = 60
"""Characters of a value: a knob may be the text of a prompt."""

_Arms = Mapping[str, Sequence[Settings]]
"""The settings of an arm's runs, by its label."""


def settings(arms: Sequence[Arm]) -> Section:
    """What differs from the defaults and between arms first."""
    section = Section(
        name="settings",
        title="Settings",
        lead="What the runs were last started with, as Hydra wrote it into their folders. Several values in a cell are "
        "those of the arm's seeds.",
    )
    lacking = [run.name for arm in arms for run in arm.runs if run.settings is None]
    if lacking:
        section.missing.append(f"Settings: no hydra/.hydra/config.yaml in the folder of {', '.join(lacking)}")
    known = {arm.label: [run.settings for run in arm.runs if run.settings is not None] for arm in arms}
    known = {label: own for label, own in known.items() if own}
    if known:
        changed, every = knob_tables(known)
        section.tables = [table for table in (changed, *option_tables(known), every) if table.rows]
    return section


def knob_tables(arms: _Arms) -> tuple[Table, Table]:
    """The knobs of CIPO that an arm does not have at their default, and all of them."""
    defaults = dict(leaves(CIPOConfig().to_mapping()))
    of_runs = {key for own in arms.values() for run in own if run.corrects for key in run.values}
    others = {key.removeprefix(f"{ROOT}.") for key in of_runs if key.startswith(f"{ROOT}.")} - defaults.keys()
    knobs = [[_knobs(run, defaults) for run in own if run.corrects] for own in arms.values()]
    rows = []
    for knob in [*defaults, *sorted(others)]:
        default = defaults.get(knob)
        cells = [_cell(_as(own_knobs.get(knob, default), default) for own_knobs in of_arm) for of_arm in knobs]
        rows.append((knob, *cells, _text(default) if knob in defaults else _NONE))
    head = ("knob", *arms, "default")
    changed = tuple(row for row in rows if any(cell not in (_NONE, row[-1]) for cell in row[1:-1]))
    return (
        Table(head, changed, "Knobs of CIPO that are not at their default"),
        Table(head, tuple(rows), "All knobs of CIPO", folded=True),
    )


def _knobs(run: Settings, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Knob -> value of a run, what is null there as the preset has it."""
    given = {key.removeprefix(f"{ROOT}."): value for key, value in run.values.items() if key.startswith(f"{ROOT}.")}
    nested: dict[str, Any] = {}
    for knob in given.keys() & defaults.keys():
        section, _, name = knob.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[name] = given[knob]
    try:
        return given | dict(leaves(CIPOConfig.from_mapping(nested).to_mapping()))
    except CIPOConfigError:  # of a version whose knobs had other values: as they are written
        return given


def option_tables(arms: _Arms) -> tuple[Table, Table]:
    """The options of verl that a command line gave: those in which arms differ, then the others.

    Names and folders of a run are left out, and variables of the environment, which may hold passwords.
    """
    given = {key for own in arms.values() for run in own for key in run.given if _is_shown(key)}
    rows = [
        (key, *(_cell(run.values[key] for run in own if key in run.values) for own in arms.values()))
        for key in sorted(given)
    ]
    head = ("option", *arms)
    differing = tuple(row for row in rows if len(set(row[1:])) > 1)
    same = tuple(row for row in rows if len(set(row[1:])) == 1)
    return (
        Table(head, differing, "Options of verl in which arms differ"),
        Table(head, same, "Other options that were given" if differing else "Options that were given", bool(differing)),
    )


def _is_shown(key: str) -> bool:
    left_out = key.startswith((f"{ROOT}.", "hydra.")) or ".env_vars." in key or key.endswith("_dir")
    return not left_out and key not in _OF_A_RUN


def _cell(values: Any) -> str:
    return ", ".join(dict.fromkeys(map(_text, values))) or _NONE


def _as(value: Any, default: Any) -> Any:
    """A number as the default has it: YAML reads 1 for 1.0, and 1e-6 as text."""
    if isinstance(default, float) and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else " ".join(str(value).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}\u2026"
