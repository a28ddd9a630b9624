"""From raw rows to parquet: the command line and the loop that all converters share."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from data_prep.common.options import positive
from data_prep.common.output import Output, parquet_sink
from data_prep.common.overlap import EvaluationSets, read_questions
from data_prep.common.records import Example, schema
from data_prep.common.rows import Dropped, PrepError, Row
from data_prep.common.selection import Filter, sample
from data_prep.common.source import count_rows, fetch, find_files, read_rows


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What one converter is: where the rows are and how one is converted.

    name: folder of the output under ~/data, where {option} stands for the value of an option; hub: name on the
    Hugging Face hub; config: the hub's configuration; splits: name of the output -> name in the published files. Rows
    of the output "train" are de-duplicated and decontaminated; an evaluation set stays as it was published.
    columns: fields that `convert` looks at; extra: fields of its own in extra_info, with their types;
    convert: raw row and command line -> Example, raises Dropped to leave the row out, PrepError when it is malformed;
    options: adds options of its own to the command line.
    """

    name: str
    hub: str
    splits: Mapping[str, str]
    columns: Sequence[str]
    convert: Callable[[Row, argparse.Namespace], Example]
    config: str | None = None
    extra: Mapping[str, pa.DataType] = field(default_factory=dict)
    options: Callable[[argparse.ArgumentParser], object] = lambda parser: None


@dataclass
class Counts:
    """What became of the rows of a split."""

    read: int = 0
    kept: int = 0
    dropped: Counter = field(default_factory=Counter)

    def table(self, split: str) -> str:
        """The counts as lines to print."""
        lines = [f"{split:40}{'rows':>10}", f"{'  read':40}{self.read:>10,}"]
        lines += [f"{'  dropped: ' + why:40}{n:>10,}" for why, n in sorted(self.dropped.items())]
        return "\n".join([*lines, f"{'  kept':40}{self.kept:>10,}"])


def main(dataset: DataSet, doc: str, argv: Sequence[str] | None = None) -> int:
    """The command line of a converter; doc: its module's docstring. Returns the exit status, 0 or 1.

    What keeps a conversion from being done is one line on stderr and leaves the output folder as it was.
    """
    args = _parser(dataset, doc).parse_args(argv)
    try:
        convert(dataset, args)
    except (PrepError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
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
    with Output(folder) as output:
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
    with (
        tqdm(read_rows(files, dataset.columns), split, count_rows(files), unit=" rows", disable=None) as rows,
        parquet_sink(output.path(f"{split}.parquet"), schema(dataset.extra), split) as sink,
    ):
        examples = _well_formed(dataset, args, rows, training, counts)
        for example in sample(examples, args.max_samples, args.seed) if args.max_samples else examples:
            sink.add(example)
    counts.kept = sink.count
    if left_out := counts.read - counts.dropped.total() - counts.kept:
        counts.dropped["not drawn (--max_samples)"] = left_out
    if sink.first is None:
        raise PrepError(f"{files[0]}: no row of the split {split} is left of {counts.read:,}; {dict(counts.dropped)}")
    return sink.first


def _well_formed(
    dataset: DataSet, args: argparse.Namespace, rows: Iterable[Row], training: Filter | None, counts: Counts
) -> Iterator[Example]:
    """The rows converted, without those that are dropped."""
    for row in rows:
        counts.read += 1
        try:
            example = dataset.convert(row, args)
            if training is not None:
                training.check(example)
        except Dropped as reason:
            counts.dropped[str(reason)] += 1
            continue
        except PrepError as error:
            if not args.skip_malformed:
                raise
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            counts.dropped["malformed (--skip_malformed)"] += 1
            continue
        yield example


def _stats(args: argparse.Namespace, source: str, files: Sequence[Path], counts: Counts) -> dict[str, object]:
    return {
        "read": counts.read,
        "kept": counts.kept,
        "dropped": dict(sorted(counts.dropped.items())),
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
        default=[],
        metavar="FILE",
        help="evaluation files; training rows whose question shares a run of words with one of theirs are dropped",
    )
    parser.add_argument("--decontaminate_n", type=positive, default=13, metavar="N", help="words of such a run (13)")
    parser.add_argument("--skip_malformed", action="store_true", help="name malformed rows and go on without them")
    parser.add_argument("--hf_revision", help="branch, tag or commit on the hub (default: its main branch)")
    dataset.options(parser)
    return parser
