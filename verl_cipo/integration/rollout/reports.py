"""What the rollout side reports: counts of the step and attempts of the validation, until the trainer takes them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from verl_cipo.core.anchors import Attempt
from verl_cipo.core.prompts import SKIP_REASONS
from verl_cipo.core.steering.budget import KINDS

COUNTED = dict.fromkeys(
    (
        "anchors/total",
        "anchors/correct",
        "anchors/failed",
        "anchors/medium",
        "anchors/other",
        "anchors/unreported",
        *(f"anchors/skipped/{reason}" for reason in (*SKIP_REASONS, "prompt_failed")),
        "attempts/failed_sessions",
        "corrections/failed_sessions",
        "corrections/timed_out",
        "corrections/not_asked",
        "verifier/errors",
        "verifier/given_up",
        "verifier/undecided",
        "second_verifier/errors",
    ),
    0,
)
"""Counts that are logged every step, also where nothing happened."""


class Reports:
    """Counters and records since they were last taken; of the coordinator, and of the V0 trainer's manager."""

    def __init__(self) -> None:
        self.step = Counter(COUNTED)
        """Counts and seconds, names without the ``cipo/`` prefix."""
        self._validation: list[dict[str, Any]] = []
        self._validation_counts: Counter = Counter()

    def count_anchor(self, anchor: Attempt, *, in_band: bool) -> None:
        """Count a drawn anchor; ``in_band``: its prompt is of medium difficulty."""
        self.step["anchors/total"] += 1
        self.step["anchors/correct" if anchor.correct else "anchors/failed"] += 1
        self.step["anchors/medium" if in_band else "anchors/other"] += 1

    def count_slots(self, kinds: Sequence[str], corrected: Sequence[bool]) -> None:
        """Count slots of budget=auto: kind of each, see ``core.steering.budget``, and whether it is corrected."""
        self.step["budget/slots"] += len(kinds)
        self.step["budget/corrected"] += sum(corrected)
        for kind in KINDS:
            self.step[f"budget/{kind}/slots"] += kinds.count(kind)

    def add_validation(self, records: list[dict[str, Any]], counts: Mapping[str, float]) -> None:
        """Keep validation attempts with their corrections, and counts of what is missing."""
        self._validation.extend(records)
        self._validation_counts.update(counts)

    def pop_step(self) -> dict[str, float]:
        """Counts and seconds since the last call."""
        taken, self.step = self.step, Counter(COUNTED)
        return {name: float(value) for name, value in taken.items()}

    def pop_validation(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Validation attempts with their corrections since the last call, and counts of what is missing."""
        records, self._validation = self._validation, []
        counts, self._validation_counts = self._validation_counts, Counter()
        return records, {name: float(value) for name, value in counts.items()}
