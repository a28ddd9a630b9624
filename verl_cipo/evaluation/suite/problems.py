"""The benchmarks as named suites, read from config/suites.yaml, and their problems, read from data_prep's files."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from verl_cipo.core.verdict import finite
from verl_cipo.evaluation.jsonl import EvaluationError

SUITES_FILE = Path(__file__).resolve().parents[2] / "config" / "suites.yaml"
VERIFIERS = ("math", "code", "critique")
COLUMNS = ("data_source", "prompt", "reward_model")
"""Of verl's schema, those that a row needs; extra_info may be missing, as for verl."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a benchmark is sampled.

    n: attempts a problem; temperature: 0 is greedy, and then n is 1; top_p in (0, 1]; max_tokens: of an answer.
    """

    n: int
    temperature: float
    top_p: float
    max_tokens: int

    def __post_init__(self) -> None:
        temperature, top_p = finite(self.temperature), finite(self.top_p)
        for name, fine, allowed in (
            ("n", type(self.n) is int and self.n >= 1, "an integer >= 1"),
            ("temperature", temperature is not None and temperature >= 0, "a number >= 0"),
            ("top_p", top_p is not None and 0 < top_p <= 1, "a number above 0, at most 1"),
            ("max_tokens", type(self.max_tokens) is int and self.max_tokens >= 1, "an integer >= 1"),
        ):
            if not fine:
                raise EvaluationError(f"sampling.{name} = {getattr(self, name)!r}: expected {allowed}")
        if self.temperature == 0 and self.n > 1:
            raise EvaluationError(f"sampling.n = {self.n} with temperature 0: the attempts would be equal, expected 1")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark as a suite asks for it; the fields are those of suites.yaml.

    corrections: second turns an attempt, 0 for none.
    """

    name: str
    file: str
    converter: str
    verifier: str
    sampling: Sampling
    corrections: int
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A row of a benchmark's file.

    key: names the problem in dumps, without an underscore; messages: the chat; group: see suites.yaml.
    """

    key: str
    messages: list[dict[str, Any]]
    ground_truth: Any
    data_source: str
    extra_info: dict[str, Any]
    group: str | None = None


def load_suite(name: str, file: Path = SUITES_FILE) -> list[Benchmark]:
    """The benchmarks of a suite, in its order.

    Raises: EvaluationError when the file is no such YAML, or the suite is not in it.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EvaluationError(f"{file}: {error}") from error
    known = _table(content, f"{file}", {"benchmarks", "suites"})
    for part, value in known.items():
        _mapping(value, f"{file}: {part}", "names")
    return _suite(name, known["suites"], known["benchmarks"], str(file), ())


def check_files(benchmarks: list[Benchmark], data_dir: Path) -> None:
    """Raises: EvaluationError naming every benchmark whose file is missing, with the command that makes it."""
    missing = [one for one in benchmarks if not (data_dir.expanduser() / one.file).is_file()]
    if missing:
        commands = [
            f"{one.name}: {path} is missing; make it with\n    {one.converter} --local_save_dir {path.parent}"
            for one in missing
            for path in (data_dir.expanduser() / one.file,)
        ]
        raise EvaluationError("benchmark data is missing\n" + "\n".join(commands))


def read_problems(benchmark: Benchmark, data_dir: Path, *, limit: int | None = None) -> list[Problem]:
    """The problems of a benchmark, the first `limit` of them.

    Raises: EvaluationError when the file is missing or lacks a column, with the command that makes it.
    """
    check_files([benchmark], data_dir)
    path = data_dir.expanduser() / benchmark.file
    remedy = f"this writes it:\n    {benchmark.converter} --local_save_dir {path.parent}"
    table = read_table(path, remedy=remedy)
    if "ability" in table.column_names:
        for index, ability in enumerate(table.column("ability").to_pylist()[:limit]):
            if {ability, benchmark.verifier} == {"math", "code"}:
                raise EvaluationError(
                    f"{path}: row {index} is for the verifier {ability}, benchmark {benchmark.name} has "
                    f"{benchmark.verifier}: make a file of the other rows alone"
                )
    places = range(len(table))[:limit]
    return problems_of(table, places, path, name=benchmark.name, group=benchmark.group, remedy=remedy)


