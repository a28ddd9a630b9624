"""What the arms of a comparison share: a task with its starting model, and how much is trained and sampled."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.experiment.arms import Arm
from benchmarks.experiment.products import Products, ProductsWithContexts, prepare_products
from examples.tiny import prepare
from examples.tiny.problems import Level
from examples.tiny.warmup import Warmup

TURNS = ("c2c", "c2w", "w2c", "w2w", "copies_failed")
"""What is counted of the corrections of a problem."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all arms share.

    task: problems and starting model, its seed replaced by the run's; steps: optimizer steps, one a batch; prompts: a
    step; n: attempts a prompt; samples: attempts at each held-out problem; turn_samples: how many of them are followed
    by a correction turn, which are drawn anew.
    """

    task: prepare.Settings | Products
    steps: int
    prompts: int = 16
    n: int = 8
    learning_rate: float = 1e-4
    samples: int = 32
    turn_samples: int = 8


def record(settings: Arm | Setting) -> dict[str, Any]:
    """As it stands in the files of a run."""
    return json.loads(json.dumps(asdict(settings)))  # tuples become lists, as they come back from a file


def prepared(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Data and starting model of a seed, made now or found in `folder`; returns the figures of the model."""
    if isinstance(setting.task, Products):
        return prepare_products(folder, replace(setting.task, seed=seed))
    return prepare.prepare(folder, replace(setting.task, seed=seed))


TASKS = {
    "full": Setting(
        task=prepare.Settings(
            level=Level(events=(3, 5)), val=192, warmup=Warmup(steps=500, stop_pass1=0.28, stop_w2c=0.18)
        ),
        steps=60,
    ),
    "demo": Setting(task=prepare.Settings(val=192), steps=40),
    # Most groups have no right attempt: the model has learned too little, and corrects next to nothing.
    "hard": Setting(task=Products(parts=3, shown_slip=0.35, warmup=Warmup(steps=180, rows=64)), steps=200),
    # Confident and wrong: further attempts repeat a misreading that a look at the attempt may break.
    "stuck": Setting(
        task=Products(parts=2, misread=(7, 9), held=0.95, fix=0.35, warmup=Warmup(steps=600, rows=64)), steps=500
    ),
    # The same with strategy contexts that it is taught: under one it reads more carefully, the other changes nothing.
    "stuck_contexts": Setting(
        task=ProductsWithContexts(
            parts=2,
            misread=(7, 9),
            held=0.998,
            fix=0.35,
            contexts={"Read each digit twice.": 0.8, "Begin with the first product.": 0.998},
            # With 600 it hardly tells them apart.
            warmup=Warmup(steps=800, rows=64),
        ),
        steps=300,
    ),
    # Each product slips by itself, and what is shown tells which did: checking is easier than solving.
    "checkable": Setting(
        task=Products(parts=3, slip=0.3, shown_slip=0.3, fix=0.7, warmup=Warmup(steps=1200, rows=64)), steps=100
    ),
}
"""By their names for `learning.py --tasks`."""

QUICK = Setting(
    task=prepare.Settings(
        train=64,
        val=16,
        level=prepare.QUICK.level,
        shape=prepare.QUICK.shape,
        warmup=Warmup(steps=60, rows=24, lr=1e-2, own_from=1000, look_from=60, stop_pass1=0.0, stop_w2c=0.0),
    ),
    steps=2,
    prompts=4,
    n=4,
    samples=8,
    turn_samples=2,
)
