"""The story: a job file over a table of rows, asked of a service, kept in a journal, sealed into Parquet."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from pipeline import operations
from pipeline.clock import Clock, SystemClock, utc
from pipeline.engines.again import Retry, asked_again, begin_again, require_same_columns
from pipeline.engines.canary import is_begun, judge, planned_usd
from pipeline.engines.descriptors import ensure_descriptors
from pipeline.engines.ending import ending_of
from pipeline.engines.lanes import make_lane
from pipeline.engines.local import Sealing, SealRules, run_local
from pipeline.engines.metrics import open_metrics, told
from pipeline.engines.prediction import Prediction, predicted_before
from pipeline.engines.remote import Remote, reachable
from pipeline.engines.signals import obeyed_signals
from pipeline.engines.stall import StallGuard
from pipeline.engines.standing import end_at_deadline, keep_summary, tell_end, tell_summary
from pipeline.engines.tally import Tally
from pipeline.engines.training import Training
from pipeline.engines.watchdog import limit_s
from pipeline.errors import (
    FolderHeldError,
    InputChangedError,
    JobFileError,
    PipelineError,
    Problem,
    StorageError,
)
from pipeline.job import change
from pipeline.job.batch import BATCH_FORMAT
from pipeline.job.load import check_columns
from pipeline.job.places import placed_source_error
from pipeline.job.training import TRAINING
from pipeline.lanes.commit import Commits
from pipeline.lanes.control import Control
from pipeline.lanes.crew import Crew
from pipeline.lanes.findings import Findings
from pipeline.lanes.pulse import Pulse
from pipeline.lanes.spending import Spending, open_spending
from pipeline.lanes.stop import Stop
from pipeline.log import GATHER_S, Event, EventLog, Level, Listener
from pipeline.operations.base import Fetching, result_columns
from pipeline.plan.carrier import Carrier
from pipeline.plan.plan import Plan
from pipeline.plan.ranges import PlanRules, carried_schema, check_input, claim_ids, columns_read, plan_rules
from pipeline.plan.same import Same, open_requests
from pipeline.service.fetch import Fetcher, open_fetcher
from pipeline.service.http_log import HttpLog, HttpLogRules, open_http_log
from pipeline.service.pool import Pool, open_pool
from pipeline.sources import SourceError, open_source
from pipeline.store.answered import Originals
from pipeline.store.asked import AskedTable
from pipeline.store.ballast import Ballast
from pipeline.store.batch_lines import ERRORS, OUTPUT, write_batch_lines
from pipeline.store.database import LARGE_PAGE_BYTES, PAGE_BYTES
from pipeline.store.disk import file_system, free_bytes, is_network, needed_bytes
from pipeline.store.earlier import Earlier, earlier, note_run
from pipeline.store.files import storage
from pipeline.store.folder import Layout, clear_leftovers, columns_of_parts, hold_folder, remove_strays
from pipeline.store.generations import finish_rewrites
from pipeline.store.handover import TAKES_OVER, end_handover, hand_over, hold_job
from pipeline.store.history import begin_invocation, end_invocation
from pipeline.store.ids import IdTable, rebuilt_ids, remove_table
from pipeline.store.journal import Journal, JournalReader, Span
from pipeline.store.predecessors import Predecessors
from pipeline.store.repair import Repaired, end_repair, refuse_damage, repair_folder
from pipeline.store.summary import Summary

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.lanes.base import Lane
    from pipeline.operations.base import Operation
    from pipeline.service.wire import Transport
    from pipeline.sources.base import Source
    from pipeline.telemetry import Telemetry

_LEAST_S = 0.001
_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What an invocation adds to the job. `limit`: only rows with ordinals below it. `fresh`: move an old run aside.

    `retry`: send failed rows again, and no others.
    `repair`: verify the folder first and rebuild what is damaged from what is whole.
    `signals`: the process is the run's own: SIGINT, SIGTERM and SIGHUP end it cleanly, and one that is stuck is ended;
    only in the main thread. `http_log`: what is written of requests
    and replies, to a file of its own and to the listener. `wait`: stay until what the service does on its own has
    ended; `cancel`: have a training that is under way ended. `simulated`: the service is our simulator, which counts
    tokens in its own way.
    """

    limit: int | None = None
    retry: Retry | None = None
    fresh: bool = False
    repair: bool = False
    wait: bool = True
    cancel: bool = False
    simulated: bool = False
    signals: bool = False
    http_log: HttpLogRules | None = None


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
    instead of the network; `dice` gives numbers from 0 to 1.

    Raises JobFileError, JobChangedError, InputChangedError, SourceError, FolderHeldError and StorageError when the
    run cannot begin. What ends it later is in the summary: `state`, `reason` and `exit_code`.
    """
    _check_options(job, options)
    ensure_descriptors(job)
    clock = clock or SystemClock()
    now = datetime.fromtimestamp(clock.wall(), UTC)
    with (
        nullcontext() if job.input.incremental is None else hold_job(job.output.path, now=now),
        open_metrics(job, clock=clock, listener=listener) as metrics,
        told(job, clock=clock, listener=listener) as telemetry,
    ):
        summary = await _run_stages(
            job,
            options=options,
            clock=clock,
            now=now,
            dice=dice,
            transport=transport,
            listener=listener if metrics is None else _both(metrics.hear, listener),
            watcher=watcher if metrics is None else _both(metrics.see, watcher),
            telemetry=telemetry,
        )
        if metrics is not None:
            metrics.end(summary)
    return summary


def _both(one: Callable[[_Told], None], other: Callable[[_Told], None] | None) -> Callable[[_Told], None]:
    """Who tells two of the same."""
    if other is None:
        return one

    def tell(what: _Told) -> None:
        one(what)
        other(what)

    return tell


async def _run_stages(
    job: Job,
    *,
    options: RunOptions,
    clock: Clock,
    now: datetime,
    dice: Callable[[], float],
    transport: Transport | None,
    listener: Listener | None,
    watcher: Callable[[Summary], None] | None,
    telemetry: Telemetry | None,
) -> Summary:
    """Do what `run_job` says, which holds the job where it must."""
    layout = Layout(job.output.path)
    repaired = await _repaired(job, layout, now, options)
    # A journal that is damaged must not stand in the way of a fresh start.
    before = None if options.fresh else earlier(layout)
    # While nothing was paid for, a changed job is simply a new start.
    fresh = options.fresh or (before is not None and not before.holds_results and before.is_another_job(job))
    if options.retry is not None:
        fresh = False
        if before is None:
            said = f"{layout.root} holds no run whose failed rows could be sent again: begin with pipeline run"
            raise JobFileError((Problem(file=str(job.file), line=None, column=None, path="", message=said),))
    if before is not None and not fresh:
        before.check(job)
        before = await anyio.to_thread.run_sync(_handed_over, job, layout, before, options, now)
    known = None if fresh else before
    # A retry with a wording of its own was cut: it is ended first, as it was begun.
    cut = options.retry is None and known is not None and known.again not in {None, change.variant(job)}
    ready = await _prepared(job, options, known, again=cut or options.retry is not None)
    with hold_folder(layout.root, fresh=fresh, now=now):
        if earlier(layout) != known:
            raise FolderHeldError(f"another run has just used {layout.root}; run the same command again")
        rows = await _begun_again(layout, options, ready, known, now=now)
        if isinstance(rows, Summary):
            return rows
        known = earlier(layout) if rows else known
        stop, control = Stop(), Control(workers=job.run.workers, leave=job.run.leave, clock=clock)
        async with (
            _open_logs(layout, options, stop=stop, clock=clock, listener=listener) as (log, http_log),
            reachable(Remote(job=job, control=control, stop=stop, log=log), layout, environ=os.environ),
        ):
            if rows:
                log.emit(Event.ROWS_ASKED_AGAIN, rows=rows, variant=change.variant(ready.asked))
            invocation = _Invocation(
                job=job,
                layout=layout,
                options=options,
                clock=clock,
                dice=dice,
                transport=transport,
                watcher=watcher,
                telemetry=telemetry,
                repaired=repaired,
                stop=stop,
                control=control,
                log=log,
                http_log=http_log,
            )
            return await invocation.all_stages(ready, known, fresh=fresh, cut=cut)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    """What a stage reads and asks, found to fit each other. `again`: it sends only rows that are asked again."""

    source: Source
    asked: Job
    operation: Operation
    again: bool


async def _prepared(job: Job, options: RunOptions, known: Earlier | None, *, again: bool = False) -> _Ready:
    """Read what a stage needs. `again`: it sends only rows that are asked again. Raises JobFileError, SourceError.

    Nothing is written: a job that does not fit its input leaves the folder as it is.
    """
    source = await anyio.to_thread.run_sync(lambda: _open_source(job, known))
    asked = asked_again(job, known, options.retry) if again and known is not None else job
    operation = operations.get(asked.operation).factory(asked)
    problems = check_columns(asked, source.schema.names, result_columns=result_columns(operation))
    if problems:
        raise JobFileError(problems)
    return _Ready(source=source, asked=asked, operation=operation, again=again)


async def _begun_again(
    layout: Layout, options: RunOptions, ready: _Ready, known: Earlier | None, *, now: datetime
) -> int | Summary:
    """Open the rows that a retry means; how many, or what to tell where there are none."""
    finish_rewrites(layout)
    if options.retry is None or known is None:
        return 0
    require_same_columns(ready.operation, known, parts=columns_of_parts(layout))
    # A row that is opened and then cannot be read again would be neither failed nor pending to those who look.
    await anyio.to_thread.run_sync(_require_same_input, ready, layout, known)
    begin = partial(begin_again, layout, asked=ready.asked, known=known, retry=options.retry, now=now)
    return await anyio.to_thread.run_sync(begin)


def _require_same_input(ready: _Ready, layout: Layout, known: Earlier) -> None:
    """Raise InputChangedError where the input's rows are not those that were read of it."""
    if not known.begun or known.files == _files_of(ready.source):
        return
    _compare(ready.asked, ready.source, ready.operation, layout)


