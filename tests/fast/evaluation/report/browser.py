"""A headless Chromium, spoken to over its DevTools pipe: needs the browser and nothing else.

The pipe is two file descriptors, 3 to the browser and 4 from it, with JSON messages that end in a zero byte.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
HINT = "no Chromium: apt-get install chromium (or put chromium, chromium-browser or google-chrome on PATH)"


class Browser:
    """One page of a headless Chromium; a context manager that ends it.

    errors: what the page's scripts threw or its console said was wrong; requests: the addresses that it loaded.
    """

    def __init__(self, profile: Path) -> None:
        """profile: an empty folder of its own. Raises: FileNotFoundError with HINT where there is no browser."""
        program = next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise FileNotFoundError(HINT)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The shell puts the pipes where the browser wants them; whatever numbers they had are closed then.
        script = f'exec 3<&{theirs_in} 4>&{theirs_out} && exec "$0" "$@"'
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self._log = open(profile / "browser.log", "wb")
        self._process = subprocess.Popen(
            ["bash", "-c", script, program, *flags],
            pass_fds=(theirs_in, theirs_out),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._session, self._rest = 0, None, b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in targets if info["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        # It ends, with all its helpers, when its pipe is closed.
        os.close(self._out)
        os.close(self._in)
        self._process.wait(timeout=60)
        self._log.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Answer to a DevTools command. Raises: RuntimeError with the browser's error."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window, once it and what it asks for are loaded. Raises: see `visit`."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.visit(path.resolve().as_uri())

    def visit(self, address: str) -> None:
        """Show an address, once it and what it asks for are loaded. Raises: RuntimeError when it cannot be."""
        self._loaded = False
        answer = self.call("Page.navigate", url=address)
        if "errorText" in answer:
            raise RuntimeError(f"{address}: {answer['errorText']}")
        while not self._loaded:
            self._receive()

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Until a JavaScript expression holds, whatever is loaded meanwhile. Raises: TimeoutError with its value."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                last = self.value(expression)
            except RuntimeError as error:
                # Between two pages there is nothing to ask.
                last = error
            else:
                if last:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"after {seconds:g} s, {expression} is {last}")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression is in the page. Raises: RuntimeError when it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse on the middle of an element, as a person would."""
        box = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{box}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        at = self.value(f"(r => ({{x: r.x + r.width / 2, y: r.y + r.height / 2}}))({box}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def screenshot(self, path: Path, *, full: bool = True) -> None:
        """The page, or the part of it that the window shows, as a PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 16)
            if not part:
                raise RuntimeError(f"the browser has ended: {Path(self._log.name).read_text(errors='replace')[-2000:]}")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        event = json.loads(message)
        method, params = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return event
