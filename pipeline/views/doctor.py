"""What `pipeline doctor` finds: the output's disk, and of each deployment network, credentials, answers and quota."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from pipeline.clock import Clock
from pipeline.errors import NoTokenYetError, RefusedError
from pipeline.job.availability import DEFAULT_API_VERSION, GENERAL, LAST_PREVIEW
from pipeline.model import Call, NoReply, Reply, Target
from pipeline.service.address import Address, Family, address, target
from pipeline.service.auth import Credentials, credentials, default_scope
from pipeline.service.classify import error_info
from pipeline.service.headers import RateLimits, rate_limits, reply_ids
from pipeline.service.pool import fixed_headers, secrets_of
from pipeline.service.quoted import hider
from pipeline.service.reach import NotReachedError, Reached, reach
from pipeline.service.wire import Wire, default_transport
from pipeline.store.disk import file_system, free_bytes, is_network
from pipeline.views.preview import output_problem
from pipeline.views.text import duration, plain, size, table

if TYPE_CHECKING:
    from pipeline.job.spec import DeploymentSpec, Job

TIMEOUT_S = 30.0
"""Seconds that one request of the doctor's may take."""
SKEW_S = 30.0
"""Seconds by which clocks may differ without a word; the Date header has whole seconds and the reply its way."""
TOKEN_S = 600.0
"""Seconds; a fixed token that expires sooner is worth a word, since nobody renews it."""
SCARCE_BYTES = 2 << 30
"""Free bytes below which the disk is worth a word."""
LEAST_BYTES = 64 << 20
"""Free bytes below which a run would soon stop."""

_TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "chat": ("chat/completions", {"messages": [{"role": "user", "content": "ping"}]}),
    "completions": ("completions", {"prompt": "ping", "max_tokens": 1}),
    "embeddings": ("embeddings", {"input": ["ping"]}),
    "responses": ("responses", {"input": "ping", "max_output_tokens": 16}),
    "speech": ("audio/speech", {"input": "ping", "voice": "alloy"}),
}
"""The least that each operation can be asked; the others cost too much to be tried, or need a recording."""
_MOST_TOKENS = 16
_TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")


_ENTRA_ADVICE = (
    "give the identity the role Cognitive Services OpenAI User on the resource and wait five minutes; check `scope`"
)
_ADVICE: Mapping[int, str] = {
    401: "a key or token is good for one resource alone: take it from this endpoint's own page",
    403: "network rules of the resource, or a block: allow this machine's address, or use the private endpoint",
    404: "check `endpoint`, `api` and `api_version`",
    429: "the quota is in use just now; runs wait for it",
}


class Status(StrEnum):
    """How a finding stands."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at. `deployment` is None for what concerns the whole job; `advice` says what to do about it."""

    status: Status
    check: str
    message: str
    deployment: str | None = None
    advice: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The finding as `--json` prints it."""
        return {
            "status": self.status.value,
            "check": self.check,
            "deployment": self.deployment,
            "message": self.message,
            "advice": self.advice,
        }


def ok(check: str, message: str) -> Finding:
    """A finding that needs nobody."""
    return Finding(status=Status.OK, check=check, message=message)


def warn(check: str, message: str, advice: str) -> Finding:
    """A finding that a run can live with."""
    return Finding(status=Status.WARN, check=check, message=message, advice=advice)


def fail(check: str, message: str, advice: str) -> Finding:
    """A finding with which a run cannot work."""
    return Finding(status=Status.FAIL, check=check, message=message, advice=advice)


def finding_lines(findings: list[Finding]) -> list[str]:
    """Lay findings out, one a line: `ok|warn|fail  what  where  message — what to do`."""
    return table(
        [
            (
                one.status.value,
                one.check,
                plain(one.deployment or ""),
                plain(one.message if one.advice is None else f"{one.message} — {one.advice}"),
            )
            for one in findings
        ]
    )


async def examine(job: Job, *, clock: Clock, environ: Mapping[str, str], probe: bool) -> AsyncIterator[Finding]:
    """Look at everything that a run of the job needs, and say each thing as it is found.

    Nothing billable is sent, unless `probe`: then one tiny request to each deployment. Nothing is written.
    """
    for finding in disk_findings(job):
        yield finding
    for spec in job.deployments:
        async for finding in _Deployment(spec, job, clock=clock, environ=environ, probe=probe).examine():
            yield replace(finding, deployment=spec.name)


def disk_findings(job: Job) -> list[Finding]:
    """Look at the output folder: may a run have it, can it be written, is there room, is the disk this machine's."""
    root = job.output.path
    problem = output_problem(job, root)
    if problem is not None:
        return [fail("output", f"{root}: {problem}", "change output.path, or see `pipeline validate`")]
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return [fail("output", f"{there} cannot be written", "change output.path, or the folder's owner or mode")]
    findings = [_room(root, free_bytes(there))]
    kind = file_system(there)
    if is_network(kind):
        findings.append(
            warn("output", f"{root} is on a network file system ({kind}), where locks may lie", "use a local disk")
        )
    return findings


