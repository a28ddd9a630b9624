"""From raw rows to parquet: the command line and the loop that all converters share."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from data_prep.common.options import positive
from data_prep.common.output import Output, parquet_sink
from data_prep.common.overlap import RUN_WORDS, EvaluationSets, read_questions
from data_prep.common.records import Example, schema
from data_prep.common.rows import Dropped, PrepError, Row
from data_prep.common.selection import Filter, sample
from data_prep.common.source import count_rows, fetch, find_files, read_rows
from data_prep.common.trial import readable, tried


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What one converter is: where the rows are and how one is converted.

    name: folder of the output under ~/data, where {option} stands for the value of an option; hub: name on the
    Hugging Face hub; config: the hub's configuration; splits: name of the output -> name in the published files. Rows
    of the output "train" are de-duplicated and decontaminated; an evaluation set stays as it was published.
    columns: fields that `convert` looks at; tried: whether a row's tests are tried before it is kept, see `trial`;
    solutions: fields with programs of the set, which only that and --keep_solutions need; extra: fields of its own in
    extra_info, with their types; convert: raw row and command line -> Example, raises Dropped to leave the row out,
    PrepError when it is malformed; options: adds options of its own to the command line.
    """

    name: str
    hub: str
    splits: Mapping[str, str]
    columns: Sequence[str]
    convert: Callable[[Row, argparse.Namespace], Example]
    config: str | None = None
    tried: bool = False
    solutions: Sequence[str] = ()
    extra: Mapping[str, pa.DataType] = field(default_factory=dict)
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None


