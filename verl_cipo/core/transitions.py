"""What corrections do: how they change the verdict, whether they copy, and the second turn of a validation.

c->c, c->w, w->c, w->w: c (correct) is right, w is wrong. w->c falling while c->c rises is the sign of the copying
collapse: the policy repeats what it is shown.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from verl_cipo.core.contents import last_question, named_media
from verl_cipo.core.draws import lot


@dataclass(frozen=True)
class Transitions:
    """Counts of corrections by verdict on (anchor, correction): c is correct, w is wrong."""

    cc: int
    cw: int
    wc: int
    ww: int

    @classmethod
    def from_arrays(cls, anchor_correct: ArrayLike, correct: ArrayLike) -> "Transitions":
        """Count; both are bool of shape (N,), one entry per correction."""
        anchor, result = np.asarray(anchor_correct, dtype=bool), np.asarray(correct, dtype=bool)
        if anchor.shape != result.shape or anchor.ndim != 1:
            raise ValueError(f"shapes {anchor.shape} and {result.shape}: expected one shape (N,)")
        return cls(
            cc=int((anchor & result).sum()),
            cw=int((anchor & ~result).sum()),
            wc=int((~anchor & result).sum()),
            ww=int((~anchor & ~result).sum()),
        )

    @property
    def c2c(self) -> float | None:
        """Share of corrections of right anchors that stay right; None without such an anchor."""
        return self.cc / (self.cc + self.cw) if self.cc + self.cw else None

    @property
    def w2c(self) -> float | None:
        """Share of corrections of wrong anchors that become right; None without such an anchor."""
        return self.wc / (self.wc + self.ww) if self.wc + self.ww else None

    @property
    def retention(self) -> float | None:
        """What steers rho (core.steering.rho): c2c."""
        return self.c2c

    def rates(self) -> dict[str, float]:
        """c2c, c2w, w2c, w2w given the kind of anchor; the rates of a kind without an anchor are left out."""
        rates = {}
        if self.c2c is not None:
            rates.update(c2c=self.c2c, c2w=1.0 - self.c2c)
        if self.w2c is not None:
            rates.update(w2c=self.w2c, w2w=1.0 - self.w2c)
        return rates


def is_copy(attempt: str, correction: str, *, cut: bool = False) -> bool:
    """Whether the correction repeats the attempt, up to white space.

    cut: `attempt` is the end of a longer text, and may begin inside a word: it is held against as much of the end of
    the correction.
    """
    shown, answer = attempt.split(), correction.split()
    if cut and shown:
        answer = answer[-len(shown) :]
        if answer and answer[0].endswith(shown[0]):
            answer[0] = shown[0]
    return shown == answer


def retried(right: ArrayLike, attempts: ArrayLike) -> np.ndarray:
    """Of each problem, what a further attempt in place of a correction of one of its wrong attempts would score.

    That is the share of right ones among the other attempts, c / (n - 1). A correction of a wrong attempt is to be held
    against it, since a policy that does not look at the attempt does as well. Averaged over corrections of wrong
    attempts it is free of bias, however many a problem has; for a problem without one it has no meaning, and may be
    above 1. It is biased where problems were chosen by their c, as the anchors of training are.

    Args:
        right: (P,) int, right attempts of each problem, sampled independently.
        attempts: (P,) int, all its attempts, at least 2.

    Raises:
        ValueError: a problem has fewer than 2 attempts.
    """
    right, attempts = np.asarray(right), np.asarray(attempts)
    if (attempts < 2).any():
        raise ValueError(f"a problem with {attempts.min()} attempts: what a further one brings takes at least 2")
    return right / (attempts - 1)


def correction_record(
    text: str, *, correct: bool, score: float | None, copied: bool, second: bool | None = None
) -> dict[str, Any]:
    """A correction as `attempt_record` holds it."""
    return {"correction": text, "correct": correct, "score": score, "copied": copied, "second": second}


def attempt_record(
    prompt: Mapping[str, Any],
    *,
    session: int,
    text: str,
    correct: bool,
    score: float,
    corrections: list[dict[str, Any]],
    second: bool | None = None,
) -> dict[str, Any]:
    """An attempt of the validation with its corrections, as the dump holds it.

    Args:
        prompt: its row of the data set, with ``uid`` and ``raw_prompt``, whose images and the like are left out: the
            row's ``index`` tells which they are.
        score: the verifier's.
        corrections: records of :func:`correction_record`.
        second: the second verifier's verdict, None where it was not asked or gave none.
    """
    return {
        "uid": prompt["uid"],
        "session": session,
        **_asked(prompt["raw_prompt"], prompt.get("index")),
        "attempt": text,
        "anchor_correct": correct,
        "score": score,
        "second": second,
        "gts": (prompt.get("reward_model") or {}).get("ground_truth"),
        "data_source": prompt.get("data_source"),
        "corrections": corrections,
    }


def _asked(chat: Sequence[Mapping[str, Any]], index: Any) -> dict[str, Any]:
    """`question`: what the last user message says; `chat`: what tells the chat apart, where it has other messages."""
    asked = last_question(chat)
    question = {"question": named_media(chat[-1]["content"] if asked is None else asked[1], index)}
    if len(chat) == 1:
        return question
    said = [[message.get("role"), named_media(message.get("content"), index)] for message in chat]
    return question | {"chat": lot(json.dumps(said, default=str)).hex()}


def problem_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """What tells problems apart: prompt and ground truth, whatever the uids.

    Data is repeated to draw several attempts at each problem, and verl gives each repetition a uid of its own.

    Args:
        row: of a dump, with `gts`, and with `input` or, as :func:`attempt_record` has it, `question` and maybe `chat`.
    """
    other = "" if "input" in row else row.get("chat", "")
    return _text(row) + other, json.dumps(row.get("gts"), default=str)


def _text(row: Mapping[str, Any]) -> str:
    prompt = row["input"] if "input" in row else row["question"]
    return prompt if isinstance(prompt, str) else json.dumps(prompt, default=str)


def second_turn_metrics(
    records: list[dict[str, Any]], counts: dict[str, float], *, sampled: bool = True, corrected: bool = True
) -> dict[str, float]:
    """``cipo/val/*`` over the validation set, and where it has several data sources for each: ``cipo/val/{source}/*``.

    Args:
        records: one an attempt: ``question`` and ``gts``, ``data_source``, ``anchor_correct``, and ``corrections`` with
            ``correct`` and ``copied`` each. An attempt without corrections (its prompt did not fit, or its sessions
            failed) keeps its verdict in turn 2. ``second`` of an attempt, where it was judged twice, gives the hacking
            gap.
        counts: attempts skipped by reason (``anchors/skipped/*``), ``attempts/failed_sessions``,
            ``corrections/failed_sessions`` and ``verifier/*``.
        sampled: False where the attempts were drawn greedily: then there is no ``retry``.
        corrected: False where there was no second turn: then there is no ``accuracy_turn2``.
    """
    how = {"sampled": sampled, "corrected": corrected}
    metrics = _rates(records, **how) | {
        "skipped": sum(value for name, value in counts.items() if name.startswith("anchors/skipped/")),
        "failed_sessions": counts.get("corrections/failed_sessions", 0.0),
        "failed_attempts": counts.get("attempts/failed_sessions", 0.0),
        "verifier_errors": counts.get("verifier/errors", 0.0),
        "verifier_given_up": counts.get("verifier/given_up", 0.0),
        "second_verifier_errors": counts.get("second_verifier/errors", 0.0),
    }
    sources: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        sources.setdefault(str(record.get("data_source")), []).append(record)
    if len(sources) > 1:
        for source, own in sources.items():
            metrics |= {f"{source}/{name}": value for name, value in _rates(own, **how).items()}
    return {f"cipo/val/{name}": value for name, value in metrics.items()}


def _rates(records: list[dict[str, Any]], *, sampled: bool, corrected: bool) -> dict[str, float]:
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
        if corrected:
            metrics["accuracy_turn2"] = sum(second) / len(second)
    twice = [record for record in records if record.get("second") is not None]
    if twice:
        metrics["hacking_gap"] = sum(record["anchor_correct"] - record["second"] for record in twice) / len(twice)
    if turns:
        metrics["copy_rate"] = sum(turn["copied"] for _, turn in turns) / len(turns)
        if of_wrong := [turn["copied"] for correct, turn in turns if not correct]:
            metrics["copy_rate_failed"] = sum(of_wrong) / len(of_wrong)
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


def generations_table(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What ``trainer.log_val_generations`` draws rows from: an attempt each, with its corrections beneath it.

    Args:
        records: of :func:`attempt_record`, in any order.

    Returns:
        three columns, a row an attempt: ``inputs`` the questions, ``outputs`` the attempts, each followed by its
        corrections under a line with the verdicts, ``scores`` those of the attempts.
    """
    rows = [(_text(record), record["session"], record) for record in records]
    rows.sort(key=lambda row: row[:2])
    return {
        "inputs": [question for question, *_ in rows],
        "outputs": ["\n\n".join((record["attempt"], *_beneath(record))) for *_, record in rows],
        "scores": [record["score"] for *_, record in rows],
    }


def _beneath(record: Mapping[str, Any]) -> list[str]:
    words = {True: "right", False: "wrong"}
    first = words[bool(record["anchor_correct"])]
    return [
        f"--- correction, {first} -> {words[bool(turn['correct'])]}, score {turn['score']}:\n\n{turn['correction']}"
        for turn in record["corrections"]
    ] or [f"--- {first}, not corrected"]
