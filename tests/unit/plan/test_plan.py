"""The plan: every row once, packs within their limits, ranges where they should end, whatever was done before."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Self

import anyio
import pyarrow as pa
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from pipeline.errors import InputChangedError, StorageError
from pipeline.model import BadRow, Call, ErrorInfo, ErrorType, Item, Outcome, Reply, RequestInfo, Row, RowResult, Target
from pipeline.operations.base import PackLimits
from pipeline.plan.plan import Plan
from pipeline.plan.ranges import PlanRules, check_input, encode_position
from pipeline.plan.reader import MAX_ROWS_AT_ONCE, MIN_ROWS_AT_ONCE
from pipeline.plan.work import Packer, Settled, Task, Work
from pipeline.sources.base import Batch, InputFile, Position
from pipeline.sources.digest import RangeDigest
from pipeline.store.folder import Layout
from pipeline.store.ids import IdTable
from pipeline.store.journal import Journal, JournalReader, Part, Span
from pipeline.store.spool import read_spool, spool_path

BAD = ErrorInfo(type=ErrorType.ROW, code="invalid_json", message="bad")
EMPTY = ErrorInfo(type=ErrorType.ROW, code="empty", message="empty")
HUGE = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """An operation whose items weigh what their text is long; an empty text cannot be asked."""

    limits: PackLimits = field(default_factory=PackLimits)
    reply_bytes: int = 0
    name: str = "echo"
    columns: frozenset[str] | None = frozenset({"text"})

    def prepare(self, rows: Sequence[Row]) -> list[Item | ErrorInfo]:
        return [self._prepare(row) for row in rows]

    def _prepare(self, row: Row) -> Item | ErrorInfo:
        text = row.values["text"]
        if not text:
            return EMPTY
        return Item(ordinal=row.ordinal, content=text, tokens=len(text), reply_bytes=self.reply_bytes)

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
    """A source of one column `text` (a None is a bad row) and one column `id`, read `batch` rows at a time."""

    def __init__(self, texts: Sequence[str | None], *, ids: Sequence[Any] | None = None, batch: int = 4) -> None:
        self.texts = texts
        self.ids = list(ids) if ids is not None else [f"id {n}" for n in range(len(texts))]
        self.batch = batch
        self.files: tuple[InputFile, ...] = ()
        self.schema = pa.schema([("text", pa.string())])
        self.row_count: int | None = None
        self.reads = 0
        self.asked: list[int] = []
        self.fails_at: int | None = None

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> TextCursor:
        return TextCursor(self, start.ordinal, tuple(carried))


class Weighed(Texts):
    """One that does not know its rows, but its bytes: all rows have as many."""

    def share_before(self, position: Position) -> float | None:
        return position.ordinal / len(self.texts)


class TextCursor:
    def __init__(self, source: Texts, at: int, carried: tuple[str, ...]) -> None:
        self.source = source
        self.at = at
        self.carried = carried

    def read(self, max_rows: int, digest: RangeDigest) -> Batch:
        source, first = self.source, self.at
        source.reads += 1
        source.asked.append(max_rows)
        texts = source.texts[first : first + min(max_rows, source.batch)]
        self.at += len(texts)
        if source.fails_at is not None and first <= source.fails_at < self.at:
            source.fails_at = None
            raise StorageError("the disk of the input fails")
        for text in texts:
            digest.raw(f"{text!r}\n".encode())
        rows = tuple(
            BadRow(ordinal=ordinal, error=BAD)
            if text is None
            else Row(ordinal=ordinal, values={"text": text, "id": source.ids[ordinal]})
            for ordinal, text in enumerate(texts, start=first)
        )
        schema = pa.schema([source.schema.field(name) for name in self.carried])
        cells = pa.RecordBatch.from_arrays([pa.array(texts, pa.string()) for _ in self.carried], schema=schema)
        return Batch(rows=rows, carried=cells, end=Position(ordinal=self.at, offset=self.at))

    def close(self) -> None:
        """Nothing is open."""


def rules(**given: Any) -> PlanRules:
    usual = PlanRules(carried=("text",), id_column=None, part_rows=10, part_bytes=HUGE, limit=None, window_bytes=HUGE)
    return replace(usual, **given)


@dataclass(slots=True)
class Bench:
    """One invocation's plan, with what it needs."""

    plan: Plan
    journal: Journal
    completed: MemoryObjectReceiveStream[Span]

    async def work(self, *, most: float = math.inf, finish: bool = True) -> list[Work]:
        """Take at most so many pieces of work, commit and finish each."""
        taken: list[Work] = []
        while len(taken) < most and (work := await self.plan.next()) is not None:
            taken.append(work)
            if finish:
                await self.finish(work)
        return taken

    async def finish(self, work: Work) -> None:
        results = work.rows if isinstance(work, Settled) else tuple(done(item.ordinal) for item in work.items)
        await self.journal.commit(Outcome(rows=results, request=RequestInfo()))
        self.plan.finished(work)

    def complete(self) -> list[Span]:
        found = []
        while True:
            try:
                found.append(self.completed.receive_nowait())
            except (anyio.WouldBlock, anyio.EndOfStream):
                return found

    async def seal(self, span: Span, *, last: int | None = None, rest: Span | None = None) -> None:
        """Have a range counted as a part, without a file."""
        end = span.last if last is None else last
        digest = RangeDigest()
        part = Part(
            first=span.first,
            last=end,
            name="",
            ok=0,
            failed=0,
            bytes=0,
            sha256="",
            digest=span.digest or digest.hexdigest(),
            generation=0,
            start=span.start,
            finish=encode_position(Position(ordinal=end + 1, offset=end + 1)),
        )
        await self.journal.seal(part, rest=rest)
        self.plan.sealed(span.first)


