"""Types of command-line options."""

import argparse


def positive(text: str) -> int:
    """An integer >= 1. Raises: argparse.ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer >= 1") from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer >= 1")
    return value
