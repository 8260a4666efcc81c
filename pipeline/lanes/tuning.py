"""The way of a training: files of examples are uploaded, the job is created, followed to its end, and collected.

Each step is in the journal before the call that follows it, and the job carries our tag, so that whatever happens
between a call and its answer, the service can be asked what became of it before anything is sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from pipeline.errors import RefusedError, StoppedEarlyError
from pipeline.lanes.uploads import Uploads
from pipeline.log import Event, Level
from pipeline.pace.batches import look_after_s, wait_for_room_s
from pipeline.service.resource_api import LostError, RefusedCallError
from pipeline.service.tuning_api import PURPOSE, RemoteTraining, TuningApi, seconds_of
from pipeline.store.files import TEMPORARY_SUFFIX, open_private, publish, storage
from pipeline.store.training import (
    EVENTS,
    METRICS,
    ExamplesFile,
    TrainingRecord,
    TrainingStep,
    event_rows,
    note_training,
    write_events,
    write_metrics,
)

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.lanes.stop import Stop
    from pipeline.log import EventLog
    from pipeline.store.folder import Layout
    from pipeline.store.journal import Journal

RECALL_LOOKS = 10
"""How many times the least time between two looks the service is asked for a job whose creation was not answered."""
_TOO_MANY = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningRules:
    """What the job says of its training: what is asked for, of which model, and how long it may be waited for.

    `look_s` is the least time between two looks, `max_outage_s` how long a service may not answer. `wait`: stay until
    the training has ended. `cancel`: have it ended by the service.
    """

    model: str
    asked: Mapping[str, Any]
    look_s: float
    max_outage_s: float
    keep_files: bool
    compression: str
    wait: bool
    cancel: bool = False


class TuningLane:
    """Takes one training from step to step."""

    def __init__(
        self,
        *,
        api: TuningApi,
        record: TrainingRecord,
        resumed: bool,
        journal: Journal,
        layout: Layout,
        rules: TuningRules,
        stop: Stop,
        log: EventLog,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        """`resumed`: an earlier invocation had the record, and may have come further than it says."""
        self.record = record
        self._api = api
        self._resumed = resumed
        self._journal = journal
        self._layout = layout
        self._rules = rules
        self._stop = stop
        self._log = log
        self._clock = clock
        self._random = random
        self._cancelled = False
        self._uploads = Uploads(
            api=api, purpose=PURPOSE, stop=stop, pause=self._pause, random=random, look_s=rules.look_s
        )

    async def work(self) -> None:
        """Go on until the training has ended and everything of it is kept.

        Raises Stopped, StoppedEarlyError (the service does not answer, or the run is not to wait), RefusedError,
        StorageError.
        """
        try:
            while self.record.step is not TrainingStep.DONE:
                await self._step()
        except LostError as lost:
            raise StoppedEarlyError(
                f"the service of {self.record.deployment} does not answer for its training ({lost.error.code}: "
                f"{lost.error.message}); run the same command again later: nothing is lost"
            ) from lost
        except RefusedCallError as refused:
            raise RefusedError(
                f"{self.record.deployment} refuses a call for its training ({refused}); {_advice(refused)}, then run "
                "the same command again"
            ) from refused

    async def _step(self) -> None:
        if self._rules.cancel and self.record.step in {TrainingStep.WRITTEN, TrainingStep.UPLOADED}:
            raise StoppedEarlyError("there is no training to cancel: none was created yet")
        match self.record.step:
            case TrainingStep.WRITTEN:
                await self._upload()
            case TrainingStep.UPLOADED:
                await self._create()
            case TrainingStep.CREATING:
                await self._recall()
            case TrainingStep.CREATED:
                await self._follow()
            case TrainingStep.ENDED:
                await self._collect()
            case _:
                await self._tidy()

    async def _keep(self, **changed: Any) -> None:
        """Write down how far the training has come, before anything rests on it."""
        self.record = replace(self.record, **changed, since=self._clock.wall())
        with anyio.CancelScope(shield=True):
            await note_training(self._journal, self.record)

    # -- files -------------------------------------------------------------------------------------------------------

    async def _upload(self) -> None:
        """Upload the files of examples, unless ones of their names are there already."""
        for index, file in enumerate(self.record.files):
            if file.file is None:
                uploaded = replace(
                    file,
                    file=await self._uploads.upload(
                        self._layout.training / file.name, size=file.bytes, expires_s=None, may_be_there=self._resumed
                    ),
                )
                files = (*self.record.files[:index], uploaded, *self.record.files[index + 1 :])
                await self._keep(files=files)
        for file in self.record.files:
            if not await self._uploads.is_processed(file.file or ""):
                await self._keep(files=_not_uploaded(self.record.files))
                raise RefusedError(
                    f"{self.record.deployment} cannot use the file {file.file} of {file.examples} examples; run the "
                    "same command again to upload it anew"
                )
        await self._keep(step=TrainingStep.UPLOADED)

    # -- the job -----------------------------------------------------------------------------------------------------

    async def _create(self) -> None:
        """Create the job, once."""
        refusals = 0
        while True:
            await self._keep(step=TrainingStep.CREATING)
            files = [file.file or "" for file in self.record.files]
            try:
                with self._stop.sending():
                    training = await self._api.create(
                        model=self._rules.model, files=files, tag=self.record.tag, asked=self._rules.asked
                    )
            except LostError as lost:
                if lost.error.http_status != _TOO_MANY:
                    return
                refusals += 1
                await self._keep(step=TrainingStep.UPLOADED)
                await self._wait_for_room(refusals, lost)
            except RefusedCallError:
                # The files of a job that cannot be as it is would be left behind when the job is mended.
                await self._keep(step=TrainingStep.UPLOADED)
                await self._delete([file for file in files if file])
                await self._keep(step=TrainingStep.WRITTEN, files=_not_uploaded(self.record.files))
                raise
            else:
                await self._created(training)
                return

    async def _created(self, training: RemoteTraining) -> None:
        self._log.emit(
            Event.TRAINING_CREATED, deployment=self.record.deployment, training=training.id, tag=self.record.tag
        )
        await self._keep(step=TrainingStep.CREATED, job=training.id, state=training.state)

    async def _wait_for_room(self, refusals: int, lost: LostError) -> None:
        """Wait for other trainings of the resource to end: only so many may be queued."""
        wait_s = wait_for_room_s(refusals, random=self._random)
        self._log.emit(Event.TRAINING_WAITS, Level.WARNING, deployment=self.record.deployment, seconds=round(wait_s, 1))
        if not self._rules.wait:
            raise StoppedEarlyError(
                f"{self.record.deployment} takes no further training at present ({lost.error.message}); run the same "
                "command again later"
            )
        await self._pause(wait_s)

    async def _recall(self) -> None:
        """Ask for the job whose creation was not answered; create it again only when it cannot be there."""
        while True:
            with self._stop.sending():
                found = await self._api.find_training(self.record.tag, file=self.record.files[0].file or "")
            if found is not None:
                await self._created(found)
                return
            left_s = self.record.since + RECALL_LOOKS * self._rules.look_s - self._clock.wall()
            if left_s <= 0:
                await self._keep(step=TrainingStep.UPLOADED)
                return
            await self._pause(min(left_s, self._rules.look_s / 2))

    async def _follow(self) -> None:
        """Look at the job until it has ended."""
        silent_since: float | None = None
        while True:
            try:
                training = await self._look()
            except LostError:
                now = self._clock.now()
                silent_since = now if silent_since is None else silent_since
                if now - silent_since >= self._rules.max_outage_s:
                    raise
            else:
                silent_since = None
                if training.ended:
                    return await self._ended(training)
                self._end_if_not_to_wait()
            age_s = max(0.0, self._clock.wall() - self.record.since)
            await self._pause(look_after_s(age_s, least_s=self._rules.look_s, random=self._random))

    async def _look(self) -> RemoteTraining:
        name = self.record.job or ""
        if self._rules.cancel and not self._cancelled:
            self._cancelled = True
            with self._stop.sending():
                await self._api.cancel(name)
        with self._stop.sending():
            training = await self._api.training(name)
        if training is None:
            raise RefusedError(
                f"the training {name} of {self.record.deployment} is not there any more; start another one with --fresh"
            )
        if training.state != self.record.state:
            self._say_state(training)
            self.record = replace(self.record, state=training.state)
        return training

    def _say_state(self, training: RemoteTraining) -> None:
        self._log.emit(
            Event.TRAINING_STATE, deployment=self.record.deployment, training=training.id, state=training.state
        )

    def _end_if_not_to_wait(self) -> None:
        if self._rules.wait:
            return
        then = datetime.fromtimestamp(self._clock.wall() + self._rules.look_s, UTC)
        raise StoppedEarlyError(
            f"the training {self.record.job} is {self.record.state}; run the same command again after "
            f"{then:%Y-%m-%d %H:%M} UTC"
        )

    async def _ended(self, training: RemoteTraining) -> None:
        problem = f"{training.code}: {training.message}".strip(": ") or None
        await self._keep(
            step=TrainingStep.ENDED,
            state=training.state,
            model=training.model,
            results=training.result_files,
            trained_tokens=training.trained_tokens,
            problem=problem if training.state == "failed" else None,
        )

    # -- what came of it ---------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Write the job's events and figures as Parquet."""
        name = self.record.job or ""
        with self._stop.sending():
            events = await self._api.events(name)
            checkpoints = await self._api.checkpoints(name)
        figures = await self._figures()
        layout, compression = self._layout, self._rules.compression
        rows = event_rows(events, checkpoints, seconds=seconds_of)

        def write() -> None:
            write_events(layout.root / EVENTS, rows, compression=compression)
            write_metrics(layout.root / METRICS, figures, compression=compression)

        await to_thread.run_sync(write)
        await self._journal.keep_files([layout.written(layout.root / name) for name in (EVENTS, METRICS)])
        await self._keep(step=TrainingStep.COLLECTED)

    async def _figures(self) -> bytes:
        """The service's result file, of which a copy is kept: the service's own is deleted."""
        path = self._layout.training / "results.csv"
        if not path.exists() and self.record.results:
            temporary = path.with_suffix(TEMPORARY_SUFFIX)
            with storage(f"writing {path}"), open_private(temporary) as to, self._stop.sending():
                await self._api.download(self.record.results[0], to)
            with storage(f"writing {path}"):
                publish(temporary, path)
        with storage(f"reading {path}"):
            return path.read_bytes() if path.exists() else b""

    async def _tidy(self) -> None:
        """Delete what the service keeps of a training that has ended, and our copies of its files."""
        if not self._rules.keep_files:
            await self._delete([file.file for file in self.record.files if file.file] + list(self.record.results))
        for file in self.record.files:
            with storage(f"removing {file.name}"):
                (self._layout.training / file.name).unlink(missing_ok=True)
        await self._keep(step=TrainingStep.DONE)

    async def _delete(self, files: Sequence[str]) -> None:
        for file in () if self._rules.keep_files else files:
            with self._stop.sending():
                await self._api.delete_file(file)

    async def _pause(self, seconds: float) -> None:
        with self._stop.waiting():
            await self._clock.sleep(seconds)


def _not_uploaded(files: Sequence[ExamplesFile]) -> tuple[ExamplesFile, ...]:
    return tuple(replace(file, file=None) for file in files)


def _advice(refused: RefusedCallError) -> str:
    if refused.status == 401:  # noqa: PLR2004 - Unauthorized
        return "check the credentials"
    if refused.status in {403, 404}:
        return (
            "check that the resource's region trains this model, and who may do it (the role Cognitive Services OpenAI "
            "Contributor)"
        )
    return "mend that"
