"""The real azure-identity against a managed identity endpoint on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trustme

from pipeline.clock import Clock, SystemClock
from pipeline.errors import NoTokenYetError, RefusedError
from pipeline.run import run_job
from pipeline.service.address import address
from pipeline.service.auth import Credentials, credentials
from pipeline.store.summary import Summary
from pipeline.testing import ManualClock
from tests.in_memory import Bench, Service

pytestmark = pytest.mark.anyio
SYSTEM = SystemClock()
SILENT = 0
"""A status that never comes."""
PLACE = address(endpoint="https://res.openai.azure.com", deployment="d", api="azure", api_version=None)


@dataclass(kw_only=True)
class Endpoint:
    """Issues numbered tokens and keeps what it was asked."""

    life_s: float = 3600.0
    statuses: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    issued: int = 0
    clock: Clock = SYSTEM
    issued_at: list[float] = field(default_factory=list)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
                status = self.statuses.pop(0) if self.statuses else 200
                if status == SILENT:
                    await reader.read()
                    return
                answer: dict[str, object] = {"error": "unavailable"}
                if status == 200:
                    self.issued += 1
                    self.issued_at.append(self.clock.wall())
                    answer = {
                        "access_token": f"token-{self.issued}",
                        "expires_on": str(int(self.clock.wall() + self.life_s)),
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
async def serving(
    monkeypatch: pytest.MonkeyPatch, *, clock: Clock = SYSTEM, life_s: float = 3600.0
) -> AsyncIterator[Endpoint]:
    """A managed identity endpoint as App Service has one, which the environment names."""
    served = Endpoint(clock=clock, life_s=life_s)
    listener = await asyncio.start_server(served, "127.0.0.1", 0)
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "the-header")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with listener:
        yield served


@asynccontextmanager
async def identity(
    monkeypatch: pytest.MonkeyPatch, kind: str = "managed-identity", *, clock: Clock = SYSTEM
) -> AsyncIterator[tuple[Endpoint, Credentials]]:
    async with serving(monkeypatch, clock=clock) as served:
        yield (
            served,
            credentials(
                auth="entra", address=PLACE, key=None, token=None, scope=None, credential={"type": kind}, clock=clock
            ),
        )


@pytest.mark.parametrize("status", [SILENT, 429, 500, 503])
async def test_an_endpoint_that_is_silent_busy_or_down_is_given_up_for_now_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    clock = ManualClock(wall=time.time())
    async with serving(monkeypatch) as endpoint:
        endpoint.statuses = [status] * 100
        made = credentials(
            auth="entra",
            address=PLACE,
            key=None,
            token=None,
            scope=None,
            credential={"type": "managed-identity"},
            clock=clock,
            ask_s=0.5,
        )
        answers = await asyncio.gather(*(made.headers() for _ in range(64)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {NoTokenYetError}
        assert "no Entra token for https://cognitiveservices.azure.com/.default could be had: " in str(answers[0])
        if status == SILENT:
            assert "the token endpoint did not answer within 0.5 s" in str(answers[0])
            assert len(endpoint.asked) == 1
        endpoint.statuses.clear()
        clock.advance(2.0)
        assert (await made.headers())["authorization"] == "Bearer token-1"


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


@pytest.mark.parametrize("kind", ["managed-identity", "default"])
async def test_what_gave_the_token_and_its_expiry_can_be_told(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    async with identity(monkeypatch, kind) as (endpoint, made):
        await made.headers()
        assert made.used.startswith("ManagedIdentityCredential")
        assert ("by DefaultAzureCredential" in made.used) == (kind == "default")
        assert made.expires_at is not None
        assert 3500 < made.expires_at - time.time() <= 3600
        assert made.secrets == ("Bearer token-1", "token-1")
        assert endpoint.issued == 1


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"client_id": "c-1"}, "client_id=c-1"),
        ({"resource_id": "/subscriptions/s"}, "resource_id=/subscriptions/s"),
        ({"object_id": "o-1"}, "object_id=o-1"),
    ],
)
async def test_a_user_assigned_identity_is_asked_for_by_its_name(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, str], asked: str
) -> None:
    async with serving(monkeypatch) as endpoint:
        made = credentials(
            auth="entra",
            address=PLACE,
            key=None,
            token=None,
            scope="https://audience.example/.default",
            credential={"type": "managed-identity", **options},
            clock=SYSTEM,
        )
        await made.headers()
    line = endpoint.asked[0].partition("\r\n")[0]
    assert asked in line.replace("%2F", "/")
    assert "audience.example" in line


async def test_a_chain_goes_on_where_a_credential_is_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    chain = {"type": "chained", "sources": [{"type": "azure-cli"}, {"type": "managed-identity"}]}
    async with serving(monkeypatch):
        made = credentials(
            auth="entra", address=PLACE, key=None, token=None, scope=None, credential=chain, clock=SYSTEM
        )
        assert dict(await made.headers()) == {"authorization": "Bearer token-1"}
    assert made.used == "ManagedIdentityCredential (by ChainedTokenCredential)"


async def test_a_chain_without_a_token_says_what_each_of_it_said_and_nothing_else_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(logging.getLogger("azure"), "propagate", False)
    chain = {
        "type": "chained",
        "sources": [
            {"type": "azure-cli"},
            {"type": "azure-developer-cli"},
            {"type": "client-assertion", "tenant_id": "t", "client_id": "c", "assertion_file": "/no/such/assertion"},
        ],
    }
    made = credentials(auth="entra", address=PLACE, key=None, token=None, scope=None, credential=chain, clock=SYSTEM)
    with pytest.raises(RefusedError) as caught:
        await made.headers()
    said = str(caught.value)
    assert "AzureCliCredential: Azure CLI not found on path" in said
    assert "AzureDeveloperCliCredential: " in said
    assert "ClientAssertionCredential: " in said
    assert "\n" not in said
    assert capfd.readouterr() == ("", "")


def tool(folder: Path, name: str, said: str, *, code: int = 0) -> None:
    """A developer tool that says one thing."""
    (folder / "said").write_text(said)
    file = folder / name
    file.write_text(f"#!/bin/sh\n/bin/cat {folder}/said\nexit {code}\n")
    file.chmod(0o755)


async def test_who_is_signed_in_to_the_azure_cli_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool(tmp_path, "az", json.dumps({"accessToken": "by-az", "expires_on": int(time.time()) + 3600}))
    monkeypatch.setenv("PATH", str(tmp_path))
    made = credentials(
        auth="entra", address=PLACE, key=None, token=None, scope=None, credential={"type": "azure-cli"}, clock=SYSTEM
    )
    assert dict(await made.headers()) == {"authorization": "Bearer by-az"}
    assert made.used == "AzureCliCredential"


async def test_who_is_signed_in_to_the_developer_cli_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool(tmp_path, "azd", json.dumps({"token": "by-azd", "expiresOn": "2099-01-01T00:00:00Z"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    kind = {"type": "azure-developer-cli", "process_timeout": 20}
    made = credentials(auth="entra", address=PLACE, key=None, token=None, scope=None, credential=kind, clock=SYSTEM)
    assert dict(await made.headers()) == {"authorization": "Bearer by-azd"}


PRINCIPAL = """
import asyncio, json, sys
from pipeline.clock import SystemClock
from pipeline.errors import NoTokenYetError, RefusedError
from pipeline.service.address import address
from pipeline.service.auth import credentials

