"""runs.jsonl: the invocations that held a folder, across kills; it tells, and nothing depends on it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError, StorageError
from pipeline.store.files import replace_text
from pipeline.store.summary import read_summary

if TYPE_CHECKING:
    from pipeline.store.folder import Layout
    from pipeline.store.summary import Summary

MOST_BYTES = 512 * 1024
"""Beyond so many bytes only the last invocations are kept."""
KEPT = 500
"""Invocations that are kept then."""
KILLED = "killed"
_LAST = "last_of_folder"
"""In the end of an invocation: the next one began a folder of its own, whose figures count from nothing."""
_REASON_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One call of `pipeline run`. `ok`, `failed` and `cost_usd` are the folder's at its end, `new_…` its own part.

    Rows that were carried over from an earlier input are not new.

    `state` is the summary's, or `killed`: it ended without a word, and its figures are those of a second before.
    Times are ISO 8601 in UTC; `ended` is None while it goes on. What is not known is None.
    """

    number: int
    begun: str
    ended: str | None = None
    state: str = "running"
    exit_code: int | None = None
    reason: str | None = None
    ok: int = 0
    failed: int = 0
    total: int | None = None
    new_rows: int | None = None
    cost_usd: float | None = None
    new_cost_usd: float | None = None
    seconds: float | None = None
    version: str | None = None


def begin_invocation(layout: Layout, *, at: str, version: str) -> None:
    """Note that one begins, and how the one before ended if nobody could say it. Call it under the folder's lock."""
    with suppress(StorageError, OSError):
        begun, ended = _read(layout.history)
        left = _left(layout)
        if not begun and left is not None:  # a version that kept no history was here
            begun = {1: _unwritten(left)}
            _append(layout.history, begun[1])
        number = max(begun, default=0)
        if number and number not in ended:
            _append(layout.history, _end(begun[number], left))
        _append(layout.history, {"run": number + 1, "begun": at, "version": version})
        _trim(layout.history)


def end_invocation(layout: Layout, summary: Summary) -> None:
    """Note how the last one that began has ended. Call it under the folder's lock."""
    with suppress(StorageError, OSError):
        begun, _ = _read(layout.history)
        if begun:
            _append(layout.history, _end(begun[max(begun)], summary))


def hand_history_over(old: Layout, new: Layout) -> None:
    """Have the folder that takes another's place tell of its invocations, too. Call it under the folder's lock."""
    with suppress(StorageError, OSError):
        begun, ended = _read(old.history)
        left = _left(old)
        if not begun and left is not None:
            begun = {1: _unwritten(left)}
        if begun:
            last = max(begun)
            ended[last] = {**(ended.get(last) or _end(begun[last], left)), _LAST: True}
            lines = [line[number] for number in sorted(begun) for line in (begun, ended) if number in line]
            replace_text(new.history, "".join(f"{json.dumps(line)}\n" for line in lines), durable=False)


def invocations(layout: Layout, *, running: bool) -> list[Invocation]:
    """All that are known, in order. `running`: a run holds the folder now.

    A folder of a version that kept no history has one: what its summary says. Raises FileNotFoundError where there is
    neither.
    """
    begun, ended = _read(layout.history)
    left = _left(layout)
    if not begun:
        if left is None:
            raise FileNotFoundError(layout.history)
        begun = {1: _unwritten(left)}
    last = max(begun)
    if last not in ended:
        ended[last] = _end(begun[last], left)
        if running:
            ended[last] = {**ended[last], "state": "running", "ended": None, "exit_code": None, "reason": None}
    found: list[Invocation] = []
    before = _NOTHING if min(begun) == 1 else None
    for number in sorted(begun):
        end = ended.get(number, {})
        found.append(_invocation(begun[number], end, before))
        before = _NOTHING if end.get(_LAST) else end
    return found


_NOTHING: Mapping[str, Any] = {"cost_usd": 0.0}
"""What a folder has come to before its first invocation."""


