"""The rollout workers of the V0 trainer: verl's, which mark each row with what it is.

:class:`CIPOAgentLoopWorkerV0` overrides

* ``_run_agent_loop``: marks each row with what it is, and lets a session that fails cost nothing but its own row,
* ``_compute_score``: asks a verifier that failed again, and the second verifier beside it,
* ``_postprocess``: leaves failed corrections out, and puts empty rows in the place of failed attempts, which the
  trainer drops before it trains.
"""

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verl import DataProto
from verl.experimental.agent_loop import AgentLoopOutput, AgentLoopWorker

from verl_cipo.core.draws import origin
from verl_cipo.core.keys import GroupName, RowKey
from verl_cipo.core.prompts import CorrectionPrompt
from verl_cipo.core.rows import MARK, Mark
from verl_cipo.core.verdict import verdict
from verl_cipo.integration.contexts import Contexts, SessionRequest, contexts_of
from verl_cipo.integration.rendering import agent_loop_prompt
from verl_cipo.integration.rollout.cancelling import EndsRequests
from verl_cipo.integration.rollout.groups import NoRowsError, asked_again, lost_alone, read_attempts
from verl_cipo.integration.rollout.second_verifier import SecondVerifier
from verl_cipo.integration.rollout.seeds import seeded
from verl_cipo.integration.rollout.verify import verify
from verl_cipo.integration.settings import cipo_config
from verl_cipo.integration.v0.lost import LostAttempt
from verl_cipo.integration.v0.material import Material
from verl_cipo.integration.v0.rows import NOTED, SESSION, unpadded, unpadded_prompt
from verl_cipo.integration.v0.second_dispatch import ANCHOR, FURTHER

logger = logging.getLogger("verl_cipo")

SECOND = "__cipo_second__"
"""Field of an output: the second verifier's verdict, until the row is marked."""