def _room(root: Path, free: int) -> Finding:
    message = f"{root}: {size(free)} free"
    if free < LEAST_BYTES:
        return fail("output", message, "free some space: a run stops when the disk is full")
    if free < SCARCE_BYTES:
        return warn("output", message, "make sure that the results fit; a full disk stops the run until there is room")
    return ok("output", message)


class _Deployment:
    """One deployment, looked at step by step; a step that fails ends those that rest on it."""

    def __init__(
        self, spec: DeploymentSpec, job: Job, *, clock: Clock, environ: Mapping[str, str], probe: bool
    ) -> None:
        self._spec = spec
        self._job = job
        self._clock = clock
        self._environ = environ
        self._probe = probe
        self._secrets = secrets_of(spec)

    async def examine(self) -> AsyncIterator[Finding]:
        """Look at network, version, credentials, an answer, and what its headers say."""
        spec = self._spec
        try:
            place = address(
                endpoint=spec.endpoint, deployment=spec.deployment, api=spec.api, api_version=spec.api_version
            )
        except ValueError as error:
            yield fail("endpoint", str(error), "mend `endpoint` in the job file")
            return
        network = await self._network(place)
        yield network
        yield version_finding(spec)
        made, credential = await self._credentials(place)
        yield credential
        if network.status is Status.FAIL or made is None:
            return
        async for finding in self._answers(place, made):
            yield finding

    async def _network(self, place: Address) -> Finding:
        try:
            reached = await reach(place.base, ca_bundle=self._spec.ca_bundle, environ=self._environ, clock=self._clock)
        except NotReachedError as error:
            return fail("network", error.problem, error.advice)
        except RefusedError as error:
            return fail("network", str(error), "see docs/identity.md")
        return ok("network", _connection(reached, place))

    async def _credentials(self, place: Address) -> tuple[Credentials | None, Finding]:
        """Have the headers that let a request in; None where there are none to be had."""
        spec = self._spec
        try:
            made = credentials(
                auth=spec.auth,
                address=place,
                key=spec.key.reveal() if spec.key is not None else None,
                token=spec.token.reveal() if spec.token is not None else None,
                scope=spec.scope,
                credential=spec.credential,
                clock=self._clock,
            )
            fixed_headers(spec)
            await made.headers()
        except (RefusedError, NoTokenYetError) as error:
            return None, fail("credentials", str(error), "see docs/identity.md")
        self._secrets = (*self._secrets, *made.secrets)
        return made, self._credential(made, place)

    def _credential(self, made: Credentials, place: Address) -> Finding:
        said = made.used
        if self._spec.auth == "entra":
            said += f", for {self._spec.scope or default_scope(place)}"
        if made.expires_at is None:
            return ok("credentials", said)
        left_s = made.expires_at - self._clock.wall()
        if left_s <= 0:
            return fail(
                "credentials", f"{said}, expired {duration(-left_s)} ago", "have a new token, or use auth: entra"
            )
        said += f", expires in {duration(left_s)}"
        if self._spec.auth == "token" and left_s < TOKEN_S:
            return warn("credentials", said, "nobody renews a fixed token: use auth: entra for longer runs")
        return ok("credentials", said)

    async def _answers(self, place: Address, made: Credentials) -> AsyncIterator[Finding]:
        spec = self._spec
        try:
            transport = default_transport(place.base, connections=1, ca_bundle=spec.ca_bundle, environ=self._environ)
        except RefusedError as error:
            yield fail("network", str(error), "see docs/identity.md")
            return
        async with Wire(transport, clock=self._clock) as wire:
            url = place.url("models")
            listed = await wire.get(url, await self._headers(made), address=None, timeout_s=TIMEOUT_S)
            yield self._listing(listed, place)
            replies = [listed]
            if self._probe:
                call = tiny_call(self._job, target(place, model=spec.model))
                if call is None:
                    yield warn(
                        "probe",
                        f"{self._job.operation} is not tried: it costs too much, or needs a recording",
                        "try the first row: pipeline run --limit 1",
                    )
                else:
                    answered = await wire.send(
                        place.url(call.endpoint),
                        {"content-type": call.content_type, "accept": "*/*", **await self._headers(made)},
                        call.body,
                        timeout_s=TIMEOUT_S,
                    )
                    yield self._answer(answered, f"one {self._job.operation} request")
                    replies.append(answered)
        said = [reply for reply in replies if isinstance(reply, Reply)]
        clocks = (clock_finding(reply, self._clock.wall()) for reply in said)
        for clock in [finding for finding in clocks if finding is not None][:1]:
            yield clock
        if said and said[-1].status < HTTPStatus.MULTIPLE_CHOICES:
            yield quota_finding(spec, rate_limits(said[-1].headers), probed=self._probe)

    async def _headers(self, made: Credentials) -> dict[str, str]:
        return {
            "accept": "application/json",
            **fixed_headers(self._spec),
            **await made.headers(),
            "x-ms-client-request-id": str(uuid4()),
        }

    def _listing(self, reply: Reply | NoReply, place: Address) -> Finding:
        """Judge the list of models: it says whether the credentials and the version are taken, not more."""
        what = "the list of models"
        if isinstance(reply, Reply) and reply.status in {
            HTTPStatus.NOT_FOUND,
            HTTPStatus.METHOD_NOT_ALLOWED,
            HTTPStatus.NOT_IMPLEMENTED,
        }:
            return warn(
                "service",
                f"{what}: {reply.status}: the service, or a gateway before it, does not give one",
                "--probe asks the deployment itself, with one tiny request",
            )
        finding = self._answer(reply, what)
        if finding.status is not Status.OK or place.family is not Family.OPENAI or not isinstance(reply, Reply):
            return finding
        names = _model_names(reply.body)
        if names and self._spec.deployment not in names:
            return warn(
                "service",
                f"{finding.message}; it does not hold {self._spec.deployment}",
                "check `deployment`: here it is the model's id",
            )
        return finding

    def _answer(self, reply: Reply | NoReply, what: str) -> Finding:
        if isinstance(reply, NoReply):
            return fail("service", f"{what}: {reply.message}", "check the network, the proxy and `endpoint`")
        hidden = hider(tuple(self._secrets))
        took = f"{what}: {reply.status} in {reply.latency_ms:.0f} ms"
        if reply.status < HTTPStatus.MULTIPLE_CHOICES:
            region = hidden.ids(reply_ids(reply.headers)).region
            return ok("service", took if region is None else f"{took}, region {region}")
        info = error_info(hidden.reply(reply))
        said = f"{took}: {info.code}: {info.message}"
        ids = hidden.ids(reply_ids(reply.headers))
        identity = ids.apim_request_id or ids.request_id
        said += f" (request {identity})" if identity else ""
        advice = advice_on(reply.status, info.code, auth=self._spec.auth)
        status = Status.WARN if reply.status in {408, 409, 429} or reply.status >= 500 else Status.FAIL  # noqa: PLR2004 - passing
        return Finding(status=status, check="service", message=said, advice=advice)


