"""The local engine: one process, one event loop; workers send, one sealer turns finished ranges into parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from pipeline.errors import DiskFullError
from pipeline.log import Event, EventLog
from pipeline.memory import give_back
from pipeline.plan.plan import Plan
from pipeline.plan.ranges import range_digest
from pipeline.store.folder import Layout, Sealer, export_attempts
from pipeline.store.journal import Again, Journal, Part, Span
from pipeline.store.manifest import write_manifest
from pipeline.store.parts import part_schema

if TYPE_CHECKING:
    import pyarrow as pa
    from anyio.abc import TaskGroup
    from anyio.streams.memory import MemoryObjectReceiveStream

    from pipeline.clock import Clock
    from pipeline.lanes.base import Lane
    from pipeline.lanes.control import Control
    from pipeline.lanes.pulse import Pulse
    from pipeline.lanes.stop import Stop
    from pipeline.sources.base import Source

MANIFEST_EVERY_S = 1.0
LAST_PARTS_S = 2.0
"""Seconds in which parts may still be begun once a stopped run's calls have ended."""
ATTEMPTS_AT_ONCE = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SealRules:
    """What parts are made of."""

    carried: pa.Schema
    compression: str


class Sealing:
    """Turns ranges into parts, one at a time, beside the workers."""

    def __init__(
        self,
        *,
        layout: Layout,
        journal: Journal,
        rules: SealRules,
        schema: Callable[[], pa.Schema],
        completed: MemoryObjectReceiveStream[Span],
        sealed: Callable[[int], None],
        log: EventLog,
        clock: Clock,
        pulse: Pulse,
    ) -> None:
        """Wire it up.

        `completed` brings ranges whose rows are all committed; `sealed` is told of each that became a part.
        `schema` gives the operation's columns; it raises LookupError while a fact of the run is unknown.
        """
        self._layout = layout
        self._journal = journal
        self._rules = rules
        self._schema = schema
        self._sealed = sealed
        self._log = log
        self._clock = clock
        self._completed = completed
        self._pulse = pulse
        self._waiting: list[Span] = []
        self._manifest_due = 0.0
        self._until: float | None = None

    async def run(self) -> None:
        """Seal what comes, until no more can come. Raises StorageError, DamageError."""
        with self._completed:
            async for span in self._completed:
                self._waiting.append(span)
                await self._seal_waiting()

    def hurry(self) -> None:
        """Begin no part any more after `LAST_PARTS_S` seconds; what is left stays in the journal for the next run."""
        if not self._is_halted:
            self._until = self._clock.now() + LAST_PARTS_S

    def halt(self) -> None:
        """Write nothing more: what room is left is for answers. What is finished stays in the journal."""
        self._until = float("-inf")

    @property
    def _is_halted(self) -> bool:
        return self._until == float("-inf")

    @property
    def _may_begin(self) -> bool:
        return self._until is None or self._clock.now() < self._until

    async def finish(self, source: Source, *, values: frozenset[str] | None, carried: tuple[str, ...]) -> None:
        """Seal what waited for a fact, and the finished head of the lowest open range; export the rest."""
        await self._seal_waiting()
        await self._journal.flush()
        with self._journal.reader() as reader:
            spans = reader.spans()
        if spans and not self._waiting and self._may_begin:
            await self._seal_head(spans[0], source, values=values, carried=carried)
        if not self._is_halted:
            await export_attempts(self._layout, self._journal, at_least=1)
            self._write_manifest()

    async def _seal_waiting(self) -> None:
        while self._waiting and self._may_begin and (sealer := self._sealer()) is not None:
            span = self._waiting.pop(0)
            await self._seal(sealer, span, last=span.last, finish=span.finish or "", digest=span.digest or "")

    async def _seal_head(
        self, span: Span, source: Source, *, values: frozenset[str] | None, carried: tuple[str, ...]
    ) -> None:
        """Seal the finished rows at the head of an open range; what remains stays a range of its own."""
        sealer = self._sealer()
        if sealer is None:
            return
        readable_to = await anyio.to_thread.run_sync(sealer.readable_to, span)
        with self._journal.reader() as reader:
            done = reader.done(span.first, min(readable_to - 1, span.last))
        length = done.find(0)
        end = span.first + (len(done) if length < 0 else length)
        if end <= span.first or not await anyio.to_thread.run_sync(
            lambda: _is_unchanged(source, span, values=values, carried=carried)
        ):
            return
        digest, finish = await anyio.to_thread.run_sync(
            lambda: range_digest(source, span.start, end, values=values, carried=carried)
        )
        rest = None
        if end <= span.last:
            read_to = span.first + span.read
            rest_digest, _ = await anyio.to_thread.run_sync(
                lambda: range_digest(source, finish, read_to, values=values, carried=carried)
            )
            rest = Span(
                first=end, last=span.last, start=finish, read=read_to - end, digest=rest_digest, finish=span.finish
            )
        await self._seal(sealer, span, last=end - 1, finish=finish, digest=digest, rest=rest)

    async def _seal(
        self, sealer: Sealer, span: Span, *, last: int, finish: str, digest: str, rest: Span | None = None
    ) -> None:
        if isinstance(span, Again):
            part = await self._renew(sealer, span)
        else:
            part = await anyio.to_thread.run_sync(lambda: sealer.part_of(span, last=last, finish=finish, digest=digest))
            await self._journal.seal(part, rest=rest)
            sealer.forget_spool(span.first)
        await anyio.to_thread.run_sync(give_back)
        self._sealed(span.first)
        self._pulse.beat()
        event = Event.PART_RENEWED if isinstance(span, Again) else Event.PART_SEALED
        self._log.emit(event, part=part.name, ok=part.ok, failed=part.failed, bytes=part.bytes)
        await export_attempts(self._layout, self._journal, at_least=ATTEMPTS_AT_ONCE)
        if self._clock.now() >= self._manifest_due:
            self._write_manifest()
            self._manifest_due = self._clock.now() + MANIFEST_EVERY_S

    async def _renew(self, sealer: Sealer, span: Again) -> Part:
        """Put a new part in the place of one whose rows were asked again; the next run goes on where this is cut."""
        part: Part = await anyio.to_thread.run_sync(sealer.renewed_part, span)
        await self._journal.rewrite(part)
        await anyio.to_thread.run_sync(sealer.publish, part)
        await self._journal.rewritten(part)
        return part

    def _sealer(self) -> Sealer | None:
        """None while the columns' types are not known."""
        try:
            schema = part_schema(self._rules.carried, self._schema())
        except LookupError:
            return None
        return Sealer(
            layout=self._layout,
            schema=schema,
            carries=len(self._rules.carried) > 0,
            compression=self._rules.compression,
        )

    def _write_manifest(self) -> None:
        sealer = self._sealer()
        with self._journal.reader() as reader:
            write_manifest(self._layout.manifest, reader, columns=[] if sealer is None else sealer.schema.names)


