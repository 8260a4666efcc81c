"""Which deployment a request goes to next, and which ones are set aside."""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, assert_never

from pipeline.clock import Clock
from pipeline.errors import NoTokenYetError, PipelineError, RefusedError, StoppedEarlyError
from pipeline.log import Event, Level
from pipeline.model import ErrorInfo, ErrorType, NoReply, NoReplyKind
from pipeline.pace.admission import Admission
from pipeline.pace.retry import Reauthorise, Refused, Spent, Throttle, TooLong
from pipeline.service.address import Address, Family, address, target
from pipeline.service.auth import credentials
from pipeline.service.deployment import Deployment, Exchange
from pipeline.service.http_log import HttpLog, LoggedWire
from pipeline.service.neighbours import LOOK_EVERY_S, Seat, shared_folder
from pipeline.service.wire import Transport, Wire, default_transport

if TYPE_CHECKING:
    from pipeline.job.spec import DeploymentSpec, Job

REFUSALS = 3
"""Refusals in a row, no success between, that set a deployment aside."""
PATIENCE_S = 1.0
"""Seconds that a request waits for a deployment of a lower priority number rather than go to a later one."""
PROBE_S = 60.0
"""Seconds after which a deployment that was set aside is tried again, twice as long after each try in vain."""
LAST_PROBE_S = 3600.0
"""Seconds; the longest time between two tries."""


class AsideKind(StrEnum):
    """Why a deployment is sent nothing more for now."""

    UNAUTHORIZED = "unauthorized"
    REFUSED = "refused"
    SPENT = "spent"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """One deployment set aside. `come_back_s` is the pause that it asked for, where it did.

    `next_try_s` is when one request tries it again, None for never.
    """

    deployment: str
    kind: AsideKind
    error: ErrorInfo
    come_back_s: float | None = None
    next_try_s: float | None = None


class Say(Protocol):
    """Takes an event of the run."""

    def __call__(self, event: Event, level: Level, **fields: Any) -> None:
        """Log it."""


def _silent(event: Event, level: Level, **fields: Any) -> None:
    """Nobody listens."""


@dataclass(slots=True, kw_only=True)
class _Probing:
    """A deployment set aside, when one request tries it again, and when one last did."""

    aside: Aside
    since: float
    pause_s: float
    at: float
    tried_at: float = math.inf


