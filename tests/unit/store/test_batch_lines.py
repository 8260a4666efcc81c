"""The Batch API's result lines, from parts."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import DamageError, StorageError
from pipeline.model import ErrorInfo, ErrorType, RequestInfo, RowResult, Usage
from pipeline.store.batch_lines import ERRORS, OUTPUT, write_batch_lines
from pipeline.store.codec import kept
from pipeline.store.parts import part_name, part_schema, write_part

TEXTS = pa.schema([pa.field("output_text", pa.string())])
VECTORS = pa.schema([pa.field("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), 2))])
SENT = RequestInfo(attempts=1, deployment="d", model="m", client_request_id="client", request_id="request")


def write(
    folder: Path,
    rows: Sequence[RowResult],
    *,
    first: int = 0,
    carried: dict[str, list[Any]] | None = None,
    results: pa.Schema = TEXTS,
    request: RequestInfo = SENT,
) -> Path:
    """Write a part of these rows."""
    batch = None if carried is None else pa.RecordBatch.from_pydict(carried)
    last = first + len(rows) - 1
    path = folder / part_name(first, last)
    write_part(
        path,
        first=first,
        last=last,
        schema=part_schema(pa.schema([]) if batch is None else batch.schema, results),
        carried=None if batch is None else [batch],
        results=iter([kept(row, request) for row in rows]),
        compression="zstd",
    )
    return path


def ok(ordinal: int, response: bytes | None = b'{"choices": []}', **values: Any) -> RowResult:
    return RowResult(ordinal=ordinal, values={"output_text": "x"} | values, response=response)


def failed(
    ordinal: int, status: int | None, response: bytes | None = None, kind: ErrorType = ErrorType.BAD_REQUEST
) -> RowResult:
    error = ErrorInfo(type=kind, code="bad", message="no", http_status=status)
    return RowResult(ordinal=ordinal, error=error, response=response)


def lines(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_answers_and_failures_go_to_their_files_in_the_order_of_rows(tmp_path: Path) -> None:
    ids = {"name": ["a", "b", None], "number": [7, 8, 9]}
    parts = [
        write(tmp_path, [ok(0, b'{"n": 0}'), failed(1, 400), ok(2, b'{"n": 2}')], carried=ids),
        write(tmp_path, [ok(3, b'{"n": 3}')], first=3, carried={"name": ["d"], "number": [1]}),
    ]
    assert write_batch_lines(tmp_path, parts, id_column="name") == (3, 1)
    assert lines(tmp_path, OUTPUT) == [
        {
            "id": "client",
            "custom_id": name,
            "response": {"status_code": 200, "request_id": "request", "body": {"n": n}},
            "error": None,
        }
        for name, n in (("a", 0), ("2", 2), ("d", 3))
    ]
    (one,) = lines(tmp_path, ERRORS)
    assert (one["custom_id"], one["response"]["status_code"]) == ("b", 400)


@pytest.mark.parametrize(("column", "expected"), [(None, ["0", "1"]), ("number", ["7", "8"]), ("gone", ["0", "1"])])
def test_custom_id_is_the_id_columns_text_else_the_ordinal(
    tmp_path: Path, column: str | None, expected: list[str]
) -> None:
    part = write(tmp_path, [ok(0), ok(1)], carried={"number": [7, 8]})
    write_batch_lines(tmp_path, [part], id_column=column)
    assert [line["custom_id"] for line in lines(tmp_path, OUTPUT)] == expected


def test_a_refusal_is_a_response_and_what_was_never_answered_an_error(tmp_path: Path) -> None:
    kept = b'{"error": {"code": "content_filter", "message": "whole"}}'
    rows = [
        failed(0, 400, kept),
        failed(1, 429),
        failed(2, 500, b"<html>not json</html>"),
        failed(3, None, kind=ErrorType.ROW),
        failed(4, 200, b'{"id": "x"}', kind=ErrorType.REPLY),
    ]
    assert write_batch_lines(tmp_path, [write(tmp_path, rows)], id_column=None) == (0, 5)
    found = lines(tmp_path, ERRORS)
    own = {"error": {"type": "BadRequestError", "code": "bad", "message": "no"}}
    assert [line["response"] and line["response"]["body"] for line in found] == [json.loads(kept), own, own, None, None]
    never = {"code": "bad", "message": "no"}
    assert [line["error"] for line in found] == [None, None, None, never, never]


def test_a_vector_comes_back_as_the_embeddings_api_gives_it(tmp_path: Path) -> None:
    usage = Usage(input_tokens=3, total_tokens=3)
    rows = [
        RowResult(ordinal=0, values={"embedding": struct.pack("<2f", 0.5, -1)}, usage=usage, response=b"{}"),
        failed(1, 400),
        RowResult(ordinal=2, values={"embedding": struct.pack("<2f", 2, 0.25)}, usage=usage, response=b"{}"),
    ]
    assert write_batch_lines(tmp_path, [write(tmp_path, rows, results=VECTORS)], id_column=None) == (2, 1)
    bodies = [line["response"]["body"] for line in lines(tmp_path, OUTPUT)]
    assert [body["data"] for body in bodies] == [
        [{"object": "embedding", "index": 0, "embedding": vector}] for vector in ([0.5, -1], [2, 0.25])
    ]
    assert bodies[0]["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert (bodies[0]["object"], bodies[0]["model"]) == ("list", "m")


def test_a_column_of_the_input_is_not_taken_for_a_result(tmp_path: Path) -> None:
    part = write(tmp_path, [ok(0, b'{"n": 0}')], carried={"embedding": ["the input's own"]})
    write_batch_lines(tmp_path, [part], id_column=None)
    assert lines(tmp_path, OUTPUT)[0]["response"]["body"] == {"n": 0}


@pytest.mark.parametrize("where", ["column", "file"])
def test_a_picture_comes_back_as_the_images_api_gives_it(tmp_path: Path, where: str) -> None:
    schema = pa.schema([pa.field("image", pa.binary()), pa.field("image_path", pa.string())])
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "000000000000.png").write_bytes(b"picture")
    values = {"image": b"picture", "image_path": None}
    if where == "file":
        values = {"image": None, "image_path": "media/000000000000.png"}
    response = b'{"created": 1, "data": [{"url": "https://x/y", "revised_prompt": "p"}]}'
    rows = [RowResult(ordinal=0, values=values, response=response), failed(1, 400)]
    assert write_batch_lines(tmp_path, [write(tmp_path, rows, results=schema)], id_column=None) == (1, 1)
    (one,) = lines(tmp_path, OUTPUT)
    picture = base64.b64encode(b"picture").decode()
    assert one["response"]["body"] == {"created": 1, "data": [{"revised_prompt": "p", "b64_json": picture}]}


def test_the_id_column_may_have_any_name(tmp_path: Path) -> None:
    part = write(tmp_path, [ok(0)], carried={"embedding": ["e"]})
    write_batch_lines(tmp_path, [part], id_column="embedding")
    assert [line["custom_id"] for line in lines(tmp_path, OUTPUT)] == ["e"]


def test_many_rows_of_a_part_are_each_their_own(tmp_path: Path) -> None:
    rows = [RowResult(ordinal=n, values={"embedding": struct.pack("<2f", n, -n)}, response=b"{}") for n in range(200)]
    write_batch_lines(tmp_path, [write(tmp_path, rows, results=VECTORS)], id_column=None)
    vectors = [line["response"]["body"]["data"][0]["embedding"] for line in lines(tmp_path, OUTPUT)]
    assert vectors == [[n, -n] for n in range(200)]


def test_a_row_that_was_not_sent_has_no_ids(tmp_path: Path) -> None:
    part = write(tmp_path, [failed(0, None, kind=ErrorType.ROW)], request=RequestInfo())
    write_batch_lines(tmp_path, [part], id_column=None)
    assert lines(tmp_path, ERRORS)[0]["id"] is None


def test_both_files_are_written_whatever_the_rows(tmp_path: Path) -> None:
    assert write_batch_lines(tmp_path, [], id_column=None) == (0, 0)
    assert (tmp_path / OUTPUT).read_bytes() == (tmp_path / ERRORS).read_bytes() == b""


def test_a_second_writing_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / f"{OUTPUT}.tmp").symlink_to(tmp_path / "victim")
    (tmp_path / OUTPUT).write_text("old")
    write_batch_lines(tmp_path, [write(tmp_path, [ok(0)])], id_column=None)
    assert len(lines(tmp_path, OUTPUT)) == 1
    assert not (tmp_path / "victim").exists()
    assert sorted(path.name for path in tmp_path.glob("*.jsonl*")) == [ERRORS, OUTPUT]


def test_a_damaged_part_leaves_the_old_lines(tmp_path: Path) -> None:
    (tmp_path / OUTPUT).write_text("old")
    part = write(tmp_path, [ok(0)])
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DamageError, match="cannot be read back"):
        write_batch_lines(tmp_path, [part], id_column=None)
    assert (tmp_path / OUTPUT).read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"writing output\.jsonl"):
        write_batch_lines(tmp_path / "gone", [], id_column=None)
