"""A report that follows runs while they train: a page on this machine, made again when files of the runs change.

The page asks for `/state` every few seconds, and loads itself again when it has become another one.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from verl_cipo.evaluation.jsonl import told
from verl_cipo.evaluation.report.page import Live
from verl_cipo.evaluation.report.runs import NothingLoggedError

HOST = "127.0.0.1"


class LiveServer(ThreadingHTTPServer):
    """Serves one page, to this machine alone. A context manager that ends it.

    html: the page; version: that of the page; note: what there is to say of it.

    Args:
        port: 0 takes any free one.
        html: the first page, whose version is empty.

    Raises:
        OSError: the port is taken, or not allowed.
    """

    daemon_threads = True

    def __init__(self, port: int, html: str) -> None:
        super().__init__((HOST, port), _Handler)
        self.html, self.version, self.note = html.encode(), "", ""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        """What a browser opens."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def show(self, html: str, version: str) -> None:
        """Take another page, and the version that it has in it."""
        self.html, self.version = html.encode(), version

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        live = cast(LiveServer, self.server)
        if self.path == "/":
            self._answer(live.html, "text/html; charset=utf-8")
        elif self.path == "/state":
            self._answer(json.dumps({"version": live.version, "note": live.note}).encode(), "application/json")
        else:
            self.send_error(404)

    def _answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Every page would log a line every few seconds."""


def state_of(files: Iterable[Path]) -> list[tuple[Path, int, int]]:
    """Each file with its size and when it was written; without those that are gone by now."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except FileNotFoundError:
            # The demo's launcher joins its two files of metrics when a run ends.
            continue
        found.append((file, status.st_size, status.st_mtime_ns))
    return found


def follow(
    server: LiveServer,
    *,
    make: Callable[[Live], str],
    waiting: Callable[[str, Live], str],
    watch: Callable[[], object],
    seconds: float,
) -> None:
    """Show what `make` gives, again whenever `watch` gives something else, until KeyboardInterrupt.

    A page that cannot be made leaves the one before, with a note. Before the first one, only a run that has logged
    nothing yet is waited for; other errors end it.

    Args:
        make: the page; raises OSError or ValueError, as `read_arms` does.
        waiting: a page that says what is waited for.
        watch: looks at the files that the page is made of.
        seconds: between two looks.
    """
    made, seen = False, None
    while True:
        now = watch()
        if now != seen:
            live = Live(str(time.time_ns()), seconds)
            try:
                server.show(make(live), live.version)
                made, server.note = True, f"Read at {time.strftime('%H:%M:%S')}."
            except (OSError, ValueError) as error:
                if made:
                    server.note = f"Could not be made again at {time.strftime('%H:%M:%S')}: {told(error)}"
                    print(server.note, file=sys.stderr)
                elif isinstance(error, NothingLoggedError):
                    server.show(waiting(told(error), live), live.version)
                else:
                    raise
            seen = now
        time.sleep(seconds)
