"""The way from an answer to what is kept: files first, then the journal; what is paid for is not lost to a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from pipeline.errors import PipelineError, StorageError
from pipeline.lanes.pulse import Pulse
from pipeline.lanes.stop import Stop
from pipeline.log import Event, EventLog, Level
from pipeline.model import Attempt, Outcome, RowResult, WrittenFile
from pipeline.store.ballast import PAUSES_S
from pipeline.store.journal import Journal
from pipeline.store.media import write_media

if TYPE_CHECKING:
    from pipeline.lanes.base import Keeping
    from pipeline.store.ballast import Ballast


class Commits:
    """Commits outcomes: once begun, a commit is made, whoever waits for it. `unwritten` counts answers no disk took."""

    def __init__(
        self,
        *,
        journal: Keeping,
        ballast: Ballast | None,
        root: Path,
        stop: Stop,
        log: EventLog,
        pulse: Pulse,
        committed: Callable[[Sequence[RowResult]], None] = lambda _: None,
    ) -> None:
        """`root` is the output folder; `ballast` is given back when there is no room for a row's files.

        `committed` is told of rows that are kept.
        """
        self._committed = committed
        self.unwritten = 0
        self._journal = journal
        self._ballast = ballast
        self._root = root
        self._stop = stop
        self._log = log
        self._pulse = pulse

    async def rows(self, outcome: Outcome) -> None:
        """Keep an outcome, with its files; say which rows failed.

        Raises StorageError when the disk refuses.
        """
        try:
            if any(row.files for row in outcome.rows):
                with anyio.CancelScope(shield=True):
                    files, rows = await self._written(outcome.rows)
                outcome = replace(outcome, rows=rows, files=files)
            # The journal keeps what was handed to it, also where this wait is cancelled: a shield would cost more.
            await self._journal.commit(outcome)
        except PipelineError:
            self.unwritten += sum(row.ok for row in outcome.rows)
            raise
        if not outcome.carried and not outcome.request.is_copy:
            self._committed(outcome.rows)
        self._pulse.beat()
        for row in outcome.rows:
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
        journal = self._journal
        assert isinstance(journal, Journal)  # noqa: S101 - rows are cut into pieces in the run's own process alone
        with anyio.CancelScope(shield=True):
            if outcome.rows[0].ok:
                await journal.keep_piece(key, outcome)
            else:
                await journal.keep_attempts(outcome.attempts)
        self._pulse.beat()

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
        """Write the rows' files; the rows then hold their paths. A full disk is tried again without the ballast."""
        try:
            return await anyio.to_thread.run_sync(self._write, rows)
        except StorageError as error:
            if self._ballast is None:
                raise
            self._stop.request(error)
            self._ballast.release()
            failure = error
        for pause_s in PAUSES_S:
            await anyio.sleep(pause_s)
            try:
                return await anyio.to_thread.run_sync(self._write, rows)
            except StorageError as error:
                failure = error
        raise failure

    def _write(self, rows: tuple[RowResult, ...]) -> tuple[tuple[WrittenFile, ...], tuple[RowResult, ...]]:
        files: list[WrittenFile] = []
        named: list[RowResult] = []
        for row in rows:
            written = {file.column: write_media(self._root, row.ordinal, file) for file in row.files}
            files += written.values()
            if self._ballast is not None:
                self._ballast.seen(sum(file.bytes for file in written.values()))
            paths = {column: file.name for column, file in written.items()}
            named.append(replace(row, values={**(row.values or {}), **paths}, files=()) if paths else row)
        return tuple(files), tuple(named)
