"""What README and docs point at is there."""

import re

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_and_named_files_exist(page):
    text = page.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    named = re.findall(r"`((?:verl_cipo|examples|tools|docs|tests)/[\w/.]+\.\w+)`", text)
    paths = [page.parent / target for target in links] + [ROOT / name for name in named]
    # docs/method.md names modules from inside the package.
    paths += [ROOT / "verl_cipo" / name for name in re.findall(r"`((?:core|integration)/\w+\.py)`", text)]
    missing = [str(path) for path in paths if not path.exists()]
    assert not missing


def test_readme_is_finished_and_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert not [line for line in lines if re.search(r"\b(TODO|MEASURED|TBD)\b", line)]
    assert len(lines) < 120


def test_readme_knobs_are_knobs():
    from verl_cipo.core.config import CIPOConfig

    known = CIPOConfig().to_mapping()
    for section in ("prompt", "aux"):
        known |= {f"{section}.{name}": value for name, value in known.pop(section).items()}
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([\w.]+)`", row.split("|")[1])]
    assert len(named) > 8
    assert set(named) <= set(known)
