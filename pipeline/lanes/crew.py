"""The online lane in several processes: this one hands out the rows and keeps the answers, senders do all between.

A sender is a process that runs `OnlineLane` over a plan and a journal that are here. It holds nothing of the output
folder: one that dies leaves its tasks to a new one; one whose run has died has nobody to hand an answer to, and ends.
"""

from __future__ import annotations

import math
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, assert_never

import anyio

from pipeline.errors import DefectError, PipelineError
from pipeline.job import change
from pipeline.job.portable import job_values
from pipeline.lanes.channel import Channel, Kind
from pipeline.lanes.parcels import cause_of, packed_of, task_values
from pipeline.lanes.stop import Stopped
from pipeline.log import Event, Level
from pipeline.model import ErrorInfo, ErrorType
from pipeline.plan.work import Copies, Settled, Task
from pipeline.service.deployment import DeploymentReport
from pipeline.service.pool import Aside, AsideKind

if TYPE_CHECKING:
    import asyncio

    import pyarrow as pa
    from anyio.abc import TaskGroup

    from pipeline.clock import Clock
    from pipeline.job.spec import Job
    from pipeline.lanes.commit import Commits
    from pipeline.lanes.findings import Findings
    from pipeline.lanes.pulse import Pulse
    from pipeline.lanes.stop import Stop
    from pipeline.log import EventLog
    from pipeline.operations.base import Portable
    from pipeline.plan.plan import Plan
    from pipeline.service.pool import Pool
    from pipeline.store.journal import Journal

LOOK_S = 0.25
"""Seconds between two looks at how the senders share quotas and workers."""
LEAST_REQUESTS_S = 10
"""Requests a second that a quota allows each sender, at least: fewer are not worth a process, nor cut without loss."""
LEAST_REQUESTS_OF_TOKENS = 4
"""Requests, as large as the largest, that a sender's share of a quota of tokens holds, at least."""
FORGOTTEN_S = 61.0
"""Seconds after which the service has forgotten what a sender sent, and the others may have its share."""
APART_S = 1.1
"""Seconds between the death of a sender and the start of the one in its place: a slice of the quota, and some."""
DEATHS = 3
"""Senders that die one after another without a committed row between them: more will not help."""
LAST_WORDS_S = 10.0
"""Seconds that a sender whose calls were cancelled has to hand over what it knows."""


@dataclass(slots=True, kw_only=True)
class _Given:
    """A task that a sender has, and its rows that are not committed yet."""

    task: Task
    left: set[int]


