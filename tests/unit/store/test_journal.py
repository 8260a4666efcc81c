"""The journal: what is told as kept is kept, once, and nothing else is counted."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest

from pipeline.errors import DamageError, DefectError, StorageError
from pipeline.model import Attempt, ErrorInfo, ErrorType, Outcome, RequestInfo, RowResult, Usage, WrittenFile
from pipeline.store.ballast import Ballast
from pipeline.store.codec import Kept
from pipeline.store.folder import Layout, export_attempts
from pipeline.store.journal import (
    ATTEMPTS_A_CHUNK,
    SCHEMA_VERSION,
    BatchLine,
    BatchRecord,
    BatchStep,
    Journal,
    JournalReader,
    Part,
    Span,
    Totals,
    pack,
)

FAILED = ErrorInfo(type=ErrorType.BAD_REQUEST, code="content_filter", message="no", http_status=400)


class WatchedJournal(Journal):
    """Remembers how many changes each transaction held."""

    def __init__(self, path: Path) -> None:
        self.groups: list[int] = []
        super().__init__(path)

    def _commit_group(self, changes: list[Any]) -> None:
        self.groups.append(len(changes))
        super()._commit_group(changes)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[WatchedJournal]:
    journal = WatchedJournal(path)
    try:
        yield journal
    finally:
        with anyio.CancelScope(shield=True):
            await journal.close()


@contextmanager
def another_writer(path: Path) -> Any:
    """Keep the journal's writer waiting until the block ends."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the writer, which is a thread and so has no event to give."""
    while not condition():  # noqa: ASYNC110 - see above
        await anyio.sleep(0.001)


def attempt(*ordinals: int, verdict: str = "answered") -> Attempt:
    return Attempt(
        ordinals=ordinals,
        deployment="d",
        started_at=1_700_000_000.5,
        latency_ms=12.5,
        status=200,
        verdict=verdict,
        code=None,
        client_request_id="c",
        request_id="r",
        apim_request_id=None,
        region="Sweden Central",
        estimated_tokens=10,
        input_tokens=7,
        output_tokens=3,
        retry_after_ms=None,
    )


def outcome(*ordinals: int, failed: bool = False, text: str = "x", attempts: int = 1) -> Outcome:
    usage = Usage(input_tokens=7, output_tokens=3, total_tokens=10, cached_tokens=2)
    return Outcome(
        rows=tuple(
            RowResult(ordinal=ordinal, error=FAILED)
            if failed
            else RowResult(ordinal=ordinal, values={"output_text": text}, usage=usage)
            for ordinal in ordinals
        ),
        request=RequestInfo(attempts=attempts, deployment="d"),
        attempts=tuple(attempt(*ordinals) for _ in range(attempts)),
    )


def part(first: int, last: int, *, ok: int | None = None) -> Part:
    return Part(
        first=first,
        last=last,
        name=f"part-{first:012d}-{last:012d}.parquet",
        ok=last - first + 1 if ok is None else ok,
        failed=0 if ok is None else last - first + 1 - ok,
        bytes=1,
        sha256="0" * 64,
        digest="d",
        generation=0,
        start="s",
        finish="f",
    )


def ordinals_in(path: Path) -> list[int]:
    with JournalReader(path) as reader:
        return [row.ordinal for row, _ in reader.results(0, 10**12)]


