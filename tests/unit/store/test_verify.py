from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import FolderHeldError
from pipeline.model import Attempt, ErrorInfo, ErrorType, Outcome, OutputFile, RequestInfo, RowResult
from pipeline.store.checksums import changed_files, forget_checksums, write_checksums
from pipeline.store.folder import Layout, Sealer, export_attempts, hold_folder
from pipeline.store.journal import Journal, JournalReader, Span
from pipeline.store.lock import hold
from pipeline.store.manifest import write_manifest
from pipeline.store.media import write_media
from pipeline.store.parts import part_schema
from pipeline.store.verify import keep_runs_out, verify_folder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = {"operation": "chat"}
VARIANTS: dict[str, dict[str, list[str]]] = {"v1": {"messages": []}}
SCHEMA = part_schema(pa.schema([]), pa.schema([("output_text", pa.string())]))
ROWS = 5
SEALED = 3
EVERY_NTH_BIT = 157


def _attempt(ordinal: int) -> Attempt:
    return Attempt(
        ordinals=(ordinal,),
        deployment="sweden",
        started_at=1_700_000_000.0 + ordinal,
        latency_ms=12.5,
        status=200,
        verdict="answered",
        code=None,
        client_request_id=f"client-{ordinal}",
        request_id=f"request-{ordinal}",
        apim_request_id=None,
        region="Sweden Central",
        estimated_tokens=10,
        input_tokens=7,
        output_tokens=3,
        retry_after_ms=None,
    )


def _outcome(ordinal: int) -> Outcome:
    error = ErrorInfo(type=ErrorType.BAD_REQUEST, code="no", message="no", http_status=400) if ordinal == 1 else None
    row = RowResult(ordinal=ordinal, values=None if error else {"output_text": f"answer {ordinal}"}, error=error)
    request = RequestInfo(attempts=1, deployment="sweden", model="m", variant="v1", finished_at=1_700_000_000.0)
    return Outcome(rows=(row,), request=request, attempts=(_attempt(ordinal),))


@pytest.fixture
async def layout(tmp_path: Path) -> Layout:
    """A run that ended with rows 0 to 2 in a part and rows 3 and 4 in the journal; row 1 failed."""
    with hold_folder(tmp_path / "out", fresh=False, now=NOW) as layout:
        journal = Journal(layout.journal)
        await journal.note("job", JOB)
        await journal.note("variants", VARIANTS)
        sealed = Span(first=0, last=SEALED - 1, start="a", read=SEALED, digest="d", finish="b")
        journal.post_span(sealed)
        journal.post_span(Span(first=SEALED, last=9, start="b", read=ROWS - SEALED, digest="e"))
        for ordinal in range(ROWS):
            spoken = OutputFile(column="audio_path", suffix="mp3", content=b"ID3 speech %d" % ordinal)
            files = (write_media(layout.root, ordinal, spoken),) if ordinal == 0 else ()
            await journal.commit(replace(_outcome(ordinal), files=files))
        sealer = Sealer(layout=layout, schema=SCHEMA, carries=False, compression="zstd")
        part = sealer.part_of(sealed, last=sealed.last, finish="b", digest="d")
        await journal.seal(part, rest=None)
        await export_attempts(layout, journal, at_least=1)
        await journal.close()
        with JournalReader(layout.journal) as reader:
            write_manifest(layout.manifest, reader, columns=SCHEMA.names)
        write_checksums(layout.private)
    return layout


@pytest.mark.anyio
async def test_a_sound_folder_has_no_findings_and_its_rows_are_counted(layout: Layout) -> None:
    verified = verify_folder(layout)

    assert verified.findings == ()
    assert (verified.parts, verified.ok, verified.failed, verified.loose) == (1, 4, 1, 2)
    part, speech = layout.part("part-000000000000-000000000002.parquet"), layout.media / "000000000000.mp3"
    attempts = next(layout.attempts.iterdir())
    assert verified.bytes == sum(path.stat().st_size for path in (part, speech, attempts))


@pytest.mark.anyio
async def test_a_file_that_belongs_to_no_row_is_found(layout: Layout) -> None:
    (layout.media / "000000000009.mp3").write_bytes(b"ID3")

    assert [finding.file for finding in verify_folder(layout).findings] == ["media/000000000009.mp3"]


def _files(root: Path) -> Iterator[Path]:
    yield from (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "lock")


