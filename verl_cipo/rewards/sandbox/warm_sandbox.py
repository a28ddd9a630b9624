"""One warm sandbox, seen from outside: starts it, sends it jobs, reads what comes back within limits, kills it."""

import json
import os
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox.inside.values import IN_JAIL, READY, frame

START_TIMEOUT_S = 30
KILL_TIMEOUT_S = 10
_CHUNK = 2**18
# A run may start no threads, so numpy's own must not be asked for. One hash seed: a program whose result depends on the
# order of a set gets the same verdict in every sandbox.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
_READY, _IN_JAIL = struct.pack("<I", READY), struct.pack("<I", IN_JAIL)
# A run that writes is not looked at more often than this at first, as most end in less, and after so many pieces of
# output, as it may write single bytes without end.
_INTERVAL_S = 0.004
_MANY_PIECES = 100


Answer = Callable[[bytes], bytes]


class SandboxDiedError(RuntimeError):
    """The sandbox ended by itself; it says nothing about the program."""


@dataclass(frozen=True)
class Channels:
    """The descriptors that a sandbox inherits besides stdout and stderr; info: bubblewrap's own report."""

    job: int
    result: int
    status: int
    info: int


@dataclass(frozen=True)
class Run:
    """How one run ended.

    end: "exit"; "timeout" (the wall clock ran out); "flood" (it wrote more than it may).
    code: its exit status, negative for a signal; None unless end is "exit".
    stdout: what it wrote there. claim: the one frame that came on the result channel, None unless it is exactly one; as
    it came: what is in it, and whether it is JSON at all, the program decides.
    """

    end: Literal["exit", "timeout", "flood"]
    code: int | None = None
    stdout: bytes = b""
    claim: bytes | None = None


