"""The log: one JSON line an event, whatever it holds; private, rotated, and loud when the disk refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StorageError
from pipeline.log import KEEP_FILES, ROTATE_BYTES, Event, EventLog, Level

NOW = 1_700_000_000.0
FORGED = 'a\n{"event":"forged"}'
HOSTILE = [FORGED, "\x1b]0;title\x07", "\u202egnp.exe", "\x00", "\r\n", "\u2028", '"}', "\ud800", "größe"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


@pytest.fixture
def log(file: Path) -> Iterator[EventLog]:
    log = EventLog(path=file, wall=lambda: NOW)
    yield log
    log.close()


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def test_every_event_at_every_level_is_a_line(log: EventLog, file: Path) -> None:
    for event in Event:
        for level in Level:
            log.emit(event, level, rows=3, code=None)
    said = [(line["event"], line["level"]) for line in lines(file)]
    assert said == [(event.value, level.name.lower()) for event in Event for level in Level]
    assert {line["at"] for line in lines(file)} == {"2023-11-14T22:13:20+00:00"}
    assert (lines(file)[0]["rows"], lines(file)[0]["code"]) == (3, None)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_value_never_makes_a_line_or_moves_a_cursor(log: EventLog, file: Path, text: str) -> None:
    log.emit(Event.ATTEMPT, code=text, path=Path(text.replace("\x00", "")))
    (line,) = lines(file)
    assert line["event"] == "attempt"
    assert line["code"] == text
    assert not any(byte < 0x20 for byte in file.read_bytes().rstrip(b"\n"))


def test_a_listener_is_handed_every_event_with_or_without_a_file(file: Path) -> None:
    heard: list[Mapping[str, Any]] = []
    for path in (None, file):
        log = EventLog(path=path, listener=heard.append, wall=lambda: NOW)
        log.emit(Event.PAUSED, Level.WARNING, seconds=1.5)
        log.close()
    assert [(event["event"], event["level"], event["seconds"]) for event in heard] == [("paused", "warning", 1.5)] * 2


def test_lines_are_appended_to_a_private_file(file: Path) -> None:
    for number in range(3):
        log = EventLog(path=file, wall=lambda: NOW)
        log.emit(Event.PROGRESS, number=number)
        log.close()
    assert [line["number"] for line in lines(file)] == [0, 1, 2]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_line_that_a_crash_cut_does_not_spoil_the_next(file: Path) -> None:
    file.write_bytes(b'{"event":"progress"}\n{"event":"att')
    log = EventLog(path=file, wall=lambda: NOW)
    log.emit(Event.RUN_RESUMED)
    log.close()
    first, second, third = file.read_bytes().splitlines()
    assert (first, second) == (b'{"event":"progress"}', b'{"event":"att')
    assert json.loads(third)["event"] == "run_resumed"


def test_a_large_log_is_moved_aside_and_the_oldest_forgotten(log: EventLog, file: Path, tmp_path: Path) -> None:
    for number in range(1, KEEP_FILES + 1):
        (tmp_path / f"log.{number}.jsonl").write_text(str(number))
    piece = "x" * (8 * 1024 * 1024)
    for _ in range(ROTATE_BYTES // len(piece)):
        log.emit(Event.PROGRESS, piece=piece)
    log.emit(Event.RUN_ENDED)
    assert [line["event"] for line in lines(file)] == ["run_ended"]
    assert (tmp_path / "log.1.jsonl").stat().st_size >= ROTATE_BYTES
    assert [(tmp_path / f"log.{n}.jsonl").read_text() for n in range(2, KEEP_FILES + 1)] == ["1", "2", "3", "4"]
    assert len(list(tmp_path.iterdir())) == KEEP_FILES + 1
    assert {path.stat().st_mode & 0o777 for path in (file, tmp_path / "log.1.jsonl")} == {0o600}


def test_what_is_said_for_debugging_in_one_turn_is_one_write_and_whatever_is_louder_ends_the_turn(file: Path) -> None:
    ends: list[Callable[[], None]] = []
    log = EventLog(path=file, wall=lambda: NOW, soon=ends.append)
    for _ in range(3):
        log.emit(Event.ATTEMPT, Level.DEBUG)
    assert (len(ends), lines(file)) == (1, [])
    ends.pop()()
    assert [line["event"] for line in lines(file)] == ["attempt"] * 3

    log.emit(Event.ATTEMPT, Level.DEBUG)
    log.emit(Event.ROW_FAILED, Level.WARNING)
    assert [line["event"] for line in lines(file)][3:] == ["attempt", "row_failed"]
    ends.pop()()
    log.emit(Event.ATTEMPT, Level.DEBUG)
    log.close()
    assert [line["event"] for line in lines(file)][5:] == ["attempt"]


def test_another_thread_does_not_touch_what_the_turn_has_gathered(file: Path) -> None:
    ends: list[Callable[[], None]] = []
    log = EventLog(path=file, wall=lambda: NOW, soon=ends.append)
    log.emit(Event.ATTEMPT, Level.DEBUG)
    thread = threading.Thread(target=log.emit, args=(Event.PART_SEALED,))
    thread.start()
    thread.join()
    assert [line["event"] for line in lines(file)] == ["part_sealed"]
    log.close()
    assert [line["event"] for line in lines(file)] == ["part_sealed", "attempt"]


def test_a_full_disk_is_said_by_the_next_event_after_the_turn_and_once() -> None:
    ends: list[Callable[[], None]] = []
    log = EventLog(path=Path("/dev/full"), wall=lambda: NOW, soon=ends.append)
    log.emit(Event.ATTEMPT, Level.DEBUG)
    ends.pop()()
    with pytest.raises(StorageError, match="writing /dev/full: No space left"):
        log.emit(Event.ATTEMPT, Level.DEBUG)
    log.emit(Event.RUN_ENDED)
    log.close()


def test_a_full_disk_is_said_once(tmp_path: Path) -> None:
    full = Path("/dev/full")
    log = EventLog(path=full, wall=lambda: NOW)
    with pytest.raises(StorageError, match="writing /dev/full: No space left"):
        log.emit(Event.PROGRESS)
    log.emit(Event.RUN_ENDED)
    log.close()


def link(path: Path) -> None:
    path.symlink_to(path.parent / "victim")


@pytest.mark.parametrize("plant", [link, Path.mkdir])
def test_a_file_that_cannot_be_opened_is_a_storage_error(file: Path, plant: Callable[[Path], None]) -> None:
    plant(file)
    with pytest.raises(StorageError, match=r"log\.jsonl"):
        EventLog(path=file, wall=lambda: NOW)
    assert not (file.parent / "victim").exists()
