"""Events of a run, from a closed set: JSON lines in a rotated file, and whoever listens besides. Never content."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from pathlib import Path
from threading import get_ident
from typing import Any

import orjson

from pipeline.errors import DiskFullError, StorageError

ROTATE_BYTES = 64 * 1024 * 1024
KEEP_FILES = 5


class Level(IntEnum):
    """How loud an event is; the numbers are the standard library's."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


_NAMES = {level: level.name.lower() for level in Level}


class Event(StrEnum):
    """Everything that a run may say."""

    RUN_STARTED = "run_started"
    RUN_RESUMED = "run_resumed"
    RUN_ENDED = "run_ended"
    RUN_PAUSED = "run_paused"
    RUN_UNPAUSED = "run_unpaused"
    RUN_CHANGED = "run_changed"
    DRAINING = "draining"
    UNREACHABLE = "unreachable"
    CANARY_PASSED = "canary_passed"
    INPUT_GREW = "input_grew"
    INPUT_COMPARED = "input_compared"
    STRAY_PART_REMOVED = "stray_part_removed"
    REPAIRED = "repaired"
    REPAIR_ENDED = "repair_ended"
    ATTEMPT = "attempt"
    ROW_FAILED = "row_failed"
    PACK_SPLIT = "pack_split"
    PAUSED = "paused"
    ANOTHER_MODEL = "another_model"
    SENDER_DIED = "sender_died"
    DEPLOYMENT_SET_ASIDE = "deployment_set_aside"
    DEPLOYMENT_BACK = "deployment_back"
    OUTAGE_BEGAN = "outage_began"
    OUTAGE_ENDED = "outage_ended"
    BATCH_SUBMITTED = "batch_submitted"
    BATCH_WAITS = "batch_waits"
    BATCH_ENDED = "batch_ended"
    TRAINING_CREATED = "training_created"
    TRAINING_WAITS = "training_waits"
    TRAINING_STATE = "training_state"
    PART_SEALED = "part_sealed"
    PART_RENEWED = "part_renewed"
    ROWS_ASKED_AGAIN = "rows_asked_again"
    PROGRESS = "progress"
    STOPPING = "stopping"
    DISK_REFUSED = "disk_refused"
    DISK_MAY_FILL = "disk_may_fill"
    NETWORK_FILE_SYSTEM = "network_file_system"
    STALLED = "stalled"
    METRICS_REFUSED = "metrics_refused"
    TELEMETRY_REFUSED = "telemetry_refused"
    HTTP_BODIES_LOGGED = "http_bodies_logged"
    HTTP_REQUEST = "http_request"
    HTTP_RESPONSE = "http_response"


GATHER_S = 0.05
"""Seconds for which a run gathers what is said for debugging: what a kill may cost of its log, and nothing else."""

Listener = Callable[[Mapping[str, Any]], None]


class EventLog:
    """Where a run says what it does. Fields are ids, counts and codes; prompts, answers and secrets never."""

    def __init__(
        self,
        *,
        path: Path | None = None,
        listener: Listener | None = None,
        wall: Callable[[], float],
        soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`path`: the JSON lines file (None: none). `listener` is handed every event too. Raises StorageError.

        `soon` has the event loop call something in a moment, GATHER_S in a run: with it, what is said for debugging
        until then is written at once. A write a line would give the interpreter's lock away as often.
        """
        self._sink = _RotatingFile(path) if path is not None else None
        self._listener = listener
        self._wall = wall
        self._soon = soon
        self._thread = get_ident()
        self._gathered: list[bytes] = []
        self._refused: StorageError | None = None

    def emit(self, event: Event, level: Level = Level.INFO, **fields: Any) -> None:
        """Say one thing. Raises StorageError the first time that the disk refuses."""
        said = {"level": _NAMES[level], **fields, "event": event.value}
        said["at"] = datetime.fromtimestamp(self._wall(), UTC)
        if self._listener is not None:
            self._listener(said)
        if self._sink is None:
            return
        if self._soon is None or get_ident() != self._thread:
            self._sink.write(render(said))
            return
        if not self._gathered and level == Level.DEBUG:
            self._soon(self._write_gathered)
        self._gathered.append(render(said))
        if level > Level.DEBUG:
            self._write_gathered()
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused

    def _write_gathered(self) -> None:
        """Write what was said since the last time."""
        lines, self._gathered = b"".join(self._gathered), []
        if self._sink is not None and lines:
            try:
                self._sink.write(lines)
            except StorageError as error:
                self._refused = error

    def relay(self, lines: bytes) -> None:
        """Say what another process of the run had to say: whole lines, as `render` makes them.

        Raises StorageError the first time that the disk refuses.
        """
        if self._listener is not None:
            for line in lines.splitlines():
                said = orjson.loads(line)
                said["at"] = datetime.fromisoformat(said["at"])
                self._listener(said)
        if self._sink is not None:
            self._sink.write(lines)

    def close(self) -> None:
        """Write what is left to write, and give the file back."""
        self._write_gathered()
        if self._sink is not None:
            self._sink.close()
            self._sink = None


def render(event: Mapping[str, Any]) -> bytes:
    """One event as a line of JSON; control characters in values are escaped by JSON itself."""
    try:
        return orjson.dumps(event, default=str, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # half a surrogate pair, such as Python makes of a file name that is not UTF-8
        return json.dumps(event, default=str).encode() + b"\n"


class _RotatingFile:
    """JSON lines, private to the owner; moved to log.1.jsonl and so on when it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = False
        try:
            self._open()
        except OSError as error:
            raise self._failure(error) from error

    def write(self, line: bytes) -> None:
        """Append whole lines. Raises StorageError the first time that the disk refuses, then drops what comes."""
        if self._failed:
            return
        try:
            self._append(line)
            if self._bytes >= ROTATE_BYTES:
                self._rotate()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StorageError:
        self._failed = True
        kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else StorageError
        return kind(
            f"writing {self._path}: {error.strerror or type(error).__name__}; free some space or check the disk, "
            "then run the same command again: what was committed is safe"
        )

    def _append(self, line: bytes) -> None:
        left = line
        while left:
            left = left[os.write(self._handle, left) :]
        self._bytes += len(line)

    def _rotate(self) -> None:
        self.close()
        try:
            for number in range(KEEP_FILES - 1, 0, -1):
                older = self._numbered(number)
                if older.exists():
                    older.replace(self._numbered(number + 1))
            self._path.replace(self._numbered(1))
        finally:
            self._open()

    def close(self) -> None:
        """Give the file back."""
        os.close(self._handle)

    def _open(self) -> None:
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._bytes = os.fstat(self._handle).st_size
        if self._bytes and os.pread(self._handle, 1, self._bytes - 1) != b"\n":
            self._append(b"\n")  # a line that a crash or a full disk cut must not spoil the next one

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.stem}.{number}{self._path.suffix}")