def _is_unchanged(source: Source, span: Span, *, values: frozenset[str] | None, carried: tuple[str, ...]) -> bool:
    """Whether the input still holds what was read of a range: only then do its answers belong to its rows."""
    read, _ = range_digest(source, span.start, span.first + span.read, values=values, carried=carried)
    return read == span.digest


class Workers:
    """The workers of a lane, whose number may be raised while they work; where it falls, they leave by themselves."""

    def __init__(self, lane: Lane, group: TaskGroup) -> None:
        self._lane = lane
        self._group = group
        self._hired = 0
        self._at_work = 0
        self._left = anyio.Event()

    def reach(self, workers: int) -> None:
        """Have at least so many at work."""
        for _ in range(0 if self._left.is_set() else workers - self._at_work):
            self._at_work += 1
            self._group.start_soon(self._work, name=f"worker {self._hired}")
            self._hired += 1

    async def left(self) -> None:
        """Wait until the last one has left; none comes after that."""
        await self._left.wait()

    async def _work(self) -> None:
        try:
            await self._lane.work()
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._left.set()


async def run_local(
    *,
    lane: Lane,
    plan: Plan,
    sealing: Sealing,
    workers: Callable[[], int],
    control: Control,
    stop: Stop,
    grace_s: float,
    clock: Clock,
) -> None:
    """Let workers send until the plan is empty or the run stops; calls in flight then have `grace_s` seconds to end.

    `workers` is how many there are to be; it is asked again when the control changes.
    """
    grace = anyio.CancelScope()
    async with anyio.create_task_group() as background:
        background.start_soon(_seal_all, sealing, stop, name="sealer")
        background.start_soon(_abandon_after, stop, sealing, grace, grace_s, clock)
        try:
            async with anyio.create_task_group() as group:
                hired = Workers(lane, group)
                with control.followed(lambda: hired.reach(workers())):
                    await hired.left()
        finally:
            grace.cancel()
            if stop.presses.is_set():
                sealing.hurry()
            with anyio.CancelScope(shield=True):
                await _close(plan, stop)


async def _seal_all(sealing: Sealing, stop: Stop) -> None:
    try:
        await sealing.run()
    except Exception as error:  # noqa: BLE001 - a failure in the background is a failure of the run, told once
        stop.request(error)


async def _close(plan: Plan, stop: Stop) -> None:
    try:
        await plan.close()
    except Exception as error:  # noqa: BLE001 - a spool that cannot be ended is a failure of the run, told once
        stop.request(error)


async def _abandon_after(stop: Stop, sealing: Sealing, scope: anyio.CancelScope, grace_s: float, clock: Clock) -> None:
    with scope:
        await stop.requested.wait()
        if isinstance(stop.cause, DiskFullError):
            sealing.halt()
        await stop.presses.wait()
        await clock.sleep(grace_s)
        stop.abandon()
