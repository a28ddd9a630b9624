"""Runs inside the sandbox: a warm interpreter that forks one child a run, so each run starts from the same state.

    python -I -S -X utf8 -c <this file> JOB_FD RESULT_FD STATUS_FD PACKAGES WARM SUPERVISOR_FILTER RUN_FILTER

PACKAGES: a folder to import from besides the standard library, WARM: a module of it to import at once; either may be
empty. The filters: seccomp programs in base64.

Standard library only, and no import of this project: the sandbox sees neither. The supervisor never reads a job. Its
child does, and only then runs the program, so nothing of one run is in the memory of another. Channels:

    job     verifier -> child: one frame, the job; before a call another, its arguments. A checker also reads the
            answers to its calls here.
    result  child -> verifier: frames. The program can write here as well, so what it says is no more than a claim
            on a value: the verifier reads it as data and compares it with what the sandbox never sees.
    status  supervisor -> verifier: READY, then for each child IN_JAIL and its wait status. Closed in the child before
            the program starts.

A frame is 4 bytes of length, little-endian, and that many bytes of JSON. The verifier imports this file, too, for
`encode`.
"""

import atexit
import base64
import builtins
import collections
import ctypes
import decimal
import fractions
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
# Of an iterator, which may have no end, as many elements leave as this allows.
MAX_ITEMS = 10_000
MAX_ITERATOR_BYTES = 2**20
MAX_NAME_CHARS = 200
DEVICES = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2, os.devnull: 2}
DICT_KEYS, DICT_VALUES, DICT_ITEMS = (type(view) for view in ({}.keys(), {}.values(), {}.items()))
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
MAX_ERROR_BYTES = 2**10
SILENT = (StopIteration, StopAsyncIteration, GeneratorExit)
TIMERS = []
SETRLIMIT = resource.setrlimit
TYPE_NAME = type.__dict__["__name__"].__get__


class NotPlainError(TypeError):
    """A value of a type that `encode` does not know, so it cannot leave or enter the sandbox."""


class TooDeepError(NotPlainError):
    """A value that is nested too deep for that."""


class NoValueError(BaseException):
    """The solution gave test code nothing that it could go on with. No `except Exception` of the test may take it for
    an error that it asks for, and `raised` remembers it where even a bare `except` does."""

    raised = False

    def __init__(self, *args):
        super().__init__(*args)
        NoValueError.raised = True


class SockFprog(ctypes.Structure):
    """The kernel's struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


# ---- values as JSON -------------------------------------------------------------------------------------------------


def encode(value, depth=0):
    """`value` as JSON-able data from which `decode` makes an equal plain value.

    Plain are None, bool, int, float, complex, Fraction, Decimal, str, bytes, bytearray, range, the built-in types, and
    list, tuple, set, frozenset, deque, dict, the views of a dict and iterators of them. Instances of subclasses and
    numpy's scalars and arrays become the plain value that they hold. Raises: NotPlainError.
    """
    if depth > MAX_DEPTH:
        raise TooDeepError(f"a value nested deeper than {MAX_DEPTH}")
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
    if isinstance(value, dict):
        return {"dict": [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in dict.items(value)]}
    if isinstance(value, list):
        return [encode(item, depth + 1) for item in value]
    for name, base in SEQUENCES.items():
        if isinstance(value, base):
            return {name: [encode(item, depth + 1) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": bytes(value).hex()}
    if isinstance(value, range):
        return {"range": [encode(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, fractions.Fraction):
        return {"fraction": [encode(value.numerator), encode(value.denominator)]}
    if isinstance(value, decimal.Decimal):
        return {"decimal": str(value)}
    if getattr(builtins, getattr(value, "__name__", ""), None) is value and kind is type:
        return {"type": value.__name__}
    if kind.__module__ == "numpy":
        return encode(value.tolist(), depth + 1)
    if hasattr(kind, "__next__"):
        return _encode_iterator(value, depth)
    raise NotPlainError(f"a value of type {kind.__name__}")


SEQUENCES = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "keys": DICT_KEYS,
    "values": DICT_VALUES,
    "items": DICT_ITEMS,
}


def _encode_iterator(value, depth):
    """What an iterator gives, up to a limit, behind which it is cut off."""
    items, left = [], MAX_ITERATOR_BYTES
    for item in value:
        items.append(encode(item, depth + 1))
        left -= len(json.dumps(items[-1]))
        if len(items) > MAX_ITEMS or left < 0:
            return {"cut": items}
    return {"iterator": items}


def _cut(items):
    yield from items
    raise NoValueError(f"an iterator gave more than {len(items)} elements")


MAKERS = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": collections.deque,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
    "range": lambda items: range(*items),
    "fraction": lambda items: fractions.Fraction(*items),
    "iterator": iter,
    "cut": _cut,
}


def decode(data, depth=0):
    """The plain value that `data` stands for; of exact built-in types, so its methods are Python's own.

    In a sandbox only: what a program made can be slow to put into sets and dicts.
    Raises: NotPlainError when `data` is nothing that `encode` returns.
    """
    if depth > MAX_DEPTH:
        raise TooDeepError(f"data nested deeper than {MAX_DEPTH}")
    if isinstance(data, list):
        return [decode(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        ((name, content),) = data.items()
        if name == "int":
            return int(content, 16)
        if name == "complex":
            return complex(*content)
        if name in ("bytes", "bytearray"):
            return getattr(builtins, name).fromhex(content)
        if name == "decimal":
            return decimal.Decimal(content)
        if name == "type" and isinstance(found := getattr(builtins, content), type):
            return found
        if name == "dict":
            return {decode(key, depth + 1): decode(item, depth + 1) for key, item in content}
        return MAKERS[name]([decode(item, depth + 1) for item in content])
    except NotPlainError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise NotPlainError(f"no encoded value: {error}") from error


def frame(data):
    """`data` as the bytes of one frame; bytes are a body as it is."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode("ascii")
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


