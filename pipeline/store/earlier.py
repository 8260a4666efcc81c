"""What an earlier invocation left in the folder, and whether the job is still the one that it ran."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobChangedError
from pipeline.job import change
from pipeline.store.files import refuse_link
from pipeline.store.folder import Layout
from pipeline.store.generations import generations
from pipeline.store.handover import read_carries
from pipeline.store.journal import Journal, JournalReader
from pipeline.store.training import TrainingRecord, noted_training

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What the journal says of an earlier invocation. `semantic` is the job's semantic keys, `ok` the rows answered.

    `files` is the input's identity, `schema` its types, `facts` what replies fixed, `models` who answered, `begun`
    whether rows were read. `training` is how far a model is that is made of them. `again` names the wording in which
    rows are asked again, None where none are. `carries` are the folders beside it whose results it takes over.
    """

    semantic: dict[str, Any]
    schema: pa.Schema | None
    files: list[list[Any]]
    facts: dict[str, int]
    models: list[str]
    variants: dict[str, Any]
    ok: int
    begun: bool
    training: TrainingRecord | None = None
    again: str | None = None
    carries: tuple[str, ...] = ()

    @property
    def holds_results(self) -> bool:
        """Whether something was paid for, so that another job may not take its place."""
        return self.ok > 0 or bool(self.carries) or (self.training is not None and self.training.counts)

    def is_another_job(self, job: Job) -> bool:
        """Whether what is asked of the rows changed."""
        return bool(self.semantic) and self.semantic != change.semantic(job)

    def check(self, job: Job) -> None:
        """Raise JobChangedError, field by field, when what is asked of the rows changed."""
        if not self.is_another_job(job):
            return
        fields = "\n  ".join(change.difference(self.semantic, change.semantic(job)))
        held = f"{self.ok} rows are answered already" if self.training is None else "its training is under way or done"
        raise JobChangedError(
            f"{job.file}: the job changed since this run began, and {held}:\n  {fields}\n"
            "put the old wording back, name another output.path, or start anew with --fresh "
            "(the old results are moved aside, not deleted)"
        )


def earlier(layout: Layout) -> Earlier | None:
    """Read it; None where there was none. Raises StorageError, DamageError."""
    refuse_link(layout.private)
    try:
        with JournalReader(layout.journal) as reader:
            schema = reader.noted("schema")
            return Earlier(
                semantic=reader.noted("job") or {},
                schema=_read_schema(schema) if schema else None,
                files=reader.noted("files") or [],
                facts=reader.noted("facts") or {},
                models=reader.noted("models") or [],
                variants=reader.noted("variants") or {},
                ok=reader.totals().ok,
                begun=bool(reader.parts() or reader.spans()),
                training=noted_training(reader),
                again=generations(reader)[-1].variant if reader.asks_again else None,
                carries=read_carries(layout),
            )
    except FileNotFoundError:
        return None


async def note_run(
    journal: Journal, *, job: Job, schema: pa.Schema, files: list[list[Any]], variants: dict[str, Any]
) -> None:
    """Keep what a later invocation will ask for."""
    await journal.note("job", change.semantic(job))
    await journal.note("schema", base64.b64encode(schema.serialize().to_pybytes()).decode())
    await journal.note("files", files)
    await journal.note("variants", variants)


def _read_schema(text: str) -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
