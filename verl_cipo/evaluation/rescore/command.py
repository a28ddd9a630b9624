"""python -m verl_cipo.evaluate --rescore RUN --output FILE.json: accepted answers under a stricter verifier."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_cipo.evaluation.append_log import write_whole
from verl_cipo.evaluation.jsonl import by_step
from verl_cipo.evaluation.rescore.judge import STREAMS, HeldOut, Strictness, rescore_step
from verl_cipo.evaluation.suite.problems import EvaluationError
from verl_cipo.evaluation.suite.results import percent
from verl_cipo.rewards.outcome import VerifierInfrastructureError

_SHOWN_STEPS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of --rescore."""
    parser.add_argument(
        "--rescore", type=Path, required=True, metavar="RUN", help="folder of {step}.jsonl, or one with rollouts/ in it"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json", help="where the figures go")
    parser.add_argument("--steps", type=int, nargs="+", help="only these (default: all)")
    parser.add_argument("--verifier", choices=("auto", "math", "code"), default="auto", help="default: by ground truth")
    parser.add_argument(
        "--held-out", type=Path, nargs="+", metavar="PARQUET", help="data_prep's files with tests not trained on"
    )
    parser.add_argument("--changes", type=int, default=3, help="perturbed inputs a problem, 0 for none (default 3)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds, of one run of a program (default 10)")
    parser.add_argument("--workers", type=int, default=2, help="sandboxes (default 2)")
    parser.add_argument("--backend", choices=("bubblewrap", "subprocess"), default="bubblewrap", help="of rewards.code")
    parser.add_argument("--correct-threshold", type=float, default=0.5, help="a score above it was accepted")
    parser.add_argument("--skip-bad", action="store_true", help="leave lines that are no rows out, and count them")


def run(args: argparse.Namespace) -> int:
    """Judge step by step; a killed run goes on from the steps that FILE.json holds. Returns the exit status."""
    try:
        results = _run(args)
    except (ValueError, OSError, VerifierInfrastructureError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    table = markdown(results["steps"])
    write_whole(args.output.with_suffix(".md"), table)
    print(_short(table), end="")
    skipped = sum(step["bad_lines"] for step in results["steps"])
    if skipped:
        print(f"skipped {skipped} bad lines", file=sys.stderr)
    return 0


def _run(args: argparse.Namespace) -> dict[str, Any]:
    for name, least in (("changes", 0), ("workers", 1)):
        if getattr(args, name) < least:
            raise EvaluationError(f"--{name} {getattr(args, name)}: allowed is {least} or more")
    files = step_files(args.rescore, args.steps)
    how = Strictness(
        verifier=args.verifier,
        held_out=HeldOut.read(args.held_out) if args.held_out else None,
        changes=args.changes,
        timeout_s=args.timeout,
        workers=args.workers,
        backend=args.backend,
        threshold=args.correct_threshold,
    )
    settings = {
        name: getattr(args, name)
        for name in ("verifier", "held_out", "changes", "timeout", "correct_threshold", "skip_bad")
    }
    settings = json.loads(json.dumps({"run": args.rescore, **settings}, default=str))
    results: dict[str, Any] = {"settings": settings, "steps": []}
    if args.output.is_file():
        before = json.loads(args.output.read_text(encoding="utf-8"))
        if before.get("settings") != settings:
            raise EvaluationError(f"{args.output} was made with other settings: remove it or take another --output")
        results = before
    done = {step["step"] for step in results["steps"]}
    left = [file for file in files if int(file.stem) not in done]
    for file in tqdm(left, initial=len(files) - len(left), total=len(files), desc="steps", disable=None):
        results["steps"].append(rescore_step(file, how, skip_bad=args.skip_bad))
        results["steps"].sort(key=lambda step: step["step"])
        write_whole(args.output, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    return results


def step_files(run: Path, steps: list[int] | None = None) -> list[Path]:
    """The `{step}.jsonl` of a run in the order of steps.

    Raises: EvaluationError when there is none, or not all of `steps`.
    """
    folder = run / "rollouts" if (run / "rollouts").is_dir() else run
    found = by_step(folder)
    if not found:
        raise EvaluationError(f"{folder} holds no {{step}}.jsonl: give what trainer.rollout_data_dir was set to")
    if missing := sorted(set(steps or ()) - found.keys()):
        raise EvaluationError(
            f"{folder} has no step {', '.join(map(str, missing))}; it has {min(found)} to {max(found)}"
        )
    return [found[step] for step in sorted(steps or found)]


def markdown(steps: list[dict[str, Any]]) -> str:
    """The gap of each stream by step as a Markdown table, in percent with its interval."""
    lines = [
        "| step | " + " | ".join(f"{name}: accepted | rejected | undecided | gap" for name in STREAMS) + " |",
        "|" + "---|" * (1 + 4 * len(STREAMS)),
    ]
    for step in steps:
        cells = []
        for name in STREAMS:
            found = step["streams"].get(name)
            cells += ["", "", "", ""] if found is None else _cells(found)
        lines.append(f"| {step['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cells(found: dict[str, Any]) -> list[str]:
    return [str(found["accepted"]), str(found["rejected"]), str(found["undecided"]), percent(found["gap"])]


def _short(table: str) -> str:
    """The table's head and at most 20 of its rows, evenly spread, the last among them."""
    head, rows = table.splitlines()[:2], table.splitlines()[2:]
    every = -(-len(rows) // _SHOWN_STEPS)
    shown = rows[::-1][:: max(1, every)][::-1]
    left_out = [f"({len(shown)} of {len(rows)} steps; the others are in the file)"] if len(shown) < len(rows) else []
    return "\n".join([*head, *shown, *left_out]) + "\n"