def enter_jail(job, null, load_run_filter):
    """Sets the run's standard streams and limits, and takes from this process what the supervisor alone needs."""
    stdin = os.memfd_create("stdin")
    left = memoryview(job.get("stdin", "").encode("utf-8", "surrogatepass"))
    while left:
        left = left[os.write(stdin, left) :]
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
        SETRLIMIT(number, (value, value))
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    stack = STACK_BYTES if hard == resource.RLIM_INFINITY else min(STACK_BYTES, hard)
    SETRLIMIT(resource.RLIMIT_STACK, (stack, stack))
    load_run_filter()


def filter_loader(code):
    """A function that hands the BPF program `code` to the kernel; it holds for good, here and in all children.

    What it needs is made here and now, so that a child need not. It raises OSError.
    """
    program = SockFprog(len(code) // 8, code)
    none, one, mode = ctypes.c_ulong(0), ctypes.c_ulong(1), ctypes.c_ulong(SECCOMP_MODE_FILTER)
    calls = (
        (PR_SET_NO_NEW_PRIVS, one, none, none, none),
        (PR_SET_SECCOMP, mode, ctypes.byref(program), none, none),
    )

    def load():
        for arguments in calls:
            if LIBC.prctl(*arguments):
                number = ctypes.get_errno()
                raise OSError(number, f"prctl({arguments[0]}): {os.strerror(number)}")

    return load


def fresh_module(name):
    """An empty module of that name in sys.modules, with the prelude among its builtins.

    Copying the prelude into its globals would touch hundreds of objects, and so pages shared with the supervisor.
    """
    module = types.ModuleType(name)
    module.__file__ = "/tmp/solution.py"
    module.__dict__["__builtins__"] = BUILTINS
    sys.modules[name] = module
    return module


def open_stdio():
    """The standard streams of a freshly started interpreter; they are a child's own once it has set its descriptors."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", errors="replace", closefd=False)
    BUILTINS.update(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr)


def open_device(file, mode="r", *args, **kwargs):
    """`open` that knows the devices which the sandbox does not have."""
    if isinstance(file, str) and file in DEVICES:
        return open(DEVICES[file], mode, *args, **{**kwargs, "closefd": False})
    return open(file, mode, *args, **kwargs)


def flush(*streams):
    """Writes out what they hold."""
    for stream in streams:
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()


def error_claim(error):
    """A claim that names an error: its class, the built-in class that it is, and its arguments where they are plain.

    The class may define its name as it likes, so it is not asked.
    """
    kinds = type(error).__mro__
    kind = next(one for one in kinds if one.__module__ == "builtins" and getattr(builtins, one.__name__, None) is one)
    claim = {"error": TYPE_NAME(kinds[0])[:MAX_NAME_CHARS], "kind": kind.__name__}
    try:
        args = encode(list(error.args))
        return {**claim, "args": args} if len(json.dumps(args)) < MAX_ERROR_BYTES else claim
    except BaseException:
        return claim  # Arguments that are no data, or that misbehave, are left out.


def run_program(job, result_fd):
    """Runs a program that reads stdin and writes stdout, and then does as an interpreter that ends: exit handlers,
    files that are still open are written out, objects go. Returns its exit status."""
    module = fresh_module("__main__")
    status = 0
    try:
        exec(compile(job["code"], "<solution>", "exec"), module.__dict__)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        write_frame(result_fd, error_claim(error))
        status = 1
    finish_timers()
    atexit._run_exitfuncs()
    flush(sys.stdout, sys.__stdout__)
    if "__del__" in job["code"]:
        # Slower, and the names that such a method uses are still there.
        module = None
        sys.modules.pop("__main__", None)
        gc.collect()
    else:
        module.__dict__.clear()
    flush(sys.__stdout__)
    return status


def run_call(job):
    """Defines the solution and calls its function, or Solution's method. Returns the claim: a value or an error."""
    try:
        module = fresh_module("solution")
        exec(compile(job["code"], "<solution>", "exec"), module.__dict__)
        holder = module.__dict__.get("Solution")
        function = getattr(holder() if hasattr(holder, job["name"]) else module, job["name"])
        call = job["call"]
        value = function(*decode(call["args"]), **decode(call["kwargs"]))
    except BaseException as error:
        return error_claim(error)
    try:
        return {"value": encode(value)}
    except NotPlainError:
        return {"error": "NotPlainError"}
    except BaseException as error:
        return error_claim(error)


def run_check(job, job_fd, result_fd):
    """Runs a data set's own test code. The solution is elsewhere: a call of its function asks the verifier.

    With job["constant"] every call gives that value and asks nobody. Returns the verdict; fault: the test failed in a
    way that the solution has no part in; lacks: a name or module that it looked for and did not find.
    """
    n_calls, fault, imitated = 0, None, None

    def ask(*args, **kwargs):
        nonlocal n_calls, fault, imitated
        n_calls += 1
        try:
            call = {"call": {"args": encode(list(args)), "kwargs": encode(kwargs)}}
        except TooDeepError as error:
            raise NoValueError(str(error)) from None  # A value of the solution, handed on.
        except NotPlainError as error:
            fault = f"it calls {job['name']} with {error}"
            raise
        if "constant" in job:
            return decode(job["constant"])
        write_frame(result_fd, call)
        try:
            answer = read_frame(job_fd)
            if answer.keys() == {"value"}:
                return decode(answer["value"])
            imitated = imitation(answer)
        except Exception as error:
            raise NoValueError(f"{job['name']} gave no value") from error
        raise imitated

    module = fresh_module("check")
    module.__dict__[job["name"]] = ask
    passed, lacks = False, None
    try:
        if "numpy" in job["source"]:
            compare_strictly(with_testing="testing" in job["source"])
        exec(compile(job["source"], "<test>", "exec"), module.__dict__)
        passed = not NoValueError.raised
        fault = fault or ("it never calls the solution" if n_calls == 0 else None)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:300]
        # What happens before the first call is not the solution's doing.
        fault = fault or (said if n_calls == 0 else None)
        if isinstance(error, (NameError, ImportError)) and error is not imitated and error.name:
            lacks = {"name": error.name.partition(".")[0][:MAX_NAME_CHARS], "said": said}
    return {"verdict": {"passed": passed, "fault": fault, "lacks": lacks}}


