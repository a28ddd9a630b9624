"""Corrections for people to read: examples of each transition from the second turns that validation wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from verl_cipo.core.contents import Content, is_content, is_media
from verl_cipo.evaluation.jsonl import BadLine, read_objects
from verl_cipo.evaluation.report.runs import CORRECTIONS, Run

TRANSITIONS: tuple[str, ...] = ("w2c", "c2w", "c2c", "w2w")
"""In the order in which a person wants to see them."""

_FIELDS = {"question": object, "attempt": str, "anchor_correct": bool, "corrections": list}
_CORRECTION_FIELDS = {"correction": str, "correct": bool, "copied": bool}
_CUT = "\n[\u2026 {} characters left out \u2026]\n"


@dataclass(frozen=True)
class Example:
    """One correction: where it is from, what was shown and said, and the verdicts."""

    run: str
    step: int
    transition: str
    question: str
    attempt: str
    correction: str
    copied: bool
    truth: str
    source: str


@dataclass(frozen=True)
class Examples:
    """Examples, and how many corrections of each transition they were taken from."""

    shown: tuple[Example, ...]
    found: dict[str, int]


def gather(runs: Sequence[Run], *, limit: int, characters: int, bad: list[BadLine]) -> Examples:
    """Up to `limit` examples out of the newest second turns of every run.

    Each run and transition has the same room in them, filled with evenly spaced ones of those found.

    Args:
        runs: those of all arms; one without a dump gives nothing.
        limit: examples in all, at least one for each run and transition.
        characters: of each text at most; the middle of a longer one is left out, and says so.
        bad: takes the malformed lines, which are left out.
    """
    shown: list[Example] = []
    counts = dict.fromkeys(TRANSITIONS, 0)
    sources = [(run, step, path) for run in runs for step, path in list(run.dumps(CORRECTIONS).items())[-1:]]
    room = max(1, limit // (len(TRANSITIONS) * max(1, len(sources))))
    for run, step, path in sources:
        kinds: dict[str, list[Example]] = {kind: [] for kind in TRANSITIONS}
        for number, line in read_objects(path, bad, _FIELDS):
            if not is_content(line["question"]):
                bad.append(BadLine(path, number, f"question is neither text nor parts: {line['question']!r:.80}"))
                continue
            for correction in line["corrections"]:
                if not _whole(correction):
                    bad.append(BadLine(path, number, f"a correction lacks one of {', '.join(_CORRECTION_FIELDS)}"))
                    continue
                example = _example(run, step, line, correction, characters)
                kinds[example.transition].append(example)
        for kind, examples in kinds.items():
            counts[kind] += len(examples)
            shown += _evenly(examples, room)
    return Examples(shown=tuple(shown), found=counts)


def cut(text: str, characters: int) -> str:
    """The text, or its beginning and end with a note of how much is left out between them."""
    if len(text) <= characters:
        return text
    head = characters // 2
    tail = characters - head
    return text[:head] + _CUT.format(len(text) - characters) + text[-tail:]


def _whole(correction: Any) -> bool:
    return isinstance(correction, dict) and all(
        isinstance(correction.get(key), kind) for key, kind in _CORRECTION_FIELDS.items()
    )


def _example(run: Run, step: int, line: dict[str, Any], correction: dict[str, Any], characters: int) -> Example:
    verdicts = ("c" if verdict else "w" for verdict in (line["anchor_correct"], correction["correct"]))
    return Example(
        run=run.name,
        step=step,
        transition="2".join(verdicts),
        question=cut(_asked(line["question"]), characters),
        attempt=cut(line["attempt"], characters),
        correction=cut(correction["correction"], characters),
        copied=correction["copied"],
        truth=cut(str(line.get("gts", "")), characters),
        source=str(line.get("data_source", "")),
    )


def _asked(question: Content) -> str:
    """The question as text, with the kind of each image and the like in its place."""
    if isinstance(question, str):
        return question
    return "".join(f"[{part['type']}]" if is_media(part) else str(part.get("text", "")) for part in question)


def _evenly(examples: Sequence[Example], room: int) -> list[Example]:
    if len(examples) <= room:
        return list(examples)
    return [examples[index * len(examples) // room] for index in range(room)]
