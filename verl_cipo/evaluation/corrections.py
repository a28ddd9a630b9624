"""python -m verl_cipo.evaluate --second-turns PATH --output FILE.json: what a run's validation says of corrections.

PATH is a `corrections/{step}.jsonl`, the folder of them, as CIPO writes below trainer.validation_data_dir, or the run's
folder with validation/ in it.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from verl_cipo.core.transitions import problem_of, retried
from verl_cipo.core.verdict import finite
from verl_cipo.evaluation.files import write_whole
from verl_cipo.evaluation.intervals import Interval, interval, ratio_interval
from verl_cipo.evaluation.jsonl import CORRECTED, BadLine, EvaluationError, by_step, check_lines, inside, read_objects
from verl_cipo.evaluation.output import for_terminal, markdown_table, plain, shown, write_json

SHARED_OPTIONS = ("--output", "--confidence", "--skip-bad")
_FIELDS = {"question": object, "anchor_correct": bool, "corrections": list}
_CORRECTION_FIELDS = {"correct": bool, "copied": bool}

FIGURES = {
    "accuracy_turn1": "Share of attempts that are right.",
    "accuracy_turn2": "Share that is right after the correction; an attempt without a correction keeps its verdict.",
    "gain": "accuracy_turn2 - accuracy_turn1.",
    "c2c": "Share of corrections of right attempts that stay right.",
    "c2w": "Share of corrections of right attempts that become wrong.",
    "w2c": "Share of corrections of wrong attempts that become right.",
    "w2w": "Share of corrections of wrong attempts that stay wrong.",
    "retry": "Share of the corrections of wrong attempts that would be right if they were further attempts at the "
    "plain problem: c / (n - 1) where c of n attempts are right. Of problems with several sampled attempts.",
    "w2c_over_retry": "w2c - retry of these problems: what showing the wrong attempt is worth, against sampling once "
    "more without it.",
    "over_correction": "Share of all corrections that turn a right attempt wrong.",
    "repair": "Share of all corrections that turn a wrong attempt right.",
    "copy_rate": "Share of corrections that repeat the attempt up to white space.",
    "copy_rate_failed": "The same of the corrections of wrong attempts: copying a right one is no fault.",
    "hacking_gap": "Share of attempts that are right minus the share that the second verifier calls right, among those "
    "of which it gave a verdict (algorithm.cipo.second_verifier).",
    "hacking_gap_corrections": "The same of the corrections.",
    "without_correction": "Share of attempts without one: it did not fit the prompt, or there was nothing to show.",
}


def correction_figures(records: Iterable[Mapping[str, Any]], **how: Any) -> dict[str, Interval]:
    """The figures of FIGURES, with intervals over problems.

    Args:
        records: one an attempt, with what :func:`problem_of` reads, and anchor_correct, corrections with correct and
            copied each, and temperature (default 1): greedy attempts do not tell what a retry would bring. Or rows of
            attempts whose prompts hold a response to be corrected, with anchor_correct, acc and copied: the attempts
            are others', which do not tell that either.
        how: confidence, resamples and seed of the bootstrap.

    Returns:
        One interval a name. A rate without an attempt of its kind is left out.

    Raises:
        ValueError: there is no record.
    """
    per_problem: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    sampled = True
    for record in records:
        turns = record.get("corrections", [{"correct": record.get("acc"), "copied": record.get("copied")}])
        sampled &= "corrections" in record and record.get("temperature", 1.0) > 0
        first = bool(record["anchor_correct"])
        right, copied = (sum(bool(turn[name]) for turn in turns) for name in ("correct", "copied"))
        before = "c" if first else "w"
        tally = per_problem[problem_of(record)]
        tally["attempts"] += 1
        tally["first"] += first
        tally["second"] += right / len(turns) if turns else first
        tally["without"] += not turns
        tally[f"{before}2c"] += right
        tally[f"{before}2w"] += len(turns) - right
        tally[f"copies_{before}"] += copied
        for stream, judged in (
            ("attempts", [(first, record.get("second"))]),
            ("corrections", [(turn["correct"], turn.get("second")) for turn in turns]),
        ):
            both = [bool(verdict) - bool(second) for verdict, second in judged if second is not None]
            tally[f"gap_{stream}"] += sum(both)
            tally[f"twice_{stream}"] += len(both)
    if not per_problem:
        raise ValueError("no record of a correction: nothing to report")

    def of(name: str) -> np.ndarray:
        return np.array([tally[name] for tally in per_problem.values()], dtype=float)

    attempts, first, second, wc = of("attempts"), of("first"), of("second"), of("w2c")
    right, wrong = of("c2c") + of("c2w"), wc + of("w2w")
    figures = {
        "accuracy_turn1": interval(first / attempts, **how),
        "accuracy_turn2": interval(second / attempts, **how),
        "gain": interval((second - first) / attempts, **how),
    }
    shares = [
        ("c2c", of("c2c"), right),
        ("c2w", of("c2w"), right),
        ("w2c", wc, wrong),
        ("w2w", of("w2w"), wrong),
        ("over_correction", of("c2w"), right + wrong),
        ("repair", wc, right + wrong),
        ("copy_rate", of("copies_c") + of("copies_w"), right + wrong),
        ("copy_rate_failed", of("copies_w"), wrong),
        ("without_correction", of("without"), attempts),
        ("hacking_gap", of("gap_attempts"), of("twice_attempts")),
        ("hacking_gap_corrections", of("gap_corrections"), of("twice_corrections")),
    ]
    if sampled and (several := attempts > 1).any():
        asked = wrong[several]
        again = asked * retried(first[several], attempts[several])
        shares += [("retry", again, asked), ("w2c_over_retry", wc[several] - again, asked)]
    for name, parts, totals in shares:
        if totals.any():
            figures[name] = ratio_interval(parts, totals, **how)
    return {name: figures[name] for name in FIGURES if name in figures}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of --second-turns."""
    parser.add_argument(
        "--second-turns", type=Path, required=True, metavar="PATH", help="a file, a folder of steps, or a run"
    )
    parser.add_argument("--markdown", action="store_true", help="write FILE.md beside FILE.json")


