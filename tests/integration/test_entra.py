"""The real azure-identity against a managed identity endpoint on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from pipeline.clock import Clock, SystemClock
from pipeline.errors import RefusedError
from pipeline.service.address import address
from pipeline.service.auth import Credentials, credentials
from pipeline.testing import ManualClock

pytestmark = pytest.mark.anyio
SYSTEM = SystemClock()
PLACE = address(endpoint="https://res.openai.azure.com", deployment="d", api="azure", api_version=None)


@dataclass(kw_only=True)
class Endpoint:
    """Issues numbered tokens and keeps what it was asked."""

    life_s: float = 3600.0
    statuses: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    issued: int = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
                status = self.statuses.pop(0) if self.statuses else 200
                answer: dict[str, object] = {"error": "unavailable"}
                if status == 200:
                    self.issued += 1
                    answer = {
                        "access_token": f"token-{self.issued}",
                        "expires_on": str(int(time.time() + self.life_s)),
                        "resource": "https://cognitiveservices.azure.com",
                        "token_type": "Bearer",
                    }
                body = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def identity(
    monkeypatch: pytest.MonkeyPatch, kind: str = "managed-identity", *, clock: Clock = SYSTEM
) -> AsyncIterator[tuple[Endpoint, Credentials]]:
    served = Endpoint()
    listener = await asyncio.start_server(served, "127.0.0.1", 0)
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "the-header")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = credentials(
        auth="entra", address=PLACE, key=None, token=None, scope=None, credential={"type": kind}, clock=clock
    )
    async with listener:
        yield served, made


@pytest.mark.parametrize("kind", ["managed-identity", "default"])
async def test_sixty_four_workers_share_one_token(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    async with identity(monkeypatch, kind) as (endpoint, made):
        headers = await asyncio.gather(*(made.headers() for _ in range(64)))
        assert {tuple(found.items()) for found in headers} == {(("authorization", "Bearer token-1"),)}
        assert endpoint.issued == 1
        assert "resource=https%3A%2F%2Fcognitiveservices.azure.com" in endpoint.asked[0].replace(":", "%3A").replace(
            "//", "%2F%2F"
        )
        assert "the-header" in endpoint.asked[0]


async def test_a_401_has_exactly_one_new_token_for_sixty_four_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with identity(monkeypatch) as (endpoint, made):
        await made.headers()
        assert await asyncio.gather(*(made.refused(0) for _ in range(64))) == [True] * 64
        assert dict(await made.headers()) == {"authorization": "Bearer token-2"}
        assert endpoint.issued == 2
        assert not await made.refused(1)


async def test_a_token_about_to_expire_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(wall=time.time())
    async with identity(monkeypatch, clock=clock) as (endpoint, made):
        await made.headers()
        clock.advance(3290.0)
        assert dict(await made.headers()) == {"authorization": "Bearer token-1"}
        clock.advance(20.0)
        assert dict(await made.headers()) == {"authorization": "Bearer token-2"}
        assert endpoint.issued == 2


async def test_an_endpoint_that_says_no_refuses_the_run_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    async with identity(monkeypatch) as (endpoint, made):
        endpoint.statuses = [400]
        with pytest.raises(RefusedError, match="no Entra token for https://cognitiveservices") as caught:
            await made.headers()
        assert "the-header" not in str(caught.value)
