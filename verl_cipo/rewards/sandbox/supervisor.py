"""Runs inside the sandbox: a warm interpreter that forks one child a run, so each run starts from the same state.

    python -I -S -X utf8 -c <this file> JOB_FD RESULT_FD STATUS_FD PACKAGES WARM SUPERVISOR_FILTER RUN_FILTER

PACKAGES: a folder to import from besides the standard library, WARM: a module of it to import at once; either may be
empty. The filters: seccomp programs in base64.

Standard library only, and no import of this project: the sandbox sees neither. The supervisor never reads a job. Its
child does, and only then runs the program, so nothing of one run is in the memory of another. Channels:

    job     verifier -> child: one frame, the job. A checker also reads the answers to its calls here.
    result  child -> verifier: frames. The program can write here as well, so what it says is no more than a claim
            on a value: the verifier reads it as data and compares it with what the sandbox never sees.
    status  supervisor -> verifier: READY, then for each child IN_JAIL and its wait status. Closed in the child before
            the program starts.

A frame is 4 bytes of length, little-endian, and that many bytes of JSON. The verifier imports this file, too, for
`encode` and `decode`.
"""

import atexit
import base64
import ctypes
import gc
import importlib
import io
import json
import os
import resource
import select
import struct
import sys
import threading
import types

READY, IN_JAIL = 0x7EAD, 0x1A11
# What a program need not import, as with the graders of APPS and LiveCodeBench; imported before the fork.
PRELUDE = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
    "builtins typing"
).split()
BUILTINS = {}
ALSO_WARM = "decimal fractions array cmath textwrap dataclasses enum abc time traceback queue contextlib".split()
RECURSION_LIMIT = 50_000
MAX_OPEN_FILES = 32
# The kernel keeps at least 128 MiB free below the main thread's stack; staying under that needs no exec.
STACK_BYTES = 120 * 2**20
MAX_DEPTH = 100
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2


class NotPlainError(TypeError):
    """A value that is not made of plain values (see `encode`), so it cannot leave or enter the sandbox."""


class SockFprog(ctypes.Structure):
    """The kernel's struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


# ---- values as JSON -------------------------------------------------------------------------------------------------


def encode(value, depth=0):
    """`value` as JSON-able data from which `decode` makes equal plain values.

    Plain are None, bool, int, float, complex, str, bytes and list, tuple, set, frozenset, dict of them. Instances of
    subclasses and numpy's scalars and arrays become the plain value that they hold. Raises: NotPlainError.
    """
    if depth > MAX_DEPTH:
        raise NotPlainError(f"a value nested deeper than {MAX_DEPTH}")
    kind = type(value)
    if value is None or kind is bool or kind is float:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        plain = int.__int__(value)
        # Above this size decimal text is slow to parse and refused by default.
        return plain if abs(plain) < 10**18 else {"int": hex(plain)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": bytes.hex(value)}
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in dict.items(value)]}
    if isinstance(value, list):
        return [encode(item, depth + 1) for item in value]
    for name, base in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if isinstance(value, base):
            return {name: [encode(item, depth + 1) for item in value]}
    if kind.__module__ == "numpy":
        return encode(value.tolist(), depth + 1)
    raise NotPlainError(f"a value of type {kind.__name__}")


def decode(data, max_hashed=sys.maxsize, depth=0):
    """The plain value that `data` stands for; of exact built-in types, so its methods are Python's own.

    max_hashed: the most elements of one set or dict.
    Raises: NotPlainError when `data` is nothing that `encode` returns, or too much.
    """

    def inner(item):
        return decode(item, max_hashed, depth + 1)

    if depth > MAX_DEPTH:
        raise NotPlainError(f"data nested deeper than {MAX_DEPTH}")
    if isinstance(data, list):
        return [inner(item) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        ((name, content),) = data.items()
        if name == "int":
            return int(content, 16)
        if name == "complex":
            return complex(*content)
        if name == "bytes":
            return bytes.fromhex(content)
        if name != "tuple" and len(content) > max_hashed:
            raise NotPlainError(f"a {name} of {len(content)} elements")
        if name == "dict":
            return {inner(key): inner(item) for key, item in content}
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[name]([inner(item) for item in content])
    except NotPlainError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise NotPlainError(f"no encoded value: {error}") from error


def frame(data):
    """`data` as the bytes of one frame."""
    body = json.dumps(data).encode("ascii")
    return struct.pack("<I", len(body)) + body


# ---- the child ------------------------------------------------------------------------------------------------------


def read_frame(fd):
    """The next frame of `fd`, or None at its end."""
    header = _read(fd, 4)
    return None if header is None else json.loads(_read(fd, *struct.unpack("<I", header)))


def write_frame(fd, data):
    """Writes `data` as one frame."""
    left = memoryview(frame(data))
    while left:
        left = left[os.write(fd, left) :]


def _read(fd, size):
    parts = []
    while size:
        part = os.read(fd, min(size, 2**20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def enter_jail(job, null, run_filter):
    """Sets the run's standard streams and limits, and takes from this process what the supervisor alone needs."""
    stdin = os.memfd_create("stdin")
    with open(stdin, "wb", closefd=False) as file:
        file.write(job.get("stdin", "").encode("utf-8", "surrogatepass"))
    os.lseek(stdin, 0, os.SEEK_SET)
    os.dup2(stdin, 0)
    os.dup2(null, 2)
    if job["kind"] != "program":
        os.dup2(null, 1)
    os.close(stdin)
    os.close(null)
    limits = job["limits"]
    for name, value in (
        ("RLIMIT_AS", limits["memory"]),
        ("RLIMIT_CPU", limits["cpu"]),
        ("RLIMIT_NOFILE", MAX_OPEN_FILES),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_MEMLOCK", 0),
    ):
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (stack, stack))
    load_filter(run_filter)


