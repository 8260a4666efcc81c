"""How failed rows are sent again: with which wording, and what must hold before the first of them is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import DamageError, JobChangedError, StoppedEarlyError
from pipeline.job import change
from pipeline.store.generations import count_failed, finish_rewrites, open_generation
from pipeline.store.journal import JournalReader
from pipeline.store.manifest import manifest_of, read_manifest, spelled, write_manifest
from pipeline.store.summary import Summary, read_summary, write_summary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import pyarrow as pa

    from pipeline.job.spec import Job
    from pipeline.operations.base import Operation
    from pipeline.store.earlier import Earlier
    from pipeline.store.folder import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Which failed rows are sent again: those of these error types or codes, all where there are none.

    `request` is the wording that they are asked with, the job's own where it is None.
    """

    only: frozenset[str] = frozenset()
    request: Mapping[str, Any] | None = None


def asked_again(job: Job, known: Earlier, retry: Retry | None) -> Job:
    """The job with the wording of the rows that are asked again: a new one, else that of a retry that was cut."""
    wording = retry.request if retry is not None else None
    if wording is None and known.again is not None:
        wording = known.variants[known.again]
    return job if wording is None else job.model_copy(update={"request": wording})


def require_same_columns(operation: Operation, known: Earlier, *, parts: pa.Schema | None) -> None:
    """Raise JobChangedError where a wording gives other result columns than the parts have. `parts` are theirs."""
    try:
        columns = operation.settled(known.facts).schema()
    except LookupError:
        return
    if parts is None:
        return
    differs = [one.name for one in columns if one.name not in parts.names or parts.field(one.name).type != one.type]
    if differs:
        raise JobChangedError(
            f"the new wording gives other columns than the parts have ({', '.join(differs)}): rows of one folder share "
            "their columns; leave that field as it is, or name another output.path"
        )


def begin_again(layout: Layout, *, asked: Job, known: Earlier, retry: Retry, now: datetime) -> int | Summary:
    """Have the failed rows that are meant asked again; returns how many, or what to tell where none is. Blocking.

    Call it under the folder's lock. Raises StoppedEarlyError while batches of another wording, or with other rows, are
    under way; StorageError, DamageError.
    """
    variant = change.variant(asked)
    with JournalReader(layout.journal) as reader:
        batches = reader.batches()
        foreign = known.again != variant or any(_holds_others(reader, record.tag) for record in batches)
    if batches and foreign:
        raise StoppedEarlyError(
            f"{len(batches)} batches are under way; collect them first by `pipeline run JOB`, then retry"
        )
    finish_rewrites(layout)
    only = frozenset(one.lower() for one in retry.only)
    meant, kinds = count_failed(layout, only)
    if not meant and known.again is None:
        _catch_up(layout)
        return _nothing(layout, retry, kinds)
    if meant or known.again != variant:
        _say_running(layout)
        open_generation(layout, only=only, variant=variant, wording=asked.request, now=now)
    return meant


def _holds_others(reader: JournalReader, tag: str) -> bool:
    """Whether a batch holds rows that are not among those asked again: nobody would take up what they came to."""
    ordinals = {ordinal for line in reader.batch_lines(tag) for ordinal in line.ordinals}
    return bool(ordinals) and not ordinals <= set(reader.again(min(ordinals), max(ordinals)))


def _catch_up(layout: Layout) -> None:
    """Write the manifest anew where a kill, after the last part, kept it from following the journal."""
    with suppress(FileNotFoundError, ValueError, KeyError), JournalReader(layout.journal) as reader:
        known = read_manifest(layout.manifest)
        if spelled(manifest_of(reader, columns=known["columns"])) != spelled(known):
            write_manifest(layout.manifest, reader, columns=known["columns"])


def _nothing(layout: Layout, retry: Retry, kinds: Mapping[tuple[str, str], int]) -> Summary:
    said = "no row failed: there is nothing to send again"
    if kinds:
        there = ", ".join(f"{count} {type_} {code}" for (type_, code), count in kinds.items())
        said = f"no row failed with {' or '.join(sorted(retry.only))}: there is nothing to send again of {there}"
    try:
        summary = read_summary(layout.summary)
    except (FileNotFoundError, DamageError):
        summary = Summary(state="stopped", output=str(layout.root))
    return replace(summary, reason=said, exit_code=0)


def _say_running(layout: Layout) -> None:
    """Take back what the last summary says of the rows, before it is true no longer."""
    with suppress(FileNotFoundError, DamageError):
        summary = read_summary(layout.summary)
        write_summary(layout.summary, replace(summary, state="running", reason=None, exit_code=None))
