"""What a step costs: CIPO's arms beside GRPO with as many responses, on verl's trainer with the demo's task and model.

    python benchmarks/step_cost.py --json benchmarks/results/step_cost.json    # 8 arms, a start of verl each
    python benchmarks/step_cost.py --rounds 3 --arms cipo                      # one arm and the control, in turn
    python benchmarks/step_cost.py --arms cipo actor_rollout_ref.actor.use_dynamic_bsz=false ...   # options for verl
    python benchmarks/step_cost.py --model     # the arithmetic, and its check against the counts of published runs

An arm is a run of --steps steps; the first two are left out, and a figure is the median over the others. In a round all
arms run one after another, the control first, and ratios are taken within a round. Runs are kept below --output, what
is there is not run again, and the tables are of all that is there. Seconds need a machine that does nothing else;
processor seconds, of all processes of the run, are the mean over the same steps, and other work changes them less.

trained: tokens of prompts and responses, which go through the log-probabilities and the update. driver: seconds of
CIPO's own code in verl's driver. predicted: the trained tokens by benchmarks/cost/model.py, from the control's lengths.
"""

import argparse
import json
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks.cost import measured
from benchmarks.cost.model import CHECKED, Lengths, View, cipo, forward_flops, grpo, shown
from benchmarks.experiment.arms import ARMS, CONTROL, Arm
from benchmarks.experiment.setting import TASKS, Setting, prepared
from benchmarks.json_file import write_json
from examples.tiny.prepare import make_tokenizer
from examples.tiny.task import Task, overrides
from verl_cipo.core.prompts import TEMPLATES
from verl_cipo.integration.cpu import launch

WARM = 2
"""Steps that are left out: engines and caches warm up, and schedule=replay has no anchors in the first."""
DEFAULT_ARMS = ("grpo", "cipo", "cipo_barrier", "cipo_replay", "auto", "auto_replay", "balanced")
FURTHER_ARMS = {
    "auto_replay": Arm(
        name="auto_replay",
        what="CIPO, budget=auto, schedule=replay",
        algo="cipo",
        options=("+algorithm.cipo.preset=stream", "+algorithm.cipo.budget=auto", "+algorithm.cipo.schedule=replay"),
    )
}
RATIOS = (
    *("generated", "trained", "generation_s", "log_prob_s", "update_s", "rest_s", "step_s"),
    *("training_cpu_s", "engine_cpu_s", "cpu_s"),
)
PUBLISHED, PUBLISHED_TASKS = Path(__file__).resolve().parent / "results" / "learning", ("full", "demo")
MODELS = {"7B": {"parameters": 7.6e9, "layers": 28, "hidden": 3584}}
"""For the work of attention; Qwen2.5-7B's."""
QUESTION, FRAME = 150, 60
VIEWS: dict[str, tuple[View, float]] = {"whole": ("whole", 0.0), "no_thinking, .8 thinking": ("no_thinking", 0.8)}
"""Name -> view, and the share of an answer that is in thinking blocks."""


