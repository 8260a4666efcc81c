"""What `pause`, `resume`, `drain` and `set` share: how a run that goes on is asked, and what is said of its answer."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import click

from pipeline.cli.endings import DEFECT, USAGE

ANSWER_S = 15.0
"""Seconds that a run has for its answer; it gives one within a second, unless it hangs."""
MOST_BYTES = 65_536
"""Bytes that an answer may have."""


class NotAskedError(click.ClickException):
    """A run could not be asked, or refused what it was asked."""

    exit_code = USAGE


class NoAnswerError(NotAskedError):
    """A run was asked, and does not answer."""

    exit_code = DEFECT


def ask(root: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the run that holds a folder. Raises NotAskedError where none does, it refuses, or says nothing."""
    from pipeline.store.folder import Layout, is_running  # noqa: PLC0415 - pyarrow, for those who ask
    from pipeline.store.lock import read_holder, said_of  # noqa: PLC0415
    from pipeline.store.meeting import meeting_place  # noqa: PLC0415

    layout = Layout(root)
    if not is_running(root):
        raise NotAskedError(f"no run goes on in {root}, so there is nothing to {request['do']}")
    holder = said_of(read_holder(layout.lock))
    place = meeting_place(layout)
    if place is None:
        raise NotAskedError(f"the run in {root} ({holder}) cannot be asked; end it by a signal, such as Ctrl-C")
    try:
        answer = _answer(place, request)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotAskedError(
            f"the run in {root} ({holder}) is not reached at {place}: it has only begun, is about to end, or runs on "
            "another machine, where this must be called"
        ) from error
    except TimeoutError as error:
        raise NoAnswerError(
            f"the run in {root} ({holder}) does not answer within {ANSWER_S:g} s: see `pipeline status`"
        ) from error
    except (OSError, ValueError) as error:
        raise NotAskedError(f"the run in {root} ({holder}) cannot be asked at {place}: {error}") from error
    if not answer.get("ok"):
        raise NotAskedError(str(answer.get("error")))
    return answer


def _answer(place: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request and read its answer. Raises OSError, ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_S)
        connection.connect(os.fspath(place))
        connection.sendall(json.dumps(request).encode() + b"\n")
        read = b""
        while not read.endswith(b"\n") and len(read) < MOST_BYTES:
            piece = connection.recv(MOST_BYTES - len(read))
            if not piece:
                break
            read += piece
    answer = json.loads(read) if read else None
    if not isinstance(answer, dict):
        raise ValueError("it hung up without an answer")  # noqa: TRY004 - nothing was called wrongly
    return answer


def in_flight(answer: dict[str, Any]) -> str:
    """Say what becomes of the requests in flight."""
    match answer["in_flight"]:
        case 0:
            return "nothing is in flight"
        case 1:
            return "one request is in flight, and its answer is kept"
        case many:
            return f"{many:,} requests are in flight, and their answers are kept"