def done(ordinal: int) -> RowResult:
    return RowResult(ordinal=ordinal, values={"echo": str(ordinal)})


def layout_in(root: Path) -> Layout:
    layout = Layout(root)
    for folder in (layout.journal.parent, layout.spool):
        folder.mkdir(parents=True, exist_ok=True)
    return layout


@asynccontextmanager
async def planned(
    tmp_path: Path, source: Texts, given: PlanRules | None = None, *, operation: Echo | None = None
) -> AsyncIterator[Bench]:
    given = given or rules()
    layout = layout_in(tmp_path)
    async with AsyncExitStack() as stack:
        journal = Journal(layout.journal)
        stack.push_async_callback(journal.close)
        ids = stack.enter_context(IdTable(layout.ids)) if given.id_column else None
        send, receive = anyio.create_memory_object_stream[Span](math.inf)
        plan = Plan(
            source=source,
            operation=operation or Echo(),
            journal=journal,
            layout=layout,
            ids=ids,
            rules=given,
            completed=send,
        )
        stack.push_async_callback(plan.close)
        stack.enter_context(receive)
        yield Bench(plan, journal, receive)


def ordinals(work: Iterable[Work]) -> list[int]:
    return [
        row.ordinal for one in work for row in (one.rows if isinstance(one, Settled) else one.items)
    ]  # fmt: skip


def packs(work: Iterable[Work]) -> list[list[int]]:
    return [[item.ordinal for item in one.items] for one in work if isinstance(one, Task)]


def codes(work: Iterable[Work]) -> dict[int, str]:
    return {
        row.ordinal: row.error.code
        for one in work
        if isinstance(one, Settled)
        for row in one.rows
        if row.error is not None
    }


def spans_in(tmp_path: Path) -> list[Span]:
    with JournalReader(layout_in(tmp_path).journal) as reader:
        return reader.spans()


def spooled(tmp_path: Path, first: int) -> list[Any]:
    path = spool_path(layout_in(tmp_path).spool, first)
    return [text for batch in read_spool(path) for text in batch.column(0).to_pylist()]


def item(ordinal: int, tokens: int = 1, reply_bytes: int = 1, inputs: int = 1) -> Item:
    return Item(ordinal=ordinal, content="", tokens=tokens, reply_bytes=reply_bytes, inputs=inputs)


def packed(limits: PackLimits, items: Iterable[Item]) -> list[list[int]]:
    packer = Packer(limits)
    found = [full for one in items if (full := packer.add(one))]
    return [[one.ordinal for one in pack] for pack in (*found, packer.flush()) if pack]


