"""Whatever cuts a run short and however often: every row ends up in the parts once, in order, with its own cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Self, cast

import anyio
import anyio.lowlevel
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.clock import SystemClock
from pipeline.engines.local import Sealing, SealRules, run_local
from pipeline.errors import StoppedEarlyError
from pipeline.lanes.control import Control
from pipeline.lanes.online import OnlineLane
from pipeline.lanes.pulse import Pulse
from pipeline.lanes.stop import Stop, Stopped
from pipeline.log import EventLog
from pipeline.model import BadRow, Call, ErrorInfo, ErrorType, Item, Outcome, Reply, RequestInfo, Row, RowResult, Target
from pipeline.operations.base import PackLimits
from pipeline.plan.plan import Plan
from pipeline.plan.ranges import PlanRules
from pipeline.plan.work import Settled
from pipeline.sources.base import Batch, InputFile, Position
from pipeline.sources.digest import RangeDigest
from pipeline.store.folder import Layout
from pipeline.store.ids import IdTable
from pipeline.store.journal import Journal, JournalReader, Span

BAD = ErrorInfo(type=ErrorType.ROW, code="invalid_json", message="bad")
REFUSED = ErrorInfo(type=ErrorType.BAD_REQUEST, code="refused", message="no", http_status=400)
SCHEMA = pa.schema([("text", pa.string())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """An operation that packs; what it answers is not known before a first row was ok."""

    limits: PackLimits
    known: bool = False
    name: str = "echo"
    columns: frozenset[str] | None = frozenset({"text"})

    def prepare(self, rows: Sequence[Row]) -> list[Item | ErrorInfo]:
        return [Item(ordinal=row.ordinal, content=row.values["text"], tokens=1, reply_bytes=100) for row in rows]

    def build(self, items: Sequence[Item], target: Target) -> Call:
        raise NotImplementedError

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        raise NotImplementedError

    def blame(self, items: Sequence[Item], error: ErrorInfo) -> int | None:
        return None

    def facts(self, results: Sequence[RowResult]) -> Mapping[str, int]:
        return {}

    def settled(self, facts: Mapping[str, int]) -> Self:
        return self

    def schema(self) -> pa.Schema:
        return pa.schema([("echo", pa.string())])


class Texts:
    """A source of texts, `batch` at a time; a None is a bad row."""

    def __init__(self, texts: Sequence[str | None], batch: int) -> None:
        self.texts = texts
        self.batch = batch
        self.files: tuple[InputFile, ...] = ()
        self.schema = SCHEMA

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> TextCursor:
        return TextCursor(self, start.ordinal)


class TextCursor:
    def __init__(self, source: Texts, at: int) -> None:
        self.source = source
        self.at = at

    def read(self, max_rows: int, digest: RangeDigest) -> Batch:
        first = self.at
        texts = self.source.texts[first : first + min(max_rows, self.source.batch)]
        self.at += len(texts)
        for text in texts:
            digest.raw(f"{text!r}\n".encode())
        rows = tuple(
            BadRow(ordinal=ordinal, error=BAD) if text is None else Row(ordinal=ordinal, values={"text": text})
            for ordinal, text in enumerate(texts, start=first)
        )
        cells = pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], schema=SCHEMA)
        return Batch(rows=rows, carried=cells, end=Position(ordinal=self.at, offset=self.at))

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One run of the same job: how it is cut, and after how many commits it ends (None: when it is done)."""

    ends_after: int | None = None
    is_killed: bool = False
    limit: int | None = None
    batch: int = 7
    part_rows: int = 10
    part_bytes: int = 1 << 30
    window: int = 1 << 30
    workers: int = 3
    pack: int = 4
    seed: int = 0


@dataclass(slots=True)
class Lane:
    """Answers a task after a few turns of the loop; texts with an `x` are refused."""

    plan: Plan
    journal: Journal
    stop: Stop
    dice: Random
    ends_after: float
    kill: anyio.CancelScope | None
    committed: int = 0
    any_ok: bool = False
    answered: dict[int, int] = field(default_factory=dict)

    async def work(self) -> None:
        try:
            while self.stop.cause is None:
                with self.stop.waiting():
                    work = await self.plan.next()
                if work is None:
                    return
                for _ in range(self.dice.randrange(6)):
                    with self.stop.sending():
                        await anyio.lowlevel.checkpoint()
                if self.committed >= self.ends_after:
                    if self.kill is not None:
                        self.kill.cancel()
                        await anyio.sleep_forever()
                    self.stop.request(StoppedEarlyError("enough"))
                    return
                self.committed += 1
                rows = work.rows if isinstance(work, Settled) else tuple(map(answer, work.items))
                self.any_ok = self.any_ok or any(row.ok for row in rows)
                await self.journal.commit(Outcome(rows=rows, request=RequestInfo()))
                self.plan.finished(work)
        except Stopped:
            return

    def schema(self) -> pa.Schema:
        if not self.any_ok:
            raise LookupError
        return pa.schema([("echo", pa.string())])


def answer(item: Item) -> RowResult:
    if "x" in item.content:
        return RowResult(ordinal=item.ordinal, error=REFUSED)
    return RowResult(ordinal=item.ordinal, values={"echo": item.content[::-1]})


