"""The samples of problems, read from the JSONL that verl dumps (`validation_data_dir`, `rollout_data_dir`).

A line is a row of a batch: input, output, gts, score, step, with verl's V1 trainers uid, and whatever the verifier
returned (acc, pred). Dumps of `--suite` are alike, with response_tokens and truncated. The uid is the row's key
(core/keys.py), which tells CIPO's own rows, `pad...` is padding. Of several outputs of a session, the last is its
answer.

Prompts of a file with equal input and ground truth are one problem, whatever their uids (core.transitions.problem_of).
Dumps of the V0 trainer have no uid: there these alone tell problems apart.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_cipo.core.keys import GroupName, RowKey
from verl_cipo.core.transitions import problem_of
from verl_cipo.core.verdict import fault, finite, verdict
from verl_cipo.evaluation.jsonl import (
    ANSWER,
    BadLine,
    BadLinesError,
    EvaluationError,
    by_step,
    inside,
    read_objects,
    wrong_file,
)

CORRECT_THRESHOLD = 0.5
NO_VERDICT = "without a verdict"
"""Among the kinds of rows: an attempt that the verifier did not judge."""


class NoAttemptError(EvaluationError):
    """Dumps without an attempt, as a run leaves them that was killed while it wrote. bad: their lines that are none."""

    def __init__(self, told: str, bad: Sequence[BadLine]) -> None:
        super().__init__(told)
        self.bad = tuple(bad)


_PADDING = re.compile(r"pad[0-9a-f]+(?:_.*)?")
_OF_VERL = {"input", "output", "gts", "score", "step", "reward", "uid", "request_id"}
_OF_REWARD_MANAGERS = {"acc", "overlong_reward", "overlong", "timeout", "error"}
"""What verl's reward managers themselves put beside a reward."""


@dataclass(frozen=True)
class Sample:
    """A verified response.

    chars and tokens: its length; truncated: whether it was cut off. None where the dump does not say.
    """

    correct: bool
    chars: int
    pred: str | None = None
    tokens: int | None = None
    truncated: bool | None = None


@dataclass
class Sampled:
    """A problem with its samples; key: see `problem_of`, the same in every run; prompts: how many uids it has."""

    benchmark: str
    key: tuple[str, str]
    samples: list[Sample] = field(default_factory=list)
    prompts: int = 0


