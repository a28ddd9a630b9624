"""A simulated inference engine, and an event loop whose waits cost no time.

The engine batches continuously: at most `max_seqs` sequences run, each gets a token a step, a step takes
``step_s + per_sequence_s * running``, and who comes later queues first come, first served. A prompt is computed before
its first token, once for all requests that share it (prefix caching), and holds the whole batch up meanwhile. Not
simulated: the growth of a step with the length of the sequences, preemption for want of cache, several replicas.
"""

import asyncio
import contextlib
import heapq
import itertools
import selectors
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the engine takes. The defaults are of the order of an 8B model on one large accelerator; a choice of ours.

    max_seqs: sequences that run at once; step_s: seconds of a step without sequences; per_sequence_s: what each
    running sequence adds to it; prefill_s: seconds a prompt token.
    """

    max_seqs: int = 256
    step_s: float = 0.01
    per_sequence_s: float = 0.00004
    prefill_s: float = 0.00003


@dataclass(order=True)
class Request:
    """One sequence; `finished` is the simulated time of its last token."""

    ends_at: float = field(init=False, default=0.0)
    """Steps that the engine will have made by then."""
    number: int
    tokens: int = field(compare=False)
    prompt: Hashable = field(compare=False)
    prompt_tokens: int = field(compare=False)
    payload: Any = field(compare=False, default=None)
    finished: float | None = field(compare=False, default=None)


class Engine:
    """The engine as a pure state machine: times go in, finished requests come out."""

    def __init__(self, speed: Speed, now: float = 0.0) -> None:
        self.speed = speed
        self.now = now
        self.idle_slots_s = 0.0
        """Slot-seconds that no sequence used, of max_seqs a second."""
        self._steps = 0.0
        self._prefill_s = 0.0
        self._running: list[Request] = []
        self._queue: deque[Request] = deque()
        self._cached: set[Hashable] = set()
        self._numbers = itertools.count()

    def submit(self, now: float, *, tokens: int, prompt: Hashable, prompt_tokens: int, payload: Any = None) -> Request:
        """Queue a request of ``tokens`` tokens at time ``now``, up to which the engine must have been advanced."""
        if now != self.now:
            raise ValueError(f"submit at {now}, but the engine stands at {self.now}: advance it first")
        if tokens < 1:
            raise ValueError(f"tokens = {tokens}: a response has at least one")
        request = Request(next(self._numbers), tokens, prompt, prompt_tokens, payload)
        self._queue.append(request)
        self._admit()
        return request

    def next_finish(self) -> float | None:
        """When the next request will finish if none comes before; None when none runs."""
        if not self._running:
            return None
        return self.now + self._prefill_s + (self._running[0].ends_at - self._steps) * self._step()

    def advance(self, now: float) -> list[Request]:
        """Go on to time ``now``; returns the requests that finished meanwhile, each with its own time."""
        finished = []
        while (end := self.next_finish()) is not None and end <= now:
            self._pass(end)
            self._steps = self._running[0].ends_at
            while self._running and self._running[0].ends_at <= self._steps:
                request = heapq.heappop(self._running)
                request.finished = end
                finished.append(request)
            self._admit()
        self._pass(now)
        return finished

    def _step(self) -> float:
        return self.speed.step_s + self.speed.per_sequence_s * len(self._running)

    def _pass(self, until: float) -> None:
        """Let time go by in which no request finishes."""
        seconds = until - self.now
        self.idle_slots_s += seconds * (self.speed.max_seqs - len(self._running))
        prefilled = min(self._prefill_s, seconds)
        self._prefill_s -= prefilled
        if self._running:
            self._steps += (seconds - prefilled) / self._step()
        self.now = until

    def _admit(self) -> None:
        while self._queue and len(self._running) < self.speed.max_seqs:
            request = self._queue.popleft()
            if request.prompt not in self._cached:
                self._cached.add(request.prompt)
                self._prefill_s += request.prompt_tokens * self.speed.prefill_s
            request.ends_at = self._steps + request.tokens
            heapq.heappush(self._running, request)


class FastForwardLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock is the processor time of its thread, plus the waits that it skipped.

    Where nothing is ready it jumps to the next timer. Code that runs costs what it costs; how busy the machine is
    otherwise does not matter. Functions for an executor run at once, in this thread: no wait is skipped over them.
    """

    def __init__(self) -> None:
        self.skipped_s = 0.0
        self.uncounted_s = 0.0
        super().__init__(_Skip(self))

    def time(self) -> float:
        """Seconds."""
        return time.thread_time() - self.uncounted_s + self.skipped_s

    @property
    def processor_s(self) -> float:
        """Processor time that the clock has counted."""
        return time.thread_time() - self.uncounted_s

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """What runs inside belongs to the simulation and takes no time."""
        started = time.thread_time()
        try:
            yield
        finally:
            self.uncounted_s += time.thread_time() - started

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future:
        """Run ``func`` now; its outcome comes as a future that is done."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


class _Skip(selectors.DefaultSelector):
    """Waits by moving the loop's clock."""

    def __init__(self, loop: FastForwardLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("the simulation is stuck: every task waits, and no timer is set")
        self._loop.skipped_s += timeout
        return ready


class EngineClock:
    """Runs an :class:`Engine` on a :class:`FastForwardLoop`."""

    def __init__(self, speed: Speed, loop: FastForwardLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self.engine = Engine(speed, loop.time())
        self.finished: list[float] = []
        """When each request finished, on the loop's clock."""

    async def run(self, *, tokens: int, prompt: Hashable, prompt_tokens: int) -> None:
        """Return when a request of ``tokens`` tokens is finished."""
        done = self._loop.create_future()
        with self._loop.uncounted():
            now = self._loop.time()
            self._catch_up(now)
            self.engine.submit(now, tokens=tokens, prompt=prompt, prompt_tokens=prompt_tokens, payload=done)
            self._set_timer()
        await done

    def _wake(self) -> None:
        with self._loop.uncounted():
            self._catch_up(self._loop.time())
            self._set_timer()

    def _catch_up(self, now: float) -> None:
        for request in self.engine.advance(now):
            self.finished.append(request.finished)
            request.payload.set_result(None)

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        end = self.engine.next_finish()
        self._timer = None if end is None else self._loop.call_at(end, self._wake)
