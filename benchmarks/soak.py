"""A few hundred real steps in which everything around CIPO fails at random: what was lost, and did memory grow?

    python benchmarks/soak.py --steps 200 --json outputs/soak.json     # 19 minutes on 2 cores
    python benchmarks/soak.py --quick                                  # 24 steps, one kill: 5 minutes on 2 cores

Real verl, Ray, FSDP2 and vLLM on the demo's model, 4 prompts x 4 attempts a step, no validation. Drawn at random
(soak_faults.py): the verifier raises, hangs or returns garbage; a session raises; a correction hangs until
``correction_timeout``; a row cannot be stored; all processes get SIGKILL at some moment of a step, and the run resumes
from its last checkpoint. Then the benchmark counts:

steps     every step was logged once, in order
rows      in every step, attempts and corrections that were trained plus those that a fault is known to have cost (a
          session that raised, a row that was not stored, a correction that hung, a verifier that never answered) are
          the 4 x 4 attempts and the n_corrections of every anchor
anchors   in every step one a prompt (replay_fraction = 1)
verdicts  every score that was trained is a verdict of the verifier: 0 or 1
memory    of the last run, the proportional set sizes of all processes, MiB: medians of its second and of its last
          quarter

The exit status is 1 when a step, a row, an anchor or a verdict is missing, or memory grew by more than 5 %.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import yaml
from tqdm import tqdm

from benchmarks.common import parser
from benchmarks.json_file import write_json
from examples.tiny import prepare
from examples.tiny.task import Task, overrides
from verl_cipo.integration.cpu import launch

ROOT = Path(__file__).resolve().parents[1]
PROMPTS, ROLLOUTS = 4, 4
STEPS, KILLS = 200, 3
QUICK_STEPS, QUICK_KILLS = 24, 1
SAVE_EVERY = 4
GROWTH = 0.05
CORRECTION_TIMEOUT_S = 6.0
COUNTED = ("session raises", "row is not stored")
"""Faults that cost the row in which they are noted; the others are counted by CIPO itself, or cost nothing."""


def options(output: Path, task: Task, steps: int, schedule: str) -> list[str]:
    """verl's options of every run of the soak."""
    agents = output / "agents.yaml"
    agents.write_text(yaml.safe_dump([{"name": "faulty", "_target_": "benchmarks.soak_faults.FaultyLoop"}]))
    return [
        *overrides(task),
        "algorithm.adv_estimator=cipo",
        f"+algorithm.cipo.schedule={schedule}",
        f"+algorithm.cipo.correction_timeout={CORRECTION_TIMEOUT_S}",
        "+algorithm.cipo.val_corrections=0",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={agents}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=faulty",
        f"reward.custom_reward_function.path={ROOT / 'benchmarks' / 'soak_faults.py'}",
        f"trainer.total_training_steps={steps}",
        "trainer.total_epochs=1000",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        f"trainer.save_freq={SAVE_EVERY}",
        "trainer.max_actor_ckpt_to_keep=2",
        f"trainer.rollout_data_dir={output / 'rollouts'}",
        f"trainer.default_local_dir={output / 'checkpoints'}",
    ]


class Watch:
    """Follows a run: memory after every step, and a SIGKILL to all of its processes some time after a given one."""

    def __init__(self, kill_after: int | None, delay_s: float, bar: tqdm):
        self.memory_mib: list[float] = []
        self.steps: list[int] = []
        self._kill_after, self._delay_s, self._bar = kill_after, delay_s, bar

    def __call__(self, line: dict[str, Any]) -> None:
        self._bar.update(line["step"] - self._bar.n)
        self.steps.append(line["step"])
        self.memory_mib.append(sum(map(_pss, _family())) / 2**20)
        if line["step"] == self._kill_after:
            threading.Timer(self._delay_s, _kill_all).start()


def _family() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0


def _kill_all() -> None:
    for process in _family():
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@dataclass(frozen=True)
class Soaked:
    """What a soak did.

    killed: after which steps; run_of: step -> the run that logged it; memory_mib: of the last run, a figure a step.
    """

    killed: list[int]
    run_of: dict[int, int]
    memory_mib: list[float]


