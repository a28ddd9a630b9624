"""The commands of this package, and its knobs.

python -m verl_cipo                 what there is
python -m verl_cipo knobs [TEXT]    every knob of algorithm.cipo, or those with the text in their name or meaning
"""

import sys
import textwrap
from collections.abc import Sequence

from verl_cipo import __version__
from verl_cipo.core.config import ROOT
from verl_cipo.core.knob_docs import SECTIONS, knobs

COMMANDS = {
    "doctor": "whether this machine can train with CIPO, and what to fix",
    "check": "checks a command line of verl.trainer.main_ppo without a GPU",
    "probe": "asks a checkpoint what a correction is worth, and recommends options",
    "contexts": "has a checkpoint name strategies for the problems of a training file",
    "chat": "asks a checkpoint a question, and lets it correct its answer",
    "evaluate": "pass@K with intervals, second turns, benchmarks on a checkpoint, a check for reward hacking",
    "report": "one HTML page about one or more runs",
}
"""Module of this package -> what it does. Each has --help."""


def overview() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS)) + len("python -m verl_cipo.")
    lines = [f"  {'python -m verl_cipo.' + name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        (
            f"verl_cipo {__version__}: CIPO for verl. Switch it on with algorithm.adv_estimator=cipo.",
            "",
            *lines,
            f"  {'python -m verl_cipo knobs':<{width}}  every option {ROOT}.<knob>; knobs TEXT: those that say so",
            "",
            "Each has --help.",
        )
    )


def knob_list(word: str = "") -> str:
    """The knobs with `word` in their name or meaning."""
    found = [knob for section in SECTIONS for knob in knobs(section)]
    lines = []
    for knob in found:
        if word.lower() in f"{knob.name} {knob.meaning}".lower():
            lines.append(f"{knob.name}={knob.default}  ({knob.allowed})")
            lines += textwrap.wrap(knob.meaning, 116, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with the overview where a command is unknown."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    match given:
        case [] | ["-h" | "--help"] | ["knobs" | "--knobs", "-h" | "--help"]:
            print(overview())
        case ["knobs" | "--knobs", *words] if text := knob_list(" ".join(words)):
            print(text)
        case ["knobs" | "--knobs", *words]:
            print(f"no knob has {' '.join(words)!r} in its name or meaning", file=sys.stderr)
            return 2
        case [name, *_] if name in COMMANDS:
            print(f"use python -m verl_cipo.{name}", file=sys.stderr)
            return 2
        case _:
            print(f"unknown command: {' '.join(given)}\n\n{overview()}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
