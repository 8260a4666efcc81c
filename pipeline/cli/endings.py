"""How a command ends: the exit code of every failure, and the few words that go with it."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from pipeline.errors import PipelineError

USAGE = 2
STORAGE = 5
DEFECT = 70
INTERRUPTED = 130
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell would say


def ending(error: BaseException) -> int:  # noqa: PLR0911 - one a way to end
    """Say on stderr what happened and return the exit code of it."""
    leaf = _leaf(error)
    match leaf:
        case SystemExit(code=int(code)):
            return code
        case SystemExit(code=None):
            return 0
        case KeyboardInterrupt() | click.Abort():
            return interrupted()
        case click.ClickException():
            with suppress(OSError):
                leaf.show()
            return leaf.exit_code
        case PipelineError():
            _say(f"pipeline: {leaf}" if leaf.exit_code != USAGE else str(leaf))
            return leaf.exit_code
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            _say(f"pipeline: {leaf.strerror}; free some space, then call the same command again")
            return STORAGE
        case _:
            _say(_defect(leaf))
            return DEFECT


def interrupted() -> int:
    """Say that Ctrl-C ended a command that had nothing to wind up, and return the exit code of it."""
    _say("interrupted")
    return INTERRUPTED


def _say(text: str) -> None:
    """Print on stderr; where that is gone, the exit code says enough."""
    with suppress(OSError):
        click.echo(text, err=True)


def have_streams() -> None:
    """Open what the caller closed (`>&-`) on nothing, lest a file of ours take its number, and what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open to the end


def end_quietly() -> int:
    """End because nobody reads stdout any more; what is still buffered for it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def let_go_of_streams() -> None:
    """Drop what is buffered for a reader that is gone: the interpreter would fail at it at its end, and exit 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _defect(error: BaseException) -> str:
    """Say where it happened, without values: a message or a local might hold a prompt or a key."""
    places = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
    return (
        f"{places}pipeline: a defect of ours ({type(error).__name__}); what was committed is safe and the same command "
        "continues.\nPlease report the lines above; _pipeline/log.jsonl in the output folder says what came before."
    )


def _leaf(error: BaseException) -> BaseException:
    """Return the failure that says most, of those that happened side by side: ours before others."""
    found = list(_leaves(error))
    return next((one for one in found if isinstance(one, PipelineError)), found[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
