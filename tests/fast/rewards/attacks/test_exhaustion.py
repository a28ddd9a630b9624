"""What a program may not use up: time, memory, output, processes. One property a program."""

import os
import time
from pathlib import Path

import pytest

from verl_cipo.rewards.sandbox import bubblewrap

PROGRAM = {"inputs": [""], "outputs": ["7"]}
IGNORE_SIGNALS = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
"""
ENDLESS = {
    "loop": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "ignores_signals": f"{IGNORE_SIGNALS}\nwhile True: pass",
    "huge_int": "print(len(str(9 ** 9 ** 9)))",
    "catastrophic_regex": "import re\nre.match('(a+)+$', 'a' * 50 + 'b')",
    "closes_everything": "import os\nos.closerange(0, 100)\nwhile True: pass",
    "stdout_closed_and_reading": "import os\nos.close(1)\nwhile True:\n    os.read(0, 1)",
    "never_lets_exceptions_out": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "waits_on_a_lock": "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "exit_handler": "import atexit\n@atexit.register\ndef loop():\n    while True: pass",
    "destructor": "class A:\n    def __del__(self):\n        while True: pass\na = A()",
    "alarm_handler": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nwhile True: signal.alarm(1)",
    "patched_os_exit": "import os\ndef hang(status):\n    while True: pass\nos._exit = hang",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_time_is_limited(judge, name):
    verdict = judge(ENDLESS[name], PROGRAM, timeout_s=0.5)
    assert (verdict["score"], verdict["outcome"]) == (0.0, "timeout")


def test_time_of_a_call_is_limited(judge):
    call = {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}
    assert judge("def f(x):\n    while True: pass", call, timeout_s=0.5)["outcome"] == "timeout"


def test_time_of_a_call_from_test_code_is_limited(judge):
    check = {"check": "def check(f):\n    try:\n        f(1)\n    except Exception: pass", "entry_point": "g"}
    assert judge("def g(x):\n    while True: pass", check, timeout_s=0.5)["outcome"] == "timeout"


def test_total_time_is_limited(judge):
    slow = {"inputs": [""] * 9, "outputs": ["7"] * 9}
    verdict = judge("import time\ntime.sleep(0.3)\nprint(7)", slow, timeout_s=5.0, total_timeout_s=0.8)
    assert verdict["outcome"] == "timeout"


TOO_MUCH_MEMORY = {
    "bytearray": "a = bytearray(4 * 2**30)",
    "growing_list": "a = []\nwhile True: a.append(bytes(2**20))",
    "doubling_text": "a = 'x'\nwhile True: a += a",
    "shared_mmap": "import mmap\na = [mmap.mmap(-1, 2**28) for _ in range(99)]",
    "big_range": "a = list(range(10**9))",
    "many_small_objects": "a = []\nwhile True: a.append({})",
    "stdout_buffer": "import io, sys\nsys.stdout = io.StringIO()\nwhile True: print('x' * 2**20)",
}


@pytest.mark.parametrize("name", TOO_MUCH_MEMORY)
def test_memory_is_limited(judge, name):
    verdict = judge(f"{TOO_MUCH_MEMORY[name]}\nprint(7)", PROGRAM, memory_mb=256, timeout_s=60, total_timeout_s=60)
    assert (verdict["score"], verdict["outcome"]) == (0.0, "wrong")
    # The last: not even the error's name could be reported.
    assert any(said in verdict["pred"] for said in ("raised MemoryError", "raised OSError", "exit status 1"))


FLOODS = {
    "finite": "print('x' * 50_000_000)",
    "endless": "while True: print('x' * 100_000)",
    "endless_lines": "import os\nwhile True: os.write(1, b'7\\n' * 30_000)",
    "after_the_answer": "print(7)\nwhile True: print()",
}


@pytest.mark.parametrize("name", FLOODS)
def test_output_is_limited(judge, name):
    verdict = judge(FLOODS[name], PROGRAM, timeout_s=30)
    assert (verdict["score"], verdict["outcome"]) == (0.0, "wrong")
    assert "output limit" in verdict["pred"]


FLOOD_EVERY_DESCRIPTOR = """
import os
def f(x):
    while True:
        for fd in range(3, 64):
            try: os.write(fd, b'\\xff' * 60_000)
            except OSError: pass
