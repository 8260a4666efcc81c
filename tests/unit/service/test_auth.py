"""Credentials: which header, renewed when, by how many."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import trustme
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

from pipeline.errors import NoTokenYetError, RefusedError
from pipeline.job.identity import KINDS, credential_problems, kind_name
from pipeline.service.address import address
from pipeline.service.auth import (
    PATIENCE_S,
    Credentials,
    EntraCredentials,
    _ask_to_sign_in,
    _InThread,
    credential_maker,
    default_authority,
    default_scope,
    token_expires_at,
)
from pipeline.testing import ManualClock

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

pytestmark = pytest.mark.anyio


@dataclass(kw_only=True)
class Issuer:
    """Issues numbered tokens, as Entra's credentials do: one object hands out its cached token again."""

    clock: ManualClock
    life_s: float = 3600.0
    latency_s: float = 0.0
    failures: list[Exception] = field(default_factory=list)
    made: int = 0
    asked: int = 0
    closed: int = 0

    def __call__(self) -> AsyncTokenCredential:
        self.made += 1
        return cast("AsyncTokenCredential", Issued(self, self.made))


class Issued:
    def __init__(self, issuer: Issuer, number: int) -> None:
        self._issuer = issuer
        self._number = number

    async def get_token(self, *scopes: str) -> AccessToken:
        assert scopes == ("scope",)
        issuer = self._issuer
        issuer.asked += 1
        await issuer.clock.sleep(issuer.latency_s)
        if issuer.failures:
            raise issuer.failures.pop(0)
        return AccessToken(f"t{self._number}", int(issuer.clock.wall() + issuer.life_s))

    async def close(self) -> None:
        self._issuer.closed += 1


def entra(issuer: Issuer) -> EntraCredentials:
    return EntraCredentials(make=issuer, scope="scope", clock=issuer.clock)


async def bearer(credentials: Credentials) -> str:
    return (await credentials.headers())["authorization"]


async def test_sixty_four_workers_cause_one_flight() -> None:
    issuer = Issuer(clock=ManualClock(), latency_s=2.0)
    credentials = entra(issuer)
    async with issuer.clock.autojump():
        tokens = await asyncio.gather(*(bearer(credentials) for _ in range(64)))
    assert set(tokens) == {"Bearer t1"}
    assert issuer.asked == 1


async def test_a_token_is_renewed_five_minutes_ahead_without_holding_anybody_up() -> None:
    issuer = Issuer(clock=ManualClock())
    credentials = entra(issuer)
    await credentials.headers()
    issuer.clock.advance(3600 - 301)
    assert await bearer(credentials) == "Bearer t1"
    issuer.clock.advance(2)
    issuer.latency_s = 10.0
    renewing = asyncio.create_task(bearer(credentials))
    await asyncio.sleep(0)
    # The old token is still good, so whoever comes meanwhile takes it.
    assert await bearer(credentials) == "Bearer t1"
    async with issuer.clock.autojump():
        assert await renewing == "Bearer t2"


async def test_an_endpoint_that_fails_is_asked_again_in_half_a_minute_while_the_token_is_good() -> None:
    issuer = Issuer(clock=ManualClock())
    credentials = entra(issuer)
    await credentials.headers()
    issuer.clock.advance(3600 - 200)
    issuer.failures = [ServiceRequestError("down")]
    for _ in range(10):
        assert await bearer(credentials) == "Bearer t1"
    assert issuer.asked == 2
    issuer.clock.advance(31)
    assert await bearer(credentials) == "Bearer t3"


def answered(status: int) -> ClientAuthenticationError:
    """What azure-identity makes of an answer that holds no token."""
    error = ClientAuthenticationError(f"Authentication failed with {status}")
    error.status_code = status
    return error


@pytest.mark.parametrize(
    "failure",
    [ServiceRequestError("down"), OSError("down"), TimeoutError("slow"), *map(answered, (408, 429, 500, 503))],
    ids=["down", "unreachable", "slow", "408", "429", "500", "503"],
)
async def test_an_endpoint_that_is_slow_busy_or_down_may_give_a_token_later(failure: Exception) -> None:
    issuer = Issuer(clock=ManualClock(), failures=[failure, failure])
    credentials = entra(issuer)
    for again_s in (1, 2):
        answers = await asyncio.gather(*(credentials.headers() for _ in range(64)), return_exceptions=True)
        assert {type(answer) for answer in answers} == {NoTokenYetError}, "one asking for all"
        issuer.clock.advance(again_s)
    assert issuer.asked == 2
    assert await bearer(credentials) == "Bearer t3"


