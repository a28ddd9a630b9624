"""--follow: what is served, and when it is made again. test_report_browser.py has the page in a browser."""

import json
import socket
import threading
import urllib.error
import urllib.request

import pytest

from tests.fast.evaluation.report.report_folders import write_metrics, write_run
from verl_cipo import report
from verl_cipo.evaluation.report.live import LiveServer, follow, state_of
from verl_cipo.evaluation.report.runs import NothingLoggedError


def get(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode(), answer.headers


class Following:
    """`follow` with a page that is made of `content`; an exception in its place is raised. Each look takes the next."""

    def __init__(self, server, *contents):
        self.server, self.contents, self.shown, self.versions = server, list(contents), [], []

    def watch(self):
        # What the look before has led to.
        self.shown.append((self.server.html.decode(), self.server.note))
        if not self.contents:
            raise KeyboardInterrupt
        return self.contents[0]

    def make(self, live):
        content = self.contents.pop(0)
        if isinstance(content, Exception):
            raise content
        self.versions.append(live.version)
        return content

    def waiting(self, what, live):
        return f"waiting: {what}"

    def go(self):
        with pytest.raises(KeyboardInterrupt):
            follow(self.server, make=self.make, waiting=self.waiting, watch=self.watch, seconds=0)
        return self.shown[1:]


def test_the_page_and_its_state_are_served_and_nothing_else():
    with LiveServer(0, "first") as server:
        assert get(server.address)[0] == "first"
        server.show("<p>\u2192</p>", "7")
        html, headers = get(server.address)
        assert html == "<p>\u2192</p>" and headers["Cache-Control"] == "no-store"
        assert json.loads(get(f"{server.address}state")[0]) == {"version": "7", "note": ""}
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(f"{server.address}etc/passwd")
        assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(urllib.error.URLError):
        get(server.address)


def test_a_run_that_has_logged_nothing_is_waited_for():
    with LiveServer(0, "first") as server:
        shown = Following(server, NothingLoggedError("run a: empty"), "page").go()
    assert [html for html, _ in shown] == ["waiting: run a: empty", "page"]
    assert shown[1][1].startswith("Read at ")


def test_a_page_that_cannot_be_made_again_leaves_the_one_before_and_says_so(capsys):
    with LiveServer(0, "first") as server:
        following = Following(server, "one", ValueError("half a dump"), "two")
        shown = following.go()
        assert server.version == following.versions[1] != following.versions[0]
    assert [html for html, _ in shown] == ["one", "one", "two"]
    assert shown[1][1].startswith("Could not be made again at ") and shown[1][1].endswith(": half a dump")
    assert "half a dump" in capsys.readouterr().err and "half a dump" not in shown[2][1]


def test_other_errors_before_the_first_page_end_it():
    with LiveServer(0, "first") as server, pytest.raises(ValueError, match="given twice"):
        follow(
            server,
            make=Following(server, ValueError("given twice")).make,
            waiting=lambda what, live: what,
            watch=lambda: 0,
            seconds=0,
        )


def test_a_file_that_has_grown_is_another_state_and_one_that_is_gone_is_none(tmp_path):
    file = write_metrics(tmp_path / "metrics.jsonl", {1: {"a": 1}})
    before = state_of([file, tmp_path / "gone"])

    assert before == state_of([file]) and len(before) == 1
    with open(file, "a") as opened:
        opened.write("x")
    assert state_of([file]) != before


def test_a_run_that_is_not_there_or_a_port_that_is_taken_is_said(tmp_path, capsys):
    before = threading.enumerate()
    assert report.main(["--follow", str(tmp_path / "none"), "--port", "0"]) == 1
    assert f"{tmp_path / 'none'}: no such file or directory" in capsys.readouterr().err
    folder = write_run(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert report.main(["--follow", str(folder), "--port", str(port)]) == 1
    assert f"--port {port}: " in capsys.readouterr().err
    assert [thread for thread in threading.enumerate() if thread not in before and not thread.daemon] == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "one of the arguments --output --follow is required"),
        (["--follow", "--output", "x.html"], "not allowed with argument"),
        (["--follow", "--png", "pictures"], "--follow writes no pictures"),
        (["--follow", "--port", "70000"], "expected 0 to 65535"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, why, capsys):
    with pytest.raises(SystemExit):
        report.main(["run", *options])
    assert why in capsys.readouterr().err