def payloads_in(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM payload").fetchone()[0])
    finally:
        connection.close()


def modes(folder: Path) -> set[int]:
    return {file.stat().st_mode & 0o777 for file in folder.iterdir()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "00.sqlite"


@pytest.mark.anyio
async def test_a_commit_that_returned_is_there_for_another_connection(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(3, 5))
        with journal.reader() as reader:
            (first, request), (second, _) = reader.results(0, 9)
        assert (first, second) == outcome(3, 5).rows
        assert request == outcome(3).request


@pytest.mark.anyio
async def test_what_queues_up_while_the_disk_is_busy_is_one_transaction(path: Path) -> None:
    async with opened(path) as journal, anyio.create_task_group() as crowd:
        with another_writer(path):
            crowd.start_soon(journal.commit, outcome(0))
            await until(lambda: len(journal.groups) == 1)
            for ordinal in range(1, 100):
                crowd.start_soon(journal.commit, outcome(ordinal))
            await until(lambda: journal._queue.qsize() == 1)  # all of one turn of the event loop
        await until(lambda: len(journal.groups) == 2)
    assert journal.groups == [1, 99]
    assert ordinals_in(path) == list(range(100))


@pytest.mark.anyio
async def test_a_row_committed_twice_is_a_defect_and_the_first_stays(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(1, text="first"))
        with pytest.raises(DefectError, match="committed twice"):
            await journal.commit(outcome(1, text="second"))
    with JournalReader(path) as reader:
        ((row, _),) = reader.results(0, 9)
    assert row.values == {"output_text": "first"}


@pytest.mark.anyio
async def test_a_failure_reaches_everybody_who_waits_and_whoever_comes_later(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(1))
        heard: list[type[BaseException]] = []

        async def commit(ordinal: int) -> None:
            try:
                await journal.commit(outcome(ordinal))
            except DefectError as error:
                heard.append(type(error))

        async with anyio.create_task_group() as crowd:
            with another_writer(path):
                crowd.start_soon(commit, 1)
                await until(lambda: len(journal.groups) == 2)
                for ordinal in range(2, 12):
                    crowd.start_soon(commit, ordinal)
                await until(lambda: journal._queue.qsize() == 1)
        await commit(99)
        assert heard == [DefectError] * 12
    assert ordinals_in(path) == [1]


@pytest.mark.anyio
async def test_what_a_full_disk_rolled_back_is_not_counted(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0))
        before, pending = replace(journal.totals), journal.pending_bytes
        pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count={pages + 8}")
        with pytest.raises(StorageError, match=r"full.*free some space"):
            await journal.commit(outcome(1, attempts=5_000))  # its row has room, its attempts have not
        assert journal.totals == before
        assert journal.totals.ok == 1
        assert journal.pending_bytes == pending
    async with opened(path) as journal:
        await journal.commit(outcome(1))
    assert ordinals_in(path) == [0, 1]


@pytest.mark.anyio
async def test_an_outcome_that_cannot_be_written_is_a_defect_not_a_hang(path: Path) -> None:
    async with opened(path) as journal:
        with pytest.raises(DefectError, match="writer failed"):
            await journal.commit(outcome(0, text="\ud800"))
        assert journal.totals == Totals()


@pytest.mark.anyio
async def test_a_waiter_that_is_cancelled_takes_nothing_back(path: Path) -> None:
    async with opened(path) as journal:
        with another_writer(path):
            with anyio.move_on_after(0.02) as scope:
                await journal.commit(outcome(7))
            assert scope.cancelled_caught
        await journal.flush()
        assert ordinals_in(path) == [7]


@pytest.mark.anyio
async def test_what_another_process_packed_is_kept_and_counted_as_if_it_were_of_this_one(
    path: Path, tmp_path: Path
) -> None:
    given = [outcome(0, 1), outcome(2, failed=True, attempts=2), outcome(*range(3, 90))]
    async with opened(path) as journal:
        async with anyio.create_task_group() as crowd:
            for one in given:
                crowd.start_soon(journal.commit, one)
        here = replace(journal.totals), journal.pending_bytes
    async with opened(tmp_path / "01.sqlite") as journal:
        for done in [journal.put_packed(pack(one)) for one in given]:
            await done
        assert (journal.totals, journal.pending_bytes) == here
    with JournalReader(path) as one, JournalReader(tmp_path / "01.sqlite") as other:
        assert list(one.results(0, 99)) == list(other.results(0, 99))
        assert [attempt for _, attempt in one.attempts()] == [attempt for _, attempt in other.attempts()]


@pytest.mark.anyio
async def test_the_results_of_some_rows_are_read_wherever_they_lie(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(5, 1, text="a"))
        await journal.commit(outcome(3, text="b"))
        await journal.commit(outcome(2, 4, text="c"))
    with JournalReader(path) as reader:
        found = {row.ordinal: row.values for row, _ in reader.results_of([4, 1, 3, 7, 5])}
    assert found == {1: {"output_text": "a"}, 3: {"output_text": "b"}, 4: {"output_text": "c"}, 5: {"output_text": "a"}}


@pytest.mark.anyio
async def test_closing_writes_what_is_queued(path: Path) -> None:
    journal = Journal(path)
    for first in range(0, 100, 10):
        journal.post_span(Span(first=first, last=first + 9, start="s"))
    await journal.close()
    with JournalReader(path) as reader:
        assert [span.first for span in reader.spans()] == list(range(0, 100, 10))
    assert not any(thread.name == "journal" for thread in threading.enumerate())


@pytest.mark.anyio
async def test_a_range_posted_again_is_read_further_and_keeps_its_start(path: Path) -> None:
    async with opened(path) as journal:
        journal.post_span(Span(first=0, last=99, start="s"))
        journal.post_span(Span(first=0, last=9, start="ignored", read=10, digest="d", finish="f"))
        await journal.flush()
        with journal.reader() as reader:
            assert reader.spans() == [Span(first=0, last=9, start="s", read=10, digest="d", finish="f")]


@pytest.mark.anyio
async def test_sealing_forgets_the_rows_their_payloads_and_the_range(path: Path) -> None:
    async with opened(path) as journal:
        journal.post_span(Span(first=0, last=3, start="s"))
        journal.post_span(Span(first=4, last=7, start="s"))
        await journal.commit(outcome(0, 1))
        await journal.commit(outcome(2, 3))
        await journal.commit(outcome(4))
        left = journal.pending_bytes
        await journal.seal(part(0, 3), rest=None)
        assert ordinals_in(path) == [4]
        assert payloads_in(path) == 1
        assert 0 < journal.pending_bytes < left
        with journal.reader() as reader:
            assert [span.first for span in reader.spans()] == [4]
            assert reader.parts() == [part(0, 3)]
        await journal.commit(outcome(5, 6, 7))
        await journal.seal(part(4, 7, ok=3), rest=None)
        assert journal.pending_bytes == 0
        assert (journal.totals.sealed_ok, journal.totals.sealed_failed) == (7, 1)
    assert payloads_in(path) == 0


@pytest.mark.anyio
async def test_only_what_lies_within_the_bounds_is_done_or_a_result(path: Path) -> None:
    async with opened(path) as journal:
        for ordinal in (1, 2, 4, 5):
            await journal.commit(outcome(ordinal))
        with journal.reader() as reader:
            assert list(reader.done(2, 4)) == [1, 0, 1]
            assert [row.ordinal for row, _ in reader.results(2, 4)] == [2, 4]
            assert list(reader.results(3, 3)) == []


@pytest.mark.anyio
async def test_a_fact_noted_again_is_the_new_one(path: Path) -> None:
    async with opened(path) as journal:
        await journal.note("facts", {"vector_size": 3})
        await journal.note("facts", {"vector_size": 4})
        with journal.reader() as reader:
            assert reader.noted("facts") == {"vector_size": 4}


@pytest.mark.anyio
async def test_rows_whose_usage_is_not_known_count_no_tokens(path: Path) -> None:
    known = outcome(0)
    rows = (replace(known.rows[0], usage=None), replace(known.rows[0], ordinal=1, usage=Usage()))
    async with opened(path) as journal:
        await journal.commit(replace(known, rows=rows, attempts=()))
        assert journal.totals == Totals(ok=2)


@pytest.mark.anyio
async def test_a_short_head_keeps_the_rest_and_the_payload_that_reaches_into_it(path: Path) -> None:
    rest = Span(first=2, last=9, start="p2", read=4, digest="r", finish=None)
    async with opened(path) as journal:
        journal.post_span(Span(first=0, last=9, start="p0", read=6, digest="d"))
        await journal.commit(outcome(0))
        await journal.commit(outcome(1, 3))
        await journal.seal(part(0, 1), rest=rest)
        with journal.reader() as reader:
            assert reader.spans() == [rest]
            assert list(reader.done(2, 9)) == [0, 1, 0, 0, 0, 0, 0, 0]
            ((row, _),) = reader.results(2, 9)
        assert row.ordinal == 3
        assert payloads_in(path) == 1
        await journal.commit(outcome(2, *range(4, 10)))
        await journal.seal(part(2, 9), rest=None)
        assert journal.pending_bytes == 0
    assert payloads_in(path) == 0


@pytest.mark.anyio
async def test_totals_and_pending_bytes_survive_being_opened_again(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0, 1))
        await journal.commit(outcome(2, failed=True, attempts=3))
        await journal.keep_attempts((attempt(9, verdict="throttled"), attempt(8, 9, verdict="pack_refused")))
        await journal.note("facts", {"vector_size": 3})
        known, pending = journal.totals, journal.pending_bytes
    async with opened(path) as journal:
        assert journal.pending_bytes == pending
        with journal.reader() as reader:
            assert reader.totals() == known
            assert reader.counts() == (2, 1)
            assert reader.noted("facts") == {"vector_size": 3}
            assert reader.noted("nothing") is None
        assert journal.totals == known
        assert journal.totals == Totals(
            ok=2,
            failed=1,
            requests=2,
            attempts=6,
            throttled=1,
            input_tokens=14,
            output_tokens=6,
            total_tokens=20,
            cached_tokens=4,
            calls_on_refusals=1,
        )


