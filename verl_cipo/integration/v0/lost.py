"""The row of an attempt that failed: verl's V0 trainer takes as many rows as it asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import torch

from verl_cipo.core.rows import MARK, Mark


@dataclass(frozen=True)
class LostAttempt:
    """An attempt that failed, in the place of its output."""

    columns: dict[str, Any]
    """What tells its row from others: ``uid``, ``session_id``, ``index``, ``raw_prompt``."""

    def row(self, rolled: Sequence[Any], *, pad_token_id: int) -> Any:
        """An empty row: no response, no reward. The prompt is that of another row, of the same prompt if there is one.

        Args:
            rolled: outputs of the worker that did not fail; not empty.
        """
        like = next((output for output in rolled if output.extra_fields["uid"] == self.columns["uid"]), rolled[0])
        attention = like.attention_mask.clone()
        attention[:, like.prompt_ids.shape[-1] :] = 0
        info = like.extra_fields.get("reward_extra_info", {})
        blank = {key: type(value)() if isinstance(value, Number | str) else None for key, value in info.items()}
        mark = Mark(correct=False, lost=True, text="", score=0.0)
        return like.model_copy(
            update={
                "response_ids": torch.full_like(like.response_ids, pad_token_id),
                "response_mask": torch.zeros_like(like.response_mask),
                "attention_mask": attention,
                "reward_score": 0.0,
                "extra_fields": {
                    **like.extra_fields,
                    **self.columns,
                    "reward_extra_info": blank,
                    MARK: mark.to_mapping(),
                },
            }
        )
