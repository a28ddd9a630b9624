"""Which questions are the same, and which overlap with an evaluation set."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.common.rows import PrepError, Row
from data_prep.common.source import FORMATS, read_rows

# Where an evaluation file that was not made by these converters may hold its question.
QUESTION_FIELDS = ("question", "problem", "Problem", "question_content", "description", "prompt")
# Some phrases are longer than 13 words: "where m and n are relatively prime positive integers. What is m + n?"
# A run that so many different evaluation questions share tells none of them apart. Of the 1,017 questions of AIME24,
# AMC23, Minerva and OlympiadBench, what 10 or more share is such phrases, and what up to 9 share also common preambles.
STOCK_PHRASE = 10

_WORD = re.compile(r"\w+")


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts which differ in the amount of white space, case and Unicode form alone.

    Signs count, and so does where white space is: "3 + 4" and "3 - 4" have different keys, "1 11" and "11 1" too.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(plain.encode(), digest_size=16).digest()


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits; LaTeX commands count as words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


class EvaluationSets:
    """The runs of `n` words that occur in evaluation questions (GPT-3's test, n = 13: arXiv 2005.14165, appendix C).

    A question of fewer than n words is met only by one that is equal to it.
    """

    def __init__(self, questions: Iterable[str], n: int = 13):
        self.n = n
        distinct = {text_key(question): question for question in questions}
        self._short = {key for key, question in distinct.items() if len(words(question)) < n}
        runs = Counter(run for question in distinct.values() for run in set(self._runs(question)))
        self._known = {run for run, met in runs.items() if met < STOCK_PHRASE}

    def overlap(self, question: str) -> bool:
        """Whether `question` shares a run of n words with an evaluation question or is equal to a short one."""
        return text_key(question) in self._short or not self._known.isdisjoint(self._runs(question))

    def _runs(self, text: str) -> list[int]:
        found = words(text)
        return [_digest(found[i : i + self.n]) for i in range(len(found) - self.n + 1)]


def read_questions(files: Sequence[Path]) -> list[str]:
    """The questions of evaluation files: those that these converters wrote, or raw JSON, JSON lines or parquet.

    Raises: PrepError when a file is missing, or a row has none of the fields a question is looked for in.
    """
    for file in files:
        if not file.is_file() or file.suffix not in FORMATS:
            raise PrepError(f"--decontaminate {file}: expected a file ending in {', '.join(FORMATS)}")
    return [_question(row) for row in read_rows(files)]


def _question(row: Row) -> str:
    if row.get("extra_info")[1] is not None:
        return row.struct("extra_info").text("extra_info.question")
    return row.text(*QUESTION_FIELDS)


def _digest(run: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest(), "big")