"""


def test_the_result_channel_is_limited(judge):
    verdict = judge(FLOOD_EVERY_DESCRIPTOR, {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"}, timeout_s=30)
    assert verdict["outcome"] == "wrong" and "output limit" in verdict["pred"]


def test_a_function_may_print_as_much_as_it_likes(judge):
    code = "def f(x):\n    for _ in range(2000): print('x' * 10_000)\n    return x"
    assert judge(code, {"inputs": ["1"], "outputs": ["1"], "fn_name": "f"})["acc"] is True


CONTAINED = {
    "deep_recursion": ("def f(n): return f(n + 1)\nf(0)", "raised RecursionError"),
    "c_stack_overflow": ("import sys\nsys.setrecursionlimit(10**9)\nf = lambda: 0\n"
        "for _ in range(10**6): f = [f].__repr__\n"
                         "class A:\n    def __repr__(self): return repr(self)\nrepr(A())", ""),
    "segfault": ("import ctypes\nctypes.string_at(0)", "killed by signal 11"),
    "abort": ("import os\nos.abort()", "killed by signal"),
    "infinite_container": ("import sys\nclass L(list):\n    def __iter__(self):\n        while True: yield 1\n"
        "print(*L())",
                           "raised MemoryError"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTAINED)
def test_a_crash_stays_inside(judge, name):
    code, said = CONTAINED[name]
    verdict = judge(code, PROGRAM, memory_mb=256, timeout_s=60, total_timeout_s=60)
    assert verdict["outcome"] == "wrong" and said in verdict["pred"]


def test_a_value_without_end_is_not_waited_for(judge):
    code = "class L(list):\n    def __iter__(self):\n        while True: yield 'x' * 2**20\ndef f(x): return L()"
    verdict = judge(code, {"inputs": ["1"], "outputs": ["[1]"], "fn_name": "f"}, memory_mb=96, timeout_s=60)
    assert verdict["score"] == 0.0


# Multiples of 2 ** 61 - 1 all have hash 0: 30,000 of them in a set take a minute.
EQUAL_HASHES = """
def f(x):
    class Colliding(set):
        def __iter__(self):
            return iter([i * (2 ** 61 - 1) for i in range(30_000)])
    return Colliding()
"""


def test_a_value_with_equal_hashes_does_not_stall_the_verifier(judge):
    began = time.process_time()
    assert judge(EQUAL_HASHES, {"asserts": ["assert f(1) == {1}"]})["outcome"] == "wrong"
    assert time.process_time() - began < 10


def test_nothing_survives_a_timeout():
    sandbox = bubblewrap.start()
    processes = _with_descendants(sandbox._process.pid)
    namespaces = {os.readlink(f"/proc/{pid}/ns/pid") for pid in processes} - {os.readlink("/proc/self/ns/pid")}
    assert len(processes) >= 2 and len(namespaces) == 1
    code = f"{IGNORE_SIGNALS}\nimport os\ntry: os.fork()\nexcept OSError: pass\nwhile True: pass"
    job = {"kind": "program", "code": code, "limits": {"memory": 2**28, "cpu": 9}}
    assert sandbox.run(job, timeout_s=0.5).end == "timeout"
    # At once, zombies included.
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    assert not namespaces & set(map(_namespace, _pids()))


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # It has just ended.
        return ""


def _with_descendants(root: int) -> set[int]:
    """The process `root` and all below it."""
    parents = {}
    for pid in _pids():
        try:
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:  # It has just ended.
            continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found
