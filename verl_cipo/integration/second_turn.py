"""The correction turn of validation: metrics beside verl's own accuracy, and a dump beside its dumps."""

import json
import os
from typing import Any

from verl_cipo.core.transitions import Transitions


def second_turn_metrics(records: list[dict[str, Any]], counts: dict[str, float]) -> dict[str, float]:
    """``cipo/val/*`` over all benchmarks of the validation set.

    Args:
        records: one a correction, with ``anchor_correct``, ``correct`` and ``copied``.
        counts: attempts skipped by reason (``anchors/skipped/*``) and ``corrections/failed_sessions``.
    """
    n = len(records)
    missing = {
        "cipo/val/rows": float(n),
        "cipo/val/skipped": sum(value for name, value in counts.items() if name.startswith("anchors/skipped/")),
        "cipo/val/failed_sessions": counts.get("corrections/failed_sessions", 0.0),
    }
    if not records:
        return missing
    transitions = Transitions.from_arrays(
        [record["anchor_correct"] for record in records], [record["correct"] for record in records]
    )
    rates = {"c2c": transitions.c2c, "w2c": transitions.w2c}
    rates["c2w"] = None if transitions.c2c is None else 1 - transitions.c2c
    rates["w2w"] = None if transitions.w2c is None else 1 - transitions.w2c
    return missing | {
        "cipo/val/accuracy_turn1": sum(record["anchor_correct"] for record in records) / n,
        "cipo/val/accuracy_turn2": sum(record["correct"] for record in records) / n,
        "cipo/val/copy_rate": sum(record["copied"] for record in records) / n,
        **{f"cipo/val/{name}": rate for name, rate in rates.items() if rate is not None},
    }


def dump_second_turns(records: list[dict[str, Any]], directory: str, step: int) -> None:
    """Write ``{directory}/corrections/{step}.jsonl``, a line a correction."""
    folder = os.path.join(directory, "corrections")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{step}.jsonl"), "w") as file:
        for record in records:
            file.write(json.dumps({**record, "step": step}, ensure_ascii=False, default=str) + "\n")
