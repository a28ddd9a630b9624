r"""OlympiadBench, the open-ended text-only English competition maths: 674 problems (arXiv 2402.14008).

    python data_prep/olympiadbench.py

Hub: Hothan/OlympiadBench, configuration OE_TO_maths_en_COMP (id, question, final_answer as a list of text, context,
modality, is_multiple_answer, unit, answer_type, error, subfield and others). Copies with image fields are read too;
problems that need an image are dropped. `error` is the absolute tolerance of a numeric answer, as "1e-1"; it becomes
the number extra_info.tolerance, null where there is none. Also read: the layout of the Qwen2.5-Math evaluation, which
is the same without modality.
"""

import argparse
import math
import re
import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.records import BOXED, Example
from data_prep.common.rows import Dropped, Row

IMAGES = tuple(f"image_{i}" for i in range(1, 10))
SEVERAL = "If there are several answers, give them all in one \\boxed{}, separated by commas."


def tolerance(row: Row) -> float | None:
    """The absolute error that is allowed; of several answers with one each, separated by commas, the smallest."""
    given = [part.strip() for part in row.scalar_or_empty("error").split(",")]
    if not all(given):
        return None
    try:
        values = [float(part) for part in given]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise row.fault("error", repr(row.get("error")[1]), "a tolerance above 0, or none")
    return min(values)


def convert(row: Row, args: argparse.Namespace) -> Example:
    if row.text_or_empty("modality") not in ("", "Text-only") or row.get(*IMAGES)[1] is not None:
        raise Dropped("needs an image")
    answers = [re.sub(r"(?<!\\)\$", "", answer).strip() for answer in row.scalars("final_answer")]
    if not answers or not all(answers):
        raise row.fault("final_answer", repr(answers), "a list of one answer or more")
    context = row.text_or_empty("context").strip()
    question = f"{context}\n\n{row.text('question').strip()}".lstrip()
    unit = row.text_or_empty("unit").strip()
    several = row.flag("is_multiple_answer")
    asked = [BOXED]
    asked += [SEVERAL] if several else []
    asked += [f"The answer is in the unit {unit}; leave the unit out."] if unit else []
    return Example(
        data_source="Hothan/OlympiadBench",
        prompt="\n\n".join([question, " ".join(asked)]),
        ability="math",
        ground_truth=", ".join(answers),
        question=question,
        id=row.scalar_or_empty("id"),
        extra={
            "is_multiple_answer": several,
            "unit": unit,
            "answer_type": row.text_or_empty("answer_type"),
            "error": row.scalar_or_empty("error"),
            "tolerance": tolerance(row),
            "subfield": row.text_or_empty("subfield"),
        },
    )


DATASET = DataSet(
    name="olympiadbench",
    hub="Hothan/OlympiadBench",
    config="OE_TO_maths_en_COMP",
    splits={"test": "train"},
    columns=(
        *("id", "question", "final_answer", "context", "modality", "is_multiple_answer", "unit", "answer_type"),
        *("error", "subfield", *IMAGES),
    ),
    extra={
        "is_multiple_answer": pa.bool_(),
        "unit": pa.string(),
        "answer_type": pa.string(),
        "error": pa.string(),
        "tolerance": pa.float64(),
        "subfield": pa.string(),
    },
    convert=convert,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
