"""One deployment: leave to send, and the sending of one attempt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import getrandbits

from pipeline.clock import Clock, Timer
from pipeline.model import Call, ErrorInfo, NoReply, Reply, Target
from pipeline.pace.admission import Admission
from pipeline.service.address import Address
from pipeline.service.auth import Credentials
from pipeline.service.headers import rate_limits, reply_ids
from pipeline.service.wire import Wire

TICK_S = 0.005
"""Seconds; the shortest time between two wakings of those who wait."""
_VARIANTS = "89ab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One attempt and what came of it. `started_at` is epoch seconds, `sent_at` the monotonic clock's.

    `credential` is the generation of the credential that went with it.
    """

    reply: Reply | NoReply
    client_request_id: str
    started_at: float
    sent_at: float
    credential: int
    request_id: str | None = None
    apim_request_id: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentReport:
    """A deployment's part of the summary. Limits are those in force, None while unknown.

    `quota_used` is the share of the tighter limit used since the first request, None while no limit is known.
    """

    name: str
    requests: int
    throttled: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    quota_used: float | None


class _Waiter:
    __slots__ = ("granted", "tokens")

    def __init__(self, tokens: int, granted: asyncio.Future[bool]) -> None:
        self.tokens = tokens
        self.granted = granted


class Deployment:
    """A place to send to, with its quota. Used from one event loop.

    Leave is granted strictly in the order of asking, but requests that were sent before go ahead of those that were
    not: they have waited already. `in_flight` counts attempts under way.
    """

    def __init__(
        self,
        *,
        name: str,
        target: Target,
        address: Address,
        wire: Wire,
        credentials: Credentials,
        admission: Admission,
        headers: Mapping[str, str],
        secrets: tuple[str, ...] = (),
        timeout_s: float,
        priority: int,
        max_inputs: int | None,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self.name = name
        self.target = target
        self.priority = priority
        self.max_inputs = max_inputs
        self.in_flight = 0
        self.requests = 0
        self.throttled = 0
        self.refusals_in_row = 0
        self.closed = False
        self.credentials = credentials
        self._address = address
        self._wire = wire
        self._admission = admission
        self._headers = dict(headers)
        # Longest first, so that a secret within another leaves nothing of it behind.
        self._secrets = tuple(sorted((secret for secret in secrets if secret), key=len, reverse=True))
        self._timeout_s = timeout_s
        self._clock = clock
        self._random = random
        self._urls: dict[str, str] = {}
        self._waiting: deque[_Waiter] = deque()
        self._again: deque[_Waiter] = deque()
        self._waiting_tokens = 0
        self._timer: Timer | None = None
        self._woken_at = float("-inf")
        self._first_at: float | None = None
        self._granted_tokens = 0

    @property
    def origin(self) -> str:
        """Scheme, host and port of what it is asked at."""
        return self._address.origin

    def try_leave(self, tokens: int) -> bool:
        """Take leave for one request of `tokens` if it may go at once and nobody waits."""
        if self._waiting or self._again or self.closed:
            return False
        now = self._clock.now()
        if self._admission.ready_at(now, tokens) > now:
            return False
        self._grant(now, tokens)
        return True

    async def leave(self, tokens: int, *, again: bool = False) -> bool:
        """Wait for leave for one request of `tokens`, behind those who asked before; `again`: it was sent before.

        False when the deployment was set aside meanwhile. A wait that is cancelled uses nothing up.
        """
        if self.try_leave(tokens):
            return True
        if self.closed:
            return False
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future())
        line = self._again if again else self._waiting
        line.append(waiter)
        self._waiting_tokens += tokens
        if len(line) == 1:
            self._rearm(self._clock.now())
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.result():
                self._admission.give_back(self._clock.now(), tokens)
                self._granted_tokens -= tokens
            raise

    def ready_at(self, now: float, tokens: int) -> float:
        """Estimate when a request of `tokens` that asked now would have leave."""
        at = self._admission.ready_at(now, tokens)
        if self._waiting or self._again:
            per_request = 60 / self._admission.requests_per_minute if self._admission.requests_per_minute else 0.0
            per_token = 60 / self._admission.tokens_per_minute if self._admission.tokens_per_minute else 0.0
            at += max((len(self._waiting) + len(self._again)) * per_request, self._waiting_tokens * per_token)
        return at

    async def send(self, call: Call) -> Exchange:
        """Make exactly one HTTP attempt and follow what its reply says of the limits.

        Raises RefusedError when no credential can be had for it.
        """
        authorization = await self.credentials.headers()
        generation = self.credentials.generation
        client_request_id = _guid()
        headers = {
            "content-type": call.content_type,
            "accept": call.accept,
            **self._headers,
            **authorization,
            "x-ms-client-request-id": client_request_id,
        }
        url = self._urls.get(call.endpoint) or self._urls.setdefault(call.endpoint, self._address.url(call.endpoint))
        started_at = self._clock.wall()
        sent_at = self._clock.now()
        self.requests += 1
        self.in_flight += 1
        try:
            reply = await self._wire.send(url, headers, call.body, timeout_s=self._timeout_s, stream=call.stream)
        finally:
            self.in_flight -= 1
        if isinstance(reply, NoReply):
            return Exchange(
                reply=reply,
                client_request_id=client_request_id,
                started_at=started_at,
                sent_at=sent_at,
                credential=generation,
            )
        self._observe(reply, sent_at, generation)
        ids = reply_ids(reply.headers)
        return Exchange(
            reply=reply,
            client_request_id=client_request_id,
            started_at=started_at,
            sent_at=sent_at,
            credential=generation,
            request_id=ids.request_id,
            apim_request_id=ids.apim_request_id,
            region=ids.region,
        )

    def redacted(self, error: ErrorInfo) -> ErrorInfo:
        """The error without the deployment's secrets: some services quote the key that they refuse."""
        message = error.message
        for secret in self._secrets:
            message = message.replace(secret, "***")
        return error if message == error.message else replace(error, message=message)

    def pause(self, hint_s: float | None, *, sent_at: float) -> None:
        """Let nothing leave for `hint_s` seconds and a little (None: our own back-off) after a refusal.

        `sent_at` is the refused exchange's. Pauses never shorten one another.
        """
        self.throttled += 1
        self._admission.pause(self._clock.now(), hint_s, sent_at=sent_at, random=self._random)

    def close(self) -> None:
        """Grant nothing more; those who wait are told so."""
        self.closed = True
        for waiter in (*self._again, *self._waiting):
            if not waiter.granted.done():
                waiter.granted.set_result(False)
        self._again.clear()
        self._waiting.clear()
        self._waiting_tokens = 0

    async def aclose(self) -> None:
        """Close the connections."""
        self.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._wire.aclose()

    def report(self) -> DeploymentReport:
        """Return the deployment's part of the summary."""
        per_minute = self._admission.requests_per_minute
        tokens_per_minute = self._admission.tokens_per_minute
        minutes = 0.0 if self._first_at is None else (self._clock.now() - self._first_at) / 60
        shares = []
        if per_minute and minutes:
            shares.append(self.requests / (per_minute * minutes))
        if tokens_per_minute and minutes:
            shares.append(self._granted_tokens / (tokens_per_minute * minutes))
        return DeploymentReport(
            name=self.name,
            requests=self.requests,
            throttled=self.throttled,
            requests_per_minute=per_minute,
            tokens_per_minute=tokens_per_minute,
            quota_used=max(shares) if shares else None,
        )

    def _observe(self, reply: Reply, sent_at: float, generation: int) -> None:
        if reply.status != 401:  # noqa: PLR2004 - Unauthorized
            self.credentials.accepted(generation)
        if 200 <= reply.status < 300:  # noqa: PLR2004 - success
            self._admission.gate.answered(sent_at)
        limits = rate_limits(reply.headers)
        if limits is not None:
            self._admission.observe(
                self._clock.now(),
                limit_requests=limits.limit_requests,
                limit_tokens=limits.limit_tokens,
                remaining_requests=limits.remaining_requests,
                remaining_tokens=limits.remaining_tokens,
            )

    def _grant(self, now: float, tokens: int) -> None:
        self._admission.take(now, tokens)
        self._granted_tokens += tokens
        if self._first_at is None:
            self._first_at = now

    def _rearm(self, now: float) -> None:
        line = self._again or self._waiting
        if self._timer is not None or not line:
            return
        at = self._admission.ready_at(now, line[0].tokens)
        self._timer = self._clock.call_at(max(at, self._woken_at + TICK_S), self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._woken_at = self._clock.now()
        while line := self._again or self._waiting:
            waiter = line[0]
            if not waiter.granted.done():
                if self._admission.ready_at(now, waiter.tokens) > now:
                    break
                self._grant(now, waiter.tokens)
                waiter.granted.set_result(True)
            self._waiting_tokens -= waiter.tokens
            line.popleft()
        self._rearm(now)


def _guid() -> str:
    """Return a random GUID (RFC 9562, version 4). It only has to be unique, so a seeded generator will do."""
    bits = f"{getrandbits(128):032x}"
    return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-{_VARIANTS[int(bits[16], 16) & 3]}{bits[17:20]}-{bits[20:]}"
