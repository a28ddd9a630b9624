"""A pool of worker processes for functions that may hang, swell or crash on what they are given.

Usable from any thread, many at once: it needs no signals in the calling process and no multiprocessing machinery, only
pipes. A worker is started when a check finds none idle, ends when its pipe is closed, and so outlives neither the
interpreter nor a killed parent by more than one check.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, BinaryIO

from verl_cipo.rewards.lending import Lender, Pools
from verl_cipo.rewards.outcome import VerifierInfrastructureError

# Importing a computer algebra system takes a second; on a machine whose cores are all taken it takes many.
START_TIMEOUT_S = 120.0
# A check that got less processor time than its limit in all this says nothing about the answer.
WALL_FACTOR, WALL_MARGIN_S = 10.0, 60.0
# Algebra systems keep what they have seen; a worker that has served this many checks is replaced.
CHECKS_PER_WORKER = 5000

# Until the parent's module path is set nothing is imported but what is built in.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[1].split(chr(0x1f)); "
    "from verl_cipo.rewards.math.workers import serve; serve(sys.argv[2], int(sys.argv[3]))"
)


class CheckTimeout(Exception):
    """A check used up its processor time or its memory."""


class _Died(Exception):
    """The worker ended without a reply; args[0] is its exit status."""


class WorkerPool:
    """Runs a function in at most `size` worker processes; checks that wait have them in the order they came in.

    target: `package.module:function`, importable with the parent's module path; arguments and result are JSON.
    memory_mb: address space of a worker, MiB.
    """

    def __init__(self, target: str, *, size: int, memory_mb: int) -> None:
        self._target = target
        self._memory_mb = memory_mb
        self._slots = Lender(range(size))
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._closed = False

    def check(self, args: Sequence[Any], *, timeout_s: float) -> Any:
        """The function's result. Waits for a free worker as long as that takes.

        Args:
            args: the function's arguments.
            timeout_s: processor time of the check, seconds. A worker's start is not counted.

        Raises:
            CheckTimeout: the check ran out of time, memory or stack, or crashed two workers; the worker is replaced.
            VerifierInfrastructureError: no verdict: a worker could not be started, was killed from outside, got too
                little processor time, the function raised, or the pool is closed.
        """
        request = json.dumps({"args": list(args), "cpu_s": timeout_s}).encode() + b"\n"
        with self._slots.lend():
            try:
                return self._run(request, timeout_s)
            except _Died:
                # Its end may have had another cause than this check, so the check has a second, fresh worker.
                try:
                    return self._run(request, timeout_s, fresh=True)
                except _Died as error:
                    status = error.args[0]
            if status in (-signal.SIGKILL, -signal.SIGTERM):
                raise VerifierInfrastructureError(
                    f"two workers for {self._target} were killed from outside with signal {-status}: is the machine "
                    "out of memory?"
                )
            raise CheckTimeout(f"the check crashed two workers (exit status {status})")

    def close(self) -> None:
        """End all workers and wait for them. Checks under way end in VerifierInfrastructureError."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            self._all.clear()
        for worker in idle:
            worker.kill()
        for worker in busy:
            # Its thread sees the end and closes the pipes; closing them here would pull them from under its read.
            worker.end()

    def pids(self) -> list[int]:
        """Process ids of the workers there are."""
        with self._lock:
            return sorted(worker.pid for worker in self._all)

    def _run(self, request: bytes, timeout_s: float, *, fresh: bool = False) -> Any:
        worker = self._take(fresh)
        keep = False
        try:
            worker.wait_until_ready()
            reply = worker.ask(request, WALL_FACTOR * timeout_s + WALL_MARGIN_S)
            keep = "exhausted" not in reply and worker.served < CHECKS_PER_WORKER
        finally:
            self._put_back(worker, keep)
        if "exhausted" in reply:
            raise CheckTimeout("the check ran out of memory or stack")
        if "error" in reply:
            raise VerifierInfrastructureError(f"{self._target} raised in its worker:\n{reply['error']}")
        return reply["value"]

    def _take(self, fresh: bool) -> "_Worker":
        with self._lock:
            if self._closed:
                raise VerifierInfrastructureError(f"the worker pool of {self._target} is closed")
            if self._idle and not fresh:
                return self._idle.pop()
            worker = _Worker(self._target, self._memory_mb)
            self._all.add(worker)
            return worker

    def _put_back(self, worker: "_Worker", keep: bool) -> None:
        with self._lock:
            if keep and not self._closed:
                self._idle.append(worker)
                return
            self._all.discard(worker)
        worker.kill()


