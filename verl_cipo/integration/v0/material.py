"""What a worker of the V0 trainer is sent to make a correction prompt of: tokens, which it decodes."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from verl import DataProto

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import CorrectionPrompt, Said
from verl_cipo.integration.contexts import SessionRequest, asked_of_anchor
from verl_cipo.integration.v0.rows import SESSION, marks, response_ids


class Response(NamedTuple):
    """An attempt: its session, its tokens, and what the verifier read off it, None where it does not tell."""

    session: int
    ids: list[int]
    pred: Any


@dataclass(frozen=True)
class Material:
    """An anchor with what its correction prompt may show.

    prompt: data of its prompt: ``raw_prompt``, ``index``, and where its contexts are;
    wrong: the wrong attempts at it that could be anchors, where more than one may be shown.
    """

    prompt: Mapping[str, Any]
    anchor: Response
    wrong: Sequence[Response] = ()

    def asked(
        self, prompt: CorrectionPrompt, cipo: CIPOConfig, counts: Counter, *, n: int, step: int, validate: bool
    ) -> tuple[list[SessionRequest], str | None]:
        """``contexts.asked_of_anchor``, with the attempts beside it that the lots of seed and ``step`` draw."""
        anchor, *wrong = [Said(own.session, prompt.decode(own.ids), own.pred) for own in (self.anchor, *self.wrong)]
        others = prompt.beside(anchor, wrong, seed=cipo.seed, step=step, index=self.prompt["index"])
        how = {"n": n, "step": step, "anchor": anchor.session, "validate": validate}
        return asked_of_anchor(self.prompt, anchor.text, others, prompt, cipo, counts, **how)


def materials(
    prompts: DataProto, output: DataProto, anchors: Iterable[int], *, alone: bool, column: str | None = None
) -> list[Material]:
    """The rows ``anchors`` of a rollout, in their order.

    Args:
        prompts: what was asked, with ``session_id``; output: what came of it, row by row.
        alone: leaves out the other attempts.
        column: as in :func:`prompt_data`.
    """
    fields, noted, preds = prompts.non_tensor_batch, marks(output), output.non_tensor_batch.get("pred")

    def response(row: int) -> Response:
        return Response(int(fields[SESSION][row]), response_ids(output, row), None if preds is None else preds[row])

    wrong: dict[str, list[Response]] = {}
    for row, mark in enumerate([] if alone else noted):
        if not (mark.correct or mark.lost or mark.refusal is not None):
            wrong.setdefault(fields["uid"][row], []).append(response(row))
    return [
        Material(prompt_data(prompts, row, column), response(row), wrong.get(fields["uid"][row], ())) for row in anchors
    ]


def prompt_data(prompts: DataProto, row: int, column: str | None) -> dict[str, Any]:
    """What a worker has to know of the prompt of a row.

    Args:
        column: ``nudge.contexts``, which may be a column or in extra_info.
    """
    fields = prompts.non_tensor_batch
    of_contexts = [] if column is None else [name for name in (column, "extra_info") if name in fields]
    return {name: fields[name][row] for name in ("raw_prompt", "index", *of_contexts)}
