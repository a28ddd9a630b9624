"""Further attempts, which budget=auto makes in place of corrections: sessions n, n + 1, ... of a prompt."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.keys import RowKey
from verl_cipo.integration.rollout.awake import within
from verl_cipo.integration.rollout.groups import PromptGroup

logger = logging.getLogger("verl_cipo")

OF_ONE_ROLLOUT = ("uid", "session_id", "trace")
"""What of a prompt's data belongs to one rollout of it."""
OF_VERLS_PROMPT = ("__rollout_n__", "__do_sample__")
"""What of it verl takes out before it starts sessions."""


class MakesFurther:
    """Of a rollout worker: starts further attempts as sessions of their own."""

    _cipo: CIPOConfig
    _n: int
    """Sessions of a slot."""
    _run_session: Callable[..., Coroutine[Any, Any, None]]

    def _start_further(
        self, group: PromptGroup, slots: int, sampling_params: dict, trajectory: dict, prompt: Mapping[str, Any]
    ) -> None:
        """Start the further attempts of some ``slots`` at the prompt of ``group``, whose data is ``prompt``."""
        kwargs = {key: value for key, value in prompt.items() if key not in (*OF_ONE_ROLLOUT, *OF_VERLS_PROMPT)}
        first = group.n + len(group.further)
        group.further += [
            asyncio.create_task(
                self._run_further(
                    group, sampling_params, trajectory, uid=group.uid, session_id=session, trace=False, **kwargs
                )
            )
            for session in range(first, first + slots * self._n)
        ]

    async def _run_further(
        self, group: PromptGroup, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> None:
        """One further attempt, which may take as long as a correction; a failure costs its own row."""
        try:
            run = self._run_session(sampling_params, trajectory, **kwargs)
            await within(run, self._cipo.correction_timeout, slept=group.ticket["coordinator"].slept.remote)
        except Exception:
            group.counts["attempts/failed_sessions"] += 1
            name = RowKey(group.uid, kwargs["session_id"]).rollout
            logger.exception("further attempt %s failed; its row is missing", name)
