"""python -m verl_cipo.evaluate --dumps PATH... --output FILE.json: figures from the dumps of one run, or of two."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.dumps.rows import NO_VERDICT, Dumps, Options, read_dumps
from verl_cipo.evaluation.dumps.summary import Settings, compare, measure, summarize
from verl_cipo.evaluation.dumps.tables import as_csv, as_markdown, comparison_as_json, run_as_json
from verl_cipo.evaluation.files import existing_folder, write_whole
from verl_cipo.evaluation.jsonl import BadLinesError, EvaluationError
from verl_cipo.evaluation.options import at_least
from verl_cipo.evaluation.output import for_terminal, write_json

RUN, BASELINE = "run", "baseline"
SHARED_OPTIONS = ("--output", "--confidence", "--correct-threshold", "--skip-bad")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of --dumps."""
    parser.add_argument(
        "--dumps",
        type=Path,
        nargs="+",
        action="extend",
        metavar="PATH",
        required=True,
        help="JSONL files, or folders of {step}.jsonl",
    )
    parser.add_argument("--csv", action="store_true", help="write FILE.csv beside FILE.json")
    parser.add_argument("--markdown", action="store_true", help="write FILE.md beside FILE.json")
    parser.add_argument(
        "--compare",
        type=Path,
        nargs="+",
        action="extend",
        metavar="PATH",
        help="dumps of a baseline on the same problems",
    )
    parser.add_argument("--step", type=int, help="which step of a folder (default: the newest)")
    parser.add_argument("--compare-step", type=int, metavar="STEP", help="the same for --compare")
    parser.add_argument("--name", help="benchmark of rows that name none (default: the file's or folder's name)")
    parser.add_argument(
        "--n", type=at_least(1), help="samples that every problem must have; any other number is an error"
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the bootstrap and of maj@K (default 0)")
    parser.add_argument("--no-maj", action="store_true", help="no maj@K, where pred is no answer to vote on")
    parser.add_argument("--tokenizer", metavar="DIR", help="count tokens with this Hugging Face tokenizer, too")
    parser.add_argument(
        "--max-tokens", type=at_least(1), metavar="N", help="with --tokenizer: a response of N tokens was cut off"
    )


def run(args: argparse.Namespace) -> int:
    """Read, compute, write; the figures go to standard output as well. Returns the exit status."""
    if args.max_tokens is not None and args.tokenizer is None:
        print("--max-tokens needs --tokenizer: dumps hold no tokens", file=sys.stderr)
        return 2
    if args.compare_step is not None and not args.compare:
        print("--compare-step needs --compare: there is no baseline to take a step of", file=sys.stderr)
        return 2
    count_tokens = _token_counter(args.tokenizer) if args.tokenizer else None
    settings = Settings(confidence=args.confidence, seed=args.seed, majority=not args.no_maj)
    options = Options(
        name=args.name,
        step=args.step,
        skip_bad=args.skip_bad,
        correct_threshold=args.correct_threshold,
        count_tokens=count_tokens,
        max_tokens=args.max_tokens,
    )
    runs = {RUN: read_dumps(args.dumps, options)}
    if args.compare:
        runs[BASELINE] = read_dumps(args.compare, replace(options, step=args.compare_step))
    for each in runs.values():
        _check_samples(each, args.n)
        if repeated := sum(problem.prompts > 1 for problem in each.problems):
            print(
                f"{repeated} of {len(each.problems)} problems stand under several uids: equal input and ground "
                "truth are one problem with all its samples",
                file=sys.stderr,
            )
        if without := each.rows.get(NO_VERDICT):
            print(f"{without} rows without a verdict are no samples: the verifier was not reached", file=sys.stderr)
        if each.skipped:
            print(f"skipped {len(each.skipped)} bad lines:\n{BadLinesError(each.skipped)}", file=sys.stderr)
    if args.compare and None in (args.step, args.compare_step):
        _tell_steps(*runs.values())
    measured = {name: measure(each.problems, settings) for name, each in runs.items()}
    summaries = {name: summarize(each, settings) for name, each in measured.items()}
    comparison = compare(measured[RUN], measured[BASELINE], settings) if args.compare else None
    figures: dict[str, Any] = {"confidence": args.confidence, "seed": args.seed}
    figures |= {name: run_as_json(each, summaries[name]) for name, each in runs.items()}
    if comparison is not None:
        figures["comparison"] = comparison_as_json(comparison)
    markdown = as_markdown(summaries, comparison, args.confidence)
    write_json(args.output, figures)
    if args.csv:
        write_whole(args.output.with_suffix(".csv"), as_csv(summaries, comparison))
    if args.markdown:
        write_whole(args.output.with_suffix(".md"), markdown)
    print(for_terminal(markdown), end="")
    return 0


def _tell_steps(run: Dumps, baseline: Dumps) -> None:
    """Says where the newest dumps of two runs are not of one step, as while one of them still trains."""
    of_run, of_baseline = ({file.stem for file in each.files if file.stem.isdecimal()} for each in (run, baseline))
    if of_run and of_baseline and of_run != of_baseline:
        steps = [", ".join(sorted(each, key=int)) for each in (of_run, of_baseline)]
        print(
            f"the run is read at step {steps[0]}, the baseline at step {steps[1]}: --step and --compare-step choose "
            "others",
            file=sys.stderr,
        )


def _check_samples(dumps: Dumps, n: int | None) -> None:
    """Raises: EvaluationError when a problem has not n samples, nor n under each of its uids."""
    if n is None:
        return
    odd = [problem for problem in dumps.problems if len(problem.samples) not in (n, n * problem.prompts)]
    if odd:
        raise EvaluationError(
            f"{len(odd)} of {len(dumps.problems)} problems have not {n} samples; the first has {len(odd[0].samples)}:"
            f" {odd[0].key[0]!r:.200}"
        )


def _token_counter(path: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(existing_folder("--tokenizer", path))
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