def main() -> int:
    """Run what is missing and print the tables; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/step_cost"), help="where the runs are kept")
    arms = {**ARMS, **FURTHER_ARMS}
    parser.add_argument("--arms", nargs="+", default=DEFAULT_ARMS, metavar="ARM", help=f"of {', '.join(arms)}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=WARM + 6, help=f"of a run, more than {WARM}")
    parser.add_argument("--model", action="store_true", help="print what the arithmetic says and run nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args, options = parser.parse_known_args()
    frame = measured.frame_tokens(make_tokenizer(TEMPLATES["math"]))
    if args.model:
        print(f"{model_table()}\n\n{published_table(frame)}")
        return 0
    named = [name for name in args.arms if "=" not in name]
    options += [name for name in args.arms if "=" in name]
    if unknown := [name for name in named if name not in arms or arms[name].algo is None]:
        parser.error(f"--arms {' '.join(unknown)}: expected of {', '.join(arms)}, without base")
    if args.steps <= WARM:
        parser.error(f"--steps {args.steps}: more than {WARM}")
    # Ended from outside, a run must still end the processes it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    setting, output = TASKS["demo"], args.output.resolve()
    task = output / "task"
    prepared(setting, 1, task)
    for number in range(1, args.rounds + 1):
        for name in dict.fromkeys((CONTROL, *named)):
            folder = output / f"round{number}" / name
            figures = run(arms[name], setting, task, folder, steps=args.steps, options=options)
            print(f"round {number}, {name}: {figures['step_s']:.2f} s a step", file=sys.stderr)
    rounds = read(output, list(arms))
    figures = summary(rounds, setting, frame=frame)
    print(table(figures))
    if args.json:
        write_json(args.json, {"options": options, "steps": args.steps, "arms": figures, "rounds": rounds})
    return 0


def run(arm: Arm, setting: Setting, task: Path, folder: Path, *, steps: int, options: Sequence[str]) -> dict[str, Any]:
    """The median figures of a run, made now or read from `folder`.

    Raises:
        ValueError: the folder holds a run with other options.
        TrainingFailed: verl ended with an error.
    """
    record = folder / "figures.json"
    made_with = {"steps": steps, "options": [*arm.options, *options]}
    if record.exists():
        found = json.loads(record.read_text())
        if found["made_with"] != made_with:
            raise ValueError(f"{folder} holds a run made with {found['made_with']}, not {made_with}: remove it")
        return found["figures"]
    processor = measured.ProcessorTime()
    n = setting.n * arm.rollouts
    launch.train(
        [
            *overrides(Task(folder=task, train_batch_size=setting.prompts, n=n)),
            f"algorithm.adv_estimator={arm.algo}",
            f"actor_rollout_ref.actor.optim.lr={setting.learning_rate}",
            f"trainer.total_training_steps={steps}",
            "trainer.total_epochs=1000",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            "trainer.save_freq=-1",
            *made_with["options"],
        ],
        output=folder,
        on_line=processor,
    )
    lines = [line["data"] for line in launch.metrics_lines(folder / "metrics.jsonl") if line["step"] > WARM]
    figures = measured.median([measured.of_step(data, rows=setting.prompts * n) for data in lines])
    figures |= processor.a_step(WARM)
    write_json(record, {"made_with": made_with, "figures": figures})
    return figures


def read(output: Path, order: Sequence[str]) -> list[dict[str, measured.Figures]]:
    """The figures of all runs in `output`, by round and arm, the control first and the others in `order`."""
    rounds = []
    for folder in sorted(output.glob("round*"), key=lambda folder: int(folder.name.removeprefix("round"))):
        found = {file.parent.name: json.loads(file.read_text())["figures"] for file in folder.glob("*/figures.json")}
        rounds.append({name: found[name] for name in dict.fromkeys((CONTROL, *order)) if name in found})
    return rounds


def summary(rounds: Sequence[Mapping[str, Mapping[str, float]]], setting: Setting, *, frame: float) -> dict[str, Any]:
    """For each arm the figures of the first round, and its ratios to the control; for arms that only sample, also what
    the model predicts.
    """
    found = {}
    for name, figures in rounds[0].items():
        found[name] = {
            "first_round": dict(figures),
            "over_control": {ratio: measured.over_control(rounds, name, CONTROL, ratio) for ratio in RATIOS},
        }
        if figures["corrections"] and not figures["extra"]:
            shape = {"n": setting.n, "prompts": setting.prompts, "corrections": figures["corrections"]}
            found[name]["predicted"] = measured.predicted(rounds[0][CONTROL], frame=frame, **shape)
    return found


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: tokens and seconds of the first round, and ratios to the control."""
    lines = [
        "| arm | generated | trained | generation, s | log-probs, s | update, s | rest, s | step, s | driver, s |",
        "|" + "---|" * 9,
    ]
    for name, arm in figures.items():
        first = arm["first_round"]
        cells = [f"{first[key]:,.0f}" for key in ("generated", "trained")]
        cells += [f"{first[key]:.2f}" for key in ("generation_s", "log_prob_s", "update_s", "rest_s", "step_s")]
        lines.append(f"| {name} | {' | '.join(cells)} | {first['driver_s']:.3f} ({first['driver_share']:.1%}) |")
    lines += [
        "",
        f"| over {CONTROL} | " + " | ".join(RATIOS) + " | predicted trained |",
        "|" + "---|" * (2 + len(RATIOS)),
    ]
    for name, arm in figures.items():
        cells = [_ratio(arm["over_control"][ratio]) for ratio in RATIOS]
        told = f"{arm['predicted']['trained']:.3f}" if "predicted" in arm else ""
        lines.append(f"| {name} | {' | '.join(cells)} | {told} |")
    return "\n".join(lines)


def _ratio(found: Mapping[str, float]) -> str:
    spread = f" ({found['low']:.2f} to {found['high']:.2f})" if found["low"] < found["high"] else ""
    return f"{found['mean']:.3f}{spread}"


def model_table() -> str:
    """Markdown: CIPO over GRPO with as many responses, for answers of some lengths, views and shares of corrections."""
    name, shape = next(iter(MODELS.items()))
    lines = [
        "| answer | view | share of corrections | trained | work of a pass, " + name + " | trained, prompts shared |",
        "|" + "---|" * 6,
    ]
    for answer in (512, 2048, 4096, 16384):
        for told, (view, thinking) in VIEWS.items():
            for share in (1.0, 0.25, 0.125):
                part = shown(answer, view, thinking=thinking)
                lengths = Lengths(question=QUESTION, answer=answer, shown=part, frame=FRAME, correction=answer)
                control, ours = grpo(lengths, 16), cipo(lengths, 8, corrections=8, share=share)
                ratio = ours.over(control)
                work = forward_flops(ours, **shape) / forward_flops(control, **shape)
                cells = f"{ratio['trained']:.2f} | {work:.2f} | {ratio['distinct']:.2f}"
                lines.append(f"| {answer:,} | {told} | {share:g} | {cells} |")
    return "\n".join(lines)


def published_table(frame: float) -> str:
    """Markdown: tokens of CIPO's arms over those of the control of their seed in the published runs of `learning.py`,
    counted and predicted; means over steps and seeds.
    """
    lines = [f"| task | over {CONTROL} | seeds | generated | trained | predicted trained |", "|" + "---|" * 6]
    for task in PUBLISHED_TASKS:
        setting = TASKS[task]
        shape = {"n": setting.n, "prompts": setting.prompts, "frame": frame}
        runs = measured.published(PUBLISHED / task, prompts=setting.prompts, n=setting.n)
        for name, of_seed in runs.items():
            pairs = [{name: of_seed[seed], CONTROL: runs[CONTROL][seed]} for seed in of_seed if seed in runs[CONTROL]]
            if not pairs or not pairs[0][name]["corrections"] or pairs[0][name]["extra"]:
                continue
            cells = [measured.over_control(pairs, name, CONTROL, counted)["mean"] for counted in CHECKED]
            told = [measured.predicted(p[CONTROL], corrections=p[name]["corrections"], **shape) for p in pairs]
            cells.append(statistics.mean(prediction["trained"] for prediction in told))
            lines.append(f"| {task} | {name} | {len(pairs)} | {' | '.join(f'{cell:.3f}' for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
