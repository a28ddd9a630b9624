"""Sandboxes that break: seen through stand-ins for the supervisor, and through the real one killed from outside."""

import fcntl
import os
import resource
import signal
import sys
import termios
import threading
import time
from pathlib import Path

import pytest

from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox import bubblewrap, pool, warm_sandbox
from verl_cipo.rewards.sandbox.cases import CheckTest
from verl_cipo.rewards.sandbox.inside import supervisor
from verl_cipo.rewards.sandbox.inside.values import IN_JAIL, READY
from verl_cipo.rewards.sandbox.pool import Pool, Worker
from verl_cipo.rewards.sandbox.warm_sandbox import Sandbox, SandboxDiedError

LIMITS = {"memory": 2**29, "cpu": 20}
JOB = {"kind": "program", "code": "print(input())", "stdin": "hello", "limits": LIMITS}


def stand_in(script: str) -> Sandbox:
    """A sandbox whose supervisor is `script`, with job, result and status as descriptors and say() to report."""
    prelude = "import os, struct, sys, time\njob, result, status = map(int, sys.argv[1:4])\n"
    prelude += "def say(*words):\n    for word in words: os.write(status, struct.pack('<I', word))\n"

    def command(channels):
        descriptors = (channels.job, channels.result, channels.status)
        return [sys.executable, "-I", "-c", prelude + script, *map(str, descriptors)]

    return warm(command)


def warm(command) -> Sandbox:
    sandbox = Sandbox.spawn(command)
    sandbox.wait_until_warm()
    return sandbox


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_a_supervisor_that_fails_to_start_is_quoted():
    before = open_descriptors()
    with pytest.raises(VerifierInfrastructureError, match="it broke"):
        stand_in("sys.exit('it broke')")
    assert open_descriptors() == before


def test_a_supervisor_that_never_gets_warm(monkeypatch):
    monkeypatch.setattr(warm_sandbox, "START_TIMEOUT_S", 0.2)
    with pytest.raises(VerifierInfrastructureError, match="not warm after 0.2 s"):
        stand_in("time.sleep(100)")


def test_a_supervisor_that_says_something_else():
    with pytest.raises(VerifierInfrastructureError, match="could not be started"):
        stand_in("say(1)\ntime.sleep(100)")


def test_a_program_that_is_not_there():
    before = open_descriptors()
    with pytest.raises(VerifierInfrastructureError, match="could not be started"):
        warm(lambda channels: ["/nonexistent"])
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "told",
    [
        "No permissions to create new namespace",
        "Creating new namespace failed: x",
        "cannot open /proc/sys/user/max_user_namespaces",
    ],
)
def test_what_to_allow_is_said(told):
    with pytest.raises(VerifierInfrastructureError, match="max_user_namespaces.*seccomp=unconfined"):
        stand_in(f"sys.exit({told!r})")


@pytest.mark.parametrize(
    "script",
    [
        f"say({READY})",
        f"say({READY})\nos.read(job, 1)",
        f"say({READY}, {IN_JAIL})",
        f"say({READY}, 0)\ntime.sleep(100)",
        f"say({READY}, 0, 0)\ntime.sleep(100)",
    ],
)
def test_a_supervisor_that_breaks_gives_no_run(script):
    sandbox = stand_in(script)
    with pytest.raises(SandboxDiedError):
        sandbox.run({**JOB, "stdin": "x" * 2**20}, timeout_s=20)
    assert sandbox.closed and sandbox._process.returncode is not None


@pytest.mark.parametrize(
    ("frames", "claim"),
    [
        (b"", None),
        (b"\x02\0\0\0{}", b"{}"),
        (b"\x02\0\0\0{}\x02\0\0\0{}", None),
        (b"\x02\0\0\0{}x", None),
        (b"\x03\0\0\0{}", None),
        (b"\x02\0\0\0{[", b"{["),
        (b"\x02\0", None),
    ],
)
def test_a_claim_is_exactly_one_frame(frames, claim):
    sandbox = stand_in(f"say({READY})\nos.write(result, {frames!r})\nsay({IN_JAIL}, 0)\ntime.sleep(100)")
    assert sandbox.run(JOB, timeout_s=20).claim == claim
    sandbox.close()