@pytest.mark.anyio
async def test_a_newer_schema_is_refused_untouched(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0))
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(DamageError, match="newer version"):
        Journal(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)
    connection.close()


@pytest.fixture
def words(path: Path) -> None:
    path.write_bytes(b"not a database at all, only words" * 100)


@pytest.mark.anyio
async def test_a_file_that_is_no_database_is_damage(path: Path, words: None) -> None:
    with pytest.raises(DamageError, match="damaged"):
        Journal(path)
    with pytest.raises(DamageError, match="damaged"), JournalReader(path) as reader:
        reader.parts()


@pytest.mark.anyio
async def test_the_journal_and_its_log_are_private_and_no_link_is_followed(path: Path, tmp_path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0))
        assert modes(tmp_path) == {0o600}
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        Journal(link)


def test_there_is_nothing_to_read_where_nothing_was_written(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JournalReader(path)
    assert not path.exists()


@pytest.mark.anyio
async def test_a_reader_that_was_closed_reads_no_more(path: Path) -> None:
    async with opened(path) as journal:
        with journal.reader() as reader:
            assert reader.parts() == []
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            reader._connection.execute("SELECT 1")


def test_a_journal_that_a_crash_left_without_its_tables_is_none(path: Path) -> None:
    sqlite3.connect(path).close()
    path.touch()
    with pytest.raises(FileNotFoundError):
        JournalReader(path)


def files_of(layout: Layout) -> list[str]:
    return sorted(file.name for file in layout.attempts.iterdir())


def attempts_in(layout: Layout) -> list[list[int]]:
    return [
        list(ordinals)
        for file in sorted(layout.attempts.iterdir())
        for ordinals in pq.read_table(file).column("ordinals").to_pylist()
    ]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "out")
    for folder in (layout.journal.parent, layout.attempts):
        folder.mkdir(parents=True)
    return layout


