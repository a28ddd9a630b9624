"""Types of command-line options."""

import argparse
import math
from collections.abc import Callable


def real(text: str) -> float:
    """A finite number: nothing is above or below a NaN. Raises: argparse.ArgumentTypeError, ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: expected a finite number")
    return value


def share(text: str) -> float:
    """A number between 0 and 1, neither of them. Raises: argparse.ArgumentTypeError, ValueError."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number between 0 and 1")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """The type of integers from `least` on. It raises: argparse.ArgumentTypeError, ValueError."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: expected {least} or more")
        return value

    return integer