def _compare(job: Job, source: Source, operation: Operation, layout: Layout) -> None:
    """Read all rows again that were read before. Raises InputChangedError. Blocking."""
    rules = plan_rules(job, source, limit=None)
    with JournalReader(layout.journal) as reader:
        check_input(source, reader, values=columns_read(operation, rules), carried=rules.carried)


def _files_of(source: Source) -> list[list[Any]]:
    """The files of an input as the journal notes them."""
    return [[str(file.path), file.size, file.mtime_ns, file.inode] for file in source.files]


@asynccontextmanager
async def _open_logs(
    layout: Layout, options: RunOptions, *, stop: Stop, clock: Clock, listener: Listener | None
) -> AsyncIterator[tuple[EventLog, HttpLog | None]]:
    """Note that an invocation begins, have its logs, and obey signals, for all of its stages."""
    soon = partial(asyncio.get_running_loop().call_later, GATHER_S)
    log = EventLog(path=layout.log, listener=listener, wall=clock.wall, soon=soon)
    try:
        begin_invocation(layout, at=utc(clock.wall()), version=version("aoai-pipeline"))
        opened = open_http_log(options.http_log, path=layout.http_log, listener=listener, wall=clock.wall, log=log)
        with opened as http_log, obeyed_signals(stop, log) if options.signals else nullcontext():
            yield log, http_log
    finally:
        log.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Invocation:
    """What the stages of an invocation share: a retry that was cut is ended before the run goes on.

    `before_s`: the seconds that the stages before took; None in the first, which says that the run begins.
    """

    job: Job
    layout: Layout
    options: RunOptions
    clock: Clock
    dice: Callable[[], float]
    transport: Transport | None
    watcher: Callable[[Summary], None] | None
    telemetry: Telemetry | None
    repaired: Repaired | None
    stop: Stop
    control: Control
    log: EventLog
    http_log: HttpLog | None
    before_s: float | None = None

    def first(self, rows: int) -> _Invocation:
        """The stage of the canary: no rows but so many first ones, for which one process is enough."""
        limit = rows if self.options.limit is None else min(rows, self.options.limit)
        run = self.job.run.model_copy(update={"processes": 1})
        job = self.job.model_copy(update={"run": run})
        return replace(self, job=job, options=replace(self.options, limit=limit))

    def after(self, seconds: float) -> _Invocation:
        """The stage after one that took so long of the deadline, and found the folder repaired or moved aside.

        It begins with what the run was set to meanwhile.
        """
        deadline_s = self.job.run.deadline_s
        left = None if deadline_s is None else max(deadline_s - seconds, _LEAST_S)
        now = {"deadline_s": left, "workers": self.control.workers, "leave": self.control.leave}
        run = self.job.run.model_copy(update=now)
        job = self.job.model_copy(update={"run": run})
        return replace(self, job=job, repaired=None, before_s=(self.before_s or 0.0) + seconds)

    async def all_stages(self, ready: _Ready, known: Earlier | None, *, fresh: bool, cut: bool) -> Summary:
        """Do one stage after the other. `cut`: the first ends a retry that was cut, which `ready` is for."""
        began, invocation = self.clock.now(), self
        if cut:
            summary = await invocation.go(ready, known, goes_on=_went_well)
            if not _went_well(summary):
                return summary
            known, invocation = earlier(self.layout), invocation.after(self.clock.now() - began)
            began, ready = self.clock.now(), await _prepared(invocation.job, invocation.options, known)
        if not invocation.wants_canary(known, fresh=fresh):
            return await invocation.go(ready, known)
        return await invocation.canary(ready, known, began=began)

    def wants_canary(self, known: Earlier | None, *, fresh: bool) -> bool:
        """Whether the first rows are to be asked before all others."""
        rows = self.job.run.canary
        return not (
            rows is None
            or self.options.retry is not None
            or self.job.operation == TRAINING
            or (known is not None and known.carries)
            or (not fresh and is_begun(self.layout, rows=rows))
        )

    async def canary(self, ready: _Ready, known: Earlier | None, *, began: float) -> Summary:
        """Ask the first rows, judge what came of them, and go on with the rest where nothing speaks against it."""
        rows = self.job.run.canary or 0
        no_more = self.options.limit is not None and self.options.limit <= rows

        def goes_on(summary: Summary) -> bool:
            return _went_well(summary) and summary.state != "complete"

        summary = await self.first(rows).go(ready, known, goes_on=goes_on)
        if not goes_on(summary):
            return summary
        cause = await anyio.to_thread.run_sync(self._judged, rows)
        if cause is not None:
            ending = ending_of(cause)
            summary = replace(summary, state=ending.state, reason=ending.reason, exit_code=ending.exit_code)
        if cause is not None or no_more:
            return self._ended(tell_end(summary, path=self.layout.summary, log=self.log, watcher=self.watcher))
        self.log.emit(Event.CANARY_PASSED, rows=rows)
        known, following = earlier(self.layout), self.after(self.clock.now() - began)
        ready = await _prepared(following.job, following.options, known)
        return await following.go(ready, known)

    def _judged(self, rows: int) -> PipelineError | None:
        """Say why the rest is not sent, None where nothing speaks against it. Blocking."""
        source = _open_source(self.job, earlier(self.layout))
        planned = planned_usd(self.job, source, rows=rows, simulated=self.options.simulated)
        return judge(self.job, self.layout, rows=rows, planned=planned)

    async def go(
        self, ready: _Ready, known: Earlier | None, *, goes_on: Callable[[Summary], bool] = lambda _: False
    ) -> Summary:
        """Do one stage. `goes_on` says by what it came to whether another follows; else that is the run's end."""
        if self.before_s is not None:
            clear_leftovers(self.layout)
            finish_rewrites(self.layout)
        summary = await self._made(ready, goes_on=goes_on).go(known, self.transport)
        return summary if goes_on(summary) else self._ended(summary)

    def _ended(self, summary: Summary) -> Summary:
        """Have the history tell how the invocation ended, and how long all of its stages took."""
        seconds = round(summary.seconds + (self.before_s or 0.0), 3)
        end_invocation(self.layout, replace(summary, seconds=seconds))
        return summary

    def _made(self, ready: _Ready, *, goes_on: Callable[[Summary], bool]) -> _Run | Training:
        """Make what does the job: one that trains a model goes its own way."""
        options, asked = self.options, ready.asked
        if asked.operation == TRAINING:
            return Training(
                job=asked,
                layout=self.layout,
                source=ready.source,
                operation=ready.operation,
                log=self.log,
                http_log=self.http_log,
                clock=self.clock,
                dice=self.dice,
                watcher=self.watcher,
                wait=options.wait,
                cancel=options.cancel,
                stop=self.stop,
            )
        return _Run(
            job=asked,
            noted=self.job,
            layout=self.layout,
            source=ready.source,
            operation=ready.operation,
            rules=plan_rules(asked, ready.source, limit=options.limit, only_again=ready.again),
            log=self.log,
            http_log=self.http_log,
            clock=self.clock,
            dice=self.dice,
            watcher=self.watcher,
            telemetry=self.telemetry,
            leave=os._exit if options.signals else None,
            repaired=self.repaired,
            wait=options.wait,
            simulated=options.simulated,
            begins=self.before_s is None,
            goes_on=goes_on,
            stop=self.stop,
            control=self.control,
        )


