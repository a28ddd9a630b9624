"""Word problems in GSM8K's format, with worked solutions and with wrong ones that look like a model's own.

A problem is a start and a few events that change a count:

    Tom has 7 apples. He buys 5 more. He gives 3 to Ann. How many apples does Tom have now?

    7 + 5 = 12.
    12 - 3 = 9.
    #### 9

Two problems count as the same when their skeletons are: the operations and numbers, whatever the people and words.
`held_out` splits the space of skeletons by a hash, so no held-out chain of operations is ever met in training.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

HELD_OUT_EVERY = 8  # one skeleton in eight is held out

PEOPLE = {"Tom": "He", "Ann": "She", "Sam": "He", "Mia": "She", "Ben": "He", "Eva": "She", "Max": "He", "Zoe": "She"}
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
PACKS = ("bags", "boxes")
# One kind of event a line, with its wordings. `start` comes first; a `_packs` event is n packs of b things.
WORDINGS = {
    "start": ("{name} has {b} {things}.",),
    "start_packs": ("{name} has {n} {packs} with {b} {things} each.",),
    "add": ("{he} buys {b} more.", "{he} finds {b} more.", "{other} gives {name} {b} more."),
    "sub": ("{he} gives {b} to {other}.", "{he} loses {b}.", "{he} sells {b}."),
    "mul": ("Then {name} has {b} times as many.", "The number grows {b} times."),
    "add_packs": ("{he} buys {n} {packs} with {b} {things} each.",),
    "sub_packs": ("{he} sells {n} {packs} with {b} {things} each.",),
}
QUESTION = "How many {things} does {name} have now?"
SIGN = {"add": "+", "sub": "-", "mul": "*"}
MISREAD = {"add": "sub", "sub": "add", "mul": "add", "add_packs": "sub_packs", "sub_packs": "add_packs"}
SLIPS = (-20, -10, -10, -2, -1, -1, 1, 1, 2, 10, 10, 20)

Event = tuple[str, int, int]  # kind, n packs (0: none), b things


@dataclass(frozen=True, kw_only=True)
class Level:
    """How hard the problems are; ranges include both ends."""

    events: tuple[int, int] = (2, 4)  # events after the start; a start in packs takes the place of one
    start: int = 20  # the start is 3 to this
    operand: int = 9  # events add, take or pack 2 to this many
    packs: int = 5  # packs are 2 to this many
    value: int = 99  # no number is larger


@dataclass(frozen=True)
class Step:
    """One line of a solution, `left sign right = result`; `result` is wrong where a corrupted solution slips."""

    left: int
    sign: str
    right: int
    result: int


@dataclass(frozen=True)
class Problem:
    """A question, what happens in it, and the steps that solve it."""

    question: str
    events: tuple[Event, ...]
    steps: tuple[Step, ...]
    level: Level

    @property
    def answer(self) -> int:
        return self.steps[-1].result

    @property
    def solution(self) -> str:
        return render(self.steps)

    @property
    def skeleton(self) -> str:
        """Operations and numbers alone, such as "start 0 7|add 0 5|sub 0 3"."""
        return skeleton(self.events)


def skeleton(events: tuple[Event, ...]) -> str:
    return "|".join(f"{kind} {n} {b}" for kind, n, b in events)


def held_out(skeleton: str) -> bool:
    """Whether a skeleton belongs to the held-out side; the same on every machine and for every seed."""
    return hashlib.sha256(skeleton.encode()).digest()[0] % HELD_OUT_EVERY == 0


def render(steps: tuple[Step, ...]) -> str:
    """The text of a solution: a line a step, then GSM8K's last line."""
    return "\n".join([*(f"{s.left} {s.sign} {s.right} = {s.result}." for s in steps), f"#### {steps[-1].result}"])


def work_out(events: tuple[Event, ...], value_max: int, slips: dict[int, int] | None = None) -> tuple[Step, ...] | None:
    """The steps that solve `events`, or None where a number leaves 0..value_max.

    slips: step index -> error added to that step's result; the later steps go on from the wrong number.
    """
    steps: list[Step] = []

    def calculate(left: int, sign: str, right: int) -> int:
        exact = left + right if sign == "+" else left - right if sign == "-" else left * right
        steps.append(Step(left, sign, right, exact + (slips or {}).get(len(steps), 0)))
        return steps[-1].result

    value = 0
    for kind, n, b in events:
        amount = calculate(n, "*", b) if n else b
        value = amount if kind.startswith("start") else calculate(value, SIGN[kind.removesuffix("_packs")], amount)
        if not (0 <= amount <= value_max and 0 <= value <= value_max):
            return None
    return tuple(steps) or None


def draw_events(rng: random.Random, level: Level) -> tuple[Event, ...]:
    in_packs = rng.random() < 0.25
    kinds = ["start_packs" if in_packs else "start"]
    kinds += rng.choices(tuple(MISREAD), weights=(4, 4, 1, 1, 1), k=rng.randint(*level.events) - in_packs)
    events = []
    for kind in kinds:
        if kind.endswith("_packs"):
            events.append((kind, rng.randint(2, level.packs), rng.randint(2, level.operand)))
        elif kind == "start":
            events.append((kind, 0, rng.randint(3, level.start)))
        else:
            events.append((kind, 0, rng.randint(2, 3 if kind == "mul" else level.operand)))
    return tuple(events)


def sample_problem(rng: random.Random, level: Level, *, from_held_out: bool = False) -> Problem:
    """One problem of the training side of the split, or of the held-out side."""
    while True:
        events = draw_events(rng, level)
        steps = work_out(events, level.value)
        if steps is not None and len(steps) <= level.events[1] + 1 and held_out(skeleton(events)) == from_held_out:
            return Problem(phrase(rng, events), events, steps, level)


def phrase(rng: random.Random, events: tuple[Event, ...]) -> str:
    """The question in words: random people, things and wordings."""
    name, other = rng.sample(tuple(PEOPLE), 2)
    words = {"name": name, "other": other, "he": PEOPLE[name], "things": rng.choice(THINGS)}
    told = [rng.choice(WORDINGS[kind]).format(n=n, b=b, packs=rng.choice(PACKS), **words) for kind, n, b in events]
    return " ".join([*told, QUESTION.format(**words)])


def corrupt(rng: random.Random, problem: Problem) -> str:
    """A wrong solution in the right format: one or two slips (8 in 10), a misread operation, or an event left out.

    What follows the error goes on from it, as a model's own errors do. The final answer is always wrong.
    """
    while True:
        events, slips = list(problem.events), {}
        kind = rng.choices(("slip", "misread", "drop"), weights=(8, 1, 1))[0]
        at = rng.randrange(1, len(events)) if len(events) > 1 else 0
        if kind == "slip" or not at:
            slips = {rng.randrange(len(problem.steps)): rng.choice(SLIPS) for _ in range(rng.choice((1, 1, 1, 2)))}
        elif kind == "misread":
            events[at] = (MISREAD[events[at][0]], *events[at][1:])
        else:
            del events[at]
        steps = work_out(tuple(events), problem.level.value, slips)
        if steps is not None and steps[-1].result != problem.answer:
            return render(steps)
