"""Rows in: one file a format, all giving the same stream of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.sources.discover import JSONL, PARQUET, discover
from pipeline.sources.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.sources.jsonl import JsonlSource
    from pipeline.sources.parquet import ParquetSource

__all__ = ["SourceError", "open_source"]


def open_source(
    paths: Sequence[str],
    *,
    format: str = "auto",  # noqa: A002 - the job file's word
    columns: Mapping[str, str] | None = None,
    kept_schema: pa.Schema | None = None,
) -> JsonlSource | ParquetSource:
    """Open an input: files, folders and globs, in their order.

    `columns` declares types of JSONL columns as the job file writes them. `kept_schema` is the `schema` that an
    earlier call gave; the types are then taken from it. Without it a JSONL input is sampled: its first
    10,000 rows or 64 MB. Beside what every source has, these know their `row_count`, None where it takes reading.

    Raises SourceError where the input cannot be found or read, its files do not agree with each other or with
    `kept_schema`, or a declared type is unknown.
    """
    found = discover(paths, format=format)
    declared = columns or {}
    if found.format == JSONL:
        from pipeline.sources.jsonl import JsonlSource  # noqa: PLC0415 - pyarrow takes a tenth of a second

        return JsonlSource(found.files, found.codecs, declared=declared, kept_schema=kept_schema)
    if declared:
        raise SourceError("input.columns: a Parquet file has its own types; leave it out")
    from pipeline.sources.parquet import ParquetSource  # noqa: PLC0415 - likewise

    assert found.format == PARQUET  # noqa: S101 - discover gives these two
    return ParquetSource(found.files, kept_schema=kept_schema)