@pytest.mark.anyio
async def test_attempts_move_to_files_and_leave_the_journal(layout: Layout) -> None:
    async with opened(layout.journal) as journal:
        await journal.keep_attempts(tuple(attempt(n) for n in range(5)))
        await export_attempts(layout, journal, at_least=6)
        assert files_of(layout) == []
        await export_attempts(layout, journal, at_least=5)
        await export_attempts(layout, journal, at_least=1)
        assert files_of(layout) == ["attempts-000000000001-000000000005.parquet"]
        await journal.keep_attempts((attempt(5),))
        await export_attempts(layout, journal, at_least=1)
    assert files_of(layout)[1:] == ["attempts-000000000006-000000000006.parquet"]
    assert attempts_in(layout) == [[n] for n in range(6)]


@pytest.mark.anyio
async def test_attempts_that_a_crash_left_in_a_file_and_in_the_journal_are_counted_once(layout: Layout) -> None:
    async with opened(layout.journal) as journal:
        await journal.keep_attempts(tuple(attempt(n) for n in range(5)))
    kept = layout.journal.read_bytes()
    async with opened(layout.journal) as journal:
        await export_attempts(layout, journal, at_least=1)
    layout.journal.write_bytes(kept)  # as if the file was written, and the forgetting was not committed
    async with opened(layout.journal) as journal:
        await journal.keep_attempts(tuple(attempt(n) for n in range(5, 8)))
        await export_attempts(layout, journal, at_least=1)
        with journal.reader() as reader:
            assert reader.attempts() == []
    assert attempts_in(layout) == [[n] for n in range(8)]


