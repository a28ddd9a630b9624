"""Write the tables of docs/knobs.md and docs/metrics.md that follow from the code.

    python tools/write_pages.py

What the pages say between the lines of a table is written by hand and kept. tools/check_docs.py
fails as long as a page differs from what this would write.
"""

import re
from pathlib import Path

from verl_cipo.core.knob_docs import SECTIONS, knobs
from verl_cipo.core.metrics import METRICS, PREFIX

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {"knobs": DOCS / "knobs.md", "metrics": DOCS / "metrics.md"}
"""First part of a table's name -> the page that holds it."""
BLOCK = re.compile(r"(<!-- table (\S+), written by tools/write_pages\.py -->\n).*?(<!-- end of table -->)", re.DOTALL)


def cell(text: str) -> str:
    """`text` for a cell of a Markdown table: nothing in it is taken for HTML or for the next cell."""
    return re.sub(r"([<|])", r"\\\1", text)


def knob_table(section: str = "") -> str:
    """One row a knob of a section; sections of it have tables of their own."""
    rows = ["| knob | default | allowed | meaning |", "|---|---|---|---|"]
    rows += [f"| `{k.name}` | `{k.default}` | {cell(k.allowed)} | {cell(k.meaning)} |" for k in knobs(section)]
    return "\n".join(rows) + "\n"


def metric_table(names: list[str]) -> str:
    """One row a metric."""
    rows = [f"| `{name}` | {cell(METRICS[name])} |" for name in names]
    return "\n".join(["| metric | meaning |", "|---|---|", *rows]) + "\n"


def tables() -> dict[str, str]:
    """Name -> table. Metrics come in groups of the part of their name that follows `cipo/`, single ones together."""
    groups: dict[str, list[str]] = {}
    for name in METRICS:
        group, below, _ = name.removeprefix(PREFIX).partition("/")
        groups.setdefault(f"metrics/{group}" if below else "metrics", []).append(name)
    return {
        **{f"knobs/{section}".removesuffix("/"): knob_table(section) for section in SECTIONS},
        **{group: metric_table(names) for group, names in groups.items()},
    }


def filled(text: str) -> str:
    """The page `text` with every table as it should be. Raises: KeyError on a table that does not exist."""
    known = tables()
    return BLOCK.sub(lambda block: block[1] + known[block[2]] + block[3], text)


def missing() -> list[str]:
    """Tables that no page holds, or another page than theirs."""
    held = {kind: {block[2] for block in BLOCK.finditer(page.read_text())} for kind, page in PAGES.items()}
    return sorted(name for name in tables() if name not in held[name.partition("/")[0]])


def main() -> None:
    for page in PAGES.values():
        page.write_text(filled(page.read_text()))
    if lost := missing():
        raise SystemExit(f"no page holds the tables {', '.join(lost)}: put the lines of a table around them")


if __name__ == "__main__":
    main()