def advice_on(status: int, code: str, *, auth: str) -> str:
    """Say what to do about a status that is no success."""
    if status == HTTPStatus.UNAUTHORIZED and auth == "entra":
        return _ENTRA_ADVICE
    if status == HTTPStatus.NOT_FOUND and ("deployment" in code.lower() or "model" in code.lower()):
        return "check `deployment`; a new one takes five minutes"
    if status in _ADVICE:
        return _ADVICE[status]
    if 300 <= status < 400:  # noqa: PLR2004 - redirection, by RFC 9110
        return "redirects are never followed: put the final address in `endpoint`"
    if status >= 500:  # noqa: PLR2004 - RFC 9110
        return "the service has trouble; runs try again"
    return "compare the request with docs/operations.md and the model's own limits"


def version_finding(spec: DeploymentSpec) -> Finding:
    """Judge the api-version: stable, the last preview, another preview, or one that nobody has heard of."""
    version = spec.api_version
    if spec.api != "azure":
        said = f"{spec.api}: no api-version needed" if version is None else f"{spec.api}: {version}"
        return ok("api-version", said)
    if version in GENERAL:
        return ok("api-version", f"{version}, generally available")
    if version == LAST_PREVIEW:
        return ok("api-version", f"{version}, the last dated preview")
    advice = f"use {DEFAULT_API_VERSION}, {LAST_PREVIEW} or `api: azure-v1`"
    if version is not None and version.endswith("-preview"):
        return warn("api-version", f"{version}, a preview; previews are withdrawn", advice)
    return warn("api-version", f"{version} is no version known here", advice)