@pytest.mark.parametrize(
    ("limits", "items", "expected"),
    [
        (PackLimits(items=1), [item(0), item(1)], [[0], [1]]),
        (PackLimits(items=2), [item(n) for n in range(5)], [[0, 1], [2, 3], [4]]),
        (PackLimits(items=9, tokens=3), [item(0, 2), item(1, 1), item(2, 1)], [[0, 1], [2]]),
        (PackLimits(items=9, tokens=3), [item(0, 2), item(1, 2), item(2, 1)], [[0], [1, 2]]),
        (PackLimits(items=9, tokens=3), [item(0), item(1, 99), item(2)], [[0], [1], [2]]),
        (PackLimits(items=9, reply_bytes=3), [item(0, 9, 2), item(1, 9, 1), item(2, 9, 1)], [[0, 1], [2]]),
        (PackLimits(items=9, reply_bytes=3), [item(0), item(1, 1, 99), item(2)], [[0], [1], [2]]),
        (PackLimits(items=2, tokens=5, reply_bytes=5), [item(0, 5, 1), item(1, 1, 5), item(2)], [[0], [1], [2]]),
        (PackLimits(items=9), [item(n, 10**9, 10**9) for n in range(3)], [[0, 1, 2]]),
        (
            PackLimits(items=4),
            [item(0, inputs=3), item(1), item(2), item(3, inputs=4), item(4)],
            [[0, 1], [2], [3], [4]],
        ),
        (PackLimits(items=4), [item(0), item(1, inputs=99), item(2, inputs=4), item(3)], [[0], [1], [2], [3]]),
        (PackLimits(), [], []),
    ],
)
def test_a_pack_ends_at_the_first_of_its_limits(
    limits: PackLimits, items: list[Item], expected: list[list[int]]
) -> None:
    assert packed(limits, items) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("rows", [0, 1, 9, 10, 11, 20, 25])
@pytest.mark.parametrize("batch", [1, 3, 10, 1000])
async def test_every_row_is_handed_out_once_and_ranges_end_at_multiples(
    tmp_path: Path, rows: int, batch: int
) -> None:  # fmt: skip
    async with planned(tmp_path, Texts(["x"] * rows, batch=batch)) as bench:
        assert ordinals(await bench.work()) == list(range(rows))
        assert bench.plan.rows_total == bench.plan.rows_read == rows
        expected = [(first, min(first + 9, rows - 1)) for first in range(0, rows, 10)]
        assert [(span.first, span.last) for span in bench.complete()] == expected
        assert await bench.plan.next() is None


@pytest.mark.anyio
@pytest.mark.parametrize(("tokens", "expected"), [(1, MAX_ROWS_AT_ONCE), (2**12, 2**8), (2**16, MIN_ROWS_AT_ONCE)])
async def test_as_many_rows_are_rendered_at_once_as_memory_should_hold(
    tmp_path: Path, tokens: int, expected: int
) -> None:
    source = Texts(["x" * tokens] * 64, batch=MIN_ROWS_AT_ONCE)
    async with planned(tmp_path, source, rules(part_rows=10_000)) as bench:
        assert len(ordinals(await bench.work())) == 64
    assert source.asked == [MIN_ROWS_AT_ONCE, expected, expected]


@pytest.mark.anyio
async def test_packs_never_reach_over_the_end_of_a_range(tmp_path: Path) -> None:
    async with planned(tmp_path, Texts(["x"] * 25, batch=7), operation=Echo(limits=PackLimits(items=8))) as bench:
        assert packs(await bench.work()) == [
            [*range(8)],
            [8, 9],
            [*range(10, 18)],
            [18, 19],
            [*range(20, 25)],
        ]


@pytest.mark.anyio
async def test_bad_rows_and_rows_that_cannot_be_asked_are_settled_and_harm_no_neighbour(tmp_path: Path) -> None:
    texts = ["a", None, "", "b", "c", "", None, "d"]
    async with planned(tmp_path, Texts(texts, batch=5), operation=Echo(limits=PackLimits(items=100))) as bench:
        work = await bench.work()
    assert codes(work) == {1: "invalid_json", 2: "empty", 5: "empty", 6: "invalid_json"}
    assert packs(work) == [[0, 3, 4, 7]]
    assert spooled(tmp_path, 0) == texts


@pytest.mark.anyio
async def test_ids_that_come_again_or_are_missing_fail_their_rows(tmp_path: Path) -> None:
    ids: list[Any] = ["a", "b", "a", None, 1, "1", [1], {}, "c", "c", "d", "a"]
    source = Texts(["x"] * 12, ids=ids, batch=3)
    async with planned(tmp_path, source, rules(id_column="id")) as bench:
        work = await bench.work()
    problems = {2: "duplicate_id", 3: "id_missing", 6: "id_type", 7: "id_type", 9: "duplicate_id", 11: "duplicate_id"}
    assert codes(work) == problems
    assert sorted(ordinals(work)) == list(range(12))