class CIPOAgentLoopWorkerV0(EndsRequests, AgentLoopWorker):
    """verl's worker of the V0 trainer, which knows corrections from attempts."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._cipo = cipo_config(self.config)
        self._prompt = agent_loop_prompt(self, self._cipo)
        self._second = SecondVerifier.of(self._cipo, self.tokenizer)
        self._counts: Counter = Counter()

    async def draw_contexts(self, prompts: Sequence[Mapping[str, Any]], *, n: int, step: int) -> list[Contexts]:
        """Which of the ``n`` attempts at each prompt are made under a context."""
        what = (self._prompt, self._cipo, self._counts)
        return [contexts_of(prompt, *what, sessions=n, step=step) for prompt in prompts]

    async def build_prompts(
        self, anchors: Sequence[Material], *, n: int, step: int, validate: bool
    ) -> list[tuple[list[SessionRequest], str | None]]:
        """What each of the ``n`` corrections of each attempt is asked, or the reason why there are none."""
        how = {"n": n, "step": step, "validate": validate}
        return [anchor.asked(self._prompt_of(validate), self._cipo, self._counts, **how) for anchor in anchors]

    def _prompt_of(self, validate: bool) -> CorrectionPrompt:
        return self._prompt.in_validation if validate else self._prompt

    async def pop_counts(self) -> Counter:
        """Faults since the last call."""
        counts, self._counts = self._counts, Counter()
        return counts

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        session, anchor, noted = kwargs.pop(SESSION), kwargs.pop(ANCHOR, None), kwargs.pop(NOTED, {})
        uid = kwargs["uid"]
        sampling_params = seeded(
            sampling_params,
            trajectory,
            self.config.actor_rollout_ref.rollout,
            index=kwargs["index"],
            anchor=GroupName.parse(uid).anchor,
            session=session,
        )
        run = super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        validate = trajectory["validate"]
        columns = {"uid": uid, SESSION: session, "index": kwargs["index"]}
        name = RowKey(uid, session).rollout
        timeout_s = self._cipo.correction_timeout
        if anchor is None or anchor == FURTHER:
            further = anchor == FURTHER
            try:
                output = await (asyncio.wait_for(run, timeout_s) if further else run)
                prompt = {**kwargs, "raw_prompt": noted.get("question", kwargs["raw_prompt"])}
                mark = await asyncio.to_thread(self._mark_of_attempt, output, prompt, validate=validate)
                mark = replace(mark, further=further, **noted)
            except Exception:
                self._counts["attempts/failed_sessions"] += 1
                logger.exception("%sattempt %s failed; its row is missing", "further " if further else "", name)
                return None if further else LostAttempt({**columns, "raw_prompt": kwargs["raw_prompt"]})
        else:
            mark = None
            with lost_alone(name, timeout_s=timeout_s, counts=self._counts):
                output = await asyncio.wait_for(run, timeout_s)
                mark = await asyncio.to_thread(self._mark_of_correction, output, kwargs, anchor, validate=validate)
            if mark is None:
                return None
        output.extra_fields |= columns | {MARK: mark.to_mapping()}
        return output

    def _verdict(self, output: Any, prompt: Mapping[str, Any]) -> bool:
        extra = output.extra_fields.get("reward_extra_info")
        return verdict(output.reward_score, extra, self._cipo.threshold(prompt.get("data_source")))

    def _mark_of_attempt(self, output: Any, prompt: dict[str, Any], *, validate: bool) -> Mark:
        """What the row is, and why no correction prompt can be made of it, where none can; ``output`` is padded."""
        mark = Mark(
            correct=self._verdict(output, prompt),
            origin=origin(prompt.get("data_source"), prompt["raw_prompt"]),
            second=output.extra_fields.pop(SECOND, None),
        )
        response = unpadded(output.response_ids[0], output.attention_mask[0])
        if self._cipo.val_corrections > 0 if validate else self._cipo.rolls_out:
            (text,), (refusal,) = read_attempts(self._prompt_of(validate), prompt["raw_prompt"], [response])
            mark = replace(mark, refusal=refusal)
        elif validate and self._cipo.reports_validation:
            text = self._prompt.decode(response)
        else:
            return mark
        return replace(mark, text=text, score=float(output.reward_score)) if validate else mark

    def _mark_of_correction(
        self, output: Any, prompt: dict[str, Any], anchor: dict[str, Any], *, validate: bool
    ) -> Mark:
        """What the row is; ``output`` is padded."""
        text = self._prompt.decode(unpadded(output.response_ids[0], output.attention_mask[0]))
        if asked_again(unpadded_prompt(output.prompt_ids[0], output.attention_mask[0]), anchor["prompt_ids"]):
            self._counts["corrections/not_asked"] += 1
            logger.error("a correction asked the plain prompt again: its agent loop ignores raw_prompt")
        return Mark(
            correct=self._verdict(output, prompt),
            anchor=GroupName.parse(prompt["uid"]).anchor,
            anchor_correct=anchor["correct"],
            copied=self._prompt.repeats(anchor["shown"], text),
            context=anchor["context"],
            text=text if validate else None,
            score=float(output.reward_score) if validate else None,
            **(anchor["outcome"]._asdict() if anchor["outcome"] else {}),
            second=output.extra_fields.pop(SECOND, None),
        )

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        def count(name: str) -> None:
            self._counts[name] += 1

        second, _ = await asyncio.gather(
            self._second.ask(outputs[-1], kwargs, counts=self._counts, session=kwargs["uid"]),
            verify(
                functools.partial(super()._compute_score, outputs, kwargs),
                outputs[-1],
                retries=self._cipo.verifier_retries,
                count=count,
                session=kwargs["uid"],
            ),
        )
        outputs[-1].extra_fields[SECOND] = second

    def _postprocess(self, inputs: list, *args: Any, **kwargs: Any) -> DataProto:
        kept = [output for output in inputs if output is not None]
        rolled = [output for output in kept if not isinstance(output, LostAttempt)]
        if kept and not rolled:
            raise NoRowsError(f"all {len(kept)} attempts of a rollout worker failed; the log above says why")
        rows = [
            output.row(rolled, pad_token_id=self.tokenizer.pad_token_id) if isinstance(output, LostAttempt) else output
            for output in kept
        ]
        return super()._postprocess(rows, *args, **kwargs) if rows else DataProto()