def run(args: argparse.Namespace) -> int:
    """Figures of each step and benchmark, as JSON and as a table. Returns the exit status."""
    steps, rows = [], []
    for file in _files(args.second_turns):
        benchmarks, bad = _read(file)
        check_lines(file, bad, CORRECTED, found=bool(benchmarks), skip_bad=args.skip_bad)
        figures = {
            name: plain(correction_figures(benchmarks[name], confidence=args.confidence)) for name in sorted(benchmarks)
        }
        steps.append({"file": str(file), "bad_lines": len(bad), "benchmarks": figures})
        rows += [[file.stem, name, *(shown(found.get(each)) for each in FIGURES)] for name, found in figures.items()]
    write_json(args.output, {"confidence": args.confidence, "meanings": FIGURES, "steps": steps})
    table = markdown_table(["step", "benchmark", *FIGURES], rows)
    if args.markdown:
        write_whole(args.output.with_suffix(".md"), table)
    print(for_terminal(table), end="")
    return 0


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = list(by_step(inside(path, "validation/corrections", "corrections")).values())
    if not found:
        raise EvaluationError(
            f"--second-turns {path}: neither a JSONL file nor a folder of {{step}}.jsonl, and no run with "
            "validation/corrections/ in it: CIPO writes that where trainer.validation_data_dir is set"
        )
    return found


def _read(file: Path) -> tuple[dict[str, list[dict[str, Any]]], list[BadLine]]:
    """The records of a `corrections/{step}.jsonl` by benchmark, and the lines that are none."""
    records, bad = defaultdict(list), []
    attempts: set[tuple[str, str]] = set()
    for number, record in read_objects(file, bad, _FIELDS):
        # Each is written once; a file that was put together from two has some twice, which retry takes for others.
        attempt = (str(record.get("uid")), str(record.get("session")))
        named = record.get("uid") is not None and record.get("session") is not None
        if reason := _fault(record):
            bad.append(BadLine(file, number, reason))
        elif named and attempt in attempts:
            bad.append(BadLine(file, number, f"session {attempt[1]} of the uid {attempt[0]} was there before"))
        else:
            attempts.add(attempt)
            records[str(record.get("data_source"))].append(record)
    return records, bad


def _fault(record: Mapping[str, Any]) -> str | None:
    """What keeps a line with _FIELDS from being counted; None where nothing does."""
    if not all(
        isinstance(turn, dict) and all(isinstance(turn.get(name), kind) for name, kind in _CORRECTION_FIELDS.items())
        for turn in record["corrections"]
    ):
        return f"a correction lacks one of {', '.join(_CORRECTION_FIELDS)}"
    if not isinstance(record.get("chat", ""), str):
        return f"chat is no text: {record['chat']!r:.80}"
    if not all(isinstance(one.get("second"), bool | None) for one in (record, *record["corrections"])):
        return "second, the second verifier's verdict, is not true, false or null"
    if finite(record.get("temperature", 1.0)) is None:
        return f"temperature is no number: {record['temperature']!r:.80}"
    return None
