"""One deployment: leave to send, and the sending of one attempt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import getrandbits
from types import MappingProxyType
from typing import TypeVar

from pipeline.clock import Clock, Timer
from pipeline.model import Call, ErrorInfo, NoReply, Reply, Target
from pipeline.pace.admission import WHOLE, Admission, Portion
from pipeline.pace.budget import RetryBudget
from pipeline.pace.concurrency import Concurrency
from pipeline.pace.cost import Mark
from pipeline.pace.outage import Outage
from pipeline.pace.verdict import ThrottleKind
from pipeline.service.address import Address
from pipeline.service.auth import Credentials
from pipeline.service.batch_api import BatchApi
from pipeline.service.headers import rate_limits, reply_ids, utilization
from pipeline.service.quoted import Hider, hider
from pipeline.service.resource_api import ResourceApi
from pipeline.service.tuning_api import TuningApi
from pipeline.service.wire import Wire

TICK_S = 0.005
"""Seconds; the shortest time between two wakings of those who wait."""
LOOK_S = 1.0
"""Seconds; the longest time between two wakings: rates and limits change while somebody waits."""
_VARIANTS = "89ab"
_Api = TypeVar("_Api", bound=ResourceApi)
_UNCOMPRESSED = {"accept-encoding": "identity"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One attempt and what came of it. `started_at` is epoch seconds, `sent_at` the monotonic clock's.

    `credential` is the generation of the credential that went with it, `tokens` the call's estimate.
    """

    reply: Reply | NoReply
    client_request_id: str
    started_at: float
    sent_at: float
    credential: int
    tokens: int
    request_id: str | None = None
    apim_request_id: str | None = None
    region: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentReport:
    """A deployment's part of the summary. Limits are those in force, None while unknown.

    `quota_used` is the share of the tighter limit used since the first request, None while no limit is known.
    `sent_…` is what is sent of late; `paused_s` how long nothing might leave because the service said so.
    `offered_…` is a limit that the service names above the stated one: more could be used; else None.
    """

    name: str
    requests: int
    throttled: int
    requests_per_minute: float | None
    tokens_per_minute: float | None
    quota_used: float | None
    offered_requests_per_minute: float | None = None
    offered_tokens_per_minute: float | None = None
    sent_requests_per_minute: float = 0.0
    sent_tokens_per_minute: float = 0.0
    paused_s: float = 0.0


class _Waiter:
    __slots__ = ("granted", "retry", "tokens")

    def __init__(self, tokens: int, granted: asyncio.Future[bool], *, retry: bool) -> None:
        self.tokens = tokens
        self.granted = granted
        self.retry = retry


