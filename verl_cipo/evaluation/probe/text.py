"""A probe's report as text for a terminal."""

import shlex
from collections.abc import Mapping
from typing import Any

from verl_cipo.evaluation.output import shown

_FIGURES = (
    ("pass_at_1", "pass@1"),
    ("all_right", "groups without signal: all right"),
    ("all_wrong", "groups without signal: all wrong"),
    ("w2c", "w->c: wrong attempts that a correction makes right"),
    ("retry", "retry: the same by another attempt"),
    ("w2c_over_retry", "w->c - retry"),
    ("c2c", "c->c: right attempts that stay right"),
    ("copy_rate", "copies among the corrections"),
    ("copy_rate_failed", "copies among those of wrong attempts"),
    ("without_correction", "attempts that got no correction"),
)
_WIDTH = max(len(title) for _, title in _FIGURES) + 2


def as_text(report: Mapping[str, Any], prompt: Mapping[str, Any]) -> str:
    """The report of `probe.command.tell`. prompt: knobs of the correction prompt that were asked for."""
    lines = ["in percent, with 95 % intervals over problems"]
    lines += [f"  {title:<{_WIDTH}}{shown(report['figures'].get(name)) or '-'}" for name, title in _FIGURES]
    lines += ["", "tokens", *(f"  {title:<{_WIDTH}}{told}" for title, told in _tokens(report))]
    lines += ["", "meaning", *(f"  {sentence}" for sentence in report["meaning"])]
    lines += ["", "options"]
    for option in report["options"]:
        lines += [f"  {option['name']}: {option['reason']}"]
    knobs = "".join(" " + shlex.quote(f"+algorithm.cipo.prompt.{name}={value}") for name, value in prompt.items())
    return "\n".join([*lines, "", f"{report['line']}{knobs}"]) + "\n"


def _tokens(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    prompts, step = report["prompts"], report["step"]
    lengths = prompts["correction"]
    rows = [("longest plain prompt", f"{prompts['plain_longest']:,}")]
    if lengths:
        median, most = lengths[(len(lengths) - 1) // 2], lengths[-1]
        rows.append(("correction prompt with the whole attempt", f"{median:,} in the median, {most:,} at most"))
    if prompts["shown_whole"] is not None and lengths:
        told = f"{prompts['shown_whole']:.1%} with prompt_length={prompts['prompt_length']}"
        rows.append(("attempts that fit the correction prompt", told))
    for name, title in (("grpo", "GRPO"), ("cipo", "CIPO")):
        of_step = step["tokens"][name]
        told = f"{of_step['sampled']:,.0f} sampled, {of_step['trained']:,.0f} trained, prompts included"
        rows.append((f"a step of {title}: {of_step['rollouts']:,} rollouts", told))
    return rows
