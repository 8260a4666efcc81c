"""What a run says on stderr: its events as lines for a person or as JSON, failures kept to the first few of a kind."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TextIO

import structlog

from pipeline.log import Event, Level
from pipeline.views.text import json_text, plain

FAILURES_OF_A_KIND = 5
_PAD_EVENT = 14
_BLACK_ON_YELLOW = "\x1b[38;5;16;43m"
"""The black of the 256 colors: bold, as levels are, makes the first eight lighter on many terminals."""


class Screen:
    """Where lines go. A terminal that went away is no reason to stop a run, so it is written to in silence."""

    def __init__(self, *, log_format: str = "auto", stream: TextIO | None = None) -> None:
        """`log_format` is auto, console or json; auto is console on a terminal. `stream` defaults to stderr."""
        self.stream = stream or sys.stderr
        self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self.in_color = self.is_terminal and not os.environ.get("NO_COLOR")
        self.as_json = log_format == "json" or (log_format == "auto" and not self.is_terminal)
        self.write: Callable[[str], None] = self._write
        self._render = structlog.dev.ConsoleRenderer(
            colors=self.in_color, sort_keys=False, pad_event_to=_PAD_EVENT, level_styles=_styles(self.in_color)
        )

    def say(self, event: Mapping[str, Any]) -> None:
        """Print one event: `at` (a datetime), `level`, `event`, then its fields."""
        if self.as_json:
            head = {"at": event["at"].isoformat(timespec="milliseconds"), "level": None, "event": None}
            values = {**head, **{name: value for name, value in event.items() if name != "at"}}
            self.write(json_text(values, indent=None))
            return
        fields = {name: _shown(value) for name, value in event.items() if name != "at" and value is not None}
        at = event["at"].astimezone().strftime("%H:%M:%S")
        self.write(str(self._render(None, "", {"timestamp": at, **fields})))

    def _write(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self.stream.write(line + "\n")
            self.stream.flush()


class EventPrinter:
    """Prints the events that are loud enough."""

    def __init__(self, screen: Screen, *, level: Level, reader: str) -> None:
        """`reader` is what `pipeline errors` is to be given for this run."""
        self._screen = screen
        self._level = level
        self._reader = reader
        self._failures: Counter[tuple[object, object]] = Counter()

    def hear(self, event: Mapping[str, Any]) -> None:
        """Print an event, or not."""
        if _level(event) < self._level:
            return
        if event["event"] == Event.ROW_FAILED and self._level > Level.DEBUG:
            self._row_failed(event)
        elif event["event"] == Event.STOPPING:
            self._screen.say({**event, "advice": "calls in flight may still finish; once more to leave at once"})
        else:
            self._screen.say(event)

    def _row_failed(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type"), event.get("code")
        self._failures[kind] += 1
        if self._failures[kind] < FAILURES_OF_A_KIND:
            self._screen.say(event)
        elif self._failures[kind] == FAILURES_OF_A_KIND:
            self._screen.say({**event, "advice": f"no more of this kind are printed: pipeline errors {self._reader}"})


def _styles(in_color: bool) -> dict[str, str]:  # noqa: FBT001 - what it is set to
    """The levels' colors. A warning is black on yellow: yellow by itself cannot be read on a light background."""
    styles = structlog.dev.ConsoleRenderer.get_default_level_styles(in_color)
    return {**styles, "warning": _BLACK_ON_YELLOW} if in_color else dict(styles)


def _shown(value: object) -> object:
    return plain(value) if isinstance(value, str) else value


def _level(event: Mapping[str, Any]) -> Level:
    """How loud an event is on stderr: parts come by the hundred, so they are quieter there than in the log."""
    return Level.DEBUG if event["event"] == Event.PART_SEALED else Level[str(event["level"]).upper()]
