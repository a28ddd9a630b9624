"""The kernel filters of a sandbox: the system calls that a Python program needs to compute, and no others.

All not named here fail with EPERM, clone3 with ENOSYS (as on kernels without it, so that libc goes on to clone). What
that leaves out: processes and threads (clone, fork, execve), sockets, signals to others and ptrace, memory that rlimits
do not count (memfd, shm, message queues, io_uring), mounts and namespaces, writing to files.
The supervisor loads `supervisor_filter`, which lets it fork in addition; a run then loads `run_filter`, which takes
that back. Both hold: of two filters the stricter verdict counts. A run cannot change its limit of processor time
either: the kernel ends a process with SIGKILL for that alone, so one that ends so was killed from outside.

Written in classic BPF by hand, as Python's standard library has no binding for libseccomp. Source: the kernel's
Documentation/userspace-api/seccomp_filter.rst and include/uapi/linux/{seccomp,bpf_common,audit}.h.
"""

import os
import platform
import struct

# System call numbers of x86_64 (asm/unistd_64.h) and, where the call exists there, aarch64 (asm-generic/unistd.h).
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "close": (3, 57),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "umask": (95, 166),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "times": (100, 153),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "getrandom": (318, 278),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getpgrp": (111, None),
    "getrlimit": (97, 163),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Allowed when an argument passes: (numbers, index of the argument, test, values).
_OPEN_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC = 0, 1, 2, 3, 1030
_TCGETS, _FIONCLEX, _FIOCLEX, _FIONREAD = 0x5401, 0x5450, 0x5451, 0x541B
_CHECKED: dict[str, tuple[tuple[int | None, int | None], int, str, tuple[int, ...]]] = {
    "open": ((2, None), 1, "no bit of", (_OPEN_FOR_WRITING,)),
    "openat": ((257, 56), 2, "no bit of", (_OPEN_FOR_WRITING,)),
    # Flags and owners of an open file are shared with the runs that come after.
    "fcntl": ((72, 25), 1, "one of", (_F_DUPFD, _F_GETFD, _F_SETFD, _F_GETFL, _F_DUPFD_CLOEXEC)),
    "ioctl": ((16, 29), 1, "one of", (_TCGETS, _FIONCLEX, _FIOCLEX, _FIONREAD)),
    "prlimit64": ((302, 261), 0, "one of", (0,)),
}
# What the supervisor and the first steps of its child need, and a program does not.
_SUPERVISOR_CALLS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "fork": (57, None),
    "wait4": (61, 260),
    "memfd_create": (319, 279),
    "ftruncate": (77, 46),
    "prctl": (157, 167),
}
_CLONE3 = 435
_RLIMIT_CPU = 0

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32_BIT = 0x40000000
_EPERM, _ENOSYS = 1, 38
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
# Offsets in struct seccomp_data; arguments are 64 bits wide, of which the lower half comes first.
_NR, _ARCH, _ARGS = 0, 4, 16
_LOAD, _RETURN, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT = 0x20, 0x06, 0x15, 0x35, 0x45


def supported() -> bool:
    """Whether there is a filter for this machine's processor."""
    return platform.machine() in _ARCHITECTURES


def supervisor_filter(machine: str | None = None) -> bytes:
    """Allows what a run needs and what the supervisor needs; an array of the kernel's struct sock_filter.

    Args:
        machine: "x86_64" or "aarch64"; this machine when None.

    Raises:
        ValueError: on another machine.
    """
    column, code = _start(machine)
    code += [_op(_JUMP_EQUAL, _CLONE3, 0, 1), _op(_RETURN, _ERRNO | _ENOSYS)]
    for numbers in (_CALLS | _SUPERVISOR_CALLS).values():
        if (number := numbers[column]) is not None:
            code += [_op(_JUMP_EQUAL, number, 0, 1), _op(_RETURN, _ALLOW)]
    for numbers, argument, test, values in _CHECKED.values():
        if (number := numbers[column]) is not None:
            body = _checked(argument, test, values)
            code += [_op(_JUMP_EQUAL, number, 0, len(body)), *body]
    return b"".join([*code, _op(_RETURN, _ERRNO | _EPERM)])


def run_filter(machine: str | None = None) -> bytes:
    """Refuses what `supervisor_filter` allows the supervisor alone. Arguments and errors as there."""
    column, code = _start(machine)
    for numbers in _SUPERVISOR_CALLS.values():
        if (number := numbers[column]) is not None:
            code += [_op(_JUMP_EQUAL, number, 0, 1), _op(_RETURN, _ERRNO | _EPERM)]
    # prlimit64(pid, resource, new, old): new is a pointer, of which both halves are 0 where nothing is to be changed.
    setting_cpu_time = [
        _op(_LOAD, _ARGS + 8),
        _op(_JUMP_EQUAL, _RLIMIT_CPU, 0, 5),
        _op(_LOAD, _ARGS + 16),
        _op(_JUMP_EQUAL, 0, 0, 2),
        _op(_LOAD, _ARGS + 20),
        _op(_JUMP_EQUAL, 0, 1, 0),
        _op(_RETURN, _ERRNO | _EPERM),
    ]
    number = _CHECKED["prlimit64"][0][column]
    code += [_op(_JUMP_EQUAL, number, 0, len(setting_cpu_time)), *setting_cpu_time]
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _start(machine: str | None) -> tuple[int, list[bytes]]:
    """The column of the tables, and code that kills on another architecture and loads the call's number."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise ValueError(f"machine = {machine!r}: expected one of {', '.join(_ARCHITECTURES)}")
    column, arch = _ARCHITECTURES[machine]
    return column, [
        _op(_LOAD, _ARCH),
        _op(_JUMP_EQUAL, arch, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _NR),
        # x86_64 has the calls of x32 as well, under numbers of their own.
        _op(_JUMP_GREATER_EQUAL, _X32_BIT, 0, 1),
        _op(_RETURN, _KILL),
    ]


def _checked(argument: int, test: str, values: tuple[int, ...]) -> list[bytes]:
    """Ends in a verdict on argument number `argument`; the kernel takes its lower 32 bits for the calls used here."""
    body = [_op(_LOAD, _ARGS + 8 * argument)]
    for value in values:
        if test == "one of":
            body += [_op(_JUMP_EQUAL, value, 0, 1), _op(_RETURN, _ALLOW)]
        else:
            body += [_op(_JUMP_ANY_BIT, value, 1, 0), _op(_RETURN, _ALLOW)]
    return [*body, _op(_RETURN, _ERRNO | _EPERM)]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
