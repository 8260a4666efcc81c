"""Puts credentials to requests: keys, tokens, renewed Entra tokens; the only importer of azure.identity."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipeline.clock import Clock
from pipeline.errors import NoTokenYetError, RefusedError
from pipeline.job.identity import KINDS, CredentialKind, Option, kind_name
from pipeline.service.address import Address, Family
from pipeline.service.classify import plain

if TYPE_CHECKING:
    from datetime import datetime

    from azure.core.credentials import AccessToken, TokenCredential
    from azure.core.credentials_async import AsyncTokenCredential

AHEAD_S = 300.0
"""Seconds before its expiry at which a token is renewed."""
AGAIN_S = 30.0
"""Seconds between tries to renew a token that is still good."""
PATIENCE_S = 300.0
"""Seconds for which a token endpoint may refuse what it let in before, until that is taken for its last word."""
ASK_S = 45.0
"""Seconds after which a token endpoint that says nothing counts as one that fails; signing in has limits of its own."""
FIRST_PAUSE_S = 1.0
"""Seconds between a token that was not to be had and the next asking; twice as long each time, up to AGAIN_S."""
_BUSY = frozenset({408, 429})
SIGN_IN_S = 300
"""Seconds that a person has for signing in, unless the job says otherwise."""
_ADVICE = (
    "Sign in (az login), give the machine an identity, or use a key: set AZURE_OPENAI_API_KEY, and leave out "
    "`auth: entra` where the job says it."
)
_MESSAGE_CHARS = 300
_REASON_CHARS = 160
_SECRET_VARIABLES = ("AZURE_CLIENT_SECRET", "AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_PASSWORD", "IDENTITY_HEADER")
_REFERENCE = re.compile(r"(?:See|Visit|Please visit|Please refer|To mitigate|You must also)\b|https?://")
_TRIED = "Attempted credentials:"
_T = TypeVar("_T")


class Credentials:
    """The headers that let a request in. Each `generation` is one credential; a refusal begins the next.

    A fixed key cannot be renewed: its refusal is forgiven once, in case it was not the key's fault.
    `used` says in words what they come from; `expires_at` is epoch seconds, None where that is not known.
    """

    def __init__(self, headers: Mapping[str, str], *, used: str = "nothing", expires_at: float | None = None) -> None:
        self._headers = headers
        self._unproven = False
        self._lock = asyncio.Lock()
        self.generation = 0
        self.used = used
        self.expires_at = expires_at

    async def headers(self) -> Mapping[str, str]:
        """Return the headers of the present generation.

        Raises RefusedError where no credential can be had, and NoTokenYetError where one may be had later.
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
            self.generation += 1
            self._unproven = True
            await self._renew()
            return True

    @property
    def secrets(self) -> tuple[str, ...]:
        """What the present headers hold that nobody may read, each with its scheme before it first, then without."""
        return tuple(part for text in self._headers.values() for part in (text, text.partition(" ")[2]) if part)

    def accepted(self, generation: int) -> None:
        """Take note of an answer other than 401 to a request sent with `generation`."""
        if self._unproven and generation == self.generation:
            self._unproven = False

    def forgive(self) -> None:
        """Let the next refusal be answered by a renewal again, however the last one ended."""
        self._unproven = False

    async def _renew(self) -> None:
        """Have a new credential; called under the lock."""


class CredentialMaker(Protocol):
    """Makes a new azure-identity credential, which has no token cached."""

    def __call__(self) -> AsyncTokenCredential:
        """Make it. Raises ValueError, with a word for the job file's author, for options that do not go together."""


