"""The true command, held against the forked one that other tests start: what it says, its exit code, its signals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import pytest
from forked import CLOSED

from tests.cli.bench import Bench, Serve

COMMAND = Path(sysconfig.get_path("scripts")) / "pipeline"
STUCK = {"latency": {"median_ms": 600_000, "sigma": 0}}
Said = tuple[int, str, str]
Way = Callable[..., Said]


def truly(bench: Bench, *arguments: str, stdin: int = subprocess.DEVNULL) -> Said:
    done = subprocess.run(
        [COMMAND, *arguments],
        cwd=bench.folder,
        env={**os.environ, **bench.environ, "PYTHONUNBUFFERED": ""},
        stdin=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def by_fork(bench: Bench, *arguments: str, stdin: int = subprocess.DEVNULL) -> Said:
    done = forked.run(
        "pipeline",
        *arguments,
        cwd=bench.folder,
        env={**os.environ, **bench.environ, "PYTHONUNBUFFERED": ""},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def plain(said: Said) -> Said:
    """Without what differs from one call to the next: moments, durations, rates and ids."""
    code, *texts = said
    for pattern in (r"[0-9a-f]{8}-[0-9a-f-]{27}", r'"request_id":"[^"]*"', r"\d+(\.\d+)?([eE:T.-]\d+)*"):
        texts = [re.sub(pattern, "N", text) for text in texts]
    return code, texts[0], "\n".join(sorted(texts[1].splitlines()))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["run", "--bogus"], 2),
        (["validate", "job.yaml"], 0),
        (["run", "job.yaml", "--log-level", "warning"], 1),
        (["run", "job.yaml", "--json", "--progress", "none"], 1),
        # One worker: how many hear of a wrong key before the run ends is chance.
        (["run", "job.yaml", "--set", "deployments.0.key=${WRONG_KEY}", "--set", "run.workers=1"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_forked_command_says_and_returns_what_the_true_one_does(
    bench: Bench, arguments: list[str], code: int
) -> None:
    bench.environ["WRONG_KEY"] = "wrong-key"
    bench.rows(["question 0?", "poison", "question 2?"])
    expected = truly(bench, *arguments)
    shutil.rmtree(bench.output, ignore_errors=True)

    assert plain(by_fork(bench, *arguments)) == plain(expected)
    assert expected[0] == code, expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signals_end_the_forked_command_as_they_end_the_true_one(
    bench: Bench, served: Serve, number: signal.Signals
) -> None:
    bench.environ["TEST_ENDPOINT"] = served(STUCK).url
    ends: list[tuple[int | None, str]] = []
    command = ["run", "job.yaml", "--set", "run.grace=0s"]
    environ = {**os.environ, **bench.environ, "PYTHONUNBUFFERED": ""}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for process in (
        lambda: subprocess.Popen([COMMAND, *command], cwd=bench.folder, env=environ, **pipes),
        lambda: forked.popen("pipeline", *command, cwd=bench.folder, env=environ, **pipes),
    ):
        started: Any = process()
        assert any(json.loads(line)["event"] == "run_started" for line in started.stderr)
        started.send_signal(number)
        stdout, _ = started.communicate(timeout=60)
        ends.append((started.returncode, plain((0, stdout, ""))[1]))
        shutil.rmtree(bench.output)

    assert ends[0] == ends[1]
    assert ends[0][0] == {"SIGINT": 130, "SIGKILL": -9}[number.name]


LOOK = """
import os, signal, sys
print(sys.argv[1:], os.getcwd(), sorted(os.listdir("/proc/self/fd"))[:3], len(os.listdir("/proc/self/fd")))
print([None if one is None else (one.encoding, one.errors, one.line_buffering) for one in (sys.stdin, sys.stderr)])
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD), os.environ["ONLY"], __name__)
print(None if sys.stdin is None else sys.stdin.read())
"""


@pytest.mark.parametrize("stdin", ["text", "closed"])
@pytest.mark.parametrize("ignored", [(), (signal.SIGINT,)])
def test_a_forked_process_finds_what_a_new_interpreter_finds(
    tmp_path: Path, stdin: str, ignored: tuple[signal.Signals, ...]
) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    (tmp_path / "words").write_text("asked")
    environ = {**os.environ, "ONLY": "here", "PYTHONUNBUFFERED": ""}

    def leave() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        if stdin == "closed":
            os.close(0)

    with (tmp_path / "words").open() as words:
        expected = subprocess.run(
            [sys.executable, "-m", "look", "a", "b"],
            cwd=tmp_path,
            env=environ,
            stdin=words,
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=leave,
        )
        words.seek(0)
        found = forked.run(
            "look",
            *("a", "b"),
            cwd=tmp_path,
            env=environ,
            stdin=CLOSED if stdin == "closed" else words.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            ignored=ignored,
        )

    assert found.stdout == expected.stdout
    assert (found.stderr, found.returncode) == (expected.stderr, 0)
