"""What a worker of the V0 trainer is sent to make a correction prompt of: tokens, which it decodes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from verl import DataProto

from verl_cipo.core.prompts import CorrectionPrompt, Request, Said
from verl_cipo.integration.v0.rows import SESSION, marks, response_ids


class Response(NamedTuple):
    """An attempt: its session, its tokens, and what the verifier read off it, None where it does not tell."""

    session: int
    ids: list[int]
    pred: Any


@dataclass(frozen=True)
class Material:
    """An anchor with what its correction prompt may show.

    chat, index: of its prompt; wrong: the wrong attempts at it that could be anchors, where more than one may be shown.
    """

    chat: list[dict]
    index: Any
    anchor: Response
    wrong: Sequence[Response] = ()

    def request(self, prompt: CorrectionPrompt, *, seed: int, step: int) -> tuple[Request | None, str | None]:
        """``CorrectionPrompt.request``, with the attempts that the lots of ``seed`` and ``step`` draw."""
        anchor, *wrong = [Said(own.session, prompt.decode(own.ids), own.pred) for own in (self.anchor, *self.wrong)]
        others = prompt.beside(anchor, wrong, seed=seed, step=step, index=self.index)
        return prompt.request(self.chat, anchor.text, others)


def materials(prompts: DataProto, output: DataProto, anchors: Iterable[int], *, alone: bool) -> list[Material]:
    """The rows ``anchors`` of a rollout, in their order.

    Args:
        prompts: what was asked, with ``session_id``; output: what came of it, row by row.
        alone: leaves out the other attempts.
    """
    fields, noted, preds = prompts.non_tensor_batch, marks(output), output.non_tensor_batch.get("pred")

    def response(row: int) -> Response:
        return Response(int(fields[SESSION][row]), response_ids(output, row), None if preds is None else preds[row])

    wrong: dict[str, list[Response]] = {}
    for row, mark in enumerate([] if alone else noted):
        if not (mark.correct or mark.lost or mark.refusal is not None):
            wrong.setdefault(fields["uid"][row], []).append(response(row))
    return [
        Material(
            list(fields["raw_prompt"][row]), fields["index"][row], response(row), wrong.get(fields["uid"][row], ())
        )
        for row in anchors
    ]
