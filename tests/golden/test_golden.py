"""One folder a behaviour: the job's words and the input rows, the body sent, the reply, the result rows.

`job.json` holds the parts of a job file that matter and the rows. `request.json` is the body, absent where no row can
be asked. `reply.*` is the reply's body, byte for byte. `rows.json` holds what becomes of the rows: vectors as lists,
other bytes as base64, files with their suffix. The rows' own files, if any, are in `media`.
"""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from dataclasses import asdict
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from pipeline import operations
from pipeline.errors import ReplyError
from pipeline.job.spec import Job
from pipeline.job.training import TRAINING
from pipeline.model import Call, ErrorInfo, Item, Reply, Row, RowResult, Target

FOLDERS = sorted(folder.parent for folder in Path(__file__).parent.glob("*/job.json"))
DEPLOYMENT = {
    "name": "d",
    "endpoint": "https://x.openai.azure.com",
    "deployment": "d",
    "api": "azure-v1",
    "auth": "entra",
}


def filled(value: Any) -> dict[str, Any]:
    return {key: each for key, each in asdict(value).items() if each is not None}


def readable(name: str, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return list(struct.unpack(f"<{len(value) // 4}f", value)) if name == "embedding" else b64encode(value).decode()


def told(result: RowResult) -> dict[str, Any]:
    row: dict[str, Any] = {"ordinal": result.ordinal}
    if result.values is not None:
        row |= {name: readable(name, value) for name, value in result.values.items() if value is not None}
    if result.files:
        row["files"] = [{name: readable(name, each) for name, each in asdict(file).items()} for file in result.files]
    if result.fetch is not None:
        row["fetch"] = result.fetch
    if result.again is not None:
        row["again"] = True
    if result.error is not None:
        row["error"] = filled(result.error)
    if result.usage is not None:
        row["usage"] = filled(result.usage)
    return row


def sent(call: Call) -> Any:
    """A JSON body's value, or the pairs of a form: of its file, the name, the type and how many bytes."""
    if call.content_type == "application/json":
        return json.loads(call.body)
    form = message_from_bytes(f"content-type: {call.content_type}\r\n\r\n".encode() + call.body)
    pairs: list[Any] = []
    for part in form.get_payload():
        content, filename = part.get_payload(decode=True), part.get_filename()
        file = {"filename": filename, "content_type": part.get_content_type(), "bytes": len(content)}
        pairs.append([part.get_param("name", header="content-disposition"), file if filename else content.decode()])
    return pairs


def lived(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The body that the job's rows become, and the rows that the reply makes of them."""
    job = json.loads((folder / "job.json").read_text())
    rows = job.pop("rows")
    model = job.pop("model")
    media = folder / "media"
    checked = Job.model_validate(
        {
            "name": folder.name,
            "input": {"path": "rows.jsonl", "media_root": media if media.is_dir() else None},
            "output": {"path": "out"},
            "deployments": [{**DEPLOYMENT, "model": model}],
            **job,
        },
    )
    operation = operations.get(checked.operation).factory(checked)
    prepared = operation.prepare([Row(ordinal=ordinal, values=values) for ordinal, values in enumerate(rows)])
    refused = [
        {"ordinal": ordinal, "error": filled(one)} for ordinal, one in enumerate(prepared) if isinstance(one, ErrorInfo)
    ]
    items = [one for one in prepared if isinstance(one, Item)]
    if not items:
        return None, refused
    assert len(items) <= operation.limits.items
    call = operation.build(items, Target(deployment="d", model=model, body_model=model))
    (reply,) = folder.glob("reply.*")
    # The blank line that ends an event belongs to it; the last line feed of another file is the editor's.
    content = reply.read_bytes() if reply.suffix == ".sse" else reply.read_bytes().rstrip(b"\n")
    try:
        answered = [
            told(result)
            for result in operation.parse(
                items,
                Reply(status=200, headers={}, body=content, latency_ms=1),
            )
        ]
    except ReplyError as error:
        answered = [{"ordinal": item.ordinal, "error": filled(error.info)} for item in items]
    return sent(call), sorted(refused + answered, key=lambda row: row["ordinal"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_written_is_what_happens(folder: Path) -> None:
    body, rows = lived(folder)
    request = folder / "request.json"
    assert body == (json.loads(request.read_text()) if request.exists() else None)
    assert rows == json.loads((folder / "rows.json").read_text())


@pytest.mark.parametrize("name", sorted(set(operations.names()) - {TRAINING}))
def test_every_operation_has_behaviours_written_down(name: str) -> None:
    assert any(json.loads((folder / "job.json").read_text())["operation"] == name for folder in FOLDERS)
