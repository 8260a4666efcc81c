"""The batch lane: rows become lines of files, files become batches, and their results come back, perhaps a day later.

Each step is in the journal before the call that follows it, and each batch carries our tag, so that whatever happens
between a call and its answer, the service can be asked what became of it before anything is sent again.
"""

from __future__ import annotations

import heapq
import math
import secrets
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from pipeline.errors import RefusedError, ReplyError, StoppedEarlyError
from pipeline.lanes.batch_file import LineResult, LinesFile, Results, line_of, lines_path, prompt_tokens
from pipeline.lanes.control import Control
from pipeline.lanes.pulse import Pulse
from pipeline.lanes.results import summed, without_reply
from pipeline.lanes.stop import Stop, Stopped
from pipeline.lanes.uploads import Uploads
from pipeline.log import Event, Level
from pipeline.model import Attempt, Call, ErrorInfo, ErrorType, Item, Outcome, RequestInfo, RowResult, Target
from pipeline.operations.base import NOTHING, Bound
from pipeline.pace.batches import FileLimits, Room, come_back_s, look_after_s, wait_for_room_s
from pipeline.pace.verdict import Answered, BadReply, RowRefused, Throttled, Transient, Verdict
from pipeline.plan.again import read_again
from pipeline.plan.work import Copies, Settled, Task, Work
from pipeline.service.batch_api import PURPOSE, BatchApi, RemoteBatch
from pipeline.service.classify import classify
from pipeline.service.resource_api import LostError, RefusedCallError
from pipeline.store.files import publish, storage
from pipeline.store.journal import BatchLine, BatchRecord, BatchStep

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.clock import Clock
    from pipeline.lanes.commit import Commits
    from pipeline.lanes.findings import Findings
    from pipeline.lanes.spending import Spending
    from pipeline.plan.plan import Plan
    from pipeline.plan.ranges import PlanRules
    from pipeline.sources.base import Source
    from pipeline.store.journal import Journal, JournalReader, Span

