"""The story of a job that trains a model: rows checked and written as examples, one job at the service, its events."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread

from pipeline.clock import utc
from pipeline.engines.ending import Ending, ending_of
from pipeline.engines.standing import end_at_deadline, keep_summary, tell_end, tell_summary
from pipeline.errors import (
    ExamplesError,
    InputChangedError,
    PipelineError,
    RefusedError,
    StoppedEarlyError,
)
from pipeline.job.spec import is_azure
from pipeline.job.training import asked_of, training_usd
from pipeline.lanes.stop import Stop, Stopped
from pipeline.lanes.tuning import TuningLane, TuningRules
from pipeline.log import Event, EventLog
from pipeline.plan.examples import Examples, example_rules, second_input, write_examples
from pipeline.service.address import Family, address
from pipeline.service.pool import Pool, open_pool
from pipeline.store.earlier import note_run
from pipeline.store.files import private_folder, sha256_of, storage
from pipeline.store.journal import Journal
from pipeline.store.summary import RowCounts, Summary, TrainingState
from pipeline.store.training import (
    EVENTS,
    METRICS,
    Mistake,
    TrainingRecord,
    TrainingStep,
    note_training,
    write_mistakes,
)

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.job.spec import Job
    from pipeline.operations.base import Operation
    from pipeline.service.http_log import HttpLog
    from pipeline.service.wire import Transport
    from pipeline.sources.base import Source
    from pipeline.store.earlier import Earlier
    from pipeline.store.folder import Layout

MOST_SAID = 20
"""Mistakes that the message of a refusal names; `pipeline errors` lists all."""
_CHECKED = "check"


@dataclass(slots=True, kw_only=True)
class Training:
    """One invocation of a job that trains a model, under the folder's lock. `wait` and `cancel` are the caller's."""

    job: Job
    layout: Layout
    source: Source
    operation: Operation
    log: EventLog
    clock: Clock
    dice: Callable[[], float]
    watcher: Callable[[Summary], None] | None
    wait: bool
    cancel: bool
    stop: Stop
    http_log: HttpLog | None
    rows: RowCounts = field(default_factory=RowCounts)
    record: TrainingRecord | None = None
    lane: TuningLane | None = None
    began: float = 0.0
    started_at: str | None = None

    async def go(self, known: Earlier | None, transport: Transport | None) -> Summary:
        """Take the training as far as it goes, and say what came of it."""
        job, self.began, self.started_at = self.job, self.clock.now(), utc(self.clock.wall())
        second = await to_thread.run_sync(lambda: second_input(self.job))
        private_folder(self.layout.training)
        await to_thread.run_sync(self._check_input, known, second)
        async with (
            self._open_journal() as journal,
            open_pool(job, clock=self.clock, random=self.dice, transport=transport, http_log=self.http_log) as pool,
        ):
            await self._begin(journal, known, second)
            async with anyio.create_task_group() as watching:
                tell = partial(
                    tell_summary,
                    self.layout.summary,
                    lambda: self._summary(Ending(state="running")),
                    watcher=self.watcher,
                    stop=self.stop,
                )
                watching.start_soon(keep_summary, tell, self.clock)
                watching.start_soon(lambda: end_at_deadline(self.job.run.deadline_s, stop=self.stop, clock=self.clock))
                watching.start_soon(self._abandon_after_grace)
                await self._train(journal, pool, second)
                watching.cancel_scope.cancel()
        return self._tell(self._summary(ending_of(self.stop.cause)))

    async def _train(self, journal: Journal, pool: Pool, second: Source | None) -> None:
        """Do all of it; what ends it early is the stop's cause."""
        try:
            resumed = self.record is not None
            if self.record is None:
                await self._write(journal, pool, second)
            assert self.record is not None  # noqa: S101 - it was written, or an error raised
            self._count(self.record)
            deployment = pool.deployments[0]
            self.lane = TuningLane(
                api=deployment.tuning_api(),
                record=self.record,
                resumed=resumed,
                journal=journal,
                layout=self.layout,
                rules=TuningRules(
                    model=self.job.deployments[0].model,
                    asked=asked_of(self.job.request),
                    look_s=self.job.run.poll_s,
                    max_outage_s=self.job.run.max_outage_s,
                    keep_files=self.job.run.keep_files,
                    compression=self.job.output.compression,
                    wait=self.wait,
                    cancel=self.cancel,
                ),
                stop=self.stop,
                log=self.log,
                clock=self.clock,
                random=self.dice,
            )
            await self.lane.work()
            _judge(self.lane.record)
        except Stopped:
            pass
        except Exception as error:  # noqa: BLE001 - a failure is told once, in the summary
            self.stop.request(error)

    # -- the input ---------------------------------------------------------------------------------------------------

    def _examples(self, second: Source | None, *, tag: str) -> Examples:
        return write_examples(
            self.source,
            self.operation,
            example_rules(self.job, second),
            folder=self.layout.training,
            tag=tag,
            beat=self._beat,
        )

    def _beat(self) -> None:
        if self.stop.cause is not None:
            raise Stopped

    def _check_input(self, known: Earlier | None, second: Source | None) -> None:
        """Make sure that a training which is under way, or done, is that of this input. Blocking."""
        record = None if known is None else known.training
        if known is None or record is None or known.files == self._files(second):
            return
        now = self._examples(second, tag=_CHECKED)
        for file in now.files:
            (self.layout.training / file.name).unlink(missing_ok=True)
        if [file.sha256 for file in now.files] != [file.sha256 for file in record.files]:
            raise InputChangedError(
                "the input changed: its examples are not those of the training that this folder holds; put the old "
                "input back, or train anew with --fresh (the old results are moved aside, not deleted)"
            )

    def _files(self, second: Source | None) -> list[list[object]]:
        files = [*self.source.files, *(() if second is None else second.files)]
        return [[str(file.path), file.size, file.mtime_ns, file.inode] for file in files]

    async def _write(self, journal: Journal, pool: Pool, second: Source | None) -> None:
        """Write the examples, or say what is wrong with them. Raises ExamplesError."""
        tag = secrets.token_hex(8)
        examples = await to_thread.run_sync(lambda: self._examples(second, tag=tag))
        failed = len(examples.mistakes)
        self.rows = RowCounts(total=examples.rows, ok=examples.rows - failed, failed=failed, pending=0)
        if examples.mistakes or examples.whole:
            await to_thread.run_sync(write_mistakes, self.layout.mistakes, examples.mistakes)
            raise ExamplesError(_refusal(examples))
        self.record = TrainingRecord(
            tag=tag,
            deployment=pool.deployments[0].name,
            step=TrainingStep.WRITTEN,
            since=self.clock.wall(),
            files=examples.files,
        )
        await note_training(journal, self.record)

    # -- the folder --------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _open_journal(self) -> AsyncIterator[Journal]:
        journal = Journal(self.layout.journal)
        try:
            yield journal
        finally:
            with anyio.CancelScope(shield=True):
                await journal.close()

    async def _begin(self, journal: Journal, known: Earlier | None, second: Source | None) -> None:
        """Note what the run is, and clear away what is of no use any more."""
        self.record = known.training if known is not None else None
        kept = "results" if self.record is None else self.record.tag
        with storage(f"clearing {self.layout.training}"):
            for path in self.layout.training.iterdir():
                if not path.name.startswith((f"{kept}.", "results.")):
                    path.unlink()
        if self.record is not None and self.record.step is TrainingStep.DONE and not self._is_whole(journal):
            self.record = replace(self.record, step=TrainingStep.ENDED)
        files = self._files(second)
        await note_run(journal, job=self.job, schema=self.source.schema, files=files, variants={})
        self.log.emit(
            Event.RUN_RESUMED if known is not None else Event.RUN_STARTED,
            job=self.job.name,
            operation=self.job.operation,
            done=0,
            workers=1,
        )

    def _is_whole(self, journal: Journal) -> bool:
        """Whether the files of a training that is done are as they were written."""
        with journal.reader() as reader:
            sums = {file.name: file.sha256 for file in reader.files()}
        paths = [self.layout.root / name for name in (EVENTS, METRICS)]
        with storage(f"reading {self.layout.root}"):
            return all(path.is_file() and sha256_of(path) == sums.get(path.name) for path in paths)

    # -- what it has come to -----------------------------------------------------------------------------------------

    def _count(self, record: TrainingRecord) -> None:
        examples = sum(file.examples for file in record.files)
        self.rows = RowCounts(total=examples, ok=examples, pending=0)

    def _summary(self, ending: Ending) -> Summary:
        record = self.lane.record if self.lane is not None else self.record
        return Summary(
            state=ending.state,
            reason=ending.reason,
            exit_code=ending.exit_code,
            rows=self.rows,
            cost_usd=None if record is None else training_usd(self.job, record.trained_tokens),
            seconds=round(self.clock.now() - self.began, 3),
            started_at=self.started_at,
            updated_at=utc(self.clock.wall()),
            output=str(self.layout.root),
            job=self.job.name,
            job_file=str(self.job.file.absolute()),
            fine_tuned_model=None if record is None else record.model,
            training=self._state(record),
        )

    def _state(self, record: TrainingRecord | None) -> TrainingState:
        base = self.job.deployments[0].model
        if record is None:
            return TrainingState(model=base)
        return TrainingState(
            job=record.job,
            state=record.state,
            model=base,
            examples=record.files[0].examples,
            validation_examples=sum(file.examples for file in record.files[1:]),
            trained_tokens=record.trained_tokens,
            deploy=None if record.model is None else deploy_command(self.job, record.model),
        )

    async def _abandon_after_grace(self) -> None:
        await self.stop.presses.wait()
        await self.clock.sleep(self.job.run.grace_s)
        self.stop.abandon()

    def _tell(self, summary: Summary) -> Summary:
        """Leave the last summary where everybody looks for it. Raises the cause again where it is a defect."""
        summary = tell_end(summary, path=self.layout.summary, log=self.log, watcher=self.watcher)
        if self.stop.cause is not None and not isinstance(self.stop.cause, PipelineError):
            raise self.stop.cause
        return summary


