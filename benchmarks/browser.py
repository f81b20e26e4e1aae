"""A headless Chromium that is driven as a person would: pages opened, words typed, buttons pressed.

Decisions: driven over a pipe, so no debugging port is open to other users of the machine; every wait has a
bound; a page may talk to loopback alone, and whatever else it asks for is noted; the profile lies in a folder
of the caller's and goes with it, the dashboard's cookie inside.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ANSWER_SECONDS = 60.0

# The browser reads its orders from descriptor 3 and answers on 4, whatever lay there before.
_JOIN = """
import fcntl, os, sys
pair = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
os.dup2(pair[0], 3)
os.dup2(pair[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def installed() -> str | None:
    """The browser that is installed."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser of its own, for the duration of a block."""

    def __init__(self, folder: Path, width: int = 1400, height: int = 900) -> None:
        program = installed()
        if program is None:
            raise FileNotFoundError("no browser is installed (apt-get install chromium)")
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        command = [program, "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"]
        command += ["--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"]
        command += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--lang=en"]
        command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        command += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _JOIN, str(to_browser), str(from_browser), *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer, self._session = 0, b"", ""
        self.asked: list[str] = []
        """Addresses that pages asked for."""
        self.answers: dict[str, int] = {}
        """Status of the last answer, by address."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Network.enable")
        self.resize(width, height)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._session = ""
            self._call("Browser.close", seconds=5)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, address: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=address)

    def value(self, script: str) -> Any:
        """What an expression of the page's script is, a promise's outcome too; raises where it throws."""
        told = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise RuntimeError(json.dumps(told["exceptionDetails"])[:600])
        return told["result"].get("value")

    def text(self) -> str:
        """The words that stand on the page."""
        return str(self.value("document.body ? document.body.innerText : ''"))

    def until(self, script: str, seconds: float = 60.0) -> Any:
        """Wait until an expression is true; return it. Raises TimeoutError with the page's words."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(RuntimeError):
                if found := self.value(script):
                    return found
            if time.monotonic() > end:
                raise TimeoutError(f"{script} after {seconds:g} s; the page says: {self.text()[:2000]}")
            self._listen(0.2)

    def until_text(self, words: str, seconds: float = 60.0) -> None:
        """Wait until words stand on the page."""
        self.until(f"document.body && document.body.innerText.includes({json.dumps(words)})", seconds)

    def click(self, selector: str, words: str = "") -> None:
        """Press the first visible element of a selector, the one with these words where some are given."""
        find = (
            f"[...document.querySelectorAll({json.dumps(selector)})].find("
            f"one => one.offsetParent !== null && one.innerText.includes({json.dumps(words)}))"
        )
        place = self.until(
            f"(() => {{ const one = {find}; if (!one) return null; one.scrollIntoView({{block: 'center'}});"
            "const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()",
            30,
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    def write(self, text: str) -> None:
        """Type into whatever has the focus."""
        self._call("Input.insertText", text=text)

    def picture(self, file: Path, height: int, scale: float = 1.0, top: int = 0) -> None:
        """Write `height` pixels of what the page shows, from `top` on, as a PNG made smaller by `scale`."""
        width = self.value("innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": scale}
        taken = self._call("Page.captureScreenshot", format="png", clip=clip)
        file.write_bytes(base64.b64decode(taken["data"]))

    # -- the pipe ----------------------------------------------------------------------------------

    def _call(self, method: str, seconds: float = ANSWER_SECONDS, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        order: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            order["sessionId"] = self._session
        os.write(self._to, json.dumps(order).encode() + b"\0")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for told in self._listen(max(0.0, end - time.monotonic()), one=True):
                if told.get("id") == number:
                    if "error" in told:
                        raise RuntimeError(f"{method}: {told['error'].get('message')}")
                    return dict(told["result"])
        raise TimeoutError(f"the browser did not answer {method} in {seconds:g} s")

    def _listen(self, seconds: float, one: bool = False) -> list[dict[str, Any]]:
        """What the browser says within some seconds, or the first of it."""
        end, heard = time.monotonic() + seconds, []
        while True:
            while b"\0" in self._buffer:
                message, _, self._buffer = self._buffer.partition(b"\0")
                told = json.loads(message)
                self._note(told)
                heard.append(told)
            left = end - time.monotonic()
            if (one and heard) or left <= 0 or not select.select([self._from], [], [], left)[0]:
                return heard
            read = os.read(self._from, 1 << 20)
            if not read:
                raise RuntimeError("the browser has ended")
            self._buffer += read

    def _note(self, told: dict[str, Any]) -> None:
        if told.get("method") == "Network.requestWillBeSent":
            self.asked.append(told["params"]["request"]["url"])
        elif told.get("method") == "Network.responseReceived":
            response = told["params"]["response"]
            self.answers[response["url"]] = response["status"]
