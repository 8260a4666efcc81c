"""The ASGI application: judges the quota, decides what goes wrong, answers, and writes the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.clock import Clock
from pipeline.simulator import refusals
from pipeline.simulator.address import Address, find_address
from pipeline.simulator.base import (
    Answer,
    Asked,
    Failure,
    Family,
    Occasion,
    Operation,
    Place,
    RefusedError,
    bad_request,
)
from pipeline.simulator.config import DeploymentConfig, FaultKind, PoisonRule, Shortage, SimulatorConfig
from pipeline.simulator.faults import Befalling, Faults, latency_s
from pipeline.simulator.ledger import Ledger, body_digest
from pipeline.simulator.limits import LimitWriter
from pipeline.simulator.models import facts_of, serves
from pipeline.simulator.offline.batches import Asking, Desk, LineReply
from pipeline.simulator.offline.routes import Wanted, find_wanted
from pipeline.simulator.offline.service import OfflineService
from pipeline.simulator.operations import find_operations
from pipeline.simulator.operations.images import PICTURES
from pipeline.simulator.pictures import picture_file
from pipeline.simulator.provisioned import Provisioned, Utilization
from pipeline.simulator.quota import Limit, Quota, Verdict
from pipeline.simulator.sending import SILENT, Headers, Line, Receive, Reply, Scope, Send, hand_over, read_body
from pipeline.simulator.stats import Stats

_MOST_OWN_HEADERS = 10
_SDK_HEADERS = b"x-stainless-"  # the official SDKs send nine and more of them, and are let in
_USUAL_HEADERS = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"api-key",
        b"authorization",
        b"connection",
        b"content-length",
        b"content-type",
        b"date",
        b"expect",
        b"host",
        b"transfer-encoding",
        b"user-agent",
    }
)
_MOST_KNOWN_ADDRESSES = 10_000
_LEAST_REFUSAL = 300  # a poison rule's status below it filters the answer instead of the request
_MODELS = ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "text-embedding-3-small", "text-embedding-3-large")
_CREATED_S = 1_735_689_600  # when every listed model says that it was made
_SPILLED = frozenset({429, 500, 503})  # what provisioned throughput hands on to the deployment behind it
_JUDGES = {Limit.CALL: "requests", Limit.TOKEN: "tokens"}


@dataclass(slots=True, kw_only=True)
class _Deployment:
    """A deployment that was asked for, and its counters."""

    name: str
    config: DeploymentConfig
    quota: Quota | None
    provisioned: Provisioned | None
    places: dict[tuple[Family, str | None, str], Place] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """What a request's own headers say."""

    key: str | None
    client_request_id: bytes | None
    own_headers: int
    content_type: str
    spillover: str | None


@dataclass(slots=True, kw_only=True)
class _Case:
    """One request, and what has been found out about it so far. `spilled_from` names who could not take it."""

    seq: int
    address: Address
    sent: _Sent
    origin: str
    digest: bytes = b""
    place: Place | None = None
    asked: Asked | None = None
    verdict: Verdict | None = None
    utilization: Utilization | None = None
    admitted_by: _Deployment | None = None
    tokens: int = 0
    refused_by: str | None = None
    spilled_from: str | None = None
    served_by: str | None = None