def _sent(ended: Mapping[str, Any]) -> int:
    """Rows that have an end, but for those whose end an earlier input's had."""
    return int(ended.get("ok", 0) + ended.get("failed", 0) - ended.get("carried", 0))


def _invocation(begun: Mapping[str, Any], ended: Mapping[str, Any], before: Mapping[str, Any] | None) -> Invocation:
    """`before` is what the folder had come to; None where that is not known any more."""
    ok, failed, cost = ended.get("ok", 0), ended.get("failed", 0), ended.get("cost_usd")
    cost_before = None if before is None else before.get("cost_usd")
    return Invocation(
        number=begun["run"],
        begun=begun["begun"],
        ended=ended.get("ended"),
        state=ended.get("state", KILLED),
        exit_code=ended.get("exit_code"),
        reason=ended.get("reason"),
        ok=ok,
        failed=failed,
        total=ended.get("total"),
        # A retry asks failed rows again, and a repair takes rows back.
        new_rows=None if before is None else max(0, _sent(ended) - _sent(before)),
        cost_usd=cost,
        new_cost_usd=None if cost is None or cost_before is None else max(0.0, cost - cost_before),
        seconds=ended.get("seconds"),
        version=begun.get("version"),
    )


def _left(layout: Layout) -> Summary | None:
    """The last summary that was written; None where there is none to be read."""
    try:
        return read_summary(layout.summary)
    except (FileNotFoundError, DamageError):
        return None


def _unwritten(left: Summary) -> dict[str, Any]:
    """The line of a beginning that nobody wrote."""
    return {"run": 1, "begun": left.started_at or "", "version": None}


def _end(begun: Mapping[str, Any], summary: Summary | None) -> dict[str, Any]:
    """The line of an end. A summary that still says `running` is that of a run which was killed.

    So is one that was begun before: this one was killed before it wrote any.
    """
    number = begun["run"]
    if summary is None:
        return {"run": number, "ended": "", "state": KILLED}
    if summary.started_at is not None and summary.started_at < begun["begun"]:
        return {"run": number, "ended": "", "state": KILLED, **_rows(summary), "cost_usd": summary.cost_usd}
    return {
        "run": number,
        "ended": summary.updated_at or "",
        "state": KILLED if summary.state == "running" else summary.state,
        "exit_code": summary.exit_code,
        "reason": None if summary.reason is None else summary.reason[:_REASON_CHARS],
        **_rows(summary),
        "cost_usd": summary.cost_usd,
        "seconds": summary.seconds,
    }


def _rows(summary: Summary) -> dict[str, int | None]:
    rows = summary.rows
    return {"ok": rows.ok, "failed": rows.failed, "total": rows.total, "carried": summary.carried}


def _read(path: Path) -> tuple[dict[int, Mapping[str, Any]], dict[int, Mapping[str, Any]]]:
    """The lines of beginnings and of ends, by the invocations' numbers."""
    begun: dict[int, Mapping[str, Any]] = {}
    ended: dict[int, Mapping[str, Any]] = {}
    for line in _lines(path):
        (ended if "ended" in line else begun)[line["run"]] = line
    return begun, ended


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every line that is whole and ours; a crash may have cut one."""
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in content.splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and type(value.get("run")) is int and ("begun" in value or "ended" in value):
            yield value


def _append(path: Path, value: Mapping[str, Any]) -> None:
    """Add a line, behind the end of one that a crash cut. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        cut = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write((b"\n" if cut else b"") + json.dumps(value).encode() + b"\n")


def _trim(path: Path) -> None:
    """Keep the last invocations where the file has grown. Raises OSError."""
    if path.stat().st_size <= MOST_BYTES:
        return
    lines = list(_lines(path))
    first = max(line["run"] for line in lines) - KEPT
    kept = [json.dumps(line) for line in lines if line["run"] > first]
    replace_text(path, "".join(f"{line}\n" for line in kept), durable=False)