def imitation(answer):
    """The error that an answer names, to be raised in test code. Raises: NoValueError when it names none."""
    kind = getattr(builtins, str(answer.get("kind")), None)
    # Some exceptions mean no error to the code around the call, which then goes on without a value.
    if not (isinstance(kind, type) and issubclass(kind, BaseException)) or issubclass(kind, SILENT):
        raise NoValueError(f"the solution gave {str(answer.get('error'))[:MAX_NAME_CHARS]}")
    error = kind.__new__(kind)
    error.args = tuple(decode(answer.get("args", [])))
    return error


def compare_strictly(*, with_testing):
    """No comparison of an empty array with one that is not empty is true, as numpy has it for allclose([], 1.0).

    with_testing: for the functions of numpy.testing, too, whose import takes long.
    """
    import numpy as np

    def strict(function, otherwise):
        def compare(a, b, *args, **kwargs):
            return otherwise() if (np.size(a) == 0) != (np.size(b) == 0) else function(a, b, *args, **kwargs)

        return compare

    def refuse():
        raise AssertionError("an empty array is compared with one that is not")

    np.allclose = strict(np.allclose, lambda: False)
    np.isclose = strict(np.isclose, lambda: np.zeros(1, bool))
    if with_testing:
        for name in ("assert_allclose", "assert_almost_equal", "assert_array_almost_equal", "assert_array_equal"):
            setattr(np.testing, name, strict(getattr(np.testing, name), refuse))


