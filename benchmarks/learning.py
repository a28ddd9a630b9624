"""Does CIPO learn more than GRPO? The reference experiment, with the controls and ablations.

    python benchmarks/learning.py --quick                       # two small runs that check the path: under 5 minutes
    python benchmarks/learning.py --seeds 11 12 13              # the main arms; a run takes 10 to 15 minutes alone
    python benchmarks/learning.py --seeds 11 --arms all         # and the ablations
    python benchmarks/learning.py --seeds 11 12 13 --json benchmarks/results/learning.json
    python benchmarks/learning.py --tasks demo stuck --seeds 11 # the same on other tasks
    python benchmarks/learning.py --engine replica --tasks stuck --seeds 1 2   # screening, without verl

Each run makes a model, trains it through `verl.trainer.main_ppo` (real Ray, FSDP2 and vLLM) and samples held-out
problems with `python -m verl_cipo.evaluate`; with --engine replica it is trained and sampled in plain PyTorch by
benchmarks/experiment/replica.py. Each run is kept below --output: a second call does only what is missing, and prints
the tables of all runs. With --json, runs that were published in the folder next to FILE with the same name count as
done. Start no other verl run on this machine meanwhile: docs/troubleshooting.md, "A run stands still after some steps".
Settings and arms were chosen on seeds below 10; report on others.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.experiment import figures, pictures
from benchmarks.experiment.arms import ARMS, CONTROL, DEFAULT, MAIN
from benchmarks.experiment.runs import MADE_WITH, RESULT, run
from benchmarks.experiment.setting import QUICK, TASKS, Setting, record
from benchmarks.json_file import write_json
from verl_cipo.evaluation.output import plain
from verl_cipo.integration.cpu import launch

OWN_TERM = "grpo_own"
"""The control that has the term by which corrections reach the first attempt, on its own rare right attempts."""
COLUMNS = ("pass@1", "pass@8", "pass@32", "w2c", "w2c_over_retry", "c2w", "turn2", "copy_rate_failed")


def main() -> int:
    """Run what is missing and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/learning"), help="where the runs are kept")
    parser.add_argument("--arms", nargs="+", default=["main"], metavar="ARM", help=f"main, all, or {', '.join(ARMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[11], help="default 11")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["full"], help="default full, the reference")
    parser.add_argument("--engine", choices=["verl", "replica"], default="verl", help="what trains, default verl")
    parser.add_argument("--quick", action="store_true", help="a small setting that checks the path, not learning")
    parser.add_argument(
        "--json", type=Path, metavar="FILE.json", help="write the summary there, and raw metrics to the folder FILE/"
    )
    parser.add_argument(
        "--plots",
        type=Path,
        metavar="FOLDER",
        help="write pictures of the arms there; with several --tasks of the default in each",
    )
    args = parser.parse_args()
    names = {"main": [arm.name for arm in MAIN], "all": list(ARMS)}
    wanted = [CONTROL, DEFAULT] if args.quick else [n for name in args.arms for n in names.get(name, [name])]
    if unknown := [name for name in wanted if name not in ARMS]:
        parser.error(f"--arms {' '.join(unknown)}: expected main, all, {', '.join(ARMS)}")
    tasks = {"quick": QUICK} if args.quick else {name: TASKS[name] for name in args.tasks}
    output = args.output.resolve() / ("" if args.engine == "verl" else args.engine)
    if args.json:
        for name, setting in tasks.items():
            restore(raw_folder(args.json) / key_of(args.json, name, args.engine), output / name, setting)
    # Seed by seed, so that what is done compares all arms.
    for seed in args.seeds:
        for task, setting in tasks.items():
            done = [run(ARMS[a], seed, setting, output / task, engine=args.engine) for a in dict.fromkeys(wanted)]
            print(f"{task}, seed {seed}: {len(done)} runs", flush=True)
    summaries, curves = {}, {}
    for task in tasks:
        found = read(output / task)
        summaries[task] = summarise(found)
        print(f"\n{task}\n\n{table(summaries[task])}")
        if args.plots and len(tasks) > 1:
            both = found.get(CONTROL, {}).keys() & found.get(DEFAULT, {}).keys()
            pair = {name: {seed: found[name][seed] for seed in both} for name in (CONTROL, DEFAULT) if both}
            curves |= {task: training(pair, output / task)} if pair else {}
        elif args.plots:
            end = "" if task == "full" else f"-{task}"
            pictures.plot_differences(summaries[task]["minus_control"], args.plots / f"learning{end}.png")
            pictures.plot_training(training(found, output / task), args.plots / f"learning-training{end}.png")
    if curves:
        of_default = {task: one["minus_control"].get(DEFAULT, {}) for task, one in summaries.items()}
        pictures.plot_differences(of_default, args.plots / "learning-tasks.png")
        pictures.plot_tasks(curves, args.plots / "learning-tasks-training.png")
    if args.json:
        write(args.json, summaries, output, engine=args.engine)
    return 0


def read(output: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The finished runs below `output`: results by arm and seed, the arms in the order of their declaration.

    Arms that are declared no more come last.
    """
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in ARMS}
    for file in sorted(output.glob(f"*/{RESULT}")):
        result = json.loads(file.read_text())
        found.setdefault(result["made_with"]["arm"]["name"], {})[result["made_with"]["seed"]] = result
    return {name: runs for name, runs in found.items() if runs}


def algo(runs: dict[int, dict[str, Any]]) -> str | None:
    """The `Arm.algo` that an arm's runs were made with."""
    return next(iter(runs.values()))["made_with"]["arm"]["algo"]


def summarise(found: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """What goes into learning.json: the figures of each arm, and each arm minus the control."""
    control = found.get(CONTROL, {})
    setting = next(iter(next(iter(found.values())).values()))["made_with"]["setting"]
    commits = {result["commit"] for runs in found.values() for result in runs.values()} - {""}
    differences = {name: figures.difference(runs, control) for name, runs in found.items() if name != CONTROL}
    same_n, ours = found.get("grpo", {}), [name for name in found if algo(found[name]) == "cipo"]
    return {
        "commits": sorted(commits),
        "setting": setting,
        "seeds": sorted(control),
        "arms": {name: figures.summary_of(runs) for name, runs in found.items()},
        "minus_control": differences,
        "minus_grpo": {name: figures.difference(found[name], same_n) for name in ours},
        f"minus_{OWN_TERM}": {name: figures.difference(found[name], found.get(OWN_TERM, {})) for name in ours},
        "pass@1_by_start_minus_control": {
            name: figures.difference_by_start(runs, control, found.get("base", {}))
            for name, runs in found.items()
            if name not in ("base", CONTROL)
        },
    }


def table(summary: dict[str, Any]) -> str:
    """The arms, then their differences to the control with 95 % intervals over the seeds, in percent; Markdown."""
    columns = [name for name in COLUMNS if all(name in arm for arm in summary["arms"].values())]
    lines = [
        "| arm | seeds | " + " | ".join(columns) + " | generated tokens | training, s |",
        "|" + "---|" * (len(columns) + 4),
    ]
    for name, arm in summary["arms"].items():
        cells = [f"{100 * arm[column]['mean']:.1f}" for column in columns]
        cells += [f"{arm['tokens']['mean']:,.0f}", f"{arm['train_s']['mean']:.0f}"]
        lines.append(f"| {name} | {len(arm['seeds'])} | " + " | ".join(cells) + " |")
    lines += _differences(f"minus {CONTROL}", {c: c for c in columns}, summary["minus_control"])
    for other in ("grpo", OWN_TERM):
        if any(summary[f"minus_{other}"].values()):
            lines += _differences(f"minus {other}", {c: c for c in columns}, summary[f"minus_{other}"])
    by_start = summary["pass@1_by_start_minus_control"]
    kinds = [kind for kind in figures.STARTS if all(kind in one for one in by_start.values() if one)]
    titles = {kind: f"{kind}: solved {_share(*figures.STARTS[kind])} at the start" for kind in kinds}
    if any(by_start.values()):
        lines += _differences(f"pass@1 minus {CONTROL}", titles, by_start)
    return "\n".join(lines)


def _differences(corner: str, titles: dict[str, str], arms: dict[str, Any]) -> list[str]:
    """A table of the differences in `arms`; titles: the figures to show and what stands above each."""
    lines = ["", f"| {corner} | seeds | " + " | ".join(titles.values()) + " |", "|" + "---|" * (len(titles) + 2)]
    for name, one in arms.items():
        if one:
            cells = [_difference(one[figure]) for figure in titles]
            lines.append(f"| {name} | {len(one['seeds'])} | " + " | ".join(cells) + " |")
    return lines


def _share(above: float, most: float) -> str:
    return f"up to {100 * most:g} %" if above < 0 else f"{100 * above:g} to {100 * most:g} %"


def _difference(figure: dict[str, Any]) -> str:
    interval = f" [{100 * figure['ci95'][0]:+.1f}, {100 * figure['ci95'][1]:+.1f}]" if figure["ci95"] else ""
    return f"{100 * figure['diff']:+.1f}{interval}"


def training(found: dict[str, dict[int, dict[str, Any]]], output: Path) -> dict[str, list[list[dict[str, float]]]]:
    """What verl logged at each step of the trained arms that have the most seeds, by arm and seed."""
    most = max(len(runs) for runs in found.values())
    names = [name for name, runs in found.items() if algo(runs) and len(runs) == most]
    return {
        name: [
            [line["data"] for line in launch.metrics_lines(output / f"{name}_seed{seed}" / "metrics.jsonl")]
            for seed in sorted(found[name])
        ]
        for name in names
    }


def written(file: Path) -> dict[str, Any]:
    """The tasks of a summary that was written; none where there is no such file."""
    return json.loads(file.read_text())["tasks"] if file.exists() else {}


def key_of(file: Path, task: str, engine: str) -> str:
    """Where a task stands in the summary `file`: under its name, or beside what another engine trained there."""
    before = written(file)
    return f"{task}_{engine}" if task in before and before[task]["engine"] != engine else task


def raw_folder(file: Path) -> Path:
    """Where the raw metrics lie that belong to a summary."""
    return file.with_suffix("")


def write(file: Path, summaries: dict[str, Any], output: Path, *, engine: str) -> None:
    """The summaries by task, beside those of other tasks that the file has; and of each run metrics and result.

    They lie in the folder of the file's name, one for each task, the result as the last line.
    """
    for task in summaries:
        raw = raw_folder(file) / key_of(file, task, engine)
        raw.mkdir(parents=True, exist_ok=True)
        for result in sorted((output / task).glob(f"*/{RESULT}")):
            metrics = result.parent / "metrics.jsonl"
            lines = metrics.read_bytes() if metrics.exists() else b""
            # No time in the header: the same runs give the same bytes.
            with (
                open(raw / f"{result.parent.name}.jsonl.gz", "wb") as target,
                gzip.GzipFile("", "wb", 9, target, 0) as packed,
            ):
                packed.write(lines + result.read_bytes())
    tasks = {key_of(file, task, engine): {"engine": engine, **one} for task, one in plain(summaries).items()}
    write_json(file, {"default_arm": DEFAULT, "tasks": written(file) | tasks})


def restore(raw: Path, output: Path, setting: Setting) -> None:
    """Take the runs of `setting` that :func:`write` published into `output`, but for those that are there already."""
    for file in sorted(raw.glob("*.jsonl.gz")):
        folder = output / file.name.removesuffix(".jsonl.gz")
        *metrics, result = gzip.decompress(file.read_bytes()).decode().splitlines(keepends=True)
        made_with = json.loads(result)["made_with"]
        if made_with["setting"] != record(setting) or (folder / RESULT).exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("".join(metrics))
        (folder / MADE_WITH).write_text(json.dumps(made_with) + "\n")
        (folder / RESULT).write_text(result)


if __name__ == "__main__":
    sys.exit(main())
