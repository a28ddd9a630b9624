"""How long one generation phase takes with each schedule of CIPO, and with GRPO.

    python benchmarks/schedule.py --quick                              # under 5 minutes on 2 cores
    python benchmarks/schedule.py --json outputs/schedule.json         # about 20 minutes
    python benchmarks/schedule.py --only simulated --law pareto --spread 0.5 --seeds 3

GRPO, GRPO with twice the rollouts, CIPO with as many corrections as attempts under the schedules barrier, streaming
and replay, and with budget=auto, the default, where nearly all of these are further attempts; from the dispatch of the
prompts to the end of the last one. All but the first generate the same number of
responses with the same lengths.

simulated: verl's and CIPO's rollout workers on an engine whose decoding is simulated, 128 prompts x 8, at 256, 512 and
1,024 concurrent sequences (generation/simulated.py, generation/engine.py). The workers' processor time is real, so the
figures differ a little from run to run, though not with the load of the machine. Seconds are the mean over seeds.
vllm_cpu: real Ray, TransferQueue and vLLM with a tiny model, the arms in turn, round by round (generation/trainer.py).
Seconds are the median over rounds; they and their ratios need a machine that does nothing else.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.generation.arms import ARMS
from benchmarks.generation.engine import Speed
from benchmarks.generation.settings import Simulated, Vllm
from benchmarks.json_file import write_json
from verl_cipo.integration.cpu import launch

CAPS = (256, 512, 1024)
CONTROL, PEER = "grpo_equal_rollouts", "barrier"


def simulate(setting: Simulated, caps: tuple[int, ...], seeds: int) -> dict[str, dict[str, list[dict]]]:
    """Cap on concurrent sequences -> arm -> a phase's figures for each seed."""
    import torch

    from benchmarks.generation.simulated import Simulation

    torch.set_num_threads(1)
    figures: dict[str, dict[str, list[dict]]] = {str(cap): {arm: [] for arm in ARMS} for cap in caps}
    for seed in range(1, seeds + 1):
        for cap in caps:
            at_cap = replace(setting, speed=replace(setting.speed, max_seqs=cap))
            # verl and transformers tell of each worker that is made.
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
                simulation = Simulation(Path(folder), at_cap, seed)
                for arm in ARMS:
                    figures[str(cap)][arm].append(asdict(simulation.run(arm)))
                    wall_s = figures[str(cap)][arm][-1]["wall_s"]
                    print(f"seed {seed}, {cap} sequences, {arm}: {wall_s:.2f} s", file=sys.stderr)
    return figures


def measure(setting: Vllm) -> dict[str, list[dict]]:
    """Arm -> the figures of its phases with vLLM."""
    from benchmarks.generation import vllm

    with tempfile.TemporaryDirectory() as folder:
        return vllm.measure(Path(folder), setting)


def unequal_work(figures: dict[str, list[dict]], where: str) -> list[str]:
    """Where the arms, but the first, did not generate as much: a lost correction would pass for speed."""
    arms, found = list(ARMS)[1:], []
    for number, phases in enumerate(zip(*(figures[arm] for arm in arms), strict=True), 1):
        done = [{key: phase[key] for key in ("requests", "rows", "tokens") if key in phase} for phase in phases]
        if any(one != done[0] for one in done):
            told = ", ".join(f"{arm} {one}" for arm, one in zip(arms, done, strict=True))
            found.append(f"{where} {number}: {told}")
    return found


def table(title: str, seconds: dict[str, list[float]], summary: dict[str, float]) -> str:
    """Seconds of each arm, their range, and ratios; ranges of ratios are over seeds or rounds, pair by pair."""
    lines = [
        f"{title:28}{'seconds':>9}{'range':>17}{'/ equal rollouts':>19}{'range':>14}{'/ barrier':>12}{'range':>14}"
    ]
    for arm, value in summary.items():
        row = f"{arm:28}{value:9.2f}{f'{min(seconds[arm]):.2f}..{max(seconds[arm]):.2f}':>17}"
        for other, width in ((CONTROL, 19), (PEER, 12)):
            ratios = [a / b for a, b in zip(seconds[arm], seconds[other], strict=True)]
            row += f"{value / summary[other]:{width}.3f}{f'{min(ratios):.2f}..{max(ratios):.2f}':>14}"
        lines.append(row)
    return "\n".join(lines)