def soak(output: Path, *, steps: int, kills: int, seed: int, schedule: str) -> Soaked:
    """Run it, killed within the first half of its steps, so that the last run shows what memory does."""
    rng = random.Random(seed)
    kill_after = sorted(rng.sample(range(2, steps // 2), kills))
    run_of: dict[int, int] = {}
    task = Task(folder=output / "task", train_batch_size=PROMPTS, n=ROLLOUTS)
    prepare.prepare(task.folder, prepare.QUICK)
    env = {"PYTHONPATH": str(ROOT), "SOAK_LOG": str(output / "faults.jsonl"), "SOAK_SEED": str(seed)}
    with tqdm(total=steps, desc="steps") as bar:
        for run, kill in enumerate([*kill_after, None]):
            watch = Watch(kill, rng.uniform(0.0, 4.0), bar)
            try:
                launch.train(
                    options(output, task, steps, schedule),
                    output=output,
                    resume=output / "checkpoints",
                    on_line=watch,
                    config_args=("--config-path", "pkg://verl_cipo.config", "--config-name", "cpu"),
                    env={**env, "SOAK_RUN": str(run)},
                )
            except launch.TrainingFailed:
                if kill is None:
                    raise
            # A step that was killed is taken again by the next run.
            run_of |= dict.fromkeys(watch.steps, run)
    return Soaked(kill_after, run_of, watch.memory_mib)


def account(output: Path, soaked: Soaked, *, steps: int) -> tuple[Counter, list[str]]:
    """What was injected, by kind, and what is missing, a line each."""
    faults = [json.loads(line) for line in (output / "faults.jsonl").read_text().splitlines()]
    lines = [line for line in launch.metrics_lines(output / "metrics.jsonl") if "training/global_step" in line["data"]]
    missing = []
    if [line["step"] for line in lines] != list(range(1, steps + 1)):
        missing.append(f"steps: {[line['step'] for line in lines]} were logged")
    for line in lines:
        own = (line["step"], soaked.run_of[line["step"]])
        cost = Counter(fault["kind"] for fault in faults if (fault.get("step"), fault["run"]) == own)
        missing += _step_account(line["step"], line["data"], cost)
        dump = output / "rollouts" / f"{line['step']}.jsonl"
        scores = {json.loads(row)["score"] for row in dump.read_text().splitlines()}
        if not scores <= {0.0, 1.0}:
            missing.append(f"step {line['step']}: the scores {scores - {0.0, 1.0}} are no verdicts")
    return Counter(fault["kind"] for fault in faults), missing


def _step_account(step: int, data: dict[str, float], faults: Counter) -> list[str]:
    missing = []
    if data["cipo/anchors/total"] != PROMPTS:
        missing.append(f"step {step}: {data['cipo/anchors/total']:.0f} anchors, not {PROMPTS}")
    expected = ROLLOUTS * (PROMPTS + data["cipo/anchors/total"])
    lost = data["cipo/verifier/given_up"] + data["cipo/corrections/timed_out"] + sum(faults[kind] for kind in COUNTED)
    trained = data["cipo/rows/base"] + data["cipo/rows/correction"]
    if trained + lost != expected:
        missing.append(
            f"step {step}: {trained:.0f} rows trained and {lost:.0f} lost by a known fault, of {expected:.0f}"
        )
    return missing


def main(arguments: list[str] | None = None) -> int:
    """Run, count and print; returns the exit status."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=STEPS)
    options.add_argument("--kills", type=int, default=KILLS)
    options.add_argument("--seed", type=int, default=1, help="seed of the faults; each process draws its own")
    options.add_argument("--schedule", choices=("streaming", "barrier", "replay"), default="streaming")
    options.add_argument("--output", type=Path, default=Path("outputs/soak"), help="folder of the run; deleted first")
    args: argparse.Namespace = options.parse_args(arguments)
    steps, kills = (QUICK_STEPS, QUICK_KILLS) if args.quick else (args.steps, args.kills)
    output = args.output.resolve()
    with launch.only_run():
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        soaked = soak(output, steps=steps, kills=kills, seed=args.seed, schedule=args.schedule)
    injected, missing = account(output, soaked, steps=steps)
    memory, killed = soaked.memory_mib, soaked.killed
    quarter = len(memory) // 4
    early, late = (statistics.median(part) for part in (memory[quarter : 2 * quarter], memory[-quarter:]))
    grown = late / early - 1
    print(f"{steps} steps of {PROMPTS} prompts x {ROLLOUTS} attempts, schedule {args.schedule}")
    print("| injected | times |\n| --- | ---: |")
    for kind, times in sorted(injected.items()):
        print(f"| {kind} | {times} |")
    print(f"| SIGKILL after steps {', '.join(map(str, killed))} | {len(killed)} |")
    print(f"memory of the last run ({len(memory)} steps): {early:.0f} MiB, then {late:.0f} MiB ({grown:+.1%})")
    print("\n".join(missing) or "no step, row, anchor or verdict is missing")
    if args.json:
        figures = {"injected": dict(injected), "killed": killed, "missing": missing}
        write_json(args.json, {"steps": steps, **figures, "memory_mib": [early, late]})
    return int(bool(missing) or grown > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