def test_the_wait_status_is_told():
    sandbox = stand_in(f"say({READY}, {IN_JAIL}, 3 << 8, {IN_JAIL}, 9)\ntime.sleep(100)")
    assert [sandbox.run(JOB, timeout_s=20).code for _ in range(2)] == [3, -9]
    sandbox.close()


def test_an_error_in_an_answer_leaves_no_half_conversation():
    sandbox = bubblewrap.start()
    job = {"kind": "check", "source": "f(1)", "name": "f", "limits": LIMITS}

    def answer(call):
        raise VerifierInfrastructureError("the other sandbox is gone")

    with pytest.raises(VerifierInfrastructureError, match="the other"):
        sandbox.run(job, timeout_s=20, answer=answer)
    assert sandbox.closed


def test_descriptors_beyond_what_select_takes():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(2000, hard)), hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        sandbox = bubblewrap.start()
        assert sandbox._job > 1024 and sandbox.run(JOB, timeout_s=20).stdout == b"hello\n"
        sandbox.close()
    finally:
        for fd in many:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_no_descriptors_left_for_a_sandbox(monkeypatch):
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Five free numbers: the third pipe fails. (Where subprocess itself runs out of them, Python loses one.)
    taken = {int(fd) for fd in before}
    limit = next(n for n in range(soft) if n - sum(fd < n for fd in taken) == 5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        with pytest.raises(VerifierInfrastructureError, match="Too many open files"):
            bubblewrap.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_descriptors() == before


def test_close_leaves_nothing_and_may_be_repeated():
    before = open_descriptors()
    sandbox = bubblewrap.start()
    assert sandbox.run(JOB, timeout_s=20).stdout == b"hello\n"
    sandbox.close()
    sandbox.close()
    assert open_descriptors() == before and sandbox._process.returncode is not None


def test_closing_the_job_pipe_ends_the_supervisor():
    """As happens when the verifier's process is gone."""
    sandbox = bubblewrap.start()
    os.dup2(os.open(os.devnull, os.O_RDWR), sandbox._job)
    assert sandbox._process.wait(20) == 0
    sandbox.close()


def test_a_sandbox_that_dies_between_checks_is_replaced():
    one = Worker(bubblewrap.start, memory_mb=512)
    assert one.program("print(1)", "", timeout_s=20, max_stdout=9).stdout == b"1\n"
    (sandbox,) = one._sandboxes.values()
    signal.pidfd_send_signal(sandbox._init, signal.SIGKILL)
    assert one.program("print(2)", "", timeout_s=20, max_stdout=9).stdout == b"2\n"
    one.close()


def test_two_deaths_in_a_row_are_no_verdict():
    started = []

    def starter(*, numpy):
        started.append(stand_in(f"say({READY})"))
        return started[-1]

    with pytest.raises(VerifierInfrastructureError, match="twice in a row"):
        Worker(starter, memory_mb=512).program("print(1)", "", timeout_s=20, max_stdout=9)
    assert len(started) == 2 and all(sandbox.closed for sandbox in started)


def test_a_start_that_fails_once_is_tried_again_at_the_next_check():
    answers = [VerifierInfrastructureError("not now"), bubblewrap.start]

    def starter(*, numpy):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer()

    one = Worker(starter, memory_mb=512)
    with pytest.raises(VerifierInfrastructureError, match="not now"):
        one.program("print(1)", "", timeout_s=20, max_stdout=9)
    assert one.program("print(1)", "", timeout_s=20, max_stdout=9).stdout == b"1\n"
    one.close()


def test_all_sandboxes_are_started_by_one_thread_that_lives_on():
    """The kernel kills a sandbox together with the thread that started it."""
    starters = []

    def starter(*, numpy):
        starters.append(threading.current_thread())
        return bubblewrap.start()

    two = Pool(starter, size=2, memory_mb=512)

    def check():
        with two.worker() as one, two.worker() as other:
            for each in (one, other):
                assert each.program("print(1)", "", timeout_s=20, max_stdout=9).stdout == b"1\n"

    for _ in range(2):
        thread = threading.Thread(target=check)
        thread.start()
        thread.join()
    assert len(starters) == 2 and len(set(starters)) == 1 and starters[0].is_alive()
    two.close()


def test_a_pool_is_shared_by_equal_settings():
    one = pool.get_pool("bubblewrap", workers=1, memory_mb=300)
    assert one is pool.get_pool("bubblewrap", workers=1, memory_mb=300)
    assert one is not pool.get_pool("bubblewrap", workers=2, memory_mb=300)


# It says that it runs by a handler of SIGUSR1, which the outside sees, and then waits in its first {times} runs.
WAITS = """
import os, signal, time
signal.signal(signal.SIGUSR1, print)
if os.getpid() < {first} + {times}: time.sleep(1000)
"""


def warm_worker() -> tuple[Worker, Path, int]:
    """A worker with a sandbox, the file that names the sandbox's run, and the next run's number of process inside."""
    one = Worker(bubblewrap.start, memory_mb=512)
    run = one.program("import os\nprint(os.getpid())", "", timeout_s=20, max_stdout=9)
    (sandbox,) = one._sandboxes.values()
    return one, Path(f"/proc/{sandbox._supervisor}/task/{sandbox._supervisor}/children"), int(run.stdout) + 1


def kill_runs(children: Path, times: int) -> threading.Thread:
    """Kills the next runs that wait as the kernel does where memory is short."""

    def kill():
        killed: set[str] = set()
        while len(killed) < times:
            time.sleep(0.01)
            for pid in set(children.read_text().split()) - killed:
                caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
                if int(caught, 16) >> signal.SIGUSR1 - 1 & 1:
                    os.kill(int(pid), signal.SIGKILL)
                    killed.add(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer


def test_a_run_that_the_machine_killed_is_made_again():
    one, children, first = warm_worker()
    killer = kill_runs(children, times=1)
    code = WAITS.format(first=first, times=1) + "print(1)"
    assert one.program(code, "", timeout_s=60, max_stdout=9).stdout == b"1\n"
    killer.join()
    one.close()


def test_a_run_that_the_machine_killed_twice_is_no_verdict():
    one, children, first = warm_worker()
    killer = kill_runs(children, times=2)
    with pytest.raises(VerifierInfrastructureError, match="killed from outside, twice"):
        one.program(WAITS.format(first=first, times=2), "", timeout_s=60, max_stdout=9)
    killer.join()
    assert one.program("print(2)", "", timeout_s=20, max_stdout=9).stdout == b"2\n"
    one.close()


def test_a_call_from_test_code_that_the_machine_killed_is_made_again():
    one, children, first = warm_worker()
    killer = kill_runs(children, times=1)
    code = f"def f(x): return x\n{WAITS.format(first=first, times=1)}"
    test = CheckTest("assert f(1) + 1 == 2", "f")
    assert one.check(test, code, timeout_s=60, deadline=time.monotonic() + 60).passed
    killer.join()
    one.close()


def test_a_flood_ends_the_run_and_not_the_sandbox():
    one = Worker(bubblewrap.start, memory_mb=512)
    for code in ("while True: print('x' * 999)", "import os\nwhile True: os.write(1, b'x' * 99)", "print('x' * 2**20)"):
        assert one.program(code, "", timeout_s=20, max_stdout=9999).end == "flood"
        (sandbox,) = one._sandboxes.values()
        assert one.program("print(2)", "", timeout_s=20, max_stdout=9).stdout == b"2\n"
        assert list(one._sandboxes.values()) == [sandbox] and not sandbox.closed
    one.close()


def test_a_flood_ends_the_sandbox_where_the_run_cannot_be_ended(monkeypatch):
    one = Worker(bubblewrap.start, memory_mb=512)
    monkeypatch.setattr(Sandbox, "_kill_run", lambda self: False)
    assert one.program("while True: print('x' * 999)", "", timeout_s=20, max_stdout=9999).end == "flood"
    (sandbox,) = one._sandboxes.values()
    assert sandbox.closed
    assert one.program("print(2)", "", timeout_s=20, max_stdout=9).stdout == b"2\n"
    one.close()


def test_what_has_come_is_read_before_a_time_out_is_declared(monkeypatch):
    """A verifier that is kept from running finds the time over, and the result there."""
    sandbox = bubblewrap.start()
    times = iter([0.0])

    def clock():
        """The start; then long after the end of the run, of which the supervisor's two words tell."""
        if (start := next(times, None)) is not None:
            return start
        while int.from_bytes(fcntl.ioctl(sandbox._status, termios.FIONREAD, bytes(4)), sys.byteorder) < 8:
            time.sleep(0.01)
        return 1000.0

    monkeypatch.setattr(warm_sandbox.time, "monotonic", clock)
    run = sandbox.run(JOB, timeout_s=20)
    assert (run.end, run.stdout) == ("exit", b"hello\n")
    sandbox.close()


def test_a_sandbox_that_timed_out_is_replaced_before_it_is_needed():
    started = []

    def starter(*, numpy):
        started.append(bubblewrap.spawn(numpy=numpy))
        return started[-1]

    one = Worker(starter, memory_mb=512)
    assert one.program("while True: pass", "", timeout_s=0.3, max_stdout=9).end == "timeout"
    (starting,) = one._starting.values()
    assert starting.result(20) is started[1] and started[0].closed
    assert one.program("print(1)", "", timeout_s=20, max_stdout=9).stdout == b"1\n"
    assert one._sandboxes[("solution", False)] is started[1]
    one.program("while True: pass", "", timeout_s=0.3, max_stdout=9)
    one.close()
    assert len(started) == 3 and all(sandbox.closed for sandbox in started)


def test_source_that_names_numpy_finds_it_imported():
    asked = []

    def starter(*, numpy):
        asked.append(numpy)
        return bubblewrap.start(numpy=numpy)

    one = Worker(starter, memory_mb=512)
    code = "import sys\nprint('num' + 'py' in sys.modules)"
    assert one.program(code, "", timeout_s=20, max_stdout=9).stdout == b"False\n"
    assert one.program(f"{code}  # numpy", "", timeout_s=20, max_stdout=9).stdout == b"True\n"
    assert asked == [False, True]
    one.close()


def test_a_run_has_a_deep_stack():
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    wanted = supervisor.STACK_BYTES if hard == resource.RLIM_INFINITY else min(supervisor.STACK_BYTES, hard)
    one = Worker(bubblewrap.start, memory_mb=512)
    code = "import resource\nprint(resource.getrlimit(resource.RLIMIT_STACK)[0])"
    assert int(one.program(code, "", timeout_s=20, max_stdout=99).stdout) == wanted
    one.close()


def test_problem_is_none_here_and_otherwise_says_what_to_do(monkeypatch, tmp_path):
    assert bubblewrap.problem() is None
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "user namespaces" in bubblewrap.problem()
    fake.write_text("#!/bin/sh\necho 'bwrap: Unknown option --disable-userns' >&2\nexit 1\n")
    assert "0.8.0 or newer" in bubblewrap.problem()
    fake.unlink()
    assert "apt-get install bubblewrap" in bubblewrap.problem()


def test_the_command_has_every_lock():
    channels = warm_sandbox.Channels(3, 4, 5, 6)
    command = bubblewrap.command("bwrap", channels, numpy=False)
    for option in (
        "--unshare-all",
        "--unshare-user",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--clearenv",
    ):
        assert option in command
    assert command[command.index("--cap-drop") + 1] == "ALL"
    assert "--bind" not in command and command.count("--tmpfs") == command.count("--size")


def test_nothing_is_left_behind_by_many_checks():
    """A smaller version of benchmarks/verification/leaks.py."""
    one = Worker(bubblewrap.start, memory_mb=512)
    one.program("print(1)", "", timeout_s=20, max_stdout=9)
    (sandbox,) = one._sandboxes.values()
    before = open_descriptors()
    for n in range(100):
        assert one.program(f"print({n})", "", timeout_s=20, max_stdout=9).stdout == b"%d\n" % n
    assert open_descriptors() == before
    assert one._sandboxes[("solution", False)] is sandbox and not sandbox.closed
    one.close()
