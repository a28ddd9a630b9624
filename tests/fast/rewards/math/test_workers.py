"""The worker pool. Its functions live in a module that the test makes, found by workers through the module path."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verl_cipo.rewards.math import workers
from verl_cipo.rewards.math.workers import CheckTimeout, WorkerPool
from verl_cipo.rewards.outcome import VerifierInfrastructureError

FUNCTIONS = """
import ctypes, os, signal, sys, time

def double(x):
    return 2 * x

def act(what):
    if what == "spin":
        while True:
            pass
    if what == "spin in C":
        return 9**9**9 % 2
    if what == "swell":
        return len([0] * 10**9)
    if what == "recurse":
        return act("recurse")
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(3)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        time.sleep(600)
    if what == "hold":
        time.sleep(1.0)
    if what == "raise":
        raise KeyError("a fault of the function")
    if what == "print":
        print("{}")
        os.write(1, b"noise\\n")
        sys.stdin.read()
    return os.getpid()

def seed(_):
    return [os.environ["PYTHONHASHSEED"], os.getcwd() in sys.path]
"""
SLOW_START = """
import time

def spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def warm_up():
    spend(0.6)

def check():
    spend(0.05)
    return "done"
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "functions_of_the_test.py").write_text(FUNCTIONS)
    (tmp_path / "slow_start.py").write_text(SLOW_START)
    (tmp_path / "broken_start.py").write_text("def warm_up():\n    raise RuntimeError('no grammar')\n\ndef f(): ...\n")
    (tmp_path / "big_start.py").write_text("def warm_up():\n    bytes(2**29)\n\ndef f(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def pool(module):
    pool = WorkerPool("functions_of_the_test:act", size=2, memory_mb=512)
    yield pool
    pool.close()


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children() -> set[int]:
    """Child processes, zombies among them."""
    tasks = Path("/proc/self/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until_gone(pids: list[int], limit_s: float = 20) -> bool:
    deadline = time.monotonic() + limit_s
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(alive(pid) for pid in pids)


@pytest.mark.parametrize("what", ["spin", "spin in C", "swell", "recurse", "segfault", "exit"])
def test_what_never_answers_is_a_timeout_and_its_worker_is_replaced(pool, what):
    first = pool.check(("work",), timeout_s=5)
    with pytest.raises(CheckTimeout):
        pool.check((what,), timeout_s=0.3)
    assert not alive(first)
    assert pool.pids() == []
    assert pool.check(("work",), timeout_s=5) != first
    assert len(pool.pids()) == 1


def test_a_worker_is_kept_between_checks(pool):
    assert pool.check(("work",), timeout_s=5) == pool.check(("work",), timeout_s=5)


def test_a_worker_is_replaced_after_its_share_of_checks(pool, monkeypatch):
    monkeypatch.setattr(workers, "CHECKS_PER_WORKER", 2)
    first, second, third = (pool.check(("work",), timeout_s=5) for _ in range(3))
    assert first == second != third


def test_a_worker_that_died_while_idle_costs_nothing(pool):
    first = pool.check(("work",), timeout_s=5)
    os.kill(first, signal.SIGKILL)
    assert pool.check(("work",), timeout_s=5) != first


def test_when_all_idle_workers_died_the_check_gets_a_fresh_one(pool):
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda _: pool.check(("hold",), timeout_s=5), range(2)))
    pids = pool.pids()
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert pool.check(("work",), timeout_s=5) not in pids


def test_being_killed_from_outside_twice_is_no_verdict(pool):
    with pytest.raises(VerifierInfrastructureError, match="killed from outside with signal 9"):
        pool.check(("killed",), timeout_s=5)


def test_a_fault_of_the_function_is_no_verdict(pool):
    first = pool.check(("work",), timeout_s=5)
    with pytest.raises(
        VerifierInfrastructureError, match="functions_of_the_test:act raised.*\n(.*\n)*.*a fault of the"
    ):
        pool.check(("raise",), timeout_s=5)
    assert pool.check(("work",), timeout_s=5) == first


def test_a_check_without_processor_time_is_no_verdict(pool, monkeypatch):
    monkeypatch.setattr(workers, "WALL_FACTOR", 1.0)
    monkeypatch.setattr(workers, "WALL_MARGIN_S", 0.1)
    with pytest.raises(VerifierInfrastructureError, match="neither ended nor used up its processor time in 0 s"):
        pool.check(("sleep",), timeout_s=0.2)
    assert pool.pids() == []


def test_what_the_function_prints_and_reads_stays_out_of_the_protocol(pool):
    first = pool.check(("print",), timeout_s=5)
    assert pool.check(("print",), timeout_s=5) == first


@pytest.mark.parametrize(
    ("target", "memory_mb", "said"),
    [
        ("no_such_module:f", 512, "No module named 'no_such_module'"),
        ("functions_of_the_test:no_such_function", 512, "no_such_function"),
        ("broken_start:f", 512, "no grammar"),
        ("big_start:f", 256, "MemoryError"),
    ],
)
def test_a_worker_that_cannot_start_is_no_verdict(module, target, memory_mb, said):
    pool = WorkerPool(target, size=1, memory_mb=memory_mb)
    with pytest.raises(VerifierInfrastructureError, match=f"while starting: (.*\n)*.*({said})"):
        pool.check((), timeout_s=1)
    assert pool.pids() == []