class Pool:
    """The deployments of a run. Used from one event loop.

    A deployment that is set aside gets one request later, and then later still, to see whether it takes them again, as
    long as others go on; with none left the run ends.
    """

    def __init__(
        self,
        deployments: tuple[Deployment, ...],
        *,
        clock: Clock,
        max_outage_s: float = math.inf,
        seats: Mapping[Deployment, Seat] | None = None,
    ) -> None:
        """`max_outage_s`: how long nothing may be answered before the run ends. `seats`: see `share`."""
        self.deployments = deployments
        self._seats = dict(seats or {})
        self._clock = clock
        self._max_outage_s = max_outage_s
        self._open = list(deployments)
        self._aside: dict[Deployment, _Probing] = {}
        self._paused_at: float | None = None
        self._say: Say = _silent

    def listen(self, say: Say) -> None:
        """Tell `say` of outages, and of deployments that are back."""
        self._say = say

    @property
    def asides(self) -> tuple[Aside, ...]:
        """The deployments that are set aside, in order of that."""
        return tuple(probing.aside for probing in self._aside.values())

    @property
    def exhausted(self) -> PipelineError | None:
        """Why nothing can be sent any more: a pause to wait out (StoppedEarlyError) or refusals (RefusedError)."""
        return None if self._open else _exhaustion(self.asides, wall=self._clock.wall())

    def dismiss(self) -> None:
        """Have all who wait for leave ask again: what they ask for has changed."""
        for deployment in self._open:
            deployment.dismiss()

    def waits_until(self) -> float | None:
        """To when requests wait by the quotas, gates and outages of their deployments; None where none waits."""
        now = self._clock.now()
        waits = [deployment.waits_until(now) for deployment in self.deployments]
        return max((until for until in waits if until is not None), default=None)

    async def share(self) -> None:
        """Share each quota with the other runs on this machine that ask its deployment, from now on, without end."""
        while self._seats:
            self.look_around()
            await self._clock.sleep(LOOK_EVERY_S)

    def look_around(self) -> bool:
        """See who asks the same deployments now, and take a fair part of each quota; True where anybody else does."""
        alone = True
        for deployment, seat in self._seats.items():
            others = seat.others()
            deployment.share(others + 1)
            alone = alone and not others
        return not alone

    def steer(self, *, paused: bool, leave: float, workers: int) -> None:
        """Leave this share of each quota to others, for so many requests at once; all of it while `paused`.

        The time of a pause is no part of an outage's.
        """
        for deployment in self.deployments:
            deployment.adjust(leave=leave, workers=workers)
        now = self._clock.now()
        if paused and self._paused_at is None:
            self._paused_at = now
            for seat in self._seats.values():
                seat.close()
            for deployment in self.deployments:
                deployment.dismiss()
        elif self._paused_at is not None and not paused:
            for deployment in self.deployments:
                deployment.outage.leave_out(self._paused_at, now)
            self._paused_at = None
            for seat in self._seats.values():
                seat.take()
            self.look_around()

    def too_small_for(self, tokens: int) -> float | None:
        """Return the most tokens that any quota can hold at once, where a request of `tokens` fits none; else None."""
        return _beyond(tokens, [deployment.most_tokens for deployment in self._open])

    def may_fit_later(self, tokens: int) -> bool:
        """Whether a request of `tokens` fits a quota as it was before it was lowered, not long ago."""
        return _beyond(tokens, [deployment.most_tokens_to_come for deployment in self._open]) is None

    def pick(self, tokens: int) -> Deployment:
        """Return the deployment that a request of `tokens` should go to.

        Of those that give leave within a second, the one with the lowest priority number; of equals the one that gives
        it soonest, then the one with less in flight. Where none does, the soonest of all. One that was set aside comes
        first when it is to be tried again. Raises what `exhausted` says when every deployment is set aside.
        """
        if not self._open:
            raise _exhaustion(self.asides, wall=self._clock.wall())
        if not self._aside and len(self._open) == 1:
            return self._open[0]
        now = self._clock.now()
        for deployment, probing in self._aside.items():
            if probing.at <= now:
                return self._probe(deployment, probing, now)
        if len(self._open) == 1:
            return self._open[0]

        def order(deployment: Deployment) -> tuple[bool, int, float, int, int]:
            fits = deployment.most_tokens
            at = math.inf if fits is not None and tokens > fits else deployment.ready_at(now, tokens)
            late = at > now + PATIENCE_S
            return late, 0 if late else deployment.priority, at, deployment.priority, deployment.in_flight

        return min(self._open, key=order)

    async def heed(  # noqa: PLR0911 - one a notice
        self, deployment: Deployment, notice: Throttle | Reauthorise | Refused | Spent | TooLong, exchange: Exchange
    ) -> Aside | None:
        """Do what a decision asks of a deployment; the request then goes to `pick` again.

        Returns the setting aside that came of it, if one did, for the run to say.
        """
        match notice:
            case Throttle(hint_s=hint_s, kind=kind):
                deployment.refused(hint_s, sent_at=exchange.sent_at, kind=kind, tokens=exchange.tokens)
                self._send_elsewhere(deployment)
                return None
            case Reauthorise(error=error):
                try:
                    if await deployment.credentials.refused(exchange.credential):
                        return None
                except RefusedError as no_token:
                    return self.without_credential(deployment, no_token)
                except NoTokenYetError as delayed:
                    self.without_token_yet(deployment, delayed)
                    return None
                return self._set_aside(deployment, AsideKind.UNAUTHORIZED, error)
            case Refused(error=error):
                deployment.refusals_in_row += 1
                if deployment.refusals_in_row < REFUSALS:
                    return None
                return self._set_aside(deployment, AsideKind.REFUSED, error)
            case Spent(error=error):
                return self._set_aside(deployment, AsideKind.SPENT, error, probe_s=math.inf)
            case TooLong(error=error, hint_s=hint_s):
                return self._set_aside(deployment, AsideKind.PAUSED, error, probe_s=hint_s, come_back_s=hint_s)
            case _:
                assert_never(notice)

    def without_credential(self, deployment: Deployment, error: RefusedError) -> Aside | None:
        """Set a deployment aside for which no credential can be had. Raises the error where it is the last."""
        if len(self._open) == 1 and deployment in self._open:
            raise error
        info = ErrorInfo(type=ErrorType.AUTHENTICATION, code="no_credential", message=str(error))
        return self._set_aside(deployment, AsideKind.UNAUTHORIZED, info)

    def without_token_yet(self, deployment: Deployment, error: NoTokenYetError) -> None:
        """Note that a token may be had later: that is an outage of the deployment.

        Raises StoppedEarlyError when nothing was answered for longer than the job allows.
        """
        if deployment.outage.begin(self._clock.now()):
            self._say_outage(deployment, str(error))
        self._end_if_nobody_answers(str(error))

    def answered(self, deployment: Deployment, exchange: Exchange) -> None:
        """Note that a deployment dealt with what a request says; one that was tried again is open again."""
        now = self._clock.now()
        probing = self._aside.get(deployment)
        if probing is not None and exchange.sent_at >= probing.tried_at:
            del self._aside[deployment]
            self._open = [one for one in self.deployments if one not in self._aside]
            deployment.reopen()
            self._say(
                Event.DEPLOYMENT_BACK,
                Level.INFO,
                deployment=deployment.name,
                kind=probing.aside.kind.value,
                seconds=round(now - probing.since, 3),
            )
        since = deployment.outage.since if deployment.outage.on else None
        deployment.answered()
        if since is not None:
            self._say(Event.OUTAGE_ENDED, Level.INFO, deployment=deployment.name, seconds=round(now - since, 3))

    def failed(self, deployment: Deployment, exchange: Exchange, message: str, *, throttled: bool) -> bool:
        """Note a fault, or a refusal to be waited out; True where it is the service's rather than the row's.

        That is so while the deployment is away, or answers nobody, or cannot be connected to. `message` is what is
        said of it. Raises StoppedEarlyError when nothing was answered for longer than the job allows.
        """
        if throttled:
            deployment.outage.throttled(self._clock.now())
        elif deployment.failed():
            self._say_outage(deployment, message)
        self._end_if_nobody_answers(message)
        reply = exchange.reply
        nobody_connects = isinstance(reply, NoReply) and reply.kind is NoReplyKind.CONNECT
        return nobody_connects or deployment.outage.explains

    def _say_outage(self, deployment: Deployment, reason: str) -> None:
        """Say that a deployment is away, and let those who wait for it look again."""
        now, outage = self._clock.now(), deployment.outage
        self._say(
            Event.OUTAGE_BEGAN,
            Level.WARNING,
            deployment=deployment.name,
            seconds=round(now - (now if outage.since is None else outage.since), 3),
            next_probe_s=round(outage.probe_at - now, 3),
            reason=reason,
        )
        self._send_elsewhere(deployment)

    def _end_if_nobody_answers(self, message: str) -> None:
        silences = [one.outage.since for one in self._open]
        since = max((at for at in silences if at is not None), default=None)
        if since is None or None in silences:
            return
        silent_s = self._clock.now() - since
        if self._paused_at is not None:
            silent_s = self._paused_at - since
        if silent_s > self._max_outage_s:
            raise StoppedEarlyError(
                f"the service has answered nothing for {silent_s:.0f} s, longer than run.max_outage "
                f"({message}); no row was failed by this: run the same command again once the service is back"
            )

    def _probe(self, deployment: Deployment, probing: _Probing, now: float) -> Deployment:
        """Let one request try a deployment that is set aside."""
        probing.pause_s = min(LAST_PROBE_S, 2 * probing.pause_s)
        probing.at = now + probing.pause_s
        probing.tried_at = now
        if probing.aside.kind is AsideKind.UNAUTHORIZED:
            deployment.credentials.forgive()
        deployment.refusals_in_row = REFUSALS
        deployment.closed = False
        return deployment

    def _send_elsewhere(self, deployment: Deployment) -> None:
        """Let those who wait for a deployment that just closed its gate look again, where there are others."""
        if len(self._open) > 1:
            deployment.dismiss()

    def _set_aside(
        self,
        deployment: Deployment,
        kind: AsideKind,
        error: ErrorInfo,
        *,
        probe_s: float = PROBE_S,
        come_back_s: float | None = None,
    ) -> Aside | None:
        """Sent nothing more, or tried in vain: then it is nothing new."""
        now = self._clock.now()
        if deployment not in self._open:
            if come_back_s is not None:
                self._aside[deployment].at = now + come_back_s
            return None
        aside = Aside(
            deployment=deployment.name,
            kind=kind,
            error=error,
            come_back_s=come_back_s,
            next_try_s=probe_s if math.isfinite(probe_s) else None,
        )
        self._open.remove(deployment)
        self._aside[deployment] = _Probing(aside=aside, since=now, pause_s=min(probe_s, LAST_PROBE_S), at=now + probe_s)
        deployment.close()
        return aside


