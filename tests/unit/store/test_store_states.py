"""The store against a model of dicts: whatever is done in whatever order, and wherever it is cut off by a crash.

A crash is a copy of the folder as it lies, with nothing closed, and what an interrupted write may leave beside it.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import tempfile
from collections.abc import Awaitable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from pipeline.model import Attempt, ErrorInfo, ErrorType, Outcome, OutputFile, RequestInfo, RowResult
from pipeline.store.folder import Layout, Sealer, _export_some, export_attempts, hold_folder, remove_strays
from pipeline.store.journal import Journal, Span
from pipeline.store.manifest import write_manifest
from pipeline.store.media import write_media
from pipeline.store.parts import part_schema
from pipeline.store.repair import repair_folder
from pipeline.store.spool import SpoolWriter, spool_path
from pipeline.store.verify import verify_folder

EXAMPLES = int(os.environ.get("PIPELINE_STATES", "10"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
RANGE = 4
CARRIED = pa.schema([("text", pa.string())])
SCHEMA = part_schema(CARRIED, pa.schema([("answer", pa.string()), ("audio_path", pa.string())]))
JOB = {"operation": "speech"}
FAILED = ErrorInfo(type=ErrorType.BAD_REQUEST, code="no", message="no", http_status=400)

Value = TypeVar("Value")


def position(ordinal: int) -> str:
    return f"before {ordinal}"


def digest(first: int, end: int) -> str:
    return f"{first} to {end}"


def attempt(*ordinals: int) -> Attempt:
    return Attempt(
        ordinals=ordinals,
        deployment="d",
        started_at=1.0,
        latency_ms=1.0,
        status=200,
        verdict="answered",
        code=None,
        client_request_id="c",
        request_id="r",
        apim_request_id=None,
        region=None,
        estimated_tokens=1,
        input_tokens=None,
        output_tokens=None,
        retry_after_ms=None,
    )


class Store(RuleBasedStateMachine):
    """`rows` are the answers that were told to be kept (None: failed), `files` theirs; `sealed` and `spans` ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="store-states-"))
        self.loop = asyncio.new_event_loop()
        self.lives = 0
        self.rows: dict[int, str | None] = {}
        self.files: dict[str, bytes] = {}
        self.sealed: dict[int, int] = {}
        self.spans: dict[int, int] = {}
        self.attempts = 0

    @initialize()
    def begin(self) -> None:
        self.open()
        self.wait(self.journal.note("job", JOB))
        self.wait(self.journal.note("variants", {}))

    # -- what a run does ---------------------------------------------------------------------------------------------

    @rule()
    def open_a_range(self) -> None:
        first = max((last + 1 for last in (*self.spans.values(), *self.sealed.values())), default=0)
        self.spans[first] = first + RANGE - 1
        self.journal.post_span(self.span(first))
        self.wait(self.journal.flush())
        self.spool(first)

    @precondition(lambda self: self.pending())
    @rule(data=st.data(), ok=st.booleans(), has_file=st.booleans())
    def commit_rows(self, data: st.DataObject, *, ok: bool, has_file: bool) -> None:
        pack = data.draw(st.lists(st.sampled_from(self.pending()), min_size=1, max_size=3, unique=True))
        self.wait(self.journal.commit(self.outcome(pack, ok=ok, has_file=has_file)))
        self.attempts += 1
        for ordinal in pack:
            self.rows[ordinal] = f"answer {ordinal}" if ok else None

    @rule()
    def keep_an_attempt(self) -> None:
        self.wait(self.journal.keep_attempts((attempt(0),)))
        self.attempts += 1

    @precondition(lambda self: self.heads())
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        first, end = data.draw(st.sampled_from(self.heads()))
        part, rest = self.sealing(first, end)
        self.wait(self.journal.seal(part, rest=rest))
        self.sealed[first] = end - 1
        last = self.spans.pop(first)
        self.sealer.forget_spool(first)
        if rest is not None:
            self.spans[end] = last
            self.spool(end)

    @rule()
    def export_attempts(self) -> None:
        self.wait(export_attempts(self.layout, self.journal, at_least=1))

    @rule()
    def write_the_manifest(self) -> None:
        with self.journal.reader() as reader:
            write_manifest(self.layout.manifest, reader, columns=SCHEMA.names)

    # -- what cuts it off --------------------------------------------------------------------------------------------

    @rule(left_over=st.sampled_from(["nothing", "temporaries", "a cut spool", "a torn log"]))
    def crash(self, left_over: str) -> None:
        self.die(left_over)

    @precondition(lambda self: self.pending())
    @rule()
    def crash_between_a_file_and_its_commit(self) -> None:
        self.outcome(self.pending()[:1], ok=True, has_file=True, counts=False)
        self.die("nothing")

    @precondition(lambda self: self.heads())
    @rule(data=st.data())
    def crash_between_a_part_and_its_record(self, data: st.DataObject) -> None:
        self.sealing(*data.draw(st.sampled_from(self.heads())))
        self.die("nothing")

    @rule()
    def crash_between_a_file_of_attempts_and_their_removal(self) -> None:
        _export_some(self.layout, 1)
        self.die("nothing")

    @rule()
    def end_and_begin_again(self) -> None:
        self.end()
        self.open()

    @precondition(lambda self: self.sealed)
    @rule(place=st.floats(0, 0.999))
    def flip_a_bit_of_the_journal_and_repair(self, place: float) -> None:
        """What is in no part is gone with the journal; open ranges are those before a part."""
        self.end()
        content = bytearray(self.layout.journal.read_bytes())
        content[int(len(content) * place)] ^= 1
        self.layout.journal.write_bytes(content)
        assert verify_folder(self.layout).findings
        repair_folder(self.layout, job=JOB, now=NOW)
        self.rows = {ordinal: answer for ordinal, answer in self.rows.items() if self.is_sealed(ordinal)}
        self.files = {name: file for name, file in self.files.items() if self.is_sealed(self.ordinal_of(name))}
        self.spans, expected = {}, 0
        for first, last in sorted(self.sealed.items()):
            if first > expected:
                self.spans[expected] = first - 1
            expected = last + 1
        self.open(counts_attempts=False)
        with self.journal.reader() as reader:
            self.attempts = reader.totals().attempts

    @precondition(lambda self: self.sealed)
    @rule(data=st.data())
    def lose_a_part_and_repair(self, data: st.DataObject) -> None:
        first = data.draw(st.sampled_from(sorted(self.sealed)))
        self.end()
        last = self.sealed.pop(first)
        self.layout.part(f"part-{first:012d}-{last:012d}.parquet").unlink()
        repair_folder(self.layout, job=JOB, now=NOW)
        gone = range(first, last + 1)
        self.rows = {ordinal: answer for ordinal, answer in self.rows.items() if ordinal not in gone}
        self.files = {name: file for name, file in self.files.items() if self.ordinal_of(name) not in gone}
        self.spans[first] = last
        self.open()

    # -- how it is done ----------------------------------------------------------------------------------------------

    @property
    def layout(self) -> Layout:
        return Layout(self.home / str(self.lives))

    @property
    def sealer(self) -> Sealer:
        return Sealer(layout=self.layout, schema=SCHEMA, carries=True, compression="none")

    def wait(self, work: Awaitable[Value]) -> Value:
        async def until_done() -> Value:
            return await work

        return self.loop.run_until_complete(until_done())

    def open(self, *, counts_attempts: bool = True) -> None:
        """Begin as a run does: clear up, read open ranges again. Everything that was told to be kept is there."""
        self.held = ExitStack()
        self.held.enter_context(hold_folder(self.layout.root, fresh=False, now=NOW))

        async def opened() -> Journal:
            return Journal(self.layout.journal)

        self.journal = self.wait(opened())
        with self.journal.reader() as reader:
            remove_strays(self.layout, reader)
        for first in self.spans:
            self.spool(first)
        self.compare(counts_attempts=counts_attempts)

    def end(self) -> None:
        """End cleanly: the folder is as it was written."""
        self.export_attempts()
        self.write_the_manifest()
        self.wait(self.journal.close())
        self.held.close()
        assert verify_folder(self.layout).findings == ()

    def die(self, left_over: str) -> None:
        """Take what lies on the disk now for what a killed process has left."""
        before, journal, held = self.layout, self.journal, self.held
        self.lives += 1
        shutil.copytree(before.root, self.layout.root, ignore=shutil.ignore_patterns("*-shm", "lock"))
        self.wait(journal.close())
        held.close()
        shutil.rmtree(before.root)
        layout = self.layout
        match left_over:
            case "temporaries":
                for path in (layout.part("part-000000000000-000000000003.parquet"), layout.manifest, layout.summary):
                    path.with_name(path.name + ".tmp").write_bytes(b"PAR1 half")
                layout.media.mkdir(exist_ok=True)
                (layout.media / "000000000001.mp3.tmp").write_bytes(b"ID3")
            case "a cut spool":
                for path in layout.spool.iterdir():
                    os.truncate(path, path.stat().st_size // 2)
            case "a torn log":
                log = layout.journal.with_name(layout.journal.name + "-wal")
                if log.is_file():
                    with log.open("ab") as file:
                        file.write(random.Random(self.lives).randbytes(3_000))
        self.open()

    def span(self, first: int) -> Span:
        last = self.spans[first]
        read = last - first + 1
        return Span(
            first=first,
            last=last,
            start=position(first),
            read=read,
            digest=digest(first, last + 1),
            finish=position(last + 1),
        )

    def spool(self, first: int) -> None:
        writer = SpoolWriter(spool_path(self.layout.spool, first), CARRIED)
        texts = [f"text {ordinal}" for ordinal in range(first, self.spans[first] + 1)]
        writer.write(pa.RecordBatch.from_arrays([pa.array(texts)], schema=CARRIED))
        writer.close()

    def outcome(self, pack: list[int], *, ok: bool, has_file: bool, counts: bool = True) -> Outcome:
        rows, files = [], []
        for ordinal in pack:
            name = None
            if ok and has_file:
                content = b"ID3 of %d" % ordinal
                file = write_media(self.layout.root, ordinal, OutputFile(column="", suffix="mp3", content=content))
                files.append(file)
                name = file.name
                if counts:
                    self.files[name] = content
            values = {"answer": f"answer {ordinal}", "audio_path": name}
            rows.append(RowResult(ordinal=ordinal, values=values if ok else None, error=None if ok else FAILED))
        request = RequestInfo(attempts=1, deployment="d")
        return Outcome(rows=tuple(rows), request=request, attempts=(attempt(*pack),), files=tuple(files))

    def sealing(self, first: int, end: int) -> tuple[Any, Span | None]:
        """Write the part of a head; give what the journal is to be told."""
        span = self.span(first)
        part = self.sealer.part_of(span, last=end - 1, finish=position(end), digest=digest(first, end))
        rest = None
        if end <= span.last:
            read = span.last - end + 1
            rest = replace(span, first=end, start=position(end), read=read, digest=digest(end, span.last + 1))
        return part, rest

    def pending(self) -> list[int]:
        return [n for first, last in self.spans.items() for n in range(first, last + 1) if n not in self.rows]

    def heads(self) -> list[tuple[int, int]]:
        """Open ranges with the ordinal after their finished head, where they have one."""
        found = []
        for first, last in self.spans.items():
            end = next((n for n in range(first, last + 1) if n not in self.rows), last + 1)
            if end > first:
                found.append((first, end))
        return found

    def is_sealed(self, ordinal: int) -> bool:
        return any(first <= ordinal <= last for first, last in self.sealed.items())

    def ordinal_of(self, name: str) -> int:
        return int(Path(name).stem)

    def compare(self, *, counts_attempts: bool = True) -> None:
        """Hold the journal, the parts and the files against the model."""
        with self.journal.reader() as reader:
            loose = {row.ordinal: (row.values or {}).get("answer") for row, _ in reader.results(0, 10**9)}
            parts = {part.first: part.last for part in reader.parts()}
            spans = {span.first: span.last for span in reader.spans()}
            totals = reader.totals()
            files = {file.name: file for file in reader.files() if file.name.startswith("media/")}
        assert loose == {ordinal: answer for ordinal, answer in self.rows.items() if not self.is_sealed(ordinal)}
        assert parts == self.sealed
        assert spans == self.spans
        assert (totals.ok + totals.failed, totals.failed) == (len(self.rows), list(self.rows.values()).count(None))
        if counts_attempts:
            assert totals.attempts == self.attempts
        assert {path.name for path in self.layout.root.glob("part-*")} == {
            f"part-{first:012d}-{last:012d}.parquet" for first, last in self.sealed.items()
        }
        for path in self.layout.root.glob("part-*"):
            for row in pq.read_table(path).to_pylist():
                assert row["answer"] == self.rows[row["ordinal"]]
                assert row["text"] == f"text {row['ordinal']}"
        assert {name: (self.layout.root / name).read_bytes() for name in files} == self.files
        assert all(self.layout.written(self.layout.root / name) == file for name, file in files.items())
        assert {f"media/{path.name}" for path in self.layout.media.glob("*")} == set(files)

    def teardown(self) -> None:
        try:
            if hasattr(self, "journal"):
                self.end()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            shutil.rmtree(self.home)


def test_the_store_keeps_what_it_says_it_keeps() -> None:
    print(f"\nPIPELINE_SEED={SEED} PIPELINE_STATES={EXAMPLES}")
    run_state_machine_as_test(
        seed(SEED)(Store),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=25,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # a failure is told as it was met: making it short takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
