"""The online lane: a pool of workers, each with one request in hand, which it commits before it takes the next."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

import anyio

from pipeline.errors import DefectError, NoTokenYetError, PipelineError, RefusedError, ReplyError, RowError, RowProblem
from pipeline.lanes.base import Handing, Keeping
from pipeline.lanes.breaker import Breaker, Suspicion
from pipeline.lanes.commit import Commits
from pipeline.lanes.control import Control
from pipeline.lanes.findings import Findings
from pipeline.lanes.pieces import Cut, Piece, PieceLine
from pipeline.lanes.pulse import Pulse
from pipeline.lanes.results import copy_of, summed, without_reply
from pipeline.lanes.spending import Share, Spending
from pipeline.lanes.stop import Stop, Stopped, sending_on
from pipeline.log import Event, Level
from pipeline.model import Attempt, Call, ErrorInfo, Item, Outcome, Reply, RequestInfo, RowResult, Usage
from pipeline.operations.base import Cutting, Fetching, Sizing
from pipeline.pace.lengths import Lengths
from pipeline.pace.retry import (
    CAP_S,
    Decision,
    Done,
    Fail,
    History,
    Reauthorise,
    Refused,
    Retry,
    RetryRules,
    Spent,
    Throttle,
    TooLong,
    decide,
    full_jitter,
)
from pipeline.pace.verdict import Answered, BadReply, RowRefused, Throttled, Transient, Verdict
from pipeline.plan.work import Copies, Settled, Task
from pipeline.service.classify import classify
from pipeline.store.salvage import outcomes
from pipeline.telemetry import RequestTrace, Telemetry

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.clock import Clock
    from pipeline.service.deployment import Deployment, Exchange
    from pipeline.service.fetch import Fetcher
    from pipeline.service.pool import Aside, Pool
    from pipeline.store.answered import Originals

MAX_STORED_RESPONSE_BYTES = 1024 * 1024
ECHO_BYTES = 32
"""So many bytes in a row that a message shares with a request are a quotation."""
LOOK_S = 1.0
"""Seconds between looks whether a quota that was lowered has room for a row again."""
COMPARED_BYTES = 4 * 1024 * 1024
"""A larger request, with pictures or a recording, is not searched for quotations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneRules:
    """What the job says of sending. `raw`: none, failed or all replies are kept.

    `right_size` is the quantile of answers whose length requests reserve; None: they reserve what the job says.
    `rows_own` names the request's fields that rows fill (see Breaker). `root` is the output folder, `pieces` a folder
    for pieces of rows while they are sent.
    """

    retry: RetryRules
    raw: str
    variant: str
    root: Path
    pieces: Path
    right_size: float | None = None
    rows_own: frozenset[str] | None = frozenset()


@dataclass(slots=True, kw_only=True)
class _Asked:
    """One request on its way: what it met so far. `ended_at` is when its last attempt ended, monotonic seconds.

    `suspicion` is what its last refusal looks like. `retried` says that the last attempt met a fault. `first` is the
    answer in whose place another is asked for (`RowResult.again`). `trace` is what telemetry knows of it.
    """

    items: tuple[Item, ...]
    first: Outcome | None = None
    history: History = field(default_factory=History)
    attempts: list[Attempt] = field(default_factory=list)
    ended_at: float | None = None
    retried: bool = False
    suspicion: Suspicion = Suspicion.NONE
    trace: RequestTrace | None = None

    def met(self, verdict: Verdict, *, sent_at: float, ended_at: float) -> None:
        """Note one more attempt."""
        waited_s = 0.0 if self.ended_at is None else sent_at - self.ended_at
        if waited_s != self.history.waited_s:
            self.history = replace(self.history, waited_s=waited_s)
        self.history = self.history.after(verdict)
        self.ended_at = ended_at
        self.retried = isinstance(verdict, Transient | BadReply)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """One attempt, and what follows from it."""

    deployment: Deployment
    exchange: Exchange
    verdict: Verdict
    results: list[RowResult]
    decision: Decision


