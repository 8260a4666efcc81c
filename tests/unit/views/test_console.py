from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.log import Event, Level
from pipeline.views.console import FAILURES_OF_A_KIND, EventPrinter, Screen, _styles

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def _event(kind: Event, level: Level = Level.INFO, **fields: Any) -> dict[str, Any]:
    return {"level": level.name.lower(), **fields, "event": kind.value, "at": AT}


def _printed(log_format: str, *events: dict[str, Any], level: Level = Level.INFO) -> list[str]:
    stream = io.StringIO()
    printer = EventPrinter(Screen(log_format=log_format, stream=stream), level=level, reader="job.yaml")
    for event in events:
        printer.hear(event)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("kind", Event)
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_every_event_is_one_line_in_both_forms(kind: Event, log_format: str) -> None:
    lines = _printed(log_format, _event(kind, deployment="sweden", reason=None), level=Level.DEBUG)

    assert len(lines) == 1
    assert kind.value in lines[0]
    assert "sweden" in lines[0]


def test_json_begins_with_time_level_and_event() -> None:
    (line,) = _printed("json", _event(Event.PAUSED, Level.WARNING, deployment="sweden"))

    assert list(json.loads(line)) == ["at", "level", "event", "deployment"]
    assert json.loads(line)["at"] == "2026-01-02T03:04:05.000+00:00"


HOSTILE = ['a\n{"event":"forged"}', "\x1b]0;owned\x07", "\u202eabc", "a\r\nb", "\x00", "\u2028"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_value_forges_a_line_or_moves_a_cursor(value: str, log_format: str) -> None:
    lines = _printed(log_format, _event(Event.DEPLOYMENT_SET_ASIDE, Level.WARNING, code=value))

    assert len(lines) == 1
    assert lines[0].isprintable()
    if log_format == "json":
        assert json.loads(lines[0])["code"] == value


@pytest.mark.parametrize("level", Level)
def test_what_is_less_important_than_asked_for_is_not_printed(level: Level) -> None:
    lines = _printed("json", *[_event(Event.PAUSED, one) for one in Level], level=level)

    assert [Level[json.loads(line)["level"].upper()] for line in lines] == [one for one in Level if one >= level]


def test_parts_are_printed_only_for_those_who_want_everything() -> None:
    assert _printed("json", _event(Event.PART_SEALED)) == []
    assert len(_printed("json", _event(Event.PART_SEALED), level=Level.DEBUG)) == 1


def test_failures_of_a_kind_are_printed_a_few_times_and_then_pointed_at() -> None:
    failures = [
        _event(Event.ROW_FAILED, Level.WARNING, ordinal=ordinal, type="BadRequestError", code=code)
        for ordinal in range(50)
        for code in ("content_filter", "too_long")
    ]

    lines = [json.loads(line) for line in _printed("json", *failures)]

    assert len(lines) == 2 * FAILURES_OF_A_KIND
    assert sum("pipeline errors job.yaml" in line.get("advice", "") for line in lines) == 2
    assert len(_printed("json", *failures, level=Level.DEBUG)) == len(failures)


def test_a_stop_says_what_another_signal_does() -> None:
    (line,) = _printed("console", _event(Event.STOPPING, Level.WARNING, signal="SIGINT"))

    assert "once more to leave at once" in line


class _Gone(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_terminal_that_went_away_stops_nothing() -> None:
    printer = EventPrinter(Screen(log_format="json", stream=_Gone()), level=Level.INFO, reader="job.yaml")

    printer.hear(_event(Event.RUN_STARTED))


def test_a_warning_can_be_read_on_a_dark_and_on_a_light_background() -> None:
    styles = _styles(True)
    assert styles["warning"] == "\x1b[38;5;16;43m", "black on yellow, whatever lies behind"
    assert set(_styles(False).values()) == {""}
