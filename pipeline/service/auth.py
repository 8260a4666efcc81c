"""Puts credentials to requests: keys, tokens, renewed Entra tokens; the only importer of azure.identity."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.clock import Clock
from pipeline.errors import RefusedError
from pipeline.service.address import Address, Family
from pipeline.service.classify import plain

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken
    from azure.core.credentials_async import AsyncTokenCredential

AHEAD_S = 300.0
"""Seconds before its expiry at which a token is renewed."""
AGAIN_S = 30.0
"""Seconds between tries to renew a token that is still good."""
PATIENCE_S = 300.0
"""Seconds for which a token endpoint that fails is tried again before the run gives up."""
_MESSAGE_CHARS = 300

_KINDS = {
    "default": "DefaultAzureCredential",
    "azure-cli": "AzureCliCredential",
    "azure-developer-cli": "AzureDeveloperCliCredential",
    "azure-powershell": "AzurePowerShellCredential",
    "certificate": "CertificateCredential",
    "client-secret": "ClientSecretCredential",
    "environment": "EnvironmentCredential",
    "managed-identity": "ManagedIdentityCredential",
    "workload-identity": "WorkloadIdentityCredential",
}
"""What `credential: {type: …}` may name; its other keys are the class's own arguments."""


class Credentials:
    """The headers that let a request in. Each `generation` is one credential; a refusal begins the next.

    A fixed key cannot be renewed: its refusal is forgiven once, in case it was not the key's fault.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._unproven = False
        self._lock = asyncio.Lock()
        self.generation = 0

    async def headers(self) -> Mapping[str, str]:
        """Return the headers of the present generation.

        Raises RefusedError where no credential can be had.
        """
        return self._headers

    async def refused(self, generation: int) -> bool:
        """Take note of a 401 to a request sent with `generation`; True when another try has a chance.

        However many requests were refused together, one renewal answers them all. False when the refused credential
        is itself such a renewal and nothing was let in with it.
        """
        async with self._lock:
            if generation != self.generation:
                return True
            if self._unproven:
                return False
            await self._renew()
            self.generation += 1
            self._unproven = True
            return True

    def accepted(self, generation: int) -> None:
        """Take note of an answer other than 401 to a request sent with `generation`."""
        if self._unproven and generation == self.generation:
            self._unproven = False

    async def _renew(self) -> None:
        """Have a new credential; called under the lock."""


class CredentialMaker(Protocol):
    """Makes a new azure-identity credential, which has no token cached."""

    def __call__(self) -> AsyncTokenCredential:
        """Make it."""


class EntraCredentials(Credentials):
    """Bearer tokens of Microsoft Entra ID, renewed five minutes ahead, by one flight for everybody."""

    def __init__(self, *, make: CredentialMaker, scope: str, clock: Clock) -> None:
        super().__init__({})
        self._make = make
        self._scope = scope
        self._clock = clock
        self._expires_at = float("-inf")
        self._again_at = float("-inf")

    async def headers(self) -> Mapping[str, str]:
        """Return the bearer header, renewed where it is about to expire.

        Only expiry is judged by the wall clock. Raises RefusedError where there is no token to be had: at once where
        no credential is configured or a first one is refused, after five minutes where the endpoint fails.
        """
        left_s = self._expires_at - self._clock.wall()
        if left_s > AHEAD_S:
            return self._headers
        if left_s > 0 and (self._lock.locked() or self._clock.now() < self._again_at):
            return self._headers
        async with self._lock:
            left_s = self._expires_at - self._clock.wall()
            if left_s <= AHEAD_S and (left_s <= 0 or self._clock.now() >= self._again_at):
                await self._fetch(needed=left_s <= 0)
        return self._headers

    async def _renew(self) -> None:
        await self._fetch(needed=True)

    async def _fetch(self, *, needed: bool) -> None:
        """Have a new token, from a new credential: an old one would hand back what it has cached, refused or not."""
        from azure.core.exceptions import AzureError, ClientAuthenticationError  # noqa: PLC0415 - 170 ms

        began = self._clock.now()
        pause_s = 1.0
        while True:
            try:
                token = await self._ask()
            except (AzureError, OSError, ValueError, TimeoutError) as error:
                if not needed:
                    self._again_at = self._clock.now() + AGAIN_S
                    return
                first = not self._headers and isinstance(error, ClientAuthenticationError | ValueError)
                if first or self._clock.now() - began >= PATIENCE_S:
                    raise RefusedError(_no_token(self._scope, error)) from None
                await self._clock.sleep(pause_s)
                pause_s = min(AGAIN_S, pause_s * 2)
            else:
                self._headers = {"authorization": f"Bearer {token.token}"}
                self._expires_at = float(token.expires_on)
                # A token that lives for less than five minutes is not asked for with every request.
                self._again_at = self._clock.now() + AGAIN_S
                return

    async def _ask(self) -> AccessToken:
        credential = self._make()
        try:
            return await credential.get_token(self._scope)
        finally:
            await credential.close()


def credentials(
    *,
    auth: str,
    address: Address,
    key: str | None,
    token: str | None,
    scope: str | None,
    credential: Mapping[str, Any] | None,
    clock: Clock,
) -> Credentials:
    """Make the credentials of one deployment from what its job file says.

    Keys go as `api-key` to Azure's path families and as a bearer elsewhere. Raises RefusedError for a key or token that
    is missing and for a kind of credential that does not exist.
    """
    match auth:
        case "none":
            return Credentials({})
        case "key":
            secret = _present(key, "key")
            if address.family is Family.OPENAI:
                return Credentials({"authorization": f"Bearer {secret}"})
            return Credentials({"api-key": secret})
        case "token":
            return Credentials({"authorization": f"Bearer {_present(token, 'token')}"})
        case "entra":
            make = credential_maker(credential or {}, address.host)
            return EntraCredentials(make=make, scope=scope or default_scope(address), clock=clock)
        case _:
            raise RefusedError(f"auth: {auth} is not one of entra, key, token, none")


def default_scope(address: Address) -> str:
    """Return the audience that Azure expects: by cloud, then by path family."""
    if address.host.endswith(".azure.us"):
        return "https://cognitiveservices.azure.us/.default"
    if address.host.endswith(".azure.cn"):
        return "https://cognitiveservices.azure.cn/.default"
    if address.family is Family.AZURE:
        return "https://cognitiveservices.azure.com/.default"
    return "https://ai.azure.com/.default"


def credential_maker(options: Mapping[str, Any], host: str) -> CredentialMaker:
    """Return what makes an azure-identity credential: `type` names it, the rest are its arguments.

    Raises RefusedError for an unknown type.
    """
    kind = str(options.get("type", "default")).replace("_", "-").lower()
    if kind not in _KINDS:
        raise RefusedError(f"credential.type: {kind} is not one of {', '.join(_KINDS)}")
    arguments = {name: _plain(value) for name, value in options.items() if name != "type"}

    def make() -> AsyncTokenCredential:
        from azure.identity import AzureAuthorityHosts, aio  # noqa: PLC0415 - 170 ms

        if kind in {"default", "environment"} and "authority" not in arguments:
            if host.endswith(".azure.us"):
                arguments["authority"] = AzureAuthorityHosts.AZURE_GOVERNMENT
            elif host.endswith(".azure.cn"):
                arguments["authority"] = AzureAuthorityHosts.AZURE_CHINA
        made: AsyncTokenCredential = getattr(aio, _KINDS[kind])(**arguments)
        return made

    return make


def _plain(value: Any) -> Any:
    return value.reveal() if hasattr(value, "reveal") else value


def _present(secret: str | None, name: str) -> str:
    # A trailing blank from an environment file gives a plain 401 that nobody can explain.
    stripped = (secret or "").strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable():
        raise RefusedError(f"auth: {name} needs `{name}`; it is empty or holds characters that no header may hold")
    return stripped


def _no_token(scope: str, error: Exception) -> str:
    said = plain(str(error).strip().partition("\n")[0], _MESSAGE_CHARS)
    return (
        f"no Entra token for {scope} could be had: {said} "
        "Sign in (az login), give the machine an identity, or set auth: key."
    )