class EntraCredentials(Credentials):
    """Bearer tokens of Microsoft Entra ID, renewed five minutes ahead, by one flight for everybody.

    Every token comes from a new credential object, since an old one would hand back what it has cached, refused or
    not; except that with `signs_in` the object that a person signed in to is kept until its token is refused.
    `secrets` are cut out of what is said of failures.
    """

    def __init__(
        self,
        *,
        make: CredentialMaker,
        scope: str,
        clock: Clock,
        signs_in: bool = False,
        secrets: Iterable[str] = (),
        patience_s: float = PATIENCE_S,
        ask_s: float = ASK_S,
    ) -> None:
        super().__init__({}, used="Entra ID")
        self._make = make
        self._scope = scope
        self._clock = clock
        self._signs_in = signs_in
        self._secrets = tuple(secrets)
        self._patience_s = patience_s
        self._ask_s = ask_s
        self._kept: AsyncTokenCredential | None = None
        self._expires_at = float("-inf")
        self._again_at = float("-inf")
        self._failing_since: float | None = None
        self._pause_s = FIRST_PAUSE_S
        self._said = ""

    async def headers(self) -> Mapping[str, str]:
        """Return the bearer header, renewed where it is about to expire.

        Only expiry is judged by the wall clock. Raises NoTokenYetError where the endpoint is slow, busy or down, and
        RefusedError where it refuses: at once where it never gave a token, else when it has for five minutes.
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
        self._expires_at = float("-inf")  # whoever asks meanwhile waits, rather than send what was refused
        await self._let_go()
        await self._fetch(needed=True)

    async def _fetch(self, *, needed: bool) -> None:
        """Have a new token; without one that is `needed`, say why, or that it may be had later."""
        from azure.core.exceptions import AzureError  # noqa: PLC0415 - 170 ms

        if needed and self._failing_since is not None and self._clock.now() < self._again_at:
            raise NoTokenYetError(self._said)  # others waited for the same asking
        try:
            token = await self._ask()
        except (AzureError, OSError, ValueError, TimeoutError) as error:
            self._failed(error, needed=needed)
        else:
            self._headers = {"authorization": f"Bearer {token.token}"}
            self.expires_at = self._expires_at = float(token.expires_on)
            self._failing_since = None
            self._pause_s = FIRST_PAUSE_S
            # A token that lives for less than five minutes is not asked for with every request.
            self._again_at = self._clock.now() + AGAIN_S

    def _failed(self, error: Exception, *, needed: bool) -> None:
        now = self._clock.now()
        if not needed:
            self._again_at = now + AGAIN_S
            return
        if self._failing_since is None:
            self._failing_since = now
        self._said = _no_token(self._scope, error, self._secrets)
        if _is_refusal(error) and (not self._headers or now - self._failing_since >= self._patience_s):
            raise RefusedError(f"{self._said} {_ADVICE}") from None
        self._again_at = now + self._pause_s
        self._pause_s = min(AGAIN_S, 2 * self._pause_s)
        raise NoTokenYetError(self._said) from None

    async def _ask(self) -> AccessToken:
        if self._signs_in:
            self._kept = self._kept or self._make()
            token = await self._kept.get_token(self._scope)
            self.used = _used(self._kept)
            return token
        credential = self._make()
        patience = asyncio.timeout(self._ask_s)
        try:
            async with patience:
                token = await credential.get_token(self._scope)
        except TimeoutError:
            if not patience.expired():
                raise
            raise TimeoutError(f"the token endpoint did not answer within {self._ask_s:g} s.") from None
        finally:
            await credential.close()
        self.used = _used(credential)
        return token

    async def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.close()


class _InThread:
    """A credential that has no asynchronous twin, or whose twin keeps connections; asked in a thread of its own.

    The thread is nobody's to wait for: a run that is stopped while a person is being waited for ends at once.
    """

    def __init__(self, credential: TokenCredential) -> None:
        self.credential = credential

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """Ask, and wait without holding the event loop up."""
        return await _in_thread(lambda: self.credential.get_token(*scopes, **options))

    async def close(self) -> None:
        """Close the credential's connections, where it has any to close."""
        if hasattr(self.credential, "close"):
            self.credential.close()


async def _in_thread(function: Callable[[], _T]) -> _T:
    loop = asyncio.get_running_loop()
    over: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: Exception | None) -> None:
        if over.done():
            return
        if error is not None:
            over.set_exception(error)
        else:
            over.set_result(result)  # type: ignore[arg-type] # without an error there is a result

    def work() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            failure = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, name="credential", daemon=True).start()
    return await over


