"""Where the benchmarks' option --json writes."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, figures: Any) -> None:
    """``figures`` into the file ``path``, whose folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
