"""What `--http-log` writes at each level, and what it writes at none."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest
from forked import start_simulator

from pipeline.clock import SystemClock
from pipeline.errors import StorageError
from pipeline.log import EventLog
from pipeline.model import Reply
from pipeline.service.http_log import (
    BODY_CHARS,
    NEVER,
    READ_BYTES,
    DetailLevel,
    HttpLog,
    HttpLogRules,
    LoggedWire,
    detail_level,
    shown_body,
    shown_url,
)
from pipeline.simulator.serve import SimulatorProcess
from pipeline.testing import MemoryTransport
from tests.cli.bench import JOB, Bench

KEY = "canary/key+5f2c9=="
TOKEN = "canary-token-66d1e"  # noqa: S105 - of this test alone
GATEWAY = "canary-gateway-81ab3"
TEAM = "canary-team-0c4e7"
PROMPT = "canaryprompt77e0d"
FORMS = [form for text in (KEY, TOKEN, GATEWAY, TEAM) for form in (text, quote(text, safe=""))] + [
    base64.b64encode(text.encode()).decode() for text in (KEY, TOKEN, GATEWAY, TEAM)
]
BODY_LEVELS = {"body", "body_and_headers"}
HEADERS = """\
    headers:
      Ocp-Apim-Subscription-Key: ${TEST_GATEWAY}
      X-Team: Bearer ${TEST_TEAM}
