"""What a report is made of: runs on disk, and arms, which are the runs (seeds) of one label."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verl_cipo.core.verdict import finite
from verl_cipo.evaluation.jsonl import BadLine, EvaluationError, by_step, read_objects
from verl_cipo.evaluation.report.settings import Settings, read_settings, settings_files

METRICS_FILE, VALIDATION = "metrics.jsonl", "validation"
EARLIER = re.compile(r"metrics_(\d+)\.jsonl")
"""Files of earlier starts of a run that was started several times, numbered in their order."""
UNDER_WAY = "metrics.part.jsonl"
"""What a run of the demo that has not ended logged since its start; then it is joined to metrics.jsonl."""
TRAINED = "training/global_step"
"""Figure of every training step; a validation alone has none."""
CORRECTIONS = Path(VALIDATION, "corrections")


class NothingLoggedError(EvaluationError):
    """A run that has not logged a step, or whose metrics are not there. The message names it."""


Steps = dict[int, dict[str, float]]
"""Figures by training step and name."""


@dataclass(frozen=True)
class Run:
    """One training run.

    label: that of its arm; name: unlike that of any other run of the report; metrics: every finite figure that verl's
    file logger wrote; folder: where its dumps lie, None for a run given as a metrics file; settings: what it was
    started with, None where its folder does not have them; undefined: by name, the steps at which a figure was logged
    that is no finite number.
    """

    label: str
    name: str
    metrics: Steps
    folder: Path | None = None
    settings: Settings | None = None
    undefined: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def dumps(self, under: Path | str) -> dict[int, Path]:
        """The dumps ``{folder}/{under}/{step}.jsonl`` by step, in order; empty where there are none."""
        if self.folder is None:
            return {}
        return by_step(self.folder / under)


@dataclass(frozen=True)
class Arm:
    """The runs of one label, in the order given."""

    label: str
    runs: tuple[Run, ...]


def metrics_files(path: Path) -> list[Path]:
    """What the starts of a run logged, in their order: of a folder, or of a run that is a file.

    Empty where there is none.
    """
    if not path.is_dir():
        return [path] if path.is_file() else []
    earlier = [(int(match[1]), file) for file in path.iterdir() if (match := EARLIER.fullmatch(file.name))]
    last = (path / METRICS_FILE, path / UNDER_WAY)
    return [file for _, file in sorted(earlier)] + [file for file in last if file.is_file()]


def read_metrics(paths: Iterable[Path], bad: list[BadLine]) -> tuple[Steps, dict[str, list[int]]]:
    """Lines ``{"step": int, "data": {name: value}}`` of verl's file logger, joined by step.

    A start goes on from a checkpoint: it takes steps again that an earlier one had logged after it, which then do not
    count. Of a figure that is there twice for a step the later one counts. `bad` and raises: see `read_objects`.

    Returns: the finite figures; and by name the steps of those that are not finite, which the logger writes as null.
    """
    steps: dict[int, dict[str, float | None]] = {}
    for path in paths:
        fresh: dict[int, dict[str, float | None]] = {}
        for _, line in read_objects(path, bad, {"step": int, "data": dict}):
            figures = fresh.setdefault(line["step"], {})
            numbers = ((name, value) for name, value in line["data"].items() if isinstance(value, int | float | None))
            figures |= {name: finite(value) for name, value in numbers}
        again = min((step for step, figures in fresh.items() if TRAINED in figures), default=float("inf"))
        steps = {step: figures for step, figures in steps.items() if step < again}
        for step, figures in fresh.items():
            steps[step] = steps.get(step, {}) | figures
    found: Steps = {}
    undefined: dict[str, list[int]] = {}
    for step, figures in sorted(steps.items()):
        found[step] = {name: figure for name, figure in figures.items() if figure is not None}
        for name in figures.keys() - found[step].keys():
            undefined.setdefault(name, []).append(step)
    return found, undefined


def split_label(given: str) -> tuple[str, Path]:
    """``label=path`` in its parts; of a path alone, an empty label."""
    label, equals, path = given.partition("=")
    return (label, Path(path)) if equals and not Path(given).exists() else ("", Path(given))


def read_arms(given: Sequence[str], bad: list[BadLine]) -> list[Arm]:
    """The arms of the command line's runs, in the order in which their labels first come.

    A run without a label is an arm named after its folder, or after its file. Malformed lines are added to `bad`.
    Raises: NothingLoggedError where metrics are missing or without a step; ValueError on a run that was given twice,
    and on a run without a label that has the name of another arm; EvaluationError as in `read_settings`.
    """
    runs: dict[str, list[Run]] = {}
    seen: set[Path] = set()
    split = [split_label(item) for item in given]
    labels = [label or _name_of(path) for label, path in split]
    for label, (own, path) in zip(labels, split, strict=True):
        several = labels.count(label) > 1
        if several and not own:
            raise ValueError(
                f"{path}: another run is called {label} as well; say which arms they are of, as in cipo={path}"
            )
        metrics = path / METRICS_FILE if path.is_dir() else path
        files = metrics_files(path)
        if not files:
            raise NothingLoggedError(
                f"run {label}: {metrics} is not there; give the folder that holds {METRICS_FILE}, or the file that "
                f"verl's file logger wrote (VERL_FILE_LOGGER_PATH)"
            )
        if seen & {file.resolve() for file in files}:
            raise ValueError(f"run {label}: {metrics} was given twice")
        seen |= {file.resolve() for file in files}
        known = len(bad)
        figures, undefined = read_metrics(files, bad)
        if not figures:
            why = next(
                (f"; line {line.line} of {line.path} {line.reason}" for line in bad[known:] if not line.torn), ""
            )
            raise NothingLoggedError(f"run {label}: {metrics} holds no step that can be read{why}")
        seeds = runs.setdefault(label, [])
        name = f"{label} #{len(seeds) + 1}" if several else label
        folder = path if path.is_dir() else None
        settings = read_settings(folder) if folder else None
        seeds.append(
            Run(label=label, name=name, metrics=figures, folder=folder, settings=settings, undefined=undefined)
        )
    return [Arm(label, tuple(seeds)) for label, seeds in runs.items()]


def files_of(path: Path) -> list[Path]:
    """What a report of a run is made of, as far as it is there: of a folder, or of a run that is a file."""
    return [
        *metrics_files(path),
        *(file for under in (VALIDATION, CORRECTIONS) for file in by_step(path / under).values()),
        *settings_files(path),
    ]


def _name_of(path: Path) -> str:
    path = path.resolve()
    return path.parent.name if path.name == METRICS_FILE else path.stem if path.is_file() else path.name
