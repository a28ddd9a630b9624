"""Entry point of the group ``verl.plugins``: importing this module registers CIPO with verl.

``verl/__init__`` loads it in every process (driver, Ray actors, vLLM's), while verl itself is half imported, and
logs a failing plugin at DEBUG only. So this module imports nothing but the standard library at the top, and reports
a failure itself, as an ERROR that names the cause, before it lets verl see the exception.
"""

import logging
import os
from importlib.metadata import version

VERL_SUPPORTED = ">=0.9.1,<0.10"

logger = logging.getLogger("verl_cipo")


class UnsupportedVerlError(RuntimeError):
    """The installed verl is outside the range that this release was tested with."""


def check_verl(found: str) -> None:
    """Raise :class:`UnsupportedVerlError` unless verl ``found`` is in :data:`VERL_SUPPORTED`."""
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(VERL_SUPPORTED).contains(found, prereleases=True):
        raise UnsupportedVerlError(f"verl {found} is installed, verl_cipo needs verl{VERL_SUPPORTED}")


def register() -> None:
    """Register estimator, trainer resolver and switch; on ``VERL_PLATFORM=cpu`` the CPU platform too.

    Raises:
        UnsupportedVerlError: verl is outside the supported range.
        ImportError, AttributeError: a seam of verl is not where it was.
    """
    check_verl(version("verl"))

    if os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu":
        from verl_cipo.integration.cpu import platform as cpu

        cpu.register()

    from verl_cipo.integration import logs, switch
    from verl_cipo.integration.train import estimator

    logs.show_warnings(logger)
    # The estimator last: "cipo" must not look registered when the switch is not.
    switch.register()
    estimator.register()


try:
    register()
except Exception as error:
    logger.error(
        "verl_cipo could not be registered, adv_estimator=cipo will not work: %s: %s. "
        "Run `python -m verl_cipo.doctor` to see what to fix.",
        type(error).__name__,
        error,
    )
    raise