output:"""
ALLOWED = ["api-key", "Authorization", "OCP-APIM-SUBSCRIPTION-KEY", "x-team", "cookie"]

Events = list[Mapping[str, Any]]


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    """One that answers most rows, throttles each once, and refuses some, quoting the prompt and what came with it."""
    process = start_simulator(
        {
            "keys": [KEY, TOKEN],
            "vectors": "hash",
            "faults": {"rates": {"429": 1.0}, "attempts": 1, "headers": {"retry-after-ms": "1"}},
            "poison": [
                {"contains": f"refused {name}", "status": 400, "message": f"{PROMPT}: {secret}, {GATEWAY}, {TEAM}"}
                for name, secret in (("key", KEY), ("token", TOKEN))
            ],
        }
    )
    yield process
    process.stop()


@pytest.fixture(params=["key", "token"])
def bench(request: pytest.FixtureRequest, tmp_path: Path, simulator: SimulatorProcess) -> Bench:
    bench = Bench(
        folder=tmp_path,
        environ={
            "TEST_ENDPOINT": simulator.url,
            "TEST_KEY": KEY,
            "TEST_TOKEN": TOKEN,
            "TEST_GATEWAY": GATEWAY,
            "TEST_TEAM": TEAM,
            "NO_COLOR": "1",
        },
    )
    job = JOB.replace("output:", HEADERS, 1)
    if request.param == "token":
        job = job.replace("key: ${TEST_KEY}", "auth: token\n    token: ${TEST_TOKEN}")
    bench.write(job + "\n")
    bench.rows([f"{PROMPT} {number}" for number in range(3)] + [f"{PROMPT} refused {request.param}"])
    return bench


@pytest.mark.parametrize("level", [level.value for level in DetailLevel])
def test_no_credential_is_written_at_any_level_and_no_prompt_outside_the_body_levels(bench: Bench, level: str) -> None:
    allowed = [word for name in ALLOWED for word in ("--http-log-allow", name)]
    run = bench.call("run", "job.yaml", "--log-level", "debug", "--http-log", level, *allowed)

    assert run.exit_code == 1, run.output
    places = {"stdout": run.stdout.encode(), "stderr": run.stderr.encode()}
    places |= {str(path): path.read_bytes() for path in bench.output.rglob("*") if path.is_file()}
    (part,) = bench.output.glob("part-*.parquet")
    places["rows"] = json.dumps(pq.read_table(part).to_pylist(), default=str).encode()
    for place, content in places.items():
        for form in FORMS:
            assert form.encode() not in content, (place, form)
    private = bench.output / "_pipeline"
    assert (private / "http.log.jsonl").exists() == (level != "none")
    assert PROMPT not in (private / "log.jsonl").read_text()
    written = run.stderr + ((private / "http.log.jsonl").read_text() if level != "none" else "")
    assert (PROMPT in written) == (level in BODY_LEVELS)
    assert ("personal data" in run.stderr) == (level in BODY_LEVELS)
    assert ("REDACTED" in written) == (level not in {"none", "basic"})


def test_each_attempt_is_a_request_and_a_response_with_the_same_id(bench: Bench) -> None:
    bench.call("run", "job.yaml", "--http-log", "basic")

    path = bench.output / "_pipeline" / "http.log.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    asked = {event["client_request_id"]: event for event in events if event["event"] == "http_request"}
    came = {event["client_request_id"]: event for event in events if event["event"] == "http_response"}
    assert len(asked) == len(came) == len(events) // 2 == bench.summary()["attempts"]
    assert set(asked) == set(came)
    assert {event["status"] for event in came.values()} >= {200, 400}
    for event in (*asked.values(), *came.values()):
        assert event["method"] == "POST"
        assert event["url"].endswith("/chat/completions?api-version=2024-10-21")
        assert not {"headers", "body"} & set(event)
    assert path.stat().st_mode & 0o777 == 0o600
    assert bench.call("verify", "out").exit_code == 0
    path.unlink()
    assert bench.call("verify", "out").exit_code == 0


def test_a_warning_silences_the_lines_on_the_screen_and_not_the_file(bench: Bench) -> None:
    run = bench.call("run", "job.yaml", "--http-log", "basic", "--log-level", "warning")

    assert "http_request" not in run.stderr
    assert "http_request" in (bench.output / "_pipeline" / "http.log.jsonl").read_text()


@pytest.mark.parametrize(("word", "logs"), [("Headers", True), ("NONE", False), ("", False), ("loud", False)])
def test_the_environment_names_the_level_as_for_the_azure_sdks(bench: Bench, word: str, logs: bool) -> None:  # noqa: FBT001 - a case
    bench.environ["AZURE_HTTP_LOG_DETAIL_LEVEL"] = word
    bench.call("run", "job.yaml", "--limit", "1")

    assert (bench.output / "_pipeline" / "http.log.jsonl").exists() == logs


def test_the_option_wins_over_the_environment_and_a_word_that_is_no_level_is_usage(bench: Bench) -> None:
    bench.environ["AZURE_HTTP_LOG_DETAIL_LEVEL"] = "body"
    bench.call("run", "job.yaml", "--limit", "1", "--http-log", "none")

    assert not (bench.output / "_pipeline" / "http.log.jsonl").exists()
    refused = bench.call("run", "job.yaml", "--http-log", "loud")
    assert refused.exit_code == 2
    assert "body_and_headers" in refused.stderr


@pytest.mark.parametrize(
    ("word", "level"),
    [
        ("none", DetailLevel.NONE),
        ("BASIC", DetailLevel.BASIC),
        ("Headers", DetailLevel.HEADERS),
        ("allowed_headers", DetailLevel.ALLOWED_HEADERS),
        ("allowedHeaders", DetailLevel.ALLOWED_HEADERS),
        ("Body", DetailLevel.BODY),
        ("BODY_AND_HEADERS", DetailLevel.BODY_AND_HEADERS),
        ("bodyandheaders", DetailLevel.BODY_AND_HEADERS),
        (" body-and-headers ", DetailLevel.BODY_AND_HEADERS),
        ("all", None),
        ("", None),
    ],
)
def test_levels_are_spelt_as_in_any_azure_sdk(word: str, level: DetailLevel | None) -> None:
    assert detail_level(word) is level


SENT = {
    "content-type": "application/json",
    "api-key": KEY,
    "x-team": f"Bearer {TEAM}",
    "x-ms-client-request-id": "id-1",
    "openai-project": "proj",
}
ANSWERED = {
    "Content-Type": "application/json",
    "x-request-id": "r-1",
    "x-ratelimit-remaining-tokens": "12",
    "set-cookie": "session=canary",
    "x-strange": "strange",
    "x-ms-region": f"here {KEY}",
}


async def exchanged(level: DetailLevel, *, allow: tuple[str, ...] = (), reply: httpx.Response | None = None) -> Events:
    events: Events = []
    log = EventLog(listener=events.append, wall=SystemClock().wall)
    answer = reply or httpx.Response(200, headers=ANSWERED, json={"said": f"your key is {KEY}, team {TEAM}"})
    wire = LoggedWire(
        MemoryTransport(lambda _: answer),
        clock=SystemClock(),
        log=HttpLog(HttpLogRules(level=level, allow=allow), log),
        place="here",
        secrets=(f"Bearer {TEAM}", TEAM),
    )
    url = f"https://h.example/openai/deployments/d/chat/completions?api-version=v&code={KEY}"
    got = await wire.send(url, SENT, b'{"messages":[]}', timeout_s=5)
    assert isinstance(got, Reply)
    return events


@pytest.mark.anyio
@pytest.mark.parametrize("level", [level for level in DetailLevel if level.headers])
async def test_headers_that_are_not_allowed_are_redacted_or_left_out(level: DetailLevel) -> None:
    asked, came = await exchanged(level, allow=("openai-project", *NEVER, "x-team", "X-STRANGE"))

    assert asked["headers"]["openai-project"] == "proj"
    assert asked["headers"]["x-ms-client-request-id"] == "id-1"
    assert came["headers"]["x-request-id"] == "r-1"
    assert came["headers"]["x-ratelimit-remaining-tokens"] == "12"
    assert came["headers"]["x-strange"] == "strange"
    assert came["headers"]["x-ms-region"] == "here REDACTED"
    hidden = None if level is DetailLevel.ALLOWED_HEADERS else "REDACTED"
    assert asked["headers"].get("api-key") == hidden
    assert came["headers"].get("set-cookie") == hidden
    assert asked["headers"]["x-team"] == "REDACTED"
    assert asked["url"] == "https://h.example/openai/deployments/d/chat/completions?api-version=v&code=REDACTED"


@pytest.mark.anyio
async def test_a_service_that_quotes_the_credential_has_it_redacted() -> None:
    _, came = await exchanged(DetailLevel.BODY)

    assert json.loads(came["body"]) == {"said": "your key is REDACTED, team REDACTED"}
    assert "headers" not in came


@pytest.mark.anyio
async def test_a_reply_that_never_came_is_written_with_its_kind() -> None:
    events: Events = []
    wire = LoggedWire(
        MemoryTransport(lambda _: httpx.ConnectError(f"refused {KEY}")),
        clock=SystemClock(),
        log=HttpLog(HttpLogRules(level=DetailLevel.BODY), EventLog(listener=events.append, wall=SystemClock().wall)),
        place="here",
        secrets=(),
    )
    await wire.send("https://h.example/", SENT, b"{}", timeout_s=5)

    assert events[1]["failure"] == "connect"
    assert KEY not in json.dumps(events, default=str)


@pytest.mark.anyio
async def test_a_disk_that_refuses_loses_no_reply_and_lets_nothing_more_be_sent() -> None:
    def full(event: Mapping[str, Any]) -> None:
        if event["event"] == "http_response":
            raise StorageError("full")

    network = MemoryTransport(lambda _: httpx.Response(200, json={}))
    rules = HttpLogRules(level=DetailLevel.BASIC)
    log = HttpLog(rules, EventLog(listener=full, wall=SystemClock().wall))
    wire = LoggedWire(network, clock=SystemClock(), log=log, place="here", secrets=())
    assert isinstance(await wire.send("https://h.example/", SENT, b"{}", timeout_s=5), Reply)
    with pytest.raises(StorageError, match="full"):
        await wire.send("https://h.example/", SENT, b"{}", timeout_s=5)
    assert len(network.requests) == 1


def hide(text: str) -> str:
    return text.replace("secret", "REDACTED")


@pytest.mark.parametrize(
    ("kind", "body", "shown"),
    [
        ("application/json", b'{"a":1}', '{"a":1}'),
        ("application/json; charset=utf-8", "{'ä': secret}".encode(), "{'ä': REDACTED}"),
        ("text/event-stream", b"data: {}\n\n", "data: {}\n\n"),
        ("application/problem+json", b"{}", "{}"),
        ("", b"", ""),
        ("", b"x", "[unknown kind: not shown]"),
        ("multipart/form-data; boundary=x", b"RIFF", "[multipart/form-data; boundary=x: not shown]"),
        ("audio/mpeg", b"\xff\xfb", "[audio/mpeg: not shown]"),
        ("application/octet-stream", b"{}", "[application/octet-stream: not shown]"),
        (
            "application/json",
            b'{"url":"data:image/png;base64,' + b"QUJD" * 100 + b'","text":"a cat"}',
            '{"url":"data:image/png;base64,[400 characters of base64 cut out]","text":"a cat"}',
        ),
        (
            "application/json",
            b'{"b64_json":"' + b"QU\\/D" * 100 + b'=="}',
            '{"b64_json":"[502 characters of base64 cut out]"}',
        ),
        (
            "application/json",
            b'{"url":"https://blob.example/p.png?se=1\\u0026sig=abc%2Bdef","x":1}',
            '{"url":"https://blob.example/p.png?se=1\\u0026sig=REDACTED","x":1}',
        ),
    ],
)
def test_bodies_are_shown_where_they_are_text_without_base64_and_signatures(kind: str, body: bytes, shown: str) -> None:
    assert shown_body(kind, body, hide) == shown


def test_a_long_body_is_cut_and_says_so() -> None:
    shown = shown_body("text/plain", b"word " * 10_000, hide)
    assert shown.endswith("[cut: 50000 bytes]")
    assert len(shown) == BODY_CHARS + len("[cut: 50000 bytes]")


@pytest.mark.parametrize("before", range(READ_BYTES - 8, READ_BYTES + 1))
def test_a_secret_that_lies_where_the_reading_ends_is_not_shown_in_part(before: int) -> None:
    filler = (b"QUJD" * (READ_BYTES // 4 + 1))[: before - 1] + b" "
    shown = shown_body("text/plain", filler + b"secret and more" * 10, hide)
    assert "sec" not in shown
    assert "cret" not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/p", "https://h/p"),
        ("https://h/p?api-version=2024-10-21", "https://h/p?api-version=2024-10-21"),
        (
            "https://h/p?API-Version=v&sig=s&x=&api-key=k",
            "https://h/p?API-Version=v&sig=REDACTED&x=REDACTED&api-key=REDACTED",
        ),
        ("https://user:pass@h:1/p#f", "https://h:1/p"),
    ],
)
def test_urls_are_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown
