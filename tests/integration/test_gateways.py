"""What a gateway asks for really arrives: its headers, over TLS that a bundle of one's own verifies."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from pipeline import load_job
from pipeline.run import RunOptions, run_job
from pipeline.store.summary import Summary

pytestmark = pytest.mark.anyio

ANSWER = json.dumps(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}
).encode()
ENVIRON = {"GATE": "gate-canary", "SECOND": "second", "THIRD": "third", "FOURTH": "fourth", "KEY": "k" * 32}
FOUR = {
    "Ocp-Apim-Subscription-Key": "${GATE}",
    "X-Two": "${SECOND}",
    "X-Three": "Bearer ${THIRD}",
    "X-Four": "Basic ${FOURTH}",
}
# Azure refuses a request with more than ten headers that are not HTTP's own.
HTTPS_OWN = {"host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "connection"}


@dataclass(slots=True)
class Gateway:
    """Answers every request the same; `heads` are the requests' lines and headers."""

    base: str = ""
    heads: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                assert len(headers) == len(lines)
                await reader.readexactly(int(headers["content-length"]))
                self.heads.append((first, headers))
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)
                    + ANSWER
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def gateway(authority: trustme.CA | None = None) -> AsyncIterator[Gateway]:
    served, context = Gateway(), None
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(served.answer, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    served.base = f"{'http' if authority is None else 'https'}://127.0.0.1:{port}/team/v1"
    try:
        yield served
    finally:
        server.close()


async def run(folder: Path, **deployment: Any) -> Summary:
    (folder / "rows.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl"},
        "request": {"messages": [{"role": "user", "content": "{{ text }}"}]},
        "deployments": [{"deployment": "d", "api": "openai", "key": "${KEY}", **deployment}],
        "output": {"path": "out"},
        "run": {"grace": "0s", "max_outage": "1s", "max_attempts": 2},
    }
    file = folder / "job.json"
    file.write_text(json.dumps(job))
    return await run_job(load_job(file, environ=ENVIRON), options=RunOptions(), dice=lambda: 0.0)


async def test_four_headers_an_organization_and_a_project_arrive_with_every_request(tmp_path: Path) -> None:
    async with gateway() as served:
        summary = await run(tmp_path, endpoint=served.base, headers=FOUR, organization="org-1", project="proj-1")
    assert (summary.exit_code, summary.rows.ok, len(served.heads)) == (0, 2, 2)
    for line, headers in served.heads:
        assert line == "POST /team/v1/chat/completions HTTP/1.1"
        own = {name: value for name, value in headers.items() if name not in HTTPS_OWN}
        assert own.pop("x-ms-client-request-id")
        assert own == {
            "authorization": "Bearer " + "k" * 32,
            "ocp-apim-subscription-key": "gate-canary",
            "x-two": "second",
            "x-three": "Bearer third",
            "x-four": "Basic fourth",
            "openai-organization": "org-1",
            "openai-project": "proj-1",
        }
        assert len(own) + 1 <= 10


async def test_a_gateway_may_be_the_one_that_is_signed_in_to(tmp_path: Path) -> None:
    async with gateway() as served:
        headers = {"Authorization": "Bearer ${GATE}"}
        summary = await run(tmp_path, endpoint=served.base, key=None, auth="none", headers=headers)
    assert summary.exit_code == 0
    assert {headers["authorization"] for _, headers in served.heads} == {"Bearer gate-canary"}


async def test_no_header_of_a_gateway_is_kept_anywhere(tmp_path: Path) -> None:
    async with gateway() as served:
        await run(tmp_path, endpoint=served.base, headers=FOUR)
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"gate-canary" not in path.read_bytes()


async def test_a_bundle_of_ones_own_verifies_a_gateway_and_nothing_else_does(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    for name, one in (("ours.pem", authority), ("other.pem", other)):
        one.cert_pem.write_to_path(tmp_path / name)
    async with gateway(authority) as served:
        (tmp_path / "with").mkdir()
        summary = await run(tmp_path / "with", endpoint=served.base, ca_bundle="../ours.pem")
        assert (summary.exit_code, len(served.heads)) == (0, 2)
        for folder, changes in (("other", {"ca_bundle": "../other.pem"}), ("without", {})):
            (tmp_path / folder).mkdir()
            summary = await run(tmp_path / folder, endpoint=served.base, **changes)
            assert summary.exit_code != 0
            assert summary.rows.ok == 0
    assert len(served.heads) == 2