def read_table(path: Path, *, remedy: str) -> Any:
    """A parquet file in verl's schema, as a table of pyarrow with at least one row.

    remedy: ends the error about a column; says how to have one.

    Raises: EvaluationError when the file cannot be read, lacks a column or holds no row.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{path}: cannot be read as parquet: {error}") from error
    if missing := [column for column in COLUMNS if column not in table.column_names]:
        raise EvaluationError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(table.column_names)}; expected verl's schema, "
            f"{', '.join(COLUMNS)}; {remedy}"
        )
    if not len(table):
        raise EvaluationError(f"{path}: holds no row")
    return table


def problems_of(
    table: Any, places: Sequence[int], path: Path, *, name: str, remedy: str, group: str | None = None
) -> list[Problem]:
    """The problems in the rows at `places` of a table that was read from `path`.

    name: begins their keys, before the place; group: a field of extra_info, see suites.yaml.

    Raises: EvaluationError when a row is not as verl has it.
    """
    columns = [*COLUMNS, *(column for column in ("extra_info",) if column in table.column_names)]
    problems = []
    for place, row in zip(places, table.select(columns).take(list(places)).to_pylist(), strict=True):
        for column, fine, expected in (
            ("prompt", _is_chat(row["prompt"]), "a list of messages with role and content"),
            (
                "reward_model",
                isinstance(row["reward_model"], dict) and "ground_truth" in row["reward_model"],
                "a mapping with ground_truth",
            ),
            ("extra_info", isinstance(row.get("extra_info"), dict | None), "a mapping or nothing"),
        ):
            if not fine:
                told = f"{path}: row {place}: {column} is {row[column]!r:.80}"
                raise EvaluationError(f"{told}, expected {expected}; {remedy}")
        extra = row.get("extra_info") or {}
        problems.append(
            Problem(
                key=f"{name.replace('_', '-')}-{place}",
                messages=row["prompt"],
                ground_truth=row["reward_model"]["ground_truth"],
                data_source=row["data_source"],
                extra_info=extra,
                group=extra.get(group) if group else None,
            )
        )
    return problems


def _is_chat(prompt: Any) -> bool:
    """Whether it is a list of messages, each with a role, the last of which says something."""
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(isinstance(one, dict) and one.get("role") and "content" in one for one in prompt)
        and prompt[-1]["content"] is not None
    )


def digest(problems: list[Problem]) -> str:
    """A digest of prompts and ground truths, the same for the same problems in the same order."""
    found = hashlib.blake2b(digest_size=16)
    for problem in problems:
        found.update(json.dumps([problem.messages, problem.ground_truth], default=str).encode())
    return found.hexdigest()


def _suite(name: str, suites: Mapping, benchmarks: Mapping, where: str, above: tuple[str, ...]) -> list[Benchmark]:
    if name in above:
        raise EvaluationError(f"{where}: suite {name} is made of itself")
    if name not in suites:
        known = list(map(str, suites))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise EvaluationError(f"suite {name!r} is not in {where}.{hint} Expected one of {', '.join(known)}")
    place = f"{where}: suites.{name}"
    if "suites" in (suites[name] or {}):
        parts = _table(suites[name], place, {"suites"})["suites"]
        if not isinstance(parts, list):
            raise EvaluationError(f"{place}.suites is {parts!r}: expected a list of suites")
        return [one for part in parts for one in _suite(part, suites, benchmarks, where, (*above, name))]
    suite = _table(suites[name], place, {"sampling", "corrections", "benchmarks"})
    knobs = {knob.name for knob in fields(Sampling)}
    sampling = Sampling(**_table(suite["sampling"], f"{place}.sampling", knobs))
    if type(suite["corrections"]) is not int or suite["corrections"] < 0:
        raise EvaluationError(f"{place}.corrections = {suite['corrections']!r}: expected an integer >= 0")
    found = []
    for one, own in _mapping(suite["benchmarks"], f"{place}.benchmarks", "benchmarks").items():
        if one not in benchmarks:
            raise EvaluationError(f"{place}: benchmark {one!r} is not among {', '.join(map(str, benchmarks))}")
        own = _table(own or {}, f"{place}.benchmarks.{one}", knobs, required=set())
        described = _table(
            benchmarks[one],
            f"{where}: benchmarks.{one}",
            {"file", "converter", "verifier", "group"},
            required={"file", "converter", "verifier"},
        )
        for key, value in described.items():
            if not isinstance(value, str | None) or (key != "group" and not value):
                raise EvaluationError(f"{where}: benchmarks.{one}.{key} = {value!r}: expected a text")
        if described["verifier"] not in VERIFIERS:
            raise EvaluationError(
                f"{where}: benchmarks.{one}.verifier = {described['verifier']!r}: expected one of "
                f"{', '.join(VERIFIERS)}"
            )
        found.append(
            Benchmark(name=one, sampling=replace(sampling, **own), corrections=int(suite["corrections"]), **described)
        )
    return found


def _table(value: Any, where: str, allowed: set[str], required: set[str] | None = None) -> dict[str, Any]:
    """The mapping, all of whose keys are allowed; all allowed ones are required unless said otherwise."""
    _mapping(value, where, f"the keys {', '.join(sorted(allowed))}")
    if unknown := sorted(set(value) - allowed, key=str):
        raise EvaluationError(f"{where} has the unknown keys {unknown}: expected {', '.join(sorted(allowed))}")
    if missing := sorted((allowed if required is None else required) - set(value)):
        raise EvaluationError(f"{where} lacks the keys {', '.join(missing)}")
    return dict(value)


def _mapping(value: Any, where: str, keys: str) -> Mapping[str, Any]:
    """The value. Raises: EvaluationError when it is no mapping; keys: what its keys are."""
    if not isinstance(value, Mapping):
        raise EvaluationError(f"{where} is {value!r}: expected a mapping with {keys}")
    return value
