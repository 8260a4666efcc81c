"""A model of Azure's admission, in whatever time its clock tells, and workers that send to it as the lane does."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import httpx

from pipeline.clock import Clock
from pipeline.errors import NoTokenYetError, PipelineError, RefusedError
from pipeline.model import Call
from pipeline.pace.admission import Admission
from pipeline.pace.retry import Done, Fail, History, Retry, RetryRules, decide
from pipeline.pace.verdict import Answered, BadReply, RowRefused, Throttled, Transient, Verdict
from pipeline.service.address import address, target
from pipeline.service.auth import Credentials
from pipeline.service.classify import classify
from pipeline.service.deployment import Deployment, DeploymentReport, Exchange
from pipeline.service.pool import Pool
from pipeline.service.wire import Wire

MINUTE_S = 60.0
WAY_S = 0.02
"""Seconds from us to the service, and back."""


@dataclass(kw_only=True)
class Quota:
    """What a modelled deployment allows: requests in slices of a second or one request's share, tokens in a sliding
    minute. `utilization` instead drains tokens steadily from a bucket of ten seconds, as provisioned throughput does.
    """

    requests_per_minute: float = math.inf
    tokens_per_minute: float = math.inf
    utilization: bool = False


@dataclass(kw_only=True)
class Azure(httpx.AsyncBaseTransport):
    """One modelled deployment. `charge` turns the tokens that a request is estimated at into what is counted.

    `others` is how many tokens a minute somebody else uses. `changes` are quotas from moments on. `fault` may answer
    instead; its answers are the injected ones, and count as requests of no tokens. `names_limits` says whether replies
    hold x-ratelimit headers, and answers of provisioned throughput its utilization.
    `counted` are the moments and tokens of what was counted.
    """

    clock: Clock
    quota: Quota
    charge: Callable[[int], int] = lambda tokens: tokens
    changes: list[tuple[float, Quota]] = field(default_factory=list)
    fault: Callable[[float], httpx.Response | Exception | None] = lambda _: None
    names_limits: bool = True
    others: int = 0
    latency_s: float = 1.5
    seed: int = 1
    calls: int = 0
    injected: int = 0
    refused: int = 0
    counted: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = self.clock.now()
        self._chance = random.Random(self.seed)
        self._slice = -1
        self._in_slice = 0
        self._minute: deque[tuple[float, int]] = deque()
        self._spent = 0
        self._level, self._level_at = 0.0, self.clock.now()
        self._others_at = self.clock.now() - MINUTE_S

    def fill(self, tokens: int, *, ago_s: float) -> None:
        """Have others use tokens of the first minute, so long before it began."""
        self._minute.append((self.began - ago_s, tokens))
        self._spent += tokens

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        tokens = int(await request.aread())
        await self.clock.sleep(WAY_S + self._chance.expovariate(1 / 0.002))
        answer = self._judge(self.clock.now(), tokens)
        taken_s = WAY_S
        if isinstance(answer, httpx.Response) and answer.status_code == 200:
            taken_s += self.latency_s * self._chance.lognormvariate(0, 0.3)
        await self.clock.sleep(taken_s)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def available(self, begin: float, end: float) -> tuple[float, float]:
        """Requests and tokens that the quota allowed between two moments since the beginning."""
        steps = [(0.0, self.quota), *self.changes, (math.inf, self.quota)]
        requests = tokens = 0.0
        for (at, quota), (until, _) in pairwise(steps):
            spent = max(0.0, min(end, until) - max(begin, at)) / MINUTE_S
            if spent:
                requests += quota.requests_per_minute * spent
                tokens += (quota.tokens_per_minute - self.others) * spent
        return requests, tokens

    def _judge(self, now: float, tokens: int) -> httpx.Response | Exception:
        self.calls += 1
        since = now - self.began
        said = self.fault(since)
        if said is not None:
            self.injected += 1
            self._in_slice += 1
            self.counted.append((since, 0))
            return said
        quota = self.quota
        for at, changed in self.changes:
            quota = changed if since >= at else quota
        charged = self.charge(tokens)
        if quota.utilization:
            return self._utilized(now, charged, quota)
        return self._limited(now, charged, quota)

    def _limited(self, now: float, charged: int, quota: Quota) -> httpx.Response:
        limit, span_s = quota.requests_per_minute, max(1.0, MINUTE_S / quota.requests_per_minute)
        number = int(now // span_s)
        if number != self._slice:
            self._slice, self._in_slice = number, 0
        while self.others and self._others_at < now:
            self._others_at += 1.0
            self._minute.append((self._others_at, self.others // 60))
            self._spent += self.others // 60
        while self._minute and self._minute[0][0] <= now - MINUTE_S:
            self._spent -= self._minute.popleft()[1]
        self._in_slice += 1
        exceeded, wait_s = "", 0.0
        if self._in_slice > math.ceil(limit * span_s / MINUTE_S - 1e-9):
            exceeded, wait_s = "call", (number + 1) * span_s - now
        elif self._spent + charged > quota.tokens_per_minute:
            surplus = self._spent + charged - quota.tokens_per_minute
            for at, spent in self._minute:
                surplus -= spent
                if surplus <= 0:
                    exceeded, wait_s = "token", at + MINUTE_S - now
                    break
        if not exceeded:
            self._minute.append((now, charged))
            self._spent += charged
            self.counted.append((now - self.began, charged))
            return httpx.Response(200, headers=self._headers(quota))
        self.refused += 1
        message = f"Requests have exceeded {exceeded} rate limit of your current tier."
        headers = {"retry-after": str(math.ceil(wait_s)), **self._headers(quota)}
        return httpx.Response(429, headers=headers, json={"error": {"code": "429", "message": message}})

    def _utilized(self, now: float, charged: int, quota: Quota) -> httpx.Response:
        rate = quota.tokens_per_minute / MINUTE_S
        self._level = max(0.0, self._level - rate * (now - self._level_at))
        self._level_at = now
        full = 10 * rate
        utilization = {"azure-openai-deployment-utilization": f"{100 * self._level / full:.1f}%"}
        headers = utilization if self.names_limits else {}
        if self._level >= full:
            self.refused += 1
            headers = {**utilization}
            headers["retry-after-ms"] = str(math.ceil(1000 * (self._level - full) / rate) + 1)
            return httpx.Response(429, headers=headers, json={"error": {"code": "429", "message": "Too busy."}})
        self._level += charged
        self.counted.append((now - self.began, charged))
        return httpx.Response(200, headers=headers)

    def _headers(self, quota: Quota) -> dict[str, str]:
        if not self.names_limits:
            return {}
        named = {}
        if math.isfinite(quota.requests_per_minute):
            named["x-ratelimit-limit-requests"] = f"{quota.requests_per_minute:.0f}"
            left = max(0, math.ceil(quota.requests_per_minute / 60) - self._in_slice)
            named["x-ratelimit-remaining-requests"] = str(left)
        if math.isfinite(quota.tokens_per_minute):
            named["x-ratelimit-limit-tokens"] = f"{quota.tokens_per_minute:.0f}"
            named["x-ratelimit-remaining-tokens"] = f"{max(0, quota.tokens_per_minute - self._spent):.0f}"
        return named


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a job file says of a deployment."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    priority: int = 0
    leave: float = 0.0


def open_deployment(
    name: str, azure: Azure, stated: Stated, *, clock: Clock, workers: int, credentials: Credentials | None = None
) -> Deployment:
    """Make a deployment that sends to a modelled one."""
    place = address(endpoint=f"https://{name}.openai.azure.com", deployment=name, api="azure", api_version="v")
    return Deployment(
        name=name,
        target=target(place, model="m"),
        address=place,
        wire=Wire(azure, clock=clock, owned=False),
        credentials=credentials or Credentials({}),
        admission=Admission(
            requests_per_minute=stated.requests_per_minute,
            tokens_per_minute=stated.tokens_per_minute,
            leave=stated.leave,
        ),
        headers={},
        timeout_s=300.0,
        priority=stated.priority,
        max_inputs=None,
        workers=workers,
        clock=clock,
        random=random.Random(2).random,
    )


@dataclass(kw_only=True)
class Ran:
    """What a run came to: moments are seconds since it began, `failed` and `left` count rows."""

    seconds: float
    rows: int
    failed: int
    left: int
    reports: tuple[DeploymentReport, ...]
    ended: PipelineError | None


@dataclass(kw_only=True)
class Workers:
    """So many workers, each with one row in hand, that do what the lane does between a row and its commit."""

    pool: Pool
    clock: Clock
    count: int = 64
    rules: RetryRules = field(default_factory=RetryRules)
    rows: int = 0
    failed: int = 0
    ended: PipelineError | None = None
    decisions: list[str] = field(default_factory=list)

    async def run(self, costs: Sequence[int]) -> Ran:
        """Send a row of each cost."""
        began = self.clock.now()
        self._chance = random.Random(3).random
        todo = iter(costs)
        await asyncio.gather(*(self._work(todo) for _ in range(self.count)))
        return Ran(
            seconds=self.clock.now() - began,
            rows=self.rows,
            failed=self.failed,
            left=len(costs) - self.rows - self.failed,
            reports=tuple(one.report() for one in self.pool.deployments),
            ended=self.ended,
        )

    async def _work(self, todo: Iterator[int]) -> None:
        for tokens in todo:
            if self.ended is not None:
                return
            try:
                done = await self._ask(Call(endpoint="chat/completions", body=str(tokens).encode(), tokens=tokens))
            except PipelineError as error:
                self.ended = self.ended or error
                return
            self.rows += done
            self.failed += not done

    async def _ask(self, call: Call) -> bool:
        history, again, retry = History(), False, False
        while True:
            if self.ended is not None:
                raise self.ended
            deployment = self.pool.pick(call.tokens)
            if not await deployment.leave(call.tokens, again=again, retry=retry):
                continue
            exchange = await self._send(deployment, call)
            if exchange is None:
                continue
            verdict = classify(exchange.reply)
            again, retry = True, isinstance(verdict, Transient | BadReply)
            history = history.after(verdict)
            explained = self._tell(deployment, exchange, verdict)
            if deployment.outage.on:
                history = History()
            decision = decide(verdict, history, self.rules, random=self._chance)
            self.decisions.append(f"{self.clock.now():.6f} {deployment.name} {decision}")
            match decision:
                case Done():
                    return True
                case Fail() if not explained:
                    return False
                case Fail():
                    await self.clock.sleep(15 + 15 * self._chance())
                case Retry(after_s=after_s):
                    await self.clock.sleep(after_s)
                case notice:
                    await self.pool.heed(deployment, notice, exchange)

    async def _send(self, deployment: Deployment, call: Call) -> Exchange | None:
        try:
            return await deployment.send(call)
        except RefusedError as error:
            self.pool.without_credential(deployment, error)
        except NoTokenYetError as error:
            self.pool.without_token_yet(deployment, error)
        return None

    def _tell(self, deployment: Deployment, exchange: Exchange, verdict: Verdict) -> bool:
        if isinstance(verdict, Answered | RowRefused):
            self.pool.answered(deployment, exchange)
        elif isinstance(verdict, Transient | Throttled):
            return self.pool.failed(deployment, exchange, "fault", throttled=isinstance(verdict, Throttled))
        return False