@dataclass(frozen=True)
class Dumps:
    """What was read: rows counts them by kind, skipped lists the bad lines left out.

    Rows without a verdict, as verl's rate_limited manager writes them when it did not reach the verifier, are no
    samples.
    """

    files: tuple[Path, ...]
    problems: tuple[Sampled, ...]
    rows: dict[str, int]
    skipped: tuple[BadLine, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to read.

    name: benchmark of rows that name none; None takes it from the path.
    step: which `{step}.jsonl` of a folder; None is the newest.
    skip_bad: leave bad lines out.
    correct_threshold: a score above it is right, where the verifier gave no acc of its own (core.verdict).
    count_tokens: length of a response in tokens, where a row has no response_tokens; None leaves it unknown.
    max_tokens: a response of so many tokens was cut off.
    progress: show on a terminal how far it is.
    """

    name: str | None = None
    step: int | None = None
    skip_bad: bool = False
    correct_threshold: float = CORRECT_THRESHOLD
    count_tokens: Callable[[str], int] | None = None
    max_tokens: int | None = None
    progress: bool = True


def find_files(path: Path, step: int | None = None) -> list[Path]:
    """The dumps that `path` stands for.

    Args:
        path: a file, or a folder: of `{step}.jsonl`, one of which is taken, or of other JSONL files, all of which are.
        step: which one; None is the newest.

    Raises:
        FileNotFoundError: there is none, or none of that step.
    """
    if path.is_file():
        return [path]
    path = inside(path, "validation") if not any(path.glob("*.jsonl")) or (path / "metrics.jsonl").is_file() else path
    found, steps = sorted(path.glob("*.jsonl")), by_step(path)
    if steps and step is None:
        return [steps[max(steps)]]
    if step in steps:
        return [steps[step]]
    if steps:
        raise FileNotFoundError(f"{path} has no dump of step {step}; it has {', '.join(map(str, steps))}")
    near = {str(file.parent) for file in path.glob("*/*.jsonl") if file.stem.isdecimal()}
    if found and not near and step is not None:
        raise FileNotFoundError(f"{path} has no dump of step {step}: its files are not named after steps")
    if near or not found:
        hint = f": did you mean {' or '.join(sorted(near))}?" if near else ""
        raise FileNotFoundError(f"{path} is neither a JSONL file nor a folder of dumps{hint}")
    return found


def read_dumps(paths: Sequence[Path], options: Options | None = None) -> Dumps:
    """Read the dumps of one run; see :func:`find_files` for what a path may be.

    Raises:
        FileNotFoundError: a path holds no dump.
        BadLinesError: naming every line that is no row, unless options.skip_bad.
        NoAttemptError: no attempt was found.
        EvaluationError: two paths are one file, or all are files, of other steps than options.step.
    """
    options = options or Options()
    files = [file for path in paths for file in find_files(path, options.step)]
    if twice := [str(file) for file, count in Counter(map(Path.resolve, files)).items() if count > 1]:
        raise EvaluationError(f"given twice: {', '.join(twice)}")
    if options.step is not None and not any(path.is_dir() or path.stem == str(options.step) for path in paths):
        names = ", ".join(map(str, paths))
        raise EvaluationError(f"step {options.step} is of a folder, not of {names}: give the folder, or no step")
    reader = _Reader(options)
    total = sum(file.stat().st_size for file in files)
    hidden = None if options.progress else True  # None: where there is no terminal
    with tqdm(total=total, desc="reading", unit="B", unit_scale=True, disable=hidden) as bar:
        for file in files:
            reader.read(file, bar.update)
    # Those of corrections beside a dump say nothing about what the dump is.
    own = [line for line in reader.bad if line.path in files]
    if own and not reader.rows:
        raise NoAttemptError(str(wrong_file(own[0].path, own, ANSWER)), reader.bad)
    if reader.bad and not options.skip_bad:
        raise BadLinesError(reader.bad)
    if not reader.problems:
        raise NoAttemptError(f"no attempt in {', '.join(map(str, files))}", reader.bad)
    problems: dict[Any, Sampled] = {}
    for (path, benchmark, _), (found, sessions) in reader.problems.items():
        problem = problems.setdefault((path, benchmark, found.key), found)
        problem.samples.extend(sample for _, sample in sessions.values())
        problem.prompts += 1
    return Dumps(
        files=tuple(files),
        problems=tuple(problems.values()),
        rows=dict(reader.rows),
        skipped=tuple(reader.bad),
    )


def row_kind(uid: str | None) -> tuple[str, str | None]:
    """What a row is, attempts, corrections, auxiliary or padding, and the prompt that its uid names.

    Without a uid all rows pass for attempts.
    """
    if uid is None:
        return "attempts", None
    if _PADDING.fullmatch(uid):
        return "padding", None
    key = _key(uid)
    if key is None:
        return "attempts", uid
    group = GroupName.parse(key.group)
    if not group.kind:
        return "attempts", group.prompt
    return ("auxiliary" if group.anchor is None else "corrections"), group.prompt


def _key(uid: str | None) -> RowKey | None:
    """The uid in its parts; None where it is none of ours."""
    try:
        return None if uid is None else RowKey.parse(uid)
    except ValueError:
        return None


class _Reader:
    """Collects problems by file, benchmark and uid; sessions map to the index of their last row and its sample."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.problems: dict[Any, tuple[Sampled, dict[Any, tuple[int, Sample]]]] = {}
        self.rows: Counter[str] = Counter()
        self.bad: list[BadLine] = []

    def read(self, path: Path, advance: Callable[[int], object]) -> None:
        default = self.options.name or _name_of(path)
        benchmarks = self._benchmarks_beside(path)
        for number, row in read_objects(path, self.bad, advance=advance):
            try:
                self._take(path, row, default, benchmarks)
            except ValueError as error:
                self.bad.append(BadLine(path, number, str(error)))

    def _benchmarks_beside(self, path: Path) -> dict[str, str]:
        """Benchmark by prompt, from the dump of the correction turn that CIPO writes beside verl's."""
        beside = path.parent / "corrections" / path.name
        if not beside.is_file():
            return {}
        found = {}
        for number, row in read_objects(beside, self.bad):
            uid = row.get("uid")
            if not isinstance(uid, str | None):
                self.bad.append(BadLine(beside, number, f"uid is no text: {uid!r:.80}"))
            elif uid and row.get("data_source"):
                found[uid] = str(row["data_source"])
        return found

    def _take(self, path: Path, row: dict[str, Any], default: str, benchmarks: dict[str, str]) -> None:
        check_row(row)
        uid = row.get("uid")
        kind, prompt = row_kind(uid)
        if kind != "attempts":
            self.rows[kind] += 1
            return
        if fault(*reward_and_info(row)) is not None:
            self.rows[NO_VERDICT] += 1
            return
        key = _key(uid)
        benchmark = str(row.get("data_source") or benchmarks.get(prompt) or default)
        text = problem_of(row)
        problem, sessions = self.problems.setdefault((path, benchmark, prompt or text), (Sampled(benchmark, text), {}))
        session, index = (key.session, key.output) if key else (len(sessions), 0)
        last = sessions.get(session, (-1, None))[0]
        if index == last:
            raise ValueError(f"the uid {uid} was there before")
        self.rows["attempts" if last < 0 else "earlier outputs"] += 1
        if index > last:
            sessions[session] = (index, self._sample(row))

    def _sample(self, row: dict[str, Any]) -> Sample:
        output, pred = row["output"], row.get("pred")
        tokens = row.get("response_tokens")
        if tokens is None and self.options.count_tokens:
            tokens = self.options.count_tokens(output)
        truncated = row.get("truncated")
        if truncated is None and row.get("finish_reason") is not None:
            truncated = row["finish_reason"] == "length"
        if truncated is None and tokens is not None and self.options.max_tokens is not None:
            truncated = tokens >= self.options.max_tokens
        return Sample(
            correct=verdict(*reward_and_info(row), self.options.correct_threshold),
            chars=len(output),
            pred=None if pred is None else str(pred),
            tokens=tokens,
            truncated=None if truncated is None else bool(truncated),
        )


def check_row(row: dict[str, Any]) -> None:
    """Raises: ValueError saying what keeps `row` from being a row of a dump."""
    if missing := [name for name in ("input", "output", "score") if name not in row]:
        raise ValueError(f"lacks {', '.join(missing)}")
    for name in ("input", "output"):
        if not isinstance(row[name], str):
            raise ValueError(f"{name} is no text: {row[name]!r:.80}")
    if not isinstance(row.get("uid"), str | None):
        raise ValueError(f"uid is no text: {row['uid']!r:.80}")
    score = row["score"] if row["score"] is not None else row.get("reward")
    if finite(score) is None:
        raise ValueError(f"score is no finite number: {score!r:.80}")
    tokens, truncated = row.get("response_tokens"), row.get("truncated")
    if tokens is not None and (finite(tokens) is None or tokens < 0):
        raise ValueError(f"response_tokens is no number of tokens: {tokens!r:.80}")
    if truncated is not None and truncated not in (False, True):
        raise ValueError(f"truncated is neither true nor false: {truncated!r:.80}")


def reward_and_info(row: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """What verl's reward loop had returned for a row, its reward and `reward_extra_info`, as core.verdict takes them.

    verl writes the reward as `score` and what the verifier returned beside it: of a dict its own `score` over the
    reward, which the validation of the V1 trainers keeps as `reward`; a bare number as `acc`. Where some of a dump's
    rows lack a key that others have, it is null. That a verifier returned a dict is seen by a key that a bare number
    does not come with, by a score that is not the reward, or by an acc that is true or false.
    """
    info = {name: value for name, value in row.items() if name not in _OF_VERL and value is not None}
    score, reward = row.get("score"), row.get("reward")
    if reward is None:
        reward = score
    returned_dict = score != reward or isinstance(info.get("acc"), bool) or not info.keys() <= _OF_REWARD_MANAGERS
    if score is not None and returned_dict:
        info["score"] = score
    return reward, info


def _name_of(path: Path) -> str:
    """What a file is named after: its own name, or its folder's where that is only a step."""
    return path.resolve().parent.name if path.stem.isdecimal() else path.stem