def child(job_fd, result_fd, status_fd, null, load_run_filter):
    """One run, from reading its job to the end of the process."""
    status = 1
    try:
        job = read_frame(job_fd)
        if job is None:
            return
        if job["kind"] == "call":
            job.update(read_frame(job_fd))
        if job["kind"] != "check":
            os.close(job_fd)
        enter_jail(job, null, load_run_filter)
        os.write(status_fd, struct.pack("<I", IN_JAIL))
        os.close(status_fd)
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
    BUILTINS.update(stdout=sys.stdout)
    claim = run_call(job)
    print(marker + json.dumps(claim), file=stdout, flush=True)
    return 0


# ---- the supervisor -------------------------------------------------------------------------------------------------


def run_threads_inline():
    """Thread.start() runs the thread's work at once: the kernel's filter allows no threads.

    Enough for the idiom `threading.stack_size(...); Thread(target=main).start()`. A timer runs when it is waited for or
    at the end of the program, unless it was cancelled: most are there to end a program that takes too long.
    """

    def start(self):
        self._started.set()
        if isinstance(self, threading.Timer):
            TIMERS.append(self)
        else:
            run(self)

    def join(self, timeout=None):
        if self in TIMERS and timeout is None:
            TIMERS.remove(self)
            run(self)

    threading.Thread.start = start
    threading.Thread.join = join
    threading.Thread.is_alive = lambda self: self in TIMERS and not self.finished.is_set()


def run(thread):
    """The thread's work, and what is said where it fails."""
    try:
        thread.run()
    except Exception:
        threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), thread]))


def finish_timers():
    """Runs the timers that an interpreter would wait for before it ends."""
    for timer in sorted(TIMERS, key=lambda timer: timer.interval):
        if not timer.daemon:
            run(timer)


def set_limits_kindly():
    """resource.setrlimit() of the stack takes what it can get, as programs ask for more than there is here.

    That of the processor time does nothing: it is the sandbox's own, and the kernel's filter refuses to change it.
    """

    def setrlimit(which, limits):
        if which == resource.RLIMIT_STACK:
            most = resource.getrlimit(which)[1]
            limits = tuple(most if most >= 0 and not 0 <= limit <= most else limit for limit in limits)
        if which != resource.RLIMIT_CPU:
            SETRLIMIT(which, limits)

    resource.setrlimit = setrlimit


def warm_up():
    """Imports what programs import most, and fills BUILTINS as `from ... import *` of each would."""
    # Without the site module, which -S leaves out, these two are missing.
    builtins.exit = builtins.quit = sys.exit
    for name in PRELUDE:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
        BUILTINS.update({key: getattr(module, key) for key in public})
    BUILTINS.update({name: sys.modules[name] for name in PRELUDE})
    BUILTINS.update(vars(builtins), open=open_device)
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
    set_limits_kindly()
    sys.setrecursionlimit(RECURSION_LIMIT)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    closed = select.poll()
    closed.register(job_fd, 0)
    null = os.open(os.devnull, os.O_RDWR)
    load_run_filter = filter_loader(run_filter)
    filter_loader(supervisor_filter)()
    open_stdio()
    gc.collect()
    gc.freeze()
    os.write(status_fd, struct.pack("<I", READY))
    while not closed.poll(0):
        pid = os.fork()
        if pid == 0:
            child(job_fd, result_fd, status_fd, null, load_run_filter)
        os.write(status_fd, struct.pack("<I", os.waitpid(pid, 0)[1]))


if __name__ == "__main__":
    main()
