"""Which converted rows are kept: no duplicates, nothing of the evaluation sets, a sample."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator

from data_prep.common.overlap import EvaluationSets, text_key
from data_prep.common.records import Example
from data_prep.common.rows import Dropped


class Filter:
    """De-duplication and decontamination of a training split; remembers 24 bytes for each different prompt."""

    def __init__(self, evaluation: EvaluationSets | None):
        self._evaluation = evaluation
        self._answers: dict[bytes, bytes] = {}

    def check(self, example: Example) -> None:
        """Raises: Dropped when the example is a duplicate or repeats an evaluation question."""
        key = text_key(example.prompt)
        answer = hashlib.blake2b(example.ground_truth.encode(), digest_size=8).digest()
        known = self._answers.setdefault(key, answer)
        if known is not answer:
            raise Dropped("duplicate" if known == answer else "duplicate with another answer")
        if self._evaluation is not None and (found := self._evaluation.overlap(example.question)):
            file = found.question.where.rpartition(":")[0]
            raise Dropped(f"repeats a question of {file}", f"{found.share:.0%} of {found.question.where}")


def sample(examples: Iterable[Example], size: int, seed: int) -> Iterator[Example]:
    """The `size` examples with the smallest hash of seed and prompt, in the order in which they came.

    The draw is the same however the rows are spread over files. Holds `size` examples in memory.
    """
    heap: list[tuple[int, int, Example]] = []
    for position, example in enumerate(examples):
        lot = hashlib.blake2b(f"{seed} {example.prompt}".encode(), digest_size=16).digest()
        # Negative, so that the largest lot, and of equal ones the last row, is the heap's first to go.
        entry = (-int.from_bytes(lot, "big"), -position, example)
        if len(heap) < size:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    for _, _, example in sorted(heap, key=lambda entry: -entry[1]):
        yield example
