"""A headless Chromium driven through its debugging pipe, with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
# what Chromium says of a question whose page was replaced before it had an answer
GONE = (
    "Inspected target navigated or closed",
    "Execution context was destroyed.",
    "Cannot find default execution context",
)


def installed() -> str | None:
    """The browser's command, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page in a browser with a profile of its own.

    Args:
        page: a local file.
        profile: an empty folder.
        size: of the window.
    """

    def __init__(self, page: Path, profile: Path, size: tuple[int, int] = (1400, 900)) -> None:
        self.page, self.profile, self.size = page, profile, size
        self.number, self.buffer = 0, b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()
        words = [str(installed()), *FLAGS, f"--user-data-dir={self.profile}", "--window-size={},{}".format(*self.size)]
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *words, "about:blank"], pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self.session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable", session=True)
        self._ask("Page.navigate", {"url": self.page.as_uri()}, session=True)
        until = time.monotonic() + 30
        while not self.run("document.readyState === 'complete' && location.protocol === 'file:'"):
            assert time.monotonic() < until, "the page did not load"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self.to)
        os.close(self.back)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression in the page; a question that a reload cut off is asked again."""
        params = {"expression": code, "returnByValue": True}
        for _ in range(10):
            given = self._answer("Runtime.evaluate", params, session=True)
            if given.get("error", {}).get("message") not in GONE:
                break
        assert "error" not in given, given
        given = given["result"]
        assert "exceptionDetails" not in given, given
        return given["result"].get("value")

    def press(self, key: str) -> None:
        """Presses a named key, such as "Home", on what has the focus."""
        for kind in ("keyDown", "keyUp"):
            code = {"Home": 36, "End": 35}[key]
            event = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code}
            self._ask("Input.dispatchKeyEvent", event, session=True)

    def point(self, x: float, y: float) -> None:
        """Moves the pointer to a place of the window."""
        for shift in (-3, 0):
            self._ask("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + shift, "y": y}, session=True)

    def emulate(self, width: int, height: int, scheme: str = "light", media: str = "") -> None:
        """Shows the page as a window of this size has it, in a light or dark colour scheme, or as `media` has it."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", size, session=True)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setEmulatedMedia", {"features": features, "media": media}, session=True)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", session=True)["data"])

    def complaints(self) -> list[str]:
        """Errors that the page logged, and every address outside itself that it asked for."""
        self.run("1")
        found = []
        for event in self.events:
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                found.append(json.dumps(event["params"])[:300])
            if event["method"] == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if not url.startswith("data:") and url != self.page.as_uri():
                    found.append(url)
        return found

    def _ask(self, method: str, params: dict[str, Any] | None = None, session: bool = False) -> dict[str, Any]:
        answer = self._answer(method, params, session)
        assert "error" not in answer, answer
        return answer["result"]

    def _answer(self, method: str, params: dict[str, Any] | None = None, session: bool = False) -> dict[str, Any]:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                return answer
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.back], [], [], 30)
            assert ready, "the browser does not answer"
            part = os.read(self.back, 1 << 20)
            assert part, "the browser is gone"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)
