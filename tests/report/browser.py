"""A headless Chromium, spoken to over its debugging pipe: no port, no library, a profile that is thrown away."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

PATIENCE_SECONDS = 180.0
"""A loaded machine takes its time; only a browser that hangs waits this long."""

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--window-size=1280,1200", "--remote-debugging-pipe"),
)
# Chromium reads commands from descriptor 3 and answers on 4. Both ends are first moved out of the way of these two.
_LAUNCHER = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 10) for descriptor in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """One page. ``events`` holds whatever the browser told unasked."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._buffer, self._last = b"", 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE_SECONDS)
            if not ready:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._answers, 2**20)
            if not part:
                raise ConnectionError("chromium has closed its pipe")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.evaluate(expression):
            time.sleep(0.05)
            if time.monotonic() > deadline:
                raise TimeoutError(expression)

    def wait_until_told(self, method: str) -> None:
        """Wait for an event."""
        while not self.told(method):
            self.events.append(self._read())

    def told(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of one kind."""
        return [event["params"] for event in self.events if event.get("method") == method]


@contextlib.contextmanager
def open_page(url: str, *, width: int = 1280, dark: bool = False) -> Iterator[Browser]:
    """A page in a fresh browser, of a given width and colour scheme, loaded; the browser is ended afterwards."""
    assert CHROMIUM is not None
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="headcount-chromium-", ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", _LAUNCHER, str(to_browser[0]), str(from_browser[1])]
        process = subprocess.Popen(
            [*command, CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser[0], from_browser[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        browser = Browser(to_browser[1], from_browser[0])
        try:
            (target,) = [t for t in browser.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
            attached = browser.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            browser.session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                browser.call(f"{domain}.enable")
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=1200, deviceScaleFactor=1, mobile=width < 600
            )
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            browser.call("Emulation.setEmulatedMedia", features=[scheme])
            browser.call("Page.navigate", url=url)
            browser.wait_until_told("Page.loadEventFired")
            yield browser
        finally:
            process.terminate()
            process.wait(timeout=20)
            os.close(to_browser[1])
            os.close(from_browser[0])
