"""How long CIPO's own code takes in verl's driver, for `cipo/seconds/driver`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the wall seconds of what runs under it."""

    def __init__(self) -> None:
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside; do not nest."""
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - started

    def pop(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
