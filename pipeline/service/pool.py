"""Which deployment a request goes to next, and which ones are set aside."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from pipeline.clock import Clock
from pipeline.errors import PipelineError, RefusedError, StoppedEarlyError
from pipeline.model import ErrorInfo
from pipeline.pace.admission import Admission
from pipeline.pace.retry import Reauthorise, Refused, Spent, Throttle, TooLong
from pipeline.service.address import address, target
from pipeline.service.auth import credentials
from pipeline.service.deployment import Deployment, Exchange
from pipeline.service.wire import Transport, Wire, default_transport

if TYPE_CHECKING:
    from pipeline.job.spec import DeploymentSpec, Job

REFUSALS = 3
"""Refusals in a row, no success between, that set a deployment aside."""


class AsideKind(StrEnum):
    """Why a deployment is sent nothing more in this run."""

    UNAUTHORIZED = "unauthorized"
    REFUSED = "refused"
    SPENT = "spent"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """One deployment set aside. `come_back_s` is the pause that it asked for, where it did."""

    deployment: str
    kind: AsideKind
    error: ErrorInfo
    come_back_s: float | None = None


class Pool:
    """The deployments of a run. Used from one event loop."""

    def __init__(self, deployments: tuple[Deployment, ...], *, clock: Clock) -> None:
        self.deployments = deployments
        self._clock = clock
        self._open = list(deployments)
        self._asides: list[Aside] = []

    @property
    def asides(self) -> tuple[Aside, ...]:
        """The deployments set aside so far, in order."""
        return tuple(self._asides)

    @property
    def exhausted(self) -> PipelineError | None:
        """Why nothing can be sent any more: a pause to wait out (StoppedEarlyError) or refusals (RefusedError)."""
        return None if self._open else _exhaustion(self._asides)

    def pick(self, tokens: int) -> Deployment:
        """Return the deployment that gives a request of `tokens` leave soonest.

        One that gives it at once comes before one that does not; among those, the lower priority number, then the one
        with less in flight. Raises what `exhausted` says when every deployment is set aside.
        """
        if not self._open:
            raise _exhaustion(self._asides)
        if len(self._open) == 1:
            return self._open[0]
        now = self._clock.now()

        def order(deployment: Deployment) -> tuple[float, int, int]:
            return deployment.ready_at(now, tokens), deployment.priority, deployment.in_flight

        return min(self._open, key=order)

    async def heed(  # noqa: PLR0911 - one a notice
        self, deployment: Deployment, notice: Throttle | Reauthorise | Refused | Spent | TooLong, exchange: Exchange
    ) -> Aside | None:
        """Do what a decision asks of a deployment; the request then goes to `pick` again.

        Returns the setting aside that came of it, if one did, for the run to say.
        """
        match notice:
            case Throttle(hint_s=hint_s):
                deployment.pause(hint_s, sent_at=exchange.sent_at)
                return None
            case Reauthorise(error=error):
                if await deployment.credentials.refused(exchange.credential):
                    return None
                return self._set_aside(deployment, AsideKind.UNAUTHORIZED, error)
            case Refused(error=error):
                deployment.refusals_in_row += 1
                if deployment.refusals_in_row < REFUSALS:
                    return None
                return self._set_aside(deployment, AsideKind.REFUSED, error)
            case Spent(error=error):
                return self._set_aside(deployment, AsideKind.SPENT, error)
            case TooLong(error=error, hint_s=hint_s):
                return self._set_aside(deployment, AsideKind.PAUSED, error, come_back_s=hint_s)
            case _:
                assert_never(notice)

    def answered(self, deployment: Deployment) -> None:
        """Note that a deployment dealt with what a request says: its refusals are no longer in a row."""
        deployment.refusals_in_row = 0

    def _set_aside(
        self, deployment: Deployment, kind: AsideKind, error: ErrorInfo, *, come_back_s: float | None = None
    ) -> Aside | None:
        if deployment not in self._open:
            return None
        aside = Aside(deployment=deployment.name, kind=kind, error=error, come_back_s=come_back_s)
        self._open.remove(deployment)
        self._asides.append(aside)
        deployment.close()
        return aside


@asynccontextmanager
async def open_pool(
    job: Job, *, clock: Clock, random: Callable[[], float], transport: Transport | None = None
) -> AsyncIterator[Pool]:
    """Open the job's deployments, and close them again.

    `random` gives numbers from 0 to 1. A transport that is given serves every deployment and stays the caller's to
    close. Raises RefusedError for what makes a deployment unusable before anything is sent.
    """
    async with AsyncExitStack() as stack:
        deployments = []
        for spec in job.deployments:
            deployment = _deployment(spec, job, clock=clock, random=random, transport=transport)
            stack.push_async_callback(deployment.aclose)
            deployments.append(deployment)
        yield Pool(tuple(deployments), clock=clock)


def _deployment(
    spec: DeploymentSpec,
    job: Job,
    *,
    clock: Clock,
    random: Callable[[], float],
    transport: Transport | None,
) -> Deployment:
    try:
        place = address(endpoint=spec.endpoint, deployment=spec.deployment, api=spec.api, api_version=spec.api_version)
    except ValueError as error:
        raise RefusedError(f"deployment {spec.name}: {error}") from error
    return Deployment(
        name=spec.name,
        target=target(place, model=spec.model),
        address=place,
        wire=Wire(transport, clock=clock, owned=False)
        if transport is not None
        else Wire(
            default_transport(place.base, connections=job.run.workers, ca_bundle=spec.ca_bundle, environ=os.environ),
            clock=clock,
        ),
        credentials=credentials(
            auth=spec.auth,
            address=place,
            key=spec.key.reveal() if spec.key is not None else None,
            token=spec.token.reveal() if spec.token is not None else None,
            scope=spec.scope,
            credential=spec.credential,
            clock=clock,
        ),
        admission=Admission(requests_per_minute=spec.requests_per_minute, tokens_per_minute=spec.tokens_per_minute),
        headers=_fixed_headers(spec),
        secrets=tuple(
            secret.reveal() for secret in (spec.key, spec.token, *spec.headers.values()) if secret is not None
        ),
        timeout_s=job.run.timeout_s,
        priority=spec.priority,
        max_inputs=spec.max_inputs,
        clock=clock,
        random=random,
    )


def _fixed_headers(spec: DeploymentSpec) -> dict[str, str]:
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


def _exhaustion(asides: list[Aside]) -> PipelineError:
    said = "; ".join(f"{aside.deployment}: {aside.error.code}: {aside.error.message}" for aside in asides)
    waits = [aside.come_back_s for aside in asides if aside.come_back_s is not None]
    if waits:
        return StoppedEarlyError(f"the service asks for a pause of {min(waits):.0f} s; run again after it ({said})")
    return RefusedError(f"no deployment is left to send to ({said})")