def load_filter(code):
    """Hands the BPF program `code` to the kernel; it holds for good, here and in all children. Raises: OSError."""
    program = SockFprog(len(code) // 8, code)
    none = ctypes.c_ulong(0)
    for option, arguments in (
        (PR_SET_NO_NEW_PRIVS, (ctypes.c_ulong(1), none, none, none)),
        (PR_SET_SECCOMP, (ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(program), none, none)),
    ):
        if LIBC.prctl(option, *arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def fresh_module(name):
    """An empty module of that name in sys.modules, with the prelude among its builtins.

    Copying the prelude into its globals would touch hundreds of objects, and so pages shared with the supervisor.
    """
    module = types.ModuleType(name)
    BUILTINS.update(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)
    module.__dict__["__builtins__"] = BUILTINS
    sys.modules[name] = module
    return module


def open_stdio():
    """The standard streams of a freshly started interpreter, on this child's descriptors."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="replace", closefd=False)


def finish(module):
    """What an interpreter does as it ends: exit handlers, then files that are still open are flushed."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
    module.__dict__.clear()


def run_program(job, result_fd):
    """Runs a program that reads stdin and writes stdout. Returns its exit status."""
    module = fresh_module("__main__")
    status = 0
    try:
        exec(compile(job["code"], "<solution>", "exec"), module.__dict__)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        write_frame(result_fd, {"error": type(error).__name__})
        status = 1
    finish(module)
    return status


def run_call(job):
    """Defines the solution and calls its function, or Solution's method. Returns the claim: a value or an error."""
    try:
        module = fresh_module("solution")
        exec(compile(job["code"], "<solution>", "exec"), module.__dict__)
        holder = module.__dict__.get("Solution")
        function = getattr(holder() if hasattr(holder, job["name"]) else module, job["name"])
        value = function(*decode(job["args"]), **decode(job["kwargs"]))
        return {"value": encode(value)}
    except BaseException as error:
        return {"error": type(error).__name__}


def run_check(job, job_fd, result_fd):
    """Runs a data set's own test code. The solution is elsewhere: a call of its function asks the verifier.

    Returns the verdict; fault: the test failed in a way that the solution has no part in.
    """
    n_calls = 0

    def ask(*args, **kwargs):
        nonlocal n_calls
        call = {"call": {"args": encode(list(args)), "kwargs": encode(kwargs)}}
        n_calls += 1
        write_frame(result_fd, call)
        answer = read_frame(job_fd)
        if "value" not in answer:
            raise AssertionError(f"{job['name']} gave no value")
        return decode(answer["value"])

    module = fresh_module("check")
    module.__dict__[job["name"]] = ask
    try:
        exec(compile(job["source"], "<test>", "exec"), module.__dict__)
        return {"passed": True, "fault": "it never calls the solution" if n_calls == 0 else None}
    except BaseException as error:
        # What happens before the first call is not the solution's doing.
        return {"passed": False, "fault": f"{type(error).__name__}: {error}"[:300] if n_calls == 0 else None}


def child(job_fd, result_fd, status_fd, null, run_filter):
    """One run, from reading its job to the end of the process."""
    status = 1
    try:
        job = read_frame(job_fd)
        if job is None:
            return
        if job["kind"] != "check":
            os.close(job_fd)
        enter_jail(job, null, run_filter)
        os.write(status_fd, struct.pack("<I", IN_JAIL))
        os.close(status_fd)
        open_stdio()
        if job["kind"] == "program":
            status = run_program(job, result_fd)
        elif job["kind"] == "call":
            write_frame(result_fd, run_call(job))
            status = 0
        else:
            write_frame(result_fd, run_check(job, job_fd, result_fd))
            status = 0
    finally:
        # Never back into the supervisor's loop, whatever was raised.
        os._exit(status & 0xFF)


# ---- elsewhere ------------------------------------------------------------------------------------------------------


def run_remotely(job, marker):
    """One run in an interpreter that was started for it alone, by a service that returns stdout and the exit status.

    The claim of a call is the line that starts with `marker`. Returns the exit status.
    """
    warm_up()
    sys.setrecursionlimit(RECURSION_LIMIT)
    if job["kind"] == "program":
        return run_program(job, result_fd=2)
    stdout, sys.stdout = sys.stdout, io.StringIO()
    claim = run_call(job)
    print(marker + json.dumps(claim), file=stdout, flush=True)
    return 0


# ---- the supervisor -------------------------------------------------------------------------------------------------


def run_threads_inline():
    """Thread.start() runs the thread's work at once: the kernel's filter allows no threads.

    Enough for the idiom `threading.stack_size(...); Thread(target=main).start()`.
    """

    def start(self):
        self._started.set()
        try:
            self.run()
        except Exception:
            threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), self]))

    threading.Thread.start = start
    threading.Thread.join = lambda self, timeout=None: None
    threading.Thread.is_alive = lambda self: False


