"""What a job would do: its input's columns, its deployments, its first rows as they would be sent."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from pipeline import operations
from pipeline.errors import Problem
from pipeline.job import change
from pipeline.job.load import check_columns
from pipeline.model import BadRow, ErrorInfo, Row
from pipeline.operations.base import result_columns
from pipeline.service.address import Address, address, target
from pipeline.sources import open_source
from pipeline.sources.base import Position
from pipeline.sources.digest import RangeDigest
from pipeline.store.folder import Layout, may_own
from pipeline.store.journal import JournalReader
from pipeline.views.text import count, json_text, plain, size, table

if TYPE_CHECKING:
    from pipeline.job.spec import DeploymentSpec, Job
    from pipeline.operations.base import Operation
    from pipeline.sources.base import Source

MOST_TEXT = 400
MOST_LINES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What is known of a job without a network. `rows` holds each shown row's request, or why it cannot be asked."""

    problems: tuple[Problem, ...]
    job: Job
    files: int
    bytes: int
    columns: Mapping[str, str]
    rows: tuple[Mapping[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """Give plain values; no credential is among them."""
        job = self.job
        return {
            "name": job.name,
            "operation": job.operation,
            "input": {"files": self.files, "bytes": self.bytes, "columns": dict(self.columns)},
            "deployments": [
                {"name": one.name, "url": _shown_url(one), "api": one.api, "auth": one.auth, "model": one.model}
                for one in job.deployments
            ],
            "output": str(job.output.path),
            "rows": [dict(row) for row in self.rows],
        }


def preview(job: Job, *, rows: int) -> Preview:
    """Open the input and render its first rows for the first deployment. Raises SourceError."""
    source = open_source(job.input.path, format=job.input.format, columns=job.input.columns)
    operation = operations.get(job.operation).factory(job)
    problems = check_columns(job, source.schema.names, result_columns=result_columns(operation))
    return Preview(
        problems=problems,
        job=job,
        # Where each row is a file, one entry stands for all of them.
        files=(source.row_count or 0) if job.input.format == "files" else len(source.files),
        bytes=sum(file.size for file in source.files),
        columns={field.name: str(field.type) for field in source.schema},
        rows=() if problems else tuple(_rendered(job, source, operation, rows)),
    )


def output_problem(job: Job, root: Path) -> str | None:
    """Say why the job cannot write to its output folder as it is now; None when it can."""
    if not root.exists():
        return None
    if not root.is_dir():
        return "names a file: name a folder that the run may own"
    if (root / "_pipeline").is_dir():
        return _change(job, Layout(root))
    return None if may_own(root) else "holds files that are not a run's: name an empty or new folder"


def _change(job: Job, layout: Layout) -> str | None:
    """Say how the job differs from the one whose answers the folder holds; None when it does not."""
    try:
        with JournalReader(layout.journal) as reader:
            before, ok = reader.noted("job"), reader.totals().ok
    except FileNotFoundError:
        return None
    changed = change.difference(before, change.semantic(job)) if before and ok else []
    if not changed:
        return None
    return (
        f"holds {count(ok, 'row')} answered to another job ({'; '.join(changed)}): name another folder, or run --fresh"
    )


def _rendered(job: Job, source: Source, operation: Operation, most: int) -> list[dict[str, Any]]:
    place = _address(job.deployments[0])
    aim = target(place, model=job.deployments[0].model)
    shown: list[dict[str, Any]] = []
    with closing(source.open(Position(), values=operation.columns, carried=())) as cursor:
        while len(shown) < most and (batch := cursor.read(most - len(shown), RangeDigest())).rows:
            for row in batch.rows:
                asked = _asked(operation, row)
                if isinstance(asked, ErrorInfo):
                    why = {"type": asked.type.value, "code": asked.code, "message": asked.message}
                    shown.append({"ordinal": row.ordinal, "error": why})
                    continue
                call = operation.build([asked], aim)
                body = orjson.loads(call.body) if call.content_type == "application/json" else None
                shown.append(
                    {"ordinal": row.ordinal, "url": _without_query(place.url(call.endpoint)), "tokens": call.tokens}
                    | ({"body": body} if body is not None else {"content_type": call.content_type})
                )
    return shown


def _asked(operation: Operation, row: Row | BadRow) -> Any:
    return row.error if isinstance(row, BadRow) else operation.prepare([row])[0]


def preview_lines(report: Mapping[str, Any]) -> list[str]:
    """Lay a preview out for people. Long texts are cut; JSON has them whole."""
    source = report["input"]
    facts = [
        ("operation", report["operation"]),
        ("input", f"{count(source['files'], 'file')}, {size(source['bytes'])}"),
        *[("", f"{plain(name)}: {kind}") for name, kind in source["columns"].items()],
        *[
            ("deployment", f"{one['name']}: {one['url']} ({one['api']}, auth {one['auth']}, model {one['model']})")
            for one in report["deployments"]
        ],
        ("output", plain(report["output"])),
    ]
    return [f"{plain(report['file'])}: ok", *[f"  {line}" for line in table(facts)], *shown_rows(report)]


def shown_rows(report: Mapping[str, Any]) -> list[str]:
    """Lay out the rows of a preview as they would be sent."""
    lines: list[str] = []
    for row in report["rows"]:
        if "error" in row:
            error = row["error"]
            lines.append(
                f"row {row['ordinal']} cannot be asked: {error['type']} {error['code']}: {plain(error['message'])}"
            )
            continue
        lines.append(f"row {row['ordinal']}, about {count(row['tokens'], 'token')} of the quota: POST {row['url']}")
        body = json_text(_cut(row["body"])).splitlines() if "body" in row else [f"({row['content_type']})"]
        lines += [f"  {line}" for line in body[:MOST_LINES]]
        if len(body) > MOST_LINES:
            lines.append(f"  … {len(body) - MOST_LINES} more lines; --json has them all")
    return lines


def _cut(value: Any) -> Any:
    match value:
        case str() if len(value) > MOST_TEXT:
            return f"{value[:MOST_TEXT]}… ({len(value):,} characters)"
        case dict():
            return {name: _cut(item) for name, item in value.items()}
        case list():
            return [_cut(item) for item in value]
    return value


def _address(deployment: DeploymentSpec) -> Address:
    return address(
        endpoint=deployment.endpoint,
        deployment=deployment.deployment,
        api=deployment.api,
        api_version=deployment.api_version,
    )


def _shown_url(deployment: DeploymentSpec) -> str:
    return _without_query(_address(deployment).base)


def _without_query(url: str) -> str:
    """Drop the query: some gateways take keys there."""
    return urlunsplit(urlsplit(url)._replace(query="", fragment=""))
