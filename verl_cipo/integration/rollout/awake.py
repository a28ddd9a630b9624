"""Time in which the rollout engines were awake: in colocate_async they sleep while verl trains."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

LOOK_AGAIN_S = 1.0
"""Seconds between looks at engines that sleep."""


class AwakeClock:
    """A clock that stands still while the engines sleep.

    Args:
        now: seconds of a clock that never stands still.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._naps: list[tuple[float, float]] = []
        """Start and end of each, ended ones alone."""
        self._napped = 0.0
        """Seconds of them all."""
        self._asleep_since: float | None = None

    def sleep(self) -> None:
        """The engines fall asleep; they may be asleep already."""
        if self._asleep_since is None:
            self._asleep_since = self._now()

    def wake(self) -> None:
        """The engines wake up; they may be awake already."""
        if self._asleep_since is not None:
            end = self._now()
            self._naps.append((self._asleep_since, end))
            self._napped += end - self._asleep_since
            self._asleep_since = None

    def time(self) -> float:
        """Seconds awake; only differences mean something."""
        return (self._now() if self._asleep_since is None else self._asleep_since) - self._napped

    def wait(self, left: float) -> float:
        """After how many seconds to look again whether ``left`` seconds awake are over."""
        return max(left, 0.0 if self._asleep_since is None else LOOK_AGAIN_S)

    def slept(self, last: float) -> float:
        """How many of the ``last`` seconds the engines slept."""
        now = self._now()
        since = now - last
        total = 0.0 if self._asleep_since is None else now - max(self._asleep_since, since)
        for start, end in reversed(self._naps):
            if end <= since:
                break
            total += end - max(start, since)
        return total


async def within(
    run: Coroutine[Any, Any, None], timeout_s: float, *, slept: Callable[[float], Awaitable[float]]
) -> None:
    """Await ``run`` for ``timeout_s`` seconds, those not counted in which the engines slept.

    Args:
        slept: ``AwakeClock.slept``, asked when the seconds are over.

    Raises:
        asyncio.TimeoutError: the seconds are over, ``run`` was cancelled. What ``run`` raises comes through.
    """
    task, started, left = asyncio.ensure_future(run), time.monotonic(), timeout_s
    try:
        while not (await asyncio.wait({task}, timeout=left))[0]:
            age = time.monotonic() - started
            left = timeout_s + await slept(age) - age
            if left <= 0:
                raise asyncio.TimeoutError
            # Of engines that sleep nothing is used up meanwhile.
            left = max(left, LOOK_AGAIN_S)
        return await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