@asynccontextmanager
async def open_pool(
    job: Job,
    *,
    lane: str = "online",
    clock: Clock,
    random: Callable[[], float],
    transport: Transport | None = None,
    http_log: HttpLog | None = None,
    seated: bool = True,
) -> AsyncIterator[Pool]:
    """Open the job's deployments for a lane, and close them again.

    `seated`: take a seat among the runs that ask the same deployments; else somebody else has taken it. `random` gives
    numbers from 0 to 1. A transport that is given serves every deployment and stays the caller's to close. Raises
    RefusedError for what makes a deployment unusable before anything is sent.
    """
    async with AsyncExitStack() as stack:
        deployments = []
        seats: dict[Deployment, Seat] = {}
        for spec in job.deployments:
            if spec.lane != lane:
                continue
            deployment = _deployment(spec, job, clock=clock, random=random, transport=transport, http_log=http_log)
            stack.push_async_callback(deployment.aclose)
            deployments.append(deployment)
            if transport is None and lane == "online" and seated:
                seat = Seat(shared_folder(os.environ), origin=deployment.origin, deployment=spec.deployment)
                seats[deployment] = stack.enter_context(seat)
        pool = Pool(tuple(deployments), clock=clock, max_outage_s=job.run.max_outage_s, seats=seats)
        if pool.look_around():
            # The others look as often, and should have made room before the first request leaves.
            await clock.sleep(LOOK_EVERY_S)
        yield pool