@pytest.mark.anyio
async def test_attempts_are_read_and_forgotten_by_their_numbers(path: Path) -> None:
    async with opened(path) as journal:
        with journal.reader() as reader:
            assert reader.attempt_bounds(limit=3) is None
        await journal.keep_attempts(tuple(attempt(n) for n in range(5)))
        with journal.reader() as reader:
            assert reader.attempt_bounds(limit=3) == (1, 3)
            assert reader.attempt_bounds(limit=9) == (1, 5)
            assert [number for number, _ in reader.attempts(after=1, limit=2)] == [2, 3]
        file = WrittenFile(name="_pipeline/attempts/a.parquet", bytes=3, sha256="aa")
        await journal.drop_attempts(1, 3, file=file)
        with journal.reader() as reader:
            assert list(reader.files()) == [file]
            assert reader.attempt_bounds(limit=3) == (4, 5)
            assert [number for number, _ in reader.attempts()] == [4, 5]


@pytest.mark.anyio
async def test_attempts_are_read_at_most_five_hundred_at_a_time(path: Path) -> None:
    async with opened(path) as journal:
        await journal.keep_attempts(tuple(attempt(n) for n in range(1_203)))
        with journal.reader() as reader:
            chunks = list(reader.attempt_chunks(2, 1_202))
    assert [len(chunk) for chunk in chunks] == [500, 500, 201]
    assert [one[0] for chunk in chunks for one in chunk] == [[n] for n in range(1, 1_202)]


def every_field_filled(kind: Callable[..., Any], **given: Any) -> Any:
    """A value of a dataclass whose fields all differ, so that two swapped ones would show."""
    names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: given.get(name, f"{name}") for name in names})


@pytest.mark.anyio
async def test_every_field_of_an_outcome_and_its_attempts_comes_back(path: Path) -> None:
    usage = Usage(**{item.name: number for number, item in enumerate(fields(Usage), start=1)})
    request = every_field_filled(RequestInfo, attempts=3, latency_ms=1.5, finished_at=2.5)
    rows = (
        RowResult(ordinal=4, values={"a": None, "b": b"\x00\xff", "c": 1.5}, usage=usage, response=b'{"x":1}'),
        RowResult(ordinal=2, error=FAILED, response=b"\xff not text"),
    )
    tried = every_field_filled(
        Attempt, ordinals=(4, 2), started_at=1.0, latency_ms=2.0, status=200, estimated_tokens=3, input_tokens=4,
        output_tokens=None, retry_after_ms=5.0,
    )  # fmt: skip
    async with opened(path) as journal:
        await journal.commit(Outcome(rows=rows, request=request, attempts=(tried,)))
        with journal.reader() as reader:
            assert list(reader.results(0, 9)) == [(rows[1], request), (rows[0], request)]
            assert list(reader.results(0, 9, only_failed=True)) == [(rows[1], request)]
            assert reader.attempts() == [(1, tried)]
            assert reader.problems() == []


class CountingReader(JournalReader):
    """Counts how often a payload is read."""

    reads = 0

    def _payload(self, identity: int, blob: bytes | None = None) -> tuple[list[Kept], int]:
        self.reads += 1
        return super()._payload(identity, blob)


@pytest.mark.anyio
async def test_the_payload_of_many_rows_is_read_once(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0, 2, 4, 5))
        await journal.commit(outcome(1, 3))
    with CountingReader(path) as reader:
        assert [row.ordinal for row, _ in reader.results(0, 5)] == [0, 1, 2, 3, 4, 5]
        assert reader.reads == 2


@pytest.mark.anyio
async def test_a_payload_that_cannot_be_read_is_found(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0))
        await journal.commit(outcome(1))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE payload SET blob = x'c1' WHERE id = 1")
    connection.execute("DELETE FROM payload WHERE id = 2")
    connection.commit()
    connection.close()
    with JournalReader(path) as reader:
        assert reader.problems() == ["payload 1 cannot be read"]
        with pytest.raises(DamageError, match="lost payload 2"):
            list(reader.results(1, 1))


@pytest.mark.anyio
async def test_pieces_of_a_row_are_kept_until_the_row_is_committed(path: Path) -> None:
    async with opened(path) as journal:
        await journal.keep_piece("0-600", outcome(7, text="one"))
        await journal.keep_piece("600-900", outcome(7, text="two"))
        await journal.keep_piece("0-600", outcome(8))
        assert (journal.totals.requests, journal.totals.attempts, journal.totals.ok) == (3, 3, 0)
    async with opened(path) as journal:
        with journal.reader() as reader:
            found = {key: kept.rows[0].values for key, kept in reader.pieces(7).items()}
            assert found == {
                "0-600": outcome(7, text="one").rows[0].values,
                "600-900": outcome(7, text="two").rows[0].values,
            }
        await journal.commit(outcome(7))
        with journal.reader() as reader:
            assert reader.pieces(7) == {}
            assert set(reader.pieces(8)) == {"0-600"}
        await journal.commit(outcome(8, failed=True))
        with journal.reader() as reader:
            assert set(reader.pieces(8)) == {"0-600"}, "the row may be sent again, and its piece is paid for"


