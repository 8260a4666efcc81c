"""Space set aside: how much, of real blocks, given back once, and what the journal does with it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anyio
import pytest

from pipeline.errors import DiskFullError, StorageError
from pipeline.lanes.commit import Commits
from pipeline.lanes.pulse import Pulse
from pipeline.lanes.stop import Stop
from pipeline.log import EventLog
from pipeline.model import Outcome, OutputFile, RequestInfo, RowResult
from pipeline.store.ballast import LEAST_BYTES, MOST_BYTES, PAGES, PAUSES_S, STEP_BYTES, Ballast, wanted_bytes
from pipeline.store.database import PAGE_BYTES
from pipeline.store.disk import file_system, is_network, needed_bytes
from pipeline.store.journal import Journal, Part

MIB = 1 << 20


class Disk:
    """A file system boundary with so much room, which it gives as blocks are asked for."""

    def __init__(self, *, room: int, error: int = errno.ENOSPC) -> None:
        self.room = room
        self.error = error

    def allocate(self, handle: int, offset: int, length: int) -> None:
        given = min(length, self.room)
        self.room -= given
        os.ftruncate(handle, offset + given)
        if given < length:
            self.room += given
            raise OSError(self.error, os.strerror(self.error))


def ballast(folder: Path, disk: Disk, *, workers: int = 8) -> Ballast:
    return Ballast(folder / "ballast", workers=workers, allocate=disk.allocate)


@pytest.mark.parametrize(
    ("workers", "largest", "wanted"),
    [
        (1, 0, LEAST_BYTES),
        (32, 0, LEAST_BYTES),
        (8, MIB, 17 * MIB),
        (64, MIB - PAGES * PAGE_BYTES, 128 * MIB),
        (64, MIB - PAGES * PAGE_BYTES + 1, 129 * MIB),
        (1024, 50 * MIB, MOST_BYTES),
    ],
)
def test_it_is_twice_what_the_workers_hold_within_bounds(workers: int, largest: int, wanted: int) -> None:
    assert wanted_bytes(workers, largest) == wanted
    assert wanted % STEP_BYTES == 0


def test_larger_pages_of_the_journal_need_more(tmp_path: Path) -> None:
    assert wanted_bytes(16, MIB, 64 * 1024) == 48 * MIB
    space = ballast(tmp_path, Disk(room=128 * MIB), workers=16)
    space.make(0, 256 * 1024)
    assert space.bytes == 64 * MIB
    space.seen(MIB)
    assert space.bytes == 96 * MIB
    space.release()


def test_its_blocks_are_really_allocated_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    space = Ballast(tmp_path / "ballast", workers=8)
    space.make()
    found = (tmp_path / "ballast").stat()
    assert found.st_size == LEAST_BYTES == space.bytes
    assert found.st_blocks * 512 >= LEAST_BYTES
    assert found.st_mode & 0o777 == 0o600
    space.seen(MIB)
    assert (tmp_path / "ballast").stat().st_blocks * 512 >= 17 * MIB
    assert space.release()
    assert not space.release()
    assert not (tmp_path / "ballast").exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_for_it_is_full_and_keeps_no_half_of_it(tmp_path: Path, error: int) -> None:
    with pytest.raises(DiskFullError, match=r"a run sets 4 MiB aside.* MiB are free.*free some space"):
        ballast(tmp_path, Disk(room=LEAST_BYTES - 1, error=error)).make()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_otherwise_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="check the disk") as caught:
        ballast(tmp_path, Disk(room=0, error=errno.EIO)).make()
    assert not isinstance(caught.value, DiskFullError)


def test_without_room_to_grow_it_stays_as_it_is(tmp_path: Path) -> None:
    disk = Disk(room=6 * MIB)
    space = ballast(tmp_path, disk)
    space.make()
    space.seen(MIB)
    assert (space.bytes, (tmp_path / "ballast").stat().st_size) == (LEAST_BYTES, LEAST_BYTES)
    disk.room = 100 * MIB
    space.seen(MIB)
    assert (space.bytes, (tmp_path / "ballast").stat().st_size) == (17 * MIB, 17 * MIB)


def test_once_released_it_takes_no_space_again(tmp_path: Path) -> None:
    space = ballast(tmp_path, Disk(room=100 * MIB))
    space.make()
    space.release()
    space.seen(10 * MIB)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "ballast").write_bytes(bytes(LEAST_BYTES // 2))
    space = ballast(tmp_path, Disk(room=LEAST_BYTES))
    space.make()
    assert (tmp_path / "ballast").stat().st_size == LEAST_BYTES


class FullJournal(Journal):
    """A journal whose database may not grow until `pages` allow it."""

    def allow(self, pages: int) -> None:
        self._connection.execute(f"PRAGMA max_page_count={pages}")


class Counted(Ballast):
    """Gives the journal its room back, as a real one does."""

    journal: FullJournal
    enough = True

    def release(self) -> bool:
        if self.enough:
            self.journal.allow(1_000_000)
        return super().release()


def outcome(ordinal: int, size: int = 100_000) -> Outcome:
    row = RowResult(ordinal=ordinal, values={"output_text": "x" * size})
    return Outcome(rows=(row,), request=RequestInfo(deployment="d"))


@pytest.mark.anyio
@pytest.mark.parametrize("enough", [True, False])
async def test_a_refused_transaction_is_tried_again_without_the_ballast(tmp_path: Path, enough: bool) -> None:  # noqa: FBT001
    stop = Stop()
    space = Counted(tmp_path / "ballast", workers=4)
    space.enough = enough
    space.make()
    journal = FullJournal(tmp_path / "00.sqlite", ballast=space, full=stop.request)
    space.journal = journal
    journal.allow(40)
    log = EventLog(wall=lambda: 0.0)
    commits = Commits(journal=journal, ballast=space, root=tmp_path, stop=stop, log=log, pulse=Pulse())
    kept: list[int] = []

    async def commit(ordinal: int) -> None:
        try:
            await commits.rows(outcome(ordinal))
        except StorageError:
            return
        kept.append(ordinal)

    async with anyio.create_task_group() as group:
        for ordinal in range(10):
            group.start_soon(commit, ordinal)
    await journal.close()

    assert isinstance(stop.cause, DiskFullError)
    assert not (tmp_path / "ballast").exists()
    assert commits.unwritten == 10 - len(kept)
    assert bool(commits.unwritten) is not enough
    with journal.reader() as reader:
        assert [ordinal for ordinal, done in enumerate(reader.done(0, 9)) if done] == sorted(kept)
        assert reader.totals().ok == len(kept) == journal.totals.ok


@pytest.mark.anyio
async def test_files_of_rows_are_written_out_of_the_ballast_too(tmp_path: Path) -> None:
    obstacle = tmp_path / "media"
    obstacle.write_bytes(b"in the way")

    class Freeing(Ballast):
        def release(self) -> bool:
            obstacle.unlink(missing_ok=True)
            return super().release()

    stop = Stop()
    space = Freeing(tmp_path / "ballast", workers=4)
    journal = Journal(tmp_path / "00.sqlite", ballast=space, full=stop.request)
    log = EventLog(wall=lambda: 0.0)
    commits = Commits(journal=journal, ballast=space, root=tmp_path, stop=stop, log=log, pulse=Pulse())
    row = RowResult(ordinal=3, values={}, files=(OutputFile(column="audio_path", suffix="mp3", content=b"sound"),))
    await commits.rows(Outcome(rows=(row,), request=RequestInfo(deployment="d")))
    await journal.close()
    assert isinstance(stop.cause, StorageError)
    assert commits.unwritten == 0
    assert (tmp_path / "media" / "000000000003.mp3").read_bytes() == b"sound"


def test_the_further_tries_end_soon() -> None:
    assert PAUSES_S[0] == 0
    assert sum(PAUSES_S) < 5


@pytest.mark.parametrize(
    ("kind", "network"),
    [("ext4", False), ("tmpfs", False), ("fuseblk", False), ("nfs4", True), ("cifs", True), ("fuse.sshfs", True)],
)
def test_the_kind_of_file_system_is_known_from_the_mounts(tmp_path: Path, kind: str, network: bool) -> None:  # noqa: FBT001
    device = tmp_path.stat().st_dev
    place = f"{os.major(device)}:{os.minor(device)}"
    mounts = f"20 1 0:99 / /other rw - xfs /dev/x rw\n21 1 {place} / /here rw shared:1 - {kind} source rw\n"
    assert file_system(tmp_path, mounts=mounts) == kind
    assert is_network(kind) is network
    assert file_system(tmp_path, mounts="") == ""
    assert file_system(tmp_path / "gone", mounts=mounts) == ""


@pytest.mark.anyio
async def test_what_rows_will_take_is_estimated_from_those_that_are_in_parts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "00.sqlite")
    with journal.reader() as reader:
        assert needed_bytes(reader, rows=1000) is None
    part = Part(
        first=0, last=9, name="p", ok=9, failed=1, bytes=5000, sha256="", digest="", generation=0, start="{}", finish=""
    )
    await journal.seal(part, rest=None)
    with journal.reader() as reader:
        assert needed_bytes(reader, rows=1000) == 990 * 500
        assert needed_bytes(reader, rows=10) == 0
        assert needed_bytes(reader, rows=5) == 0
        assert needed_bytes(reader, rows=None) is None
    await journal.close()
