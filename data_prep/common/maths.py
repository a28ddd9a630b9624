"""What the converters of math sets share: the reference answer, and sets that are a question and an answer."""

import argparse
import re
from collections.abc import Callable, Sequence

from data_prep.common.records import BOXED, Example
from data_prep.common.rows import Row


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{...}, \fbox{...} or \framebox{...} holds, or the word after a bare \boxed.

    Of boxes side by side a list, as the verifier reads them. None without a box, and where the last is never closed.
    """
    # Here, so that converters of other sets do without the verifier.
    from verl_cipo.rewards.math.answers import last_boxes

    found = last_boxes(text)
    return found[1].strip() or None if found else None


def boxed_answer(row: Row, *names: str) -> str:
    """The last boxed expression of a worked solution. Raises: PrepError where the field holds none."""
    solution = row.text(*names)
    answer = last_boxed(solution)
    if answer is None:
        raise row.fault(row.get(*names)[0], "no boxed answer", "a solution with its answer in \\boxed{...}")
    return answer


def whole_number(row: Row, answer: str, field: str) -> str:
    """An answer of AIME, 0 to 999, without leading zeros and a degree sign, as copies of AIME 2025 have one.

    Raises: PrepError when it is something else.
    """
    match = re.fullmatch(r"([0-9]{1,3})\s*(?:\^?\s*(?:\\circ|\{\s*\\circ\s*\})|\u00b0)?", answer)
    if match is None:
        raise row.fault(field, repr(answer), "a whole number from 0 to 999")
    return str(int(match[1]))


def without_point_zero(row: Row, answer: str, field: str) -> str:
    """27.0 as 27, whether it came as a number or as text."""
    return answer.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", answer) else answer


def question_and_answer(
    data_source: str,
    *,
    question: Sequence[str],
    answer: Sequence[str],
    solution: Sequence[str] = (),
    id: Sequence[str] = (),
    keep: Sequence[str] = (),
    check: Callable[[Row, str, str], str] | None = None,
) -> Callable[[Row, argparse.Namespace], Example]:
    """A converter for a set of questions with short answers.

    question, answer, id: names of the field, the first that is there counts; solution: fields whose last boxed
    expression is the answer where there is no answer, or a blank one; keep: fields that go into extra_info as text;
    check: (row, answer, field) -> answer, to normalize it or raise PrepError.
    """

    def convert(row: Row, args: argparse.Namespace) -> Example:
        field, value = row.get(*answer)
        blank = value is None or isinstance(value, str) and not value.strip()
        if blank and solution and row.get(*solution)[1] is not None:
            field, found = row.get(*solution)[0], boxed_answer(row, *solution)
        else:
            found = row.scalar(*answer)
            found = last_boxed(found) or found
        text = row.text(*question).strip()
        return Example(
            data_source=data_source,
            prompt=f"{text}\n\n{BOXED}",
            ability="math",
            ground_truth=check(row, found, field) if check else found,
            question=text,
            id=row.scalar_or_empty(*id) if id else "",
            extra={name: row.scalar_or_empty(name) for name in keep},
        )

    return convert
