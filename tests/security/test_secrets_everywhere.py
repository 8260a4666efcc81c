"""One canary in each place that a secret can come from; no byte that a run writes or says holds it, in any form."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import anyio
import httpx
import pytest
from in_memory import Bench as Memory
from in_memory import Service

from pipeline.cli.endings import ending
from pipeline.job.spec import Secret
from tests.cli.bench import JOB, Bench
from tests.security.raw_server import answer, raw_server

KEY = "canary/Key+7a1d=40b9&c3"
HEADER = "canary Header:55e1?f0"
OTHER = "canary-Unrelated-9c2e77"
PROXY = "canary-Proxy-0d64ab"
CANARIES = (KEY, HEADER, OTHER, PROXY)
HEADERS = '    headers: {X-Gateway: "${TEST_HEADER}"}\noutput:'


def forms(secret: str) -> Iterator[bytes]:
    """What a secret may look like once it was encoded on the way, and its halves."""
    raw = secret.encode()
    for text in (secret, quote(secret, safe=""), quote_plus(secret), quote(secret), json.dumps(secret)[1:-1]):
        yield text.encode()
    yield base64.b64encode(raw)
    yield base64.urlsafe_b64encode(raw)
    # In the middle of a longer text, base64 shows one of three shapes.
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        yield encoded[4 if shift else 0 : len(encoded) - 4]
    yield raw.hex().encode()
    yield raw[: len(raw) // 2 + 2]
    yield raw[len(raw) // 2 :]
    yield raw[::-1]


FORMS = {form: secret for secret in CANARIES for form in forms(secret)}


def quoted(secret: str) -> str:
    """A secret as a service may quote it."""
    plain = [secret, quote(secret, safe=""), quote_plus(secret), quote(secret)]
    return " ".join(
        [*plain, base64.b64encode(secret.encode()).decode(), base64.urlsafe_b64encode(secret.encode()).decode()]
    )


def error(status: int, *headers: str) -> Callable[[bytes], bytes]:
    def reply(request: bytes) -> bytes:
        body = json.dumps({"error": {"code": "x", "message": f"{quoted(KEY)}, {quoted(HEADER)}"}}).encode()
        return answer(status, body, *headers)

    return reply


QUOTING = (
    f"x-request-id: {KEY}",
    f"apim-request-id: {HEADER}",
    f"x-ms-region: {HEADER}",
    f"set-cookie: session={KEY}",
    f"www-authenticate: Bearer realm={KEY}",
    f"location: http://127.0.0.1:9/?key={KEY}",
    f"x-should-retry: {KEY}",
    f"server: {HEADER}",
)
ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "the row refused": error(400, *QUOTING),
    "the filter": lambda request: answer(
        400, json.dumps({"error": {"code": KEY, "message": KEY, "param": KEY}}).encode()
    ),
    "the key refused": error(401, *QUOTING),
    "forbidden": error(403, *QUOTING),
    "not found": error(404, *QUOTING),
    "a redirect": error(302, *QUOTING),
    "throttled for a day": error(429, "retry-after: 86400", *QUOTING),
    "spent": lambda request: answer(
        429, json.dumps({"error": {"code": "insufficient_quota", "message": KEY}}).encode()
    ),
    "text": lambda request: answer(400, KEY.encode()),
    "a page": lambda request: answer(400, f"<html><h1>{KEY} {HEADER}</h1></html>".encode()),
}


def bench_at(folder: Path, url: str) -> Bench:
    environ = {
        "TEST_ENDPOINT": url,
        "TEST_KEY": KEY,
        "TEST_HEADER": HEADER,
        "UNRELATED_SECRET": OTHER,
        "HTTPS_PROXY": f"http://user:{PROXY}@127.0.0.1:9",
        "NO_COLOR": "1",
    }
    bench = Bench(folder=folder, environ=environ)
    bench.write(JOB.replace("output:", HEADERS, 1))
    bench.rows(["one?", "two?", "three?"])
    return bench


def found_in(places: dict[str, bytes]) -> list[tuple[str, str, bytes]]:
    return [
        (place, secret, content[max(0, content.index(form) - 60) : content.index(form) + 40])
        for place, content in places.items()
        for form, secret in FORMS.items()
        if form in content
    ]


@pytest.mark.parametrize("case", ANSWERS)
def test_no_form_of_a_secret_is_written_or_said_whatever_the_service_answers(tmp_path: Path, case: str) -> None:
    with raw_server(ANSWERS[case]) as server:
        bench = bench_at(tmp_path, server.url)
        said = [bench.call("run", "job.yaml", "--log-level", "debug"), bench.call("run", "job.yaml", "--json")]
        said += [bench.call(*words) for words in (("status", "out"), ("errors", "out"), ("errors", "out", "--json"))]
        said += [bench.call(*words) for words in (("show", "out", "0"), ("verify", "out"), ("validate", "job.yaml"))]
        said += [bench.call("doctor", "job.yaml")]
        assert server.requests
        assert KEY.encode() in server.requests[0], "the canary is the key that is sent"
    places = {
        f"{index}: {result.args if hasattr(result, 'args') else ''}": result.output.encode()
        for index, result in enumerate(said)
    }
    places |= {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()
    }
    assert found_in(places) == []


def test_a_transport_whose_errors_quote_the_url_and_the_proxy_says_none_of_it(tmp_path: Path) -> None:
    # Port 9 of loopback refuses; the proxy cannot be reached either.
    bench = bench_at(tmp_path, "https://unreachable.invalid")
    bench.write(bench.job.read_text().replace("  workers: 4", "  workers: 4\n  max_outage: 1s"))
    said = bench.call("doctor", "job.yaml")
    assert said.exit_code != 0
    assert found_in({"doctor": said.output.encode()}) == []


@pytest.mark.parametrize("show", [repr, str, "{}".format, lambda secret: json.dumps({"k": secret}, default=str)])
def test_a_secret_shows_itself_to_nobody_who_does_not_ask(show: Callable[[object], str]) -> None:
    assert KEY not in show(Secret(KEY))


def test_a_defect_is_told_by_its_places_without_its_words_or_its_locals(capsys: pytest.CaptureFixture[str]) -> None:
    """Any exception may quote what it was given, and its frames hold everything."""

    def broken(floor: int) -> None:
        held = {"key": KEY, "header": HEADER}
        if floor:
            broken(floor - 1)
        raise ValueError(f"could not use {held}") from KeyError(HEADER)

    caught: BaseException | None = None
    try:
        broken(7)
    except ValueError as error:
        caught = error
    assert caught is not None
    assert ending(caught) == 70
    said = "".join(capsys.readouterr())
    assert "broken" in said, "the places are there"
    assert found_in({"said": said.encode()}) == []


@pytest.mark.anyio
async def test_exceptions_of_the_network_are_never_quoted(tmp_path: Path) -> None:
    bench = Memory(folder=tmp_path, operation="chat", changes={"run": {"max_outage": "1s"}}).texts("a", "b")
    errors = [
        httpx.ConnectError(f"https://user:{KEY}@host/?key={KEY}"),
        httpx.ReadError(f"{HEADER} reset"),
        httpx.RemoteProtocolError(f"illegal header {HEADER}"),
        httpx.ProxyError(f"407 http://user:{PROXY}@proxy"),
        httpx.ConnectTimeout(KEY),
    ]
    service = Service(lambda texts, calls: errors[calls % len(errors)] if calls < 9 else None)
    with anyio.fail_after(100):
        await bench.run(service)
    places = {str(path.relative_to(tmp_path)): path.read_bytes() for path in bench.out.rglob("*") if path.is_file()}
    places["events"] = str(bench.events).encode()
    assert found_in(places) == []
