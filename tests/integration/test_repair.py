"""`run --repair`: what is whole rebuilds what is not, and nothing is paid for twice that something still holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow.parquet as pq
import pytest
from in_memory import Bench, Service, refusal

from pipeline.errors import DamageError, InputChangedError
from pipeline.store.database import open_database
from pipeline.store.journal import SCHEMA_VERSION
from pipeline.store.verify import Kind, verify_folder
from pipeline.testing import MemoryTransport

pytestmark = pytest.mark.anyio

ROWS = 25
REFUSED = 3


def judge(texts: list[str], _: int) -> httpx.Response | None:
    return refusal(400, "content_filter") if texts == [f"text {REFUSED}"] else None


@pytest.fixture
def operation() -> str:
    return "chat"


@pytest.fixture
def bench(tmp_path: Path, operation: str) -> Bench:
    return Bench(folder=tmp_path, operation=operation, max_inputs=1).texts(*(f"text {n}" for n in range(ROWS)))


on_both = pytest.mark.parametrize("operation", ["chat", "embeddings"])


def damaged(bench: Bench) -> list[str]:
    """What a repair took out of the way, without the times."""
    return sorted(path.name.partition("-")[2] for path in bench.layout.damaged.glob("*"))


def mended(bench: Bench) -> list[tuple[str, int | None]]:
    return [(event["file"], event["rows_again"]) for event in bench.events if event["event"] == "repaired"]


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0b100
    path.write_bytes(content)


async def mend(bench: Bench, *, asked: int) -> None:
    """Repair and run: the rows are as before, this many were asked again, and the folder is as it was written."""
    service = Service(judge)
    bench.events.clear()
    summary = await bench.run(service, repair=True)
    assert (summary.state, summary.rows.ok, summary.rows.failed) == ("complete", ROWS - 1, 1)
    assert len(service.calls) == asked
    (ended,) = [event for event in bench.events if event["event"] == "repair_ended"]
    assert ended["rows_again"] == asked
    bench.assert_rows(range(ROWS))
    assert verify_folder(bench.layout).findings == ()
    again = Service()
    await bench.run(again)
    assert again.calls == []


async def finished(bench: Bench) -> Bench:
    summary = await bench.run(Service(judge))
    assert (summary.rows.ok, summary.rows.failed) == (ROWS - 1, 1)
    assert verify_folder(bench.layout).findings == ()
    return bench


def in_private(name: str) -> Callable[[Bench], Path]:
    return lambda bench: bench.layout.private / name


def attempts(bench: Bench) -> Path:
    return next(bench.layout.attempts.iterdir())


FREE: dict[str, Callable[[Bench], Path]] = {
    "the journal": in_private("journal/00.sqlite"),
    "the table of ids": in_private("journal/ids.sqlite"),
    "the manifest": in_private("manifest.json"),
    "the summary": in_private("summary.json"),
    "the checksums": in_private("checksums.json"),
    "a file of attempts": attempts,
}


@pytest.mark.parametrize("harm", [flip, Path.unlink])
@pytest.mark.parametrize("what", FREE)
async def test_what_parts_can_rebuild_costs_nothing(bench: Bench, what: str, harm: Callable[[Path], None]) -> None:
    await finished(bench)
    path = FREE[what](bench)
    before = {part: part.read_bytes() for part in bench.parts()}
    harm(path)
    assert verify_folder(bench.layout).findings or (what in {"the summary", "the checksums"} and not path.exists())

    await mend(bench, asked=0)

    assert {part: part.read_bytes() for part in bench.parts()} == before
    assert (path.name in damaged(bench)) == (harm is flip)


@on_both
async def test_journal_and_manifest_may_be_gone_together(bench: Bench) -> None:
    await finished(bench)
    flip(bench.layout.journal)
    flip(bench.layout.manifest)

    await mend(bench, asked=0)


async def test_parts_of_nobody_knows_what_are_not_taken_for_this_jobs(bench: Bench) -> None:
    await finished(bench)
    flip(bench.layout.journal)
    flip(bench.layout.manifest)
    bench.changes["input"] = {"id": None}

    with pytest.raises(DamageError, match="put the old wording of the job back"):
        await bench.run(Service(), repair=True)

    del bench.changes["input"]
    await mend(bench, asked=0)


@on_both
async def test_rows_of_a_missing_part_are_asked_again_and_no_others(bench: Bench) -> None:
    await finished(bench)
    bench.parts()[1].unlink()

    await mend(bench, asked=10)


async def test_a_failed_row_of_a_missing_part_is_asked_again(bench: Bench) -> None:
    await finished(bench)
    bench.parts()[0].unlink()

    await mend(bench, asked=10)


@on_both
async def test_a_part_whose_footer_is_damaged_is_asked_again_whole(bench: Bench) -> None:
    await finished(bench)
    flip(bench.parts()[1], 0.99)

    await mend(bench, asked=10)

    assert damaged(bench) == [bench_part(1)]
    assert mended(bench) == [(bench_part(1), 10)]


def bench_part(index: int) -> str:
    return ("part-000000000000-000000000009", "part-000000000010-000000000019")[index] + ".parquet"


async def test_only_the_row_groups_that_are_damaged_are_asked_again(tmp_path: Path) -> None:
    def long(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content)["messages"][-1]["content"]
        calls.append(text)
        choice = {"index": 0, "message": {"role": "assistant", "content": text * 250_000}, "finish_reason": "stop"}
        return httpx.Response(200, content=orjson.dumps({"choices": [choice]}))

    calls: list[str] = []
    bench = Bench(folder=tmp_path, operation="chat").texts(*(f"text {n}" for n in range(10)))
    await bench.run(MemoryTransport(long))
    groups = pq.read_metadata(bench.parts()[0]).num_row_groups
    before = bench.table()
    calls.clear()
    flip(bench.parts()[0], 0.2)
    summary = await bench.run(MemoryTransport(long), repair=True)

    assert groups > 2
    assert 0 < len(calls) < 10
    assert (summary.state, summary.rows.ok) == ("complete", 10)
    after = bench.table()
    assert [row["output_text"] for row in after] == [row["output_text"] for row in before]
    again = {int(text.split()[1]) for text in calls}
    assert [row for row in after if row["ordinal"] not in again] == [
        row for row in before if row["ordinal"] not in again
    ]
    assert verify_folder(bench.layout).findings == ()


@on_both
async def test_what_was_in_no_part_is_asked_again_when_the_journal_is_gone(bench: Bench) -> None:
    bench.changes["run"] = {"grace": "20s"}
    stopped = await bench.run(Service(lambda texts, _: refusal(401) if texts == ["text 2"] else None, latency_s=0.1))
    parts = len(bench.table())
    assert stopped.rows.not_in_parts > 0
    flip(bench.layout.journal)
    service = Service()
    bench.events.clear()

    summary = await bench.run(service, repair=True)

    assert stopped.exit_code == 3
    assert (summary.state, summary.rows.ok) == ("complete", ROWS)
    assert len(service.calls) == ROWS - parts
    assert mended(bench) == [("_pipeline/journal/00.sqlite", stopped.rows.not_in_parts)]
    bench.assert_rows(range(ROWS))


async def test_a_range_before_a_sealed_one_is_read_again_when_the_journal_is_gone(bench: Bench) -> None:
    await finished(bench)
    bench.parts()[1].unlink()
    flip(bench.layout.journal)

    await mend(bench, asked=10)


async def test_a_job_with_ids_does_not_go_on_without_their_table(bench: Bench) -> None:
    await finished(bench)
    bench.layout.ids.unlink()
    with pytest.raises(DamageError, match="--repair"):
        await bench.run(Service())

    bench.rows.append({"id": "r7", "text": "new", "n": 25})
    summary = await bench.run(Service(judge), repair=True)

    assert (summary.rows.ok, summary.rows.failed) == (ROWS - 1, 2)
    assert bench.failed()[ROWS] == ("RowError", "duplicate_id")


@pytest.mark.parametrize("options", [{}, {"fresh": True}])
async def test_parts_without_a_journal_are_not_written_over(bench: Bench, options: dict[str, bool]) -> None:
    await finished(bench)
    bench.layout.journal.unlink()
    if not options:
        with pytest.raises(DamageError, match="--repair"):
            await bench.run(Service())
        await mend(bench, asked=0)
    else:
        assert (await bench.run(Service(), **options)).rows.ok == ROWS


async def test_ids_are_not_claimed_from_an_input_that_changed(bench: Bench) -> None:
    await finished(bench)
    rows = list(bench.rows)
    bench.layout.ids.unlink()
    bench.rows[7] = {"id": "other", "text": "other", "n": 0}
    with pytest.raises(InputChangedError):
        await bench.run(Service(), repair=True)
    with pytest.raises(DamageError, match="cut short"):
        await bench.run(Service())

    bench.rows = rows
    await mend(bench, asked=0)


async def test_nothing_is_done_to_a_folder_that_is_whole(bench: Bench) -> None:
    await finished(bench)
    before = {path: path.read_bytes() for path in bench.parts()}

    await mend(bench, asked=0)

    assert mended(bench) == []
    assert {path: path.read_bytes() for path in bench.parts()} == before


async def test_a_first_run_may_be_told_to_repair(bench: Bench) -> None:
    assert (await bench.run(Service(), repair=True)).rows.ok == ROWS


async def test_a_folder_of_a_newer_version_is_left_alone(bench: Bench) -> None:
    await finished(bench)
    connection = open_database(bench.layout.journal)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    (bench.layout.private / "checksums.json").unlink()

    assert [finding.kind for finding in verify_folder(bench.layout).findings] == [Kind.NEWER]
    with pytest.raises(DamageError, match="newer version"):
        await bench.run(Service(), repair=True)


# -- files of rows ---------------------------------------------------------------------------------------------------


def spoken(request: httpx.Request) -> httpx.Response:
    text = json.loads(request.content)["input"]
    return httpx.Response(200, headers={"content-type": "audio/mpeg"}, content=b"ID3" + text.encode() * 50)


@pytest.fixture
def speech(tmp_path: Path) -> Bench:
    deployment = {
        "endpoint": "https://x.openai.azure.com",
        "deployment": "d",
        "model": "tts-1",
        "api": "azure",
        "api_version": "2025-04-01-preview",
    }
    changes: dict[str, Any] = {
        "request": {"input": "{{ text }}", "voice": "alloy", "response_format": "mp3"},
        "deployments": [deployment],
        "output": {"media": "files"},
    }
    return Bench(folder=tmp_path, operation="speech", changes=changes).texts(*(f"text {n}" for n in range(ROWS)))


def unlink_journal_too(bench: Bench) -> None:
    flip(bench.layout.journal)
    (bench.layout.media / "000000000004.mp3").unlink()


MEDIA: dict[str, tuple[Callable[[Bench], None], int]] = {
    "a file of a row": (lambda bench: (bench.layout.media / "000000000004.mp3").unlink(), 1),
    "a bit of a file of a row": (lambda bench: flip(bench.layout.media / "000000000004.mp3"), 1),
    "two files in two parts": (
        lambda bench: [flip(bench.layout.media / f"{n:012d}.mp3") for n in (4, 14)] and None,
        2,
    ),
    "the journal": (lambda bench: flip(bench.layout.journal), 0),
    "the journal and a file": (unlink_journal_too, 1),
    "a part": (lambda bench: bench.parts()[0].unlink(), 10),
    "a left-over": (lambda bench: bench.layout.media.joinpath("000000000099.mp3").write_bytes(b"ID3") and None, 0),
}


@pytest.mark.parametrize("harm", MEDIA)
async def test_only_rows_whose_files_are_gone_are_spoken_again(speech: Bench, harm: str) -> None:
    def speak(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return spoken(request)

    calls: list[httpx.Request] = []
    await speech.run(MemoryTransport(speak))
    table = [(row["ordinal"], row["audio_path"], row["usage"]) for row in speech.table()]
    sound = {path.name: path.read_bytes() for path in speech.layout.media.iterdir()}
    calls.clear()
    act, asked = MEDIA[harm]
    act(speech)

    summary = await speech.run(MemoryTransport(speak), repair=True)

    assert (summary.state, summary.rows.ok, len(calls)) == ("complete", ROWS, asked)
    assert [(row["ordinal"], row["audio_path"], row["usage"]) for row in speech.table()] == table
    assert {path.name: path.read_bytes() for path in speech.layout.media.iterdir()} == sound
    assert verify_folder(speech.layout).findings == ()


async def test_a_file_of_a_row_that_is_in_no_part_is_made_again(speech: Bench) -> None:
    def speak(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content)["input"]
        return refusal(401) if text == "text 0" and refuse else spoken(request)

    refuse = True
    speech.changes["run"] = {"grace": "20s"}
    stopped = await speech.run(MemoryTransport(speak, latency_s=0.1))
    refuse = False
    assert stopped.rows.not_in_parts > 0
    left = min(speech.layout.media.iterdir())
    left.unlink()

    summary = await speech.run(MemoryTransport(speak), repair=True)

    assert (summary.state, summary.rows.ok) == ("complete", ROWS)
    assert verify_folder(speech.layout).findings == ()