class _Worker:
    """One process and its pipes; used by one thread at a time, but for kill."""

    def __init__(self, target: str, memory_mb: int) -> None:
        self._target = target
        # The parent's module path may have been changed since its start, so it is handed over.
        # A fixed hash seed: what depends on the order of sets is judged alike in every worker.
        path = chr(0x1F).join(os.path.abspath(entry) for entry in sys.path)
        command = [sys.executable, "-c", _BOOT, path, target, str(memory_mb)]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        try:
            # A file, not a pipe: nobody has to read it while the worker starts.
            with contextlib.ExitStack() as stack:
                self._stderr = stack.enter_context(tempfile.TemporaryFile())
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    bufsize=0,
                    env=environment,
                )
                stack.pop_all()
        except OSError as error:
            raise VerifierInfrastructureError(f"cannot start a worker for {target}: {error}") from error
        self._ready = False
        self._buffer = b""
        self.served = 0
        self.pid = self._process.pid

    def wait_until_ready(self) -> None:
        if self._ready:
            return
        try:
            line = self._read_line(START_TIMEOUT_S)
        except _Died as error:
            self._stderr.seek(0)
            said = self._stderr.read().decode(errors="replace").strip() or "no message"
            raise VerifierInfrastructureError(
                f"a worker for {self._target} ended with status {error.args[0]} while starting: {said[-2000:]}"
            ) from error
        if line is None:
            raise VerifierInfrastructureError(
                f"a worker for {self._target} did not start within {START_TIMEOUT_S:.0f} s: is the machine overloaded?"
            )
        self._ready = True

    def ask(self, request: bytes, wall_s: float) -> dict:
        """The reply to a request."""
        self.served += 1
        assert self._process.stdin is not None
        try:
            view = memoryview(request)
            while view:
                view = view[self._process.stdin.write(view) :]
        except OSError as error:
            raise _Died(self._process.wait()) from error
        try:
            line = self._read_line(wall_s)
        except _Died as error:
            if error.args[0] == -signal.SIGPROF:
                raise CheckTimeout("the check ran out of time") from error
            raise
        if line is None:
            raise VerifierInfrastructureError(
                f"a check in {self._target} neither ended nor used up its processor time in {wall_s:.0f} s: "
                "is the machine overloaded?"
            )
        return json.loads(line)

    def end(self) -> None:
        """End the process and wait for it; harmless when it has ended or is being ended."""
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """End the process and close what belongs to it."""
        self.end()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None:
                stream.close()

    def _read_line(self, wall_s: float) -> bytes | None:
        """The next line, or None when it does not come in time.

        Raises: _Died when the worker has ended.
        """
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        # select() cannot watch descriptors above 1023, which a training process has.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + wall_s
        while b"\n" not in self._buffer:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise _Died(self._process.wait())
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


_pools: Pools[WorkerPool] = Pools()


def shared_pool(target: str, *, size: int, memory_mb: int) -> WorkerPool:
    """The process' pool for these arguments, made at the first call and closed when the interpreter ends."""
    return _pools.get((target, size, memory_mb), lambda: WorkerPool(target, size=size, memory_mb=memory_mb))


def close_shared_pools() -> None:
    """End the workers of all shared pools. The next check starts new ones."""
    _pools.close()


# The worker's side


def serve(target: str, memory_mb: int) -> None:
    """Load the function named `package.module:function`, say so, and answer until the requests end.

    The module's function `warm_up`, where it has one, runs first: it may load what the first check would wait for, and
    raise when checks cannot work.

    A request is {"args": [...], "cpu_s": seconds}; a reply is {"value": ...}, {"error": traceback} when the function
    raised, or {"exhausted": true} when it ran out of memory or stack.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What libraries print must not get between the replies.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    # Both are inherited, and a profiler in the parent may have changed them.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    module_name, _, name = target.partition(":")
    module = importlib.import_module(module_name)
    function = getattr(module, name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    if warm_up := getattr(module, "warm_up", None):
        warm_up()
    os.dup2(null, 2)
    _reply(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, request["cpu_s"])
        try:
            answer = {"value": function(*request["args"])}
        except (MemoryError, RecursionError):
            answer = {"exhausted": True}
        except Exception:
            answer = {"error": traceback.format_exc()}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _reply(replies, answer)


def _reply(replies: BinaryIO, answer: dict) -> None:
    replies.write(json.dumps(answer).encode() + b"\n")
    replies.flush()
