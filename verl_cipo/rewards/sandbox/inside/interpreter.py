"""The interpreter that programs find: what is imported, and what stands for threads, limits and devices."""

import builtins
import importlib
import os
import resource
import sys
import threading
import types

# What a program need not import, as with the graders of APPS and LiveCodeBench; imported before the fork.
PRELUDE = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json "
    "builtins typing"
).split()
BUILTINS = {}
ALSO_WARM = "decimal fractions array cmath textwrap dataclasses enum abc time traceback queue contextlib".split()
RECURSION_LIMIT = 50_000
DEVICES = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2, os.devnull: 2}
TIMERS = []
SETRLIMIT = resource.setrlimit


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


def run_threads_inline():
    """Thread.start() does the thread's work before it returns: the kernel's filter allows no threads.

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
    """Does the thread's work and reports its error."""
    try:
        thread.run()
    except Exception:
        threading.excepthook(threading.ExceptHookArgs([*sys.exc_info(), thread]))


def finish_timers():
    """Runs the timers that an interpreter would wait for before it ends."""
    for timer in sorted(TIMERS, key=lambda timer: timer.interval):
        if not timer.daemon:
            run(timer)


def patch_setrlimit():
    """resource.setrlimit() of the stack sets as much as is allowed, as programs ask for more than there is here.

    For the processor time it does nothing: that limit is the sandbox's, and the kernel's filter refuses to change it.
    """

    def setrlimit(which, limits):
        if which == resource.RLIMIT_STACK:
            most = resource.getrlimit(which)[1]
            limits = tuple(most if most >= 0 and not 0 <= limit <= most else limit for limit in limits)
        if which != resource.RLIMIT_CPU:
            SETRLIMIT(which, limits)

    resource.setrlimit = setrlimit