class Deployment:
    """A place to send to, with its quota. Used from one event loop.

    Leave is granted strictly in the order of asking, but requests that were sent before go ahead of those that were
    not: they have waited already. Who has leave either sends or gives it back. `in_flight` counts attempts under way.
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
        workers: int = 1,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        """Wire it up. `workers` is how many requests may fail together; `random` gives numbers from 0 to 1."""
        self.name = name
        self.target = target
        self.priority = priority
        self.max_inputs = max_inputs
        self.in_flight = 0
        self.requests = 0
        self.throttled = 0
        self.refusals_in_row = 0
        self.closed = False
        self.outage = Outage(workers=workers)
        self.credentials = credentials
        self._address = address
        self._wire = wire
        self._admission = admission
        self._headers = dict(headers)
        self._secrets = secrets
        self._timeout_s = timeout_s
        self._clock = clock
        self._random = random
        self._urls: dict[str, str] = {}
        self._again: deque[_Waiter] = deque()
        self._retries: deque[_Waiter] = deque()
        self._waiting: deque[_Waiter] = deque()
        self._waiting_tokens = 0
        self._timer: Timer | None = None
        self._woken_at = float("-inf")
        self._under_way = 0
        self._parts = 1
        self._portion = WHOLE
        self._concurrency = Concurrency()
        self._budget = RetryBudget()

    @property
    def origin(self) -> str:
        """Scheme, host and port of what it is asked at."""
        return self._address.origin

    def batch_api(self, *, attempted: Callable[[], None] = lambda: None) -> BatchApi:
        """Its resource's files and batches. `attempted` is called at the end of each attempt of a call."""
        return self._resource(BatchApi, attempted)

    def tuning_api(self, *, attempted: Callable[[], None] = lambda: None) -> TuningApi:
        """Its resource's files and trainings, likewise."""
        return self._resource(TuningApi, attempted)

    def _resource(self, kind: type[_Api], attempted: Callable[[], None]) -> _Api:
        return kind(
            address=self._address,
            wire=self._wire,
            credentials=self.credentials,
            headers=self._headers,
            clock=self._clock,
            random=self._random,
            attempted=attempted,
        )

    @property
    def most_tokens(self) -> float | None:
        """The largest estimate that its quota can hold, None while that is not known."""
        return self._admission.most_tokens()

    @property
    def most_tokens_to_come(self) -> float | None:
        """The same, where a quota that was lowered not long ago is taken as it was."""
        return self._admission.most_tokens(self._clock.now())

    @property
    def parts(self) -> int:
        """In how many equal parts the quota is cut, of which this run has one."""
        return self._parts

    def share(self, parts: int, portion: Portion = WHOLE) -> None:
        """Keep to one of so many equal parts of the quota, and of that to our portion (see Admission)."""
        if (parts, portion) != (self._parts, self._portion):
            self._parts, self._portion = parts, portion
            now = self._clock.now()
            self._admission.share(parts, now, portion)
            self._rearm(now, at_once=True)

    @property
    def paused_until(self) -> float:
        """To when nothing may leave because the service said so, monotonic seconds."""
        return self._admission.gate.until

    def hold(self, until: float) -> None:
        """Let nothing leave before a moment, monotonic seconds, that another process of the run was told of."""
        self._admission.gate.hold(self._clock.now(), until)

    def adjust(self, *, leave: float, workers: int) -> None:
        """Leave this share of the quota to others from now on, and expect so many requests at once."""
        now = self._clock.now()
        self._admission.leave(leave, now)
        self.outage.expect(workers=workers)
        self._wire.widen(workers)
        self._rearm(now, at_once=True)

    def try_leave(self, tokens: int, *, retry: bool = False) -> bool:
        """Take leave for one request of `tokens` if it may go at once and nobody waits."""
        if self._waiting or self._again or self._retries or self.closed:
            return False
        now = self._clock.now()
        if not self._may_leave(now, tokens, retry=retry):
            return False
        self._grant(now, tokens, retry=retry)
        return True

    async def leave(self, tokens: int, *, again: bool = False, retry: bool = False) -> bool:
        """Wait for leave for one request of `tokens`, behind those who asked before.

        `again`: it was sent before; `retry`: it met a transient fault, and costs some of the budget of retries. False
        when the deployment was set aside meanwhile, or is not the best any more. A wait that is cancelled uses nothing.
        """
        if self.try_leave(tokens, retry=retry):
            return True
        if self.closed:
            return False
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future(), retry=retry)
        line = self._retries if retry else self._again if again else self._waiting
        line.append(waiter)
        self._waiting_tokens += tokens
        if len(line) == 1:
            self._rearm(self._clock.now())
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.result():
                self.give_back(tokens)
            raise

    def give_back(self, tokens: int) -> None:
        """Undo a leave whose request is not sent after all."""
        self._under_way -= 1
        self._admission.give_back(self._clock.now(), tokens)

    def ready_at(self, now: float, tokens: int) -> float:
        """Estimate when a request of `tokens` that asked now would have leave."""
        if self.outage.on:
            return max(now, self.outage.probe_at)
        at = self._admission.ready_at(now, tokens)
        waiting = len(self._waiting) + len(self._again) + len(self._retries)
        if waiting:
            at += self._admission.queue_s(waiting, self._waiting_tokens)
        if self._is_feeling_its_way() and self._under_way + waiting >= self._concurrency.most:
            at = max(at, now + 2 * LOOK_S)
        return at

    def waits_until(self, now: float) -> float | None:
        """When the first of those who wait for leave may have it, as far as time alone decides; None: nobody waits."""
        line = self._retries or self._again or self._waiting
        if not line:
            return None
        if self.outage.on:
            return max(self.outage.probe_at, self._admission.gate.until)
        return self._admission.ready_at(now, line[0].tokens)

    async def send(self, call: Call, headers: Mapping[str, str] = MappingProxyType({})) -> Exchange:
        """Make exactly one HTTP attempt, with these headers too, and follow what its reply says of the limits.

        Raises RefusedError when no credential can be had for it, NoTokenYetError when it may be had later; its leave is
        given back.
        """
        try:
            authorization = await self.credentials.headers()
        except BaseException:
            self.give_back(call.tokens)
            raise
        generation = self.credentials.generation
        client_request_id = _guid()
        sent = {
            **headers,
            "content-type": call.content_type,
            "accept": call.accept,
            **self._headers,
            **({} if call.shows_end else _UNCOMPRESSED),
            **authorization,
            "x-ms-client-request-id": client_request_id,
        }
        url = self._urls.get(call.endpoint) or self._urls.setdefault(call.endpoint, self._address.url(call.endpoint))
        started_at = self._clock.wall()
        sent_at = self._clock.now()
        mark = self._admission.mark(sent_at)
        self.requests += 1
        self.in_flight += 1
        try:
            reply = await self._wire.send(url, sent, call.body, timeout_s=self._timeout_s, stream=call.stream)
        finally:
            self.in_flight -= 1
            self._under_way = max(0, self._under_way - 1)
        request_id = apim_request_id = region = None
        blocked = self._is_blocked()
        if isinstance(reply, Reply):
            reply = self._unquoted(reply)
            self._observe(reply, mark, generation)
            ids = self._hider().ids(reply_ids(reply.headers))
            request_id, apim_request_id, region = ids.request_id, ids.apim_request_id, ids.region
        if blocked:
            self._rearm(self._clock.now(), at_once=True)
        return Exchange(
            reply=reply,
            client_request_id=client_request_id,
            started_at=started_at,
            sent_at=sent_at,
            credential=generation,
            tokens=call.tokens,
            request_id=request_id,
            apim_request_id=apim_request_id,
            region=region,
        )

    def _unquoted(self, reply: Reply) -> Reply:
        """The reply, in whose refusal no secret is quoted: its body may be kept with the row."""
        if reply.status < 300:  # noqa: PLR2004 - success; an answer is the model's own
            return reply
        return self._hider().reply(reply)

    def redacted(self, error: ErrorInfo) -> ErrorInfo:
        """The error without the deployment's secrets: some services quote the key that they refuse."""
        hide = self._hider().text
        return replace(error, code=hide(error.code), message=hide(error.message))

    def _hider(self) -> Hider:
        return hider((*self._secrets, *self.credentials.secrets))

    def answered(self) -> None:
        """Note that it dealt with what a request says."""
        self.refusals_in_row = 0
        self._budget.earn()
        if self.outage.answered():
            self.reopen()

    def failed(self) -> bool:
        """Note a transient fault; True where it begins an outage."""
        return self.outage.failed(self._clock.now())

    def reopen(self) -> None:
        """Begin again, slowly: it was away."""
        self.closed = False
        self._admission.reopen(self._clock.now())
        self._concurrency.restart()
        self._budget = RetryBudget()  # what failed while it was away says nothing of its load
        self._rearm(self._clock.now(), at_once=True)

    def refused(
        self, hint_s: float | None, *, sent_at: float, kind: ThrottleKind = ThrottleKind.UNNAMED, tokens: int = 0
    ) -> None:
        """Let nothing leave for `hint_s` seconds and a little (None: our own back-off), and slow down where it must.

        `sent_at` and `tokens` are the refused exchange's. Pauses never shorten one another.
        """
        self.throttled += 1
        now = self._clock.now()
        self.outage.throttled(now)
        if self._admission.refused(now, hint_s, kind=kind, sent_at=sent_at, tokens=tokens, random=self._random):
            self._concurrency.cut(now, sent_at=sent_at, under_way=self._under_way + 1, cool_down_s=hint_s or 0.0)

    def dismiss(self) -> None:
        """Send those who wait elsewhere: their `leave` returns False."""
        for line in (self._again, self._retries, self._waiting):
            for waiter in line:
                if not waiter.granted.done():
                    waiter.granted.set_result(False)
            line.clear()
        self._waiting_tokens = 0

    def close(self) -> None:
        """Grant nothing more; those who wait are told so."""
        self.closed = True
        self.dismiss()

    async def aclose(self) -> None:
        """Close the connections."""
        self.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._wire.aclose()

    def report(self) -> DeploymentReport:
        """Return the deployment's part of the summary."""
        now = self._clock.now()
        sent_requests, sent_tokens = self._admission.lately(now)
        stated = self._admission.requests_per_minute, self._admission.tokens_per_minute
        requests, tokens = (
            offered if offered and in_force and offered > in_force else None
            for offered, in_force in zip(self._admission.offered, stated, strict=True)
        )
        return DeploymentReport(
            name=self.name,
            requests=self.requests,
            throttled=self.throttled,
            requests_per_minute=stated[0],
            tokens_per_minute=stated[1],
            quota_used=self._admission.used(now),
            offered_requests_per_minute=requests,
            offered_tokens_per_minute=tokens,
            sent_requests_per_minute=round(sent_requests, 1),
            sent_tokens_per_minute=round(sent_tokens, 1),
            paused_s=round(self._admission.gate.closed_in_all_s(now), 3),
        )

    def _observe(self, reply: Reply, mark: Mark, generation: int) -> None:
        if reply.status != 401:  # noqa: PLR2004 - Unauthorized
            self.credentials.accepted(generation)
        answered = 200 <= reply.status < 300  # noqa: PLR2004 - success
        if answered:
            self._admission.gate.answered(mark.at)
            share = utilization(reply.headers)
            nearly_full = share is not None and self._admission.utilized(self._clock.now(), share, mark)
            self._concurrency.answered(nearly_full=nearly_full)
        limits = rate_limits(reply.headers)
        if limits is not None:
            # What a refusal says is left is for the gate: it was not charged, so there is nothing to learn from it.
            self._admission.observe(
                self._clock.now(),
                limit_requests=limits.limit_requests,
                limit_tokens=limits.limit_tokens,
                remaining_requests=limits.remaining_requests if answered else None,
                remaining_tokens=limits.remaining_tokens if answered else None,
                mark=mark,
            )

    def _may_leave(self, now: float, tokens: int, *, retry: bool) -> bool:
        if self.outage.on:
            return now >= self.outage.probe_at and self._admission.gate.until <= now
        if self._is_feeling_its_way() and self._under_way >= self._concurrency.most:
            return False
        # With nothing under way nothing can be earned, so one retry goes all the same.
        if retry and self._budget.empty and self._under_way:
            return False
        return self._admission.ready_at(now, tokens) <= now

    def _is_feeling_its_way(self) -> bool:
        return not self._admission.is_known

    def _is_blocked(self) -> bool:
        """Whether those who wait may do so for an attempt to end, rather than for time to pass."""
        return bool(self._retries) or (self._is_feeling_its_way() and bool(self._waiting or self._again))

    def _grant(self, now: float, tokens: int, *, retry: bool) -> None:
        self._under_way += 1
        self._admission.take(now, tokens)
        if self.outage.on:
            self.outage.probed(now)
        elif retry and self._budget.spend():
            self._admission.overloaded(now)

    def _next(self) -> deque[_Waiter] | None:
        """The line whose head is next; retries that nothing pays for hold up nobody else."""
        if self._again:
            return self._again
        if self._retries and (not self._waiting or not self._budget.empty):
            return self._retries
        return self._waiting or None

    def _rearm(self, now: float, *, at_once: bool = False) -> None:
        line = self._next()
        if line is None:
            return
        if self._timer is not None:
            if not at_once:
                return
            self._timer.cancel()
        at = now if at_once else self._admission.ready_at(now, line[0].tokens)
        if self.outage.on:
            at = max(at, self.outage.probe_at)
        elif not at_once and at <= now:
            at = now + LOOK_S  # held back by what is under way, whose end wakes them
        self._timer = self._clock.call_at(max(min(at, now + LOOK_S), self._woken_at + TICK_S), self._wake)

    def _wake(self) -> None:
        self._timer = None
        now = self._woken_at = self._clock.now()
        while line := self._next():
            waiter = line[0]
            if not waiter.granted.done():
                if not self._may_leave(now, waiter.tokens, retry=waiter.retry):
                    break
                self._grant(now, waiter.tokens, retry=waiter.retry)
                waiter.granted.set_result(True)
            self._waiting_tokens -= waiter.tokens
            line.popleft()
        self._rearm(now)


def _guid() -> str:
    """Return a random GUID (RFC 9562, version 4). It only has to be unique, so a seeded generator will do."""
    bits = f"{getrandbits(128):032x}"
    return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-{_VARIANTS[int(bits[16], 16) & 3]}{bits[17:20]}-{bits[20:]}"