def _went_well(summary: Summary) -> bool:
    """Whether a stage did all that it was to do."""
    return summary.exit_code in {0, 1}


def _check_options(job: Job, options: RunOptions) -> None:
    """Refuse what a job cannot do. Raises JobFileError."""
    trains = job.operation == TRAINING
    wrong = None
    if trains and options.limit is not None:
        wrong = f"--limit is not for {TRAINING}, which takes all rows or none: make a smaller input"
    elif trains and options.repair:
        wrong = (
            f"--repair is not for {TRAINING}: a run fetches damaged tables again by itself; where the journal is "
            "damaged, see at the service what became of the training, then begin anew with --fresh"
        )
    elif trains and options.retry is not None:
        wrong = f"retry is not for {TRAINING}: mend the examples, and run the job again"
    elif options.http_log is not None and job.run.processes > 1:
        wrong = "--http-log writes what the run's own process sends: add --set run.processes=1"
    elif options.cancel and not trains:
        wrong = f"--cancel is for {TRAINING}: Ctrl-C stops every other run"
    if wrong is not None:
        raise JobFileError((Problem(file=str(job.file), line=None, column=None, path="", message=wrong),))


@dataclass(slots=True, kw_only=True)
class _Run:
    """One stage of a run, under the folder's lock.

    `noted` is the job that the folder stands for, `job` the one that is asked. `begins`: no stage was before it.
    `goes_on` says by what it came to whether another stage follows.
    """

    job: Job
    noted: Job
    layout: Layout
    source: Source
    operation: Operation
    rules: PlanRules
    log: EventLog
    clock: Clock
    dice: Callable[[], float]
    watcher: Callable[[Summary], None] | None
    telemetry: Telemetry | None
    leave: Callable[[int], object] | None
    wait: bool
    simulated: bool
    begins: bool
    goes_on: Callable[[Summary], bool]
    stop: Stop
    control: Control
    http_log: HttpLog | None
    repaired: Repaired | None
    sealing: Sealing | None = None

    async def go(self, known: Earlier | None, transport: Transport | None) -> Summary:
        """Open everything, let it work, close it, and say what came of it."""
        job, layout, clock = self.job, self.layout, self.clock
        variant = change.variant(job)
        variants = {**(known.variants if known else {}), variant: job.request}
        pulse = Pulse()
        async with (
            self._open_journal() as (journal, ballast),
            self._open_pool("batch" if job.run.lane == "batch" else "online", transport) as pool,
            self._open_pool("batch", transport) if job.run.lane == "auto" else nullcontext() as batch_pool,
            self._open_fetcher() as fetcher,
        ):
            await self._begin(journal, known, variants)
            if known is None or not known.begun:
                # A run that was killed before it had noted a range may have claimed ids of another state of the input.
                with storage("beginning the tables of ids"):
                    remove_table(layout.ids)
                    remove_table(layout.asked)
                    remove_table(layout.requests)
            with (
                IdTable(layout.ids) if job.input.id else nullcontext() as ids,
                self._open_carrier(known) as carrier,
                self._open_same() as (same, originals),
            ):
                completed, to_seal = anyio.create_memory_object_stream[Span](math.inf)
                plan = Plan(
                    source=self.source,
                    operation=self.operation,
                    journal=journal,
                    layout=layout,
                    ids=ids,
                    rules=self.rules,
                    carrier=carrier,
                    same=same,
                    completed=completed,
                )
                spending = await open_spending(job, operation=self.operation, journal=journal, stop=self.stop)
                commits = Commits(
                    journal=journal,
                    ballast=ballast,
                    root=layout.root,
                    stop=self.stop,
                    log=self.log,
                    pulse=pulse,
                    committed=spending.committed,
                )
                lane = make_lane(
                    job,
                    layout=layout,
                    source=self.source,
                    plan=plan,
                    plan_rules=self.rules,
                    spending=spending,
                    telemetry=self.telemetry,
                    originals=originals,
                    pool=pool,
                    batch_pool=batch_pool or pool,
                    journal=journal,
                    findings=Findings(
                        self.operation,
                        facts=dict(known.facts) if known else {},
                        models=known.models if known else (),
                        journal=journal,
                        commits=commits,
                    ),
                    commits=commits,
                    fetcher=fetcher,
                    wait=self.wait,
                    stop=self.stop,
                    clock=clock,
                    random=self.dice,
                    pulse=pulse,
                    control=self.control,
                    log=self.log,
                    crew=job.run.processes > 1 and transport is None,
                )
                sealing = self.sealing = Sealing(
                    layout=layout,
                    journal=journal,
                    rules=SealRules(
                        carried=carried_schema(self.source, self.rules),
                        compression=job.output.compression,
                    ),
                    schema=lane.schema,
                    completed=to_seal,
                    sealed=plan.sealed,
                    log=self.log,
                    clock=clock,
                    pulse=pulse,
                )
                prediction = Prediction(
                    job=job,
                    source=self.source,
                    operation=self.operation,
                    rules=self.rules,
                    simulated=self.simulated,
                    clock=clock,
                    begun=plan.begun,
                    before=await anyio.to_thread.run_sync(predicted_before, layout.summary),
                )
                tally = Tally(
                    job=job,
                    journal=journal,
                    plan=plan,
                    lane=lane,
                    pool=lane if isinstance(lane, Crew) else pool,
                    spending=spending,
                    prediction=prediction,
                    limit=self.rules.limit,
                    only_again=self.rules.only_again,
                    control=self.control,
                    clock=clock,
                )
                guard = StallGuard(
                    layout=layout,
                    log=self.log,
                    stop=self.stop,
                    tally=tally,
                    pulse=pulse,
                    waits_until=lambda: math.inf if self.control.is_paused else lane.waits_until,
                    works=lambda: plan.is_reading or lane.works_long,
                    limit_s=limit_s(job.run.timeout_s),
                    grace_s=job.run.grace_s,
                    clock=clock,
                    leave=self.leave,
                )
                tell = partial(
                    tell_summary,
                    layout.summary,
                    tally.now,
                    check=journal.check_place,
                    watcher=self.watcher,
                    stop=self.stop,
                )
                steer = partial(self._steer, (pool, batch_pool), ballast=ballast)
                async with anyio.create_task_group() as watching:
                    watching.start_soon(guard.run)
                    watching.start_soon(keep_summary, tell, clock)
                    watching.start_soon(lambda: end_at_deadline(job.run.deadline_s, stop=self.stop, clock=clock))
                    watching.start_soon(pool.share)
                    watching.start_soon(prediction.make)
                    with (
                        self.control.followed(steer),
                        self.control.followed(tell, at_once=False),
                        self.control.counting(lambda: lane.in_flight),
                    ):
                        await run_local(
                            lane=lane,
                            plan=plan,
                            sealing=sealing,
                            workers=lambda: _hands(job, lane, self.control),
                            control=self.control,
                            stop=self.stop,
                            grace_s=job.run.grace_s,
                            clock=clock,
                        )
                    if self.stop.cause is None:
                        await prediction.made()
                    watching.cancel_scope.cancel()
                await self._finish(sealing, spending)
                summary = tally.ending(self.stop.cause)
                if summary.state == "complete" and known is not None and known.carries and carrier is not None:
                    await self._end_handover(known, journal, carrier)
                    summary = tally.ending(self.stop.cause)
                if summary.state == "complete" and job.output.format == BATCH_FORMAT:
                    await self._write_batch_lines(journal)
                    summary = tally.ending(self.stop.cause)
        return self._tell(summary)

    def _steer(self, pools: Iterable[Pool | None], *, ballast: Ballast) -> None:
        """Follow what was asked of the run."""
        control = self.control
        for pool in pools:
            if pool is not None:
                pool.steer(paused=control.is_paused, leave=control.leave, workers=control.workers)
        ballast.resize(control.workers)

    @contextmanager
    def _open_carrier(self, known: Earlier | None) -> Iterator[Carrier | None]:
        """Open what keeps what rows are asked, and the results that are taken over; None where that is not wanted.

        Rows that are asked again are asked whatever an earlier run has, in a wording that may not be the job's.
        """
        inputs = self.job.input
        if inputs.incremental is None or self.rules.only_again:
            yield None
            return
        carries = () if known is None else known.carries
        with ExitStack() as opened:
            yield Carrier(
                operation=self.operation,
                id_column=inputs.id if inputs.incremental == "id" else None,
                table=opened.enter_context(AskedTable(self.layout.asked)),
                earlier=opened.enter_context(Predecessors([self.layout.root.with_name(name) for name in carries]))
                if carries
                else None,
            )

    @contextmanager
    def _open_same(self) -> Iterator[tuple[Same | None, Originals | None]]:
        """Open what knows which row asked first, and what rows came to; None where every row is asked."""
        if not self.rules.dedupe:
            yield None, None
            return
        variant = change.variant(self.job)
        is_own = variant == change.variant(self.noted)
        with (
            open_requests(self.layout, without_again=self.rules.only_again and not is_own) as table,
            Originals(self.layout) as originals,
        ):
            yield Same(operation=self.operation, table=table, variant=variant, is_own=is_own), originals

    async def _end_handover(self, known: Earlier, journal: Journal, carrier: Carrier) -> None:
        """Say what became of the earlier results, of which none is needed any more."""
        layout = self.layout
        last = Layout(layout.root.with_name(known.carries[-1]))
        try:
            deleted = await anyio.to_thread.run_sync(carrier.table.gone_since, last.asked)
            await journal.keep_deleted(deleted, ended=TAKES_OVER)
            await anyio.to_thread.run_sync(end_handover, layout)
            self.log.emit(
                Event.INPUT_COMPARED,
                carried=journal.totals.carried,
                sent=journal.totals.ok + journal.totals.failed - journal.totals.carried,
                deleted=deleted,
            )
        except PipelineError as error:
            self.stop.request(error)

    def _open_pool(self, lane: str, transport: Transport | None) -> AbstractAsyncContextManager[Pool]:
        return open_pool(
            self.job, lane=lane, clock=self.clock, random=self.dice, transport=transport, http_log=self.http_log
        )

    def _open_fetcher(self) -> AbstractAsyncContextManager[Fetcher | None]:
        """Open what fetches URLs that replies name, where the operation's replies may."""
        if not isinstance(self.operation, Fetching):
            return nullcontext()
        ca_bundle = next((spec.ca_bundle for spec in self.job.deployments if spec.ca_bundle is not None), None)
        return open_fetcher(clock=self.clock, environ=os.environ, ca_bundle=ca_bundle)

    @asynccontextmanager
    async def _open_journal(self) -> AsyncIterator[tuple[Journal, Ballast]]:
        """Open the journal, with space set aside for the answers of a disk that fills up. Raises DiskFullError."""
        ballast = Ballast(self.layout.ballast, workers=self.job.run.workers)
        page_bytes = LARGE_PAGE_BYTES if operations.get(self.job.operation).large_answers else PAGE_BYTES
        journal = Journal(self.layout.journal, ballast=ballast, full=self._disk_full, page_bytes=page_bytes)
        try:
            await anyio.to_thread.run_sync(ballast.make, journal.largest, journal.page_bytes)
            yield journal, ballast
        finally:
            with anyio.CancelScope(shield=True):
                await journal.close()
            ballast.release()

    def _disk_full(self, error: StorageError) -> None:
        """Begin nothing more: what room is left, and the ballast, are for the answers in flight."""
        self.stop.request(error)
        if self.sealing is not None:
            self.sealing.halt()
        with suppress(StorageError):
            self.log.emit(
                Event.DISK_REFUSED,
                Level.ERROR,
                reason=str(error),
                advice="nothing new is sent; what is in flight is written into the space set aside, then the run ends",
            )

    def _look_at_disk(self, reader: JournalReader) -> None:
        """Say what a person would want to know of the disk before the run has taken hours."""
        root = self.layout.root
        kind = file_system(root)
        if is_network(kind):
            self.log.emit(
                Event.NETWORK_FILE_SYSTEM,
                Level.WARNING,
                file_system=kind,
                advice="locks and the journal rest on another machine: use a local disk, and copy the parts afterwards",
            )
        with storage(f"looking at {root}"):
            free = free_bytes(root)
        needed = needed_bytes(reader, rows=self._rows_in_all())
        if needed is not None and needed > free:
            self.log.emit(
                Event.DISK_MAY_FILL,
                Level.WARNING,
                needed_bytes=needed,
                free_bytes=free,
                advice="free some space; a full disk stops the run (exit code 5), and the same command continues it",
            )

    def _rows_in_all(self) -> int | None:
        rows, limit = self.source.row_count, self.rules.limit
        return rows if limit is None or rows is None else min(rows, limit)

    async def _begin(self, journal: Journal, known: Earlier | None, variants: dict[str, object]) -> None:
        """Note what the run is, and make sure that it is still the same input."""
        self._tell_repair()
        files = _files_of(self.source)
        with journal.reader() as reader:
            for name in remove_strays(self.layout, reader):
                self.log.emit(Event.STRAY_PART_REMOVED, part=name)
            self._look_at_disk(reader)
            if known is not None and known.begun and known.files != files:
                values = columns_read(self.operation, self.rules)
                await anyio.to_thread.run_sync(
                    lambda: check_input(self.source, reader, values=values, carried=self.rules.carried)
                )
                self.log.emit(Event.INPUT_GREW)
            if self.repaired is not None and self.repaired.ids_gone:
                await anyio.to_thread.run_sync(self._claim_ids, reader)
        await note_run(journal, job=self.noted, schema=self.source.schema, files=files, variants=variants)
        if self.begins:
            self.log.emit(
                Event.RUN_RESUMED if known is not None else Event.RUN_STARTED,
                job=self.job.name,
                operation=self.job.operation,
                done=journal.totals.ok + journal.totals.failed,
                workers=self.job.run.workers,
            )

    def _tell_repair(self) -> None:
        """Say what was repaired, and what it costs, before anything is sent."""
        if self.repaired is None:
            return
        mended = self.repaired.mended
        for one in mended:
            self.log.emit(Event.REPAIRED, Level.WARNING, file=one.file, what=one.what, rows_again=one.rows)
        known = [one.rows for one in mended if one.rows is not None]
        self.log.emit(
            Event.REPAIR_ENDED,
            Level.WARNING if mended else Level.INFO,
            repaired=len(mended),
            rows_again=sum(known) if len(known) == len(mended) else None,
        )

    def _claim_ids(self, reader: JournalReader) -> None:
        """Make the table of ids anew from the input, once that is known to be the same."""
        column, parts = self.job.input.id, reader.parts()
        if column is not None and parts:
            values = columns_read(self.operation, self.rules)
            check_input(self.source, reader, values=values, carried=self.rules.carried)
            with rebuilt_ids(self.layout.ids) as ids:
                claim_ids(self.source, ids, column=column, end=parts[-1].last + 1)
        end_repair(self.layout)

    async def _finish(self, sealing: Sealing, spending: Spending) -> None:
        """Leave what is finished readable, unless the disk itself is what failed."""
        try:
            await spending.close()
            await sealing.finish(
                self.source, values=columns_read(self.operation, self.rules), carried=self.rules.carried
            )
        except PipelineError as error:
            self.stop.request(error)

    async def _write_batch_lines(self, journal: Journal) -> None:
        """Write the Batch API's result lines of a run that is complete."""
        layout = self.layout
        with journal.reader() as reader:
            parts = [layout.part(part.name) for part in reader.parts()]
        try:
            await anyio.to_thread.run_sync(lambda: write_batch_lines(layout.root, parts, id_column=self.job.input.id))
            await journal.keep_files([layout.written(layout.root / name) for name in (OUTPUT, ERRORS)])
        except PipelineError as error:
            self.stop.request(error)

    def _tell(self, summary: Summary) -> Summary:
        """Leave the last summary where everybody looks for it. Raises the cause again where it is a defect.

        Between two stages the run goes on, whatever the first came to.
        """
        if self.goes_on(summary):
            between = replace(summary, state="running", reason=None, exit_code=None)
            tell_summary(self.layout.summary, lambda: between, watcher=self.watcher, stop=self.stop)
            return summary
        summary = tell_end(summary, path=self.layout.summary, log=self.log, watcher=self.watcher)
        if self.stop.cause is not None and not isinstance(self.stop.cause, PipelineError):
            raise self.stop.cause
        return summary