@pytest.mark.anyio
async def test_files_of_rows_are_known_once_the_row_is_committed(path: Path) -> None:
    file = WrittenFile(name="media/000000000001.mp3", bytes=3, sha256="aa")
    before = WrittenFile(name="media/000000000000.mp3", bytes=4, sha256="bb")
    async with opened(path) as journal:
        await journal.commit(replace(outcome(1), files=(file,)))
        await journal.commit(replace(outcome(0), files=(before,)))
        with journal.reader() as reader:
            assert list(reader.files()) == [before, file]
            assert reader.file_bytes() == 7
            assert reader.has_file(file.name)
            assert not reader.has_file("media/000000000002.mp3")


@pytest.mark.anyio
async def test_a_file_written_again_is_known_by_its_new_checksum(path: Path) -> None:
    first, second = (WrittenFile(name=name, bytes=3, sha256="aa") for name in ("a", "b"))
    async with opened(path) as journal:
        with journal.reader() as reader:
            assert (list(reader.files()), reader.file_bytes()) == ([], 0)
        await journal.keep_files([first, second])
        await journal.keep_files([replace(first, bytes=5, sha256="cc")])
        with journal.reader() as reader:
            assert list(reader.files()) == [replace(first, bytes=5, sha256="cc"), second]


def batch(tag: str = "t", step: BatchStep = BatchStep.WRITTEN, **given: Any) -> BatchRecord:
    return BatchRecord(
        tag=tag, deployment="d", step=step, since=1.5, endpoint="/chat/completions", count=2, bytes=7, tokens=9, **given
    )


@pytest.mark.anyio
async def test_a_batch_is_known_with_its_lines_from_step_to_step_until_it_is_dropped(path: Path) -> None:
    lines = [BatchLine(tries=0, ordinals=(4, 5)), BatchLine(tries=2, ordinals=(1,))]
    async with opened(path) as journal:
        await journal.keep_batch(batch(), lines)
        await journal.keep_batch(batch("other"), lines[1:])
        for step in BatchStep:
            kept = batch(step=step, file="f", batch="b", output="o", errors="e")
            await journal.keep_batch(kept)
            with journal.reader() as reader:
                assert sorted(reader.batches(), key=lambda one: one.tag) == [batch("other"), kept]
                assert all(isinstance(one.step, BatchStep) for one in reader.batches())
                assert reader.batch_lines("t") == lines
    async with opened(path) as journal:
        await journal.drop_batch("t")
        with journal.reader() as reader:
            assert reader.batches() == [batch("other")]
            assert reader.batch_lines("t") == []
            assert reader.batch_lines("other") == lines[1:]


@pytest.mark.anyio
@pytest.mark.parametrize("step", ["written", "uploaded", "submitting", "submitted", "ended", "collected"])
async def test_a_batch_of_an_earlier_version_is_read_at_its_step(path: Path, step: str) -> None:
    async with opened(path) as journal:
        await journal.keep_batch(batch(), [])
    connection = sqlite3.connect(path)
    connection.execute("UPDATE batch SET record = json_set(record, '$.step', ?)", (step,))
    connection.commit()
    connection.close()
    with JournalReader(path) as reader:
        assert [one.step.name for one in reader.batches()] == [step.upper()]


@pytest.mark.anyio
async def test_a_batch_that_is_there_is_not_written_over(path: Path) -> None:
    async with opened(path) as journal:
        await journal.keep_batch(batch(), [])
        with pytest.raises(DefectError):
            await journal.keep_batch(batch(), [])


@pytest.mark.anyio
async def test_tokens_that_went_through_the_batch_api_are_counted_twice_over(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0))
        assert (journal.totals.batched_input_tokens, journal.totals.batched_output_tokens) == (0, 0)
        for ordinal in (1, 2):
            await journal.commit(replace(outcome(ordinal), batched=True))
        assert (journal.totals.batched_input_tokens, journal.totals.batched_output_tokens) == (14, 6)
        assert (journal.totals.input_tokens, journal.totals.output_tokens) == (21, 9)
        rows = (replace(outcome(3).rows[0], usage=Usage()),)
        await journal.commit(replace(outcome(3), rows=rows, batched=True))
        assert (journal.totals.batched_input_tokens, journal.totals.batched_output_tokens) == (14, 6)