def clock_finding(reply: Reply, wall: float) -> Finding | None:
    """Compare this machine's clock (epoch seconds) with the reply's Date; None where it has none."""
    try:
        date = parsedate_to_datetime(reply.headers.get("date", ""))
    except (ValueError, OverflowError):
        return None
    ahead_s = (datetime.fromtimestamp(wall, UTC) - date.replace(tzinfo=date.tzinfo or UTC)).total_seconds()
    if abs(ahead_s) < SKEW_S:
        return ok("clock", f"within {SKEW_S:.0f} s of the service's")
    which = "ahead of" if ahead_s > 0 else "behind"
    return warn(
        "clock",
        f"this machine's is {duration(abs(ahead_s))} {which} the service's",
        "set it (timedatectl set-ntp true): tokens are renewed by it",
    )


def quota_finding(spec: DeploymentSpec, limits: RateLimits | None, *, probed: bool) -> Finding:
    """Compare the quota that the job states with the one that a reply's headers name."""
    stated = _quota(spec.requests_per_minute, spec.tokens_per_minute)
    named = None if limits is None else _quota(limits.limit_requests, limits.limit_tokens)
    if limits is None or named is None:
        why = "the reply names none" if probed else "the list of models names none (--probe asks for it)"
        if stated is None:
            return ok("quota", f"not stated, and {why}: runs learn it from the replies")
        return ok("quota", f"{stated}, as the job states; {why}")
    pairs = ((spec.requests_per_minute, limits.limit_requests), (spec.tokens_per_minute, limits.limit_tokens))
    if any(said is not None and given is not None and said > given for said, given in pairs):
        return warn(
            "quota",
            f"the job states {stated}, the service allows {named}",
            "lower requests_per_minute or tokens_per_minute; runs keep to the lower figure",
        )
    return ok("quota", f"{named}, as the service says")


def tiny_call(job: Job, aim: Target) -> Call | None:
    """The least that the job's operation can ask; None where that costs cents, or needs a recording."""
    tiny = _TINY.get(job.operation)
    if tiny is None:
        return None
    endpoint, fields = tiny
    body = {**fields, **_borrowed(job)}
    if aim.body_model is not None:
        body["model"] = aim.body_model
    return Call(endpoint=endpoint, body=orjson.dumps(body), tokens=_MOST_TOKENS)


def _borrowed(job: Job) -> dict[str, Any]:
    """Fields of the job's own request that the tiny one needs: models differ in which they take."""
    if job.operation == "chat":
        return {name: _MOST_TOKENS for name in _TOKEN_FIELDS if name in job.request}
    names = {"embeddings": "dimensions", "speech": "voice"}
    value = job.request.get(names.get(job.operation, ""))
    literal = isinstance(value, int) or (isinstance(value, str) and "{" not in value)
    return {names[job.operation]: value} if literal else {}


def _connection(reached: Reached, place: Address) -> str:
    if reached.proxy:
        return (
            f"{place.host}, through the proxy {reached.host}:{reached.port}, connected in {reached.connect_ms:.0f} ms"
        )
    tls = f", {reached.tls}" if reached.tls else ""
    addresses = "1 address" if reached.addresses == 1 else f"{reached.addresses} addresses"
    return f"{place.host}: {addresses}, connected in {reached.connect_ms:.0f} ms{tls}, no proxy"


def _quota(requests: float | None, tokens: float | None) -> str | None:
    said = [f"{value:,.0f} {what}" for value, what in ((requests, "requests"), (tokens, "tokens")) if value is not None]
    return f"{' and '.join(said)} a minute" if said else None


def _model_names(body: bytes) -> set[str]:
    """The ids of a list of models; empty for another body."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return set()
    data = parsed.get("data") if isinstance(parsed, dict) else None
    return (
        {str(one["id"]) for one in data if isinstance(one, dict) and "id" in one} if isinstance(data, list) else set()
    )