async def main():
    place = address(endpoint="https://res.openai.azure.com", deployment="d", api="azure", api_version=None)
    options = json.loads(sys.argv[1])
    made = credentials(auth="entra", address=place, key=None, token=None, scope=None, credential=options,
                       clock=SystemClock())
    try:
        print(json.dumps(dict(await made.headers())))
    except RefusedError as error:
        print(error)

asyncio.run(main())
"""
"""A process of its own, since the libraries read which certificates to trust when they are imported."""


async def principal(
    tmp_path: Path, options: Mapping[str, object], answer: Mapping[str, object], status: int = 200
) -> tuple[str, str]:
    """What a service principal gets of an authority on loopback, and what that one was asked."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        (length,) = [line[15:] for line in head.lower().split("\r\n") if line.startswith("content-length:")]
        asked.append(head.partition("\r\n")[0] + "\n" + (await reader.readexactly(int(length))).decode())
        body = json.dumps(answer).encode()
        start = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n"
        writer.write(f"{start}content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PRINCIPAL,
            json.dumps({**options, "authority": f"https://127.0.0.1:{port}"}),
            env={"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "NO_PROXY": "127.0.0.1", "PATH": "/nowhere"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await process.communicate()
    assert complained == b""
    return said.decode().strip(), asked[0]


TENANT = "11111111-2222-3333-4444-555555555555"
GRANTED = {"access_token": "granted", "expires_in": 3600, "token_type": "Bearer"}


@pytest.mark.parametrize("kind", ["client-secret", "client-assertion", "certificate", "workload-identity"])
async def test_a_service_principal_asks_its_authority(tmp_path: Path, kind: str) -> None:
    (tmp_path / "assertion").write_text("an-assertion\n")
    issued = trustme.CA().issue_cert("app.example", key_type=trustme.KeyType.RSA)
    issued.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "app.pem"))
    own = {
        "client-secret": {"client_secret": "canary"},
        "client-assertion": {"assertion_file": str(tmp_path / "assertion")},
        "certificate": {"certificate_path": str(tmp_path / "app.pem")},
        "workload-identity": {"token_file_path": str(tmp_path / "assertion")},
    }[kind]
    options = {"type": kind, "tenant_id": TENANT, "client_id": "c-1", **own}
    said, asked = await principal(tmp_path, options, GRANTED)
    assert json.loads(said) == {"authorization": "Bearer granted"}
    assert asked.startswith(f"POST /{TENANT}/oauth2/v2.0/token")
    assert "client_id=c-1" in asked
    assert ("client_secret=canary" in asked) == (kind == "client-secret")
    assert ("client_assertion=an-assertion" in asked) == (kind in {"client-assertion", "workload-identity"})


