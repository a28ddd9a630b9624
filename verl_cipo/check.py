"""Check a command line of verl.trainer.main_ppo without starting it: its options, in verl's and CIPO's eyes.

    python -m verl_cipo.check --config-path pkg://verl.trainer.config --config-name ppo_trainer KEY=VALUE ...

Needs neither GPU nor model nor data. Prints what a step will do, and what is not verl's or CIPO's default. Exit status
1, and what was refused, where verl or CIPO would not take it.
"""

import argparse
import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence


def parser(prog: str) -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--config-path", default="pkg://verl_cipo.config", help="a package (default %(default)s)")
    made.add_argument("--config-name", default="cipo_trainer", help="a config in it (default %(default)s)")
    made.add_argument("--config", action="store_true", help="print the whole config as YAML, and the verdict to stderr")
    made.add_argument("--verbose", action="store_true", help="show what verl and its libraries print meanwhile")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="options of verl and CIPO")
    return made


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Hold back what verl and its libraries print; yields what verl_cipo itself has to say, a line each, at the end."""
    held, own = io.StringIO(), []
    notes = logging.Handler(logging.WARNING)
    notes.emit = lambda record: own.append(record.getMessage().partition("\n")[0])
    logger = logging.getLogger("verl_cipo")
    logger.addHandler(notes)
    try:
        with contextlib.redirect_stdout(held), contextlib.redirect_stderr(held), warnings.catch_warnings():
            yield own
    except BaseException:
        sys.stderr.write(held.getvalue())
        raise
    finally:
        logger.removeHandler(notes)
        lines = [line.removeprefix("[verl_cipo] ") for line in held.getvalue().splitlines()]
        own += [line for line in lines if line.startswith("algorithm.cipo.")]


@contextlib.contextmanager
def loud() -> Iterator[list[str]]:
    """Everything goes to stderr; there is nothing to add."""
    with contextlib.redirect_stdout(sys.stderr):
        yield []


def verdict(options: argparse.Namespace) -> tuple[str, str, str] | str:
    """Of accepted options the config as YAML, what a step will do, and what is not a default; else the refusal."""
    from omegaconf import OmegaConf

    from verl_cipo.integration import dry_run

    try:
        config = dry_run.compose_config(options.config_path, options.config_name, options.overrides)
        changed = dry_run.differences(config)
        plan = dry_run.check(config)
    except dry_run.REFUSALS as error:
        return f"dry run: refused, {type(error).__name__}: {error}"
    lines = "\n".join(f"  {key}: {value}" for key, value in changed.items())
    return OmegaConf.to_yaml(config, resolve=True), f"dry run: accepted, {dry_run.summary(plan)}", lines


def main(arguments: Sequence[str] | None = None, *, prog: str = "python -m verl_cipo.check") -> int:
    """Exit status 0 where the options are accepted, else 1."""
    options = parser(prog).parse_intermixed_args(arguments)
    # Imports of verl are in it: they take seconds, and print.
    with loud() if options.verbose else quiet() as notes:
        found = verdict(options)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if isinstance(found, str):
        print(found, file=sys.stderr)
        return 1
    config, plan, changed = found
    if options.config:
        print(plan, file=sys.stderr)
        print(config)
    else:
        print(plan, "\nnot as in verl's and CIPO's defaults (--config prints everything):", changed, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