@pytest.mark.anyio
@pytest.mark.parametrize("crash_after", range(8))
async def test_duplicates_are_the_same_rows_whenever_a_run_was_cut(tmp_path: Path, crash_after: int) -> None:
    ids = ["a", "b", "a", "c", "b", "d", "e", "a", "f", "g", "a", "h"]
    expected = {2, 4, 7, 10}
    found: dict[int, str] = {}
    seen: list[int] = []
    for most in (crash_after, math.inf):
        source = Texts(["x"] * 12, ids=ids, batch=3)
        async with planned(tmp_path, source, rules(id_column="id", part_rows=5)) as bench:
            work = await bench.work(most=most)
            found |= codes(work)
            seen += ordinals(work)
    assert set(found) == expected
    assert set(found.values()) == {"duplicate_id"}
    assert sorted(seen) == list(range(12))


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [0, 1, 5, 9, 10, 11, 15, 19, 20, 99])
async def test_a_limit_hands_out_the_rows_below_it_and_the_next_invocation_the_others(
    tmp_path: Path, limit: int
) -> None:
    texts = ["x"] * 20
    async with planned(tmp_path, Texts(texts), rules(limit=limit)) as bench:
        first = ordinals(await bench.work())
        assert first == list(range(min(limit, 20)))
        whole = [span for span in bench.complete() if span.last < limit]
        assert [span.last for span in whole] == [last for last in (9, 19) if last < limit]
        assert bench.plan.rows_total == (20 if limit >= 20 else None)
    async with planned(tmp_path, Texts(texts)) as bench:
        assert first + ordinals(await bench.work()) == list(range(20))
        assert bench.plan.rows_total == 20


@pytest.mark.anyio
@pytest.mark.parametrize("part_rows", [10, 15, 100])
@pytest.mark.parametrize("limit", [0, 1, 10, 15, 20, 25])
async def test_a_limit_within_what_is_done_knows_how_many_rows_there_are(
    tmp_path: Path, limit: int, part_rows: int
) -> None:
    texts = ["x"] * 20
    async with planned(tmp_path, Texts(texts), rules(part_rows=part_rows)) as bench:
        assert len(await bench.work()) == 20
        for span in bench.complete():
            await bench.seal(span)
    async with planned(tmp_path, Texts(texts), rules(part_rows=part_rows, limit=limit)) as bench:
        assert await bench.work() == []
        assert bench.plan.rows_total == 20
    async with planned(tmp_path, Texts([*texts, "more"]), rules(part_rows=part_rows, limit=limit)) as bench:
        assert len(await bench.work()) == (1 if limit > 20 else 0)
        assert bench.plan.rows_total == (21 if limit > 20 else None)


@pytest.mark.anyio
@pytest.mark.parametrize(("limit", "expected"), [(None, 20), (5, 5), (99, 20)])
async def test_rows_are_expected_by_what_the_source_counts(tmp_path: Path, limit: int | None, expected: int) -> None:
    source = Texts(["x"] * 20)
    source.row_count = 20
    async with planned(tmp_path, source, rules(limit=limit)) as bench:
        assert bench.plan.rows_expected == expected
    source.row_count = None
    async with planned(tmp_path, source, rules(limit=limit)) as bench:
        assert bench.plan.rows_expected is None


@pytest.mark.anyio
@pytest.mark.parametrize(("limit", "expected"), [(None, 20), (15, 15)])
async def test_rows_are_expected_by_the_bytes_that_were_read(tmp_path: Path, limit: int | None, expected: int) -> None:
    source = Weighed(["x"] * 20, batch=4)
    async with planned(tmp_path, source, rules(limit=limit)) as bench:
        assert bench.plan.rows_expected is None
        await bench.work(most=3)
        assert bench.plan.rows_expected == expected
    again = rules(limit=limit, only_again=True)
    async with planned(tmp_path, source, again) as bench:
        assert bench.plan.rows_expected is None