def credentials(
    *,
    auth: str,
    address: Address,
    key: str | None,
    token: str | None,
    scope: str | None,
    credential: Mapping[str, Any] | None,
    clock: Clock,
    ask_s: float = ASK_S,
) -> Credentials:
    """Make the credentials of one deployment from what its job file says.

    Keys go as `api-key` to Azure's path families and as a bearer elsewhere. `ask_s` is how long a token endpoint
    may say nothing. Raises RefusedError for a key or token that is missing and for a credential that does
    not exist.
    """
    match auth:
        case "none":
            return Credentials({})
        case "key":
            secret = _present(key, "key")
            if address.family is Family.OPENAI:
                return Credentials({"authorization": f"Bearer {secret}"}, used="API key")
            return Credentials({"api-key": secret}, used="API key")
        case "token":
            bearer = _present(token, "token")
            return Credentials(
                {"authorization": f"Bearer {bearer}"}, used="bearer token", expires_at=token_expires_at(bearer)
            )
        case "entra":
            options = credential or {}
            return EntraCredentials(
                make=credential_maker(options, address.host),
                scope=scope or default_scope(address),
                clock=clock,
                signs_in=_kind(options).signs_in,
                secrets=(*_secrets(options), *(os.environ.get(name, "") for name in _SECRET_VARIABLES)),
                ask_s=ask_s,
            )
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


def default_authority(host: str) -> str | None:
    """Return where tokens for a host's cloud are asked for; None: azure-identity's own default, the public cloud.

    `AZURE_AUTHORITY_HOST` wins, as everywhere in Azure's tools.
    """
    from azure.identity import AzureAuthorityHosts  # noqa: PLC0415 - 170 ms

    if os.environ.get("AZURE_AUTHORITY_HOST", "").strip():
        return None
    if host.endswith(".azure.us"):
        return AzureAuthorityHosts.AZURE_GOVERNMENT
    if host.endswith(".azure.cn"):
        return AzureAuthorityHosts.AZURE_CHINA
    return None


def credential_maker(options: Mapping[str, Any], host: str) -> CredentialMaker:
    """Return what makes an azure-identity credential: `type` names it, the rest are its options (job/identity.py).

    `host` is the endpoint's: it says which cloud issues the tokens. Raises RefusedError for an unknown type; what is
    made needs a terminal where a person signs in, and raises RefusedError where there is none.
    """
    _kind(options)

    def make() -> AsyncTokenCredential:
        return _made(options, host)

    return make


def token_expires_at(token: str) -> float | None:
    """Read when a bearer token expires (epoch seconds), where it is a JWT that says so; nothing else is believed."""
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - RFC 7519: header, claims, signature
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        return None


def _kind(options: Mapping[str, Any]) -> CredentialKind:
    name = kind_name(options)
    if name not in KINDS:
        raise RefusedError(f"credential.type: {plain(name, _REASON_CHARS)} is not one of {', '.join(KINDS)}")
    return KINDS[name]


def _made(options: Mapping[str, Any], host: str) -> AsyncTokenCredential:
    from azure import identity  # noqa: PLC0415 - 170 ms
    from azure.identity import aio  # noqa: PLC0415

    # Without a handler of anybody's, Python would print the libraries' warnings raw.
    for library in ("azure", "msal"):
        logging.getLogger(library).addHandler(logging.NullHandler())
    name, kind = kind_name(options), _kind(options)
    if name == "chained":
        return aio.ChainedTokenCredential(*(_made(source, host) for source in options["sources"]))
    arguments = _arguments(name, {key: _plain(value) for key, value in options.items() if key != "type"})
    if kind.at_terminal:
        _refuse_without_terminal(name)
        arguments.setdefault("timeout", SIGN_IN_S)
    authority = default_authority(host)
    if "authority" in kind.options and authority is not None:
        arguments.setdefault("authority", authority)
    made: AsyncTokenCredential
    try:
        if kind.signs_in:
            made = _InThread(getattr(identity, kind.class_name)(**arguments))  # type: ignore[assignment] # all we use
        else:
            made = getattr(aio, kind.class_name)(**arguments)
    except (TypeError, ImportError) as error:
        raise ValueError(f"{name}: {error}.") from error
    return made