async def test_a_service_principal_that_is_refused_is_told_why_without_its_secret(tmp_path: Path) -> None:
    refused: dict[str, object] = {
        "error": "invalid_client",
        "error_description": "AADSTS7000215: Invalid client secret canary provided.\r\nTrace ID: t",
    }
    options: dict[str, object] = {
        "type": "client-secret",
        "tenant_id": TENANT,
        "client_id": "c-1",
        "client_secret": "canary",
    }
    said, _ = await principal(tmp_path, options, refused, 401)
    assert "AADSTS7000215: Invalid client secret *** provided." in said
    assert "canary" not in said


class Long(Service):
    """A service of which every answer takes a second of the clock's; `revoked` says which tokens are let in no more."""

    def __init__(self, clock: ManualClock, revoked: Callable[[str, int], bool]) -> None:
        super().__init__()
        self.clock = clock
        self.tokens: list[str] = []
        self._revoked = revoked

    def _answer(self, request: httpx.Request) -> httpx.Response | Exception:
        self.clock.advance(1.0)
        token = request.headers["authorization"].removeprefix("Bearer ")
        self.tokens.append(token)
        if self._revoked(token, len(self.tokens)):
            return httpx.Response(401, json={"error": {"code": "401", "message": f"not {token}"}})
        return super()._answer(request)


async def long_run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, revoked: Callable[[str, int], bool]
) -> tuple[Summary, Long, Endpoint, Bench]:
    """Twenty minutes, a request a second, by 64 workers, with tokens that live for 400 seconds."""
    clock = ManualClock(wall=time.time())
    place = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "requests_per_minute": 1e9}
    bench = Bench(folder=folder, operation="chat").texts(*(f"text {number}" for number in range(1200)))
    bench.changes = {
        "deployments": [{**place, "auth": "entra", "credential": {"type": "managed-identity"}}],
        "run": {"workers": 64, "grace": "0s"},
    }
    service = Long(clock, revoked)
    async with serving(monkeypatch, clock=clock, life_s=400.0) as endpoint:
        summary = await run_job(
            bench.job(), clock=clock, dice=lambda: 0.0, transport=service, listener=bench.events.append
        )
    return summary, service, endpoint, bench


