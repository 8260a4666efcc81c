"""Lines made for the Batch API: JSON Lines of custom_id, method, url and body, one request a line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from pipeline.model import Row
from pipeline.sources.base import Format, Opening, Position
from pipeline.sources.digest import RangeDigest
from pipeline.sources.discover import discover
from pipeline.sources.errors import SourceError
from pipeline.sources.jsonl import JsonlSource
from pipeline.sources.types import Sample

_COLUMNS = {"custom_id": "string", "method": "string", "url": "string", "body": "json"}
_ROWS_TO_LOOK_AT = 100


def first_url(paths: Sequence[str]) -> str | None:
    """Give the `url` of the first line that has one, of the first hundred; None where none has. Raises SourceError."""
    found = discover(paths, format=FORMAT.name, formats=[FORMAT])
    source = FORMAT.open(Opening(files=found.files, declared={}, kept_schema=None, paths=tuple(paths)))
    with closing(source.open(Position(), values=frozenset({"url"}), carried=())) as cursor:
        rows = cursor.read(_ROWS_TO_LOOK_AT, RangeDigest()).rows
    urls = (row.values["url"] for row in rows if isinstance(row, Row))
    return next((url for url in urls if isinstance(url, str)), None)


def _open(given: Opening) -> JsonlSource:
    if given.declared:
        raise SourceError("input.columns: lines made for the Batch API have their own types; leave it out")
    # Types that are given are not sampled.
    schema = Sample().schema(_COLUMNS) if given.kept_schema is None else given.kept_schema
    return JsonlSource(given.files, declared={}, kept_schema=schema)


FORMAT = Format(name="openai-batch", title="file made for the Batch API", open=_open)