RECALL_LOOKS = 10
"""How many times the least time between two looks the service is asked for a batch whose submission was not answered:
ten minutes by default, for its lists lag."""
COMMITS_AT_ONCE = 256
WRITTEN_AHEAD = 2
"""Files that may wait to be submitted before no further rows are read."""
BAD_REPLIES = 3
"""Answers to one line that hold nothing usable, after which its rows fail."""
FULL_CODES = frozenset({"token_limit_exceeded", "quotaexceeded"})
"""What the service says of a batch for which there is no room at present."""
WIDE_CODES = frozenset({"model_not_found", "model_mismatch", "url_mismatch"})
"""What the service says of lines that is wrong with all of them."""
EQUAL_REFUSALS = 20
"""Lines refused with one code from which on that looks like everybody's."""
LIFE_S = 14 * 86_400
"""Seconds after which the service forgets our files by itself (Azure's shortest)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """What the job says of batches. `folder` is for their files; `look_s` the least seconds between two looks at one.

    `wait`: stay until all batches have ended; else end when nothing more can be submitted or collected now.
    `max_outage_s`: how long a service may not answer before the run ends.
    """

    folder: Path
    variant: str
    raw: str
    max_attempts: int
    max_outage_s: float
    look_s: float
    keep_files: bool
    wait: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlace:
    """A deployment for batches: who is asked, what a file may hold, and what lines say."""

    name: str
    api: BatchApi
    target: Target
    url: str
    endpoint: str
    limits: FileLimits
    room: Room


class BatchLane:
    """Sends rows in batches. One `work` does everything."""

    def __init__(
        self,
        *,
        plan: Plan,
        source: Source,
        plan_rules: PlanRules,
        places: Sequence[BatchPlace],
        journal: Journal,
        findings: Findings,
        commits: Commits,
        rules: BatchRules,
        stop: Stop,
        clock: Clock,
        random: Callable[[], float],
        pulse: Pulse,
        spending: Spending,
        control: Control,
    ) -> None:
        """Wire it up. `pulse` beats at whatever is got done."""
        self._control = control
        self._spending = spending.of_batches()
        self.findings = findings
        self._plan = plan
        self._source = source
        self._plan_rules = plan_rules
        self._places: Mapping[str, BatchPlace] = {place.name: place for place in places}
        self._journal = journal
        self._commits = commits
        self._rules = rules
        self._stop = stop
        self._clock = clock
        self._random = random
        self._pulse = pulse
        self._file: LinesFile | None = None
        self._file_bound = NOTHING
        self._bounds: dict[str, Bound] = {}
        self._short = False
        self._filling: BatchPlace = places[0]
        self._live: dict[str, BatchRecord] = {}
        self._earlier: dict[str, array[int]] = {}
        self._asked_again: dict[str, set[int]] = {}
        self._resumed: set[str] = set()
        self._writing = anyio.Lock()
        self._taken_to: float = 0
        self._following = 0
        self._parked: dict[str, float] = {}
        self._in_room: set[str] = set()
        self._moving = 0
        self._settling = 0
        self._pulling = False
        self._rows_taken = 0
        self._tokens_taken = 0
        self._sleeping: dict[anyio.CancelScope, float] = {}
        self._changed = anyio.Event()
        self.drained = anyio.Event()
        self.ended = False

    @property
    def tokens_a_row(self) -> float:
        """What a row is estimated at, on average of those seen so far."""
        return self._tokens_taken / self._rows_taken if self._rows_taken else 0.0

    def schema(self) -> pa.Schema:
        """The result columns. Raises LookupError while a fact of the run is unknown."""
        return self.findings.operation.schema()

    @property
    def in_flight(self) -> int:
        """How many requests are in batches."""
        return sum(record.count for record in self._live.values() if record.step is not BatchStep.COLLECTED)

    @property
    def works_long(self) -> bool:
        """Whether a file is on its way, which may take long without anything else getting done."""
        return self._moving > 0

    @property
    def waits_until(self) -> float | None:
        """To when a look at a batch, or room for one, is waited for; None where nothing is."""
        return max(self._sleeping.values(), default=None)

    @property
    def unwritten(self) -> int:
        """Rows that were answered, and could not be written."""
        return self._commits.unwritten

    @property
    def records(self) -> tuple[BatchRecord, ...]:
        """The batches on their way."""
        return tuple(self._live.values())

    async def work(self) -> None:
        """Write, submit, follow and collect until every row is committed or the run stops; then `ended` is true."""
        async with anyio.create_task_group() as group:
            try:
                for record in self._known():
                    self._take_up(record, group)
                await self._send_all(group)
                if self._pulling:
                    await self._give_back_unwritten()
            except Stopped:
                pass
            except Exception as error:  # noqa: BLE001 - a failure of the lane is a failure of the run, told once
                self._stop.request(error)
            self.drained.set()
            self._wake()
        if self._file is not None:
            self._file.drop()
            self._file = None
        self.ended = True
        self._wake()

    def pull_back(self) -> None:
        """Submit nothing more, cancel what is under way, and give the plan back whatever comes without a result.

        `drained` is set once nobody else would be handed a row that is in a batch; `work` goes on until all have ended.
        """
        self._pulling = True
        for scope in self._sleeping:
            scope.cancel()
        self._control.wake()
        self._wake()

    async def change(self) -> None:
        """Wait until something has changed: a batch's step, rows given back, `ended`."""
        await self._changed.wait()

    def _known(self) -> list[BatchRecord]:
        """The batches of earlier invocations; their rows are not sent again."""
        with self._journal.reader() as reader:
            known = reader.batches()
            for record in known:
                ordinals = (ordinal for line in reader.batch_lines(record.tag) for ordinal in line.ordinals)
                self._earlier[record.tag] = array("q", sorted(ordinals))
            self._asked_again = asked_again(reader, self._earlier)
        self._resumed = {record.tag for record in known}
        for record in known:
            self._bounds[record.tag] = Bound(input=record.most_input, output=record.most_output)
            self._spending.take(self._bounds[record.tag])
        return known

    # -- writing lines -----------------------------------------------------------------------------------------------

    async def _send_all(self, group: TaskGroup) -> None:
        """Hand every row to a batch, those that come back without a result too, until all of them are committed."""
        kept: list[Task] = []
        while not (self._pulling and self._taken_to > self._resumed_to):
            await self._until(lambda: self._pulling or self._unsubmitted < WRITTEN_AHEAD)
            if not self._pulling and self._taken_to > self._resumed_to:
                self._put_back(kept)
            with self._stop.waiting():
                work = await self._plan.next()
            match work:
                case None:
                    self._taken_to = math.inf
                    self._wake()
                    if kept and not self._pulling:
                        continue
                    # What one batch leaves to be asked again goes in one file, not in one a few hundred lines.
                    await self._until(lambda: self._pulling or not self._settling)
                    await self._close_file(group)
                    if self._pulling or not self._following:
                        break
                    self._end_if_parked()
                    await self._until_more(self._following)
                    continue
                case Settled():
                    await self._commits.rows(work.outcome(self._rules.variant))
                    self._plan.finished(work)
                case Task(items=items):
                    self._rows_taken += len(items)
                    self._tokens_taken += sum(item.tokens for item in items)
                    fresh = tuple(item for item in items if not self._is_under_way(item.ordinal))
                    if fresh and (self._pulling or self._must_wait(fresh)):
                        kept.append(Task(span=work.span, items=fresh))
                    elif fresh:
                        await self._afford(fresh, group)
                        await self._add(fresh, group, tries=0)
            self._taken_to = max(self._taken_to, _last(work) + 1)
            self._wake()
        self._put_back(kept)

    def _put_back(self, tasks: list[Task]) -> None:
        """Give the plan tasks back, in their order; none are left."""
        while tasks:
            self._plan.put_back(tasks.pop())

    def _must_wait(self, items: Sequence[Item]) -> bool:
        """Whether rows wait for money that earlier batches hold, whose own rows are still to be taken first."""
        return self._taken_to <= self._resumed_to and not self._spending.fits(self._spending.bound(items))

    async def _give_back_unwritten(self) -> None:
        """Give the plan back the rows of the file that was not finished."""
        file, self._file = self._file, None
        bound, self._file_bound = self._file_bound, NOTHING
        self._spending.release(bound)
        if file is not None:
            file.drop()
            await self._give_back(file.lines)

    async def _give_back(self, lines: Sequence[BatchLine]) -> None:
        """Give the plan back rows that are in no batch, read once more."""
        wanted = sorted(ordinal for line in lines for ordinal in line.ordinals)
        with self._journal.reader() as reader:
            spans = reader.open_ranges()
        again = read_again(self._source, self.findings.operation, self._plan_rules, spans, wanted)
        while (chunk := await to_thread.run_sync(next, again, None)) is not None:
            for span, item in chunk:
                self._plan.put_back(Task(span=span, items=(item,)))
            self._wake()

    @property
    def _resumed_to(self) -> int:
        """The last row that is in a batch of an earlier invocation, -1 where none is."""
        return max((ordinals[-1] for ordinals in self._earlier.values() if ordinals), default=-1)

    async def _add_again(self, items: tuple[Item, ...], group: TaskGroup, *, tries: int) -> None:
        """Write a line for rows that came back without a result, where what that may cost is left."""
        bound = self._spending.bound(items)
        if not self._spending.fits(bound):
            self._spending.end(bound)
        self._spending.take(bound)
        await self._add(items, group, tries=tries)

    async def _afford(self, items: tuple[Item, ...], group: TaskGroup) -> None:
        """Set aside what a line may cost; where that must be freed first, what is written so far is on its way."""
        bound = self._spending.bound(items)
        if not self._spending.fits(bound):
            await self._close_file(group)
            self._short = True
            self._end_if_parked()
        await self._spending.reserve(bound)
        self._short = False

    async def _until_more(self, followers: int) -> None:
        """Wait until lines are to be sent again, or one batch fewer is followed."""
        await self._until(lambda: self._pulling or self._is_file_due or self._following != followers)

    @property
    def _is_file_due(self) -> bool:
        """Whether a file is begun that nobody adds lines to at present."""
        return self._file is not None and not self._settling

    def _is_under_way(self, ordinal: int) -> bool:
        """Whether a row is in a batch of an earlier invocation."""
        for ordinals in self._earlier.values():
            at = bisect_left(ordinals, ordinal)
            if at < len(ordinals) and ordinals[at] == ordinal:
                return True
        return False

    @property
    def _unsubmitted(self) -> int:
        return sum(
            record.step in {BatchStep.WRITTEN, BatchStep.UPLOADED, BatchStep.SUBMITTING}
            for record in self._live.values()
        )

    async def _add(self, items: tuple[Item, ...], group: TaskGroup, *, tries: int) -> None:
        """Write a line for items that were asked for `tries` times."""
        async with self._writing:
            place = self._filling
            call = self._built(items, place)
            if self._file is not None and not self._fits(items, call, place):
                await self._publish(group)
                place = self._filling
                call = self._built(items, place)
            if self._file is None:
                self._file = LinesFile(self._rules.folder, secrets.token_hex(8), url=place.url)
            self._file.add(items, call, tries=tries)
            self._file_bound += self._spending.bound(items)

    def _built(self, items: Sequence[Item], place: BatchPlace) -> Call:
        return self.findings.operation.build(items, place.target)

    def _fits(self, items: Sequence[Item], call: Call, place: BatchPlace) -> bool:
        assert self._file is not None  # noqa: S101 - asked of a file alone
        limits = place.limits
        if place.room.a_file is not None:
            limits = replace(limits, tokens=place.room.a_file)
        return self._file.filled.fits(
            limits,
            size=len(line_of(items, call, place.url)),
            inputs=sum(item.inputs for item in items),
            tokens=prompt_tokens(items),
        )

    async def _close_file(self, group: TaskGroup) -> None:
        async with self._writing:
            await self._publish(group)

    async def _publish(self, group: TaskGroup) -> None:
        """Make a batch of the lines written so far, and follow it."""
        file, self._file = self._file, None
        if file is None:
            return
        bound, self._file_bound = self._file_bound, NOTHING
        place = self._filling
        await to_thread.run_sync(file.publish)
        record = BatchRecord(
            tag=file.tag,
            deployment=place.name,
            step=BatchStep.WRITTEN,
            since=self._clock.wall(),
            endpoint=place.endpoint,
            count=file.filled.lines,
            bytes=file.filled.bytes,
            tokens=file.filled.tokens,
            most_input=bound.input,
            most_output=bound.output,
        )
        self._bounds[record.tag] = bound
        with anyio.CancelScope(shield=True):
            await self._journal.keep_batch(record, file.lines)
        self._filling = self._emptiest(place)
        self._take_up(record, group)

    def _emptiest(self, last: BatchPlace) -> BatchPlace:
        """The deployment for the next file: that with the fewest tokens in its batches, the last one last."""
        waiting = {
            name: sum(record.tokens for record in self._live.values() if record.deployment == name)
            for name in self._places
        }
        return min(self._places.values(), key=lambda place: (waiting[place.name], place.name == last.name))

    # -- following a batch -------------------------------------------------------------------------------------------

    def _take_up(self, record: BatchRecord, group: TaskGroup) -> None:
        self._live[record.tag] = record
        self._following += 1
        group.start_soon(self._follow, record, group)

    async def _follow(self, record: BatchRecord, group: TaskGroup) -> None:
        """Take a batch from step to step until its results are kept and its files are gone."""
        try:
            place = self._place_of(record)
            if record.step in {BatchStep.SUBMITTING, BatchStep.SUBMITTED}:
                self._enter(place, record)
            while True:
                following = await self._step(place, record, group)
                if following is None:
                    break
                record = following
        except Stopped:
            return
        except LostError as lost:
            self._stop.request(
                StoppedEarlyError(
                    f"the service of {record.deployment} does not answer for its batches ({lost.error.code}: "
                    f"{lost.error.message}); run the same command again later: nothing is lost"
                )
            )
        except RefusedCallError as refused:
            self._stop.request(
                RefusedError(
                    f"{record.deployment} refuses a call for its batches ({refused}); {_advice(refused)}, then run the "
                    "same command again"
                )
            )
        except Exception as error:  # noqa: BLE001 - a failure of one batch is a failure of the run, told once
            self._stop.request(error)
        finally:
            self._following -= 1
            self._wake()

    def _place_of(self, record: BatchRecord) -> BatchPlace:
        place = self._places.get(record.deployment)
        if place is None:
            raise RefusedError(
                f"the batch {record.batch or record.tag} is with the deployment {record.deployment}, which the job "
                "does not name any more; name it again until its results are collected"
            )
        return place

    async def _step(  # noqa: PLR0911 - a step each
        self, place: BatchPlace, record: BatchRecord, group: TaskGroup
    ) -> BatchRecord | None:
        if self._pulling and record.step in {BatchStep.WRITTEN, BatchStep.UPLOADED}:
            await self._withdraw(place, record)
            return None
        match record.step:
            case BatchStep.WRITTEN:
                return await self._upload(place, record)
            case BatchStep.UPLOADED:
                return await self._submit(place, record)
            case BatchStep.SUBMITTING:
                return await self._recall(place, record)
            case BatchStep.SUBMITTED:
                return await self._watch(place, record, group)
            case BatchStep.ENDED:
                return await self._collect(place, record, group)
            case BatchStep.COLLECTED:
                await self._tidy(place, record)
        return None

    async def _keep(self, record: BatchRecord) -> BatchRecord:
        """Write down how far a batch has come, before anything rests on it."""
        if record.step is BatchStep.COLLECTED:
            await self._spending.secure()  # from now on, its lines are not counted again after a kill
        record = replace(record, since=self._clock.wall())
        with anyio.CancelScope(shield=True):
            await self._journal.keep_batch(record)
        self._live[record.tag] = record
        self._wake()
        return record

    async def _withdraw(self, place: BatchPlace, record: BatchRecord) -> None:
        """Take back a batch that was not submitted."""
        with self._journal.reader() as reader:
            lines = reader.batch_lines(record.tag)
        # Forgotten first: rows that are handed out again must not be found in a batch after a crash.
        await self._tidy(place, record)
        await self._give_back(lines)

    async def _upload(self, place: BatchPlace, record: BatchRecord) -> BatchRecord:
        """Upload the lines, unless a file of their name is there already."""
        await self._until_allowed()
        if self._pulling:
            return record
        with self._at_length():
            file = await self._uploads(place).upload(
                lines_path(self._rules.folder, record.tag),
                size=record.bytes,
                expires_s=self._life_s,
                may_be_there=record.tag in self._resumed,
            )
        return await self._keep(replace(record, step=BatchStep.UPLOADED, file=file))

    def _uploads(self, place: BatchPlace) -> Uploads:
        return Uploads(
            api=place.api,
            purpose=PURPOSE,
            stop=self._stop,
            pause=self._pause,
            random=self._random,
            look_s=self._rules.look_s,
        )

    @property
    def _life_s(self) -> int | None:
        return None if self._rules.keep_files else LIFE_S

    async def _submit(self, place: BatchPlace, record: BatchRecord) -> BatchRecord:
        """Submit the file once the service has looked at it, and there is room."""
        assert record.file is not None  # noqa: S101 - it was uploaded
        if not await self._uploads(place).is_processed(record.file):
            return await self._keep(replace(record, step=BatchStep.WRITTEN, file=None))
        refusals = 0
        while True:
            await self._until_allowed()
            await self._room_for(place, record)
            if self._pulling or self._control.is_paused:
                self._leave(place, record)
                return record
            record = await self._keep(replace(record, step=BatchStep.SUBMITTING))
            try:
                with self._stop.sending():
                    batch = await place.api.create(
                        record.file or "", endpoint=record.endpoint, tag=record.tag, expires_s=self._life_s
                    )
            except LostError:
                return record
            except RefusedCallError as refused:
                self._leave(place, record)
                record = await self._keep(replace(record, step=BatchStep.UPLOADED))
                if refused.error.code.lower() not in FULL_CODES:
                    raise
                refusals += 1
                await self._wait_for_room(place, record, refusals)
            else:
                return await self._submitted(place, record, batch)

    async def _submitted(self, place: BatchPlace, record: BatchRecord, batch: RemoteBatch) -> BatchRecord:
        self._commits.say(
            Event.BATCH_SUBMITTED, Level.INFO, deployment=place.name, batch=batch.id, lines=record.count, tag=record.tag
        )
        return await self._keep(replace(record, step=BatchStep.SUBMITTED, batch=batch.id))

    async def _room_for(self, place: BatchPlace, record: BatchRecord) -> None:
        while not place.room.has(record.tokens) and not self._pulling:
            await self._park(record, come_back_s=0.0)
            await self._until(lambda: self._pulling or place.room.has(record.tokens))
        self._parked.pop(record.tag, None)
        # Nobody else may find the same room while the service is asked.
        self._enter(place, record)

    def _enter(self, place: BatchPlace, record: BatchRecord) -> None:
        if record.tag not in self._in_room:
            self._in_room.add(record.tag)
            place.room.enter(record.tokens)

    def _leave(self, place: BatchPlace, record: BatchRecord) -> None:
        if record.tag in self._in_room:
            self._in_room.discard(record.tag)
            place.room.leave(record.tokens)
            self._wake()

    async def _wait_for_room(self, place: BatchPlace, record: BatchRecord, refusals: int) -> None:
        """Wait for other batches to end, ours or somebody else's."""
        self._commits.say(Event.BATCH_WAITS, Level.WARNING, deployment=place.name, tag=record.tag)
        wait_s = wait_for_room_s(refusals, random=self._random)
        await self._park(record, come_back_s=wait_s)
        await self._pause(wait_s)
        self._parked.pop(record.tag, None)

    async def _recall(self, place: BatchPlace, record: BatchRecord) -> BatchRecord:
        """Ask for the batch of a submission that was not answered; submit again only when it cannot be there."""
        while True:
            with self._stop.sending():
                batch = await place.api.find_batch(record.tag)
            if batch is not None:
                return await self._submitted(place, record, batch)
            left_s = record.since + RECALL_LOOKS * self._rules.look_s - self._clock.wall()
            if left_s <= 0:
                self._leave(place, record)
                return await self._keep(replace(record, step=BatchStep.UPLOADED))
            await self._pause(min(left_s, self._rules.look_s / 2))

    async def _watch(self, place: BatchPlace, record: BatchRecord, group: TaskGroup) -> BatchRecord | None:
        """Look at a batch until it has ended."""
        assert record.batch is not None  # noqa: S101 - it was submitted
        silent_since: float | None = None
        cancelled = False
        while True:
            try:
                with self._stop.sending():
                    if self._pulling and not cancelled:
                        await place.api.cancel(record.batch)
                        cancelled = True
                    batch = await place.api.batch(record.batch)
            except LostError:
                now = self._clock.now()
                silent_since = now if silent_since is None else silent_since
                if now - silent_since >= self._rules.max_outage_s:
                    raise
                batch = None
            else:
                self._pulse.beat()
                silent_since = None
                if batch is None:
                    self._leave(place, record)
                    self._spending.lose(self._bounds.pop(record.tag, NOTHING))
                    await self._forget(record)
                    raise StoppedEarlyError(
                        f"the batch {record.batch} of {place.name} is not there any more; run the same command again "
                        "to send its rows once more"
                    )
                if batch.ended:
                    return await self._ended(place, record, batch, group)
            age_s = max(0.0, self._clock.wall() - record.since)
            if batch is not None:
                done = (batch.completed or 0) + (batch.failed or 0)
                await self._park(record, come_back_s=come_back_s(age_s, done=done, total=batch.total or record.count))
            after_s = look_after_s(0.0 if cancelled else age_s, least_s=self._rules.look_s, random=self._random)
            await self._pause(after_s)

    async def _ended(
        self, place: BatchPlace, record: BatchRecord, batch: RemoteBatch, group: TaskGroup
    ) -> BatchRecord | None:
        """Take note of how a batch ended. One that was refused for want of room goes back to be submitted again."""
        self._parked.pop(record.tag, None)
        self._leave(place, record)
        self._commits.say(
            Event.BATCH_ENDED,
            Level.INFO,
            deployment=place.name,
            batch=batch.id,
            state=batch.state,
            completed=batch.completed,
            failed=batch.failed,
        )
        if batch.state == "failed" and not batch.output_file and not batch.error_file:
            codes = {problem.code.lower() for problem in batch.problems}
            if codes and codes <= FULL_CODES:
                record = await self._keep(replace(record, step=BatchStep.UPLOADED, batch=None))
                await self._wait_for_room(place, record, 1)
                return record
            await self._refused(place, record, batch, group)
            return None
        return await self._keep(
            replace(record, step=BatchStep.ENDED, output=batch.output_file, errors=batch.error_file)
        )

    async def _refused(self, place: BatchPlace, record: BatchRecord, batch: RemoteBatch, group: TaskGroup) -> None:
        """End a batch that failed its check: rows whose lines are named fail, the others are sent again."""
        named = {problem.line: problem for problem in batch.problems if problem.line is not None}
        codes = {problem.code.lower() for problem in batch.problems}
        everybody = len(codes) == 1 and len(named) >= min(EQUAL_REFUSALS, record.count)
        if not named or codes & WIDE_CODES or everybody:
            said = "; ".join(f"{problem.code}: {problem.message}" for problem in batch.problems) or "no reason given"
            await self._forget(record)
            raise RefusedError(
                f"{place.name} refused a batch of {record.count} requests ({said}); mend the deployment or the job, "
                "then run the same command again: its rows are pending"
            )
        with self._journal.reader() as reader:
            lines = reader.batch_lines(record.tag)
        faults = {
            lines[line - 1].ordinals[0]: ErrorInfo(
                type=ErrorType.BAD_REQUEST, code=problem.code, message=problem.message
            )
            for line, problem in named.items()
            if 0 < line <= len(lines)
        }
        with self._adding():
            await self._settle(place, record, lines, lambda ordinal: _fault(faults.get(ordinal)), group)
        record = await self._keep(replace(record, step=BatchStep.COLLECTED))
        await self._tidy(place, record)

    # -- collecting results ------------------------------------------------------------------------------------------

    async def _collect(self, place: BatchPlace, record: BatchRecord, group: TaskGroup) -> BatchRecord:
        """Fetch a batch's results, commit them, and have what has none sent again."""
        paths = []
        for kind, file in (("output", record.output), ("errors", record.errors)):
            if file is not None:
                path = self._rules.folder / f"{record.tag}.{kind}.jsonl"
                if not path.exists():
                    await self._download(place, file, path)
                paths.append(path)
        with self._journal.reader() as reader:
            lines = reader.batch_lines(record.tag)
        with await to_thread.run_sync(lambda: Results(*paths)) as results, self._adding():
            await self._settle(place, record, lines, results.of, group)
        return await self._keep(replace(record, step=BatchStep.COLLECTED))

    async def _download(self, place: BatchPlace, file: str, path: Path) -> None:
        part = path.with_suffix(".part")
        try:
            with storage(f"writing {path}"), part.open("wb") as to, self._stop.sending(), self._at_length():
                await place.api.download(file, to)
            with storage(f"writing {path}"):
                await to_thread.run_sync(publish, part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    async def _settle(
        self,
        place: BatchPlace,
        record: BatchRecord,
        lines: Sequence[BatchLine],
        result_of: Callable[[int], LineResult | None],
        group: TaskGroup,
    ) -> None:
        """Commit what lines came to, in the order of the rows, and write those anew that came to nothing."""
        with self._journal.reader() as reader:
            spans = reader.open_ranges()
            done = _done(reader, spans, lines)
        elsewhere = self._asked_again.get(record.tag, set())
        left = (replace(line, ordinals=tuple(one for one in line.ordinals if one not in elsewhere)) for line in lines)
        open_lines = sorted(
            (line for line in left if line.ordinals and not done(line.ordinals[0])), key=lambda line: line.ordinals[0]
        )
        by_first = {line.ordinals[0]: line for line in open_lines}
        wanted = sorted(ordinal for line in open_lines for ordinal in line.ordinals)
        again = read_again(self._source, self.findings.operation, self._plan_rules, spans, wanted)
        held: dict[int, tuple[int, Item]] = {}
        owner = {ordinal: line.ordinals[0] for line in open_lines for ordinal in line.ordinals}
        missing = {line.ordinals[0]: len(line.ordinals) for line in open_lines}
        while (chunk := await to_thread.run_sync(next, again, None)) is not None:
            ready: list[tuple[BatchLine, int, tuple[Item, ...]]] = []
            for span, item in chunk:
                held[item.ordinal] = (span, item)
                first = owner[item.ordinal]
                missing[first] -= 1
                if not missing[first]:
                    line = by_first[first]
                    pairs = [held.pop(ordinal) for ordinal in line.ordinals]
                    ready.append((line, pairs[0][0], tuple(each for _, each in pairs)))
            for start in range(0, len(ready), COMMITS_AT_ONCE):
                await self._settle_some(place, record, ready[start : start + COMMITS_AT_ONCE], result_of, group)

    async def _settle_some(
        self,
        place: BatchPlace,
        record: BatchRecord,
        ready: Sequence[tuple[BatchLine, int, tuple[Item, ...]]],
        result_of: Callable[[int], LineResult | None],
        group: TaskGroup,
    ) -> None:
        last = max(line.ordinals[-1] for line, _, _ in ready)
        # A row that the plan has yet to hand out would be handed out as if nobody had asked for it.
        await self._until(lambda: self._taken_to > last)
        anew: list[tuple[int, int, tuple[Item, ...]]] = []
        async with anyio.create_task_group() as commits:
            for line, span, items in ready:
                outcome = await self._outcome(place, record, line, items, result_of(line.ordinals[0]))
                if isinstance(outcome, Outcome):
                    commits.start_soon(self._commit, span, outcome)
                else:
                    anew += [(line.tries + 1, span, pack) for pack in outcome]
        for tries, span, pack in anew:
            if self._pulling:
                self._plan.put_back(Task(span=span, items=pack))
            else:
                await self._add_again(pack, group, tries=tries)

    async def _commit(self, span: int, outcome: Outcome) -> None:
        await self._commits.rows(outcome)
        self._plan.rows_finished(span, len(outcome.rows))

    async def _outcome(
        self,
        place: BatchPlace,
        record: BatchRecord,
        line: BatchLine,
        items: tuple[Item, ...],
        result: LineResult | None,
    ) -> Outcome | list[tuple[Item, ...]]:
        """What a line came to: its rows' end, or the packs to be asked for again."""
        tries = line.tries + 1
        if result is None:
            result = _fault(_NO_RESULT)
        assert result is not None  # noqa: S101 - there is one now
        verdict = BadReply(error=result.error or _NO_RESULT) if result.reply is None else classify(result.reply)
        name, error = verdict.name, None if isinstance(verdict, Answered) else verdict.error
        if not isinstance(verdict, Answered):
            self._count(record, items, result, verdict)
        rows: list[RowResult] = []
        match verdict:
            case Answered():
                read = await self._read(place, record, items, result, verdict)
                if isinstance(read, ErrorInfo):
                    name, error = "bad_reply", read
                    if tries < BAD_REPLIES:
                        return [items]
                    rows = _failed(items, read, result)
                else:
                    rows = read
            case RowRefused(error=refusal):
                if any(item.content != items[0].content for item in items):
                    middle = len(items) // 2
                    return [items[:middle], items[middle:]]
                rows = _failed(items, refusal, result)
            case Transient() | Throttled() | BadReply():
                assert error is not None  # noqa: S101 - only an answer has none
                for_good = result.error is not None and error.code not in _LATER_CODES
                if tries < self._rules.max_attempts and not for_good:
                    return [items]
                rows = _failed(items, error, result)
            case _:
                assert error is not None  # noqa: S101 - only an answer has none
                raise RefusedError(
                    f"{place.name} refuses the requests of its batches ({error.code}: {error.message}); mend that, "
                    "then run the same command again: what was answered is kept"
                )
        return self._made(place, record, line, result, rows, name, error)

    async def _read(
        self, place: BatchPlace, record: BatchRecord, items: Sequence[Item], result: LineResult, verdict: Answered
    ) -> list[RowResult] | ErrorInfo:
        """Read an answer, or say what is wrong with it; either way it was paid for."""
        assert result.reply is not None  # noqa: S101 - it was classified
        try:
            rows = self.findings.operation.parse(items, result.reply)
            self.findings.agree(rows)
        except ReplyError as bad:
            error = replace(bad.info, http_status=result.reply.status)
            self._count(record, items, result, BadReply(error=error))
            return error
        self._count(record, items, result, verdict, rows)
        await self.findings.learn(rows, place.name)
        return rows

    def _count(
        self,
        record: BatchRecord,
        items: Sequence[Item],
        result: LineResult,
        verdict: Verdict,
        rows: Sequence[RowResult] = (),
    ) -> None:
        """Count what a line cost in the place of what it might have; one that was not answered costs nothing."""
        held, bound = self._bounds.get(record.tag, NOTHING), self._spending.bound(items)
        # A batch of an invocation without a budget set nothing aside for its lines.
        bound = Bound(input=min(held.input, bound.input), output=min(held.output, bound.output))
        self._bounds[record.tag] = held - bound
        if result.reply is None:
            self._spending.release(bound)
        else:
            self._spending.settle(bound, result.reply, verdict, rows)

    def _made(
        self,
        place: BatchPlace,
        record: BatchRecord,
        line: BatchLine,
        result: LineResult,
        rows: Sequence[RowResult],
        verdict: str,
        error: ErrorInfo | None,
    ) -> Outcome:
        attempt = Attempt(
            ordinals=line.ordinals,
            deployment=place.name,
            started_at=record.since,
            latency_ms=0.0,
            status=None if result.reply is None else result.reply.status,
            verdict=verdict,
            code=None if error is None else error.code,
            client_request_id=f"{record.batch}/row-{line.ordinals[0]}",
            request_id=result.request_id,
            apim_request_id=None,
            region=None,
            estimated_tokens=0,
            input_tokens=summed(rows, "input_tokens"),
            output_tokens=summed(rows, "output_tokens"),
            retry_after_ms=None,
        )
        request = RequestInfo(
            attempts=line.tries + 1,
            deployment=place.name,
            model=next((row.model for row in rows if row.model is not None), place.target.model),
            variant=self._rules.variant,
            request_id=result.request_id,
            finished_at=self._clock.wall(),
        )
        return Outcome(
            rows=tuple(without_reply(row, raw=self._rules.raw) for row in rows),
            request=request,
            attempts=(attempt,),
            batched=True,
        )

    async def _tidy(self, place: BatchPlace, record: BatchRecord) -> None:
        """Delete what the service keeps of a batch whose results are safe, and forget it."""
        if not self._rules.keep_files:
            for file in (record.file, record.output, record.errors):
                if file is not None:
                    with self._stop.sending():
                        await place.api.delete_file(file)
        await self._forget(record)

    async def _forget(self, record: BatchRecord) -> None:
        left = self._bounds.pop(record.tag, NOTHING)
        if record.overtaken:
            self._spending.lose(left)  # lines of rows that others finished: billed as well
        else:
            self._spending.release(left)
        with anyio.CancelScope(shield=True):
            await self._spending.secure()  # the record was what a kill left of it
            await self._journal.drop_batch(record.tag)
        self._live.pop(record.tag, None)
        self._earlier.pop(record.tag, None)
        for path in self._rules.folder.glob(f"{record.tag}.*"):
            path.unlink(missing_ok=True)

    @contextmanager
    def _adding(self) -> Iterator[None]:
        """Somebody may add lines to the file that is begun."""
        self._settling += 1
        try:
            yield
        finally:
            self._settling -= 1
            self._wake()

    @contextmanager
    def _at_length(self) -> Iterator[None]:
        self._moving += 1
        try:
            yield
        finally:
            self._moving -= 1

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        self._pulse.beat()
        self._changed.set()
        self._changed = anyio.Event()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            with self._stop.waiting():
                await self._changed.wait()

    async def _until_allowed(self) -> None:
        """Wait while the run is paused; what is at the service already is looked at and collected all the same."""
        while self._control.is_paused and not self._pulling:
            with self._stop.waiting():
                await self._control.changes()

    async def _pause(self, seconds: float) -> None:
        """Wait, unless everything is pulled back meanwhile."""
        with self._stop.waiting(), anyio.CancelScope() as scope:
            self._sleeping[scope] = self._clock.now() + seconds
            try:
                await self._clock.sleep(seconds)
            finally:
                self._sleeping.pop(scope, None)

    async def _park(self, record: BatchRecord, *, come_back_s: float) -> None:
        """Note that a batch can only be waited for; where the run is not to wait, end it when that holds for all."""
        self._parked[record.tag] = come_back_s
        self._end_if_parked()

    def _end_if_parked(self) -> None:
        if self._rules.wait or len(self._parked) < self._following:
            return
        blocked = self._short or self._unsubmitted >= WRITTEN_AHEAD
        if blocked or (self._taken_to == math.inf and self._file is None):
            left = [seconds for seconds in self._parked.values() if seconds > 0]
            then = datetime.fromtimestamp(self._clock.wall() + min(left, default=0.0), UTC)
            self._stop.request(
                StoppedEarlyError(
                    f"{len(self._live)} batches with {self.in_flight} requests are under way; run the same command "
                    f"again after {then:%Y-%m-%d %H:%M} UTC to collect their results"
                )
            )
            raise Stopped


_NO_RESULT = ErrorInfo(type=ErrorType.REPLY, code="no_result", message="the batch ended without a result for this row")
_LATER_CODES = frozenset({"no_result", "batch_expired", "batch_cancelled"})


def asked_again(reader: JournalReader, batches: Mapping[str, Sequence[int]]) -> dict[str, set[int]]:
    """Rows of batches, by tag, that another batch asks for anew: it was written from what that one had left over.

    `batches` are the rows of each, in order. A kill before the first was told off leaves both.
    """
    doubled: set[int] = set()
    last = -1
    for ordinal in heapq.merge(*batches.values()):
        if ordinal == last:
            doubled.add(ordinal)
        last = ordinal
    found: dict[str, set[int]] = {}
    latest: dict[int, tuple[int, str]] = {}
    for tag in batches if doubled else ():
        for line in reader.batch_lines(tag):
            for ordinal in doubled.intersection(line.ordinals):
                tries, other = latest.get(ordinal, (-1, tag))
                if line.tries > tries:
                    latest[ordinal] = line.tries, tag
                if other != tag:
                    found.setdefault(other if line.tries > tries else tag, set()).add(ordinal)
    return found


def _last(work: Work) -> int:
    match work:
        case Task(items=items):
            return items[-1].ordinal
        case Settled(rows=rows):
            return rows[-1].ordinal
        case Copies(rows=copies):
            return copies[-1][0]


def _fault(error: ErrorInfo | None) -> LineResult | None:
    return None if error is None else LineResult(reply=None, error=error, request_id=None)


def _failed(items: Sequence[Item], error: ErrorInfo, result: LineResult) -> list[RowResult]:
    response = None if result.reply is None else result.reply.body or None
    return [RowResult(ordinal=item.ordinal, error=error, response=response) for item in items]


def _advice(refused: RefusedCallError) -> str:
    if refused.status == 401:  # noqa: PLR2004 - Unauthorized
        return "check the credentials"
    if refused.status in {403, 404}:
        return "check that the resource offers files and batches, and who may use them"
    return "mend that"


def _done(reader: JournalReader, spans: Sequence[Span], lines: Sequence[BatchLine]) -> Callable[[int], bool]:
    """Whether a row is committed already: the journal has it, or it is in no open range any more."""
    if not lines:
        return lambda _: True
    first, last = min(line.ordinals[0] for line in lines), max(line.ordinals[-1] for line in lines)
    flags = reader.done(first, last)
    firsts = [span.first for span in spans]

    def done(ordinal: int) -> bool:
        at = bisect_right(firsts, ordinal) - 1
        return bool(flags[ordinal - first]) or at < 0 or ordinal > spans[at].last

    return done
