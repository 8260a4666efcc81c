"""What `--http-log` writes: requests and replies at the Azure SDKs' levels of detail, with nothing secret in them.

The levels are those of Azure's Java SDK (`AZURE_HTTP_LOG_DETAIL_LEVEL`); the headers whose values are shown are those
of azure-core 1.41 and those that Azure OpenAI answers with. Credentials are shown at no level: neither by their
headers' names, nor where a service quotes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pipeline.clock import Clock
from pipeline.errors import StorageError
from pipeline.log import Event, EventLog, Level, Listener
from pipeline.model import NoReply, Reply
from pipeline.service.headers import reply_ids
from pipeline.service.quoted import hider
from pipeline.service.wire import Transport, Wire

REDACTED = "REDACTED"
"""What stands for a value that is not shown."""
BODY_CHARS = 16_384
"""Characters of a body that are shown."""
READ_BYTES = 1 << 18
"""Bytes of a body that are looked at for what is shown of it."""
TAIL_CHARS = 16_384
"""Characters at the end of what was looked at of a longer body that are not shown; longer than any credential."""

NEVER = frozenset(
    {
        "api-key",
        "authorization",
        "cookie",
        "ocp-apim-subscription-key",
        "proxy-authenticate",
        "proxy-authorization",
        "set-cookie",
        "x-amz-security-token",
        "x-api-key",
        "x-functions-key",
        "x-goog-api-key",
        "x-ms-authorization-auxiliary",
    }
)
"""Headers whose values no option brings to light."""
SHOWN = frozenset(
    {
        "accept",
        "accept-encoding",
        "api-supported-versions",
        "apim-request-id",
        "azure-openai-deployment-utilization",
        "cache-control",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "etag",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-unmodified-since",
        "last-modified",
        "openai-processing-ms",
        "policy-id",
        "pragma",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "server",
        "traceparent",
        "transfer-encoding",
        "user-agent",
        "www-authenticate",
        "x-ms-client-request-id",
        "x-ms-deployment-name",
        "x-ms-error-code",
        "x-ms-region",
        "x-ms-request-id",
        "x-ms-retry-after-ms",
        "x-ms-return-client-request-id",
        "x-msedge-ref",
        "x-request-id",
        "x-should-retry",
        "x-vss-e2eid",
    }
)
"""Headers whose values are shown from the level `headers` on, in lower case."""
SHOWN_BEGINNINGS = ("x-ms-spillover-", "x-rate-limit-", "x-ratelimit-")
"""Beginnings of the names of further ones."""
SHOWN_PARAMETERS = frozenset({"api-version"})
"""Query parameters whose values are shown."""

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/_-]|\\/){200,}={0,2}")
_SIGNATURE = re.compile(r"(?<![A-Za-z])(sig(?:nature)?)(=|%3D)[^&\"'\s\\<>]+", re.IGNORECASE)
_TEXT_TYPES = re.compile(r"text/|application/(?:json|x-ndjson|jsonl|xml|problem\+json|[a-z0-9.-]+\+(?:json|xml))\b")


class DetailLevel(StrEnum):
    """How much of requests and replies is written."""

    NONE = "none"
    BASIC = "basic"  # method, URL, status, time
    HEADERS = "headers"  # and every header, values of those not allowed as REDACTED
    ALLOWED_HEADERS = "allowed_headers"  # and allowed headers alone
    BODY = "body"  # and bodies, without headers
    BODY_AND_HEADERS = "body_and_headers"

    @property
    def bodies(self) -> bool:
        """True where prompts and answers are written."""
        return self in {DetailLevel.BODY, DetailLevel.BODY_AND_HEADERS}

    @property
    def headers(self) -> bool:
        """True where headers are written."""
        return self in {DetailLevel.HEADERS, DetailLevel.ALLOWED_HEADERS, DetailLevel.BODY_AND_HEADERS}


def detail_level(text: str) -> DetailLevel | None:
    """Read a level in any spelling of the Azure SDKs: `BODY_AND_HEADERS`, `bodyandheaders`; None for another word."""
    word = re.sub(r"[\s_-]", "", text).lower()
    return next((level for level in DetailLevel if level.replace("_", "") == word), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLogRules:
    """How much is written, and which headers are shown beyond the usual ones."""

    level: DetailLevel
    allow: tuple[str, ...] = ()


class HttpLog:
    """Where requests and replies are written: a file of its own, so that `log.jsonl` never holds content."""

    def __init__(self, rules: HttpLogRules, log: EventLog) -> None:
        self.rules = rules
        self._log = log
        self._failed: StorageError | None = None
        self._allowed = SHOWN | {name.strip().lower() for name in rules.allow}

    def sent(self, place: str, *, url: str, headers: Mapping[str, str], body: bytes, secrets: tuple[str, ...]) -> None:
        """Write one request to the deployment `place`. Raises StorageError where that fails, or failed with a reply."""
        if self._failed is not None:
            raise self._failed
        self._write(Event.HTTP_REQUEST, place, url, headers, headers, body, secrets)

    def came(
        self,
        place: str,
        *,
        url: str,
        headers: Mapping[str, str],
        reply: Reply | NoReply,
        secrets: tuple[str, ...],
    ) -> None:
        """Write what came of it. `headers` are the request's.

        A disk that refuses is no reason to lose a reply that was paid for: the next request raises it instead.
        """
        if isinstance(reply, NoReply):
            facts: dict[str, Any] = {"failure": reply.kind.value, "message": reply.message}
        else:
            ids = reply_ids(reply.headers)
            facts = {
                "status": reply.status,
                "request_id": ids.request_id,
                "apim_request_id": ids.apim_request_id,
            }
        facts["latency_ms"] = round(reply.latency_ms, 1)
        came = ({}, b"") if isinstance(reply, NoReply) else (reply.headers, reply.body)
        try:
            self._write(Event.HTTP_RESPONSE, place, url, headers, *came, secrets, **facts)
        except StorageError as error:
            self._failed = error

    def _write(
        self,
        event: Event,
        place: str,
        url: str,
        sent: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes,
        secrets: tuple[str, ...],
        **facts: Any,
    ) -> None:
        hide = hider((*secrets, *_credentials_of(sent)), REDACTED).text
        level = self.rules.level
        fields: dict[str, Any] = {
            "deployment": place,
            "method": "POST",
            "url": hide(shown_url(url)),
            "client_request_id": sent.get("x-ms-client-request-id"),
            **{name: hide(value) if isinstance(value, str) else value for name, value in facts.items()},
            "bytes": len(body),
        }
        if level.headers:
            fields["headers"] = self._headers(headers, hide)
        if level.bodies:
            fields["body"] = shown_body(headers.get("content-type", ""), body, hide)
        self._log.emit(event, Level.INFO, **fields)

    def _headers(self, headers: Mapping[str, str], hide: Callable[[str], str]) -> dict[str, str]:
        shown = {}
        for name, value in headers.items():
            word = name.lower()
            if word not in NEVER and (word in self._allowed or word.startswith(SHOWN_BEGINNINGS)):
                shown[word] = hide(value)
            elif self.rules.level is not DetailLevel.ALLOWED_HEADERS:
                shown[word] = REDACTED
        return shown


class LoggedWire(Wire):
    """A wire whose every request and reply is written to an `HttpLog`; without one, a plain `Wire` costs nothing."""

    __slots__ = ("_log", "_place", "_secrets")

    def __init__(
        self,
        transport: Transport,
        *,
        clock: Clock,
        owned: bool = True,
        log: HttpLog,
        place: str,
        secrets: tuple[str, ...],
    ) -> None:
        super().__init__(transport, clock=clock, owned=owned)
        self._log = log
        self._place = place
        self._secrets = secrets

    async def send(
        self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float, stream: bool = False
    ) -> Reply | NoReply:
        """Make one attempt as any wire does, and write both of its sides.

        Raises StorageError, and sends nothing, where the log cannot be written.
        """
        self._log.sent(self._place, url=url, headers=headers, body=body, secrets=self._secrets)
        reply = await super().send(url, headers, body, timeout_s=timeout_s, stream=stream)
        self._log.came(self._place, url=url, headers=headers, reply=reply, secrets=self._secrets)
        return reply


@contextmanager
def open_http_log(
    rules: HttpLogRules | None, *, path: Path, listener: Listener | None, wall: Callable[[], float], log: EventLog
) -> Iterator[HttpLog | None]:
    """Open the file and its listener; None where nothing is to be written.

    Where bodies will be, `log` is told so: they hold personal data. Raises StorageError.
    """
    if rules is None or rules.level is DetailLevel.NONE:
        yield None
        return
    if rules.level.bodies:
        log.emit(
            Event.HTTP_BODIES_LOGGED,
            Level.WARNING,
            file=str(path),
            advice="prompts and answers are written there and to stderr; they may hold personal data: delete the file "
            "when it has served",
        )
    events = EventLog(path=path, listener=listener, wall=wall)
    try:
        yield HttpLog(rules, events)
    finally:
        events.close()


def shown_url(url: str) -> str:
    """The URL without user information, and with the values of all query parameters but `api-version` as REDACTED."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, value if name.lower() in SHOWN_PARAMETERS else REDACTED) for name, value in pairs])
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def shown_body(content_type: str, body: bytes, hide: Callable[[str], str]) -> str:
    """The beginning of a text body, without secrets, signatures of URLs and base64; of another kind only its size."""
    if not body:
        return ""
    if not _TEXT_TYPES.match(content_type.strip().lower()):
        return f"[{content_type or 'unknown kind'}: not shown]"
    text = body[:READ_BYTES].decode("utf-8", "replace")
    text = _BASE64.sub(lambda found: f"[{len(found[0])} characters of base64 cut out]", hide(text))
    text = _SIGNATURE.sub(rf"\1\2{REDACTED}", text)
    if len(body) > READ_BYTES:
        # A secret that the reading cut in two would not be known for one.
        text = text[:-TAIL_CHARS]
    if len(text) > BODY_CHARS or len(body) > READ_BYTES:
        text = text[:BODY_CHARS] + f"[cut: {len(body)} bytes]"
    return text


def _credentials_of(headers: Mapping[str, str]) -> tuple[str, ...]:
    """The credentials that went with a request, wherever its reply quotes them; also without the word before."""
    values = [value for name, value in headers.items() if name.lower() in NEVER]
    return tuple({part for value in values for part in (value, value.partition(" ")[2]) if part})
