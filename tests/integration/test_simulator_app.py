"""The application over real sockets: quotas, faults as they look on the wire, what the ledger says of them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from pipeline.clock import SystemClock
from pipeline.simulator.app import Simulator
from pipeline.simulator.config import FaultKind, make_config
from pipeline.simulator.ledger import Answered, Arrived, Ledger, read_ledger
from pipeline.simulator.protocol import listen

HEADERS = {"api-key": "k"}
CHAT = "/openai/deployments/d/chat/completions?api-version=2024-10-21"
BODY = b'{"messages":[{"role":"user","content":"hello"}]}'
MOST_BYTES = 1_000_000
QUIET_S = 1.0  # after which nothing more is awaited; a busy machine answers within it


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a client saw: all bytes until the end, how it ended, and the ledger."""

    data: bytes
    end: str  # closed | reset | open
    entries: list[Arrived | Answered]

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0].lower()

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def length(self) -> int:
        return int(self.head.partition(b"content-length: ")[2].partition(b"\r\n")[0])


@asynccontextmanager
async def serving(config: dict[str, Any], ledger: Ledger | None = None) -> AsyncIterator[int]:
    """Serve on a free port for the length of the context."""
    app = Simulator(make_config(config), clock=SystemClock(), ledger=ledger)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = await listen(app, listener)
    try:
        yield listener.getsockname()[1]
    finally:
        server.close()


async def exchange(config: dict[str, Any], folder: Path, requests: int = 1) -> list[Seen]:
    """Send the same request on so many connections, one after the other."""
    path = folder / "ledger.jsonl"
    ledger = Ledger(path, now_s=0.0, later=asyncio.get_running_loop().call_soon)
    async with serving(config, ledger) as port:
        seen = [await ask(port) for _ in range(requests)]
    ledger.close()
    entries = list(read_ledger(path))
    return [Seen(data=data, end=end, entries=entries) for data, end in seen]


def client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS)


