"""Who refuses a request and why, over real sockets, by the replies and by the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.clock import Clock
from pipeline.simulator.app import Simulator
from pipeline.simulator.config import Quirk, Shortage, make_config
from pipeline.simulator.ledger import Answered, Ledger, read_ledger
from pipeline.testing import ManualClock

CLASSIC = "/openai/deployments/{}/chat/completions?api-version=2024-10-21"
V1 = "/openai/v1/chat/completions"
BUSY = {"provisioned": {"tokens_per_minute": 6_000, "bucket_s": 10}}  # 1,000 tokens are 100 %
SPILLING = {"provisioned": {**BUSY["provisioned"], "spillover": "std"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A simulator in virtual time, and what it noted."""

    http: httpx.AsyncClient
    ledger: Ledger
    path: Path

    async def ask(self, text: str, *, at: str = CLASSIC.format("d"), **body: object) -> httpx.Response:
        headers = body.pop("headers", {})
        messages = [{"role": "user", "content": text}]
        return await self.http.post(at, json={"messages": messages, **body}, headers=headers)  # type: ignore[arg-type]

    def noted(self) -> list[Answered]:
        self.ledger.flush()
        return [entry for entry in read_ledger(self.path) if isinstance(entry, Answered)]


class _Transport:
    """What is under a connection that nobody closes."""

    def is_closing(self) -> bool:
        return False


@asynccontextmanager
async def serving(folder: Path, config: dict[str, Any], clock: Clock | None = None) -> AsyncIterator[Served]:
    """Serve in this process: the simulator's own time stands still unless it is turned."""
    path = folder / "ledger.jsonl"
    ledger = Ledger(path, now_s=0.0, later=asyncio.get_running_loop().call_soon)
    app = Simulator(make_config({"vectors": "hash"} | config), clock=clock or ManualClock(), ledger=ledger)

    async def on_a_connection(scope: Any, receive: Any, send: Any) -> None:
        scope["extensions"] = {"pipeline.transport": {"transport": _Transport()}}
        await app(scope, receive, send)

    transport = httpx.ASGITransport(on_a_connection)
    async with httpx.AsyncClient(transport=transport, base_url="http://sim", headers={"api-key": "k"}) as http:
        yield Served(http=http, ledger=ledger, path=path)
    ledger.close()


def only(entries: list[Answered]) -> Answered:
    [entry] = entries
    return entry