@dataclass
class Counts:
    """What became of the rows of a split.

    details: the dropped rows of which there is more to say than the reason; untried: rows kept for which the set gives
    no solution to try their tests with.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)
    details: list[dict[str, str]] = field(default_factory=list)
    untried: int = 0

    def drop(self, where: str, reason: Dropped) -> None:
        self.dropped[str(reason)] += 1
        if reason.detail:
            self.details.append({"row": where, "reason": str(reason), "detail": reason.detail})

    def table(self, split: str) -> str:
        """The counts as lines to print."""
        lines = [(split, "rows"), ("  read", f"{self.read:,}")]
        lines += [(f"  dropped: {why}", f"{count:,}") for why, count in sorted(self.dropped.items())]
        lines += [("  kept", f"{self.kept:,}")]
        lines += [("    without a solution to try", f"{self.untried:,}")] if self.untried else []
        width = max(40, *(len(name) for name, _ in lines))
        return "\n".join(f"{name:{width}}{count:>10}" for name, count in lines)


def main(dataset: DataSet, doc: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a converter; doc: its module's docstring. Returns the exit status, 0 or 1.

    What keeps a conversion from being done is one line on stderr and leaves the output folder as it was.
    """
    args = _parser(dataset, doc).parse_args(argv)
    try:
        convert(dataset, args)
    except (PrepError, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None and error.strerror
        print(f"error: {f'{error.filename}: {error.strerror.lower()}' if named else error}", file=sys.stderr)
        return 1
    return 0


def convert(dataset: DataSet, args: argparse.Namespace) -> None:
    """Convert every split that the source has; all files appear together. Raises: PrepError."""
    evaluation = None
    if args.decontaminate:
        evaluation = EvaluationSets(read_questions(args.decontaminate), args.decontaminate_n)
    local = args.local_dataset_path
    root = local.expanduser() if local else fetch(dataset.hub, args.hf_revision, dataset.config)
    files = {
        split: find_files(root, source, only_split=len(dataset.splits) == 1, config=dataset.config)
        for split, source in dataset.splits.items()
    }
    if not any(files.values()):
        wanted = " or ".join(dataset.splits.values())
        raise PrepError(f"{root}: no data file is named after a split; expected {wanted} in the name of each file")
    # The hub's cache names the folder after the commit.
    source = str(root) if local else f"{dataset.hub}@{root.name}"
    folder = (args.local_save_dir or Path("~/data") / dataset.name.format(**vars(args))).expanduser()
    tables = []
    with Output(folder, [file for found in files.values() for file in found]) as output:
        for split, found in files.items():
            counts = Counts()
            if found:
                first = _convert_split(dataset, args, split, found, evaluation, output, counts)
                output.json(f"{split}_example.json", first)
                output.json(f"{split}_stats.json", _stats(args, source, found, counts))
            tables.append(counts.table(split) if found else f"{split}: no file of it in {source}")
    print("\n".join([*tables, f"written to {folder}"]))


def _convert_split(
    dataset: DataSet,
    args: argparse.Namespace,
    split: str,
    files: Sequence[Path],
    evaluation: EvaluationSets | None,
    output: Output,
    counts: Counts,
) -> dict[str, Any]:
    """Write the parquet file of one split, fill in `counts`, and return the first row written."""
    training = Filter(evaluation) if split == "train" else None
    trial = dataset.tried and not args.skip_trial
    keeps = dataset.tried and args.keep_solutions
    columns = [*dataset.columns, *(dataset.solutions if trial or keeps else ())]
    extra = {**dataset.extra, **({"solutions": pa.list_(pa.string())} if keeps else {})}
    if training is not None and evaluation is not None:
        for row in _rows(files, dataset.columns, f"{split}, questions"):
            if (example := _converted(dataset, args, row, None)) is not None:
                evaluation.count(example.question)
    with parquet_sink(output.path(f"{split}.parquet"), schema(extra), split) as sink:
        examples = _kept(dataset, args, _rows(files, columns, split), training, counts)
        if trial:
            examples = _passed(examples, counts)
        chosen = (example for example, _ in examples)
        for example in sample(chosen, args.max_samples, args.seed) if args.max_samples else chosen:
            sink.add(_with_solutions(example) if keeps else example)
    counts.kept = sink.count
    if left_out := counts.read - counts.dropped.total() - counts.kept:
        counts.dropped["not drawn (--max_samples)"] = left_out
    if sink.first is None:
        raise PrepError(f"{files[0]}: no row of the split {split} is left of {counts.read:,}; {dict(counts.dropped)}")
    return sink.first


def _with_solutions(example: Example) -> Example:
    return replace(example, extra={**example.extra, "solutions": list(example.solutions)})


def _rows(files: Sequence[Path], columns: Sequence[str], label: str) -> Iterator[Row]:
    """The rows of the files, with a bar that shows how far it is."""
    with tqdm(read_rows(files, columns), label, count_rows(files), unit=" rows", disable=None) as rows:
        yield from rows


def _converted(dataset: DataSet, args: argparse.Namespace, row: Row, counts: Counts | None) -> Example | None:
    """The row converted; None where the converter drops it, or it is malformed and --skip_malformed is given.

    counts: where that is told; None where nothing is to be told of a first look.
    """
    try:
        return dataset.convert(row, args)
    except Dropped as reason:
        if counts is not None:
            counts.drop(row.where, reason)
    except PrepError as error:
        if not args.skip_malformed:
            hint = f"({dataset.hub}; --skip_malformed leaves such rows out and counts them)"
            raise PrepError(f"{error} {hint}") from error
        if counts is not None:
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            counts.dropped[f"{error.reason} (--skip_malformed)"] += 1
    return None


def _kept(
    dataset: DataSet, args: argparse.Namespace, rows: Iterable[Row], training: Filter | None, counts: Counts
) -> Iterator[tuple[Example, str]]:
    """The rows that are left, converted, each with its place: no duplicates, evaluation questions, unreadable truth."""
    for row in rows:
        counts.read += 1
        if (example := _converted(dataset, args, row, counts)) is None:
            continue
        try:
            if training is not None:
                training.check(example)
            readable(example)
        except Dropped as reason:
            counts.drop(row.where, reason)
            continue
        yield example, row.where


def _passed(examples: Iterable[tuple[Example, str]], counts: Counts) -> Iterator[tuple[Example, str]]:
    """The examples whose tests tell right from wrong."""
    for example, where, reason in tried(examples):
        if reason is not None:
            counts.drop(where, reason)
            continue
        counts.untried += example.ability == "code" and not example.solutions
        yield example, where


def _stats(args: argparse.Namespace, source: str, files: Sequence[Path], counts: Counts) -> dict[str, object]:
    return {
        "read": counts.read,
        "kept": counts.kept,
        "dropped": dict(sorted(counts.dropped.items())),
        "kept_without_a_solution_to_try": counts.untried,
        "dropped_rows": counts.details,
        "source": source,
        "files": [file.name for file in files],
        "options": {name: _plain(value) for name, value in vars(args).items()},
    }


def _plain(value: object) -> object:
    """An option as JSON has it; paths and dates are text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, int | float) else str(value)


def _parser(dataset: DataSet, doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--local_dataset_path",
        type=Path,
        help=f"file or folder with the published files (default: {dataset.hub} from the hub)",
    )
    parser.add_argument("--local_save_dir", type=Path, help=f"output folder (default: ~/data/{dataset.name})")
    parser.add_argument("--max_samples", type=positive, help="keep this many rows of each split, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0, help="seed of that draw (default 0)")
    parser.add_argument(
        "--decontaminate",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="evaluation files; training rows that hold half or more of one of their questions are dropped",
    )
    parser.add_argument(
        "--decontaminate_n",
        type=positive,
        default=RUN_WORDS,
        metavar="N",
        help=f"questions are compared by their runs of this many words ({RUN_WORDS})",
    )
    parser.add_argument(
        "--skip_malformed", action="store_true", help="report malformed rows, count them and continue without them"
    )
    parser.add_argument("--hf_revision", help="branch, tag or commit on the hub (default: its main branch)")
    if dataset.tried:
        parser.add_argument(
            "--keep_solutions",
            action="store_true",
            help="write the set's own solutions, at most 3, to extra_info.solutions (for evaluate --rescore)",
        )
        parser.add_argument(
            "--skip_trial",
            action="store_true",
            help="keep rows without running their tests on the set's own solutions and on functions that do nothing",
        )
    dataset.options(parser)
    return parser
