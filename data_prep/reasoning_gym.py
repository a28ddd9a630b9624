"""reasoning-gym: questions that are made on the spot, with a scorer a task (arXiv 2505.24760).

    python data_prep/reasoning_gym.py --tasks chain_sum gcd --train_size 2000 --test_size 100
    python data_prep/reasoning_gym.py --tasks chain_sum --config max_terms=3 max_digits=2 --local_save_dir ~/data/sums
    python data_prep/reasoning_gym.py --list

Needs the package: pip install '.[reasoning]'. --config sets the fields of a task's own settings, where the
difficulty is: KEY=VALUE for all tasks, TASK.KEY=VALUE for one. Each question is there once, and no question of the test
split is in the training split. Reward function: pkg://verl_cipo.rewards.reasoning_gym.
"""

import argparse
import dataclasses
import difflib
import importlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

if __name__ == "__main__":
    # In place of this folder, where the package's name would be that of this file.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_prep.common.convert import Counts
from data_prep.common.options import positive
from data_prep.common.output import Output, parquet_sink
from data_prep.common.overlap import text_key
from data_prep.common.records import Example, schema
from data_prep.common.rows import Dropped, PrepError

ANSWER = "Put your final answer between <answer> and </answer>."
NO_ANSWER = "?!"
# Entries are drawn from data sets of this size, one seed after another: some tasks make all theirs at once.
CHUNK = 500


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status, 0 or 1; what is wrong is one line on stderr."""
    args = _parser().parse_args(argv)
    try:
        if args.list:
            print("\n".join(f"{task}: {shown(_fields(task))}" for task in _tasks()))
        else:
            make(args)
    except (PrepError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def shown(values: Mapping[str, Any]) -> str:
    """Settings on one line."""
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def make(args: argparse.Namespace) -> None:
    """Write train.parquet and test.parquet, with an example and counts of each. Raises: PrepError."""
    configs = settings(args.tasks, args.config)
    folder = args.local_save_dir.expanduser()
    entries = {task: _entries(task, config, args.seed) for task, config in configs.items()}
    seen: set[bytes] = set()
    tables = []
    with Output(folder) as output:
        # The test split first: it is the same however many rows are trained on.
        for split, size in (("test", args.test_size), ("train", args.train_size)):
            counts = Counts()
            with parquet_sink(output.path(f"{split}.parquet"), schema({"task": pa.string()}), split) as sink:
                for task, config in configs.items():
                    for example in _different(task, config, entries[task], size, seen, counts):
                        sink.add(example)
            counts.kept = sink.count
            output.json(f"{split}_example.json", sink.first)
            output.json(f"{split}_stats.json", _stats(args, configs, counts))
            tables.append(counts.table(split))
    print("\n".join([*tables, f"written to {folder}"]))


def settings(tasks: Sequence[str], options: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Task -> its settings of `options`, each KEY=VALUE or TASK.KEY=VALUE, where a value is JSON or else text.

    Raises: PrepError when a task or a key does not exist, or the task refuses the value.
    """
    known = _tasks()
    for task in tasks:
        if task not in known:
            near = ", ".join(difflib.get_close_matches(task, known)) or "--list shows them"
            raise PrepError(f"--tasks {task}: no task of reasoning-gym {version('reasoning_gym')}; expected {near}")
        if tasks.count(task) > 1:
            raise PrepError(f"--tasks: {task} is named {tasks.count(task)} times")
    configs: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for option in options:
        name, equals, text = option.partition("=")
        task, dot, key = name.rpartition(".")
        if not equals or (dot and task not in configs):
            raise PrepError(f"--config {option}: expected KEY=VALUE or TASK.KEY=VALUE with a task of --tasks")
        for each in [task] if dot else tasks:
            configs[each][key] = _value(each, key, text)
    for task, config in configs.items():
        try:
            _dataset(task, config, seed=0, size=1)
        except (AssertionError, TypeError, ValueError) as error:
            why = str(error) or type(error).__name__
            raise PrepError(f"--config: {task} refuses {shown(config)}: {why}") from error
    return configs


def _value(task: str, key: str, text: str) -> Any:
    fields = _fields(task)
    if key not in fields:
        raise PrepError(f"--config {key}: {task} has no such setting; it has {shown(fields)}")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    return tuple(value) if isinstance(value, list) and isinstance(fields[key], tuple) else value


