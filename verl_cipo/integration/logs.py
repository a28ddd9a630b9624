"""Warnings of verl_cipo reach stderr, whatever other packages make of the root logger.

vLLM's API server imports a package (model_hosting_container_standards) that raises the root logger and its handlers to
ERROR. verl's trainer imports that server when it starts the rollout, and from then on no warning in its process would
be seen: neither those of the guard nor that a checkpoint has no state of CIPO.
"""

import logging
import sys


class WhereRootIsSilent(logging.Handler):
    """Writes to stderr what no handler of the root logger does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write `record` as verl writes its own."""
        if all(handler.level > record.levelno for handler in logging.root.handlers):
            try:
                print(self.format(record), file=sys.stderr)
            except Exception:
                self.handleError(record)  # as logging's own handlers do: a terminal that is gone must not end a run


def show_warnings(logger: logging.Logger) -> None:
    """Have `logger` pass warnings on, and write those that would be lost; a second call changes nothing."""
    if not any(isinstance(handler, WhereRootIsSilent) for handler in logger.handlers):
        handler = WhereRootIsSilent(logging.WARNING)
        handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
