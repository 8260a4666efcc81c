"""The result lines of the Batch API, written from finished parts: answers in one file, failed rows in another."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from pipeline.errors import DamageError
from pipeline.store.files import TEMPORARY_SUFFIX, publish, storage

if TYPE_CHECKING:
    import pyarrow as pa

OUTPUT = "output.jsonl"
ERRORS = "errors.jsonl"

_ROWS_AT_ONCE = 16
_OURS = frozenset({"status", "error", "usage", "request", "response", "embedding", "image", "image_path"})
_OK = 200


def write_batch_lines(folder: Path, parts: Sequence[Path], *, id_column: str | None) -> tuple[int, int]:
    """Write `output.jsonl` and `errors.jsonl` beside the parts; returns how many lines each has. Blocking.

    `parts` are the files that count, in order; the run kept every reply (`output.raw: all`). `id_column` is the
    carried column whose values are the lines' `custom_id`; where it is None, or a row's cell null, the ordinal is.
    A file that would be empty is written all the same, and each is whole or absent. Memory is a few rows.

    Raises StorageError when the disk refuses, DamageError for a part that cannot be read.
    """
    names = (OUTPUT, ERRORS)
    temporaries = [folder / (name + TEMPORARY_SUFFIX) for name in names]
    try:
        with storage(f"writing {OUTPUT} and {ERRORS}"):
            counts = _write(temporaries, parts, id_column)
            for temporary, name in zip(temporaries, names, strict=True):
                publish(temporary, folder / name)
    except BaseException:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink()
        raise
    return counts


def _write(temporaries: Sequence[Path], parts: Sequence[Path], id_column: str | None) -> tuple[int, int]:
    counts = [0, 0]
    with ExitStack() as files:
        sinks = [files.enter_context(_created(temporary)) for temporary in temporaries]
        for part in parts:
            for row in _rows(part, id_column):
                failed = row["status"] != "ok"
                sinks[failed].write(orjson.dumps(_line(row, id_column, part.parent), option=orjson.OPT_APPEND_NEWLINE))
                counts[failed] += 1
    return counts[0], counts[1]


def _created(path: Path) -> BinaryIO:
    """A new file that the umask opens to others, as it does parts; a link in its place is removed first."""
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def _rows(part: Path, id_column: str | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa  # noqa: PLC0415 - loaded when a run needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(part, pre_buffer=False) as file:
            names = file.schema_arrow.names
            # What stands before the status is the input's own.
            ours = _OURS.intersection(names[names.index("status") :])
            columns = [name for name in names if name in ours or name in ("ordinal", id_column)]
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=columns):
                yield from _plain(batch, vectors="embedding" in ours)
    except (pa.ArrowInvalid, OSError) as error:
        raise DamageError(f"{part.name} cannot be read back ({type(error).__name__})") from error


def _plain(batch: pa.RecordBatch, *, vectors: bool) -> Iterator[dict[str, Any]]:
    """The rows of a batch; a vector is a NumPy array under `vector`, which costs no list of floats."""
    if not vectors:
        yield from batch.to_pylist()
        return
    column = batch.column("embedding")
    # Vectors of null rows take their place, too.
    values = column.values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)[column.offset :]
    for place, row in enumerate(batch.drop_columns(["embedding"]).to_pylist()):
        yield {**row, "vector": values[place]}


def _line(row: Mapping[str, Any], id_column: str | None, folder: Path) -> dict[str, Any]:
    """One row as the Batch API would give it."""
    name = row.get(id_column) if id_column is not None else None
    request = row["request"] or {}
    response, error = (_answer(row, folder), None) if row["status"] == "ok" else _failure(row["error"], row["response"])
    if response is not None:
        response["request_id"] = request.get("request_id")
    return {
        "id": request.get("client_request_id"),
        "custom_id": str(row["ordinal"] if name is None else name),
        "response": response,
        "error": error,
    }


def _answer(row: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    body = _json(row["response"])
    if "vector" in row:
        usage = row["usage"] or {}
        body = {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": row["vector"].tolist()}],
            "model": (row["request"] or {}).get("model"),
            "usage": {"prompt_tokens": usage.get("input_tokens"), "total_tokens": usage.get("total_tokens")},
        }
    picture = row.get("image")
    if picture is None and row.get("image_path") is not None:
        picture = (folder / row["image_path"]).read_bytes()
    if picture is not None and body is not None:
        body = _with_picture(orjson.loads(row["response"]), picture)
    return {"status_code": _OK, "request_id": None, "body": body}


def _with_picture(body: dict[str, Any], picture: bytes) -> dict[str, Any]:
    """An answer that was kept without its picture, whole again; what was fetched needs its URL no more."""
    first, *others = body.get("data") or [{}]
    kept = {name: value for name, value in first.items() if name != "url"}
    return {**body, "data": [{**kept, "b64_json": base64.b64encode(picture).decode()}, *others]}


def _failure(error: Mapping[str, Any], kept: str | None) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the service refused is a response of its own; what it never answered, or answered unusably, is an error."""
    status = error["http_status"]
    if status is None or status == _OK:
        return None, {"code": error["code"], "message": error["message"]}
    body = _json(kept)
    if body is None:
        body = {"error": {"type": error["type"], "code": error["code"], "message": error["message"]}}
    return {"status_code": status, "request_id": None, "body": body}, None


def _json(text: str | None) -> Any:
    """A reply that was kept, as it is; None where there is none, or none that is JSON."""
    if text is None:
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return orjson.Fragment(text)