def deploy_command(job: Job, model: str) -> str | None:
    """Give the command that makes a trained model answer; None where it does so by itself (not on Azure)."""
    spec = job.deployments[0]
    if Family(spec.api) is Family.OPENAI:
        return None
    place = address(endpoint=spec.endpoint, deployment=spec.deployment, api=spec.api, api_version=spec.api_version)
    resource = place.host.partition(".")[0] if is_azure(spec.endpoint) else "RESOURCE"
    name = job.request.get("suffix") or f"{job.name}-tuned"
    return (
        "az cognitiveservices account deployment create --resource-group RESOURCE_GROUP "
        f"--name {shlex.quote(resource)} --deployment-name {shlex.quote(str(name))} "
        f"--model-name {shlex.quote(model)} --model-version 1 --model-format OpenAI "
        "--sku-name Standard --sku-capacity 1"
    )


def _judge(record: TrainingRecord) -> None:
    """Raise what a training without a model ends the run with."""
    anew = "mend the job or its input, then train anew with --fresh (the old results are moved aside, not deleted)"
    if record.state == "cancelled":
        raise StoppedEarlyError(f"the training {record.job} was cancelled; train anew with --fresh")
    if record.state != "succeeded" or record.model is None:
        raise RefusedError(f"the training {record.job} failed ({record.problem or 'no reason given'}); {anew}")


def _refusal(examples: Examples) -> str:
    """Say what is wrong with an input, the first mistakes by name."""
    lines = [_said(mistake) for mistake in examples.mistakes[:MOST_SAID]]
    more = len(examples.mistakes) - len(lines)
    if more:
        lines.append(f"and {more} more: `pipeline errors` lists all")
    return "\n".join(["nothing was uploaded: the examples are to be put right first", *lines, *examples.whole])


def _said(mistake: Mistake) -> str:
    name = "" if mistake.id is None else f" ({str(mistake.id)[:40]})"
    where = "" if mistake.where is None else f"{mistake.where} "
    return f"{where}row {mistake.ordinal}{name}: {mistake.error.code}: {mistake.error.message}"
