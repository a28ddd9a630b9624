"""A second verifier beside the run's own: what it says of a response is noted on the row, and changes nothing else.

It is a reward function as verl calls them, named by `algorithm.cipo.second_verifier` and run in the rollout workers, in
threads of its own: neither a slow one nor one that hangs stops the event loop that a worker's sessions share.
"""

import asyncio
import inspect
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from verl.experimental.agent_loop import AgentLoopOutput

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.verdict import UNDECIDED, verdict
from verl_cipo.integration.reward_function import ARGUMENTS, load
from verl_cipo.integration.rollout.verify import verify

logger = logging.getLogger("verl_cipo")

THREADS = 32
"""Responses that a worker judges at once, as many as a verl reward worker does on a large machine."""


class SecondVerifier:
    """Judges responses a second time, or none where no second verifier is named.

    Args:
        function: as :func:`load` returns it; None asks nobody.
        config: ``algorithm.cipo``: thresholds, further tries and the time that a verdict may take.
        tokenizer: of the rollout worker.
    """

    def __init__(self, function: Callable[..., Any] | None, config: CIPOConfig, tokenizer: Any):
        self._function = function
        self._config = config
        self._tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="second_verifier")
        self._loop = None
        if inspect.iscoroutinefunction(function):
            # All calls share one, as in verl's reward workers: a session of a HTTP client belongs to its loop.
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="second_verifier", daemon=True).start()

    @classmethod
    def of(cls, config: CIPOConfig, tokenizer: Any) -> "SecondVerifier":
        """The one that ``algorithm.cipo`` names. Raises: CIPOConfigError as :func:`load`."""
        return cls(None if config.second_verifier is None else load(config.second_verifier), config, tokenizer)

    async def ask(
        self, output: AgentLoopOutput, row: Mapping[str, Any], *, counts: Counter, session: str
    ) -> bool | None:
        """Whether the second verifier calls a response right; None where it gives no verdict, which is counted.

        Args:
            output: the last of the session, before verl has scored it.
            row: the prompt's columns of the data set.
            counts: gets ``second_verifier/errors``.
            session: names the session in the log.
        """
        if self._function is None:
            return None
        # What verl's reward manager hands over.
        extra = {**(row.get("extra_info") or {}), **output.extra_fields, "num_turns": output.num_turns}
        extra["rollout_reward_scores"] = row.get("reward_scores", {})
        try:
            judged = self._judge(output.response_ids, row, extra, session)
            found = await asyncio.wait_for(judged, self._config.second_verifier_timeout)
        except Exception as error:
            logger.warning("no second verdict on %s: %s: %s", session, type(error).__name__, error)
            found = None
        counts["second_verifier/errors"] += found is None
        return found

    async def _judge(
        self, response_ids: Sequence[int], row: Mapping[str, Any], extra_info: dict[str, Any], session: str
    ) -> bool | None:
        """The verdict, asked for again where there is a fault, as the run's own verifier is; None if undecided."""
        text = await asyncio.wrap_future(self._threads.submit(self._decoded, response_ids))
        asked = (row.get("data_source"), text, row["reward_model"]["ground_truth"], extra_info)
        answer = AgentLoopOutput(prompt_ids=[], response_ids=[], response_mask=[], metrics={})

        async def score() -> None:
            found = await asyncio.wrap_future(self._call(dict(zip(ARGUMENTS, asked, strict=True))))
            # As verl's reward manager files it.
            info = dict(found) if isinstance(found, Mapping) else {"acc": found}
            answer.reward_score = info["score"] if isinstance(found, Mapping) else found
            answer.extra_fields["reward_extra_info"] = info

        await verify(
            score,
            answer,
            retries=self._config.verifier_retries,
            count=lambda _: None,
            session=f"{session} by the second verifier",
        )
        info = answer.extra_fields["reward_extra_info"]
        if info.get("outcome") == UNDECIDED:
            return None
        return verdict(answer.reward_score, info, self._config.threshold(row.get("data_source")))

    def _decoded(self, response_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(response_ids, skip_special_tokens=True)

    def _call(self, asked: dict[str, Any]) -> Future:
        if self._loop is not None:
            return asyncio.run_coroutine_threadsafe(self._function(**asked), self._loop)
        return self._threads.submit(self._function, **asked)
