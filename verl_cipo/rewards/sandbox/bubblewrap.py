"""The bubblewrap backend: a sandbox of Linux namespaces, made without privileges.

The sandbox sees the interpreter, its standard library, the system's shared libraries and numpy, all read-only, an empty
/tmp that cannot be written to, and /dev/null. No /proc, no home, no project, no network, no other process.
"""

import shutil
from pathlib import Path

from verl_cipo.rewards.outcome import VerifierInfrastructureError
from verl_cipo.rewards.sandbox import seccomp
from verl_cipo.rewards.sandbox.launch import interpreter, supervisor_command
from verl_cipo.rewards.sandbox.warm_sandbox import ENVIRONMENT, Channels, Sandbox

INSTALL = "on Debian and Ubuntu: apt-get install bubblewrap"
_PACKAGES = "/packages"
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_NAMESPACES = (
    *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv"),
    *("--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox", "--as-pid-1"),
)
_ENVIRONMENT = [part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)]
_TMPFS_BYTES = "65536"


def start(*, numpy: bool = False) -> Sandbox:
    """As `spawn`, and waits until it is warm."""
    sandbox = spawn(numpy=numpy)
    sandbox.wait_until_warm()
    return sandbox


def spawn(*, numpy: bool = False) -> Sandbox:
    """A sandbox, with numpy imported in it or not. Call it from a thread that outlives the sandbox (see `pool`).

    Raises: VerifierInfrastructureError, which says what to install or to allow.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise VerifierInfrastructureError(
            f"backend=bubblewrap needs the program bwrap, which is not on PATH; {INSTALL}"
        )
    if not seccomp.supported():
        raise VerifierInfrastructureError(
            "backend=bubblewrap has no seccomp filter for this processor: use x86_64, aarch64 or backend=sandbox_fusion"
        )
    return Sandbox.spawn(lambda channels: command(bwrap, channels, numpy=numpy))


def command(bwrap: str, channels: Channels, *, numpy: bool) -> list[str]:
    """The command line of one sandbox."""
    python = interpreter()
    supervisor = supervisor_command(channels, packages=_PACKAGES if python.numpy else "", numpy=numpy)
    return [bwrap, *_NAMESPACES, *_ENVIRONMENT, *_mounts(), "--info-fd", str(channels.info), *supervisor]


def _mounts() -> list[str]:
    python = interpreter()
    mounts: list[str] = []
    bound: list[Path] = []
    for name in _SYSTEM_LIBRARIES:
        path = Path(name)
        if path.is_symlink():
            mounts += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            mounts += ["--ro-bind", name, name]
            bound.append(path)
    if not any(python.lib.is_relative_to(path) for path in bound):
        mounts += ["--ro-bind", str(python.lib), str(python.lib)]
    for path in python.site:
        mounts += ["--size", _TMPFS_BYTES, "--tmpfs", str(path), "--remount-ro", str(path)]
    for path in python.numpy:
        mounts += ["--ro-bind", str(path), f"{_PACKAGES}/{path.name}"]
    return [
        *mounts,
        *("--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"),
        # Debian's names of BLAS lead through it.
        *("--ro-bind-try", "/etc/alternatives", "/etc/alternatives"),
        *("--ro-bind", str(python.executable), str(python.executable)),
        *("--dev-bind", "/dev/null", "/dev/null"),
        *("--size", _TMPFS_BYTES, "--tmpfs", "/tmp", "--remount-ro", "/tmp"),
        *("--remount-ro", "/", "--chdir", "/"),
    ]


def problem() -> str | None:
    """What keeps this backend from working here and what to do about it; None when it works. Starts a sandbox."""
    try:
        start().close()
    except VerifierInfrastructureError as error:
        return str(error)
    return None