@pytest.mark.anyio
async def test_a_limit_below_what_was_read_before_reads_no_further(tmp_path: Path) -> None:
    async with planned(tmp_path, Texts(["x"] * 20)) as bench:
        await bench.work(most=12, finish=False)
    async with planned(tmp_path, Texts(["x"] * 20), rules(limit=3)) as bench:
        assert ordinals(await bench.work()) == [0, 1, 2]
        assert bench.complete() == []
    assert [span.read for span in spans_in(tmp_path)] == [10, 4]
    async with planned(tmp_path, Texts(["x"] * 20)) as bench:
        assert ordinals(await bench.work()) == list(range(3, 20))


@pytest.mark.anyio
async def test_a_range_ends_where_its_part_would_be_too_large(tmp_path: Path) -> None:
    operation = Echo(reply_bytes=1000)
    async with planned(tmp_path, Texts(["x"] * 20, batch=2), rules(part_bytes=5000), operation=operation) as bench:
        assert ordinals(await bench.work()) == list(range(20))
        spans = [(span.first, span.last) for span in bench.complete()]
    assert spans[0][1] < 9
    assert spans[0][0] == 0
    assert all(before[1] + 1 == after[0] for before, after in pairwise(spans))
    assert {last for _, last in spans} >= {9, 19}, "the rest of a range still ends at the multiple"


@pytest.mark.anyio
async def test_a_smaller_part_size_never_cuts_off_rows_that_were_done_before(tmp_path: Path) -> None:
    async with planned(tmp_path, Texts(["x"] * 20, batch=4)) as bench:
        work = await bench.work(most=8, finish=False)
        for one in work[3:8]:
            await bench.finish(one)
    operation = Echo(reply_bytes=1000)
    async with planned(tmp_path, Texts(["x"] * 20, batch=2), rules(part_bytes=1), operation=operation) as bench:
        assert sorted(ordinals(await bench.work())) == [0, 1, 2, *range(8, 20)]
        assert [span.first for span in bench.complete()] == [0, 8, *range(10, 20, 2)]


@pytest.mark.anyio
@pytest.mark.parametrize("finished", [(), (0,), (3, 5), (0, 1, 2), (1, 4, 7, 8), tuple(range(10)), (11, 12)])
async def test_an_open_range_with_holes_is_filled(tmp_path: Path, finished: tuple[int, ...]) -> None:
    texts = [f"t{n}" for n in range(14)]
    async with planned(tmp_path, Texts(texts)) as bench:
        for one in await bench.work(finish=False):
            if ordinals([one])[0] in finished:
                await bench.finish(one)
    async with planned(tmp_path, Texts(texts, batch=3)) as bench:
        assert ordinals(await bench.work()) == [n for n in range(14) if n not in finished]
        assert [(span.first, span.last) for span in bench.complete()] == [(0, 9), (10, 13)]
    assert spooled(tmp_path, 0) == texts[:10]
    assert spooled(tmp_path, 10) == texts[10:]


@pytest.mark.anyio
async def test_a_range_read_to_its_end_before_is_complete_only_when_it_was_read_again(tmp_path: Path) -> None:
    texts = [f"t{n}" for n in range(10)]
    async with planned(tmp_path, Texts(texts)) as bench:
        await bench.work(finish=False)
    async with planned(tmp_path, Texts(texts, batch=2)) as bench:
        for _ in range(9):
            await bench.work(most=1)
            assert bench.complete() == []
        await bench.work()
        assert [(span.first, span.last) for span in bench.complete()] == [(0, 9)]


