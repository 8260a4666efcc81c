"""The story: a job file over a table of rows, asked of a service, kept in a journal, sealed into Parquet."""

from __future__ import annotations

import base64
import math
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio

from pipeline import operations
from pipeline.clock import Clock, SystemClock
from pipeline.engines.local import Sealing, SealRules, run_local
from pipeline.errors import FolderHeldError, JobChangedError, JobFileError, PipelineError, Problem, StoppedEarlyError
from pipeline.job import change
from pipeline.job.load import check_columns
from pipeline.job.prices import price_for
from pipeline.lanes.online import LaneRules, OnlineLane
from pipeline.lanes.stop import Stop
from pipeline.log import Event, EventLog, Level, Listener
from pipeline.pace.retry import RetryRules
from pipeline.plan import Plan, PlanRules, check_input, columns_read
from pipeline.service.pool import Pool, open_pool
from pipeline.sources import open_source
from pipeline.store.files import refuse_link
from pipeline.store.folder import Layout, hold_folder, remove_strays
from pipeline.store.ids import IdTable
from pipeline.store.journal import Journal, JournalReader, Span
from pipeline.store.summary import DeploymentUse, RowCounts, Summary, TokenCounts, write_summary

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job
    from pipeline.operations.base import Operation
    from pipeline.service.wire import Transport
    from pipeline.sources.base import Source

SUMMARY_EVERY_S = 1.0


class Interrupted(PipelineError):  # noqa: N818 - a person's wish, not an error
    """SIGINT or SIGTERM asked the run to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What an invocation adds to the job. `limit`: only rows with ordinals below it. `fresh`: move an old run aside."""

    limit: int | None = None
    fresh: bool = False
    signals: bool = False


