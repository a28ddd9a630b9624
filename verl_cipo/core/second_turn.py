"""The correction turn of validation: metrics beside verl's own accuracy, and a dump beside its dumps."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from verl_cipo.core.transitions import Transitions, retried


def attempt_record(
    prompt: Mapping[str, Any], *, session: int, text: str, correct: bool, corrections: list[dict[str, Any]]
) -> dict[str, Any]:
    """An attempt of the validation with its corrections, as the dump holds it.

    Args:
        prompt: its row of the data set, with ``uid`` and ``raw_prompt``.
        corrections: ``correction`` (its text), ``correct``, ``score`` and ``copied`` of each.
    """
    return {
        "uid": prompt["uid"],
        "session": session,
        "question": prompt["raw_prompt"][-1]["content"],
        "attempt": text,
        "anchor_correct": correct,
        "gts": (prompt.get("reward_model") or {}).get("ground_truth"),
        "data_source": prompt.get("data_source"),
        "corrections": corrections,
    }


def problem_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """What tells problems apart: prompt and ground truth, whatever the uids.

    Data is repeated to draw several attempts at each problem, and verl gives each repetition a uid of its own.

    Args:
        row: of a dump, with `gts`, and with `input` or, as :func:`attempt_record` has it, `question`.
    """
    prompt = row["input"] if "input" in row else row["question"]
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)
    return text, json.dumps(row.get("gts"), default=str)


def second_turn_metrics(
    records: list[dict[str, Any]], counts: dict[str, float], *, sampled: bool = True
) -> dict[str, float]:
    """``cipo/val/*`` over the validation set, and where it has several data sources for each: ``cipo/val/{source}/*``.

    Args:
        records: one an attempt: ``question`` and ``gts``, ``data_source``, ``anchor_correct``, and ``corrections`` with
            ``correct`` and ``copied`` each. An attempt without corrections (its prompt did not fit, or its sessions
            failed) keeps its verdict in turn 2.
        counts: attempts skipped by reason (``anchors/skipped/*``), ``attempts/failed_sessions``,
            ``corrections/failed_sessions`` and ``verifier/*``.
        sampled: False where the attempts were drawn greedily: then there is no ``retry``.
    """
    metrics = _rates(records, sampled=sampled) | {
        "skipped": sum(value for name, value in counts.items() if name.startswith("anchors/skipped/")),
        "failed_sessions": counts.get("corrections/failed_sessions", 0.0),
        "failed_attempts": counts.get("attempts/failed_sessions", 0.0),
        "verifier_errors": counts.get("verifier/errors", 0.0),
        "verifier_given_up": counts.get("verifier/given_up", 0.0),
    }
    sources: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        sources.setdefault(str(record.get("data_source")), []).append(record)
    if len(sources) > 1:
        for source, own in sources.items():
            metrics |= {f"{source}/{name}": value for name, value in _rates(own, sampled=sampled).items()}
    return {f"cipo/val/{name}": value for name, value in metrics.items()}


def _rates(records: list[dict[str, Any]], *, sampled: bool) -> dict[str, float]:
    """What follows from the attempts and their corrections; a mean over nothing is left out."""
    turns = [(record["anchor_correct"], correction) for record in records for correction in record["corrections"]]
    metrics = {"rows": float(len(turns))}
    if records:
        first = [float(record["anchor_correct"]) for record in records]
        second = [
            sum(turn["correct"] for turn in record["corrections"]) / len(record["corrections"])
            if record["corrections"]
            else float(record["anchor_correct"])
            for record in records
        ]
        metrics["accuracy_turn1"] = sum(first) / len(first)
        metrics["accuracy_turn2"] = sum(second) / len(second)
    if turns:
        metrics["copy_rate"] = sum(turn["copied"] for _, turn in turns) / len(turns)
        metrics |= Transitions.from_arrays(
            [correct for correct, _ in turns], [turn["correct"] for _, turn in turns]
        ).rates()
        # Greedy attempts are all the same and say nothing of a further one.
        if sampled and (retry := _retry(records)) is not None:
            metrics["retry"] = retry
    return metrics


def _retry(records: list[dict[str, Any]]) -> float | None:
    """w2c as further attempts at the plain prompt would have it, over the problems with several; None without one."""
    problems: dict[tuple[str, str], np.ndarray] = {}  # of each: attempts, right ones, corrections of wrong ones
    for record in records:
        right = bool(record["anchor_correct"])
        counts = problems.setdefault(problem_of(record), np.zeros(3, dtype=int))
        counts += [1, right, 0 if right else len(record["corrections"])]
    several = np.array([counts for counts in problems.values() if counts[0] > 1]).reshape(-1, 3)
    attempts, right, corrections = several.T
    return float(np.average(retried(right, attempts), weights=corrections)) if corrections.any() else None


def dump_second_turns(records: list[dict[str, Any]], directory: str, step: int, *, temperature: float) -> None:
    """Write ``{directory}/corrections/{step}.jsonl``, a line an attempt with its corrections and its temperature."""
    folder = os.path.join(directory, "corrections")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{step}.jsonl"), "w") as file:
        for record in records:
            line = {**record, "temperature": temperature, "step": step}
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
