"""The output folder: claimed only where it is a run's own, held by one, cleared of what a crash left."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier

import anyio
import pytest

from pipeline.errors import FolderHeldError, JobFileError, StorageError
from pipeline.model import Outcome, OutputFile, RequestInfo, RowResult
from pipeline.store.folder import Layout, hold_folder, is_running, may_own, remove_strays
from pipeline.store.journal import BatchLine, BatchRecord, BatchStep, Journal, JournalReader, Part, Span
from pipeline.store.media import write_media

NOW = datetime(2026, 5, 17, 8, 30, tzinfo=UTC)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


def take(root: Path, *, fresh: bool = False) -> Layout:
    with hold_folder(root, fresh=fresh, now=NOW) as layout:
        assert is_running(root)
    return layout


def test_a_new_folder_is_made_with_its_parents_and_its_own_part_is_private(root: Path) -> None:
    layout = take(root)
    assert names(layout.private) == {"lock", "checksums.json", "journal", "spool", "attempts"}
    for folder in (layout.private, layout.journal.parent, layout.spool, layout.attempts):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert layout.lock.stat().st_mode & 0o777 == 0o600
    assert not is_running(root)


def test_a_folder_is_held_by_one(root: Path) -> None:
    for fresh in (False, True):
        with (
            hold_folder(root, fresh=False, now=NOW),
            pytest.raises(FolderHeldError),
            hold_folder(root, fresh=fresh, now=NOW),
        ):
            pass


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Threads that lose their turn all the time."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy_threads")
def test_a_folder_in_which_another_run_begins_is_never_taken_for_a_strangers(tmp_path: Path) -> None:
    barrier = Barrier(2)

    def begin(root: Path) -> None:
        barrier.wait()
        (root / "_pipeline").mkdir()

    with ThreadPoolExecutor(1) as thread:
        for number in range(500):
            root = tmp_path / str(number)
            root.mkdir()
            begun = thread.submit(begin, root)
            barrier.wait()
            while not begun.done():
                assert may_own(root)
            begun.result()


def test_a_folder_with_somebody_elses_files_is_refused_untouched(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "thesis.txt").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(JobFileError, match=r"^output\.path: .* not a run's"):
            take(root, fresh=fresh)
    assert names(root) == {"thesis.txt"}


def test_an_empty_folder_may_be_taken_and_a_file_may_not(root: Path) -> None:
    root.mkdir(parents=True)
    take(root)
    (root.parent / "file").touch()
    with pytest.raises(JobFileError, match=r"^output\.path: .* is a file"):
        take(root.parent / "file")


@pytest.mark.parametrize(("mode", "allowed"), [(0o777, False), (0o757, False), (0o1777, True), (0o775, True)])
def test_a_folder_that_everybody_may_write_is_refused(root: Path, mode: int, allowed: bool) -> None:  # noqa: FBT001
    root.mkdir(parents=True)
    root.chmod(mode)
    if allowed:
        take(root)
        return
    with pytest.raises(StorageError, match="chmod o-w"):
        take(root)
    assert names(root) == set()


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("inner", ["_pipeline", "_pipeline/journal", "_pipeline/spool", "_pipeline/attempts"])
def test_a_link_in_place_of_a_folder_of_its_own_is_refused(
    root: Path, tmp_path: Path, inner: str, fresh: bool  # noqa: FBT001
) -> None:  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").write_text("mine")
    link = root / inner
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    if fresh and inner != "_pipeline":
        take(root, fresh=True)
    else:
        with pytest.raises(StorageError, match="symbolic link"):
            take(root, fresh=fresh)
    assert names(elsewhere) == {"lock"}
    assert (elsewhere / "lock").read_text() == "mine"


def test_a_fresh_start_moves_the_old_run_aside_whole(root: Path) -> None:
    layout = take(root)
    layout.part("part-000000000000-000000000009.parquet").write_text("old")
    take(root, fresh=True)
    assert names(root) == {"_pipeline"}
    (aside,) = names(root.parent) - {"out"}
    assert aside == "out.20260517T083000000000"
    assert (root.parent / aside / "part-000000000000-000000000009.parquet").read_text() == "old"


def test_unfinished_files_and_spools_are_cleared_away_and_nothing_else(root: Path) -> None:
    layout = take(root)
    gone = [
        root / "part-000000000000-000000000009.parquet.tmp",
        layout.private / "summary.json.tmp",
        layout.attempts / "attempts-000000000001-000000000002.parquet.tmp",
        layout.spool / "000000000000.arrow",
    ]
    kept = [root / "notes.txt", layout.private / "log.jsonl", layout.manifest, layout.attempts / "a.parquet"]
    for path in (*gone, *kept):
        path.touch()
    take(root)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_cells_of_open_ranges_can_be_read_after_the_run_has_ended(root: Path) -> None:
    with hold_folder(root, fresh=False, now=NOW) as layout:
        spool = layout.spool / "000000000000.arrow"
        spool.write_bytes(b"cells")
    assert spool.read_bytes() == b"cells"


def prepared(layout: Layout, *, parts: Iterable[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> None:
    async def prepare() -> None:
        journal = Journal(layout.journal)
        for first, last in spans:
            journal.post_span(Span(first=first, last=last, start="s"))
        for first, last in parts:
            name = f"part-{first:012d}-{last:012d}.parquet"
            part = Part(
                first=first, last=last, name=name, ok=1, failed=0, bytes=1, sha256="", digest="", generation=0,
                start="", finish="",
            )  # fmt: skip
            await journal.seal(part, rest=None)
        await journal.close()

    anyio.run(prepare)


def test_a_part_that_was_named_but_not_recorded_is_removed_and_no_other(root: Path) -> None:
    layout = take(root)
    prepared(layout, parts=[(0, 9)], spans=[(10, 19), (30, 39)])
    bounds = {(0, 9): True, (0, 4): True, (10, 19): False, (10, 14): False, (20, 29): True, (35, 44): True}
    for first, last in bounds:
        layout.part(f"part-{first:012d}-{last:012d}.parquet").touch()
    layout.part("part-of-mine.parquet").touch()
    with hold_folder(root, fresh=False, now=NOW) as held, JournalReader(held.journal) as reader:
        removed = remove_strays(held, reader)
    assert removed == ["part-000000000010-000000000014.parquet", "part-000000000010-000000000019.parquet"]
    for (first, last), kept in bounds.items():
        assert layout.part(f"part-{first:012d}-{last:012d}.parquet").exists() == kept
    assert layout.part("part-of-mine.parquet").exists()


def test_a_file_of_a_row_that_is_not_done_is_removed_and_no_other(root: Path) -> None:
    layout = take(root)
    prepared(layout, parts=[], spans=[(0, 9)])
    spoken = OutputFile(column="audio_path", suffix="mp3", content=b"ID3")

    async def commit() -> None:
        journal = Journal(layout.journal)
        file = write_media(root, 3, spoken)
        row = RowResult(ordinal=3, values={"audio_path": file.name})
        await journal.commit(Outcome(rows=(row,), request=RequestInfo(), files=(file,)))
        await journal.close()

    anyio.run(commit)
    write_media(root, 4, spoken)
    (layout.media / "000000000005.mp3.tmp").touch()
    (layout.media / "mine.txt").touch()
    with hold_folder(root, fresh=False, now=NOW) as held, JournalReader(held.journal) as reader:
        removed = remove_strays(held, reader)
    assert removed == ["media/000000000004.mp3"]
    assert names(layout.media) == {"000000000003.mp3", "mine.txt"}


def test_lines_and_results_of_a_batch_that_nobody_knows_are_removed_and_no_others(root: Path) -> None:
    layout = take(root)
    prepared(layout, parts=[], spans=[(0, 9)])
    known, forgotten = "0123456789abcdef", "fedcba9876543210"

    async def keep() -> None:
        journal = Journal(layout.journal)
        record = BatchRecord(
            tag=known,
            deployment="d",
            step=BatchStep.SUBMITTED,
            since=0.0,
            endpoint="/v1/chat/completions",
            count=1,
            bytes=1,
            tokens=1,
        )
        await journal.keep_batch(record, [BatchLine(tries=0, ordinals=(0,))])
        await journal.close()

    anyio.run(keep)
    layout.batches.mkdir()
    kept = {f"{known}.jsonl", f"{known}.output.jsonl", "mine.jsonl"}
    gone = {f"{known}.output.part", f"{known}.tmp", f"{forgotten}.jsonl", f"{forgotten}.errors.jsonl"}
    for name in kept | gone:
        (layout.batches / name).touch()
    with hold_folder(root, fresh=False, now=NOW) as held, JournalReader(held.journal) as reader:
        removed = remove_strays(held, reader)
    assert set(removed) == {f"batches/{name}" for name in gone}
    assert names(layout.batches) == kept