async def ask(port: int) -> tuple[bytes, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST %b HTTP/1.1\r\nhost: x\r\napi-key: k\r\nconnection: close\r\n" % CHAT.encode()
    writer.write(head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    data = b""
    end = "open"
    try:
        while len(data) < MOST_BYTES:
            async with asyncio.timeout(QUIET_S):
                piece = await reader.read(65_536)
            if not piece:
                end = "closed"
                break
            data += piece
    except ConnectionResetError:
        end = "reset"
    except TimeoutError:
        pass
    writer.close()
    return data, end


def is_whole_answer(seen: Seen) -> bool:
    return len(seen.body) == seen.length and bool(orjson.loads(seen.body)["choices"])


LOOKS: dict[FaultKind, Callable[[Seen], bool]] = {
    FaultKind.RESET_BEFORE: lambda seen: seen.data == b"" and seen.end == "reset",
    FaultKind.RESET_DURING: lambda seen: seen.end == "reset" and len(seen.body) < seen.length,
    FaultKind.CLOSE_EARLY: lambda seen: seen.data == b"" and seen.end == "closed",
    FaultKind.CUT_LENGTH: lambda seen: seen.end == "closed" and 0 < len(seen.body) < seen.length,
    FaultKind.CUT_CHUNK: lambda seen: b"chunked" in seen.head and not seen.data.endswith(b"0\r\n\r\n"),
    FaultKind.CUT_STREAM: lambda seen: b"chunked" in seen.head and not seen.data.endswith(b"0\r\n\r\n"),
    FaultKind.ERROR_EVENT: is_whole_answer,  # strikes streams alone
    FaultKind.HALF_BODY: lambda seen: b"content-length" not in seen.head and b"chunked" not in seen.head,
    FaultKind.GARBAGE: lambda seen: not seen.data.startswith(b"HTTP"),
    FaultKind.HUGE_HEADER: lambda seen: len(seen.head) > 300_000 and is_whole_answer(seen),
    FaultKind.DRIP: lambda seen: seen.end == "open" and len(seen.body) == 1,
    FaultKind.HANG: lambda seen: seen.data == b"" and seen.end == "open",
    FaultKind.HTML: lambda seen: b"text/html" in seen.head and seen.data.startswith(b"HTTP/1.1 200"),
    FaultKind.EMPTY_OBJECT: lambda seen: seen.body == b"{}",
    FaultKind.DEEP_JSON: lambda seen: seen.body == b"[" * 100_000,
    FaultKind.WRONG_CHARSET: lambda seen: "choices" in seen.body.decode("utf-16"),
    FaultKind.HUGE_BODY: lambda seen: seen.length == 200_000_000 and len(seen.body) > 900_000,
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", list(FaultKind))
async def test_a_fault_looks_as_it_is_called(kind: FaultKind, tmp_path: Path) -> None:
    config = {"faults": {"rates": {kind.value: 1.0}, "attempts": 1, "drip_interval_s": 60}}
    broken, whole = await exchange(config, tmp_path, requests=2)
    assert LOOKS[kind](broken)
    assert is_whole_answer(whole)


STREAMED = BODY.replace(b"hello", b"one two three four five six seven eight nine").replace(b"{", b'{"stream":true,', 1)


async def ask_streamed(config: dict[str, Any], folder: Path, bodies: list[bytes]) -> tuple[list[bytes], list[Answered]]:
    """Send streams; give what came of each, and what the ledger says of it."""
    path = folder / "ledger.jsonl"
    ledger = Ledger(path, now_s=0.0, later=asyncio.get_running_loop().call_soon)
    received = []
    async with serving(config, ledger) as port, client(port) as http:
        for body in bodies:
            data = b""
            with contextlib.suppress(httpx.RemoteProtocolError):
                async with http.stream("POST", CHAT, content=body) as reply:
                    assert reply.headers["content-type"].startswith("text/event-stream")
                    async for piece in reply.aiter_bytes():
                        data += piece
            received.append(data)
    ledger.close()
    return received, [entry for entry in read_ledger(path) if isinstance(entry, Answered)]


@pytest.mark.anyio
async def test_streams_are_cut_at_bytes_drawn_by_lot_and_the_ledger_says_where(tmp_path: Path) -> None:
    bodies = [STREAMED.replace(b"one", b"%d" % number) for number in range(12)]
    broken, entries = await ask_streamed({"faults": {"rates": {"cut_stream": 1.0}}}, tmp_path, bodies)
    whole, _ = await ask_streamed({}, tmp_path, bodies)
    lengths = [len(data) for data in broken]
    assert [entry.sent_bytes for entry in entries[: len(bodies)]] == lengths
    assert {entry.fault for entry in entries[: len(bodies)]} == {"cut_stream"}
    for data, complete in zip(broken, whole, strict=True):
        without_time = [re.sub(rb'"created":\d+', b"", stream) for stream in (data, complete[: len(data)])]
        assert without_time[0] == without_time[1]
        assert len(data) < len(complete)
    assert len(set(lengths)) > 8


@pytest.mark.anyio
async def test_an_error_takes_the_place_of_a_streams_rest(tmp_path: Path) -> None:
    [data], [entry] = await ask_streamed({"faults": {"rates": {"error_event": 1.0}}}, tmp_path, [STREAMED])
    assert b'data: {"error":{' in data
    assert b"[DONE]" not in data
    assert (entry.status, entry.fault) == (200, "error_event")
    assert entry.sent_bytes == data.index(b'data: {"error"')


@pytest.mark.anyio
async def test_a_stream_that_drips_comes_whole_in_the_end(tmp_path: Path) -> None:
    config = {"faults": {"rates": {"drip": 1.0}, "drip_interval_s": 0.00001}}
    [data], [entry] = await ask_streamed(config, tmp_path, [STREAMED])
    assert data.endswith(b"data: [DONE]\n\n")
    assert entry.fault == "drip"


@pytest.mark.anyio
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
async def test_an_injected_status_is_sent_and_is_charged(status: int, tmp_path: Path) -> None:
    config = {"faults": {"rates": {status: 1.0}, "headers": {"Retry-After": "86400", "Date": "never"}}}
    [seen] = await exchange(config, tmp_path)
    assert seen.data.startswith(b"HTTP/1.1 %d" % status)
    assert b"retry-after: 86400\r\n" in seen.head
    assert seen.head.count(b"date: ") == 1
    answered = [entry for entry in seen.entries if isinstance(entry, Answered)]
    assert [(entry.status, entry.fault, entry.tokens) for entry in answered] == [(status, "status", 2 + 16)]


@pytest.mark.anyio
async def test_a_request_that_nobody_waits_for_is_noted_and_a_cancelled_one_stays_in_flight(tmp_path: Path) -> None:
    [seen] = await exchange({"latency": {"median_ms": 60_000}}, tmp_path)
    assert (seen.data, seen.end) == (b"", "open")
    assert [type(entry) for entry in seen.entries] == [Arrived]


@pytest.mark.anyio
async def test_faults_are_the_same_in_every_run(tmp_path: Path) -> None:
    config = {"faults": {"rates": {"500": 0.3, "503": 0.3}}, "seed": 5}
    runs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        runs.append([seen.data[:12] for seen in await exchange(config, folder, requests=20)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


@pytest.mark.anyio
async def test_a_schedule_changes_the_quota_and_speed_lets_it_pass_faster() -> None:
    config = {
        "deployments": {"d": {"tokens_per_minute": 40}},
        "schedule": [{"at_s": 0, "deployment": "d", "tokens_per_minute": 20}],
        "speed": 600,
    }
    async with serving(config) as port, client(port) as http:
        first = await http.post(CHAT, content=BODY)
        second = await http.post(CHAT, content=BODY)
        assert (first.status_code, second.status_code) == (200, 429)
        assert first.headers["x-ratelimit-limit-tokens"] == "12000"
        assert 0 < float(second.headers["retry-after-ms"]) <= 100
        while second.status_code == 429:
            second = await http.post(CHAT, content=BODY)
        assert second.status_code == 200


@pytest.mark.anyio
async def test_limits_can_be_negative() -> None:
    deployments = {"d": {"tokens_per_minute": 1_000, "requests_per_minute": 60}}
    async with serving({"deployments": deployments, "quirks": ["negative_limits"]}) as port, client(port) as http:
        headers = (await http.post(CHAT, content=BODY)).headers
    limits = {name: value for name, value in headers.items() if name.startswith("x-ratelimit")}
    assert limits == {
        "x-ratelimit-limit-tokens": "-1",
        "x-ratelimit-remaining-tokens": "-1",
        "x-ratelimit-reset-tokens": "0",
    }


@pytest.mark.anyio
async def test_deployments_of_one_name_are_told_apart_by_their_resource() -> None:
    config = {"deployments": {"east/d": {"model": "gpt-4o"}, "west/d": {"model": "gpt-4.1"}}}
    async with serving(config) as port, client(port) as http:
        east = (await http.post(f"/east{CHAT}", content=BODY)).json()
        west = (await http.post(f"/west{CHAT}", content=BODY)).json()
        nowhere = await http.post(CHAT, content=BODY)
    assert (east["model"], west["model"], nowhere.status_code) == ("gpt-4o", "gpt-4.1", 404)


@pytest.mark.anyio
async def test_more_than_ten_headers_of_ones_own_are_refused() -> None:
    async with serving({}) as port, client(port) as http:
        answers = [
            await http.post(CHAT, content=BODY, headers={f"x-own-{number}": "1" for number in range(count)})
            for count in (10, 11)
        ]
    assert [answer.status_code for answer in answers] == [200, 431]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/openai/v1/embeddings", b'{"input":"a"}', 400, None),
        ("/openai/v1/embeddings", b"[]", 400, None),
        ("/openai/v1/embeddings", b"\xff", 400, None),
        ("/openai/v1/embeddings?api-version=2024-10-21", b'{"model":"e","input":"a"}', 400, "BadRequest"),
        ("/openai/deployments/d/embeddings", b'{"input":"a"}', 404, "404"),
        ("/nowhere", b"{}", 404, "404"),
    ],
)
async def test_what_cannot_be_read_is_refused(path: str, body: bytes, status: int, code: str | None) -> None:
    async with serving({}) as port, client(port) as http:
        answer = await http.post(path, content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/openai/models", "/openai/v1/models", "/v1/models", "/v1/embeddings"])
async def test_nothing_is_served_without_a_key(path: str) -> None:
    async with serving({}) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        answer = await http.request("POST" if path.endswith("embeddings") else "GET", path)
    assert answer.status_code == 401


@pytest.mark.anyio
async def test_a_stream_takes_the_time_of_its_tokens() -> None:
    config = {"latency": {"per_output_token_ms": 20}}
    body = BODY.replace(b'{"messages"', b'{"stream":true,"messages"')
    async with serving(config) as port, client(port) as http:
        began = asyncio.get_running_loop().time()
        answer = await http.post(CHAT, content=body)
        took_s = asyncio.get_running_loop().time() - began
    assert answer.text.endswith("data: [DONE]\n\n")
    assert took_s > 0.1