@pytest.mark.anyio
@pytest.mark.parametrize("sealed", [(), (0,), (10,), (20,), (0, 20), (10, 20), (0, 10, 20)])
async def test_sealed_ranges_are_not_read_again_and_open_ones_are(tmp_path: Path, sealed: tuple[int, ...]) -> None:
    texts = ["x"] * 25
    async with planned(tmp_path, Texts(texts)) as bench:
        work = await bench.work(finish=False)
        for one in work:
            if one.span in sealed:
                await bench.finish(one)
        for span in bench.complete():
            await bench.seal(span)
    async with planned(tmp_path, Texts(texts)) as bench:
        assert ordinals(await bench.work()) == [n for n in range(25) if n // 10 * 10 not in sealed]
        assert bench.plan.rows_total == 25
    async with planned(tmp_path, Texts([*texts, "new", "new"])) as bench:
        again = ordinals(await bench.work())
        assert again == [25, 26]


@pytest.mark.anyio
@pytest.mark.parametrize("head", range(1, 10))
async def test_after_a_short_head_the_rest_of_its_range_comes_first(tmp_path: Path, head: int) -> None:
    texts = ["x"] * 15
    async with planned(tmp_path, Texts(texts), rules(limit=head)) as bench:
        await bench.work()
        await bench.journal.flush()
        (span,) = spans_in(tmp_path)
        rest = Span(first=head, last=9, start=encode_position(Position(ordinal=head, offset=head)))
        await bench.seal(span, last=head - 1, rest=rest)
    async with planned(tmp_path, Texts(texts)) as bench:
        assert ordinals(await bench.work()) == list(range(head, 15))
        assert [(span.first, span.last) for span in bench.complete()] == [(head, 9), (10, 14)]


@pytest.mark.anyio
@pytest.mark.parametrize("rows", [0, 3, 10, 13])
async def test_an_input_that_grew_goes_on_where_it_ended(tmp_path: Path, rows: int) -> None:
    async with planned(tmp_path, Texts(["x"] * rows)) as bench:
        await bench.work()
        for span in bench.complete():
            await bench.seal(span)
    async with planned(tmp_path, Texts(["x"] * 25)) as bench:
        assert ordinals(await bench.work()) == list(range(rows, 25))


@pytest.mark.anyio
async def test_an_input_that_grew_while_its_last_range_was_open_goes_on_behind_it(tmp_path: Path) -> None:
    async with planned(tmp_path, Texts(["x"] * 13)) as bench:
        await bench.work(finish=False)
    async with planned(tmp_path, Texts(["x"] * 25)) as bench:
        assert ordinals(await bench.work()) == list(range(25))
        assert [(span.first, span.last) for span in bench.complete()] == [(0, 9), (10, 12), (13, 19), (20, 24)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda texts: texts[:5], 0),
        (lambda texts: texts[:12], 10),
        (lambda texts: texts[1:], 0),
        (lambda texts: ["new", *texts], 0),
        (lambda texts: [*texts[:3], "new", *texts[4:]], 0),
        (lambda texts: [*texts[:17], "new", *texts[18:]], 10),
        (lambda texts: [*texts[:20], "new", *texts[21:]], 20),
        (lambda texts: texts[::-1], 0),
        (lambda texts: [], 0),
    ],
    ids=["shorter", "a little shorter", "moved up", "moved down", "first", "second", "third", "reversed", "empty"],
)
async def test_an_input_that_changed_is_refused_by_its_first_range_that_differs(
    tmp_path: Path, change: Callable[[list[str]], list[str]], first: int
) -> None:
    texts = [f"t{n}" for n in range(25)]
    async with planned(tmp_path, Texts(texts)) as bench:
        work = await bench.work(finish=False)
        for one in work[:10]:
            await bench.finish(one)
        for span in bench.complete():
            await bench.seal(span)
        with bench.journal.reader() as reader:
            same: dict[str, Any] = {"values": frozenset({"text"}), "carried": ("text",)}
            check_input(Texts(texts, batch=3), reader, **same)
            check_input(Texts([*texts, "new"], batch=7), reader, **same)
            with pytest.raises(InputChangedError, match=rf"rows {first} to "):
                check_input(Texts(change(texts)), reader, **same)


@pytest.mark.anyio
@pytest.mark.parametrize("texts", [["new"] * 14, [f"t{n}" for n in range(5)]], ids=["other rows", "fewer rows"])
async def test_an_open_range_whose_rows_changed_unnoticed_is_refused_when_it_is_read_again(
    tmp_path: Path, texts: list[str]
) -> None:
    async with planned(tmp_path, Texts([f"t{n}" for n in range(14)])) as bench:
        await bench.work(finish=False)
    async with planned(tmp_path, Texts(texts)) as bench:
        with pytest.raises(InputChangedError, match="--fresh"):
            await bench.work()
        assert await bench.plan.next() is None
        assert bench.complete() == []


@pytest.mark.anyio
async def test_nobody_reads_on_behind_a_batch_that_failed(tmp_path: Path) -> None:
    source = Texts(["x"] * 30, batch=5)
    source.fails_at = 12
    async with planned(tmp_path, source) as bench:
        with pytest.raises(StorageError):
            await bench.work()
        reads = source.reads
        assert await bench.plan.next() is None
        assert source.reads == reads
        assert [span.first for span in bench.complete()] == [0]
    async with planned(tmp_path, source) as bench:
        assert ordinals(await bench.work()) == list(range(10, 30))