def _deployment(
    spec: DeploymentSpec,
    job: Job,
    *,
    clock: Clock,
    random: Callable[[], float],
    transport: Transport | None,
    http_log: HttpLog | None,
) -> Deployment:
    try:
        place = address(endpoint=spec.endpoint, deployment=spec.deployment, api=spec.api, api_version=spec.api_version)
    except ValueError as error:
        raise RefusedError(f"deployment {spec.name}: {error}") from error
    return Deployment(
        name=spec.name,
        target=target(place, model=spec.model),
        address=place,
        wire=_wire(spec, job, place, clock=clock, transport=transport, http_log=http_log),
        credentials=credentials(
            auth=spec.auth,
            address=place,
            key=spec.key.reveal() if spec.key is not None else None,
            token=spec.token.reveal() if spec.token is not None else None,
            scope=spec.scope,
            credential=spec.credential,
            clock=clock,
        ),
        admission=Admission(
            requests_per_minute=spec.requests_per_minute,
            tokens_per_minute=spec.tokens_per_minute,
            leave=job.run.leave,
            sliding=place.family is not Family.OPENAI,
        ),
        headers=fixed_headers(spec),
        secrets=secrets_of(spec),
        timeout_s=job.run.timeout_s,
        priority=spec.priority,
        max_inputs=spec.max_inputs,
        workers=job.run.workers,
        clock=clock,
        random=random,
    )


def _wire(
    spec: DeploymentSpec,
    job: Job,
    place: Address,
    *,
    clock: Clock,
    transport: Transport | None,
    http_log: HttpLog | None,
) -> Wire:
    owned = transport is None
    over = transport or default_transport(
        place.base, connections=job.run.workers, ca_bundle=spec.ca_bundle, environ=os.environ
    )
    if http_log is None:
        return Wire(over, clock=clock, owned=owned)
    return LoggedWire(over, clock=clock, owned=owned, log=http_log, place=spec.name, secrets=secrets_of(spec))


def secrets_of(spec: DeploymentSpec) -> tuple[str, ...]:
    """What a deployment's job file says that nobody may read; of `Bearer TOKEN` the token by itself, too."""
    texts = [secret.reveal().strip() for secret in (spec.key, spec.token, *spec.headers.values()) if secret is not None]
    return tuple(dict.fromkeys(part for text in texts for part in (text, text.partition(" ")[2]) if part))


def fixed_headers(spec: DeploymentSpec) -> dict[str, str]:
    """Return the headers of every request to a deployment, but for those that differ between requests.

    Raises RefusedError for a value that no header may hold.
    """
    headers = {"accept-encoding": "gzip", "user-agent": f"aoai-pipeline/{importlib.metadata.version('aoai-pipeline')}"}
    if spec.organization is not None:
        headers["openai-organization"] = spec.organization
    if spec.project is not None:
        headers["openai-project"] = spec.project
    for name, value in spec.headers.items():
        headers[name.lower()] = value.reveal().strip()
    for name, text in headers.items():
        if not text.isascii() or not text.isprintable():
            raise RefusedError(f"deployment {spec.name}: the header {name} holds characters that no header may hold")
    return headers


def _beyond(tokens: int, most: list[float | None]) -> float | None:
    """The largest of what quotas hold, where that is known of all and too little."""
    known = [limit for limit in most if limit is not None]
    return max(known) if known and len(known) == len(most) and tokens > max(known) else None


def _exhaustion(asides: tuple[Aside, ...], *, wall: float) -> PipelineError:
    said = "; ".join(f"{aside.deployment}: {aside.error.code}: {aside.error.message}" for aside in asides)
    waits = [aside.come_back_s for aside in asides if aside.come_back_s is not None]
    if waits:
        then = datetime.fromtimestamp(wall + min(waits), UTC)
        return StoppedEarlyError(
            f"the service asks for a pause of {min(waits):.0f} s; run again after {then:%Y-%m-%d %H:%M} UTC ({said})"
        )
    return RefusedError(f"no deployment is left to send to ({said})")