WORDS = {
    Shortage.CAPACITY: ("429", "high demand"),
    Shortage.FLEX_UNAVAILABLE: ("resource_unavailable", "flex"),
    Shortage.INSUFFICIENT_QUOTA: ("insufficient_quota", "exceeded your current quota"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("shortage", list(Shortage))
@pytest.mark.parametrize("charged", [True, False])
async def test_a_shortage_names_no_rate_limit_and_is_charged_as_configured(
    shortage: Shortage,
    charged: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    config = {
        "deployments": {"d": {"requests_per_minute": 600, "tokens_per_minute": 1_000}},
        "faults": {"rates": {shortage.value: 1.0}, "attempts": 1, "charge_shortages": charged},
    }
    async with serving(tmp_path, config) as served:
        short = await served.ask("hello", service_tier="flex")
        after = await served.ask("hello", service_tier="flex")
        first, second = served.noted()
    code, words = WORDS[shortage]
    error = short.json()["error"]
    assert (short.status_code, error["code"], words in error["message"]) == (429, code, True)
    assert not {"retry-after", "retry-after-ms", "policy-id"} & set(short.headers)
    assert "rate limit" not in error["message"]
    tokens = 18 if charged else 0
    assert (first.status, first.fault, first.refused_by, first.tokens) == (429, shortage, shortage, tokens)
    assert short.headers["x-ratelimit-remaining-tokens"] == str(1_000 - tokens)
    assert (second.status, second.fault, second.refused_by, second.tokens) == (200, None, None, 18)
    assert after.headers["x-ratelimit-remaining-tokens"] == str(982 - tokens)


@pytest.mark.anyio
async def test_flex_machines_are_missed_by_those_alone_who_ask_for_them(tmp_path: Path) -> None:
    async with serving(tmp_path, {"faults": {"rates": {"flex_unavailable": 1.0}}}) as served:
        statuses = [(await served.ask("hello", **tier)).status_code for tier in ({}, {"service_tier": "flex"})]
    assert statuses == [200, 429]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("limits", "text", "judge", "words"),
    [
        ({"requests_per_minute": 60}, "hello", "requests", "call rate limit"),
        ({"tokens_per_minute": 30}, "hello", "tokens", "token rate limit"),
        (BUSY, "hello " * 800, "utilization", "utilization"),
    ],
)
async def test_the_ledger_says_which_judge_refused(
    limits: dict[str, Any], text: str, judge: str, words: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, {"deployments": {"d": limits}}) as served:
        replies = [await served.ask(text), await served.ask(text)]
        first, second = served.noted()
    assert [reply.status_code for reply in replies] == [200, 429]
    assert words in replies[1].json()["error"]["message"]
    assert first.refused_by is None
    assert (second.status, second.refused_by, second.fault, second.tokens) == (429, judge, None, 0)


@pytest.mark.anyio
async def test_provisioned_throughput_tells_its_utilization_and_no_limits(tmp_path: Path) -> None:
    clock = ManualClock()
    async with serving(tmp_path, {"deployments": {"d": BUSY}}, clock) as served:
        replies = [await served.ask("x" * 2_000, max_tokens=100 + number) for number in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        told = [reply.headers["azure-openai-deployment-utilization"] for reply in replies]
        assert not [name for reply in replies for name in reply.headers if name.startswith("x-ratelimit")]
        wait_s = float(replies[2].headers["retry-after-ms"]) / 1000
        assert replies[2].headers["retry-after"] == "2"
        clock.advance(wait_s - 0.01)
        early = await served.ask("x" * 2_000, max_tokens=100)
        clock.advance(0.01)
        assert [early.status_code, (await served.ask("x" * 2_000, max_tokens=100)).status_code] == [429, 200]
    # each answer took 64 of the tokens that were set aside for it: 500 + 64 + 500 + 101, then 64 in the place of 101
    assert told == ["60.0%", "116.5%", "112.8%"]


@pytest.mark.anyio
async def test_provisioned_throughput_gets_back_what_a_failed_call_did_not_write(tmp_path: Path) -> None:
    config = {"deployments": {"d": BUSY}, "faults": {"rates": {"500": 1.0}, "attempts": 1}}
    async with serving(tmp_path, config) as served:
        failed = await served.ask("x" * 400, max_tokens=800)
        after = await served.ask("x" * 400, max_tokens=800)
    assert (failed.status_code, after.status_code) == (500, 200)
    assert after.headers["azure-openai-deployment-utilization"] == "100.0%"


@pytest.mark.anyio
async def test_a_shortage_that_is_not_charged_leaves_no_utilization(tmp_path: Path) -> None:
    config = {
        "deployments": {"d": BUSY},
        "faults": {"rates": {"capacity": 1.0}, "attempts": 1, "charge_shortages": False},
    }
    async with serving(tmp_path, config) as served:
        await served.ask("x" * 400, max_tokens=800)
        after = await served.ask("x" * 400, max_tokens=800)
    assert after.headers["azure-openai-deployment-utilization"] == "90.0%"


@pytest.mark.anyio
@pytest.mark.parametrize("by_header", [False, True])
async def test_what_is_too_much_for_provisioned_throughput_spills_over(by_header: bool, tmp_path: Path) -> None:  # noqa: FBT001
    deployments = {"d": BUSY if by_header else SPILLING, "std": {"model": "gpt-4o", "tokens_per_minute": 5_000}}
    headers = {"x-ms-spillover-deployment": "std"} if by_header else {}
    async with serving(tmp_path, {"deployments": deployments}) as served:
        replies = [await served.ask("hello " * 800, headers=headers) for _ in range(2)]
        first, second = served.noted()
    assert [reply.status_code for reply in replies] == [200, 200]
    assert "x-ms-spillover-from-deployment" not in replies[0].headers
    assert replies[1].headers["x-ms-spillover-from-deployment"] == "d"
    assert replies[1].headers["x-ms-deployment-name"] == "std"
    assert replies[1].headers["x-ratelimit-remaining-tokens"] == str(5_000 - 1_216)
    assert (first.served_by, second.served_by, second.refused_by, second.tokens) == (None, "std", None, 1_216)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [500, 503])
async def test_a_broken_call_spills_over_too(status: int, tmp_path: Path) -> None:
    config = {
        "deployments": {"d": SPILLING, "std": {}},
        "faults": {"rates": {str(status): 1.0}, "attempts": 1},
    }
    async with serving(tmp_path, config) as served:
        reply = await served.ask("hello")
        entry = only(served.noted())
    assert (reply.status_code, entry.status, entry.served_by, entry.fault) == (200, 200, "std", None)


@pytest.mark.anyio
@pytest.mark.parametrize("target", ["std", "nowhere"])
async def test_a_broken_call_is_settled_once_whether_it_spills_over_or_not(target: str, tmp_path: Path) -> None:
    config = {
        "deployments": {"d": BUSY, "std": {}},
        "faults": {"rates": {"500": 1.0}, "attempts": 1},
    }
    headers = {"x-ms-spillover-deployment": target}
    async with serving(tmp_path, config) as served:
        broken = await served.ask("x" * 400, max_tokens=800, headers=headers)
        after = await served.ask("x" * 400, max_tokens=800)
    assert (broken.status_code, after.status_code) == (200 if target == "std" else 500, 200)
    assert after.headers["azure-openai-deployment-utilization"] == "100.0%"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("standard", "headers", "status"),
    [
        ({"tokens_per_minute": 5}, {}, "429"),
        ({}, {"x-ms-spillover-deployment": "nowhere"}, "404"),
        ({"model": "text-embedding-3-small"}, {}, "400"),
    ],
)
async def test_where_the_other_cannot_either_the_first_refusal_is_given(
    standard: dict[str, Any], headers: dict[str, str], status: str, tmp_path: Path
) -> None:
    deployments = {"d": SPILLING, "std": standard}
    async with serving(tmp_path, {"deployments": deployments}) as served:
        replies = [await served.ask("hello " * 800, headers=headers) for _ in range(2)]
        entry = served.noted()[1]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert replies[1].headers["x-ms-spillover-error"] == status
    assert "retry-after-ms" in replies[1].headers
    assert (entry.status, entry.refused_by, entry.served_by, entry.tokens) == (429, "utilization", None, 0)


@pytest.mark.anyio
async def test_standard_deployments_do_not_spill_over(tmp_path: Path) -> None:
    deployments = {"d": {"requests_per_minute": 60}, "std": {}}
    async with serving(tmp_path, {"deployments": deployments}) as served:
        replies = [await served.ask("hello", headers={"x-ms-spillover-deployment": "std"}) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [200, 429]
    assert "x-ms-spillover-error" not in replies[1].headers


@pytest.mark.anyio
async def test_a_deployment_charges_by_its_own_cost(tmp_path: Path) -> None:
    deployments = {
        "d": {"model": "gpt-4o"},
        "mini": {"model": "gpt-4.1-mini"},
        "odd": {"model": "gpt-4o", "cost": {"prompt": "none", "answer_when_absent": 300, "factor": 2}},
    }
    async with serving(tmp_path, {"deployments": deployments}) as served:
        for name in deployments:
            assert (await served.ask("hello", at=CLASSIC.format(name))).status_code == 200
        assert [entry.tokens for entry in served.noted()] == [18, 2, 600]


@pytest.mark.anyio
async def test_limits_that_were_lowered_for_a_while_are_named_as_they_are_judged(tmp_path: Path) -> None:
    clock = ManualClock()
    config = {
        "deployments": {"d": {"tokens_per_minute": 1_000}},
        "schedule": [
            {"at_s": 10, "deployment": "d", "tokens_per_minute": 500},
            {"at_s": 20, "deployment": "d", "tokens_per_minute": 1_000},
        ],
    }
    named = []
    async with serving(tmp_path, config, clock) as served:
        for _ in range(3):
            named.append((await served.ask("hello")).headers["x-ratelimit-limit-tokens"])
            clock.advance(10)
    assert named == ["1000", "500", "1000"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("quirk", "name", "there"),
    [
        (Quirk.NO_LIMITS, "x-ratelimit-limit-tokens", False),
        (Quirk.NO_LIMITS, "retry-after-ms", True),
        (Quirk.NO_RETRY_AFTER, "retry-after", False),
        (Quirk.NO_RETRY_AFTER, "x-ratelimit-reset-tokens", True),
        (Quirk.MISSPELT_RESET, "x-rate-limit-reset-tokens", True),
        (Quirk.MISSPELT_RESET, "x-ratelimit-reset-tokens", False),
        (Quirk.MISSPELT_RESET, "retry-after", False),
        (Quirk.RETRY_AFTER_DATE, "retry-after-ms", False),
    ],
)
async def test_a_refusal_has_the_headers_of_its_quirk(quirk: Quirk, name: str, there: bool, tmp_path: Path) -> None:  # noqa: FBT001
    config = {"deployments": {"d": {"tokens_per_minute": 20}}, "quirks": [quirk.value]}
    async with serving(tmp_path, config) as served:
        refused = [await served.ask("hello") for _ in range(2)][1]
    assert refused.status_code == 429
    assert (name in refused.headers) is there


@pytest.mark.anyio
async def test_a_date_to_come_back_at_is_later_than_the_replys_own(tmp_path: Path) -> None:
    config = {"deployments": {"d": {"tokens_per_minute": 20}}, "quirks": ["retry_after_date"]}
    async with serving(tmp_path, config) as served:
        headers = [await served.ask("hello") for _ in range(2)][1].headers
    wait = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
    assert wait.total_seconds() == 60


@pytest.mark.anyio
async def test_answers_of_every_operation_of_text_are_as_long_as_configured(tmp_path: Path) -> None:
    config = {"answers": {"median_tokens": 150}}
    async with serving(tmp_path, config) as served:
        chat = (await served.ask("hello", at=V1, model="d")).json()["usage"]["completion_tokens"]
        responses = await served.http.post("/openai/v1/responses", json={"model": "d", "input": "hello"})
        completions = await served.http.post("/v1/completions", json={"model": "d", "prompt": "hi", "max_tokens": 999})
        cut = await served.http.post("/v1/completions", json={"model": "d", "prompt": "hi", "max_tokens": 99})
    assert (chat, responses.json()["usage"]["output_tokens"]) == (150, 150)
    assert completions.json()["usage"]["completion_tokens"] == 150
    assert cut.json()["choices"][0]["finish_reason"] == "length"