def what_is_left(figures: dict[str, list[dict]]) -> str:
    """Where a simulated phase's time goes, mean over seeds."""
    lines = [f"{'':28}{'processor, s':>14}{'idle slots':>12}{'last 5 % of requests':>22}"]
    for arm, phases in figures.items():
        processor, idle, tail = (statistics.mean(p[key] for p in phases) for key in ("processor_s", "idle", "tail"))
        lines.append(f"{arm:28}{processor:14.1f}{idle:12.0%}{tail:22.0%}")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed; with vLLM half the prompts, 2 rounds")
    parser.add_argument("--only", choices=("simulated", "vllm"), help="leave the other one out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--seeds", type=int, help="of the simulation (default 5, quick: 1)")
    parser.add_argument("--rounds", type=int, help="with vLLM, after one that warms up (default 10, quick: 2)")
    parser.add_argument(
        "--max-attempt-tokens",
        type=int,
        metavar="N",
        help="show only the last N tokens of an attempt in its correction prompt, to see what longer prompts cost",
    )
    engine = parser.add_argument_group("simulation")
    for option, default in asdict(Speed()).items():
        if option != "max_seqs":
            engine.add_argument(
                f"--{option.replace('_', '-')}", type=float, default=default, help="default %(default)s"
            )
    defaults = Simulated()
    engine.add_argument("--law", choices=("lognormal", "pareto"), default=defaults.law, help="of the response lengths")
    engine.add_argument("--median", type=float, default=defaults.median, help="tokens (default %(default)s)")
    engine.add_argument(
        "--spread", type=float, default=defaults.spread, help="sigma, or 1 / alpha with pareto (default %(default)s)"
    )
    return parser.parse_args()


def main() -> int:
    """Measure and print the tables; returns the exit code."""
    args = options()
    for name, value in launch.CPU_ENV.items():
        os.environ.setdefault(name, value)  # before verl and torch are imported
    result: dict[str, Any] = {}
    details: dict[str, Any] = {}
    unequal: list[str] = []
    if args.only != "vllm":
        setting = Simulated(
            law=args.law,
            median=args.median,
            spread=args.spread,
            max_attempt_tokens=args.max_attempt_tokens,
            speed=Speed(step_s=args.step_s, per_sequence_s=args.per_sequence_s, prefill_s=args.prefill_s),
        )
        seeds = args.seeds or (1 if args.quick else 5)
        figures = simulate(setting, CAPS, seeds)
        details["simulated"] = {"setting": asdict(setting), "seeds": seeds, "phases": figures}
        result["simulated"] = {}
        for cap, arms in figures.items():
            unequal += unequal_work(arms, f"{cap} sequences, seed")
            seconds = {arm: [phase["wall_s"] for phase in phases] for arm, phases in arms.items()}
            result["simulated"][cap] = {arm: statistics.mean(values) for arm, values in seconds.items()}
            print(table(f"simulated, {cap} sequences", seconds, result["simulated"][cap]))
            print(what_is_left(arms), end="\n\n")
    if args.only != "simulated":
        setting = Vllm(
            rounds=args.rounds or (2 if args.quick else Vllm().rounds),
            prompts=16 if args.quick else Vllm().prompts,
            max_attempt_tokens=args.max_attempt_tokens,
        )
        phases = measure(setting)
        unequal += unequal_work(phases, "vLLM, round")
        details["vllm_cpu"] = {"setting": asdict(setting), "phases": phases}
        seconds = {arm: [phase["seconds"] for phase in timed] for arm, timed in phases.items()}
        result["vllm_cpu"] = {arm: statistics.median(values) for arm, values in seconds.items()}
        print(table(f"vLLM on the CPU, {setting.rounds} rounds", seconds, result["vllm_cpu"]))
    if args.json:
        write_json(args.json, {**result, "details": details})
    if unequal:
        print("the arms did not do the same work, so their times do not compare:", *unequal, sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
