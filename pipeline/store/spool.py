"""Carried columns of open ranges, waiting on disk as Arrow streams. Rebuildable from the input, so never fsynced."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import DamageError
from pipeline.store.files import create_private, storage

if TYPE_CHECKING:
    import pyarrow as pa


SPOOL_SUFFIX = ".arrow"


def spool_path(folder: Path, first: int) -> Path:
    """Where the carried columns of the range that begins at `first` wait."""
    return folder / f"{first:012d}{SPOOL_SUFFIX}"


class SpoolWriter:
    """The carried columns of one open range, in the order of its rows."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Begin anew; what lay there is replaced."""
        import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

        self.bytes = 0
        with storage("writing the spool"):
            path.unlink(missing_ok=True)
            create_private(path)
            self._file = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_stream(self._file, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        with storage("writing the spool"):
            self._writer.write_batch(batch)
        self.bytes = self._file.tell()

    def close(self) -> None:
        """End the stream."""
        with storage("writing the spool"):
            try:
                self._writer.close()
            finally:
                self._file.close()


def read_spool(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of a closed spool, one in memory at a time. Raises DamageError, StorageError."""
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it

    try:
        with storage("reading the spool"), pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        raise DamageError(f"the spool {path.name} is cut; run the job again to rebuild it") from error


def spooled_rows(path: Path) -> int:
    """How many rows a closed spool holds; none where there is no spool. Raises DamageError, StorageError."""
    return sum(batch.num_rows for batch in read_spool(path)) if path.is_file() else 0
