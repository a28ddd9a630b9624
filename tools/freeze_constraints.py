"""Write the versions of a working CPU environment as pip constraints.

    .venv/bin/python tools/freeze_constraints.py > /tmp/new && mv /tmp/new requirements/constraints-cpu.txt

Reads the environment it runs in. Left out: pip and what was installed from a folder or a file, such as this project
and the `vllm` alias. Local version labels are cut off, so that any build of a release fits. A release that refuses an
older Python of our range is pinned from the Python it accepts on, and left to pip below that.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PYTHONS = ("3.10", "3.11", "3.12")
FIXED = {
    # The one release that fits both builds of torch 2.13.0: the CUDA build pins it, the CPU build takes any.
    "triton": "3.7.1",
}
HEADER = """\
# The versions that the tests and the demo ran with, on Python 3.11 and Linux x86_64.
# Written by tools/freeze_constraints.py; used by tools/setup_venv.sh as `pip install -c`.
"""


def marker(requires_python: str | None) -> str:
    """The environment marker for a pin, empty when every Python of PYTHONS is accepted."""
    accepted = [python for python in PYTHONS if python in SpecifierSet(requires_python or "")]
    return "" if accepted == list(PYTHONS) else f' ; python_version >= "{accepted[0]}"'


def constraints(found: Iterable[Distribution]) -> list[str]:
    """One `name==version` line a distribution, sorted by name."""
    pins = {}
    for dist in found:
        name = canonicalize_name(dist.metadata["Name"])
        if name != "pip" and dist.read_text("direct_url.json") is None:
            version = FIXED.get(name, Version(dist.version).public)
            pins[name] = f"{name}=={version}{marker(dist.metadata['Requires-Python'])}"
    return [pins[name] for name in sorted(pins)]


if __name__ == "__main__":
    sys.stdout.write(HEADER + "\n".join(constraints(distributions())) + "\n")