def test_a_python_that_cannot_be_run_is_no_verdict(pool, monkeypatch):
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(VerifierInfrastructureError, match="cannot start a worker"):
        pool.check(("work",), timeout_s=1)
    assert descriptors() == before


def test_starting_is_not_counted_as_the_check(module):
    pool = WorkerPool("slow_start:check", size=1, memory_mb=512)
    # warm_up takes 0.6 s of processor time, the check 0.05 s.
    assert pool.check((), timeout_s=0.3) == "done"
    pool.close()


def test_each_thread_gets_its_own_answer_and_no_more_workers_than_asked_for(module):
    pool = WorkerPool("functions_of_the_test:double", size=2, memory_mb=512)
    seen = set()

    def work(number):
        value = pool.check((number,), timeout_s=5)
        seen.add(len(pool.pids()))
        return value

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(work, range(200))) == [2 * number for number in range(200)]
    assert seen <= {1, 2}
    pool.close()


def test_checks_have_the_workers_in_the_order_they_came_in(module):
    pool = WorkerPool("functions_of_the_test:double", size=1, memory_mb=512)
    served, threads = [], []

    def work(number):
        served.append(pool.check((number,), timeout_s=5))

    with pool._slots.lend():
        for number in range(6):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(pool._slots._waiting) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert served == [0, 2, 4, 6, 8, 10]
    pool.close()


def test_hangs_in_many_threads_disturb_nobody(pool):
    def work(number):
        if number % 8:
            return pool.check(("work",), timeout_s=5) > 0
        with pytest.raises(CheckTimeout):
            pool.check(("spin",), timeout_s=0.1)
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(32)))


def test_signals_blocked_in_the_calling_thread_do_not_disarm_the_clock(pool):
    caught = []

    def work():
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
        try:
            pool.check(("spin",), timeout_s=0.2)
        except CheckTimeout as error:
            caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert caught == ["the check ran out of time"]


def test_workers_are_alike(module, monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.chdir(module.parent)
    pool = WorkerPool("functions_of_the_test:seed", size=1, memory_mb=512)
    assert pool.check((0,), timeout_s=5) == ["0", False]
    pool.close()


def test_nothing_is_left_behind(module):
    processes, files = children(), descriptors()
    pool = WorkerPool("functions_of_the_test:act", size=2, memory_mb=512)
    for number in range(300):
        if number % 60 == 0:
            with pytest.raises(CheckTimeout):
                pool.check(("exit",), timeout_s=5)
        else:
            pool.check(("work",), timeout_s=5)
    pool.close()
    assert children() == processes
    assert descriptors() == files


def test_a_closed_pool_gives_no_verdict(pool):
    pool.close()
    with pytest.raises(VerifierInfrastructureError, match="closed"):
        pool.check(("work",), timeout_s=5)


def test_closing_ends_checks_under_way(pool):
    failed = []

    def work():
        try:
            pool.check(("sleep",), timeout_s=60)
        except VerifierInfrastructureError as error:
            failed.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not pool.pids():
        time.sleep(0.01)
    pool.close()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert len(failed) == 1


def test_a_forked_child_starts_workers_of_its_own(module):
    shared = workers.shared_pool("functions_of_the_test:act", size=1, memory_mb=512)
    mine = shared.check(("work",), timeout_s=5)
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        pool = workers.shared_pool("functions_of_the_test:act", size=1, memory_mb=512)
        os.write(writer, str(pool.check(("work",), timeout_s=5)).encode())
        workers.close_shared_pools()
        os._exit(0)
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0
    theirs = int(os.read(reader, 100))
    os.close(reader)
    assert theirs != mine
    assert shared.check(("work",), timeout_s=5) == mine
    workers.close_shared_pools()
    assert not alive(mine)
    assert workers.shared_pool("functions_of_the_test:act", size=1, memory_mb=512) is not shared


PARENT = """
import os, sys, threading, time
sys.path[:0] = {path!r}
from verl_cipo.rewards.math.workers import CheckTimeout, shared_pool
pool = shared_pool("functions_of_the_test:act", size=2, memory_mb=512)
print(pool.check(("work",), timeout_s=5), flush=True)
if "{end}" == "while a check hangs":
    threading.Thread(target=lambda: pool.check(("spin",), timeout_s=1), daemon=True).start()
    time.sleep(0.3)
if "{end}" == "normally":
    sys.exit(0)
os._exit(9)
"""


@pytest.mark.parametrize("end", ["normally", "at once", "while a check hangs"])
def test_workers_do_not_outlive_their_interpreter(module, end):
    root = Path(workers.__file__).parents[3]
    script = PARENT.format(path=[str(module), str(root)], end=end)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    # At a normal exit they are ended and waited for; else they see it for themselves.
    assert wait_until_gone([int(run.stdout)], limit_s=0 if end == "normally" else 20)
