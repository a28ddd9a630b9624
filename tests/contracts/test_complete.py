"""That no seam is without a contract: whatever of verl our code imports is named in this folder, and in the docs."""

import ast
import re
from pathlib import Path

from tests.conftest import ROOT

CONTRACTS = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
CODE = [path for folder in ("verl_cipo", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py")]


def imported(path: Path) -> set[str]:
    """Names that the file imports of verl, modules included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and re.match(r"verl(\.|$)", node.module or ""):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.rpartition(".")[2] for alias in node.names if re.match(r"verl\.", alias.name)}
    return found


def test_every_name_that_is_imported_of_verl_is_in_a_contract():
    text = "\n".join(path.read_text() for path in CONTRACTS)
    used = {name: path.relative_to(ROOT) for path in CODE for name in imported(path)}
    assert len(used) > 20, f"the imports of verl were not found: {used}"
    missing = {name: str(path) for name, path in used.items() if not re.search(rf"\b{name}\b", text)}
    assert not missing, f"imported of verl and in no contract: {missing}"


def test_the_docs_name_every_file_of_contracts():
    text = (ROOT / "docs" / "upgrading-verl.md").read_text()
    missing = [path.name for path in CONTRACTS if f"`{path.name}`" not in text]
    assert not missing, f"docs/upgrading-verl.md says nothing about {missing}"
