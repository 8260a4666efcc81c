"""Rows in: one file a format, all giving the same stream of batches; the registry finds them by themselves."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.sources.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.sources.base import Format, Source

__all__ = ["SourceError", "first_url", "names", "open_source"]

_HELPERS = frozenset({"base", "digest", "discover", "errors", "types"})


def names(package: str = __name__) -> tuple[str, ...]:
    """List the formats that a package reads, sorted. Imports none: every module but the helpers is one."""
    folders = importlib.import_module(package).__path__
    modules = (module.name for module in pkgutil.iter_modules(folders))
    return tuple(sorted(name.replace("_", "-") for name in modules if name not in _HELPERS and name[0] != "_"))


def open_source(
    paths: Sequence[str],
    *,
    format: str = "auto",  # noqa: A002 - the job file's word
    columns: Mapping[str, str] | None = None,
    kept_schema: pa.Schema | None = None,
    package: str = __name__,
) -> Source:
    """Open an input: files, folders and globs, in their order.

    `columns` declares types of JSONL columns as the job file writes them. `kept_schema` is the `schema` that an
    earlier call gave; the types are then taken from it. Without it a JSONL input is sampled: its first
    10,000 rows or 64 MB. `package` holds the formats.

    Raises SourceError where the input cannot be found or read, its files do not agree with each other or with
    `kept_schema`, or a declared type is unknown.
    """
    from pipeline.sources.base import Opening  # noqa: PLC0415 - pyarrow takes a tenth of a second
    from pipeline.sources.discover import discover  # noqa: PLC0415 - likewise

    found = discover(paths, format=format, formats=[_format(name, package) for name in names(package)])
    return found.format.open(
        Opening(files=found.files, declared=columns or {}, kept_schema=kept_schema, paths=tuple(paths))
    )


def first_url(paths: Sequence[str]) -> str | None:
    """Give the `url` of the first line made for the Batch API; None where it has none. Raises SourceError."""
    from pipeline.sources.openai_batch import first_url as first  # noqa: PLC0415 - pyarrow, likewise

    return first(paths)


def _format(name: str, package: str) -> Format:
    form: Format = importlib.import_module(f"{package}.{name.replace('-', '_')}").FORMAT
    return form