@dataclass(frozen=True, slots=True)
class _Split:
    """A pack was refused: what remains of it, to be asked in smaller packs, and the row that was named, if any."""

    packs: tuple[tuple[Item, ...], ...]
    named: Outcome | None


@dataclass(slots=True, kw_only=True)
class _Course:
    """A task under way: the packs that are still to be asked, and what the last one came to, where that is held back.

    `attempts` are those of what is held back.
    """

    task: Task
    packs: list[tuple[Item, ...]]
    end: Outcome | _Split | None = None
    attempts: tuple[Attempt, ...] = ()


class OnlineLane:
    """Sends tasks. Any number of `work` coroutines share one lane."""

    def __init__(
        self,
        *,
        plan: Handing,
        pool: Pool,
        journal: Keeping,
        findings: Findings,
        commits: Commits,
        rules: LaneRules,
        fetcher: Fetcher | None,
        stop: Stop,
        clock: Clock,
        random: Callable[[], float],
        pulse: Pulse,
        spending: Spending,
        control: Control,
        telemetry: Telemetry | None = None,
        originals: Originals | None = None,
    ) -> None:
        """Wire it up. `fetcher` is for operations that fetch; `pulse` beats at whatever is got done.

        `originals` has what rows came to, for others that ask for the same.
        """
        self._control = control
        self._held_back = 0
        self._spending = spending
        self._telemetry = telemetry
        self._originals = originals
        self.in_flight = 0
        operation = findings.operation
        # To ask whether an operation is of a protocol takes 20 µs: too long for every row.
        self._cutting = operation if isinstance(operation, Cutting) else None
        self._sizing = operation if isinstance(operation, Sizing) else None
        self._plan = plan
        self._pool = pool
        self._journal = journal
        self._rules = rules
        self._fetcher = fetcher
        self._stop = stop
        self._pulse = pulse
        self._commits = commits
        self._findings = findings
        self._pieces = PieceLine()
        self._lengths = None if rules.right_size is None else Lengths(rules.right_size)
        self._clock = clock
        self._random = random
        self._breaker = Breaker(rules.rows_own)
        self._working = 0
        self._cuts = 0
        self._held: list[_Course] = []
        self._released: deque[_Course] = deque()
        pool.listen(commits.say)

    @property
    def works_long(self) -> bool:
        """Whether a thread cuts a row into pieces."""
        return self._cuts > 0

    @property
    def waits_until(self) -> float | None:
        """To when requests wait by the quotas, gates and outages of their deployments; None where none waits."""
        return self._pool.waits_until()

    @property
    def unwritten(self) -> int:
        """Rows that were answered, and could not be written."""
        return self._commits.unwritten

    def schema(self) -> pa.Schema:
        """The result columns. Raises LookupError while a fact of the run is unknown."""
        return self._findings.operation.schema()

    async def work(self) -> None:
        """Take tasks until there are no more or the run stops; each is durable before the next is taken.

        A refusal that may be everybody's is held back meanwhile: it was not answered, so there is nothing to lose.
        """
        with self._stop.stretch():
            await self._work()

    async def _work(self) -> None:
        self._working += 1
        try:
            await self._work_on()
            while self._working == 1 and self._held and self._stop.cause is None:
                # Nobody is left who could show whose the refusals are. Rows may have waited for what was held back.
                await self._settle_held()
                await self._work_on()
        except Stopped:
            return
        except Exception as error:  # noqa: BLE001 - a failure in one worker is a failure of the run, told once
            self._stop.request(error)
        finally:
            self._working -= 1
            if not self._working:
                await self._keep_attempts_of_held()

    async def _work_on(self) -> None:
        while self._stop.cause is None and self._working <= self._control.workers and await self._step():
            pass

    @property
    def is_crowded(self) -> bool:
        """Whether as many workers are at work as may be, or more."""
        return self._working >= self._control.workers

    async def _step(self) -> bool:
        """Do one piece of work; False where there is none any more."""
        if self._control.is_paused:
            await self._until_allowed()
            return True
        if (piece := self._pieces.take()) is not None:
            await self._ask_piece(piece)
            return True
        if self._released:
            await self._go_on(self._released.popleft())
            return True
        work = self._plan.next_ready()
        if work is None:
            with self._stop.waiting():
                work = await self._plan.next()
        self._pulse.beat()
        match work:
            case None:
                await self._help()
                return bool(self._released)
            case Settled():
                await self._commits.rows(work.outcome(self._rules.variant))
                self._plan.finished(work)
            case Copies():
                await self._copy(work)
            case Task(items=items):
                if self._cutting is not None and await self._ask_in_pieces(self._cutting, items[0]):
                    self._plan.finished(work)
                else:
                    await self._go_on(_Course(task=work, packs=[items]))
            case _:
                assert_never(work)
        return True

    async def _copy(self, work: Copies) -> None:
        """Give rows what their originals came to; a row whose original came to nothing of use is asked itself."""
        assert self._originals is not None  # noqa: S101 - without them nobody waits
        with self._stop.waiting():
            found = await anyio.to_thread.run_sync(self._originals.find, [original for _, original in work.rows])
        self._pulse.beat()
        usable = {at: one for at, one in found.items() if one[1].variant == self._rules.variant or not work.items}
        copied = [copy_of(usable[original], ordinal) for ordinal, original in work.rows if original in usable]
        for outcome in outcomes(iter(copied)):
            await self._commits.rows(outcome)
        if copied:
            self._plan.finished(Copies(span=work.span, rows=tuple((row.ordinal, row.ordinal) for row, _ in copied)))
        given = {row.ordinal for row, _ in copied}
        left = tuple(item for item in work.items if item.ordinal not in given)
        if len(copied) + len(left) < work.size:
            raise DefectError("rows wait for another's answer, which the journal does not have")
        if left:
            await self._go_on(_Course(task=Task(span=work.span, items=left), packs=[(item,) for item in left]))

    async def _help(self, *, until: Cut | None = None) -> None:
        """Send pieces of rows, whosever they are, until the row `until` has ended, or no row is in pieces any more."""
        while True:
            with self._stop.waiting():
                piece = await self._pieces.wait(until=until)
            if piece is None:
                return
            await self._ask_piece(piece)

    async def _go_on(self, course: _Course, *, waits: bool = True) -> None:
        """Ask for what is left of a task. A refused pack is asked in smaller packs; what is answered is committed.

        `waits`: what may be everybody's is held back, and the task with it, until an answer shows that it is not.
        """
        while course.end is not None or course.packs:
            if course.end is None:
                asked = _Asked(items=course.packs.pop())
                course.end = await self._asked(asked)
                course.attempts = tuple(asked.attempts)
                if asked.suspicion is Suspicion.HOLD_BACK and waits:
                    self._held.append(course)
                    self._plan.read_on(True)
                    return
            match course.end:
                case Outcome() as end:
                    await self._commits.rows(end)
                case _Split(packs=smaller, named=named):
                    if named is None:
                        await self._commits.attempts(course.attempts)
                    else:
                        await self._commits.rows(named)
                    course.packs.extend(reversed(smaller))
                case end:
                    assert_never(end)
            course.end, course.attempts = None, ()
        self._plan.finished(course.task)

    def _release_held(self) -> None:
        """An answer came: what was held back was its rows' own, and goes its way."""
        if self._held:
            self._released.extend(self._held)
            self._held.clear()
            self._plan.read_on(False)

    async def _settle_held(self) -> None:
        """End what is held back although nothing shows whose it is; what is sent for that still counts."""
        while True:
            self._release_held()
            if not self._released:
                return
            course = self._released[0]
            await self._go_on(course, waits=False)
            self._released.popleft()

    async def _keep_attempts_of_held(self) -> None:
        """Keep the attempts of what stays pending; a journal that refuses has said so already."""
        self._release_held()
        with suppress(PipelineError):
            await self._commits.attempts(tuple(attempt for course in self._released for attempt in course.attempts))

    async def _ask_in_pieces(self, operation: Cutting, item: Item) -> bool:
        """Ask for an item piece by piece, with the help of other workers; False where one request can carry it."""
        folder = self._rules.pieces / f"{item.ordinal:012d}"
        self._pieces.begin()
        try:
            self._cuts += 1
            try:
                with self._stop.waiting():
                    cut = await anyio.to_thread.run_sync(self._cut, operation, item, folder, abandon_on_cancel=True)
            finally:
                self._cuts -= 1
            self._pulse.beat()
            if cut is None:
                return False
            self._pieces.put(cut)
            await self._help(until=cut)
            await self._commits.rows(cut.joined(operation))
        except RowProblem as problem:
            await self._commits.rows(self._unsent([item], problem.info))
        finally:
            self._pieces.end()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))
        return True

    def _cut(self, operation: Cutting, item: Item, folder: Path) -> Cut | None:
        """Cut an item, and find what earlier invocations had answered of it. Blocking."""
        folder.mkdir(parents=True, exist_ok=True)
        pieces = operation.cut(item, folder)
        if pieces is None:
            return None
        with self._journal.reader() as reader:
            known = reader.pieces(item.ordinal)
        outcomes = [known.get(operation.piece_key(piece)) for piece in pieces]
        return Cut(item=item, pieces=tuple(pieces), outcomes=outcomes)

    async def _ask_piece(self, piece: Piece) -> None:
        """Ask for one piece, and keep what comes of it."""
        assert self._cutting is not None  # noqa: S101 - nobody else has pieces
        outcome = await self._asked(_Asked(items=(piece.item,)))
        assert isinstance(outcome, Outcome)  # noqa: S101 - one item is not split
        await self._commits.piece(self._cutting.piece_key(piece.item), outcome)
        self._pieces.settle(piece, outcome)

    async def _asked(self, asked: _Asked) -> Outcome | _Split:
        """Send one request as often as it takes; where it is given up, its attempts are kept."""
        if self._telemetry is None:
            return await self._seen_to(asked)
        asked.trace, end = self._telemetry.begin(), None
        try:
            end = await self._seen_to(asked)
        finally:
            self._telemetry.end(asked.trace, asked.attempts, end if isinstance(end, Outcome) else None)
        return end

    async def _seen_to(self, asked: _Asked) -> Outcome | _Split:
        try:
            return await self._ask(asked)
        except BaseException as end:
            if isinstance(end, Stopped) and (first := _standing(asked)) is not None:
                return first
            await self._commits.attempts(tuple(asked.attempts))
            raise

    async def _ask(self, asked: _Asked) -> Outcome | _Split:
        """Send one request as often as it takes. Raises Stopped; the rows then stay pending."""
        while True:
            sent = await self._attempt(asked)
            if isinstance(sent, Outcome | _Split):
                return sent
            end = None if sent is None else await self._follow(asked, sent)
            if end is not None:
                return end

    async def _attempt(self, asked: _Asked) -> _Sent | Outcome | _Split | None:
        """Send a request once, and judge what came back.

        An outcome where it cannot be sent; None where the deployment was set aside before it could be asked.
        """
        if not self._may_send:
            held_s = await self._until_allowed()
            asked.ended_at = None if asked.ended_at is None else asked.ended_at + held_s
        if asked.first is None and not asked.attempts:
            asked.items = self._sized(asked.items)
        tokens = sum(item.tokens for item in asked.items)
        if (most := self._pool.too_small_for(tokens)) is not None:
            return await self._too_large(asked, tokens, most)
        deployment = self._pool.pick(tokens)
        # What is read from files is held only while it is sent.
        call = (
            None
            if self._findings.operation.reads_files
            else self._findings.operation.build(asked.items, deployment.target)
        )
        bound = self._spending.bound(asked.items)
        await self._spending.reserve(bound)
        with self._spending.share(bound) as share:
            return await self._attempt_with(asked, deployment, call, share)

    async def _attempt_with(
        self, asked: _Asked, deployment: Deployment, call: Call | None, share: Share
    ) -> _Sent | Outcome | None:
        """Send a request whose cost is set aside; what `_attempt` returns."""
        tokens = sum(item.tokens for item in asked.items) if call is None else call.tokens
        if not await self._leave(deployment, tokens, again=asked.ended_at is not None, retry=asked.retried):
            return None
        if call is None:
            try:
                call = await anyio.to_thread.run_sync(self._findings.operation.build, asked.items, deployment.target)
            except RowProblem as problem:
                deployment.give_back(tokens)
                return self._unsent(asked.items, problem.info, tuple(asked.attempts))
        if not self._may_send:
            deployment.give_back(tokens)
            return None
        share.sent = True
        try:
            exchange = await self._send(deployment, call, asked.trace)
        except RefusedError as error:
            share.sent = False
            self._say_aside(self._pool.without_credential(deployment, error))
            return None
        except NoTokenYetError as error:
            share.sent = False
            self._pool.without_token_yet(deployment, error)
            return None
        verdict, results = self._judge(asked.items, deployment, exchange)
        share.settle(exchange.reply, verdict, results)
        asked.met(verdict, sent_at=exchange.sent_at, ended_at=self._clock.now())
        self._note(asked, deployment, exchange, verdict, results, call.tokens)
        decision = self._decide(asked, deployment, exchange, verdict, call)
        return _Sent(deployment=deployment, exchange=exchange, verdict=verdict, results=results, decision=decision)

    @property
    def _may_send(self) -> bool:
        """Whether one more request may be in flight."""
        return self.in_flight < self._control.workers and not self._control.is_paused

    async def _until_allowed(self) -> float:
        """Wait until one more request may be in flight; returns for how many seconds. Raises Stopped."""
        began = self._clock.now()
        self._held_back += 1
        try:
            while not self._may_send:
                with self._stop.waiting():
                    await self._control.changes()
        finally:
            self._held_back -= 1
        return self._clock.now() - began

    async def _too_large(self, asked: _Asked, tokens: int, most: float) -> Outcome | _Split | None:
        """End a request that no deployment's quota can hold; a pack is cut in halves, which may fit.

        None after a while, where a quota held it before that was lowered.
        """
        if len(asked.items) > 1:
            middle = len(asked.items) // 2
            return _Split(packs=(asked.items[:middle], asked.items[middle:]), named=None)
        if self._pool.may_fit_later(tokens):
            with self._stop.waiting():
                await self._clock.sleep(LOOK_S)
            return None
        problem = RowError(
            code="quota_too_small",
            message=f"The request is estimated at {tokens:,} tokens, but no deployment's quota allows more than "
            f"{most:,.0f} a minute. Shorten it or its bound on output tokens, or have the quota raised.",
        )
        return self._unsent(asked.items, problem.info, tuple(asked.attempts))

    async def _follow(self, asked: _Asked, sent: _Sent) -> Outcome | _Split | None:
        """Do what was decided after an attempt; None when the request is to be sent again."""
        deployment, exchange = sent.deployment, sent.exchange
        match sent.decision:
            case Done():
                return await self._answered(asked, sent)
            case Fail() if (first := _standing(asked)) is not None:
                # What was asked for once more does not come; the answer that was paid for stays.
                asked.suspicion = Suspicion.NONE
                return first
            case Fail(error=error):
                if isinstance(sent.verdict, RowRefused) and any(
                    item.content != asked.items[0].content for item in asked.items
                ):
                    return self._split(asked, deployment, exchange, error)
                return _completed(
                    asked, self._outcome(asked, deployment, exchange, _all_failed(asked.items, error, exchange))
                )
            case Retry(after_s=after_s):
                with self._stop.waiting():
                    await self._clock.sleep(after_s)
            case Throttle() | Reauthorise() | Refused() | Spent() | TooLong() as notice:
                await self._heed(deployment, notice, exchange)
            case decision:
                assert_never(decision)
        return None

    async def _answered(self, asked: _Asked, sent: _Sent) -> Outcome | None:
        """Complete the answer; None where it asks for another in its place."""
        await self._findings.learn(sent.results, sent.deployment.name)
        results = [await self._fetched(row, sent.deployment) for row in sent.results]
        outcome = _completed(asked, self._outcome(asked, sent.deployment, sent.exchange, results))
        if (again := results[0].again) is None:
            self._learn_length(sent.results)
            return outcome
        asked.first, asked.items, asked.history = outcome, (again,), History()
        return None

    def _sized(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """The item with its answer bounded by what answers of this job need, where the job asks for that."""
        bound = None if self._lengths is None else self._lengths.bound
        if bound is None or len(items) != 1 or self._sizing is None:
            return items
        smaller = self._sizing.sized(items[0], bound)
        return items if smaller is None else (smaller,)

    def _learn_length(self, results: Sequence[RowResult]) -> None:
        if self._lengths is not None and len(results) == 1 and results[0].ok:
            known = self._lengths.bound
            tokens = summed(results, "output_tokens")
            if tokens is not None:
                self._lengths.add(tokens)
            if known is None and self._lengths.bound is not None:
                # Those who wait for leave wait for more than they need.
                self._pool.dismiss()

    async def _fetched(self, row: RowResult, deployment: Deployment) -> RowResult:
        """Complete a result whose reply named a URL; the row fails where the URL does not give it."""
        if row.fetch is None:
            return row
        operation = self._findings.operation
        assert isinstance(operation, Fetching)  # noqa: S101 - nobody else names URLs
        assert self._fetcher is not None  # noqa: S101 - likewise
        try:
            with self._stop.sending():
                content = await self._fetcher.fetch(row.fetch, allowed_origin=deployment.origin)
            return replace(operation.fetched(row, content), fetch=None)
        except RowProblem as problem:
            return replace(row, values=None, error=problem.info, fetch=None)

    def _unsent(self, items: Sequence[Item], error: ErrorInfo, attempts: tuple[Attempt, ...] = ()) -> Outcome:
        """Items that cannot be sent, or not again, failed."""
        rows = tuple(RowResult(ordinal=item.ordinal, error=error) for item in items)
        return Outcome(rows=rows, request=RequestInfo(variant=self._rules.variant), attempts=attempts)

    def _decide(
        self, asked: _Asked, deployment: Deployment, exchange: Exchange, verdict: Verdict, call: Call
    ) -> Decision:
        """Say what follows, in the light of what others met: no row is failed by what all of them would meet.

        Raises RefusedError and StoppedEarlyError when the run should end; the rows then stay pending.
        """
        decision = decide(verdict, asked.history, self._rules.retry, random=self._random)
        if isinstance(verdict, Answered | RowRefused):
            self._pool.answered(deployment, exchange)
            asked.suspicion = Suspicion.NONE
            if isinstance(verdict, Answered):
                self._breaker.answered()
                self._release_held()
            else:
                asked.suspicion = self._breaker.suspects(_without_echo(verdict.error, call))
            if asked.suspicion is Suspicion.ASK_AGAIN:
                return Retry(after_s=full_jitter(0, self._random))
        elif isinstance(verdict, Transient | Throttled):
            said = _without_echo(verdict.error, call)
            explained = self._pool.failed(
                deployment, exchange, f"{said.code}: {said.message}", throttled=isinstance(verdict, Throttled)
            )
            if deployment.outage.on:
                asked.history = History()  # what is met in an outage is not counted against a row
            if isinstance(decision, Fail) and explained:
                return Retry(after_s=CAP_S * (1 + self._random()) / 2)
        if isinstance(decision, Reauthorise | Refused | Spent | TooLong):
            return replace(decision, error=_without_echo(decision.error, call))
        return decision

    async def _heed(
        self, deployment: Deployment, notice: Throttle | Reauthorise | Refused | Spent | TooLong, exchange: Exchange
    ) -> None:
        """Have the pool do what an answer asks of a deployment, and say what a person would wonder about."""
        if isinstance(notice, Throttle) and notice.worth_saying:
            self._commits.say(Event.PAUSED, Level.WARNING, deployment=deployment.name, seconds=notice.hint_s)
        with self._stop.waiting():
            aside = await self._pool.heed(deployment, notice, exchange)
        self._say_aside(aside)

    def _say_aside(self, aside: Aside | None) -> None:
        if aside is not None:
            self._commits.say(
                Event.DEPLOYMENT_SET_ASIDE,
                Level.WARNING,
                deployment=aside.deployment,
                kind=aside.kind.value,
                code=aside.error.code,
                http_status=aside.error.http_status,
                next_try_s=aside.next_try_s,
            )

    async def _leave(self, deployment: Deployment, tokens: int, *, again: bool, retry: bool) -> bool:
        """Have leave to send; False when another deployment should be picked."""
        if deployment.try_leave(tokens, retry=retry):
            self._pulse.beat()
            return True
        with self._stop.waiting():
            has_leave = await deployment.leave(tokens, again=again, retry=retry)
        if has_leave:
            self._pulse.beat()
        return has_leave

    async def _send(self, deployment: Deployment, call: Call, trace: RequestTrace | None) -> Exchange:
        self.in_flight += 1
        try:
            with sending_on():
                if trace is None:
                    return await deployment.send(call)
                exchange = await deployment.send(call, trace.headers)
                trace.reply = exchange.reply.body if isinstance(exchange.reply, Reply) else None
                return exchange
        finally:
            self.in_flight -= 1
            if self._held_back:
                self._control.wake()
            self._pulse.beat()

    def _judge(
        self, items: Sequence[Item], deployment: Deployment, exchange: Exchange
    ) -> tuple[Verdict, list[RowResult]]:
        """What the exchange came to, with the results when it is an answer that holds."""
        verdict = classify(exchange.reply)
        if not isinstance(verdict, Answered):
            return replace(verdict, error=deployment.redacted(verdict.error)), []
        if not isinstance(exchange.reply, Reply):
            return verdict, []
        try:
            results = self._findings.operation.parse(items, exchange.reply)
            self._findings.agree(results)
        except ReplyError as error:
            return BadReply(error=replace(error.info, http_status=exchange.reply.status)), []
        return verdict, results

    def _note(
        self,
        asked: _Asked,
        deployment: Deployment,
        exchange: Exchange,
        verdict: Verdict,
        results: Sequence[RowResult],
        tokens: int,
    ) -> None:
        """Keep the attempt for the journal and say it in the log."""
        reply = exchange.reply
        name = "pack_refused" if isinstance(verdict, RowRefused) and len(asked.items) > 1 else verdict.name
        error = None if isinstance(verdict, Answered) else verdict.error
        hint_s = getattr(verdict, "hint_s", None)
        attempt = Attempt(
            ordinals=tuple(item.ordinal for item in asked.items),
            deployment=deployment.name,
            started_at=exchange.started_at,
            latency_ms=reply.latency_ms,
            status=reply.status if isinstance(reply, Reply) else None,
            verdict=name,
            code=None if error is None else error.code,
            client_request_id=exchange.client_request_id,
            request_id=exchange.request_id,
            apim_request_id=exchange.apim_request_id,
            region=exchange.region,
            estimated_tokens=tokens,
            input_tokens=summed(results, "input_tokens"),
            output_tokens=summed(results, "output_tokens"),
            retry_after_ms=None if hint_s is None else hint_s * 1000,
        )
        asked.attempts.append(attempt)
        self._commits.say(
            Event.ATTEMPT,
            Level.DEBUG,
            first=attempt.ordinals[0],
            last=attempt.ordinals[-1],
            rows=len(attempt.ordinals),
            deployment=attempt.deployment,
            status=attempt.status,
            verdict=attempt.verdict,
            code=attempt.code,
            latency_ms=round(attempt.latency_ms, 3),
            number=len(asked.attempts),
            client_request_id=attempt.client_request_id,
            request_id=attempt.request_id,
            apim_request_id=attempt.apim_request_id,
        )

    def _outcome(
        self, asked: _Asked, deployment: Deployment, exchange: Exchange, results: Sequence[RowResult]
    ) -> Outcome:
        reply = exchange.reply
        return Outcome(
            rows=tuple(without_reply(row, raw=self._rules.raw) for row in results),
            request=RequestInfo(
                attempts=sum(attempt.verdict not in _NO_ATTEMPT for attempt in asked.attempts),
                deployment=deployment.name,
                model=next((row.model for row in results if row.model is not None), deployment.target.model),
                variant=self._rules.variant,
                client_request_id=exchange.client_request_id,
                request_id=exchange.request_id,
                apim_request_id=exchange.apim_request_id,
                region=exchange.region,
                latency_ms=reply.latency_ms,
                finished_at=self._clock.wall(),
            ),
            attempts=tuple(asked.attempts),
        )

    def _split(self, asked: _Asked, deployment: Deployment, exchange: Exchange, error: ErrorInfo) -> _Split:
        """Cut a refused pack down: take out the row that the error names, else halve it."""
        items = asked.items
        named = self._findings.operation.blame(items, error)
        if named is None:
            middle = len(items) // 2
            packs: tuple[tuple[Item, ...], ...] = (items[:middle], items[middle:])
            end = None
        else:
            # Rows that ask for the same were refused with the one that is named.
            guilty = [item for item in items if item.content == items[named].content]
            rest = tuple(item for item in items if item.content != items[named].content)
            packs = (rest,) if rest else ()
            end = self._outcome(asked, deployment, exchange, _all_failed(guilty, error, exchange))
        self._commits.say(
            Event.PACK_SPLIT,
            Level.DEBUG,
            first=items[0].ordinal,
            rows=len(items),
            named=None if named is None else items[named].ordinal,
            code=error.code,
        )
        return _Split(packs=packs, named=end)


_NO_ATTEMPT = ("throttled", "unauthorized")


def _without_echo(error: ErrorInfo, call: Call) -> ErrorInfo:
    """The error for logs and last words: without the service's message where that quotes the request.

    A row's own `error` keeps the message; what leaves the row's columns must hold no prompt.
    """
    if len(call.body) > COMPARED_BYTES:
        return replace(error, message="the service's words are left out: the request is too large to compare them.")
    message = error.message.encode()
    if any(message[at : at + ECHO_BYTES] in call.body for at in range(len(message) - ECHO_BYTES + 1)):
        return replace(error, message="the service's words are left out, since they quote the request.")
    return error


def _all_failed(items: Sequence[Item], error: ErrorInfo, exchange: Exchange) -> list[RowResult]:
    """Every item, failed with the same error; the reply is kept where it is text of a sane size."""
    response = None
    if isinstance(exchange.reply, Reply) and len(exchange.reply.body) <= MAX_STORED_RESPONSE_BYTES:
        response = exchange.reply.body or None
    return [RowResult(ordinal=item.ordinal, error=error, response=response) for item in items]


def _standing(asked: _Asked) -> Outcome | None:
    """The answer in whose place another was asked for, where it may stand for it."""
    if asked.first is None or asked.first.rows[0].values is None:
        return None
    return replace(asked.first, attempts=tuple(asked.attempts))


def _completed(asked: _Asked, outcome: Outcome) -> Outcome:
    """The outcome, with the usage of the answer in whose place it stands; that was paid for as well."""
    if asked.first is None:
        return outcome
    (row,), (first,) = outcome.rows, asked.first.rows
    return replace(outcome, rows=(replace(row, usage=_added(first.usage, row.usage)),))


def _added(one: Usage | None, other: Usage | None) -> Usage | None:
    if one is None or other is None:
        return one or other
    sums: dict[str, Any] = {}
    for field_ in fields(Usage):
        counts = [count for usage in (one, other) if (count := getattr(usage, field_.name)) is not None]
        sums[field_.name] = sum(counts) if counts else None
    return Usage(**sums)
