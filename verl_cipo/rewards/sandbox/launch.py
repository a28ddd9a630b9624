"""What a sandbox is started from: the interpreter's command line, shared by the backends."""

import base64
import importlib.util
import os
import sys
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from verl_cipo.rewards.sandbox import inside, seccomp
from verl_cipo.rewards.sandbox.warm_sandbox import Channels

# In the order of their imports.
_MODULES = ("values", "interpreter", "runs", "supervisor")
# As -I has it, which would leave the hash seed out with all of the environment.
_WITHOUT_FOLDER = "import sys\nsys.path[:] = filter(None, sys.path)\n"
_SUPERVISE = f"from {inside.__name__}.supervisor import main\nmain()"


@dataclass(frozen=True)
class Interpreter:
    """The Python that runs programs: this one, without its virtual environment.

    executable: the real file; lib: the folder of its standard library and shared libraries;
    site: folders of installed packages within lib, which programs do not see; numpy: where numpy and its libraries
    are, empty when it is not installed.
    """

    executable: Path
    lib: Path
    site: tuple[Path, ...]
    numpy: tuple[Path, ...]


@lru_cache(maxsize=1)
def interpreter() -> Interpreter:
    """The interpreter of this process."""
    base = Path(sys.base_prefix).resolve()
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    packages = (stdlib / "site-packages", stdlib / "dist-packages", base / "lib" / "python3" / "dist-packages")
    spec = importlib.util.find_spec("numpy")
    numpy = Path(spec.origin).parent if spec and spec.origin else None
    return Interpreter(
        executable=executable,
        lib=stdlib.parent,
        site=tuple(path for path in packages if path.is_dir()),
        numpy=tuple(path for path in (numpy, numpy.with_name("numpy.libs")) if path.is_dir()) if numpy else (),
    )


def program(end: str) -> str:
    """The modules of `inside` as one program, with the code `end`, which may import them, behind them."""
    folder = Path(inside.__file__).parent
    sources = {f"{inside.__name__}.{name}": (folder / f"{name}.py").read_text(encoding="utf-8") for name in _MODULES}
    return (
        "import sys, types\n"
        f"for name, source in {sources!r}.items():\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(source, name, 'exec'), module.__dict__)\n"
        f"{end}\n"
    )


def supervisor_command(channels: Channels, *, packages: str, numpy: bool) -> list[str]:
    """The supervisor's command line.

    packages: a folder that programs may import from, or empty; numpy: whether it is imported before the first run.
    """
    return [
        os.fspath(interpreter().executable),
        *("-s", "-S", "-X", "utf8", "-c", _WITHOUT_FOLDER + program(_SUPERVISE)),
        *map(str, (channels.job, channels.result, channels.status)),
        packages,
        "numpy" if numpy and interpreter().numpy else "",
        *(base64.b64encode(code).decode("ascii") for code in (seccomp.supervisor_filter(), seccomp.run_filter())),
    ]