async def test_an_endpoint_that_is_down_is_asked_more_rarely_and_never_taken_for_a_refusal() -> None:
    issuer = Issuer(clock=ManualClock(), failures=[ServiceRequestError("down") for _ in range(1000)])
    credentials = entra(issuer)
    for _ in range(3600):
        with pytest.raises(NoTokenYetError, match="down"):
            await credentials.headers()
        issuer.clock.advance(1)
    assert 100 <= issuer.asked <= 130


@pytest.mark.parametrize("refusal", [ClientAuthenticationError("no"), answered(400), answered(401), ValueError("no")])
async def test_a_refusal_after_a_token_was_had_is_final_after_five_minutes(refusal: Exception) -> None:
    issuer = Issuer(clock=ManualClock())
    credentials = entra(issuer)
    await credentials.headers()
    issuer.clock.advance(3600)
    issuer.failures = [refusal] * 1000
    began = issuer.clock.now()
    while issuer.clock.now() - began < PATIENCE_S:
        with pytest.raises(NoTokenYetError):
            await credentials.headers()
        issuer.clock.advance(30)
    with pytest.raises(RefusedError, match="az login"):
        await credentials.headers()


async def test_a_token_that_was_refused_is_not_sent_again_while_its_successor_is_not_to_be_had() -> None:
    issuer = Issuer(clock=ManualClock())
    credentials = entra(issuer)
    await credentials.headers()
    issuer.failures = [TimeoutError("slow")]
    with pytest.raises(NoTokenYetError):
        await credentials.refused(0)
    with pytest.raises(NoTokenYetError):
        await credentials.headers()
    issuer.clock.advance(1)
    assert await bearer(credentials) == "Bearer t3"
    assert credentials.generation == 1
    assert not await credentials.refused(1), "the successor was refused too"


async def test_a_first_credential_that_is_refused_refuses_the_run_at_once() -> None:
    issuer = Issuer(clock=ManualClock(), failures=[ClientAuthenticationError("AADSTS7000215: Invalid secret.\nmore")])
    with pytest.raises(RefusedError, match="AADSTS7000215") as caught:
        await entra(issuer).headers()
    assert "more" not in str(caught.value)
    assert issuer.clock.now() == 0


async def test_a_401_causes_one_new_credential_for_all_and_a_second_none() -> None:
    issuer = Issuer(clock=ManualClock(), latency_s=1.0)
    credentials = entra(issuer)
    async with issuer.clock.autojump():
        await credentials.headers()
        answers = await asyncio.gather(*(credentials.refused(0) for _ in range(64)))
        assert answers == [True] * 64
        assert (issuer.made, issuer.asked, issuer.closed, credentials.generation) == (2, 2, 2, 1)
        assert await bearer(credentials) == "Bearer t2"
        # Requests still under way with the old token come back refused: no second renewal.
        assert await credentials.refused(0)
        assert issuer.made == 2
        assert not await credentials.refused(1)


async def test_a_renewal_that_was_let_in_may_be_renewed_again() -> None:
    issuer = Issuer(clock=ManualClock())
    credentials = entra(issuer)
    await credentials.headers()
    assert await credentials.refused(0)
    credentials.accepted(0)
    assert not await credentials.refused(1)
    credentials.accepted(1)
    assert await credentials.refused(1)


@pytest.mark.parametrize("seconds", [86_400.0, -86_400.0, 3600.0, -3600.0])
async def test_a_jump_of_the_wall_clock_costs_at_most_an_early_or_late_renewal(seconds: float) -> None:
    issuer = Issuer(clock=ManualClock())
    credentials = entra(issuer)
    await credentials.headers()
    issuer.clock.jump_wall(seconds)
    before = await bearer(credentials)
    assert await credentials.refused(0)
    assert await bearer(credentials) != before


@pytest.mark.parametrize(
    ("endpoint", "api", "scope"),
    [
        ("https://r.openai.azure.com", "azure", "https://cognitiveservices.azure.com/.default"),
        ("https://r.openai.azure.com", "azure-v1", "https://ai.azure.com/.default"),
        ("https://a.services.ai.azure.com/api/projects/p", "azure-v1", "https://ai.azure.com/.default"),
        ("https://a.services.ai.azure.com/api/projects/p/openai/v1", "openai", "https://ai.azure.com/.default"),
        ("https://r.openai.azure.us", "azure", "https://cognitiveservices.azure.us/.default"),
        ("https://r.openai.azure.us", "azure-v1", "https://cognitiveservices.azure.us/.default"),
        ("https://r.openai.azure.cn", "azure", "https://cognitiveservices.azure.cn/.default"),
    ],
)
def test_the_scope_follows_cloud_and_family(endpoint: str, api: str, scope: str) -> None:
    place = address(endpoint=endpoint, deployment="d", api=api, api_version=None)
    assert default_scope(place) == scope


