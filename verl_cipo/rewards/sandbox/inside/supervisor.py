"""A warm interpreter that forks one child a run, so each run starts from the same state.

    python ... JOB_FD RESULT_FD STATUS_FD PACKAGES WARM SUPERVISOR_FILTER RUN_FILTER

PACKAGES: a folder to import from besides the standard library, WARM: a module of it to import at once; either may be
empty. The filters: seccomp programs in base64.

The supervisor never reads a job. Its child does, and only then runs the program, so nothing of one run is in the memory
of another. Channels:

    job     verifier -> child: one frame, the job; before a call another, its arguments. A checker also reads the
            answers to its calls here.
    result  child -> verifier: frames. The program can write here as well, so what it says is no more than a claim
            on a value: the verifier reads it as data and compares it with what the sandbox never sees.
    status  supervisor -> verifier: READY, then for each child IN_JAIL and its wait status. Closed in the child before
            the program starts.
"""

import base64
import ctypes
import fcntl
import gc
import importlib
import os
import resource
import select
import struct
import sys

from verl_cipo.rewards.sandbox.inside.interpreter import (
    RECURSION_LIMIT,
    SETRLIMIT,
    open_stdio,
    patch_setrlimit,
    run_threads_inline,
    warm_up,
)
from verl_cipo.rewards.sandbox.inside.runs import run_call, run_check, run_program
from verl_cipo.rewards.sandbox.inside.values import IN_JAIL, READY, read_frame, write_all, write_frame

FIRST_CHANNEL, BEYOND_CHANNELS = 3, 10
MAX_OPEN_FILES = 32
# The kernel keeps at least 128 MiB free below the main thread's stack; staying under that needs no exec.
STACK_BYTES = 120 * 2**20
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2


class SockFprog(ctypes.Structure):
    """The kernel's struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def enter_jail(job, null, load_run_filter):
    """Sets the run's standard streams and limits, and takes from this process what the supervisor alone needs."""
    stdin = os.memfd_create("stdin")
    write_all(stdin, job.get("stdin", "").encode("utf-8", "surrogatepass"))
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
        ("RLIMIT_STACK", STACK_BYTES),
    ):
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        SETRLIMIT(number, (value, value))
    load_run_filter()


def filter_loader(code):
    """A function that loads the BPF program `code` into the kernel, which keeps it for this process and its children.

    What it needs is prepared here, so that a child has less to do. It raises OSError.
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


def take_channels(descriptors):
    """Moves them to 3, 4 and 5, so that a program finds the same ones whatever files the verifier has open."""
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, BEYOND_CHANNELS) for fd in descriptors]
    channels = range(FIRST_CHANNEL, FIRST_CHANNEL + len(copies))
    for copy, channel in zip(copies, channels, strict=True):
        os.dup2(copy, channel)
    for fd in {*descriptors, *copies}.difference(channels):
        os.close(fd)
    return channels


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


def main():
    """Says READY, then forks a child, waits for it, reports its status, and so on until the job pipe is closed."""
    job_fd, result_fd, status_fd = take_channels(list(map(int, sys.argv[1:4])))
    packages, warm = sys.argv[4:6]
    supervisor_filter, run_filter = map(base64.b64decode, sys.argv[6:8])
    sys.argv = [""]
    if packages:
        sys.path.append(packages)
    if warm:
        importlib.import_module(warm)
    warm_up()
    run_threads_inline()
    patch_setrlimit()
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