class Sandbox:
    """A running sandbox. One job at a time; after "timeout" it is closed, after "flood" it may be."""

    def __init__(self, process: subprocess.Popen, *, job: int, result: int, status: int, info: int) -> None:
        self._process = process
        self._stdout = process.stdout.fileno()
        self._job, self._result, self._status = job, result, status
        # None once it is warm.
        self._info: int | None = info
        self._init: int | None = None
        self._supervisor = process.pid
        self.closed = False
        for fd in (self._stdout, job, result, status):
            os.set_blocking(fd, False)

    @classmethod
    def spawn(cls, command: Callable[[Channels], list[str]]) -> "Sandbox":
        """Starts what `command` names. Raises: VerifierInfrastructureError."""
        pipes: list[int] = []
        try:
            for _ in range(4):
                pipes += os.pipe()
            job_read, job, result, result_write, status, status_write, info, info_write = pipes
            theirs = (job_read, result_write, status_write, info_write)
            process = subprocess.Popen(
                command(Channels(job_read, result_write, status_write, info_write)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=theirs,
                start_new_session=True,
                env=ENVIRONMENT,
            )
        except OSError as error:
            for fd in pipes:
                os.close(fd)
            raise VerifierInfrastructureError(f"the sandbox could not be started: {error}") from error
        for fd in theirs:
            os.close(fd)
        return cls(process, job=job, result=result, status=status, info=info)

    def wait_until_warm(self) -> None:
        """Returns once it can take a job. Raises: VerifierInfrastructureError with what it wrote to stderr."""
        if self._info is None:
            return
        try:
            self._wait_until_warm(self._info)
        except BaseException:
            self.close()
            raise
        os.close(self._info)
        self._info = None

    def _wait_until_warm(self, info: int) -> None:
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        ready = poll.poll(1000 * START_TIMEOUT_S)
        said = _read_now(self._status, 4)[0] if ready else b""
        if said != _READY:
            self._kill_group()
            stderr = self._process.stderr.read().decode("utf-8", "replace").strip()
            why = stderr or (f"not warm after {START_TIMEOUT_S} s" if not ready else "it ended without a message")
            raise VerifierInfrastructureError(f"the sandbox could not be started: {why}{_hint(stderr)}")
        os.set_blocking(info, False)
        report = _read_now(info, 2**16)[0]
        if report:
            self._supervisor = json.loads(report)["child-pid"]
            # Through a descriptor the signal cannot reach another process that was given the same number.
            self._init = os.pidfd_open(self._supervisor)

    def run(
        self,
        job: dict[str, Any],
        *,
        timeout_s: float,
        max_stdout: int = 2**20,
        max_claim: int = 2**22,
        arguments: bytes | None = None,
        answer: Answer | None = None,
    ) -> Run:
        """Runs one job to its end.

        Args:
            job: what `inside.supervisor.child` reads.
            timeout_s: wall clock seconds; time spent in `answer` is not counted.
            max_stdout, max_claim: what may come on stdout and on the result channel, bytes.
            arguments: of a call: {"call": {"args": ..., "kwargs": ...}}, JSON.
            answer: for a checker, what to reply to a call that it asks for. It is given the call and returns a claim,
                both as they came: they hold what a program made, which is not read here.

        Raises:
            SandboxDiedError: the sandbox is gone; try another one.
        """
        self.wait_until_warm()
        to_send = frame(job) + (frame(arguments) if arguments is not None else b"")
        try:
            return self._converse(to_send, timeout_s, max_stdout, max_claim, answer)
        except BaseException:
            # Half a conversation is left in its pipes.
            self.close()
            raise

    def _converse(self, frames: bytes, timeout_s: float, max_stdout: int, max_claim: int, answer: Answer | None) -> Run:
        to_send = memoryview(frames)
        stdout, result, status = bytearray(), bytearray(), bytearray()
        buffers = {self._stdout: stdout, self._result: result, self._status: status}
        outputs = [self._stdout, self._result]
        anything, the_end = select.poll(), select.poll()
        for fd in buffers:
            anything.register(fd, select.POLLIN)
        the_end.register(self._status, select.POLLIN)
        started = time.monotonic()
        deadline = started + timeout_s
        pieces = 0
        if to_send := self._write_now(to_send):
            anything.register(self._job, select.POLLOUT)
        while len(status) < 8:
            now = time.monotonic()
            # Where no time is left, what has come is read all the same: this process may have been kept from reading.
            left_s = max(0.0, deadline - now)
            # A checker's pieces are its calls, and it waits for the answers.
            if answer or to_send or pieces < _MANY_PIECES and now > started + _INTERVAL_S:
                ready = [fd for fd, _ in anything.poll(1000 * left_s)]
            else:
                ready = [fd for fd, _ in the_end.poll(1000 * min(left_s, _INTERVAL_S))] or outputs
            for fd in ready:
                if fd == self._job:
                    to_send = self._write_now(to_send)
                    if not to_send:
                        anything.unregister(fd)
                    continue
                data, ended = _read_now(fd, _CHUNK if fd != self._status else 8 - len(status))
                buffers[fd] += data
                if ended or fd == self._status and len(status) >= 4 and status[:4] != _IN_JAIL:
                    raise self._died()
                pieces += fd in outputs
            if len(stdout) > max_stdout or len(result) > max_claim:
                return self._flood(status, alone=answer is None and not to_send)
            if not left_s and len(status) < 8:
                self.close()
                return Run("timeout")
            if answer is not None and (call := _pop_call(result)) is not None:
                asked = time.monotonic()
                to_send = memoryview(frame(answer(call)))
                anything.register(self._job, select.POLLOUT)
                deadline += time.monotonic() - asked
        # The writer is dead, so what it wrote is in the pipes, and none of it may be left for the next run.
        for fd in outputs:
            while data := _read_now(fd, _CHUNK)[0]:
                buffers[fd] += data
        if len(stdout) > max_stdout or len(result) > max_claim:
            return Run("flood")
        code = os.waitstatus_to_exitcode(struct.unpack_from("<I", status, 4)[0])
        return Run("exit", code, bytes(stdout), _only_frame(result))

    def _write_now(self, data: memoryview) -> memoryview:
        try:
            return data[os.write(self._job, data) :]
        except BlockingIOError:
            return data
        except BrokenPipeError as error:
            raise self._died() from error

    def _flood(self, status: bytearray, *, alone: bool) -> Run:
        """Ends a run that writes too much. alone: the run and not the sandbox, where that can be done."""
        if not (alone and self._kill_run() and self._has_ended(status)):
            self.close()
        return Run("flood")

    def _kill_run(self) -> bool:
        """Kills the supervisor's child; whether that was possible."""
        try:
            children = Path(f"/proc/{self._supervisor}/task/{self._supervisor}/children")
            (child,) = map(int, children.read_text().split())
            descriptor = os.pidfd_open(child)
            try:
                # It is the child and no other process that was given its number since.
                if same := children.read_text().split() == [str(child)]:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                return same
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            return False

    def _has_ended(self, status: bytearray) -> bool:
        """Whether the run that was killed has ended; nothing that it wrote is left then."""
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        while len(status) < 8:
            if not poll.poll(1000 * KILL_TIMEOUT_S) or not (data := _read_now(self._status, 8 - len(status))[0]):
                return False
            status += data
        for fd in (self._stdout, self._result):
            while _read_now(fd, _CHUNK)[0]:
                pass
        return True

    def _died(self) -> SandboxDiedError:
        self.close()
        return SandboxDiedError(f"the sandbox ended by itself with status {self._process.returncode}")

    def close(self) -> None:
        """Kills all of the sandbox and waits until it is gone."""
        if self.closed:
            return
        self.closed = True
        # The namespace's first process takes all others with it, and bubblewrap then ends by itself.
        if self._init is not None:
            try:
                signal.pidfd_send_signal(self._init, signal.SIGKILL)
            except ProcessLookupError:
                pass  # It is gone already.
            os.close(self._init)
        else:
            self._kill_group()
        try:
            self._process.wait(KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill_group()
            self._process.wait(KILL_TIMEOUT_S)
        self._process.stdout.close()
        self._process.stderr.close()
        for fd in (self._job, self._result, self._status, self._info):
            if fd is not None:
                os.close(fd)

    def _kill_group(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def _read_now(fd: int, size: int) -> tuple[bytes, bool]:
    """What is there to read, and whether the other end is closed."""
    try:
        data = os.read(fd, size)
    except BlockingIOError:
        return b"", False
    return data, not data


def _first_frame(data: bytearray) -> bytes | None:
    """The body of the first frame of `data`; None while it is not complete."""
    if len(data) < 4:
        return None
    (size,) = struct.unpack_from("<I", data)
    return bytes(data[4 : 4 + size]) if len(data) >= 4 + size else None


def _only_frame(data: bytearray) -> bytes | None:
    """The body of the one frame of `data`; None when it is not exactly one."""
    body = _first_frame(data)
    return body if body is not None and len(data) == 4 + len(body) else None


def _pop_call(data: bytearray) -> bytes | None:
    """Takes a checker's question off `data`: the call it asks for. None when none is there, or its verdict is."""
    body = _first_frame(data)
    if body is None or not body.startswith(b'{"call"'):
        return None
    del data[: 4 + len(body)]
    return body


def _hint(stderr: str) -> str:
    """What to do about an error that bubblewrap reports; follows its text."""
    refusals = ("namespace", "/proc/sys", "Permission denied", "Operation not permitted", "Read-only file system")
    if any(refusal in stderr for refusal in refusals):
        return (
            ". Unprivileged user namespaces are needed: sysctl user.max_user_namespaces and "
            "kernel.apparmor_restrict_unprivileged_userns on the host, and in Docker "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
        )
    if "nknown option" in stderr:
        return ". bubblewrap 0.8.0 or newer is needed"
    return ""
