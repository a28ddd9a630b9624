"""Asking verl's reward loop for a verdict, again when it failed.

A verifier that could not judge, because a sandbox or a server was away, must not look like a wrong answer. It says so
by raising, as verl_cipo.rewards does, or by what ``core.verdict.fault`` reads.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from verl.experimental.agent_loop import AgentLoopOutput

from verl_cipo.core.verdict import UNDECIDED, fault

logger = logging.getLogger("verl_cipo")

FIRST_PAUSE_S = 0.5
"""Seconds before the second try; doubled before each further one."""


class VerifierFailed(RuntimeError):
    """The verifier gave no verdict, however often it was asked."""


async def verify(
    score: Callable[[], Awaitable[None]],
    output: AgentLoopOutput,
    *,
    retries: int,
    count: Callable[[str], None],
    session: str,
) -> None:
    """Await ``score()``, which puts verdict and reward into ``output``; at most ``1 + retries`` times.

    Args:
        retries: further tries; none for an output that its agent loop has scored.
        count: called with ``verifier/errors`` for each failure, ``verifier/given_up`` for the last, and
            ``verifier/undecided`` for an outcome that says so.
        session: names the session in the log.

    Raises:
        VerifierFailed: from the last error. The session has failed: its row is missing, not 0.
    """
    if output.reward_score is not None:
        # The agent loop has scored it itself: verl would ask another verifier in its place.
        retries = 0
    for attempt in range(1 + retries):
        if attempt:
            await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        try:
            await score()
            info = output.extra_fields.get("reward_extra_info") or {}
            reason = fault(output.reward_score, info)
            if reason is None:
                if info.get("outcome") == UNDECIDED:
                    count("verifier/undecided")
                return
            raise RuntimeError(reason)
        except Exception as error:
            # verl scores only an output that has no reward yet.
            output.reward_score = None
            count("verifier/errors")
            logger.warning("verifying %s failed, try %d of %d: %s", session, attempt + 1, 1 + retries, error)
            last = error
    count("verifier/given_up")
    raise VerifierFailed(f"no verdict on {session} after {1 + retries} tries") from last