def _hands(job: Job, lane: Lane, control: Control) -> int:
    """How many of a lane's workers there are: those of a crew see to one process each."""
    if isinstance(lane, Crew):
        return job.run.processes
    return 1 if job.run.lane == "batch" else control.workers


async def _repaired(job: Job, layout: Layout, now: datetime, options: RunOptions) -> Repaired | None:
    """Repair the folder where that is asked for; else refuse one that is damaged in a way that would cost rows."""
    if options.fresh:
        return None
    if not options.repair:
        refuse_damage(layout, has_ids=job.input.id is not None)
        return None
    return await anyio.to_thread.run_sync(lambda: repair_folder(layout, job=change.semantic(job), now=now))


def _handed_over(job: Job, layout: Layout, known: Earlier, options: RunOptions, now: datetime) -> Earlier:
    """Put a new folder in the place of an incremental job's, where its input has changed otherwise than at its end.

    A retry wants the rows as they were.
    """
    if job.input.incremental is None or options.retry is not None:
        return known
    if not known.begun or not _is_changed(job, layout, known):
        return known
    hand_over(layout.root, now=now)
    return earlier(layout) or known


def _is_changed(job: Job, layout: Layout, known: Earlier) -> bool:
    """Whether the input lacks rows that were read of it, or has others in their place. Raises SourceError."""
    try:
        source = _open_source(job, known)
        files = _files_of(source)
        if files == known.files:
            return False
        if [path for path, *_ in known.files] != [path for path, *_ in files[: len(known.files)]]:
            return True
        _compare(job, source, operations.get(job.operation).factory(job), layout)
    except InputChangedError:
        return True
    except SourceError:
        # The columns or the positions of the earlier run are not this input's; one that nobody can read is told here.
        _open_source(job, None)
        return True
    return False


def _open_source(job: Job, known: Earlier | None) -> Source:
    """Open the input. Raises SourceError, which says where in the job file it is named."""
    try:
        return open_source(
            job.input.path,
            format=job.input.format,
            columns=job.input.columns,
            kept_schema=known.schema if known is not None and known.begun else None,
        )
    except SourceError as error:
        raise SourceError(str(placed_source_error(job, error))) from error