def _arguments(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Turn a job file's options into the class's own arguments."""
    match name:
        case "managed-identity":
            others = {key: given.pop(key) for key in ("object_id", "resource_id") if key in given}
            return {**given, "identity_config": others} if others else given
        case "client-assertion":
            return {**given, "func": _file_reader(given.pop("assertion_file"))}
        case "on-behalf-of" if "certificate_path" in given:
            return {**given, "client_certificate": Path(given.pop("certificate_path")).read_bytes()}
        case "device-code":
            return {**given, "prompt_callback": _ask_to_sign_in}
        case "username-password":
            return {**given, "_silence_deprecation_warning": True}
        case _:
            return given


def _file_reader(path: str) -> Callable[[], str]:
    """Return what reads an assertion anew each time: whoever issues it replaces the file."""
    return lambda: Path(path).read_text(encoding="utf-8").strip()


def _refuse_without_terminal(name: str) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RefusedError(
            f"credential.type: {name} needs a person at a terminal; use managed-identity, workload-identity, "
            "client-secret or another that signs in by itself"
        )


def _ask_to_sign_in(url: str, code: str, until: datetime) -> None:
    sys.stderr.write(f"To sign in, open {plain(url)} and enter {plain(code)} (until {until:%H:%M} UTC).\n")
    sys.stderr.flush()


def _plain(value: Any) -> Any:
    return value.reveal() if hasattr(value, "reveal") else value


def _secrets(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Every secret among a credential's options, those of a chain's sources too."""
    kind = _kind(options)
    found: list[str] = []
    for name, value in options.items():
        match kind.options.get(name):
            case Option.SECRET:
                found.append(str(_plain(value)))
            case Option.SOURCES:
                found += [secret for source in value for secret in _secrets(source)]
    return tuple(found)


def _used(credential: object) -> str:
    """Name the class that gave a token: of a chain, the one whose turn it was."""
    outer = seen = credential.credential if isinstance(credential, _InThread) else credential
    while (inner := getattr(seen, "_successful_credential", None)) is not None:
        seen = inner
    name = type(seen).__name__
    return name if seen is outer else f"{name} (by {type(outer).__name__})"


def _present(secret: str | None, name: str) -> str:
    # A trailing blank from an environment file gives a plain 401 that nobody can explain.
    stripped = (secret or "").strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable():
        raise RefusedError(f"auth: {name} needs `{name}`; it is empty or holds characters that no header may hold")
    return stripped


def _no_token(scope: str, error: Exception, secrets: tuple[str, ...]) -> str:
    said = str(error)
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        said = said.replace(secret, "***")
    return f"no Entra token for {scope} could be had: {_reasons(said)}"


def _is_refusal(error: Exception) -> bool:
    """Whether asking again is in vain: what is asked with is wrong, rather than who is asked slow, busy or down."""
    from azure.core.exceptions import ClientAuthenticationError  # noqa: PLC0415 - 170 ms

    status = getattr(error, "status_code", None)
    busy = status is not None and (status in _BUSY or status >= 500)  # noqa: PLR2004 - RFC 9110
    return isinstance(error, ClientAuthenticationError | ValueError) and not busy


def _reasons(said: str) -> str:
    """Say in one line why there was no token: of a chain, what each credential in its turn said."""
    head, _, tried = said.strip().partition(_TRIED)
    entries = [entry.strip().partition("\n")[0] for entry in tried.split("\n\t") if entry.strip()]
    if not entries:
        return plain(head.partition("\n")[0], _MESSAGE_CHARS)
    return "; ".join(map(_reason, entries)) + "."


def _reason(entry: str) -> str:
    """Shorten `NAME: what it said` to what is no repetition and no reference to a web page."""
    name, _, said = entry.partition(": ")
    for repeated in (name, " authentication unavailable. "):
        said = said.removeprefix(repeated)
    said = _REFERENCE.split(said)[0].strip(" .")
    return plain(f"{name}: {said}" if said else name, _REASON_CHARS)