async def invoke(root: Path, texts: Sequence[str | None], one: Invocation) -> None:
    layout = Layout(root)
    for folder in (layout.journal.parent, layout.spool, layout.attempts):
        folder.mkdir(parents=True, exist_ok=True)
    for spool in layout.spool.iterdir():
        spool.unlink()
    source, stop, log = Texts(texts, one.batch), Stop(), EventLog(wall=lambda: 0.0)
    rules = PlanRules(
        carried=("text",),
        id_column=None,
        part_rows=one.part_rows,
        part_bytes=one.part_bytes,
        limit=one.limit,
        window_bytes=one.window,
    )
    journal = Journal(layout.journal)
    send, receive = anyio.create_memory_object_stream[Span](math.inf)
    try:
        with IdTable(layout.ids) as ids, anyio.fail_after(100), anyio.CancelScope() as scope, send, receive:
            plan = Plan(
                source=source,
                operation=Echo(limits=PackLimits(items=one.pack)),
                journal=journal,
                layout=layout,
                ids=ids,
                rules=rules,
                completed=send,
            )
            ends_after = math.inf if one.ends_after is None else one.ends_after
            lane = Lane(plan, journal, stop, Random(one.seed), ends_after, scope if one.is_killed else None)
            with journal.reader() as reader:
                lane.any_ok = reader.totals().ok > 0
            sealing = Sealing(
                layout=layout,
                journal=journal,
                rules=SealRules(carried=SCHEMA, compression="none"),
                schema=lane.schema,
                completed=receive,
                sealed=plan.sealed,
                log=log,
                clock=SystemClock(),
                pulse=Pulse(),
            )
            await run_local(
                lane=cast(OnlineLane, lane),
                plan=plan,
                sealing=sealing,
                workers=lambda: one.workers,
                control=Control(workers=one.workers, leave=0.0, clock=SystemClock()),
                stop=stop,
                grace_s=0,
                clock=SystemClock(),
            )
            await sealing.finish(source, values=frozenset({"text"}), carried=("text",))
        assert stop.cause is None or isinstance(stop.cause, StoppedEarlyError), stop.cause
    finally:
        with anyio.CancelScope(shield=True):
            await journal.close()
            receive.close()
            send.close()


def assert_sound(root: Path, texts: Sequence[str | None]) -> int:
    """What is in parts is right, and every row is in one place at most. Returns how many rows are in parts."""
    table: list[dict[str, Any]] = []
    with JournalReader(Layout(root).journal) as reader:
        parts, spans, totals = reader.parts(), reader.spans(), reader.totals()
        done = sorted(row.ordinal for row, _ in reader.results(0, 1 << 40))
        assert reader.counts() == (totals.ok - totals.sealed_ok, totals.failed - totals.sealed_failed)
    expected = 0
    for first, last in sorted(
        [(part.first, part.last) for part in parts] + [(span.first, span.last) for span in spans]
    ):
        assert first == expected
        expected = last + 1
    assert all(any(span.first <= ordinal <= span.last for span in spans) for ordinal in done)
    for part in parts:
        rows = pq.read_table(Layout(root).part(part.name)).to_pylist()
        assert [row["ordinal"] for row in rows] == list(range(part.first, part.last + 1))
        table += rows
    for row in table:
        text = texts[row["ordinal"]]
        assert row["text"] == text
        assert row["status"] == ("failed" if text is None or "x" in text else "ok")
        assert row["echo"] == (text[::-1] if text is not None and row["status"] == "ok" else None)
    return len(table)


SMALL = st.sampled_from([1, 2, 3, 5, 8, 1000])
INVOCATION = st.builds(
    Invocation,
    ends_after=st.none() | st.integers(0, 25),
    is_killed=st.booleans(),
    limit=st.none() | st.integers(0, 45),
    batch=SMALL,
    part_rows=st.sampled_from([1, 4, 10, 10, 1000]),
    part_bytes=st.sampled_from([1, 700, 2000, 1 << 30, 1 << 30]),
    window=st.sampled_from([0, 2000, 1 << 30]),
    workers=st.integers(1, 6),
    pack=SMALL,
    seed=st.integers(0, 1000),
)


@pytest.mark.timeout(600)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(st.sampled_from(["a", "bc", "x", None, "größe"]), max_size=40),
    cuts=st.lists(INVOCATION, max_size=5),
    added=st.integers(0, 12),
    last=INVOCATION,
)
def test_every_row_ends_up_once_in_order_with_its_own_cells(
    texts: list[str | None], cuts: list[Invocation], added: int, last: Invocation
) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        texts = [None if text is None else f"{text} {n}" for n, text in enumerate(texts)]
        for one in cuts:
            anyio.run(invoke, root, texts, one)
            assert_sound(root, texts)
        texts += [f"new {n}" for n in range(added)] + ["ok"]
        anyio.run(invoke, root, texts, Invocation(batch=last.batch, workers=last.workers, window=last.window))
        assert assert_sound(root, texts) == len(texts)


def test_a_head_that_an_earlier_run_finished_is_sealed_only_as_far_as_it_was_read_again(tmp_path: Path) -> None:
    texts = [f"t{n}" for n in range(20)]
    anyio.run(invoke, tmp_path, texts, Invocation(ends_after=8, is_killed=True, workers=1, pack=1))
    anyio.run(invoke, tmp_path, texts, Invocation(limit=3))
    assert assert_sound(tmp_path, texts) == 3
    anyio.run(invoke, tmp_path, texts, Invocation(ends_after=0))
    assert assert_sound(tmp_path, texts) >= 3
    anyio.run(invoke, tmp_path, texts, Invocation())
    assert assert_sound(tmp_path, texts) == 20


def test_answers_are_not_put_beside_an_input_that_changed_meanwhile(tmp_path: Path) -> None:
    texts: list[str | None] = [f"t{n}" for n in range(20)]
    anyio.run(invoke, tmp_path, texts, Invocation(ends_after=8, is_killed=True, workers=1, pack=1))
    texts[9] = "changed"
    anyio.run(invoke, tmp_path, texts, Invocation(limit=5))
    assert assert_sound(tmp_path, texts) == 0
