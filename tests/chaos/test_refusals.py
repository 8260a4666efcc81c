"""F13: what refuses a row, what refuses a deployment, and what refuses everybody; with one deployment and with two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from chaos.report import record
from in_memory import Bench, Service, answer_of, refusal

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]
ROWS = 40
MID = 15
"""The row from which on a service refuses that began well."""
ONE = "https://one.openai.azure.com"
OTHER = "https://other.openai.azure.com"
FILTERED = {
    "error": {
        "code": "content_filter",
        "param": "prompt",
        "message": "The response was filtered.",
        "status": 400,
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
    }
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A refusal, and the type and code that a row which fails by it has; None where no row may fail."""

    said: Callable[[], httpx.Response]
    row: tuple[str, str] | None = None
    tries: int = 3


def redirect(status: int) -> httpx.Response:
    return httpx.Response(status, headers={"location": f"{OTHER}/elsewhere"})


def html(status: int) -> httpx.Response:
    return httpx.Response(status, headers={"content-type": "text/html"}, content=b"<html><h1>No</h1></html>")


OF_ROWS = {
    "400 content_filter": Refusal(
        said=lambda: httpx.Response(400, json=FILTERED), row=("BadRequestError", "content_filter")
    ),
    "400 content_filter, told not to": Refusal(
        said=lambda: httpx.Response(400, headers={"x-should-retry": "true"}, json=FILTERED),
        row=("BadRequestError", "content_filter"),
    ),
    "400 context_length_exceeded": Refusal(
        said=lambda: refusal(400, "context_length_exceeded"), row=("BadRequestError", "context_length_exceeded")
    ),
    "400 with a page": Refusal(said=lambda: html(400), row=("BadRequestError", "bad_request")),
    "413": Refusal(said=lambda: html(413), row=("APIStatusError", "request_too_large")),
    "415": Refusal(said=lambda: html(415), row=("APIStatusError", "unsupported_media_type")),
    "422": Refusal(said=lambda: refusal(422, ""), row=("UnprocessableEntityError", "unprocessable_entity")),
    "429 request too large": Refusal(
        said=lambda: refusal(429, "tokens", "Request too large for gpt-4o: Limit 30000, Requested 40000."),
        row=("RateLimitError", "tokens"),
    ),
}
"""They say something of one request: its row fails at once, and the run goes on."""

OF_DEPLOYMENTS = {
    "403": Refusal(said=lambda: refusal(403, "Forbidden", "Access denied due to Virtual Network/Firewall rules.")),
    "403 with a page": Refusal(said=lambda: html(403)),
    "404 DeploymentNotFound": Refusal(
        said=lambda: refusal(404, "DeploymentNotFound", "The API deployment for this resource does not exist.")
    ),
    "404 model_not_found": Refusal(said=lambda: refusal(404, "model_not_found")),
    "404 of a gateway": Refusal(said=lambda: html(404)),
    **{str(status): Refusal(said=lambda status=status: redirect(status)) for status in (301, 302, 303, 307, 308)},
    "300": Refusal(said=lambda: httpx.Response(300)),
    "304": Refusal(said=lambda: httpx.Response(304)),
    "429 insufficient_quota": Refusal(said=lambda: refusal(429, "insufficient_quota"), tries=1),
    "429 billing_hard_limit_reached": Refusal(said=lambda: refusal(429, "billing_hard_limit_reached"), tries=1),
    "429 by its words": Refusal(
        said=lambda: refusal(429, "", "You exceeded your current quota, please check your plan."), tries=1
    ),
    "402": Refusal(said=lambda: html(402), tries=1),
}
"""They say something of the deployment: it is set aside, and with none left the run ends with exit code 3."""


class Services(httpx.AsyncBaseTransport):
    """Two services behind one transport; `refuses` says for a host and a row's number what the host says instead."""

    def __init__(self, refuses: Callable[[str, int], httpx.Response | None]) -> None:
        self.asked: dict[str, list[int]] = {ONE: [], OTHER: []}
        self._refuses = refuses
        self._services = {host: Service(self._judge(host)) for host in self.asked}

    def _judge(self, host: str) -> Callable[[list[str], int], httpx.Response | None]:
        def judge(texts: list[str], _: int) -> httpx.Response | None:
            self.asked[host].append(int(texts[0]))
            return self._refuses(host, int(texts[0]))

        return judge

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer for the host that was asked; any other is a test's failure."""
        return await self._services[f"{request.url.scheme}://{request.url.host}"].handle_async_request(request)


