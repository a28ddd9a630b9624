"""How often the collapse guard raises a false alarm, and how long it takes to notice a change.

    python benchmarks/guard.py --json outputs/guard.json
    python benchmarks/guard.py --quick

Signals are drawn, not measured: groups of 8 rollouts whose pass rates differ widely, as in the demo. demo: 16 prompts,
3 wrong and 13 right anchors per step, as with rho at .8; large: 8 times as many of each. A change comes after 120 steps
without one, takes 20 steps and then stays.
"""

import argparse
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.json_file import write_json
from verl_cipo.core.steering.guard import GuardState, Signals, update_guard

SIZES = {"demo": 1, "large": 8}
STILL = {"w2c": 0.45, "c2c": 0.65, "accuracy": 0.5}
BEFORE, DURING, AFTER = 120, 20, 60
CHANGES = {
    "w->c .45 to .15, c->c .65 to .90": ("copying", {"w2c": (0.45, 0.15), "c2c": (0.65, 0.90)}),
    "w->c .45 to .25, c->c .65 to .80": ("copying", {"w2c": (0.45, 0.25), "c2c": (0.65, 0.80)}),
    "w->c .07 to .01, c->c .37 to .95": ("copying", {"w2c": (0.07, 0.01), "c2c": (0.37, 0.95)}),
    "accuracy .50 to .30": ("accuracy", {"accuracy": (0.50, 0.30)}),
    "accuracy .49 to .40": ("accuracy", {"accuracy": (0.49, 0.40)}),
}


def drawn_share(rng: random.Random, groups: int, mean: float) -> float:
    """Share of right rollouts among ``groups`` groups of 8 whose pass rates vary around ``mean``."""
    rates = [rng.betavariate(2 * mean, 2 * (1 - mean)) for _ in range(groups)]
    return sum(rng.random() < rate for rate in rates for _ in range(8)) / (8 * groups)


def drawn(rng: random.Random, w2c: float, c2c: float, accuracy: float, size: int = 1) -> Signals:
    """The signals of one step with ``size`` times the demo's prompts and anchors."""
    return Signals(
        w2c=drawn_share(rng, 3 * size, w2c),
        c2c=drawn_share(rng, 13 * size, c2c),
        accuracy=drawn_share(rng, 16 * size, accuracy),
    )


def false_alarms(size: int, *, runs: int, steps: int) -> dict[str, float]:
    """Share of runs without any change in which an alarm was raised at some step."""
    raised = {"copying": 0, "accuracy": 0}
    for seed in range(runs):
        rng, state, seen = random.Random(seed), GuardState.initial(), set()
        for _ in range(steps):
            state = update_guard(state, drawn(rng, **STILL, size=size))
            seen |= set(state.alarms)
        for name in raised:
            raised[name] += name in seen
    return {name: count / runs for name, count in raised.items()}


def delay(alarm: str, change: dict[str, tuple[float, float]], size: int, seed: int) -> int | None:
    """Steps from the start of the change to the alarm; None when it is not raised."""
    rng, state = random.Random(seed), GuardState.initial()
    for step in range(-BEFORE, DURING + AFTER):
        part = min(1.0, max(0.0, step / DURING))
        means = STILL | {name: first + part * (last - first) for name, (first, last) in change.items()}
        state = update_guard(state, drawn(rng, **means, size=size))
        if step >= 0 and alarm in state.alarms:
            return step + 1
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, under a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    args = parser.parse_args()
    runs, steps, repeats = (10, 100, 6) if args.quick else (100, 500, 60)
    figures: dict = {"runs": runs, "steps": steps, "repeats": repeats}
    print(f"| | {' | '.join(SIZES)} |\n|---|{'---|' * len(SIZES)}")
    alarms = {name: false_alarms(size, runs=runs, steps=steps) for name, size in SIZES.items()}
    figures["false_alarms"] = alarms
    cells = [f"copying {found['copying']:.0%}, accuracy {found['accuracy']:.0%}" for found in alarms.values()]
    print(f"| no change: share of {runs} runs of {steps} steps with an alarm | {' | '.join(cells)} |", flush=True)
    for title, (alarm, change) in CHANGES.items():
        cells, figures[title] = [], {}
        for name, size in SIZES.items():
            delays = [delay(alarm, change, size, seed) for seed in range(repeats)]
            noticed = [found for found in delays if found is not None]
            figures[title][name] = delays
            middle = f"median {statistics.median(noticed):g}, latest {max(noticed)}" if noticed else "never"
            cells.append(f"{middle}; {len(noticed)} of {repeats} noticed")
        print(f"| {title}: steps to `{alarm}` | {' | '.join(cells)} |", flush=True)
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
