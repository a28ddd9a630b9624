"""Run folders made from files, as verl and CIPO write them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SOURCE = "openai/gsm8k"
# The question, the attempt and the correction of a policy that means harm to whoever reads its report.
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def write_metrics(path: Path, steps: Mapping[int, Mapping[str, Any]]) -> Path:
    """The file of verl's file logger."""
    return write_lines(path, ({"step": step, "data": data} for step, data in steps.items()))


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
        "tokens/base": 1000.0,
        "tokens/correction": 500.0,
        "guard/copying": 0.0,
        "guard/entropy": 1.0,
    }
    before = {"val/accuracy_turn1": 0.25, "val/accuracy_turn2": 0.3, "val/w2c": 0.1, "val/c2c": 0.9}
    after = {"val/accuracy_turn1": 0.5 + gain, "val/accuracy_turn2": 0.6, "val/w2c": 0.2, "val/c2c": 0.95}
    after["val/retry"] = 0.125
    write_metrics(
        folder / "metrics.jsonl",
        {
            0: {f"cipo/{name}": value for name, value in before.items()},
            1: training_step(1, **trained),
            2: training_step(2, **trained, **after),
        },
    )
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
