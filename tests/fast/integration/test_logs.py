"""Warnings of verl_cipo are seen where another package has silenced the root logger, and once where none has."""

import logging

import pytest

from verl_cipo.integration.logs import WhereRootIsSilent, show_warnings


@pytest.fixture
def logger():
    made = logging.Logger("verl_cipo")
    made.parent = logging.root
    show_warnings(made)
    return made


def seen_by_root(monkeypatch) -> list[str]:
    """What the one handler writes that the root logger has from now on, at WARNING as verl leaves it."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    return seen


def test_a_warning_that_root_shows_is_shown_once(logger, monkeypatch, capsys):
    root = seen_by_root(monkeypatch)
    logger.warning("seen by %s", "root")
    assert root == ["seen by root"] and capsys.readouterr().err == ""


def test_a_warning_is_written_where_root_and_its_handlers_are_at_error(logger, monkeypatch, capsys):
    root = seen_by_root(monkeypatch)
    logging.root.setLevel(logging.ERROR)
    logging.root.handlers[0].setLevel(logging.ERROR)
    logger.warning("the guard")
    logger.error("an error")
    logger.info("no news")
    assert root == ["an error"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("WARNING:") and line.endswith(":the guard")


def test_a_warning_is_written_where_only_the_level_of_root_is_raised(logger, monkeypatch, capsys):
    root = seen_by_root(monkeypatch)
    logging.root.setLevel(logging.ERROR)
    logger.warning("the guard")
    assert root == ["the guard"] and capsys.readouterr().err == ""


def test_a_warning_is_written_where_root_has_no_handler(logger, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    logger.warning("alone")
    assert capsys.readouterr().err.endswith(":alone\n")


def test_a_terminal_that_is_gone_does_not_end_a_run(logger, monkeypatch, capsys):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setattr("sys.stderr", Gone())
    logger.warning("into the void")


def test_a_second_call_changes_nothing(logger):
    logger.setLevel(logging.ERROR)
    show_warnings(logger)
    assert [type(handler) for handler in logger.handlers] == [WhereRootIsSilent] and logger.level == logging.ERROR