APPLICATION = {"tenant_id": "t", "client_id": "c"}
CREDENTIALS: list[tuple[dict[str, Any], str]] = [
    ({}, "DefaultAzureCredential"),
    ({"type": "default", "managed_identity_client_id": "c", "exclude_cli_credential": True}, "DefaultAzureCredential"),
    ({"type": "azure-cli", "subscription": "s"}, "AzureCliCredential"),
    ({"type": "azure_developer_cli", "process_timeout": 5}, "AzureDeveloperCliCredential"),
    ({"type": "azure-powershell"}, "AzurePowerShellCredential"),
    ({"type": "environment"}, "EnvironmentCredential"),
    ({"type": "managed-identity", "client_id": "c"}, "ManagedIdentityCredential"),
    ({"type": "managed-identity", "resource_id": "/subscriptions/s"}, "ManagedIdentityCredential"),
    ({"type": "workload-identity", **APPLICATION, "token_file_path": "/token"}, "WorkloadIdentityCredential"),
    ({"type": "client-secret", **APPLICATION, "client_secret": "s"}, "ClientSecretCredential"),
    ({"type": "client-assertion", **APPLICATION, "assertion_file": "/assertion"}, "ClientAssertionCredential"),
    (
        {"type": "azure-pipelines", **APPLICATION, "service_connection_id": "i", "system_access_token": "t"},
        "AzurePipelinesCredential",
    ),
    ({"type": "on-behalf-of", **APPLICATION, "user_assertion": "u", "client_secret": "s"}, "OnBehalfOfCredential"),
    ({"type": "shared-token-cache", "username": "u"}, "SharedTokenCacheCredential"),
    ({"type": "visual-studio-code", "tenant_id": "t"}, "VisualStudioCodeCredential"),
    ({"type": "chained", "sources": [{"type": "environment"}, {"type": "azure-cli"}]}, "ChainedTokenCredential"),
    (
        {"type": "authorization-code", **APPLICATION, "authorization_code": "a", "redirect_uri": "http://localhost:1"},
        "AuthorizationCodeCredential",
    ),
    ({"type": "username-password", "client_id": "c", "username": "u", "password": "p"}, "UsernamePasswordCredential"),
]


@pytest.mark.parametrize(("options", "kind"), CREDENTIALS)
async def test_a_credential_is_named_by_its_type(options: dict[str, Any], kind: str) -> None:
    assert list(credential_problems(options)) == []
    made = credential_maker(options, "r.openai.azure.us")()
    assert type(getattr(made, "credential", made)).__name__ == kind
    await made.close()


def test_every_kind_is_made_here_but_those_that_need_a_file_or_a_terminal() -> None:
    made = {kind_name(options) for options, _ in CREDENTIALS}
    assert set(KINDS) - made == {"certificate", "device-code", "interactive-browser"}


async def test_a_certificate_is_read_from_its_file(tmp_path: Path) -> None:
    authority = trustme.CA()
    file = tmp_path / "app.pem"
    authority.issue_cert("app.example", key_type=trustme.KeyType.RSA).private_key_and_cert_chain_pem.write_to_path(
        str(file)
    )
    for options in (
        {"type": "certificate", **APPLICATION, "certificate_path": str(file), "send_certificate_chain": True},
        {"type": "on-behalf-of", **APPLICATION, "certificate_path": str(file), "user_assertion": "u"},
    ):
        made = credential_maker(options, "r.openai.azure.com")()
        await made.close()


def test_options_that_a_class_does_not_take_are_a_word_for_the_author() -> None:
    with pytest.raises(ValueError, match="azure-cli: "):
        credential_maker({"type": "azure-cli", "bogus": "x"}, "r.openai.azure.com")()
    with pytest.raises(RefusedError, match=r"credential\.type: bogus is not one of default, "):
        credential_maker({"type": "bogus"}, "r.openai.azure.com")


@pytest.mark.parametrize(
    ("host", "variable", "authority"),
    [
        ("r.openai.azure.com", "", None),
        ("r.openai.azure.us", "", "login.microsoftonline.us"),
        ("r.openai.azure.cn", "", "login.chinacloudapi.cn"),
        ("r.openai.azure.us", "login.example", None),
    ],
)
def test_the_cloud_that_issues_tokens_follows_the_host_unless_the_environment_names_it(
    monkeypatch: pytest.MonkeyPatch, host: str, variable: str, authority: str | None
) -> None:
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", variable)
    assert default_authority(host) == authority