async def run_job(
    job: Job,
    *,
    options: RunOptions = RunOptions(),
    clock: Clock | None = None,
    dice: Callable[[], float] = random.random,
    transport: Transport | None = None,
    listener: Listener | None = None,
    watcher: Callable[[Summary], None] | None = None,
) -> Summary:
    """Run a job, or continue it, and return what it came to.

    `listener` is handed every event, `watcher` the summary each second. `transport` is an httpx transport to use
    instead of the network.

    Raises JobFileError, JobChangedError, InputChangedError, SourceError, FolderHeldError and StorageError when the
    run cannot begin. What ends it later is in the summary: `state`, `reason` and `exit_code`.
    """
    clock = clock or SystemClock()
    layout = Layout(job.output.path)
    previous = _previous(layout)
    fresh = options.fresh or (previous is not None and _is_new_start(job, previous))
    known = None if fresh else previous
    source = await anyio.to_thread.run_sync(lambda: _open_source(job, known))
    operation = operations.get(job.operation).factory(job)
    carried = _carried(job, source)
    _check_columns(job, source, operation)
    if known is not None:
        _check_job(job, known)
    rules = PlanRules(
        carried=carried,
        id_column=job.input.id,
        part_rows=job.output.part_rows,
        part_bytes=job.output.part_bytes,
        limit=options.limit,
        window_bytes=job.run.window_bytes,
    )
    with hold_folder(layout.root, fresh=fresh, now=datetime.fromtimestamp(clock.wall(), UTC)):
        if _previous(layout) != known:
            raise FolderHeldError(f"another run has just used {layout.root}; run the same command again")
        log = EventLog(path=layout.log, listener=listener, wall=clock.wall)
        run = _Run(job=job, layout=layout, source=source, operation=operation, rules=rules, log=log, clock=clock)
        try:
            return await run.go(options=options, known=known, dice=dice, transport=transport, watcher=watcher)
        finally:
            log.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What the journal says of an earlier invocation."""

    semantic: dict[str, Any]
    schema: pa.Schema | None
    files: list[list[Any]]
    facts: dict[str, int]
    variants: dict[str, Any]
    ok: int
    begun: bool


@dataclass(slots=True, kw_only=True)
class _Run:
    """One invocation, under the folder's lock."""

    job: Job
    layout: Layout
    source: Source
    operation: Operation
    rules: PlanRules
    log: EventLog
    clock: Clock
    stop: Stop = field(default_factory=Stop)
    total: int | None = None

    async def go(
        self,
        *,
        options: RunOptions,
        known: _Known | None,
        dice: Callable[[], float],
        transport: Transport | None,
        watcher: Callable[[Summary], None] | None,
    ) -> Summary:
        job, layout, clock = self.job, self.layout, self.clock
        began = clock.now()
        variant = change.variant(job)
        variants = {**(known.variants if known else {}), variant: job.request}
        facts = dict(known.facts) if known else {}
        async with (
            _obeyed_signals(self.stop, self.log, options=options),
            _journal(layout) as journal,
            open_pool(job, clock=clock, random=dice, transport=transport) as pool,
        ):
            await self._begin(journal, known, variants)
            before = journal.totals.ok + journal.totals.failed
            with ExitStack() as stack:
                ids = stack.enter_context(IdTable(layout.ids)) if job.input.id else None
                send, receive = anyio.create_memory_object_stream[Span](math.inf)
                plan = Plan(
                    source=self.source,
                    operation=self.operation,
                    journal=journal,
                    layout=layout,
                    ids=ids,
                    rules=self.rules,
                    completed=send,
                )
                lane = OnlineLane(
                    plan=plan,
                    pool=pool,
                    journal=journal,
                    operation=self.operation,
                    facts=facts,
                    rules=LaneRules(
                        retry=RetryRules(max_attempts=job.run.max_attempts, max_pause_s=job.run.max_pause_s),
                        raw=_raw(job),
                        variant=variant,
                    ),
                    stop=self.stop,
                    log=self.log,
                    clock=clock,
                    random=dice,
                )

                sealing = Sealing(
                    layout=layout,
                    journal=journal,
                    rules=SealRules(
                        carried=_carried_schema(self.source, self.rules.carried),
                        compression=job.output.compression,
                        fingerprint=change.fingerprint(job),
                        variants=variants,
                    ),
                    schema=lane.schema,
                    completed=receive,
                    sealed=plan.sealed,
                    log=self.log,
                    clock=clock,
                )

                def now(state: str = "running") -> Summary:
                    return self._summary(state, journal, plan, lane, pool, seconds=clock.now() - began, before=before)

                async with anyio.create_task_group() as watching:
                    watching.start_soon(self._keep_summary, now, watcher)
                    if job.run.deadline_s is not None:
                        watching.start_soon(self._end_at_deadline, job.run.deadline_s)
                    await run_local(
                        lane=lane,
                        plan=plan,
                        sealing=sealing,
                        workers=job.run.workers,
                        stop=self.stop,
                        grace_s=job.run.grace_s,
                        clock=clock,
                    )
                    watching.cancel_scope.cancel()
                self.total = plan.rows_total if plan.rows_total is not None else self.total
                await self._finish(sealing)
                summary = self._end(now)
        write_summary(layout.summary, summary)
        if watcher is not None:
            watcher(summary)
        self.log.emit(
            Event.RUN_ENDED,
            Level.INFO if summary.exit_code == 0 else Level.WARNING,
            state=summary.state,
            reason=summary.reason,
            exit_code=summary.exit_code,
            rows=asdict(summary.rows),
        )
        if self.stop.cause is not None and not isinstance(self.stop.cause, PipelineError):
            raise self.stop.cause
        return summary

    async def _begin(self, journal: Journal, known: _Known | None, variants: dict[str, Any]) -> None:
        """Note what the run is, and make sure that it is still the same input."""
        files = [[str(file.path), file.size, file.mtime_ns, file.inode] for file in self.source.files]
        with journal.reader() as reader:
            for name in remove_strays(self.layout, reader):
                self.log.emit(Event.STRAY_PART_REMOVED, part=name)
            if known is not None and known.begun and known.files != files:
                values = columns_read(self.operation, self.rules)
                await anyio.to_thread.run_sync(
                    lambda: check_input(self.source, reader, values=values, carried=self.rules.carried)
                )
                self.log.emit(Event.INPUT_GREW)
        await journal.note("job", change.semantic(self.job))
        await journal.note("schema", base64.b64encode(self.source.schema.serialize().to_pybytes()).decode())
        await journal.note("files", files)
        await journal.note("variants", variants)
        self.log.emit(
            Event.RUN_RESUMED if known is not None else Event.RUN_STARTED,
            job=self.job.name,
            operation=self.job.operation,
            done=journal.totals.ok + journal.totals.failed,
            workers=self.job.run.workers,
        )

    async def _finish(self, sealing: Sealing) -> None:
        """Leave what is finished readable, unless the disk itself is what failed."""
        try:
            await sealing.finish(
                self.source, values=columns_read(self.operation, self.rules), carried=self.rules.carried
            )
        except PipelineError as error:
            self.stop.request(error)

    def _end(self, now: Callable[[str], Summary]) -> Summary:
        """The last summary: why the run ended, and with which exit code."""
        cause = self.stop.cause
        match cause:
            case None:
                # The limit may lie beyond the input's end.
                complete = self.rules.limit is None or self.total is not None
                summary = now("complete" if complete else "stopped")
                reason = None if complete else f"--limit {self.rules.limit} reached"
                if summary.rows.not_in_parts:
                    reason = (
                        f"{summary.rows.not_in_parts} rows wait in the journal: the size of their vectors is not known "
                        "until a row is ok, or until request.dimensions says it"
                    )
                code = 1 if _too_many_failed(self.job, summary) else 0
            case Interrupted(number=number):
                summary, reason, code = now("interrupted"), str(cause), 128 + number
            case PipelineError():
                state = "refused" if cause.exit_code == 3 else "stopped"  # noqa: PLR2004 - RefusedError's
                summary, reason, code = now(state), str(cause), cause.exit_code
            case _:
                summary, reason, code = now("stopped"), f"a defect of ours: {type(cause).__name__}", 70
        return replace(summary, reason=reason, exit_code=code, eta_seconds=None)

    def _summary(
        self, state: str, journal: Journal, plan: Plan, lane: OnlineLane, pool: Pool, *, seconds: float, before: int
    ) -> Summary:
        totals = journal.totals
        done = totals.ok + totals.failed
        total = plan.rows_total if plan.rows_total is not None else self.total
        rate = (done - before) / seconds if seconds > 0 else 0.0
        asides = {aside.deployment: f"{aside.kind.value}: {aside.error.message}" for aside in pool.asides}
        return Summary(
            state=state,
            rows=RowCounts(
                total=total,
                ok=totals.ok,
                failed=totals.failed,
                pending=None if total is None else total - done,
                not_in_parts=done - totals.sealed_ok - totals.sealed_failed,
            ),
            requests=totals.requests,
            attempts=totals.attempts,
            throttled=totals.throttled,
            calls_on_refusals=totals.calls_on_refusals,
            tokens=TokenCounts(
                input=totals.input_tokens,
                output=totals.output_tokens,
                total=totals.total_tokens,
                cached=totals.cached_tokens,
            ),
            cost_usd=_cost(self.job, totals.input_tokens, totals.output_tokens),
            seconds=round(seconds, 3),
            rows_per_second=round(rate, 1),
            eta_seconds=None if total is None or rate <= 0 else round((total - done) / rate, 1),
            in_flight=lane.in_flight,
            waits_for=plan.waits_for,
            deployments=tuple(
                DeploymentUse(**asdict(one.report()), set_aside=asides.get(one.name)) for one in pool.deployments
            ),
            output=str(self.layout.root),
            job=self.job.name,
            job_file=str(self.job.file.absolute()),
        )

    async def _keep_summary(self, now: Callable[[], Summary], watcher: Callable[[Summary], None] | None) -> None:
        """Replace summary.json each second; a disk that refuses it stops the run."""
        while True:
            summary = now()
            try:
                write_summary(self.layout.summary, summary)
            except PipelineError as error:
                self.stop.request(error)
            if watcher is not None:
                watcher(summary)
            await self.clock.sleep(SUMMARY_EVERY_S)

    async def _end_at_deadline(self, deadline_s: float) -> None:
        await self.clock.sleep(deadline_s)
        self.stop.request(
            StoppedEarlyError(f"run.deadline of {deadline_s:g} s passed; run the same command again to continue")
        )


