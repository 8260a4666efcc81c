"""A real browser, driven over a pair of pipes: the DevTools protocol, as far as a page is looked at."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """Where the browser is; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(slots=True)
class Tab:
    """A page of the browser. `events` are all that it told meanwhile."""

    sink: IO[bytes]
    source: IO[bytes]
    session: str | None = None
    events: list[Mapping[str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def send(self, method: str, **values: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": values}
        if self.session is not None:
            message["sessionId"] = self.session
        self.sink.write(json.dumps(message).encode() + b"\0")
        self.sink.flush()
        while True:
            said = self._next()
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]
            self.events.append(said)

    def wait(self, event: str) -> None:
        """Read on until it happens."""
        while not any(one.get("method") == event for one in self.events):
            self.events.append(self._next())

    def open(self, path: Path) -> None:
        """Load a file, and forget what was told of the page before."""
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """Evaluate JavaScript in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def look(self, *, width: int, theme: str) -> None:
        """Make the window so wide and the theme light or dark."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        for kind in ("rawKeyDown", "keyUp"):
            code = {"Tab": 9, "Enter": 13}[key]
            text = {"text": "\r"} if key == "Enter" and kind == "rawKeyDown" else {}
            kind_ = "keyDown" if text else kind
            self.send("Input.dispatchKeyEvent", type=kind_, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def told(self, method: str) -> list[Mapping[str, Any]]:
        """Every event of a kind since the page was opened."""
        return [one["params"] for one in self.events if one.get("method") == method]

    def _next(self) -> Any:
        said = bytearray()
        while (byte := self.source.read(1)) != b"\0":
            assert byte, "the browser went away"
            said += byte
        return json.loads(said)


@contextmanager
def open_tab(program: str, folder: Path) -> Iterator[Tab]:
    """Start the browser with a profile below `folder`, and end it with the block."""
    their_in, our_out = os.pipe()
    our_in, their_out = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        [
            "bash",
            "-c",
            f'exec "$@" 3<&{their_in} 4>&{their_out}',
            "bash",
            program,
            *options,
            f"--user-data-dir={folder}",
        ],
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        with os.fdopen(our_out, "wb") as sink, os.fdopen(our_in, "rb") as source:
            tab = Tab(sink, source)
            target = tab.send("Target.createTarget", url="about:blank")["targetId"]
            tab.session = tab.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
                tab.send(f"{domain}.enable")
            yield tab
            tab.session = None
            with suppress(AssertionError, OSError):
                tab.send("Browser.close")
    finally:
        process.kill()
        process.wait(20)
