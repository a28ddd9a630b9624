"""Check README.md and docs: links, named files, cited tests, knobs of the README, tables that follow from the code.

python tools/check_docs.py
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools import write_pages
from verl_cipo.core.knob_docs import SECTIONS, knobs

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)")
NAMED = re.compile(r"`((?:verl_cipo|examples|benchmarks|data_prep|tools|docs|tests)/[\w/.]+\.\w+)`")
CITED = re.compile(r"`(?:tests/)?((?:\w+/)+test_\w+\.py)?(?:::(test_\w+))?`")
"""`folder/test_x.py`, `folder/test_x.py::test_y`, and `::test_z` of the file that was named last."""
README_LINES = 120


def lost_files(page: Path) -> Iterator[str]:
    """Local links and file names that lead nowhere."""
    text = page.read_text()
    paths = [(name, page.parent / name) for name in LINK.findall(text) if not re.match(r"\w+:", name)]
    paths += [(name, ROOT / name) for name in NAMED.findall(text)]
    # docs/method.md names modules from inside the package.
    paths += [(name, ROOT / "verl_cipo" / name) for name in re.findall(r"`((?:core|integration)/\w+\.py)`", text)]
    yield from (f"{name} does not exist" for name, path in paths if not path.exists())


def lost_tests(page: Path) -> Iterator[str]:
    """Cited tests that do not exist."""
    file = None
    for name, test in CITED.findall(page.read_text()):
        file = ROOT / "tests" / name if name else file
        if (name or test) and not (file and file.exists() and (not test or f"def {test}(" in file.read_text())):
            yield f"the test {name}{'::' + test if test else ''} does not exist"


def readme_problems(page: Path) -> Iterator[str]:
    """Length, leftovers, and knobs that CIPO does not have."""
    lines = page.read_text().splitlines()
    if len(lines) >= README_LINES:
        yield f"{len(lines)} lines, expected fewer than {README_LINES}"
    yield from (f"unfinished: {line}" for line in lines if re.search(r"\b(TODO|TBD)\b", line))
    named = [name for line in lines if line.startswith("| `") for name in re.findall(r"`([\w.]+)`", line.split("|")[1])]
    known = {knob.name for section in SECTIONS for knob in knobs(section)}
    yield from (f"{name} is no knob" for name in named if name not in known)


def problems() -> list[str]:
    """All that is wrong, each with its page."""
    readme = ROOT / "README.md"
    found = [(readme, problem) for problem in readme_problems(readme)]
    for page in (readme, *sorted(write_pages.DOCS.glob("*.md"))):
        found += [(page, problem) for check in (lost_files, lost_tests) for problem in check(page)]
    for page in write_pages.PAGES.values():
        if write_pages.filled(page.read_text()) != page.read_text():
            found.append((page, "differs from the code: run tools/write_pages.py"))
    return [f"{page.relative_to(ROOT)}: {problem}" for page, problem in found] + [
        f"no page holds the table {name}" for name in write_pages.missing()
    ]


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or 0)