@asynccontextmanager
async def _journal(layout: Layout) -> AsyncIterator[Journal]:
    journal = Journal(layout.journal)
    try:
        yield journal
    finally:
        with anyio.CancelScope(shield=True):
            await journal.close()


@asynccontextmanager
async def _obeyed_signals(stop: Stop, log: EventLog, *, options: RunOptions) -> AsyncIterator[None]:
    """Obey signals for as long as the block goes on, where the options say so."""
    if not options.signals:
        yield
        return
    async with anyio.create_task_group() as group:
        await group.start(_obey_signals, stop, log)
        yield
        group.cancel_scope.cancel()


async def _obey_signals(stop: Stop, log: EventLog, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """The first SIGINT or SIGTERM ends the run cleanly; the second leaves at once, which is as safe as kill -9."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if stop.cause is not None:
                os._exit(128 + number)
            log.emit(Event.STOPPING, Level.WARNING, signal=number.name)
            stop.request(Interrupted(number))


def _previous(layout: Layout) -> _Known | None:
    """What an earlier invocation left; None where there was none."""
    refuse_link(layout.private)
    try:
        with JournalReader(layout.journal) as reader:
            schema = reader.noted("schema")
            return _Known(
                semantic=reader.noted("job") or {},
                schema=_read_schema(schema) if schema else None,
                files=reader.noted("files") or [],
                facts=reader.noted("facts") or {},
                variants=reader.noted("variants") or {},
                ok=reader.totals().ok,
                begun=bool(reader.parts() or reader.spans()),
            )
    except FileNotFoundError:
        return None


def _read_schema(text: str) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _is_new_start(job: Job, known: _Known) -> bool:
    """A changed job is simply a new start while no row is ok."""
    return known.ok == 0 and bool(known.semantic) and known.semantic != change.semantic(job)


def _check_job(job: Job, known: _Known) -> None:
    """Raise JobChangedError, field by field, when what is asked of the rows changed."""
    new = change.semantic(job)
    if not known.semantic or known.semantic == new:
        return
    fields = "\n  ".join(change.difference(known.semantic, new))
    raise JobChangedError(
        f"{job.file}: the job changed since this run began, and {known.ok} rows are answered already:\n  {fields}\n"
        "put the old wording back, name another output.path, or start anew with --fresh "
        "(the old results are moved aside, not deleted)"
    )


def _open_source(job: Job, known: _Known | None) -> Source:
    return open_source(
        job.input.path,
        format=job.input.format,
        columns=job.input.columns,
        kept_schema=None if known is None else known.schema,
    )


def result_columns(operation: Operation) -> tuple[str, ...]:
    """The names of an operation's result columns, whether or not their types are known yet."""
    try:
        return tuple(operation.schema().names)
    except LookupError:
        return ()


def _check_columns(job: Job, source: Source, operation: Operation) -> None:
    problems: tuple[Problem, ...] = check_columns(job, source.schema.names, result_columns=result_columns(operation))
    if problems:
        raise JobFileError(problems)


def _carried(job: Job, source: Source) -> tuple[str, ...]:
    match job.output.columns:
        case "none":
            return ()
        case "all":
            return tuple(source.schema.names)
        case names:
            return tuple(names)


def _carried_schema(source: Source, names: tuple[str, ...]) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    return pa.schema([source.schema.field(name) for name in names])


def _raw(job: Job) -> str:
    if job.output.raw != "auto":
        return job.output.raw
    return "all" if job.operation in {"chat", "responses"} else "failed"


def _cost(job: Job, input_tokens: int, output_tokens: int) -> float | None:
    """Dollars, by the dearest of the deployments' prices; None where one is unknown."""
    prices = [deployment.price or price_for(deployment.model) for deployment in job.deployments]
    costs = [
        None
        if price is None or price.input is None or (output_tokens and price.output is None)
        else (input_tokens * price.input + output_tokens * (price.output or 0)) / 1_000_000
        for price in prices
    ]
    return None if None in costs else max(cost for cost in costs if cost is not None)


def _too_many_failed(job: Job, summary: Summary) -> bool:
    failed, done = summary.rows.failed, summary.rows.ok + summary.rows.failed
    match job.run.fail_on:
        case "any":
            return failed > 0
        case "never":
            return False
        case share:
            return done > 0 and failed / done >= float(share)
