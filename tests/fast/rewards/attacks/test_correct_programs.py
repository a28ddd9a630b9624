"""Programs that are right, in the ways people and models write them: all have to pass."""

import pytest


def stdin(*pairs):
    return {"inputs": [given for given, _ in pairs], "outputs": [wanted for _, wanted in pairs]}


def calls(*pairs, name="f"):
    return {"inputs": [given for given, _ in pairs], "outputs": [wanted for _, wanted in pairs], "fn_name": name}


DOUBLE = stdin(("21\n", "42\n"), ("0\n", "0"), ("-4", "-8\n"))
SUM = stdin(("3\n1 2 3\n", "6"), ("1\n5\n", "5"))
# As many solutions of programming contests begin.
FAST_IO = """
import os, sys
from io import BytesIO, IOBase
class FastIO(IOBase):
    newlines = 0
    def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = "x" in file.mode or "r" not in file.mode
        self.write = self.buffer.write if self.writable else None
    def readline(self):
        while self.newlines == 0:
            b = os.read(self._fd, max(os.fstat(self._fd).st_size, 8192))
            self.newlines = b.count(b"\\n") + (not b)
            ptr = self.buffer.tell()
            self.buffer.seek(0, 2), self.buffer.write(b), self.buffer.seek(ptr)
        self.newlines -= 1
        return self.buffer.readline()
    def flush(self):
        if self.writable:
            os.write(self._fd, self.buffer.getvalue())
            self.buffer.truncate(0), self.buffer.seek(0)
class IOWrapper(IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)
        self.flush = self.buffer.flush
        self.writable = self.buffer.writable
        self.write = lambda s: self.buffer.write(s.encode("ascii"))
        self.readline = lambda: self.buffer.readline().decode("ascii")
sys.stdin, sys.stdout = IOWrapper(sys.stdin), IOWrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip()
"""
EVALPLUS_CHECK = """
import numpy as np
def is_floats(x):
    return isinstance(x, float) or isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)
def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp
def check(candidate):
    inputs = [[1.0], [2.5], [0.1]]
    results = [0.1, 0.25, 0.01]
    for inp, exp in zip(inputs, results):
        assertion(candidate(*inp), exp, 0)
"""
CORRECT = {
    "input": (DOUBLE, "print(int(input()) * 2)"),
    "sys_stdin_read": (DOUBLE, "import sys\nprint(int(sys.stdin.read()) * 2)"),
    "sys_stdin_lines": (SUM, "import sys\nlines = sys.stdin.readlines()\nprint(sum(map(int, lines[1].split())))"),
    "sys_stdin_buffer": (SUM, "import sys\ndata = sys.stdin.buffer.read().split()\nprint(sum(map(int, data[1:])))"),
    "open_0": (SUM, "data = open(0).read().split()\nprint(sum(map(int, data[1:])))"),
    "os_read": (SUM, "import os\nn, *rest = os.read(0, 10**6).split()\nprint(sum(map(int, rest)))"),
    "size_of_stdin": (SUM, "import os, io\ninput = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline\n"
                           "input()\nprint(sum(map(int, input().split())))"),
    "mapped_stdin": (SUM, "import mmap\nm = mmap.mmap(0, 0, access=mmap.ACCESS_READ)\n"
        "print(sum(map(int, m[:].split()[1:])))"),
    "main_guard": (DOUBLE, "def main():\n    print(int(input()) * 2)\nif __name__ == '__main__':\n    main()"),
    "stdout_write": (DOUBLE, "import sys\nsys.stdout.write(str(int(input()) * 2))"),
    "os_write": (DOUBLE, "import os\nos.write(1, str(int(input()) * 2).encode())"),
    "buffered_output_at_exit": (DOUBLE, "import atexit, io, sys\nbuffer = io.StringIO()\nsys.stdout = buffer\n"
                                "@atexit.register\ndef write():\n    sys.__stdout__.write(buffer.getvalue())\n"
                                "print(int(input()) * 2)"),
    "reopened_stdout": (DOUBLE, "import os\nout = os.fdopen(1, 'w')\nout.write(str(int(input()) * 2))"),
    "fast_io_template": (SUM, FAST_IO + "n = int(input())\nprint(sum(map(int, input().split())))"),
    "stdout_of_ones_own": (DOUBLE, "import sys\nclass Out:\n    def write(self, text): sys.__stdout__.write(text)\n"
                           "    def flush(self): sys.__stdout__.flush()\nsys.stdout = Out()\nprint(int(input()) * 2)"),
    "exit": (DOUBLE, "print(int(input()) * 2)\nexit()"),
    "quit_0": (DOUBLE, "print(int(input()) * 2)\nquit(0)"),
    "sys_exit": (DOUBLE, "import sys\nprint(int(input()) * 2)\nsys.exit()"),
    "hard_exit_after_flush": (DOUBLE, "import os\nprint(int(input()) * 2, flush=True)\nos._exit(0)"),
    "until_eof": (stdin(("1\n2\n3\n", "6")), "n = 0\ntry:\n    while True: n += int(input())\nexcept EOFError:\n"
        "    print(n)"),
    "big_stack_thread": (DOUBLE, "import sys, threading\nsys.setrecursionlimit(10**7)\nthreading.stack_size(2**27)\n"
                         "def main():\n    print(int(input()) * 2)\nt = threading.Thread(target=main)\nt.start()\n"
        "t.join()"),
    "deep_recursion": (stdin(("40000", "40000")), "import sys\nsys.setrecursionlimit(10**6)\n"
                       "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(int(input())))"),
    "cached_recursion": (stdin(("400", "400")), "from functools import lru_cache\n@lru_cache(None)\n"
                         "def f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(int(input())))"),
    "no_imports": (SUM, "n = int(input())\nprint(reduce(lambda a, b: a + b, deque(map(int, input().split()))))"),
    "huge_int": (stdin(("9000", "1" + "0" * 9000)), "print(10 ** int(input()))"),
    "huge_int_input": (stdin(("1" + "0" * 9000, "1")), "print(len(str(int(input()))) // 9000)"),
    "long_output": (stdin(("200000", "\n".join(map(str, range(200_000))))), "for i in range(int(input())): print(i)"),
    "long_input": (stdin((" ".join(["7"] * 500_000), "3500000")), "print(sum(map(int, input().split())))"),
    "trailing_blanks": (stdin(("", "1 2\n3\n")), "print('1 2 ')\nprint(3)\nprint()"),
    "windows_line_ends": (stdin(("", "1\r\n2\r\n")), "print(1)\nprint(2)"),
    "float_in_tolerance": (stdin(("", "0.333333")), "print(1 / 3)"),
    "float_for_int": (stdin(("", "3")), "print(3.0)"),
    "exponent": (stdin(("", "1e-3")), "print(0.001)"),
    "unicode": (stdin(("gr\u00fc\u00df \u4f60\n", "\u4f60 gr\u00fc\u00df")), "a, b = input().split()\nprint(b, a)"),
    "numpy": (SUM, "import numpy as np\ninput()\nprint(np.array(input().split(), dtype=int).sum())"),
    "writes_to_stderr": (DOUBLE, "import sys\nprint('debug' * 99999, file=sys.stderr)\nprint(int(input()) * 2)"),
    "lines_as_lists": ({"inputs": [["1", "2"]], "outputs": [["3", "4"]]}, "print(int(input()) + 2)\n"
        "print(int(input()) + 2)"),
    "future_import": (DOUBLE, "from __future__ import annotations\nprint(int(input()) * 2)"),
    "function": (calls(("3", "9")), "def f(x): return x * x"),
    "function_of_several": (calls(('"ab"\n2', '"abab"')), "def f(s, n):\n    return s * n"),
    "function_of_none": (calls(("", "5")), "def f(): return 5"),
    "solution_class": (calls(("[2,7]\n9", "[0,1]"), name="twoSum"),
                       "class Solution:\n    def twoSum(self, nums: List[int], target: int) -> List[int]:\n"
                       "        seen = {}\n        for i, n in enumerate(nums):\n            if target - n in seen:\n"
                       "                return [seen[target - n], i]\n            seen[n] = i"),
    "tuple_for_list": (calls(("3", "[1, [2, 3]]")), "def f(x): return 1, (2, 3)"),
    "raw_lists": (calls(([1, 2], 3)), "def f(a, b): return a + b"),
    "wrapped_outputs": (calls(([[1, 2]], [[2, 1]]), ([[3]], [[3]])), "def f(a): return a[::-1]"),
    "dict_with_int_keys": (calls(('{"1": 2}', '{"2": 1}')), "def f(d): return {v: k for k, v in d.items()}"),
    "text_output_not_json": (calls((["abc"], "cba")), "def f(s): return s[::-1]"),
    "null_and_bool": (calls(("1", "null"), ("2", "true")), "def f(x): return None if x == 1 else True"),
    "float_value": (calls(("3", "0.3333333")), "def f(x): return 1 / x"),
    "huge_value": ({"asserts": ["assert f(9000) == 10 ** 9000"]}, "def f(x): return 10 ** x"),
    "numpy_value": (calls(("[1,2]", "[2,4]")), "import numpy as np\ndef f(a): return np.array(a) * 2"),
    "numpy_scalar": (calls(("[1,2]", "3")), "import numpy as np\ndef f(a): return np.sum(a)"),
    "defaultdict_value": (calls(('"aab"', '{"a": 2, "b": 1}')), "from collections import Counter\n"
        "def f(s): return Counter(s)"),
    "sleep_below_the_limit": (DOUBLE, "import time\ntime.sleep(0.05)\nprint(int(input()) * 2)"),
    "alarm_that_never_rings": (DOUBLE, "import signal\nsignal.alarm(60)\nprint(int(input()) * 2)"),
    "assert_literal": ({"asserts": ["assert f((1, 2)) == {1: (2,)}", "assert f(x=(3, 4)) == {3: (4,)}"]},
                       "def f(x): return {x[0]: x[1:]}"),
    "assert_set": ({"asserts": ["assert set(f([3, 1])) == {1, 3}", "assert sorted(f([2, 1])) == [1, 2]"]},
                   "def f(x): return tuple(x)"),
    "assert_with_setup": ({"asserts": ["assert math.isclose(f(2), root, rel_tol=1e-9)"], "setup": "import math\n"
        "root = 2 ** 0.5"},
                          "def f(x): return x ** 0.5"),
    "assert_named_like_a_builtin": ({"asserts": ["assert sum(10, 15) == 25"]}, "def sum(a, b): return a + b"),
    "assert_case": ({"assert_case": ["assert f(1) == 2"], "inputs": [""], "outputs": [None], "fn_name": "f"},
                    "def f(x): return x + 1"),
    "humaneval_check": ({"check": "METADATA = {}\ndef check(candidate):\n    assert candidate([1, 2], 3) == 6\n"
                         "    assert candidate([], 0) == 0", "entry_point": "total"},
                        "def total(a, b): return sum(a) + b"),
    "check_with_a_helper": ({"check": "def check(candidate):\n    for s in ('abc', 'xyz'):\n"
                                            "        assert candidate(encode(s)) == s", "entry_point": "decode",
                             "setup": "def encode(s): return s[::-1]"}, "def decode(s): return s[::-1]"),
    "method_check": ({"check": "def check(candidate):\n    assert candidate(a=1, b=2) == 3",
                      "entry_point": "Solution().add"},
                     "class Solution:\n    def add(self, a: int, b: int) -> int:\n        return a + b"),
    "stack_without_limit": (DOUBLE, "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "sys.setrecursionlimit(10**6)\nprint(int(input()) * 2)"),
    "stack_as_a_list": (DOUBLE, "import resource\n"
        "resource.setrlimit(resource.RLIMIT_STACK, [2**28, resource.RLIM_INFINITY])\nprint(int(input()) * 2)"),
    "stack_of_a_gibibyte": (DOUBLE, "from resource import *\nsetrlimit(RLIMIT_STACK, (2**30, 2**30))\n"
        "print(int(input()) * 2)"),
    "lower_stack": (DOUBLE, "import resource\nhard = resource.getrlimit(resource.RLIMIT_STACK)[1]\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (2**23, hard))\nprint(int(input()) * 2)"),
    "processor_time": (DOUBLE, "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (5, 5))\n"
        "print(int(input()) * 2)"),
    "destructor_prints": (DOUBLE, "class A:\n    def __init__(self): self.n = int(input())\n"
        "    def __del__(self): print(self.n * 2)\na = A()"),
    "destructor_uses_names": (DOUBLE, "import sys\nFACTOR = 2\ndef out(n): sys.stdout.write(str(n * FACTOR))\n"
        "class A:\n    def __del__(self): out(int(input()))\na = A()\nb = [a]"),
    "file_of_its_own": (DOUBLE, "import os\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\n"
        "print(int(input()) * 2)"),
    "watchdog": (DOUBLE, "import os, threading\ntimer = threading.Timer(8, lambda: os._exit(1))\ntimer.daemon = True\n"
        "timer.start()\nprint(int(input()) * 2)\ntimer.cancel()"),
    "daemon_watchdog_left_alone": (DOUBLE, "import os, threading\ntimer = threading.Timer(8, os._exit, (1,))\n"
        "timer.daemon = True\ntimer.start()\nprint(int(input()) * 2)"),
    "timer_at_the_end": (DOUBLE, "import threading\nn = int(input())\n"
        "threading.Timer(0.01, lambda: print(n * 2)).start()"),
    "timer_that_is_joined": (DOUBLE, "import threading\nfound = []\n"
        "timer = threading.Timer(0.01, lambda: found.append(int(input()) * 2))\ntimer.start()\ntimer.join()\n"
        "print(*found)"),
    "device_of_stdin": (DOUBLE, "print(int(open('/dev/stdin').read()) * 2)"),
    "device_of_stdout": (DOUBLE, "with open('/dev/stdout', 'w') as out:\n    print(int(input()) * 2, file=out)"),
    "null_device": (DOUBLE, "import os, sys\nsys.stderr = open(os.devnull, 'w')\nprint('x', file=sys.stderr)\n"
        "print(int(input()) * 2)"),
    "fileinput": (DOUBLE, "import fileinput\nfor line in fileinput.input(): print(int(line) * 2)"),
    "evalplus_check": ({"check": EVALPLUS_CHECK, "entry_point": "tenth"}, "def tenth(x): return x / 10"),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_passes(judge, name):
    ground_truth, code = CORRECT[name]
    verdict = judge(code, ground_truth)
    assert (verdict["score"], verdict["acc"], verdict["outcome"]) == (1.0, True, "right"), verdict


def test_there_are_enough():
    assert len(CORRECT) >= 40