@pytest.mark.parametrize(("given", "authority"), [({}, "login.microsoftonline.us"), ({"authority": "a.b"}, "a.b")])
async def test_an_authority_that_the_job_names_wins(given: dict[str, str], authority: str) -> None:
    options = {"type": "client-secret", **APPLICATION, "client_secret": "s", **given}
    made: Any = credential_maker(options, "r.openai.azure.us")()
    assert authority in made._client._authority
    await made.close()


class Person:
    """Signs in, after `latency_s`; each object that is signed in to gives tokens of its own."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.signed_in = 0
        self.closed = 0

    def __call__(self) -> AsyncTokenCredential:
        self.signed_in += 1
        return cast("AsyncTokenCredential", SignedIn(self, self.signed_in))


class SignedIn:
    def __init__(self, person: Person, number: int) -> None:
        self._person = person
        self._number = number
        self._asked = 0

    async def get_token(self, *_: str) -> AccessToken:
        self._asked += 1
        return AccessToken(f"t{self._number}.{self._asked}", int(self._person.clock.wall() + 3600))

    async def close(self) -> None:
        self._person.closed += 1


async def test_a_person_signs_in_once_and_again_only_after_a_401() -> None:
    clock = ManualClock()
    person = Person(clock)
    credentials = EntraCredentials(make=person, scope="s", clock=clock, signs_in=True)
    assert await bearer(credentials) == "Bearer t1.1"
    clock.advance(3400)
    assert await bearer(credentials) == "Bearer t1.2"
    assert await credentials.refused(0)
    assert await bearer(credentials) == "Bearer t2.1"
    assert (person.signed_in, person.closed) == (2, 1)


def test_a_person_is_told_where_to_sign_in_and_nothing_foreign_moves_the_cursor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _ask_to_sign_in("https://login.example/device", "ABC\x1b[2J", datetime(2026, 11, 23, 5, 30, tzinfo=UTC))
    said = capsys.readouterr().err
    assert said == "To sign in, open https://login.example/device and enter ABC\\x1b[2J (until 05:30 UTC).\n"


async def test_a_credential_that_blocks_is_asked_in_a_thread_of_its_own() -> None:
    class Blocking:
        def get_token(self, *_: str) -> AccessToken:
            seen.append(threading.current_thread().daemon)
            if len(seen) > 1:
                raise ClientAuthenticationError("no")
            return AccessToken("t", 1)

    seen: list[bool] = []
    credential = _InThread(cast("TokenCredential", Blocking()))
    assert (await credential.get_token("s")).expires_on == 1
    with pytest.raises(ClientAuthenticationError):
        await credential.get_token("s")
    assert seen == [True, True]


async def test_an_endpoint_that_says_nothing_is_given_up() -> None:
    class Silent(Issuer):
        def __call__(self) -> AsyncTokenCredential:
            return cast("AsyncTokenCredential", SilentCredential())

    class SilentCredential:
        async def get_token(self, *_: str) -> AccessToken:
            await asyncio.Event().wait()
            raise AssertionError

        async def close(self) -> None: ...

    credentials = EntraCredentials(make=Silent(clock=ManualClock()), scope="s", clock=ManualClock(), ask_s=0.01)
    with pytest.raises(NoTokenYetError, match=r"the token endpoint did not answer within 0.01 s"):
        await credentials.headers()


async def test_secrets_are_cut_out_of_what_is_said_of_a_failure() -> None:
    issuer = Issuer(
        clock=ManualClock(), failures=[ClientAuthenticationError("the secret canary-1 and canary are wrong")]
    )
    credentials = EntraCredentials(
        make=issuer, scope="scope", clock=issuer.clock, secrets=("canary", "canary-1", ""), patience_s=0
    )
    with pytest.raises(RefusedError, match=r"the secret \*\*\* and \*\*\* are wrong"):
        await credentials.headers()


@pytest.mark.parametrize(
    ("claims", "expires_at"),
    [({"exp": 1_800_000_000}, 1_800_000_000.0), ({}, None), ({"exp": "soon"}, None), ([], None), (None, None)],
)
def test_the_expiry_of_a_token_is_read_where_it_says_one(claims: object, expires_at: float | None) -> None:
    middle = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    assert token_expires_at(f"e30.{middle}.x") == expires_at


@pytest.mark.parametrize("token", ["", "opaque", "a.b", "a.ä.c", "a.%%%.c", "a.eyJ.c", "..", "a.W1tbW1s.c"])
def test_a_token_that_is_no_jwt_has_no_known_expiry(token: str) -> None:
    assert token_expires_at(token) is None


async def test_a_token_of_less_than_five_minutes_is_not_asked_for_with_every_request() -> None:
    issuer = Issuer(clock=ManualClock(), life_s=200.0)
    credentials = entra(issuer)
    for second in range(120):
        await credentials.headers()
        assert issuer.asked == 1 + second // 30
        issuer.clock.advance(1.0)