@pytest.mark.anyio
@pytest.mark.parametrize("turns", range(6))
async def test_who_no_longer_waits_for_work_takes_none_from_the_others(tmp_path: Path, turns: int) -> None:
    taken: list[Work] = []
    async with planned(tmp_path, Texts(["x"] * 30, batch=5)) as bench:

        async def take_one() -> None:
            work = await bench.plan.next()
            assert work is not None
            taken.append(work)

        async with anyio.create_task_group() as group:
            group.start_soon(take_one)
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert ordinals([*taken, *await bench.work(finish=False)]) == list(range(30))


@pytest.mark.anyio
async def test_reading_waits_while_the_window_is_full_and_goes_on_when_a_range_is_sealed(tmp_path: Path) -> None:
    source = Texts(["x"] * 60, batch=5)
    async with planned(tmp_path, source, rules(window_bytes=1)) as bench:
        first = await bench.work(most=10, finish=False)
        with anyio.move_on_after(0.05) as scope:
            await bench.plan.next()
        assert scope.cancelled_caught
        assert bench.plan.waits_for == 0
        assert source.reads == 2
        for one in first:
            await bench.finish(one)
        (span,) = bench.complete()
        await bench.seal(span)
        second = await bench.work(most=10)
        assert ordinals(second) == list(range(10, 20))
        with anyio.move_on_after(0.05) as scope:
            await bench.plan.next()
        assert scope.cancelled_caught, "what is complete is about to be sealed, and is waited for"
        assert bench.plan.waits_for == 10


@pytest.mark.anyio
async def test_a_full_window_does_not_wait_for_a_sealer_that_waits_for_rows(tmp_path: Path) -> None:
    source = Texts(["x"] * 40, batch=5)
    seen: list[int] = []
    with anyio.fail_after(10):
        async with planned(tmp_path, source, rules(window_bytes=1)) as bench, anyio.create_task_group() as workers:

            async def work() -> None:
                while (one := bench.plan.next_ready() or await bench.plan.next()) is not None:
                    await bench.finish(one)
                    seen.extend(ordinals([one]))

            for _ in range(4):
                workers.start_soon(work)
    assert sorted(seen) == list(range(40))


@pytest.mark.anyio
async def test_what_is_ready_is_handed_out_at_once_and_in_its_turn(tmp_path: Path) -> None:
    source = Texts(["x"] * 10, batch=5)
    async with planned(tmp_path, source) as bench:
        assert bench.plan.next_ready() is None
        for first in (0, 5):
            begun = await bench.plan.next()
            assert begun is not None
            at_once = [work for _ in range(4) if (work := bench.plan.next_ready()) is not None]
            assert ordinals([begun, *at_once]) == list(range(first, first + 5))
            assert bench.plan.next_ready() is None
        assert await bench.plan.next() is None


@pytest.mark.anyio
@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("window", [0, 1, 2000, HUGE])
async def test_no_window_is_too_small_for_any_number_of_workers(tmp_path: Path, workers: int, window: int) -> None:
    source = Texts(["x"] * 57, batch=3)
    given = rules(window_bytes=window, part_rows=5)
    operation = Echo(limits=PackLimits(items=4))
    seen: list[int] = []
    with anyio.fail_after(30):
        async with planned(tmp_path, source, given, operation=operation) as bench, anyio.create_task_group() as crowd:
            left = count(1)

            async def work() -> None:
                while (one := bench.plan.next_ready() or await bench.plan.next()) is not None:
                    await bench.finish(one)
                    seen.extend(ordinals([one]))
                if next(left) == workers:
                    await bench.plan.close()

            async def seal() -> None:
                async for span in bench.completed:
                    await bench.seal(span)

            crowd.start_soon(seal)
            for _ in range(workers):
                crowd.start_soon(work)
    assert sorted(seen) == list(range(57))
    with JournalReader(layout_in(tmp_path).journal) as reader:
        assert [(part.first, part.last) for part in reader.parts()] == [
            (first, min(first + 4, 56)) for first in range(0, 57, 5)
        ]
        assert reader.spans() == []


@pytest.mark.anyio
async def test_a_disk_that_cannot_take_the_spool_is_said_when_the_plan_reads(tmp_path: Path) -> None:
    async with planned(tmp_path, Texts(["x"])) as bench:
        layout_in(tmp_path).spool.rmdir()
        with pytest.raises(StorageError, match="spool"):
            await bench.plan.next()
