"""A page in headless Chromium, where there is one: driven over a pipe, without a driver."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TIMEOUT = 120
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    """Its path, if it is installed."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One page. Commands are those of the DevTools protocol, each ended by a NUL."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, os.fdopen(read, "rb", buffering=0)
        self._left = b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def send(self, method: str, **params: object) -> dict:
        """What a command returns."""
        number = next(self._numbers)
        told = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(told).encode() + b"\0")
        while (answer := self._message()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _message(self) -> dict:
        while b"\0" not in self._left:
            got = self._read.read(65536)
            assert got, "Chromium has closed the pipe"
            self._left += got
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int = 900, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, code: str) -> object:
        """The value of an expression of JavaScript."""
        got = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got
        return got["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + TIMEOUT
        while not self.run(f"!!({condition})"):
            assert time.monotonic() < deadline, f"it never came to hold: {condition}"
            time.sleep(0.05)

    def press(self, key: str, text: str = "") -> None:
        """A key, as a person presses it; `text` is what it types."""
        given = {"key": key, "code": key, "windowsVirtualKeyCode": _CODES.get(key, 0)}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))


_CODES = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32}


@contextlib.contextmanager
def page() -> Iterator[Page]:
    """A page, for as long as the `with` block lasts."""
    path = find_chromium()
    assert path is not None
    to_read, write = os.pipe()
    read, to_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # The browser reads its file descriptor 3 and writes to 4.
        pipes = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", pipes, path, *_FLAGS, f"--user-data-dir={folder}"]
        browser = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        try:
            yield Page(write, read)
        finally:
            os.close(write)
            browser.terminate()
            browser.wait(30)