def _different(
    task: str,
    config: Mapping[str, Any],
    entries: Iterator[tuple[str, Mapping[str, Any]]],
    size: int,
    seen: set[bytes],
    counts: Counts,
) -> Iterator[Example]:
    """The next `size` examples with a question that is not in `seen`, which gets it.

    Raises: PrepError when a whole chunk of entries brings none.
    """
    made = in_vain = 0
    with tqdm(total=size, desc=task, unit=" rows", disable=None) as bar:
        while made < size:
            name, entry = next(entries)
            counts.read += 1
            key = text_key(entry["question"])
            example = _example(task, config, name, entry)
            reason = "question is there already" if key in seen else _fault(example, entry["answer"])
            if reason is not None:
                counts.drop(name, Dropped(reason))
                in_vain += 1
                if in_vain >= CHUNK:
                    raise PrepError(
                        f"{task}: after {made} rows {CHUNK} entries in a row were left out, the last one because: "
                        f"{reason}. Where questions repeat, make --train_size and --test_size smaller, or the range of "
                        "the questions larger with --config"
                    )
                continue
            made, in_vain = made + 1, 0
            seen.add(key)
            bar.update()
            yield example


def _example(task: str, config: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> Example:
    from verl_cipo.rewards.reasoning_gym.entry import dump

    question = entry["question"].strip()
    kept = {key: entry[key] for key in ("question", "answer", "metadata")}
    return Example(
        data_source=f"reasoning_gym/{task}",
        prompt=f"{question}\n\n{ANSWER}",
        ability="reasoning",
        ground_truth=dump(task, config, kept),
        question=question,
        id=name,
        extra={"task": task},
    )


def _fault(example: Example, answer: str | None) -> str | None:
    """Why the scorer of an entry cannot tell right from wrong, None where it seems to."""
    from verl_cipo.rewards.reasoning_gym.judge import judge

    if answer is not None and judge(example.ground_truth, answer)[0] != "right":
        return "its scorer refuses its own answer"
    if judge(example.ground_truth, NO_ANSWER)[0] == "right":
        return "its scorer takes any answer"
    return None


def _entries(task: str, config: Mapping[str, Any], seed: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Entries without end, each with a name. The package draws entry i of seed s from seed s + i."""
    for start in itertools.count(seed, CHUNK):
        dataset = _dataset(task, config, seed=start, size=CHUNK)
        for i in range(CHUNK):
            yield f"{task}:{start + i}", dataset[i]


def _dataset(task: str, config: Mapping[str, Any], *, seed: int, size: int) -> Any:
    return _package().create_dataset(task, **config, seed=seed, size=size)


def _package() -> Any:
    try:
        # Its import says what to install where the package is missing.
        import verl_cipo.rewards.reasoning_gym  # noqa: F401

        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise PrepError(str(error)) from error


def _tasks() -> list[str]:
    _package()
    datasets = importlib.import_module("reasoning_gym.factory").DATASETS
    return sorted(datasets.keys() - {"composite"})


def _fields(task: str) -> dict[str, Any]:
    """Settings of a task with their defaults."""
    fields = dataclasses.fields(importlib.import_module("reasoning_gym.factory").DATASETS[task][1])
    defaults = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields}
    return {name: default for name, default in defaults.items() if name not in ("seed", "size")}


def _stats(args: argparse.Namespace, configs: Mapping[str, Mapping[str, Any]], counts: Counts) -> dict[str, Any]:
    return {
        "read": counts.read,
        "kept": counts.kept,
        "dropped": dict(sorted(counts.dropped.items())),
        "source": f"reasoning-gym {version('reasoning_gym')}",
        "seed": args.seed,
        "tasks": configs,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", nargs="+", action="extend", metavar="TASK", help="names of tasks")
    what.add_argument("--list", action="store_true", help="print all tasks with their settings, and end")
    parser.add_argument(
        "--config", nargs="+", action="extend", default=[], metavar="[TASK.]KEY=VALUE", help="settings of the tasks"
    )
    parser.add_argument("--train_size", type=positive, default=2000, help="training rows of each task (default 2000)")
    parser.add_argument("--test_size", type=positive, default=100, help="test rows of each task (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed of the entries (default 0)")
    parser.add_argument(
        "--local_save_dir",
        type=Path,
        default=Path("~/data/reasoning_gym"),
        help="output folder (default: ~/data/reasoning_gym)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
