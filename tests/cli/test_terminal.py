"""A run whose stderr is a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable

import pytest

from tests.cli.bench import Bench, Serve

SLOW = {"latency": {"median_ms": 700, "sigma": 0}}

Watch = Callable[..., str]


@pytest.fixture
def watch(bench: Bench, served: Serve) -> Watch:
    """Run the job with a terminal for stderr; gives what the terminal was sent."""
    bench.environ["TEST_ENDPOINT"] = served(SLOW).url

    def run(*options: str, **environ: str) -> str:
        screen, terminal = pty.openpty()
        seen = {"TERM": "xterm", "COLUMNS": "120", **environ}
        process = bench.popen("run", "job.yaml", *options, stdout=subprocess.DEVNULL, stderr=terminal, **seen)
        os.close(terminal)
        sent = b""
        with contextlib.suppress(OSError):  # a terminal ends with EIO
            while piece := os.read(screen, 65_536):
                sent += piece
        os.close(screen)
        assert process.wait(timeout=20) == 0
        return sent.decode()

    return run


def test_a_terminal_has_a_status_line_that_is_redrawn_in_place(watch: Watch) -> None:
    sent = watch()

    assert "12 rows" in sent
    assert "in flight" in sent
    assert "\x1b[2K" in sent
    assert "run_started" in sent
    assert '{"' not in sent
    assert "\x1b[?25h" in sent


def test_a_terminal_without_color_has_none(watch: Watch) -> None:
    assert not re.search(r"\x1b\[[0-9;]*m", watch(NO_COLOR="1"))


def test_a_terminal_has_color(watch: Watch) -> None:
    assert re.search(r"\x1b\[[0-9;]*m", watch(NO_COLOR=""))


@pytest.mark.parametrize("options", [("--progress", "none"), ("--progress", "plain")])
def test_a_status_line_may_be_declined(watch: Watch, options: tuple[str, ...]) -> None:
    assert "in flight" not in watch(*options)


class Screen:
    """A terminal that wraps long lines anew when it becomes narrower, as most do."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = [""]
        self.row = 0

    def narrow(self, width: int) -> None:
        pieces = [[text[at : at + width] for at in range(0, len(text), width)] or [""] for text in self.rows]
        self.row = sum(map(len, pieces[: self.row + 1])) - 1
        self.rows, self.width = [piece for some in pieces for piece in some], width

    def feed(self, text: str) -> None:
        for code in re.findall(r"\x1b\[[?0-9;]*[a-zA-Z]|.|\n|\r", text):
            match code:
                case "\x1b[2K":
                    self.rows[self.row] = ""
                case "\x1b[1A":
                    self.row = max(0, self.row - 1)
                case "\n":
                    self._down()
                case _ if len(code) == 1 and code != "\r":  # after it, a row is erased or a new one begun
                    if len(self.rows[self.row]) == self.width:
                        self._down()
                    self.rows[self.row] += code

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")


def test_a_terminal_that_becomes_narrower_keeps_no_old_status_line(bench: Bench, served: Serve) -> None:
    bench.environ["TEST_ENDPOINT"] = served(SLOW).url
    terminal_side, process_side = pty.openpty()
    fcntl.ioctl(process_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = bench.popen(
        "run", "job.yaml", stdout=subprocess.DEVNULL, stderr=process_side, TERM="xterm", COLUMNS="", NO_COLOR="1"
    )
    os.close(process_side)
    screen, sent, narrowed = Screen(120), b"", False
    with contextlib.suppress(OSError):  # a terminal ends with EIO
        while piece := os.read(terminal_side, 65_536):
            sent += piece
            if not narrowed and b"requests/min" in sent:
                fcntl.ioctl(terminal_side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
                screen.feed(sent.decode())
                assert any(len(row) > 40 and row.startswith("  gpt-4o-mini") for row in screen.rows)
                screen.narrow(40)
                narrowed, sent = True, b""
    os.close(terminal_side)

    assert process.wait(timeout=20) == 0
    assert narrowed
    assert sent.decode().count("asked  ") >= 1, "it was drawn anew"
    screen.feed(sent.decode())
    assert not [row for row in screen.rows if "rows ·" in row or ("requests" in row and "gpt-4o-mini" in row)]


def test_a_terminal_that_cannot_move_its_cursor_is_sent_no_codes(watch: Watch) -> None:
    assert "\x1b" not in watch(TERM="dumb")
