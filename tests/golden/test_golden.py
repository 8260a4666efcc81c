"""One folder a behaviour: the job's words and the input rows, the body sent, the reply, the result rows.

`job.json` holds the parts of a job file that matter and the rows. `request.json` is the body, absent where no row can
be asked. `reply.*` is the reply's body, byte for byte. `rows.json` holds what becomes of the rows: vectors as lists.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline import operations
from pipeline.errors import ReplyError
from pipeline.job.spec import Job
from pipeline.model import ErrorInfo, Item, Reply, Row, RowResult, Target

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


def readable(value: Any) -> Any:
    return list(struct.unpack(f"<{len(value) // 4}f", value)) if isinstance(value, bytes) else value


def told(result: RowResult) -> dict[str, Any]:
    row: dict[str, Any] = {"ordinal": result.ordinal}
    if result.values is not None:
        row |= {name: readable(value) for name, value in result.values.items() if value is not None}
    if result.error is not None:
        row["error"] = filled(result.error)
    if result.usage is not None:
        row["usage"] = filled(result.usage)
    return row


def lived(folder: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The body that the job's rows become, and the rows that the reply makes of them."""
    job = json.loads((folder / "job.json").read_text())
    rows = job.pop("rows")
    model = job.pop("model")
    checked = Job.model_validate(
        {
            "name": folder.name,
            "input": {"path": "rows.jsonl"},
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
    try:
        answered = [
            told(result)
            for result in operation.parse(
                items,
                Reply(status=200, headers={}, body=reply.read_bytes().rstrip(b"\n"), latency_ms=1),
            )
        ]
    except ReplyError as error:
        answered = [{"ordinal": item.ordinal, "error": filled(error.info)} for item in items]
    return json.loads(call.body), sorted(refused + answered, key=lambda row: row["ordinal"])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_written_is_what_happens(folder: Path) -> None:
    body, rows = lived(folder)
    request = folder / "request.json"
    assert body == (json.loads(request.read_text()) if request.exists() else None)
    assert rows == json.loads((folder / "rows.json").read_text())


@pytest.mark.parametrize("name", operations.names())
def test_every_operation_has_behaviours_written_down(name: str) -> None:
    assert any(json.loads((folder / "job.json").read_text())["operation"] == name for folder in FOLDERS)
