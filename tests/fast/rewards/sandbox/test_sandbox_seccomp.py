"""The seccomp filters, run by a small interpreter of BPF."""

import errno
import re
import struct
from pathlib import Path

import pytest

from verl_cipo.rewards.sandbox import seccomp

ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
HEADERS = {
    0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    1: Path("/usr/include/asm-generic/unistd.h"),
}


def verdict(code: bytes, number: int, *arguments: int, arch: int = ARCH["x86_64"]) -> int:
    """What the program says about one system call."""
    arguments = (*arguments, *([0] * (6 - len(arguments))))
    data = struct.pack("<IIQ6Q", number, arch, 0, *(value & 2**64 - 1 for value in arguments))
    steps = list(struct.iter_unpack("<HBBI", code))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:
            return value
        else:
            holds = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[operation]
            at += if_true if holds else if_false


READ, OPEN, OPENAT, CLONE, EXECVE, SOCKET, KILL_CALL, FCNTL, IOCTL, PRLIMIT = 0, 2, 257, 56, 59, 41, 62, 72, 16, 302
PERMISSION = ERRNO | errno.EPERM


@pytest.mark.parametrize(
    ("number", "arguments", "supervisor", "run"),
    [
        (READ, (0,), ALLOW, ALLOW),
        (OPENAT, (0, 0, 0o2000000), ALLOW, ALLOW),
        (OPENAT, (0, 0, 1), PERMISSION, ALLOW),
        (OPENAT, (0, 0, 2), PERMISSION, ALLOW),
        (OPENAT, (0, 0, 0o100), PERMISSION, ALLOW),
        (OPEN, (0, 0o1000), PERMISSION, ALLOW),
        (OPEN, (0, 0), ALLOW, ALLOW),
        (FCNTL, (1, 3), ALLOW, ALLOW),
        (FCNTL, (1, 4), PERMISSION, ALLOW),
        (FCNTL, (1, 8), PERMISSION, ALLOW),
        (IOCTL, (0, 0x5401), ALLOW, ALLOW),
        (IOCTL, (0, 0x5421), PERMISSION, ALLOW),
        (PRLIMIT, (0, 9), ALLOW, ALLOW),
        (PRLIMIT, (1, 9), PERMISSION, ALLOW),
        # The limit of processor time is read and not set.
        (PRLIMIT, (0, 0, 0, 2**32), ALLOW, ALLOW),
        (PRLIMIT, (0, 0, 5), ALLOW, PERMISSION),
        (PRLIMIT, (0, 0, 2**32), ALLOW, PERMISSION),
        (PRLIMIT, (0, 2**32, 5), ALLOW, PERMISSION),
        (PRLIMIT, (0, 3, 5), ALLOW, ALLOW),
        (CLONE, (), ALLOW, PERMISSION),
        (61, (), ALLOW, PERMISSION),
        (319, (), ALLOW, PERMISSION),
        (157, (), ALLOW, PERMISSION),
        (EXECVE, (), PERMISSION, ALLOW),
        (SOCKET, (), PERMISSION, ALLOW),
        (KILL_CALL, (), PERMISSION, ALLOW),
        (435, (), ERRNO | errno.ENOSYS, ALLOW),
        (99999, (), PERMISSION, ALLOW),
        (0x40000000, (), KILL, KILL),
    ],
)
def test_verdicts(number, arguments, supervisor, run):
    """Both filters hold in a run, and the stricter verdict counts."""
    assert verdict(seccomp.supervisor_filter("x86_64"), number, *arguments) == supervisor
    assert verdict(seccomp.run_filter("x86_64"), number, *arguments) == run


@pytest.mark.parametrize("make", [seccomp.supervisor_filter, seccomp.run_filter])
def test_another_architecture_is_killed(make):
    assert verdict(make("x86_64"), READ, arch=0x40000003) == KILL
    assert verdict(make("aarch64"), 63, arch=ARCH["x86_64"]) == KILL


def test_unknown_machine():
    with pytest.raises(ValueError, match="x86_64, aarch64"):
        seccomp.supervisor_filter("riscv64")


@pytest.mark.parametrize("column", [0, 1])
def test_numbers_are_the_kernels(column):
    if not HEADERS[column].exists():
        pytest.skip(f"{HEADERS[column]} is not installed (linux-libc-dev)")
    text = HEADERS[column].read_text()
    # The generic header marks calls that differ between 32 and 64 bits as __NR3264_.
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.M)}
    renamed = {"newfstatat": "fstatat"} if column else {}
    tables = seccomp._CALLS | seccomp._SUPERVISOR_CALLS | {name: entry[0] for name, entry in seccomp._CHECKED.items()}
    for name, numbers in tables.items():
        if numbers[column] is not None:
            assert known[renamed.get(name, name)] == numbers[column], name


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_filter_fits_the_kernel_and_ends(machine):
    for code in (seccomp.supervisor_filter(machine), seccomp.run_filter(machine)):
        assert len(code) // 8 <= 4096
        assert all(verdict(code, number, arch=ARCH[machine]) for number in range(500))
