"""Files made for the Batch API run as they are, and folders of files run as rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from in_memory import Service, answer_of, vector_of

from pipeline import load_job
from pipeline.errors import InputChangedError
from pipeline.job.spec import Job
from pipeline.run import RunOptions, run_job
from pipeline.store.batch_lines import write_batch_lines
from pipeline.store.summary import Summary
from pipeline.testing import MemoryTransport
from pipeline.views.preview import preview

pytestmark = pytest.mark.anyio

NOT_OF_A_LINE = {"model", "stream", "stream_options"}
ENVIRON = {"AZURE_OPENAI_API_KEY": "k" * 32}


def job_file(folder: Path, **sections: Any) -> Job:
    """Write and load a job over `in`, with these sections in place of the usual ones; None leaves one out."""
    deployment = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "model": "unknown"}
    job = {
        "input": {"path": "in", "format": "openai-batch"},
        "deployments": [deployment],
        "output": {"path": "out", "part_rows": 3, "format": "openai-batch"},
        "run": {"workers": 2, "grace": "0s"},
    } | sections
    file = folder / "job.json"
    file.write_text(json.dumps({name: section for name, section in job.items() if section is not None}))
    return load_job(file, environ=ENVIRON)


def lines(folder: Path, url: str, bodies: Sequence[Any]) -> None:
    """Write a line for each body; one that is text is written as it is."""
    made = [
        body
        if isinstance(body, str)
        else json.dumps({"custom_id": f"task-{n}", "method": "POST", "url": url, "body": body})
        for n, body in enumerate(bodies)
    ]
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "requests.jsonl").write_text("\n".join(made) + "\n")


async def run(job: Job, transport: httpx.AsyncBaseTransport) -> Summary:
    return await run_job(job, options=RunOptions(), dice=lambda: 0.0, transport=transport)


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "batch-deployment", "messages": [{"role": "user", "content": text}], **fields}


def written(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / "out" / name).read_text(encoding="utf-8").splitlines()]


def result_lines(job: Job) -> tuple[int, int]:
    parts = sorted(job.output.path.glob("part-*.parquet"))
    return write_batch_lines(job.output.path, parts, id_column=job.input.id)


async def test_lines_for_chat_are_sent_and_answered_in_the_batch_apis_form(tmp_path: Path) -> None:
    asked = [chat("a", temperature=0.5, stream=True, stream_options={"include_usage": True}), chat("b"), chat("c")]
    lines(tmp_path, "/v1/chat/completions", asked)
    sent: list[dict[str, Any]] = []
    service = Service()

    def answer(request: httpx.Request) -> httpx.Response | Exception:
        sent.append(json.loads(request.content))
        return service._answer(request)

    job = job_file(tmp_path)
    summary = await run(job, MemoryTransport(answer))
    assert (summary.exit_code, job.operation) == (0, "chat")
    own = [{name: value for name, value in body.items() if name not in NOT_OF_A_LINE} for body in asked]
    assert sorted(sent, key=json.dumps) == sorted(own, key=json.dumps)
    assert result_lines(job) == (3, 0)
    found = {line["custom_id"]: line["response"]["body"] for line in written(tmp_path, "output.jsonl")}
    assert {name: body["choices"][0]["message"]["content"] for name, body in found.items()} == {
        f"task-{n}": answer_of(text) for n, text in enumerate("abc")
    }


async def test_a_run_writes_the_result_lines_once_it_is_complete(tmp_path: Path) -> None:
    lines(tmp_path, "/v1/chat/completions", [chat("a"), chat(""), chat("c"), chat("d")])
    job = job_file(tmp_path)
    for limit in (2, 3):  # within a range, and at the end of one
        await run_job(job, options=RunOptions(limit=limit), dice=lambda: 0.0, transport=Service())
        assert not list((tmp_path / "out").glob("*.jsonl"))
    assert (await run(job, Service())).exit_code == 1
    assert {line["custom_id"] for line in written(tmp_path, "output.jsonl")} == {"task-0", "task-2", "task-3"}
    assert {line["custom_id"] for line in written(tmp_path, "errors.jsonl")} == {"task-1"}


async def test_lines_for_embeddings_are_sent_and_answered(tmp_path: Path) -> None:
    lines(tmp_path, "/embeddings", [{"model": "m", "input": text, "dimensions": 4} for text in ("a", "b")])
    job = job_file(tmp_path)
    summary = await run(job, Service())
    assert (summary.exit_code, job.operation) == (0, "embeddings")
    assert result_lines(job) == (2, 0)
    vectors = [line["response"]["body"]["data"][0]["embedding"] for line in written(tmp_path, "output.jsonl")]
    assert vectors == [vector_of("a"), vector_of("b")]


async def test_bad_lines_and_lines_that_ask_for_something_else_are_failed_rows(tmp_path: Path) -> None:
    other = {"custom_id": "other", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}
    read = {"custom_id": "read", "method": "GET", "url": "/v1/chat/completions", "body": chat("x")}
    texts = [json.dumps(other), "not json", json.dumps(read), json.dumps(other | {"url": None, "custom_id": "none"})]
    texts.append(json.dumps(other | {"url": "/v1/chat/completions", "custom_id": "text", "body": "{}"}))
    lines(tmp_path, "/v1/chat/completions", [chat("a"), *texts, chat("z")])
    job = job_file(tmp_path)
    summary = await run(job, Service())
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (1, 2, 5)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    rows = [row for path in parts for row in pq.read_table(path).to_pylist()]
    failed = {row["custom_id"]: row["error"] for row in rows if row["status"] == "failed"}
    assert {name: error["code"] for name, error in failed.items()} == {
        "other": "url", None: "invalid_json", "read": "url", "none": "url", "text": "type",
    }  # fmt: skip
    assert "is not /chat/completions or /v1/chat/completions, which this run asks for" in failed["other"]["message"]
    assert "method is not POST" in failed["read"]["message"]
    assert result_lines(job) == (2, 5)
    assert {line["custom_id"] for line in written(tmp_path, "errors.jsonl")} == {"other", "2", "read", "none", "text"}


async def test_a_second_line_of_the_same_custom_id_is_a_failed_row(tmp_path: Path) -> None:
    line = json.dumps({"custom_id": "same", "method": "POST", "url": "/chat/completions", "body": chat("a")})
    lines(tmp_path, "/chat/completions", [line, line])
    summary = await run(job_file(tmp_path), Service())
    assert (summary.rows.ok, summary.rows.failed) == (1, 1)


@pytest.mark.parametrize(
    ("url", "body", "columns"),
    [
        ("/v1/chat/completions", chat("a"), ["custom_id", "method", "url", "body"]),
        ("/v1/embeddings", {"input": "a"}, ["custom_id", "method", "url", "body"]),
        ("/v1/completions", {"prompt": "a"}, ["custom_id", "method", "url", "body"]),
        ("/v1/responses", {"input": "a", "model": "other"}, ["custom_id", "method", "url", "body"]),
        ("/v1/images/generations", {"prompt": "a"}, ["custom_id", "method", "url", "body"]),
    ],
)
def test_lines_of_every_url_are_shown_as_they_would_be_sent(
    tmp_path: Path, url: str, body: Mapping[str, Any], columns: list[str]
) -> None:
    lines(tmp_path, url, [body])
    found = preview(job_file(tmp_path), rows=1)
    assert not found.problems
    assert list(found.columns) == columns
    (row,) = found.rows
    assert url.removeprefix("/v1") in row["url"]
    for name, value in body.items():
        if name != "model":
            assert row["body"][name] in (value, [value])
    assert row["body"].get("model") in (None, "d")


def files_job(folder: Path) -> Job:
    return job_file(
        folder,
        operation="chat",
        input={"path": "in", "format": "files", "id": "path"},
        request={"messages": [{"role": "user", "content": "{{ path }} has {{ bytes }} bytes"}]},
        output={"path": "out"},
    )


async def test_a_folder_of_files_is_run_a_row_a_file(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b.wav").write_bytes(b"12")
    (tmp_path / "in" / "deep" / "a.wav").write_bytes(b"123")
    (tmp_path / "in" / "gone").symlink_to("nowhere")
    service = Service()
    summary = await run(files_job(tmp_path), service)
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (1, 2, 1)
    assert sorted(service.calls) == [["b.wav has 2 bytes"], ["deep/a.wav has 3 bytes"]]
    (part,) = (tmp_path / "out").glob("part-*.parquet")
    assert pq.read_table(part).column("path").to_pylist() == ["b.wav", "deep/a.wav", "gone"]
    shown = preview(files_job(tmp_path), rows=1)
    assert (shown.files, shown.bytes) == (3, 5)


async def test_a_folder_of_files_may_get_more_at_its_end_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.wav").write_bytes(b"12")
    service = Service()
    await run(files_job(tmp_path), service)
    (tmp_path / "in" / "c.wav").write_bytes(b"1")
    summary = await run(files_job(tmp_path), service)
    assert (summary.rows.ok, len(service.calls)) == (2, 2)
    (tmp_path / "in" / "b.wav").write_bytes(b"another")
    with pytest.raises(InputChangedError, match=r"rows 0 to 0 are not what they were.*input\.incremental"):
        await run(files_job(tmp_path), service)
    assert len(service.calls) == 2
