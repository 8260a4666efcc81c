"""A run whose stderr is a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
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


def test_a_terminal_that_cannot_move_its_cursor_is_sent_no_codes(watch: Watch) -> None:
    assert "\x1b" not in watch(TERM="dumb")
