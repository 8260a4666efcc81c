"""Credentials: which header, renewed when, by how many."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError

from pipeline.errors import RefusedError
from pipeline.service.address import address
from pipeline.service.auth import Credentials, EntraCredentials, credential_maker, default_scope
from pipeline.testing import ManualClock

if TYPE_CHECKING:
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


async def test_an_endpoint_that_fails_is_waited_for_when_there_is_no_token() -> None:
    issuer = Issuer(clock=ManualClock(), failures=[ServiceRequestError("down"), OSError("down"), TimeoutError()])
    credentials = entra(issuer)
    async with issuer.clock.autojump():
        assert await bearer(credentials) == "Bearer t4"
    assert issuer.clock.now() == 1 + 2 + 4


async def test_an_endpoint_that_is_down_for_five_minutes_refuses_the_run() -> None:
    issuer = Issuer(clock=ManualClock(), failures=[ServiceRequestError("down") for _ in range(100)])
    credentials = entra(issuer)
    async with issuer.clock.autojump():
        with pytest.raises(RefusedError, match="down"):
            await credentials.headers()
    assert 300 <= issuer.clock.now() < 340


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


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "DefaultAzureCredential"),
        ({"type": "default"}, "DefaultAzureCredential"),
        ({"type": "azure-cli"}, "AzureCliCredential"),
        ({"type": "azure_developer_cli"}, "AzureDeveloperCliCredential"),
        ({"type": "azure-powershell"}, "AzurePowerShellCredential"),
        ({"type": "environment"}, "EnvironmentCredential"),
        ({"type": "managed-identity", "client_id": "c"}, "ManagedIdentityCredential"),
        (
            {"type": "client-secret", "tenant_id": "t", "client_id": "c", "client_secret": "s"},
            "ClientSecretCredential",
        ),
    ],
)
async def test_a_credential_is_named_by_its_type(options: dict[str, str], kind: str) -> None:
    made = credential_maker(options, "r.openai.azure.us")()
    assert type(made).__name__ == kind
    await made.close()


async def test_a_token_of_less_than_five_minutes_is_not_asked_for_with_every_request() -> None:
    issuer = Issuer(clock=ManualClock(), life_s=200.0)
    credentials = entra(issuer)
    for second in range(120):
        await credentials.headers()
        assert issuer.asked == 1 + second // 30
        issuer.clock.advance(1.0)