class Sender:
    """One sending process, as the run sees it."""

    def __init__(self, crew: Crew, index: int) -> None:
        self.index = index
        self.ended = False
        self.committed = False
        self.status: dict[str, Any] = {}
        self.wanted = 0
        self._crew = crew
        self._given: dict[int, _Given] = {}
        self._gone = anyio.Event()
        self._wants = anyio.Event()
        self._begun = False
        self._end: socket.socket | None = None
        self._last_shares: Any = None
        self.left_work = 0
        self._group: TaskGroup | None = None
        self.channel = Channel(hear=self._hear, closed=self._gone.set)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def in_hand(self) -> bool:
        """Whether it has any task."""
        return bool(self._given)

    async def run(self) -> None:
        """Start it, see it to its end, and take back what it leaves."""
        crew = self._crew
        try:
            with crew.stop.sending():
                await self._start()
                async with anyio.create_task_group() as group:
                    self._group = group
                    group.start_soon(self._feed)
                    group.start_soon(self._pass_on_stop)
                    await self._gone.wait()
                    group.cancel_scope.cancel()
        except Stopped:
            pass
        finally:
            self._group = None
            with anyio.CancelScope(shield=True):
                await self._part()
            self._take_back()

    async def _part(self) -> None:
        """Have it end, where it has not yet; its calls are cancelled, and what they cost is handed over."""
        if self._begun:
            self.channel.say(Kind.ABANDON)
            with anyio.move_on_after(LAST_WORDS_S):
                await self._gone.wait()
            self.channel.close()
        elif self._end is not None:
            self._end.close()
        await self._reap()
        with suppress(PipelineError):
            await self._crew.journal.flush()  # what it handed over counts before anybody asks what is left

    def _take_back(self) -> None:
        """Hand what it had and did not see to its end back to the plan."""
        left = {id(given): given for given in self._given.values()}
        self._given = {}
        self.left_work = len(left)
        tasks = []
        for given in left.values():
            items = tuple(item for item in given.task.items if item.ordinal in given.left)
            tasks.append(replace(given.task, items=items))
        self._crew.put_back(sorted(tasks, key=lambda task: task.items[0].ordinal))

    @property
    def end(self) -> str:
        """How its process ended, in words."""
        code = None if self.process is None else self.process.returncode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"

    async def _start(self) -> None:
        self._end, theirs = socket.socketpair()

        def begin() -> None:
            # A session of its own: no Ctrl-C meant for the run reaches it.
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter, our own arguments
                [sys.executable, "-m", "pipeline.engines.sender", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

        with theirs:
            await anyio.to_thread.run_sync(begin)
        await self.channel.open(self._end)
        self.channel.say(Kind.BEGIN, self._crew.orders())
        self._begun = True
        self.share()

    async def _reap(self) -> None:
        """See the process end, which has nothing left to do."""
        process = self.process
        if process is None:
            return
        if not self.ended:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            await anyio.to_thread.run_sync(process.wait, LAST_WORDS_S)
        process.kill()
        await anyio.to_thread.run_sync(process.wait)

    def share(self) -> None:
        """Tell it what it may use, where that has changed."""
        shares = self._crew.shares(self.index)
        if self._begun and shares != self._last_shares:
            self._last_shares = shares
            self.channel.say(Kind.SHARES, shares)

    def hold(self, name: str, until: float) -> None:
        """Have it send a deployment nothing before a moment, monotonic seconds."""
        if self._begun:
            self.channel.say(Kind.HOLD, (name, until))

    async def _pass_on_stop(self) -> None:
        await self._crew.stop.requested.wait()
        self.channel.say(Kind.STOP)

    async def _feed(self) -> None:
        """Hand over as much work as it asks for, as long as there is any."""
        crew = self._crew
        try:
            while True:
                while not self.wanted:
                    self._wants = anyio.Event()
                    await self._wants.wait()
                work = await crew.next_for(self)
                if work is None:
                    self.channel.say(Kind.NO_MORE)
                    return
                self._give(work)
        except Stopped:
            return
        except Exception as error:  # noqa: BLE001 - a failure of the plan is a failure of the run, told once
            crew.stop.request(error)

    def _give(self, task: Task) -> None:
        self.wanted -= 1
        given = _Given(task=task, left={item.ordinal for item in task.items})
        self._given |= dict.fromkeys(given.left, given)
        self.channel.say(Kind.WORK, task_values(task, self._crew.operation))

    def _hear(self, kind: Kind, value: Any) -> None:
        heard: dict[Kind, Callable[[Any], None]] = {
            Kind.ROWS: self._keep_rows,
            Kind.WANT: self._note_want,
            Kind.LOG: self._crew.relay,
            Kind.STATUS: self._note_status,
            Kind.ATTEMPTS: self._keep_attempts,
            Kind.NOTE: self._note_fact,
            Kind.READ_ON: lambda reads_on: self._crew.read_on(self.index, reads_on),
            Kind.ENDED: self._note_end,
        }
        try:
            heard[kind](value)
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it, and the sender would wait for ever
            self._crew.stop.request(error)

    def _note_want(self, tasks: int) -> None:
        self.wanted += tasks
        self._wants.set()

    def _note_end(self, cause: Any) -> None:
        self.ended = True
        if (found := cause_of(cause)) is not None:
            self._crew.stop.request(found)
        self.channel.close()

    def _keep_attempts(self, value: Any) -> None:
        number, attempts = value
        self._answer(number, lambda: self._crew.journal.put_attempts(attempts))

    def _note_fact(self, value: Any) -> None:
        if self._group is not None:
            self._group.start_soon(self._note, *value)

    def _keep_rows(self, value: Any) -> None:
        """Have rows committed, then say so; they count as the task's end once they are durable."""
        number, packed = value[0], packed_of(value[1])
        crew = self._crew
        spans: dict[int, int] = {}
        for ordinal, _ in packed.rows:
            given = self._given.pop(ordinal)
            given.left.discard(ordinal)
            spans[given.task.span] = spans.get(given.task.span, 0) + 1

        def kept() -> None:
            self.committed = True
            for span, count in spans.items():
                crew.plan.rows_finished(span, count)
            crew.kept()

        def lost() -> None:
            crew.unwritten += sum(ok for _, ok in packed.rows)

        self._answer(number, lambda: crew.journal.put_packed(packed), kept=kept, lost=lost)

    def _answer(
        self,
        number: int,
        put: Callable[[], asyncio.Future[None]],
        *,
        kept: Callable[[], None] = lambda: None,
        lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Queue a change of the journal; once it is kept, or will never be, tell the sender."""

        def failed(error: BaseException) -> None:
            lost()
            self._crew.stop.request(error)
            self.channel.say(Kind.KEPT, (number, str(error)))

        def done(change: asyncio.Future[None]) -> None:
            if (error := change.exception()) is not None:
                failed(error)
                return
            kept()
            self.channel.say(Kind.KEPT, (number, None))

        try:
            put().add_done_callback(done)
        except PipelineError as error:
            failed(error)

    async def _note(self, number: int, fact: tuple[str, Any]) -> None:
        try:
            await self._crew.findings.hear(*fact)
        except PipelineError as error:
            self._crew.stop.request(error)
            self.channel.say(Kind.KEPT, (number, str(error)))
        else:
            self.channel.say(Kind.KEPT, (number, None))

    def _note_status(self, status: dict[str, Any]) -> None:
        if status["beats"] != self.status.get("beats"):
            self._crew.pulse.beat()
        self.status = status
        self._crew.pass_on_pauses(self)


class Crew:
    """The lane: its `work` coroutines each see to one sender; the first is there to the end.

    As many senders get work as the smallest quota allows, at most `processes`. The first begins alone, until an answer
    has said what the run's facts and quotas are. Senders that get nothing more, for a quota turned out small or a
    request large, end, and the others have their share once the service has forgotten what they sent.
    """

    def __init__(
        self,
        *,
        job: Job,
        operation: Portable,
        plan: Plan,
        pool: Pool,
        journal: Journal,
        findings: Findings,
        commits: Commits,
        log: EventLog,
        stop: Stop,
        clock: Clock,
        pulse: Pulse,
    ) -> None:
        """Wire it up. `pool` sends nothing; it knows who else on this machine asks the same deployments."""
        self.operation = operation
        self.plan = plan
        self.journal = journal
        self.findings = findings
        self.stop = stop
        self.pulse = pulse
        self.unwritten = 0
        self.works_long = False
        self._job = job
        self._pool = pool
        self._commits = commits
        self._log = log
        self._clock = clock
        self._begun = 0
        self._under_way = 0
        self._senders: dict[int, Sender] = {}
        self._past: list[dict[str, Any]] = []
        self._largest = 1
        self._kept = False
        self._over = False
        self._changed = anyio.Event()
        self._opened = False
        self._paused: dict[str, float] = {}
        self._reading_on: set[int] = set()
        self._busy_at: dict[int, float] = {}
        self._active = self._divisor = self._allowed(job.run.processes)

    # -- the lane ------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many requests are under way, as of a moment ago."""
        return sum(sender.status.get("in_flight", 0) for sender in self._senders.values())

    @property
    def waits_until(self) -> float | None:
        """To when requests wait by quotas, gates and outages; None where none does."""
        waits = [sender.status.get("waits_until") for sender in self._senders.values()]
        return max((until for until in waits if until is not None), default=None)

    @property
    def deployments(self) -> tuple[Merged, ...]:
        """The deployments, as all senders use them."""
        found = []
        for deployment in self._pool.deployments:
            reports = [status["deployments"][deployment.name] for status in self._statuses()]
            known = [DeploymentReport(**{name: one[name] for name in _REPORTED}) for one in reports]
            found.append(Merged(name=deployment.name, reports=known or [deployment.report()]))
        return tuple(found)

    @property
    def asides(self) -> tuple[Aside, ...]:
        """The deployments that are set aside by any sender."""
        return tuple(
            Aside(
                deployment=name,
                kind=AsideKind(kind),
                error=ErrorInfo(type=ErrorType.API_STATUS, code=kind, message=message),
            )
            for sender in self._senders.values()
            for name, kind, message in sender.status.get("asides", ())
        )

    def schema(self) -> pa.Schema:
        """The result columns. Raises LookupError while a fact of the run is unknown."""
        return self.findings.operation.schema()

    async def work(self) -> None:
        """See to one sender, and to those in its place where it dies."""
        index = self._begun
        self._begun += 1
        self._under_way += 1
        try:
            if index:
                if await self._is_called(index):
                    await self._keep_going(index)
                return
            async with anyio.create_task_group() as group:
                group.start_soon(self._look)
                await self._see_to_the_end()
                group.cancel_scope.cancel()
        except Stopped:
            return
        except Exception as error:  # noqa: BLE001 - a failure here is a failure of the run, told once
            self.stop.request(error)
        finally:
            self._under_way -= 1
            self._wake()

    async def _see_to_the_end(self) -> None:
        """Keep the first sender going, and once more where others have left work that nobody takes."""
        try:
            await self._keep_going(0)
            while self.stop.cause is None:
                while self._under_way > 1:
                    await self._wait()
                if not self.plan.has_ready:
                    return
                await self._keep_going(0)
        except Stopped:
            return
        except Exception as error:  # noqa: BLE001 - a failure here is a failure of the run, told once
            self.stop.request(error)

    async def _is_called(self, index: int) -> bool:
        """Wait until a further sender is wanted; False where it is not."""
        while not self._opened and not self._over and index < self._active:
            await self._wait()
        return index < self._active and not self._over

    async def _keep_going(self, index: int) -> None:
        """Start a sender, and another where it dies, as long as it has work."""
        deaths = 0
        while self.stop.cause is None:
            sender = self._senders[index] = Sender(self, index)
            try:
                await sender.run()
            finally:
                del self._senders[index]
                if sender.status:
                    self._past.append(sender.status)
                self.read_on(index, reads_on=False)
            if self.stop.cause is not None or (sender.ended and not sender.left_work):
                return
            self._say_death(sender)
            deaths = 1 if sender.committed else deaths + 1
            if deaths >= DEATHS:
                raise DefectError(
                    f"{DEATHS} sending processes ended one after another without an answer that was kept (the last "
                    f"by {sender.end}); no row was failed by this: see whether the machine's memory is enough for "
                    "run.processes, then run the same command again"
                )
            if index >= self._active:
                return
            with self.stop.waiting():
                await self._clock.sleep(APART_S)

    def _say_death(self, sender: Sender) -> None:
        self._commits.say(Event.SENDER_DIED, Level.WARNING, sender=sender.index, end=sender.end, tasks=sender.left_work)

    async def _look(self) -> None:
        """See, without end, what the senders may use; who begins, and who gets no more."""
        while True:
            await self._clock.sleep(LOOK_S)
            if not self._opened and self._kept and self._has_schema() and self._is_answered():
                self._opened = True
                self._wake()
            self._narrow(self._allowed(self._active))
            for sender in list(self._senders.values()):
                sender.share()

    def _narrow(self, active: int) -> None:
        """Give work to no more than so many, and share among those that the service still counts."""
        now = self._clock.now()
        if active < self._active:
            self._active = active
            self._wake()
        counted = [self._active]
        self._busy_at |= {index: now for index, sender in self._senders.items() if sender.in_hand}
        counted += [index + 1 for index, at in self._busy_at.items() if now - at < FORGOTTEN_S]
        divisor = min(self._divisor, max(counted))
        if divisor != self._divisor:
            self._divisor = divisor
            self._wake()

    def _allowed(self, most: int) -> int:
        """How many senders the smallest quota is enough for, at most so many."""
        most = self._most(most, "requests_per_minute", 60.0 * LEAST_REQUESTS_S)
        return max(1, self._most(most, "tokens_per_minute", self._least_tokens))

    @property
    def _least_tokens(self) -> float:
        return float(LEAST_REQUESTS_OF_TOKENS * self._largest)

    def _most(self, most: int, limit: str, least: float) -> int:
        """How many shares of at least so much the quotas have, by the job and by what the senders say of them."""
        for deployment in self._pool.deployments:
            reports = [status["deployments"][deployment.name] for status in self._statuses()]
            for report in (*reports, asdict(deployment.report())):
                if report[limit] is not None:
                    most = min(most, int(report[limit] * (1 - self._job.run.leave) / deployment.parts / least))
        return most

    def _has_schema(self) -> bool:
        try:
            self.schema()
        except LookupError:
            return False
        return True

    def _is_answered(self) -> bool:
        """Whether the first sender has said what an answer taught it of its quotas."""
        first = self._senders.get(0)
        reports = first.status.get("deployments", {}).values() if first is not None else ()
        return any(report["requests"] > report["in_flight"] for report in reports)

    def _statuses(self) -> list[dict[str, Any]]:
        return [*self._past, *(sender.status for sender in self._senders.values() if sender.status)]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _wait(self) -> None:
        with self.stop.waiting():
            await self._changed.wait()

    # -- what senders ask ----------------------------------------------------------------------------------------------

    def orders(self) -> dict[str, Any]:
        """What a sender begins with."""
        facts, models = self.findings.noted
        return {"job": job_values(self._job), "facts": facts, "models": models, "journal": str(self.journal.path)}

    def shares(self, index: int) -> dict[str, Any]:
        """What a sender may use: so many workers at once, and its portion of each quota."""
        workers, of = self._job.run.workers, self._divisor
        return {
            "workers": workers // of + (index < workers % of),
            "parts": {deployment.name: deployment.parts for deployment in self._pool.deployments},
            "portion": (min(index, of - 1), of),
        }

    async def next_for(self, sender: Sender) -> Task | None:
        """The next task for a sender; None where it gets no more. Raises Stopped, and what the plan raises."""
        while sender.index < self._active:
            work = self.plan.next_ready()
            if work is None:
                with self.stop.waiting():
                    work = await self.plan.next()
            match work:
                case None:
                    self._over = True
                    self._wake()
                    return None
                case Settled():
                    await self._commits.rows(work.outcome(change.variant(self._job)))
                    self.plan.finished(work)
                case Task():
                    if self._fits(work):
                        return work
                    self.plan.put_back(work)
                    if sender.index == 0:
                        await self._wait()
                case Copies():
                    raise DefectError("rows that share an answer were handed to several processes")
                case _:
                    assert_never(work)
        return None

    def _fits(self, task: Task) -> bool:
        """Whether a sender's share of the quotas is enough for a task; where it is not, fewer senders have more."""
        tokens = sum(item.tokens for item in task.items)
        if tokens > self._largest:
            self._largest = tokens
            self._narrow(self._allowed(self._active))
        return self._divisor == 1 or self._most(self._divisor, "tokens_per_minute", self._least_tokens) == self._divisor

    def kept(self) -> None:
        """Note that rows were committed."""
        self._kept = True
        self.pulse.beat()

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Take back the tasks of a sender that is gone, or what is left of them, to be handed out first."""
        for task in reversed(tasks):
            self.plan.put_back(task)
        self._wake()

    def read_on(self, index: int, reads_on: bool) -> None:  # noqa: FBT001 - what it is set to
        """Read on behind the window as long as any sender asks for that."""
        before = bool(self._reading_on)
        (self._reading_on.add if reads_on else self._reading_on.discard)(index)
        if bool(self._reading_on) != before:
            self.plan.read_on(not before)

    def relay(self, lines: bytes) -> None:
        """Log what a sender says; a log that cannot be written ends the run."""
        try:
            self._log.relay(lines)
        except PipelineError as error:
            self.stop.request(error)

    def pass_on_pauses(self, sender: Sender) -> None:
        """Have all senders wait where the service told one to."""
        for name, status in sender.status["deployments"].items():
            until = status["paused_until"]
            if until > self._paused.get(name, -math.inf):
                self._paused[name] = until
                for other in self._senders.values():
                    if other is not sender:
                        other.hold(name, until)


_REPORTED = tuple(item.name for item in fields(DeploymentReport))


@dataclass(frozen=True, slots=True)
class Merged:
    """A deployment as all senders use it."""

    name: str
    reports: Sequence[DeploymentReport]

    def report(self) -> DeploymentReport:
        """Add up what the senders did."""
        merged = self.reports[0]
        for one in self.reports[1:]:
            merged = replace(
                merged,
                requests=merged.requests + one.requests,
                throttled=merged.throttled + one.throttled,
                quota_used=_sum(merged.quota_used, one.quota_used),
                sent_requests_per_minute=round(merged.sent_requests_per_minute + one.sent_requests_per_minute, 1),
                sent_tokens_per_minute=round(merged.sent_tokens_per_minute + one.sent_tokens_per_minute, 1),
                paused_s=max(merged.paused_s, one.paused_s),
            )
        return merged


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else other if one is None else one + other