def warm_up():
    """Imports what programs import most, and fills BUILTINS as `from ... import *` of each would."""
    # Without the site module, which -S leaves out, these two are missing.
    sys.modules["builtins"].exit = sys.modules["builtins"].quit = sys.exit
    for name in PRELUDE:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        BUILTINS.update({key: getattr(module, key) for key in public})
    BUILTINS.update({name: sys.modules[name] for name in PRELUDE})
    BUILTINS.update(vars(sys.modules["builtins"]))
    for name in ALSO_WARM:
        importlib.import_module(name)


def main():
    """Says READY, then forks a child, waits for it, reports its status, and so on until the job pipe is closed."""
    job_fd, result_fd, status_fd = map(int, sys.argv[1:4])
    packages, warm = sys.argv[4:6]
    supervisor_filter, run_filter = map(base64.b64decode, sys.argv[6:8])
    sys.argv = [""]
    if packages:
        sys.path.append(packages)
    if warm:
        importlib.import_module(warm)
    warm_up()
    run_threads_inline()
    sys.setrecursionlimit(RECURSION_LIMIT)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    closed = select.poll()
    closed.register(job_fd, 0)
    null = os.open(os.devnull, os.O_RDWR)
    load_filter(supervisor_filter)
    gc.collect()
    gc.freeze()
    os.write(status_fd, struct.pack("<I", READY))
    while not closed.poll(0):
        pid = os.fork()
        if pid == 0:
            child(job_fd, result_fd, status_fd, null, run_filter)
        os.write(status_fd, struct.pack("<I", os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
