"""The figures of benchmarks/verifiers.py, a module for each verifier."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A line of the table; met: whether its target is, None where it has none."""

    verifier: str
    what: str
    value: float
    unit: str
    target: str = ""
    met: bool | None = None
