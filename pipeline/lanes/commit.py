"""The way from an answer to what is kept: files first, then the journal; what is paid for is not lost to a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from pipeline.errors import StorageError
from pipeline.lanes.stop import Stop
from pipeline.log import Event, EventLog, Level
from pipeline.model import Attempt, Outcome, RowResult, WrittenFile
from pipeline.store.media import write_media

if TYPE_CHECKING:
    from pipeline.store.journal import Journal


class Commits:
    """Commits outcomes. Once begun, a commit is not cancelled."""

    def __init__(self, *, journal: Journal, root: Path, stop: Stop, log: EventLog) -> None:
        """`root` is the output folder."""
        self._journal = journal
        self._root = root
        self._stop = stop
        self._log = log

    async def rows(self, outcome: Outcome) -> None:
        """Keep an outcome, with its files; say which rows failed.

        Raises StorageError when the disk refuses.
        """
        with anyio.CancelScope(shield=True):
            files, rows = await self._written(outcome.rows)
            await self._journal.commit(replace(outcome, rows=rows, files=files))
        for row in rows:
            if row.error is not None:
                self.say(
                    Event.ROW_FAILED,
                    Level.WARNING,
                    ordinal=row.ordinal,
                    type=row.error.type.value,
                    code=row.error.code,
                    http_status=row.error.http_status,
                    request_id=outcome.request.request_id,
                )

    async def piece(self, key: str, outcome: Outcome) -> None:
        """Keep what one piece of a row came to: its answer, or the attempts that it cost."""
        with anyio.CancelScope(shield=True):
            if outcome.rows[0].ok:
                await self._journal.keep_piece(key, outcome)
            else:
                await self._journal.keep_attempts(outcome.attempts)

    async def attempts(self, attempts: tuple[Attempt, ...]) -> None:
        """Keep attempts whose rows stay pending."""
        if attempts:
            with anyio.CancelScope(shield=True):
                await self._journal.keep_attempts(attempts)

    def say(self, event: Event, level: Level, **fields: Any) -> None:
        """Log; a log that cannot be written ends the run, but never stands between an answer and its commit."""
        try:
            self._log.emit(event, level, **fields)
        except StorageError as error:
            self._stop.request(error)

    async def _written(self, rows: tuple[RowResult, ...]) -> tuple[tuple[WrittenFile, ...], tuple[RowResult, ...]]:
        """Write the rows' files; the rows then hold their paths."""
        if not any(row.files for row in rows):
            return (), rows
        return await anyio.to_thread.run_sync(self._write, rows)

    def _write(self, rows: tuple[RowResult, ...]) -> tuple[tuple[WrittenFile, ...], tuple[RowResult, ...]]:
        files: list[WrittenFile] = []
        named: list[RowResult] = []
        for row in rows:
            written = {file.column: write_media(self._root, row.ordinal, file) for file in row.files}
            files += written.values()
            paths = {column: file.name for column, file in written.items()}
            named.append(replace(row, values={**(row.values or {}), **paths}, files=()) if paths else row)
        return tuple(files), tuple(named)