async def test_twenty_minutes_of_64_workers_make_one_token_call_for_each_renewal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    summary, service, endpoint, bench = await long_run(monkeypatch, tmp_path, lambda _token, _number: False)
    assert (summary.exit_code, summary.rows.ok, summary.attempts) == (0, 1200, 1200)
    assert len(service.calls) == 1200
    # A token is renewed 300 s ahead of its 400 s: one call a hundred seconds, however many workers see it.
    assert endpoint.issued == len(endpoint.asked) == len(set(service.tokens))
    between = [later - earlier for earlier, later in zip(endpoint.issued_at, endpoint.issued_at[1:], strict=False)]
    assert all(gap >= 100 for gap in between)
    assert 3 <= endpoint.issued <= 12
    bench.assert_rows(range(1200))


async def test_a_401_in_the_middle_makes_exactly_one_more_token_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fallen: list[str] = []

    def revoked(token: str, number: int) -> bool:
        if number == 130:
            fallen.append(token)
        return token in fallen

    summary, _, endpoint, bench = await long_run(monkeypatch, tmp_path, revoked)
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (0, 1200, 0)
    between = [later - earlier for earlier, later in zip(endpoint.issued_at, endpoint.issued_at[1:], strict=False)]
    early = [gap for gap in between if gap < 100]
    assert len(early) == 1
    assert max(row["request"]["attempts"] for row in bench.table()) == 1


async def test_tokens_revoked_for_good_end_the_run_with_its_rows_pending(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    summary, service, endpoint, bench = await long_run(monkeypatch, tmp_path, lambda _token, _number: True)
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (3, 0, 0)
    assert bench.parts() == []
    assert endpoint.issued == 2
    assert set(service.tokens) == {"token-1", "token-2"}
    for token in service.tokens:
        assert token not in json.dumps(bench.events, default=str)
        assert token not in (summary.reason or "")


@contextmanager
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path("/dev/null").open() as nothing, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", nothing)
        yield


@pytest.mark.parametrize("kind", ["device-code", "interactive-browser"])
async def test_signing_in_needs_a_terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    made = credentials(
        auth="entra", address=PLACE, key=None, token=None, scope=None, credential={"type": kind}, clock=SYSTEM
    )
    with no_terminal(monkeypatch), pytest.raises(RefusedError, match=f"{kind} needs a person at a terminal"):
        await made.headers()


async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heads: list[str]) -> None:
    heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
    writer.write(b"HTTP/1.1 400 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    await writer.drain()
    writer.close()


OF_HTTP = {"host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "connection"}


async def test_the_worst_job_sends_no_more_than_ten_custom_headers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Azure answers 431 to more than ten; counted on the wire, whoever put them there."""
    heads: list[str] = []
    listener = await asyncio.start_server(lambda reader, writer: listen(reader, writer, heads), "127.0.0.1", 0)
    bench = Bench(folder=tmp_path, operation="chat").texts("one")
    bench.changes = {
        "deployments": [
            {
                "endpoint": f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}",
                "deployment": "d",
                "api": "azure",
                "auth": "entra",
                "credential": {"type": "managed-identity"},
                "organization": "org",
                "project": "proj",
                "headers": {f"X-Gateway-{number}": "${AZURE_OPENAI_API_KEY}" for number in range(4)},
            }
        ]
    }
    async with listener, serving(monkeypatch):
        await run_job(bench.job(), dice=lambda: 0.0)
    names = [line.partition(":")[0].lower() for line in heads[0].split("\r\n")[1:] if line]
    assert len(names) == len(set(names))
    custom = set(names) - OF_HTTP
    assert custom >= {"authorization", "x-ms-client-request-id", "openai-organization", "openai-project"}
    assert len(custom) == 8
    assert len(custom) <= 10
