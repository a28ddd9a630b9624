"""python -m verl_cipo.evaluate --rescore RUN --output FILE.json: accepted answers under a stricter verifier."""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_cipo.evaluation.files import read_earlier, same_settings, write_whole
from verl_cipo.evaluation.jsonl import EvaluationError, by_step, inside
from verl_cipo.evaluation.output import for_terminal, markdown_table, shown, write_json
from verl_cipo.evaluation.rescore.judge import STREAMS, Strictness, rescore_step
from verl_cipo.evaluation.rescore.prompts import HeldOut, References

SHARED_OPTIONS = ("--output", "--correct-threshold", "--skip-bad")
_SHOWN_STEPS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of --rescore."""
    parser.add_argument(
        "--rescore", type=Path, required=True, metavar="RUN", help="folder of {step}.jsonl, or one with rollouts/ in it"
    )
    parser.add_argument("--markdown", action="store_true", help="write FILE.md beside FILE.json")
    parser.add_argument("--steps", type=int, nargs="+", action="extend", help="only these (default: all)")
    parser.add_argument("--verifier", choices=("auto", "math", "code"), default="auto", help="default: by ground truth")
    parser.add_argument(
        "--held-out",
        type=Path,
        nargs="+",
        action="extend",
        metavar="PARQUET",
        help="data_prep's files with tests not trained on",
    )
    parser.add_argument(
        "--references",
        type=Path,
        nargs="+",
        action="extend",
        metavar="PARQUET",
        help="data_prep's files made with --keep_solutions: programs are also run on tests with other names in them",
    )
    parser.add_argument(
        "--changes", type=int, default=3, help="perturbed inputs, and renamed tests, a problem; 0 for none (default 3)"
    )
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds, of one run of a program (default 10)")
    parser.add_argument("--workers", type=int, default=2, help="sandboxes (default 2)")
    parser.add_argument("--backend", choices=("bubblewrap", "subprocess"), default="bubblewrap", help="of rewards.code")


def run(args: argparse.Namespace) -> int:
    """Judge step by step; a killed run goes on from the steps that FILE.json holds. Returns the exit status."""
    steps = _judged(args)
    titles = ("accepted", "rejected", "undecided", "gap", *(["shortcuts"] if args.references else []))
    table = markdown_table(
        ["step", *(f"{name}: {title}" for name in STREAMS for title in titles)],
        [
            [step["step"], *(cell for name in STREAMS for cell in _cells(step["streams"].get(name))[: len(titles)])]
            for step in steps
        ],
    )
    if args.markdown:
        write_whole(args.output.with_suffix(".md"), table)
    print(for_terminal(_short(table)), end="")
    if skipped := sum(step["bad_lines"] for step in steps):
        print(f"skipped {skipped} bad lines", file=sys.stderr)
    return 0


def _judged(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of all steps, written after each."""
    for name, least in (("changes", 0), ("workers", 1), ("timeout", 0.1)):
        if not getattr(args, name) >= least:
            raise EvaluationError(f"--{name} {getattr(args, name)}: expected {least} or more")
    files = step_files(args.rescore, args.steps)
    how = Strictness(
        verifier=args.verifier,
        held_out=HeldOut.read(args.held_out) if args.held_out else None,
        references=References.read(args.references) if args.references else None,
        changes=args.changes,
        timeout_s=args.timeout,
        workers=args.workers,
        backend=args.backend,
        threshold=args.correct_threshold,
    )
    settings = {"run": args.rescore} | {
        name: getattr(args, name)
        for name in ("verifier", "held_out", "references", "changes", "timeout", "correct_threshold", "skip_bad")
    }
    before = read_earlier(args.output, {"settings": dict, "steps": list})
    settings = same_settings(args.output, settings, before and before["settings"])
    results = before or {"settings": settings, "steps": []}
    done = {step["step"] for step in results["steps"]}
    left = [file for file in files if int(file.stem) not in done]
    for file in tqdm(left, initial=len(files) - len(left), total=len(files), desc="steps", disable=None):
        results["steps"].append(rescore_step(file, how, skip_bad=args.skip_bad))
        results["steps"].sort(key=lambda step: step["step"])
        write_json(args.output, results)
    return results["steps"]


def step_files(run: Path, steps: list[int] | None = None) -> list[Path]:
    """The `{step}.jsonl` of a run in the order of steps.

    Raises: EvaluationError when there is none, or not all of `steps`.
    """
    folder = inside(run, "rollouts")
    found = by_step(folder)
    if not found:
        raise EvaluationError(
            f"--rescore {run}: no folder of {{step}}.jsonl, and no run with rollouts/ in it: verl writes that where "
            "trainer.rollout_data_dir is set"
        )
    if missing := sorted(set(steps or ()) - found.keys()):
        raise EvaluationError(
            f"{folder} has no step {', '.join(map(str, missing))}; it has {min(found)} to {max(found)}"
        )
    return [found[step] for step in sorted(steps or found)]


def _cells(found: dict[str, Any] | None) -> list[object]:
    """Of a stream: accepted, rejected, undecided, the gap and the rate of shortcuts, in percent with an interval."""
    if found is None:
        return [""] * 5
    rate = shown(found.get("isomorphic", {}).get("rate"))
    return [found["accepted"], found["rejected"], found["undecided"], shown(found["gap"]), rate]


def _short(table: str) -> str:
    """The table's head and at most 20 of its rows, evenly spread, the last among them."""
    head, rows = table.splitlines()[:2], table.splitlines()[2:]
    every = -(-len(rows) // _SHOWN_STEPS)
    shown = rows[::-1][:: max(1, every)][::-1]
    left_out = [f"({len(shown)} of {len(rows)} steps; the others are in the file)"] if len(shown) < len(rows) else []
    return "\n".join([*head, *shown, *left_out]) + "\n"
