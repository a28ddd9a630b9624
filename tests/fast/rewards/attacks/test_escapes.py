"""What a program may not do to the machine, the supervisor and other runs. One property a program.

A program prints "escaped" when its attack worked and "held" when it was refused.
"""

import os
from pathlib import Path

import pytest

from verl_cipo.rewards.code import compute_score
from verl_cipo.rewards.sandbox.launch import interpreter

SYSCALL = """
import ctypes, errno
def syscall(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)), ctypes.get_errno()
"""


def attempt(code: str, errors: str = "OSError") -> str:
    """A program that tries `code`; it is held when that raises one of `errors`."""
    body = "\n".join(f"    {line}" for line in code.strip().splitlines())
    return f"import os, sys\ntry:\n{body}\nexcept ({errors}):\n    print('held')\nelse:\n    print('escaped')\n"


REFUSED = {
    "fork": "if os.fork() == 0: os._exit(0)",
    "forkpty": "if os.forkpty()[0] == 0: os._exit(0)",
    "exec": "os.execv(sys.executable or '/usr/bin/python3', ['python3', '-c', 'print(\"escaped\")'])",
    "posix_spawn": "os.posix_spawn('/lib64/ld-linux-x86-64.so.2', ['ld'], {})",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "multiprocessing": "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=print).start()",
    "kill_supervisor": "os.kill(1, 9)",
    "kill_everyone": "os.kill(-1, 9)",
    "signal_0_to_supervisor": "os.kill(1, 0)",
    "pidfd": "os.pidfd_open(1)",
    "tcp": "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)",
    "tcp_listen": "import socket\nsocket.create_server(('127.0.0.1', 0))",
    "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
    "abstract_unix": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0attack')",
    "socketpair": "import socket\nsocket.socketpair()",
    "write_in_root": "open('/x', 'w')",
    "write_in_cwd": "open('x', 'w')",
    "write_in_tmp": "open('/tmp/x', 'w')",
    "tempfile": "import tempfile\ntempfile.TemporaryFile()",
    "write_in_shm": "os.makedirs('/dev/shm/x')",
    "write_in_stdlib": "open(os.__file__, 'a')",
    "symlink": "os.symlink('/', '/tmp/root')",
    "hard_link": "os.link(os.__file__, '/tmp/os.py')",
    "mkfifo": "os.mkfifo('/tmp/fifo')",
    "delete": "os.remove(os.__file__)",
    "chmod": "os.chmod('/tmp', 0o777)",
    "proc": "os.listdir('/proc')",
    "sys": "os.listdir('/sys')",
    "passwd": "open('/etc/passwd')",
    "memory_of_supervisor": "open('/proc/1/mem', 'rb')",
    "write_to_stdin": "os.write(0, b'left for the next run')",
    "truncate_stdin": "os.ftruncate(0, 2**20)",
    "memfd": "os.memfd_create('hidden')",
    "nonblocking_stdout": "import fcntl\nfcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)",
    "sigio_to_supervisor": "import fcntl\nfcntl.fcntl(1, fcntl.F_SETOWN, 1)",
    "small_pipe": "import fcntl\nfcntl.fcntl(1, 1031, 4096)",
    "ioctl_nonblocking": "import fcntl\nfcntl.ioctl(1, 0x5421, b'\\1\\0\\0\\0')",
    "limits_of_supervisor": "import resource\nresource.prlimit(1, resource.RLIMIT_CPU, (1, 1))",
    "priority_of_supervisor": "os.setpriority(os.PRIO_PROCESS, 1, 19)",
    "new_session": "os.setsid()",
    "unlimited_memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "pin_cpus": "os.sched_setaffinity(0, {0})",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_sandbox(held, name):
    held(attempt(REFUSED[name], "OSError, ValueError"))


# Numbers of x86_64, but for the calls that are new enough to have one number everywhere.
RAW = {
    "vfork": (58, (), "EPERM"),
    "clone_thread": (56, (0x3D0F00, 0, 0, 0, 0), "EPERM"),
    "clone3": (435, (0, 0), "ENOSYS"),
    "ptrace_attach": (101, (16, 1, 0, 0), "EPERM"),
    "process_vm_readv": (310, (1, 0, 0, 0, 0, 0), "EPERM"),
    "tgkill": (234, (1, 1, 9), "EPERM"),
    "rt_sigqueueinfo": (129, (1, 9, 0), "EPERM"),
    "shmget": (29, (0, 2**20, 0o1600), "EPERM"),
    "mq_open": (240, (0, 0o100, 0, 0), "EPERM"),
    "unshare_user": (272, (0x10000000,), "EPERM"),
    "mount": (165, (0, 0, 0, 0, 0), "EPERM"),
    "bpf": (321, (0, 0, 0), "EPERM"),
    "keyctl": (250, (0, 0), "EPERM"),
    "io_uring": (425, (1, 0), "EPERM"),
    "userfaultfd": (323, (0,), "EPERM"),
    "perf_event_open": (298, (0, 0, -1, -1, 0), "EPERM"),
    "setns": (308, (0, 0), "EPERM"),
    "prctl_dumpable": (157, (4, 1, 0, 0, 0), "EPERM"),
    "open_by_handle": (304, (0, 0, 0), "EPERM"),
    "personality": (135, (0x0040000,), "EPERM"),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")
@pytest.mark.parametrize("name", RAW)
def test_raw_system_call_is_refused(held, name):
    number, arguments, wanted = RAW[name]
    call = ", ".join(map(str, (number, *arguments)))
    held(f"{SYSCALL}\nprint('held' if syscall({call}) == (-1, errno.{wanted}) else 'escaped')")


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="system call numbers of x86_64")
def test_x32_calls_kill_the_run(worker):
    code = f"{SYSCALL}\nprint(syscall(0x40000000 + 57))"
    assert worker.program(code, "", timeout_s=20, max_stdout=100).code == -31  # SIGSYS


def test_many_threads_never_run_at_once(held):
    held(
        """
import _thread
def bomb():
    while True: pass
try:
    for _ in range(1000): _thread.start_new_thread(bomb, ())
    print('escaped')
except RuntimeError:
    print('held')
"""
    )


def test_the_project_and_the_data_are_not_there(held, tmp_path):
    data = tmp_path / "train.parquet"
    data.write_text("expected outputs")
    paths = [
        str(path)
        for path in (data, Path(__file__), Path(compute_score.__code__.co_filename), "/var", "/run", "/etc/hosts")
    ]
    code = f"""
import os
found = [path for path in {paths} if os.path.exists(path)]
for folder, folders, files in os.walk('/'):
    found += [name for name in folders + files if 'verl_cipo' in name or name.endswith('.parquet')]
print('escaped' if found else 'held')
"""
    held(code)


def test_installed_packages_are_not_there(held):
    """An installed copy of this project would be among them."""
    folders = [str(path) for path in interpreter().site]
    assert folders
    held(f"import os\nprint('escaped' if any(map(os.listdir, {folders})) else 'held')")


def test_no_other_process_is_seen(held):
    held("import os\nprint('held' if os.getppid() == 1 and os.getpid() < 10**6 else 'escaped')")


def test_the_environment_is_empty(worker, monkeypatch, held):
    monkeypatch.setenv("EXPECTED_OUTPUT", "escaped")
    worker.close()  # The next sandbox is started with the variable set here.
    held("import os\nprint(os.environ.get('EXPECTED_OUTPUT', 'held'))")


def test_the_same_descriptors_are_open_whatever_the_verifier_has_open(worker, held):
    """stdin, stdout, stderr and the result channel, with numbers that other programs here look for."""
    code = """
import fcntl
def is_open(fd):
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
        return True
    except OSError:
        return False
print(*filter(is_open, range(5000)))
"""
    held(code, said="0 1 2 4")
    worker.close()
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    held(code, said="0 1 2 4")
    for fd in files:
        os.close(fd)


def test_not_privileged(held):
    held("import os\nprint('held' if os.getuid() == os.geteuid() == 65534 else 'escaped')")


def test_nothing_is_left_in_memory_for_the_next_run(worker, held):
    worker.program(
        "import builtins, sys, json\nbuiltins.leak = json.leak = sys.leak = 1", "", timeout_s=20, max_stdout=9
    )
    held(
        "import builtins, sys, json\n"
        "print('escaped' if any(hasattr(m, 'leak') for m in (builtins, sys, json)) else 'held')"
    )


def test_input_of_an_earlier_run_is_not_left(worker, held):
    worker.program("pass", "input of the first\n" * 10_000, timeout_s=20, max_stdout=9)
    held("import sys\nprint(sys.stdin.read())", stdin="held")


def test_input_of_an_earlier_run_is_not_in_memory(worker, held):
    worker.program("pass", "4711 " * 20, timeout_s=20, max_stdout=9)
    # The job is read by the child alone, so the supervisor's memory, which this run has a copy of, never held it.
    held(
        """
import gc
texts = [text for item in gc.get_objects() if type(item) is dict for text in list(item.values()) if type(text) is str]
print('escaped' if any(text.count('4711') > 9 for text in texts) else 'held')
"""
    )


def test_output_of_an_earlier_run_is_not_left(worker, held):
    worker.program("import os\nos.write(1, b'escaped' * 9000)\nos._exit(0)", "", timeout_s=20, max_stdout=10**6)
    held("print('held')")


def test_exit_handlers_do_not_outlive_the_run(worker, held):
    worker.program("import atexit\natexit.register(print, 'escaped')", "", timeout_s=20, max_stdout=100)
    held("print('held')")
