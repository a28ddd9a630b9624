"""Run folders made from files, as verl and CIPO write them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SOURCE = "openai/gsm8k"
# The question, the attempt and the correction of a policy that means harm to whoever reads its report.
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


VERLS = {
    "actor/entropy": 0.5,
    "actor/kl_loss": 0.001,
    "actor/ppo_kl": 0.0001,
    "actor/grad_norm": 2.0,
    "critic/score/mean": 0.35,
    "response_length/mean": 75.0,
    "response_length/max": 100.0,
    "response_length/clip_ratio": 0.15,
    "prompt_length/mean": 25.0,
    "perf/total_num_tokens": 2000.0,
    "timing_s/gen": 4.0,
    "timing_s/old_log_prob": 1.0,
    "timing_s/ref": 1.5,
    "timing_s/update_actor": 3.0,
    "timing_s/step": 10.0,
}
"""Figures that verl's trainers log for a training step."""


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def write_metrics(path: Path, steps: Mapping[int, Mapping[str, Any]]) -> Path:
    """The file of verl's file logger."""
    return write_lines(path, ({"step": step, "data": data} for step, data in steps.items()))


def write_settings(folder: Path, config: Mapping[str, Any], *given: str) -> Path:
    """What Hydra writes with hydra.run.dir=FOLDER/hydra; JSON is YAML. config: by dotted keys."""
    nested: dict[str, Any] = {}
    for key, value in config.items():
        *sections, name = key.split(".")
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    place = folder / "hydra" / ".hydra"
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.yaml").write_text(json.dumps(nested))
    (place / "overrides.yaml").write_text(json.dumps(given))
    return folder


def training_step(step: int, **figures: float) -> dict[str, float]:
    return {"training/global_step": step} | {f"cipo/{name}": value for name, value in figures.items()}


def second_turn(question: str, attempt: str, right: bool, *corrections: tuple[str, bool]) -> dict[str, Any]:
    """A line of validation/corrections/{step}.jsonl: corrections are their text and whether they are right."""
    said = [
        {"correction": text, "correct": correct, "score": float(correct), "copied": text == attempt}
        for text, correct in corrections
    ]
    return {
        "uid": question,
        "session": 0,
        "question": question,
        "attempt": attempt,
        "anchor_correct": right,
        "gts": "42",
        "data_source": SOURCE,
        "corrections": said,
        "step": 2,
    }


def validation_row(problem: int, session: int, right: bool) -> dict[str, Any]:
    """A line of validation/{step}.jsonl."""
    return {
        "input": f"user\nproblem {problem}\nassistant\n",
        "output": "#### 42",
        "gts": str(problem),
        "score": float(right),
        "acc": float(right),
        "uid": f"problem-{problem}_{session}_0",
    }


def write_run(folder: Path, *, gain: float = 0.0) -> Path:
    """A whole run of two steps: metrics, validation dumps at steps 0 and 2, second turns at step 2.

    pass@1 goes from .25 to .5 + gain in the metrics; in the dumps, of 2 problems x 4 samples, 1 + 1 and then
    1 + 3 are right.
    """
    trained = {
        "accuracy/base": 0.3,
        "accuracy/correction": 0.4,
        "transitions/c2c": 0.8,
        "transitions/c2w": 0.2,
        "transitions/w2c": 0.1,
        "transitions/w2w": 0.9,
        "retention": 0.8,
        "rho": 0.3,
        "copy_rate": 0.5,
        "copy_rate_failed": 0.25,
        "rows/base": 10.0,
        "rows/correction": 10.0,
        "tokens/base": 1000.0,
        "tokens/correction": 500.0,
        "truncated/base": 0.1,
        "truncated/correction": 0.2,
        "seconds/rollout": 3.0,
        "seconds/correction": 1.0,
        "guard/copying": 0.0,
        "guard/entropy": 1.0,
    }
    before = {"val/accuracy_turn1": 0.25, "val/accuracy_turn2": 0.3, "val/w2c": 0.1, "val/c2c": 0.9}
    after = {"val/accuracy_turn1": 0.5 + gain, "val/accuracy_turn2": 0.6, "val/w2c": 0.2, "val/c2c": 0.95}
    before |= {"val/c2w": 0.1}
    after |= {"val/c2w": 0.05, "val/retry": 0.125, "val/copy_rate_failed": 0.375}
    write_metrics(
        folder / "metrics.jsonl",
        {
            0: {f"cipo/{name}": value for name, value in before.items()},
            1: training_step(1, **trained) | VERLS,
            2: training_step(2, **trained, **after) | VERLS,
        },
    )
    write_settings(folder, {"algorithm.adv_estimator": "cipo", "algorithm.cipo.lambda_corr": 0.5})
    for step, right in ((0, (1, 1)), (2, (1, 3))):
        write_lines(
            folder / f"validation/{step}.jsonl",
            [validation_row(problem, session, session < right[problem]) for problem in (0, 1) for session in range(4)],
        )
    write_lines(
        folder / "validation/corrections/2.jsonl",
        [
            *(second_turn(f"repaired {i}", "6 * 7 = 41", False, (f"6 * 7 = 41\nno: 4{i}", True)) for i in range(7)),
            second_turn(HOSTILE, HOSTILE, True, (HOSTILE, True)),
            second_turn("spoiled", "42", True, ("43", False)),
            second_turn("hopeless", "1", False, ("2", False), ("1", False)),
        ],
    )
    return folder
