"""Which questions are the same, and which overlap with an evaluation set."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.rows import PrepError, Row
from data_prep.common.source import FORMATS, read_rows

# Where an evaluation file that was not made by these converters may hold its question.
QUESTION_FIELDS = ("question", "problem", "Problem", "question_content", "description", "prompt")
# Words of a run. Long runs miss rewording: one word in the middle of 25 leaves no run of 13.
RUN_WORDS = 4
# The share of an evaluation question that a training row has to hold to be dropped.
MIN_SHARE = 0.5
# What both have has to weigh as much as a run that one other question has: all runs of "What is the value of x?" are
# common, so it is in many questions whole and tells nothing.
MIN_WEIGHT = 1.0

# How contest problems state the form of their answer, in words as `words` gives them. Their runs count as if so many
# other questions had them: a file of few questions does not show that they are common.
_STOCK = """
can be written as frac {m} {n} where {m} and {n} are relatively prime positive integers find {m} + {n}
can be expressed as frac {m} {n} where {m} and {n} are relatively prime positive integers what is {m} + {n}
can be written in the form {m} / {n} where {m} and {n} are relatively prime positive integers compute {m} + {n}
can be expressed in the form frac {m} {n} for relatively prime positive integers {m} and {n} find {m} + {n}
is {m} / {n} where {m} and {n} are positive integers and {m} and {n} are relatively prime find {m} + {n}
is frac {m} {n} where {m} and {n} are relatively prime positive integers find the value of {m} + {n}
where {m} and {n} are positive integers and {n} is not divisible by the square of any prime find {m} + {n}
find the remainder when {n} is divided by 1000
express your answer as a common fraction
express your answer as a decimal to the nearest tenth
express your answer in simplest radical form
"""
_STOCK_QUESTIONS = 20

_WORD = re.compile(r"\w+|[-+*/^=<>!]")
# Copies of one problem draw its diagram in different ways, and some link its words to a wiki.
_LEFT_OUT = re.compile(
    r"\[asy\].*?\[/asy\]|(?<=\])\(https?://[^()\s]*(?:\([^()\s]*\)[^()\s]*)*\)", re.DOTALL | re.IGNORECASE
)


@dataclass(frozen=True)
class Question:
    """The text of an evaluation question, and the row it stands in, as "file:row"."""

    text: str
    where: str


@dataclass(frozen=True)
class Overlap:
    """An evaluation question that a training row holds, and to which share, 0 to 1."""

    question: Question
    share: float


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts which differ in the amount of white space, case and Unicode form alone.

    Signs count, and so does where white space is: "3 + 4" and "3 - 4" have different keys, "1 11" and "11 1" too.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits, and operators; LaTeX's commands are words, diagrams and links none."""
    return _WORD.findall(unicodedata.normalize("NFKC", _LEFT_OUT.sub(" ", text)).casefold())


class EvaluationSets:
    """Finds the evaluation question that a training question repeats, if only in part or in slightly other words.

    A question is the set of its runs of `n` words. How much of an evaluation question a training question holds is the
    share of its runs that both have, where a run counts 1 / (number of other questions that have it): of a phrase such
    as "where m and n are relatively prime positive integers" hardly anything is left. A question of fewer than n words,
    or of common runs alone, is met only by one that is equal to it.

    questions: those of all evaluation files; n: words of a run.
    """

    def __init__(self, questions: Iterable[Question], n: int = RUN_WORDS):
        self.n = n
        self._by_key: dict[bytes, Question] = {}
        for question in questions:
            self._by_key.setdefault(text_key(question.text), question)
        self._questions = list(self._by_key.values())
        self._met_by: dict[int, list[int]] = {}
        for number, question in enumerate(self._questions):
            for run in self._runs(question.text):
                self._met_by.setdefault(run, []).append(number)
        self._met = Counter({run: len(met_by) for run, met_by in self._met_by.items()})
        stock = [line for m, n in ("mn", "pq", "ab") for line in _STOCK.format(m=m, n=n).splitlines()]
        for run in set[int]().union(*map(self._runs, stock)) & self._met_by.keys():
            self._met[run] += _STOCK_QUESTIONS
        self._counted: set[bytes] = set()
        self._weights: list[float] | None = None

    def count(self, question: str) -> None:
        """Take note of a training question, so that runs which many have count less. Equal ones are counted once."""
        key = text_key(question)
        if key not in self._counted:
            self._counted.add(key)
            self._met.update(self._runs(question) & self._met_by.keys())
            self._weights = None

    def overlap(self, question: str) -> Overlap | None:
        """The evaluation question of which `question` holds most; None where it holds less than half of any."""
        key = text_key(question)
        if key in self._by_key:
            return Overlap(self._by_key[key], 1.0)
        weights = self._question_weights()
        itself = key in self._counted
        shared, rest = Counter(), dict[int, float]()
        for run in self._runs(question) & self._met_by.keys():
            for number in self._met_by[run]:
                shared[number] += 1 / (self._met[run] - itself)
                rest[number] = rest.get(number, weights[number]) - 1 / self._met[run]
        shares = [
            (weight / (weight + max(0.0, rest[number])), number)
            for number, weight in shared.items()
            if weight >= MIN_WEIGHT
        ]
        share, number = max(shares, default=(0.0, -1))
        return Overlap(self._questions[number], share) if share >= MIN_SHARE else None

    def _question_weights(self) -> list[float]:
        """What the runs of each evaluation question count together."""
        if self._weights is None:
            self._weights = [0.0] * len(self._questions)
            for run, met_by in self._met_by.items():
                for number in met_by:
                    self._weights[number] += 1 / self._met[run]
        return self._weights

    def _runs(self, text: str) -> set[int]:
        found = words(text)
        return {_digest(found[i : i + self.n]) for i in range(len(found) - self.n + 1)}


def read_questions(files: Sequence[Path]) -> list[Question]:
    """The questions of evaluation files: those that these converters wrote, or raw JSON, JSON lines or parquet.

    Raises: PrepError when a file is missing or without a row, or a row has none of the fields a question is looked for
    in.
    """
    for file in files:
        if not file.is_file() or file.suffix not in FORMATS:
            raise PrepError(f"--decontaminate {file}: expected a file ending in {', '.join(FORMATS)}")
    found = []
    for file in files:
        own = [Question(_question(row), row.where) for row in read_rows([file])]
        if not own:
            raise PrepError(f"--decontaminate {file}: holds no row; expected one with a question at least")
        found += own
    return found


def _question(row: Row) -> str:
    if row.get("extra_info")[1] is not None:
        return row.struct("extra_info").text("extra_info.question")
    return row.text(*QUESTION_FIELDS)


def _digest(run: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "big")
