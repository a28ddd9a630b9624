r"""CriticBench: answers of other models, to be judged or corrected (arXiv 2402.14809).

    python data_prep/criticbench.py --task critique
    python data_prep/criticbench.py --task correction

Hub: llm-agents/CriticBench, split test, 3,825 rows: id, question, question_source (GSM8K, MATH, AQuA, ...),
question_type, response, response_label (whether the response is right), answer (a list of accepted answers; for
HumanEval and MBPP the source of the tests). The fields and their types are those that the authors' evaluation code
reads (github.com/CriticBench/CriticBench, src); the data file itself was not seen.

critique: the model says whether the response is right; the ground truth is correct or wrong. The paper's metric is F1
with wrong as the positive class, so the label is in extra_info. correction: the model gets the response, not the label,
and answers the question; the ground truth is the accepted answers. extra_info has what both need.
"""

import argparse
import json
import sys
from pathlib import Path

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_prep.common.convert import DataSet, main
from data_prep.common.python_tests import assert_tests, helpers
from data_prep.common.records import BOXED, Example
from data_prep.common.rows import Dropped, Row

MATHS = ("GSM8K", "MATH", "AQuA", "TabMWP")
CODE = ("MBPP", "HumanEval")
VERDICT = "Is the response right? Check it step by step, then put your verdict, correct or wrong, within \\boxed{}."
PROGRAM = "Put the complete Python code in one fenced ```python block."
CORRECT = "The response may or may not be right. Check it step by step, then answer the question."


def convert(row: Row, args: argparse.Namespace) -> Example:
    source = row.text("question_source")
    kept = args.sources or MATHS
    if source not in kept and "all" not in kept:
        raise Dropped("source not asked for (--sources)")
    question, response = row.text("question").strip(), row.text_or_empty("response").strip()
    label = row.flag("response_label")
    shown = f"{question}\n\nHere is a response to this:\n<response>\n{response}\n</response>"
    answers = row.scalars("answer")
    if not answers:
        raise row.fault("answer", "an empty list", "a list of one answer or more")
    if args.task == "critique":
        prompt, ability, truth = f"{shown}\n\n{VERDICT}", "math", "correct" if label else "wrong"
    elif source in CODE:
        prompt, ability = f"{shown}\n\n{CORRECT} {PROGRAM}", "code"
        tests = assert_tests(Row({"answer[0]": answers[0]}, row.where), "answer[0]")
        if "check" in tests and (setup := helpers(question, tests["check"], tests["entry_point"])):
            tests["setup"] = setup
        truth = json.dumps(tests)
    else:
        prompt, ability = f"{shown}\n\n{CORRECT} {BOXED}", "math"
        truth = answers[0] if len(answers) == 1 else json.dumps(answers, ensure_ascii=False)
    return Example(
        data_source="llm-agents/CriticBench",
        prompt=prompt,
        ability=ability,
        ground_truth=truth,
        question=question,
        id=row.scalar("id"),
        extra={
            "task": args.task,
            "source": source,
            "type": row.text_or_empty("question_type"),
            "response": response,
            "response_correct": label,
            "answers": answers,
        },
    )


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=("critique", "correction"), required=True, help="what the prompt asks for")
    parser.add_argument(
        "--sources",
        nargs="+",
        action="extend",
        metavar="SOURCE",
        help=f"values of question_source to keep, or all (default: the mathematical ones, {' '.join(MATHS)})",
    )


DATASET = DataSet(
    name="criticbench_{task}",
    hub="llm-agents/CriticBench",
    splits={"test": "test"},
    columns=("id", "question", "question_source", "question_type", "response", "response_label", "answer"),
    extra={
        "task": pa.string(),
        "source": pa.string(),
        "type": pa.string(),
        "response": pa.string(),
        "response_correct": pa.bool_(),
        "answers": pa.list_(pa.string()),
    },
    tried=True,
    convert=convert,
    options=options,
)

if __name__ == "__main__":
    sys.exit(main(DATASET, __doc__))
