"""A headless Chromium that is driven as a person would: opened, typed into, clicked, looked at.

Through Chromium's DevTools protocol on loopback, by the WebSocket client that comes with Ray's dashboard.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop, self._number = socket, loop, 0

    def tell(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol and its answer."""
        return self._loop.run_until_complete(self._tell(method, parameters))

    async def _tell(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            answer = json.loads((await asyncio.wait_for(self._socket.receive(), 60)).data)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return answer["result"].get("value")

    def open(self, address: str) -> None:
        """Go there."""
        self.tell("Page.navigate", url=address)

    def text(self) -> str:
        """What can be read on the page."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def until(self, wanted: str, seconds: float = 60) -> str:
        """Wait until the page says something; return all that it says."""
        end = time.monotonic() + seconds
        while wanted not in (said := self.text()):
            assert time.monotonic() < end, f"{wanted!r} does not come up; the page says:\n{said[:2000]}"
            time.sleep(0.25)
        return said

    def type(self, words: str) -> None:
        """Type into what has the focus."""
        self.tell("Input.insertText", text=words)

    def picture(self, file: Path) -> None:
        """A PNG of what is seen."""
        file.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(width: int = 1400, height: int = 900) -> Iterator[Page]:
    """A tab of a new browser without a history."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program is not None
    profile = Path(tempfile.mkdtemp(prefix="browser"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
    options += [f"--window-size={width},{height}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    session = None
    try:
        port_file, end = profile / "DevToolsActivePort", time.monotonic() + 30
        while not port_file.exists() or not port_file.read_text().strip():
            assert time.monotonic() < end, "the browser does not start"
            time.sleep(0.1)
        port = port_file.read_text().splitlines()[0]

        async def connect() -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
            made = aiohttp.ClientSession()
            async with made.get(f"http://127.0.0.1:{port}/json") as answer:
                tab = next(one for one in await answer.json() if one["type"] == "page")
            return made, await made.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)

        session, socket = loop.run_until_complete(connect())
        yield Page(socket, loop)
    finally:
        if session is not None:
            loop.run_until_complete(session.close())
        loop.close()
        process.kill()
        process.wait(timeout=20)
        shutil.rmtree(profile, ignore_errors=True)