@pytest.mark.anyio
async def test_an_attempt_kept_for_a_pending_row_is_no_request(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(replace(outcome(0), attempts=()))
        await journal.keep_attempts((attempt(1), attempt(1)))
        assert (journal.totals.requests, journal.totals.attempts) == (0, 2)


@pytest.mark.anyio
async def test_rows_done_are_counted_within_bounds(path: Path) -> None:
    async with opened(path) as journal:
        with journal.reader() as reader:
            assert reader.counts() == (0, 0)
            assert reader.totals() == Totals()
        await journal.commit(outcome(1, 2, 5))
        with journal.reader() as reader:
            counted = [reader.count_done(*bounds) for bounds in ((0, 9), (2, 5), (2, 4), (3, 4))]
    assert counted == [3, 2, 1, 0]


@pytest.mark.anyio
async def test_what_is_pending_and_the_largest_of_it_are_known_in_bytes(path: Path) -> None:
    async with opened(path) as journal:
        assert (journal.largest, journal.pending_bytes) == (0, 0)
        for ordinal, size in enumerate((10, 30_000, 20)):
            await journal.commit(outcome(ordinal, text="x" * size))
        pending = journal.pending_bytes
    assert 30_030 < pending < 31_000
    async with opened(path) as journal:
        assert journal.pending_bytes == pending
        assert 30_000 < journal.largest < 30_500
        await journal.keep_files([WrittenFile(name="media/1.mp3", bytes=70_000, sha256="aa")])
    async with opened(path) as journal:
        assert journal.largest == 70_000


@pytest.mark.anyio
async def test_pieces_of_this_and_of_an_earlier_invocation_go_with_their_rows(path: Path) -> None:
    async with opened(path) as journal:
        await journal.keep_piece("0-600", outcome(7))
        await journal.keep_piece("0-600", outcome(8))
        await journal.commit(outcome(7))
        with journal.reader() as reader:
            assert (reader.pieces(7), list(reader.pieces(8))) == ({}, ["0-600"])
    async with opened(path) as journal:
        await journal.commit(outcome(8))
        with journal.reader() as reader:
            assert reader.pieces(8) == {}


def move_away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def replace_by_another(path: Path) -> None:
    move_away(path)
    path.touch()


class Measured(Ballast):
    """Remembers the sizes that it was told of."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, workers=1)
        self.sizes: list[int] = []

    def seen(self, size: int) -> None:
        self.sizes.append(size)


@pytest.mark.anyio
async def test_the_ballast_is_told_the_size_of_every_result_and_piece(path: Path, tmp_path: Path) -> None:
    ballast = Measured(tmp_path / "ballast")
    journal = Journal(path, ballast=ballast)
    await journal.commit(outcome(0, text="x" * 3_000))
    await journal.keep_piece("0-600", outcome(1, text="x" * 7_000))
    await journal.close()
    assert [round(size, -3) for size in ballast.sizes] == [3_000, 7_000]


@pytest.mark.anyio
@pytest.mark.parametrize("harm", [move_away, replace_by_another])
async def test_a_journal_that_is_not_where_it_was_is_an_error_of_the_disk(
    path: Path, harm: Callable[[Path], None]
) -> None:
    async with opened(path) as journal:
        journal.check_place()
        harm(path)
        with pytest.raises(StorageError, match=r"moved or deleted.*put the folder back"):
            journal.check_place()
        with pytest.raises(StorageError, match="moved or deleted"):
            journal.reader()


@pytest.mark.anyio
async def test_parts_and_sealed_rows_are_read_in_the_order_of_the_input(path: Path) -> None:
    async with opened(path) as journal:
        for first in (4, 0, 2):
            journal.post_span(Span(first=first, last=first + 1, start="s"))
            await journal.commit(outcome(first, first + 1))
            await journal.seal(replace(part(first, first + 1), sections='[[1, "aa"]]'), rest=None)
        with journal.reader() as reader:
            assert [(one.first, one.sections) for one in reader.parts()] == [(n, '[[1, "aa"]]') for n in (0, 2, 4)]


@pytest.mark.anyio
async def test_attempts_within_bounds_are_those_and_no_others(path: Path) -> None:
    async with opened(path) as journal:
        await journal.keep_attempts(tuple(attempt(n) for n in range(1, 8)))
        with journal.reader() as reader:
            chunks = [list(reader.attempt_chunks(*bounds)) for bounds in ((3, 5), (1, 7), (7, 7), (8, 9))]
    assert [[one[0][0] for chunk in found for one in chunk] for found in chunks] == [
        [3, 4, 5],
        [1, 2, 3, 4, 5, 6, 7],
        [7],
        [],
    ]


@pytest.mark.anyio
async def test_a_journal_of_the_first_schema_is_taken_over(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0))
    connection = sqlite3.connect(path)
    for table in ("piece", "file", "again", "replaced", "rewrite"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("ALTER TABLE part DROP COLUMN sections")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    async with opened(path) as journal:
        assert journal.totals.ok == 1
        await journal.seal(part(0, 0), rest=None)
        with journal.reader() as reader:
            assert (reader.version, reader.parts()) == (5, [part(0, 0)])
        await journal.keep_piece("k", outcome(1))


def ask_again(path: Path, *ordinals: int) -> None:
    """Make rows of parts pending, as a retry does."""
    connection = sqlite3.connect(path)
    connection.executemany("INSERT INTO again VALUES (?)", [(ordinal,) for ordinal in ordinals])
    connection.commit()
    connection.close()


@pytest.mark.anyio
async def test_a_row_that_is_asked_again_is_not_done_until_it_is_answered_though_its_part_stands(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(10, 12))
        await journal.commit(outcome(11, 13, failed=True))
        await journal.seal(part(10, 13, ok=2), rest=None)
        await journal.commit(outcome(14, 15))
        with journal.reader() as reader:
            assert reader.done(8, 17) == b"\0\0\1\1\1\1\1\1\0\0"
            assert not reader.asks_again
        ask_again(path, 11, 13)
        with journal.reader() as reader:
            assert reader.asks_again
            assert reader.again(0, 100) == [11, 13]
            assert reader.done(8, 17) == b"\0\0\1\0\1\0\1\1\0\0"
            assert reader.done(12, 14) == b"\1\0\1"
        await journal.commit(outcome(13))
        with journal.reader() as reader:
            assert reader.done(12, 14) == b"\1\1\1"


@pytest.mark.anyio
async def test_the_new_file_of_a_part_counts_in_the_place_of_the_old_one(path: Path) -> None:
    new = replace(part(0, 3, ok=3), generation=1)
    async with opened(path) as journal:
        await journal.commit(outcome(0, 2))
        await journal.commit(outcome(1, 3, failed=True))
        await journal.seal(part(0, 3, ok=2), rest=None)
        ask_again(path, 1, 3)
        journal.totals.sealed_failed -= 2
        await journal.commit(outcome(1))
        await journal.commit(outcome(3, failed=True))
        await journal.rewrite(new)
        with journal.reader() as reader:
            assert reader.rewrites() == [new]
        await journal.rewritten(new)
        assert (journal.totals.sealed_ok, journal.totals.sealed_failed, journal.pending_bytes) == (3, 1, 0)
        with journal.reader() as reader:
            assert (reader.rewrites(), reader.again(0, 9), reader.parts()) == ([], [], [new])
            assert reader.done(0, 3) == b"\1\1\1\1"
    assert payloads_in(path) == 0


@pytest.mark.anyio
async def test_all_attempts_are_read_at_once_in_their_order(path: Path) -> None:
    async with opened(path) as journal:
        await journal.keep_attempts(tuple(attempt(n) for n in range(2 * ATTEMPTS_A_CHUNK + 1)))
        with journal.reader() as reader:
            chunks = list(reader.attempts_at_once())
    assert [len(chunk) for chunk in chunks] == [ATTEMPTS_A_CHUNK, ATTEMPTS_A_CHUNK, 1]
    assert [one.ordinals for chunk in chunks for _, one in chunk] == [(n,) for n in range(2 * ATTEMPTS_A_CHUNK + 1)]


@pytest.mark.anyio
async def test_what_cannot_be_read_is_said_to_be_the_journals(path: Path) -> None:
    async with opened(path) as journal:
        await journal.commit(outcome(0))
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE attempt")
    connection.close()
    with JournalReader(path) as reader, pytest.raises(StorageError, match=r"\bjournal\b"):
        list(reader.attempts_at_once())