class Simulator:
    """The ASGI application. `instance` makes this start's request ids unlike any other's: 8 hex digits."""

    def __init__(
        self, config: SimulatorConfig, *, clock: Clock, ledger: Ledger | None = None, instance: str = "00000000"
    ) -> None:
        self._config = config
        self._clock = clock
        self._ledger = ledger
        self._keys = frozenset(config.keys)
        self._faults = Faults(config.faults, seed=config.seed)
        self._limits = LimitWriter(speed=config.speed, quirks=config.quirks)
        self._operations = find_operations(config)
        self._addresses: dict[tuple[str, bytes], Address | None] = {}
        self._deployments: dict[str, _Deployment] = {}
        self._changes = sorted(config.schedule, key=lambda change: change.at_s)
        self._first_request_s: float | None = None
        self._offline = OfflineService(
            config,
            clock=clock,
            desk=Desk(
                deployment=self._deployment_config,
                answer=self._answer_line,
                prompts=self._line_texts,
                note=self._note,
            ),
        )
        self._stats = Stats()
        self._seq = 0
        self._instance = instance.encode()
        self._date = (0, b"")
        self._region = config.region.encode()
        methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
        self._rest = Starlette(
            routes=[
                Route("/_simulator/stats", self._show_stats),
                Route(PICTURES + "{name}", self._show_picture),
                Route("/openai/models", self._list_models),
                Route("/openai/v1/models", self._list_models),
                Route("/v1/models", self._list_models),
                Route("/{path:path}", self._show_nothing, methods=methods),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. The operations are found in a table of our own, which costs a tenth of a router."""
        if scope["type"] == "http":
            line = Line(scope=scope, receive=receive, send=send, clock=self._clock)
            address = self._address(scope["path"], scope["query_string"]) if scope["method"] == "POST" else None
            if address is not None:
                await self._serve(address, line)
                return
            wanted = find_wanted(scope["path"], scope["query_string"].decode("latin-1"), scope["method"])
            if wanted is not None:
                await self._serve_kept(wanted, line)
                return
        await self._rest(scope, receive, send)

    async def _serve(self, address: Address, line: Line) -> None:
        body = await read_body(line.receive)
        if body is None:
            return
        self._seq += 1
        host, port = line.scope["server"]
        case = _Case(
            seq=self._seq,
            address=address,
            sent=_read_headers(line.scope["headers"]),
            origin=f"http://{host}:{port}",
        )
        self._stats.arrived()
        try:
            reply = await self._decide(case, body)
            sent_bytes = await hand_over(reply, line)
            self._settle(case, output_tokens=reply.answer.output_tokens)
        except Exception:
            self._close_entry(case, status=None, fault="defect")
            raise
        fault = reply.fault or ((case.refused_by or "status") if reply.injected else None)
        if fault is None and line.transport.is_closing():
            fault = "client_gone"
        status = None if reply.fault in SILENT else reply.status
        self._close_entry(case, status=status, fault=fault, sent_bytes=sent_bytes)

    # Files, batches and fine-tuning jobs

    def resume(self) -> None:
        """Go on with batches and jobs that an earlier process left in the folder; needs a running event loop."""
        self._offline.resume()

    async def _serve_kept(self, wanted: Wanted, line: Line) -> None:
        body = await read_body(line.receive)
        if body is None:
            return
        self._seq += 1
        seq, sent = self._seq, _read_headers(line.scope["headers"])
        self._stats.arrived()
        if self._ledger is not None:
            self._ledger.arrived(
                seq=seq,
                t=self._clock.wall(),
                op=wanted.action,
                deployment="",
                digest=body_digest(body).hex(),
                keys=() if wanted.name is None else (wanted.name,),
                client_request_id=None if sent.client_request_id is None else sent.client_request_id.decode("latin-1"),
            )
        try:
            if not sent.key or (self._keys and sent.key not in self._keys):
                raise refusals.unauthorized(wanted.family)
            reply = await self._offline.serve(wanted, body, sent.content_type)
        except RefusedError as refused:
            reply = Reply(status=refused.status, headers=_encoded(refused.headers), answer=Answer(body=refused.body))
        own = self._identity_headers(wanted.family, seq, sent, place=None, admitted=True)
        sent_bytes = await hand_over(replace(reply, headers=own + reply.headers), line)
        fault = reply.fault or ("status" if reply.injected else None)
        status = None if reply.fault in SILENT else reply.status
        self._stats.answered(status)
        if self._ledger is not None:
            self._ledger.answered(
                seq=seq, t=self._clock.wall(), status=status, tokens=0, fault=fault, sent_bytes=sent_bytes
            )

    def _deployment_config(self, resource: str, name: str) -> DeploymentConfig | None:
        deployments = self._config.deployments
        found = deployments.get(f"{resource}/{name}") or deployments.get(name)
        return found if found is not None or deployments else DeploymentConfig()

    async def _answer_line(self, asking: Asking, values: Mapping[str, Any], body: bytes) -> LineReply:
        """Answer a line of a batch as a call of its own; its quota is another one. Raises RefusedError."""
        case = self._line_case(asking)
        case.digest = body_digest(body)
        if values.get("stream"):
            raise bad_request("Streaming is not available in batches.", param="stream")
        case.asked = self._read_line(case, values)
        answer = await self._ask(case)
        return LineReply(status=200, body=answer.body, keys=case.asked.keys)

    def _line_texts(self, asking: Asking, values: Mapping[str, Any]) -> tuple[str, ...]:
        return self._read_line(self._line_case(asking), values).texts

    def _line_case(self, asking: Asking) -> _Case:
        address = Address(
            family=asking.family,
            operation=self._operations[asking.operation],
            resource=asking.resource,
            deployment=None,
            api_version=None,
            refusal=None,
        )
        sent = _Sent(key=None, client_request_id=None, own_headers=0, content_type="", spillover=None)
        return _Case(seq=0, address=address, sent=sent, origin="")

    def _read_line(self, case: _Case, values: Mapping[str, Any]) -> Asked:
        name = str(values.get("model"))
        self._put(case, self._deployment(case.address, name), name, values)
        assert case.asked is not None  # noqa: S101 - it was read
        return case.asked

    def _note(self, what: str, name: str, **details: Any) -> None:
        if self._ledger is not None:
            self._ledger.noted(t=self._clock.wall(), what=what, name=name, details=details)

    # What is answered, in the order in which the gateway and then the model look at a request

    async def _decide(self, case: _Case, body: bytes) -> Reply:
        try:
            deployment = self._read(case, body)
        except RefusedError as refused:
            return self._refusal(case, refused)
        reply = await self._reply(case, deployment)
        target = self._spillover(case, deployment) if reply.status in _SPILLED else None
        return reply if target is None else await self._spill(case, reply, deployment, target)

    async def _reply(self, case: _Case, deployment: _Deployment) -> Reply:
        """Judge and answer a request that was read."""
        try:
            self._judge(case, deployment)
            return await self._answer(case, deployment)
        except RefusedError as refused:
            return self._refusal(case, refused)

    def _refusal(self, case: _Case, refused: RefusedError) -> Reply:
        headers = self._headers(case) + _encoded(refused.headers)
        return Reply(status=refused.status, headers=headers, answer=Answer(body=refused.body))

    def _spillover(self, case: _Case, deployment: _Deployment) -> str | None:
        """Name the deployment that takes what provisioned throughput cannot: the request's own wish goes first."""
        provisioned = deployment.config.provisioned
        return None if provisioned is None else case.sent.spillover or provisioned.spillover

    async def _spill(self, case: _Case, reply: Reply, deployment: _Deployment, target: str) -> Reply:
        """Ask the other deployment; where it cannot either, the first reply is given, with the other's status."""
        second = _Case(seq=case.seq, address=case.address, sent=case.sent, origin=case.origin, digest=case.digest)
        second.spilled_from = deployment.name
        self._settle(case, output_tokens=0)
        try:
            standard = self._deployment(case.address, target)
            self._put(second, standard, target, case.asked.body if case.asked is not None else {})
        except RefusedError as refused:
            other = self._refusal(second, refused)
        else:
            other = await self._reply(second, standard)
        if other.status >= _LEAST_REFUSAL:
            return replace(reply, headers=[*reply.headers, (b"x-ms-spillover-error", b"%d" % other.status)])
        case.tokens, case.asked, case.admitted_by = second.tokens, second.asked, second.admitted_by
        case.refused_by, case.served_by = second.refused_by, target
        return other

    def _read(self, case: _Case, body: bytes) -> _Deployment:
        """Check key, address and body, and open the ledger's entry, whatever comes of it. Raises RefusedError."""
        address = case.address
        try:
            if not case.sent.key or (self._keys and case.sent.key not in self._keys):
                raise refusals.unauthorized(address.family)
            if case.sent.own_headers > _MOST_OWN_HEADERS and address.family.azure:
                raise refusals.too_many_headers()
            if address.refusal is not None:
                raise address.refusal
            values = address.operation.decode(body, case.sent.content_type)
            case.digest = address.operation.digest(body, values)
            name = address.deployment or values.get("model")
            if not isinstance(name, str) or not name:
                raise refusals.no_model()
            deployment = self._deployment(address, name)
            if deployment.config.batch == "only":
                raise bad_request(f"The deployment {name} is for batches alone.", code="OperationNotSupported")
            self._put(case, deployment, name, values)
        finally:
            case.digest = case.digest or body_digest(body)
            self._open_entry(case)
        return deployment

    def _put(self, case: _Case, deployment: _Deployment, name: str, values: Mapping[str, Any]) -> None:
        """Read a body as the model behind a deployment does. Raises RefusedError."""
        operation = case.address.operation
        case.place = self._place(deployment, case.address, name)
        if not serves(case.place.model, operation.name):
            raise refusals.wrong_model(operation, case.place)
        case.asked = operation.read(values, case.place)

    def _judge(self, case: _Case, deployment: _Deployment) -> None:
        """Charge the quota or the utilization. Raises RefusedError when it is used up."""
        now_s = self._clock.now()
        if self._first_request_s is None:
            self._first_request_s = now_s
        run_s = now_s - self._first_request_s
        self._change_quotas(run_s)
        tokens = case.asked.tokens if case.asked is not None else 0
        quota_s = now_s * self._config.speed
        if deployment.quota is not None:
            case.verdict = deployment.quota.judge(quota_s, tokens)
            case.refused_by = _JUDGES.get(case.verdict.exceeded) if case.verdict.exceeded else None
        elif deployment.provisioned is not None:
            case.utilization = deployment.provisioned.judge(quota_s, tokens)
            case.refused_by = "utilization" if case.utilization.refused else None
        self._stats.judged(deployment.name, run_s, tokens=tokens, throttled=case.refused_by is not None)
        if case.refused_by is not None:
            raise self._throttled(case, tokens)
        case.tokens = tokens
        case.admitted_by = deployment

    def _throttled(self, case: _Case, tokens: int) -> RefusedError:
        """Say that the quota or the utilization has no room for a request, and until when."""
        wall_s = self._clock.wall()
        if case.utilization is not None:
            wait_s = case.utilization.retry_after_s / self._config.speed
            return refusals.utilized(case.utilization, wait_s=wait_s, waits=self._limits.waits(wait_s, wall_s=wall_s))
        if case.verdict is None or case.place is None:
            raise AssertionError("a request is judged before it is refused for its quota")
        wait_s = case.verdict.retry_after_s / self._config.speed
        return refusals.throttled(
            case.address.operation,
            case.place,
            case.verdict,
            wait_s=wait_s,
            tokens=tokens,
            waits=self._limits.waits(wait_s, wall_s=wall_s),
        )

    def _befalls(self, case: _Case) -> Befalling | None:
        """Say what goes wrong with a request that was admitted; flex machines are missed by those alone who ask."""
        fault = self._faults.befalls(case.digest)
        if fault is Shortage.FLEX_UNAVAILABLE and (case.asked is None or case.asked.body.get("service_tier") != "flex"):
            return None
        return fault

    def _run_short(self, case: _Case, deployment: _Deployment, shortage: Shortage) -> Answer:
        """Refuse an admitted request for want of machines or money; it keeps its charge where that is configured."""
        case.refused_by = shortage.value
        if not self._config.faults.charge_shortages:
            if deployment.quota is not None and case.verdict is not None:
                case.verdict = deployment.quota.give_back(case.verdict, case.tokens)
            if deployment.provisioned is not None:
                deployment.provisioned.settle(self._quota_s(), estimated=case.tokens, taken=0)
            case.tokens, case.admitted_by = 0, None
        return Answer(body=refusals.short(shortage).body)

    def _settle(self, case: _Case, *, output_tokens: int) -> None:
        """Set provisioned throughput right when a call ends, by what was answered."""
        deployment, asked = case.admitted_by, case.asked
        if deployment is None or deployment.provisioned is None or asked is None:
            return
        deployment.provisioned.settle(self._quota_s(), estimated=asked.answer_tokens, taken=output_tokens)
        case.admitted_by = None

    def _quota_s(self) -> float:
        return self._clock.now() * self._config.speed

    async def _answer(self, case: _Case, deployment: _Deployment) -> Reply:
        """Answer, or fail, as the configuration has it. Raises RefusedError for a poisoned text."""
        config = self._config
        fault = self._befalls(case)
        if isinstance(fault, Shortage):
            answer = self._run_short(case, deployment, fault)
            headers = self._headers(case, extra=_encoded(self._faults.headers(fault)))
        elif isinstance(fault, int):
            answer = Answer(body=refusals.injected(fault).body)
            headers = self._headers(case, extra=_encoded(self._faults.headers(fault)))
        else:
            answer = await self._ask(case)
            headers = self._headers(case)
            if fault is FaultKind.ERROR_EVENT and not answer.events:
                fault = None
        first_byte_s, output_s = latency_s(
            config.latency, seed=config.seed, digest=case.digest, output_tokens=answer.output_tokens
        )
        status = 429 if isinstance(fault, Shortage) else fault if isinstance(fault, int) else 200
        return Reply(
            status=status,
            headers=headers,
            answer=answer,
            first_byte_s=first_byte_s,
            output_s=output_s,
            fault=fault if isinstance(fault, FaultKind) else None,
            injected=isinstance(fault, int | Shortage),
            place=self._faults.place(case.digest) if fault is not None else 0.0,
            drip_interval_s=config.faults.drip_interval_s,
        )

    async def _ask(self, case: _Case) -> Answer:
        operation, asked, place = case.address.operation, case.asked, case.place
        if asked is None or place is None:
            raise AssertionError("a request is read before it is answered")
        rule = self._refuse_poison(operation, asked)
        failure = None
        if rule is not None and operation.can_fail and rule.code != "content_filter":
            failure = Failure(code=rule.code, message=rule.message or "The model failed to generate a response.")
        occasion = Occasion(
            created_s=int(self._clock.wall()),
            filtered=rule is not None and failure is None,
            failure=failure,
            origin=case.origin,
        )
        if operation.slow(asked, place):
            return await asyncio.to_thread(operation.answer, asked, place, occasion)
        return operation.answer(asked, place, occasion)

    def _refuse_poison(self, operation: Operation, asked: Asked) -> PoisonRule | None:
        """Raise RefusedError for a poisoned text; give the rule that spoils the answer, if any."""
        for rule in self._config.poison:
            index = next((index for index, text in enumerate(asked.texts) if rule.contains in text), None)
            if index is None:
                continue
            if rule.status < _LEAST_REFUSAL:
                return rule
            raise refusals.poisoned(rule, operation, index=index, quirks=self._config.quirks)
        return None

    # Deployments and their quotas

    def _deployment(self, address: Address, name: str) -> _Deployment:
        for known_as in (f"{address.resource}/{name}" if address.resource else name, name):
            found = self._deployments.get(known_as)
            if found is not None:
                return found
            config = self._config.deployments.get(known_as)
            if config is not None:
                return self._open(known_as, config)
        if self._config.deployments:
            raise refusals.no_deployment(address.family, name)
        return self._open(name, DeploymentConfig())

    def _open(self, name: str, config: DeploymentConfig) -> _Deployment:
        quota = None
        limited = config.requests_per_minute is not None or config.tokens_per_minute is not None
        if limited or any(change.deployment == name for change in self._config.schedule):
            # a slice is as long in real time however fast quota time runs: a client's timers do not run faster
            quota = Quota(
                requests_per_minute=config.requests_per_minute,
                tokens_per_minute=config.tokens_per_minute,
                request_window_s=config.request_window_s * max(1.0, self._config.speed),
            )
        given = config.provisioned
        provisioned = None
        if given is not None:
            provisioned = Provisioned(tokens_per_minute=given.tokens_per_minute, bucket_s=given.bucket_s)
        opened = self._deployments[name] = _Deployment(name=name, config=config, quota=quota, provisioned=provisioned)
        return opened

    def _place(self, deployment: _Deployment, address: Address, name: str) -> Place:
        key = (address.family, address.api_version, name)
        place = deployment.places.get(key)
        if place is None:
            model = deployment.config.model or name
            facts = facts_of(model)
            place = deployment.places[key] = Place(
                family=address.family,
                api_version=address.api_version,
                deployment=name,
                model=model,
                facts=facts,
                dimensions=deployment.config.dimensions or facts.dimensions,
                cost=deployment.config.cost.cost(model),
            )
        return place

    def _change_quotas(self, run_s: float) -> None:
        while self._changes and run_s >= self._changes[0].at_s:
            change = self._changes.pop(0)
            name = change.deployment
            config = self._config.deployments.get(name, DeploymentConfig())
            quota = (self._deployments.get(name) or self._open(name, config)).quota
            if quota is not None:
                quota.change(requests_per_minute=change.requests_per_minute, tokens_per_minute=change.tokens_per_minute)

    # Headers

    def _headers(self, case: _Case, *, extra: Iterable[tuple[bytes, bytes]] = ()) -> Headers:
        family = case.address.family
        headers: Headers = [*extra]
        if not any(name == b"date" for name, _ in headers):
            headers.append((b"date", self._now_date()))
        admitted = case.admitted_by is not None
        headers += self._identity_headers(family, case.seq, case.sent, place=case.place, admitted=admitted)
        if case.verdict is not None:
            headers += self._limits.limits(case.verdict, azure=family.azure)
        if case.utilization is not None:
            headers.append((b"azure-openai-deployment-utilization", b"%.1f%%" % (100 * case.utilization.share)))
        if case.spilled_from is not None:
            headers.append((b"x-ms-spillover-from-deployment", case.spilled_from.encode()))
        return headers

    def _identity_headers(
        self, family: Family, seq: int, sent: _Sent, *, place: Place | None, admitted: bool
    ) -> Headers:
        headers: Headers = []
        if family.azure:
            headers += [
                (b"apim-request-id", b"%b-0000-4000-8000-%012x" % (self._instance, seq)),
                (b"x-ms-client-request-id", sent.client_request_id or b"Not-Set"),
                (b"x-ms-region", self._region),
                (b"strict-transport-security", b"max-age=31536000; includeSubDomains; preload"),
                (b"x-content-type-options", b"nosniff"),
            ]
            if place is not None:
                headers.append((b"x-ms-deployment-name", place.deployment.encode()))
            if admitted:
                headers.append((b"x-request-id", b"%b-0000-4000-9000-%012x" % (self._instance, seq)))
        else:
            headers += [
                (b"x-request-id", b"req_%b%024x" % (self._instance, seq)),
                (b"openai-processing-ms", b"1"),
                (b"openai-version", b"2020-10-01"),
            ]
            if place is not None:
                headers.append((b"openai-model", place.model.encode()))
        return headers

    def _now_date(self) -> bytes:
        second = int(self._clock.wall())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]

    # The witness

    def _open_entry(self, case: _Case) -> None:
        if self._ledger is None:
            return
        client_request_id = case.sent.client_request_id
        self._ledger.arrived(
            seq=case.seq,
            t=self._clock.wall(),
            op=case.address.operation.name,
            deployment=case.place.deployment if case.place is not None else case.address.deployment or "",
            digest=case.digest.hex(),
            keys=case.asked.keys if case.asked is not None else (),
            client_request_id=client_request_id.decode("latin-1") if client_request_id is not None else None,
        )

    def _close_entry(
        self, case: _Case, *, status: int | None, fault: str | None, sent_bytes: int | None = None
    ) -> None:
        self._stats.answered(status)
        if self._ledger is not None:
            self._ledger.answered(
                seq=case.seq,
                t=self._clock.wall(),
                status=status,
                tokens=case.tokens,
                fault=fault,
                sent_bytes=sent_bytes,
                refused_by=case.refused_by,
                served_by=case.served_by,
            )

    # The rest

    def _address(self, path: str, query: bytes) -> Address | None:
        key = (path, query)
        try:
            return self._addresses[key]
        except KeyError:
            if len(self._addresses) >= _MOST_KNOWN_ADDRESSES:
                self._addresses.clear()
            found = self._addresses[key] = find_address(path, query.decode("latin-1"), self._operations)
            return found

    async def _show_stats(self, request: Request) -> Response:  # noqa: ARG002 - Starlette's
        return Response(orjson.dumps(self._stats.summary()), media_type="application/json")

    async def _list_models(self, request: Request) -> Response:
        azure = request.url.path.startswith("/openai")
        sent = _read_headers(request.scope["headers"])
        if not sent.key or (self._keys and sent.key not in self._keys):
            refused = refusals.unauthorized(Family.V1 if azure else Family.OPENAI)
            return Response(refused.body, refused.status, media_type="application/json")
        deployments = self._config.deployments.items()
        names = sorted({config.model or name for name, config in deployments}) or list(_MODELS)
        created = "created_at" if azure else "created"
        models = [{"id": name, "object": "model", created: _CREATED_S, "owned_by": "system"} for name in names]
        return Response(orjson.dumps({"object": "list", "data": models}), media_type="application/json")

    async def _show_picture(self, request: Request) -> Response:
        found = picture_file(request.path_params["name"])
        if found is None:
            return Response("", 404)
        content, media_type = found
        return Response(content, media_type=media_type)

    async def _show_nothing(self, request: Request) -> Response:  # noqa: ARG002 - Starlette's
        refused = refusals.not_found()
        return Response(refused.body, refused.status, media_type="application/json")


def _read_headers(headers: Iterable[tuple[bytes, bytes]]) -> _Sent:
    key = None
    client_request_id = None
    own = 0
    content_type = ""
    spillover = None
    for name, value in headers:
        if name == b"api-key":
            key = value.decode("latin-1").strip()
        elif name == b"authorization":
            scheme, _, credential = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                key = key or credential.strip()
        elif name == b"content-type":
            content_type = value.decode("latin-1")
        elif name not in _USUAL_HEADERS and not name.startswith(_SDK_HEADERS):
            own += 1
            if name == b"x-ms-client-request-id":
                client_request_id = value
            elif name == b"x-ms-spillover-deployment":
                spillover = value.decode("latin-1").strip() or None
    return _Sent(
        key=key,
        client_request_id=client_request_id,
        own_headers=own,
        content_type=content_type,
        spillover=spillover,
    )


def _encoded(headers: Mapping[str, str]) -> Headers:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]
