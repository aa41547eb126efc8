# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over its DevTools protocol by a pipe: no driver and no library is needed.

Frames are JSON, each ended by a zero byte: the browser reads descriptor 3 and writes descriptor 4.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--remote-debugging-pipe",
)
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), "Space": (32, " ")}
SECONDS = 20.0


class Page:
    """One tab. What its console and its network say is kept in `events`."""

    def __init__(self, writes: int, reads: int) -> None:
        self._writes = writes
        self._reads = reads
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """What the browser answers; events that come before it are kept."""
        self._number += 1
        frame: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            frame["sessionId"] = self._session
        os.write(self._writes, json.dumps(frame).encode() + b"\0")
        while True:
            told = self._receive()
            if told.get("id") == self._number:
                assert "error" not in told, told
                return dict(told["result"])
            self.events.append(told)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reads], [], [], SECONDS)
            assert ready, "the browser says nothing"
            data = os.read(self._reads, 1 << 16)
            assert data, "the browser has ended"
            self._rest += data
        frame, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(frame))

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def read(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true."""
        end = time.monotonic() + SECONDS
        while not self.read(expression):
            assert time.monotonic() < end, (expression, self.read("document.body.innerText"))
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        return str(self.read(f"document.querySelector({json.dumps(selector)}).textContent"))

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        code, text = _KEYS[key]
        parameters = {"key": text if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        parameters["modifiers"] = 8 if shift else 0
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **parameters)
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def tap(self, selector: str) -> None:
        """Touch the middle of an element."""
        place = "(({x, y, width, height}) => ({x: x + width / 2, y: y + height / 2}))"
        point = self.read(f"{place}(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def be(self, width: int, height: int, phone: bool = False, dark: bool = False) -> None:
        """Take this size, as a phone or a desktop, in light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def complaints(self) -> list[dict[str, Any]]:
        """Errors of the console, exceptions, and what the content security policy has refused."""
        self.read("0")
        bad = ("Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self.events if event.get("method") in bad]

    def addresses(self) -> set[str]:
        """Every address that was asked."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return {event["params"]["request"]["url"] for event in sent}


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Page]:
    """A browser with an empty profile in `folder`."""
    assert PROGRAM is not None
    reads, browser_writes = os.pipe()
    browser_reads, writes = os.pipe()
    command = [PROGRAM, *_FLAGS, f"--user-data-dir={folder}"]
    # The shell gives the two pipes the numbers that the browser looks at.
    script = f'exec 3<&{browser_reads} 4>&{browser_writes} && exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(browser_reads, browser_writes),
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(folder)},
    )
    os.close(browser_reads)
    os.close(browser_writes)
    try:
        yield Page(writes, reads)
    finally:
        os.close(writes)
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            os.close(reads)
