"""One converted row and its parquet schema: verl's data_source, prompt, ability, reward_model, extra_info."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_REWARD_MODEL = pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
# split and index as in verl's own examples; id is the data set's own name of the row, question the bare question.
_EXTRA = [("split", pa.string()), ("index", pa.int64()), ("id", pa.string()), ("question", pa.string())]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A converted row, but for its split and index.

    prompt: the text of the one user message; ability: "math", "code" or "reasoning", the verifier that the row is for;
    ground_truth: what that verifier takes; id: the row's own name in the data set, empty where it has none;
    extra: the data set's own fields of extra_info, the same keys in every row; solutions: programs of the set that
    solve it, of which one has to pass, see `trial`; they are written with --keep_solutions alone.
    """

    data_source: str
    prompt: str
    ability: str
    ground_truth: str
    question: str
    id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    solutions: Sequence[str] = ()

    @property
    def size(self) -> int:
        """About how many bytes the row takes in memory."""
        return len(self.prompt) + len(self.question) + len(self.ground_truth)

    def row(self, split: str, index: int) -> dict[str, Any]:
        """The row as it is written."""
        return {
            "data_source": self.data_source,
            "prompt": [{"role": "user", "content": self.prompt}],
            "ability": self.ability,
            "reward_model": {"style": "rule", "ground_truth": self.ground_truth},
            "extra_info": {"split": split, "index": index, "id": self.id, "question": self.question, **self.extra},
        }


def schema(extra: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema of a file whose rows have the fields `extra` in extra_info."""
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", _MESSAGES),
            ("ability", pa.string()),
            ("reward_model", _REWARD_MODEL),
            ("extra_info", pa.struct(_EXTRA + list(extra.items()))),
        ]
    )
