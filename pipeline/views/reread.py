"""Reads a run's whole input again and compares it with what the run read."""

from __future__ import annotations

import base64
from contextlib import closing
from typing import TYPE_CHECKING

from pipeline import operations
from pipeline.errors import InputChangedError
from pipeline.plan.ranges import PlanRules, check_input, columns_read, decode_position
from pipeline.sources import SourceError, open_source
from pipeline.sources.digest import RangeDigest
from pipeline.store.journal import JournalReader
from pipeline.store.verify import Finding, Kind

if TYPE_CHECKING:
    from pipeline.job.spec import Job
    from pipeline.store.folder import Layout

_PUT_BACK = "put the old input back, or start anew with --fresh"


def reread_input(job: Job, layout: Layout) -> list[Finding]:
    """Compare every range's rows with its digest. Raises FileNotFoundError where there is no journal."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when an input is read

    with JournalReader(layout.journal) as reader:
        noted = reader.noted("schema")
        schema = None if noted is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(noted)))
        try:
            source = open_source(job.input.path, format=job.input.format, columns=job.input.columns, kept_schema=schema)
        except SourceError as error:
            return [Finding(kind=Kind.INPUT, file="the input", message=str(error), advice=_PUT_BACK)]
        chosen = job.output.columns
        carried = () if chosen == "none" else tuple(source.schema.names) if chosen == "all" else chosen
        rules = PlanRules(
            carried=carried,
            id_column=job.input.id,
            part_rows=job.output.part_rows,
            part_bytes=job.output.part_bytes,
            limit=None,
            window_bytes=job.run.window_bytes,
        )
        values = columns_read(operations.get(job.operation).factory(job), rules)
        try:
            check_input(source, reader, values=values, carried=carried)
        except InputChangedError as error:
            return [Finding(kind=Kind.INPUT, file="the input", message=str(error).partition(";")[0], advice=_PUT_BACK)]
        parts = reader.parts()
        if not parts or reader.spans():
            return []
        with closing(source.open(decode_position(parts[-1].finish), values=values, carried=carried)) as cursor:
            if not cursor.read(1, RangeDigest()).rows:
                return []
    message = f"has rows after {parts[-1].last}, the last one that the run has read"
    return [
        Finding(
            kind=Kind.INPUT,
            file="the input",
            message=message,
            advice="run the job again: it continues with the new rows",
        )
    ]