def bench(folder: Path, *, hosts: int) -> Bench:
    made = Bench(folder=folder, operation="chat").texts(*map(str, range(ROWS)))
    deployment = {"deployment": "d", "model": "gpt-4o", "api": "azure"}
    deployments = [
        {**deployment, "name": name, "endpoint": host} for name, host in (("one", ONE), ("other", OTHER))[:hosts]
    ]
    made.changes = {"deployments": deployments, "run": {"workers": 4}}
    return made


def assert_answers(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["status"] == "ok":
            assert row["output_text"] == answer_of(row["text"])


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize("hosts", [1, 2])
async def test_what_refuses_a_request_fails_its_row_alone_and_is_asked_once(
    tmp_path: Path, name: str, hosts: int
) -> None:
    refused = OF_ROWS[name]
    made = bench(tmp_path, hosts=hosts)
    services = Services(lambda _, number: refused.said() if number % 3 == 1 else None)
    summary = await made.run(services)
    assert (summary.state, summary.exit_code) == ("complete", 1)
    table = made.table()
    assert [row["ordinal"] for row in table] == list(range(ROWS))
    assert_answers(table)
    assert made.failed() == {number: refused.row for number in range(ROWS) if number % 3 == 1}
    assert sorted(services.asked[ONE] + services.asked[OTHER]) == list(range(ROWS))
    record(fault="F13", what=name, tried=len(made.failed()), notes="the row fails at once")


@pytest.mark.parametrize("name", OF_DEPLOYMENTS)
@pytest.mark.parametrize("begins", [0, MID])
async def test_what_refuses_everything_ends_the_run_with_its_rows_pending(
    tmp_path: Path, name: str, begins: int
) -> None:
    refused = OF_DEPLOYMENTS[name]
    made = bench(tmp_path, hosts=1)
    services = Services(lambda _, number: refused.said() if number >= begins else None)
    summary = await made.run(services)
    assert (summary.state, summary.exit_code) == ("refused", 3)
    assert (summary.rows.ok, summary.rows.failed) == (begins, 0)
    in_vain = sum(number >= begins for number in services.asked[ONE])
    assert refused.tries <= in_vain <= refused.tries + 3, "each of the four workers may have had one under way"
    assert "one" in (summary.reason or "")
    assert (await made.run(Services(lambda *_: None))).exit_code == 0
    made.assert_rows(range(ROWS))
    record(fault="F13", what=name, tried=in_vain, notes="exit 3, rows pending, the next run completes")


@pytest.mark.parametrize("name", OF_DEPLOYMENTS)
@pytest.mark.parametrize("begins", [0, MID])
async def test_what_refuses_everything_at_one_deployment_leaves_all_rows_to_the_other(
    tmp_path: Path, name: str, begins: int
) -> None:
    refused = OF_DEPLOYMENTS[name]
    made = bench(tmp_path, hosts=2)
    services = Services(lambda host, number: refused.said() if host == ONE and number >= begins else None)
    summary = await made.run(services)
    assert (summary.state, summary.exit_code) == ("complete", 0)
    made.assert_rows(range(ROWS))
    in_vain = sum(number >= begins for number in services.asked[ONE])
    assert in_vain <= refused.tries + 3
    assert sorted(set(services.asked[ONE] + services.asked[OTHER])) == list(range(ROWS))
    record(fault="F13", what=name, tried=in_vain, notes="the other deployment takes every row")


@pytest.mark.parametrize("name", OF_DEPLOYMENTS)
async def test_with_both_deployments_refusing_the_run_ends_and_names_both(tmp_path: Path, name: str) -> None:
    made = bench(tmp_path, hosts=2)
    summary = await made.run(Services(lambda _, number: OF_DEPLOYMENTS[name].said() if number >= MID else None))
    assert (summary.state, summary.exit_code) == ("refused", 3)
    assert (summary.rows.ok, summary.rows.failed) == (MID, 0)
    assert "one: " in (summary.reason or "")
    assert "other: " in (summary.reason or "")