@pytest.mark.anyio
async def test_every_flipped_bit_is_found(layout: Layout) -> None:
    for path in [path for path in _files(layout.root) if path.suffix != ".jsonl"]:
        whole = path.read_bytes()
        for place in range(0, len(whole) * 8, EVERY_NTH_BIT * max(1, len(whole) // 2_048)):
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            path.write_bytes(damaged)

            assert verify_folder(layout).findings, f"bit {place} of {path.name}"
        path.write_bytes(whole)
    assert verify_folder(layout).findings == ()


@pytest.mark.anyio
async def test_every_missing_file_is_found(layout: Layout) -> None:
    for path in _files(layout.root):
        if path.name == "checksums.json":
            continue
        whole = path.read_bytes()
        path.unlink()

        assert verify_folder(layout).findings, path.name
        path.write_bytes(whole)


@pytest.mark.anyio
async def test_without_checksums_parts_manifest_and_journal_still_answer_for_each_other(layout: Layout) -> None:
    forget_checksums(layout.private)
    assert verify_folder(layout).findings == ()

    part = layout.part("part-000000000000-000000000002.parquet")
    shutil.copy(part, part.with_name("part-000000000003-000000000005.parquet"))
    layout.manifest.write_text("{}")
    part.unlink()

    assert [finding.file for finding in verify_folder(layout).findings] == [
        "part-000000000000-000000000002.parquet",
        "part-000000000003-000000000005.parquet",
        "_pipeline/manifest.json",
    ]


async def _change_journal(layout: Layout, sql: str) -> list[str]:
    journal = Journal(layout.journal)
    journal._connection.execute(sql)
    await journal.close()
    forget_checksums(layout.private)
    return [finding.message for finding in verify_folder(layout).findings]


JOURNALS = {
    "UPDATE part SET ok = 3": "not 3 and 1",
    "UPDATE part SET last = 1": "does not hold rows 0 to 1",
    "UPDATE part SET bytes = 1": "its checksum differs",
    "UPDATE part SET sha256 = 'x'": "its checksum differs",
    "UPDATE span SET first = 2": "has rows 2 to 2 twice",
    "UPDATE span SET first = 4": "has rows 3 to 3 nowhere",
    "DELETE FROM span": "holds 2 rows outside of every range",
    "DELETE FROM result": "its rows and parts come to",
    "UPDATE payload SET blob = x'00'": "cannot be read",
    "UPDATE meta SET value = '{}' WHERE key = 'totals'": "its rows and parts come to",
    "UPDATE meta SET value = '1' WHERE key = 'variants'": "does not agree with the journal on: variants",
    "UPDATE meta SET value = '1' WHERE key = 'job'": "does not agree with the journal on: fingerprint, job",
    "UPDATE meta SET value = '{' WHERE key = 'variants'": "cannot be read",
}


@pytest.mark.anyio
@pytest.mark.parametrize("sql", JOURNALS)
async def test_a_journal_that_does_not_add_up_is_found(layout: Layout, sql: str) -> None:
    found = await _change_journal(layout, sql)

    assert any(JOURNALS[sql] in message for message in found)


@pytest.mark.anyio
async def test_nothing_is_written_by_verifying(layout: Layout) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _files(layout.root)}

    with keep_runs_out(layout):
        verify_folder(layout)

    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in _files(layout.root)} == before


@pytest.mark.anyio
async def test_a_folder_is_not_verified_while_a_run_holds_it(layout: Layout) -> None:
    with hold(layout.lock, started=""), pytest.raises(FolderHeldError), keep_runs_out(layout):
        pass


@pytest.mark.anyio
async def test_no_run_begins_while_a_folder_is_verified(layout: Layout) -> None:
    with keep_runs_out(layout), pytest.raises(FolderHeldError), hold(layout.lock, started=""):
        pass
    with hold(layout.lock, started=""):
        pass


@pytest.mark.anyio
async def test_readers_change_no_checksum(layout: Layout) -> None:
    with JournalReader(layout.journal) as reader:
        reader.parts()

    assert changed_files(layout.private) == {}


@pytest.mark.anyio
async def test_checksums_say_what_changed(layout: Layout) -> None:
    layout.manifest.unlink()
    (layout.attempts / "more.parquet").write_bytes(b"")

    assert changed_files(layout.private) == {"manifest.json": "is missing", "attempts/more.parquet": "is new"}


def test_where_nothing_is_known_nothing_is_said(tmp_path: Path) -> None:
    forget_checksums(tmp_path)

    assert changed_files(tmp_path) == {}
