"""What is fetched of the URLs that replies name, what never is, and how a fetch fails."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence

import anyio
import httpx
import pytest

from pipeline.clock import SystemClock
from pipeline.errors import MediaError, ReplyError, RowProblem
from pipeline.model import ErrorType
from pipeline.service import fetch as module
from pipeline.service.fetch import TRIES, Fetcher, is_public
from pipeline.service.wire import REPLY_CAP_BYTES, Wire
from pipeline.testing import ManualClock, MemoryTransport

pytestmark = pytest.mark.anyio
PNG = b"\x89PNG\r\n\x1a\nand so on"
PUBLIC = "93.184.216.34"
URL = "https://pictures.example.net/a%2Fb/c.png?sv=2024&sig=a%2Bb%3D&se=1#part"
SIMULATOR = "http://127.0.0.1:8000/openai"

Answer = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response | Exception]


def picture() -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "image/png"}, content=PNG)


class Net:
    """A resolver that knows some names, and a transport that answers in turn; both note what they were asked."""

    def __init__(
        self,
        *answers: Answer,
        names: Mapping[str, Sequence[str] | OSError] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.looked_up: list[str] = []
        self.clock = ManualClock()
        self._names = {"pictures.example.net": [PUBLIC]} if names is None else names
        self._answers = list(answers) or [picture()]
        self.transport = MemoryTransport(self._answer)
        self._environ = environ or {}

    def _answer(self, request: httpx.Request) -> httpx.Response | Exception:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return answer(request) if callable(answer) else answer

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        found = self._names.get(host, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        if isinstance(found, OSError):
            raise found
        return found

    async def fetch(self, url: str = URL, *, allowed_origin: str | None = SIMULATOR) -> bytes:
        async with Wire(self.transport, clock=self.clock) as wire, self.clock.autojump():
            fetcher = Fetcher(wire, clock=self.clock, environ=self._environ, resolve=self._resolve)
            return await fetcher.fetch(url, allowed_origin=allowed_origin)

    async def fails(self, url: str = URL, *, allowed_origin: str | None = SIMULATOR) -> RowProblem:
        with pytest.raises(RowProblem) as caught:
            await self.fetch(url, allowed_origin=allowed_origin)
        assert "sig=" not in caught.value.message
        return caught.value


async def test_the_connection_goes_to_the_checked_address_under_the_hosts_own_name() -> None:
    net = Net()
    assert await net.fetch() == PNG
    (request,) = net.transport.requests
    assert request.method == "GET"
    assert request.url.host == PUBLIC
    assert request.extensions["sni_hostname"] == "pictures.example.net"
    assert request.headers["host"] == "pictures.example.net"
    assert net.looked_up == ["pictures.example.net"]


async def test_a_signed_url_is_asked_for_as_it_was_signed() -> None:
    net = Net()
    await net.fetch()
    assert net.transport.requests[0].url.raw_path == b"/a%2Fb/c.png?sv=2024&sig=a%2Bb%3D&se=1"


async def test_no_credential_goes_with_it() -> None:
    net = Net()
    await net.fetch()
    assert set(net.transport.requests[0].headers) == {"host", "accept", "accept-encoding", "user-agent"}


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/metadata/instance?api-version=2021-02-01",
        "https://169.254.169.254/metadata/identity/oauth2/token",
        "https://[::ffff:169.254.169.254]/",
        "https://[::ffff:a9fe:a9fe]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://[2002:a9fe:a9fe::]/",
        "https://[fe80::1%25eth0]/",
        "https://[fd00:ec2::254]/",
        "https://168.63.129.16/?comp=versions",
        "https://100.100.100.200/",
        "https://localhost/a.png",
        "https://localhost:443/",
        "https://LOCALHOST./",
        "https://api.localhost/",
        "https://printer.local./",
        "https://printer.local/",
        "https://metadata.google.internal/",
        "https://intranet/",
        "https://[::1]/",
        "https://[::]/",
        "https://10.0.0.1",
        "https://192.168.1.1/",
        "https://172.16.0.1/",
        "https://127.0.0.1:8000/",
        "https://0.0.0.0/",
        "https://0/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "http://pictures.example.net/a.png",
        "http://127.0.0.1:8001/a.png",
        "http://localhost:8000/a.png",
        "file:///etc/passwd",
        "ftp://pictures.example.net/a.png",
        "gopher://pictures.example.net:70/_x",
        "data:image/png;base64,AAAA",
        "//pictures.example.net/a.png",
        "pictures.example.net",
        "https://",
        "https:///a.png",
        "https://user:word@pictures.example.net/",
        "https://pictures.example.net@127.0.0.1/",
        "https://@pictures.example.net/",
        "https://pictures.example.net\\@127.0.0.1/",
        "https://pictures.example.net:99999/",
        "https://pictures.example.net:x/",
        "https://pictures.example.net/a b",
        "https://pictures.example.net/\r\nhost: 127.0.0.1",
        "https://pictures\u3002example.net/",
        "https://\u2460\u2461\u2466.0.0.1/",
        "https://[::1/",
        "https://-a.example.net/",
        "https://a..example.net/",
        f"https://{'a' * 64}.example.net/",
        f"https://pictures.example.net/{'a' * module.MAX_URL}",
        "",
        " https://pictures.example.net/",
    ],
)
@pytest.mark.parametrize("proxy", [{}, {"HTTPS_PROXY": "http://proxy.example:3128"}], ids=["direct", "proxy"])
async def test_a_url_that_leads_elsewhere_than_to_the_internet_is_never_asked_for(
    url: str, proxy: dict[str, str]
) -> None:
    net = Net(names={"api.localhost": [PUBLIC], "localhost": [PUBLIC], "intranet": [PUBLIC]}, environ=proxy)
    problem = await net.fails(url)
    assert (problem.info.type, problem.code) == (ErrorType.MEDIA, "address")
    assert net.transport.requests == []
    assert net.looked_up == []


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        [PUBLIC, "10.1.2.3"],
        ["::1"],
        ["fe80::1%eth0"],
        ["169.254.169.254"],
        ["nonsense"],
        [],
    ],
    ids=repr,
)
async def test_a_name_that_leads_to_a_private_address_is_never_asked_for(addresses: list[str]) -> None:
    net = Net(names={"pictures.example.net": addresses})
    assert (await net.fails()).code == "address"
    assert net.transport.requests == []


async def test_a_name_is_looked_up_once_so_that_it_cannot_lead_elsewhere_later() -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]

    class Rebinding(dict[str, Sequence[str]]):
        def get(self, key: str, default: object = None) -> Sequence[str]:  # type: ignore[override]
            return answers.pop(0)

    net = Net(httpx.Response(503), httpx.Response(503), picture(), names=Rebinding())
    assert await net.fetch() == PNG
    assert [request.url.host for request in net.transport.requests] == [PUBLIC] * 3
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((address, True) for address in (PUBLIC, "8.8.8.8", "20.60.1.1", "2606:2800:220:1::", "::ffff:8.8.8.8")),
        *((address, True) for address in ("64:ff9b::808:808",)),
        *((address, False) for address in ("240.0.0.1", "192.0.2.1", "198.18.0.1", "100.64.0.1", "239.1.1.1", "x", "")),
        *((address, False) for address in ("fec0::1", "ff0e::1", "2001:db8::1", "2001:0:1::1", "2002:808:808::1")),
        *((address, False) for address in ("::8.8.8.8", "fc00::1", "64:ff9b::a00:1", "64:ff9b:1::808:808")),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, public: bool) -> None:  # noqa: FBT001 - a column
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://127.0.0.1:8000/pictures/1.png", SIMULATOR),
        ("http://127.0.0.1:8000/pictures/1.png", "http://127.0.0.1:8000"),
        ("https://Gateway.Corp/pictures/1.png", "https://gateway.corp:443/openai/v1"),
    ],
)
async def test_a_url_at_the_deployments_own_origin_is_fetched_wherever_that_is(url: str, origin: str) -> None:
    net = Net()
    assert await net.fetch(url, allowed_origin=origin) == PNG
    assert str(net.transport.requests[0].url) == url.lower()
    assert net.looked_up == []


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:8001", "https://127.0.0.1:8000", "http://localhost:8000", "http://127.0.0.1", None]
)
async def test_another_port_scheme_or_name_is_another_origin(origin: str | None) -> None:
    net = Net()
    assert (await net.fails("http://127.0.0.1:8000/1.png", allowed_origin=origin)).code == "address"
    assert net.transport.requests == []


async def test_behind_a_proxy_the_proxy_looks_the_name_up() -> None:
    net = Net(names={}, environ={"HTTPS_PROXY": "http://proxy.example:3128"})
    assert await net.fetch() == PNG
    (request,) = net.transport.requests
    assert request.url.host == "pictures.example.net"
    assert "sni_hostname" not in request.extensions
    assert net.looked_up == []


async def test_behind_a_proxy_a_public_address_is_the_proxys_to_reach() -> None:
    net = Net(environ={"HTTPS_PROXY": "http://proxy.example:3128"})
    assert await net.fetch(f"https://{PUBLIC}/a.png") == PNG
    assert "sni_hostname" not in net.transport.requests[0].extensions


async def test_a_host_that_needs_no_proxy_is_looked_up_and_pinned() -> None:
    net = Net(environ={"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "example.net"})
    assert await net.fetch() == PNG
    assert net.transport.requests[0].url.host == PUBLIC


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(status: int) -> None:
    net = Net(httpx.Response(status, headers={"location": "http://127.0.0.1:8000/secret"}))
    problem = await net.fails()
    assert (problem.info.type, problem.code) == (ErrorType.MEDIA, "fetch")
    assert "not followed" in problem.message
    assert len(net.transport.requests) == 1


@pytest.mark.parametrize("status", [204, 206, 400, 401, 403, 404, 409, 410])
async def test_a_url_that_is_refused_is_not_asked_for_again(status: int) -> None:
    net = Net(httpx.Response(status))
    problem = await net.fails()
    assert (problem.info.type, problem.code) == (ErrorType.MEDIA, "fetch")
    assert len(net.transport.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        *(httpx.Response(status) for status in (408, 425, 429, 500, 502, 503, 504, 599)),
        *(httpx.ConnectError("x"), httpx.ReadError("x"), httpx.ConnectTimeout("x"), ConnectionResetError()),
        httpx.RemoteProtocolError("peer closed connection without sending complete message body"),
        lambda _: httpx.Response(200, headers={"content-type": "image/png"}, stream=httpx.ByteStream(PNG[:9])),
    ],
    ids=lambda fault: "cut" if callable(fault) else repr(fault),
)
async def test_a_passing_fault_is_tried_again_and_then_may_be_asked_for_later(fault: Answer) -> None:
    net = Net(fault, picture())
    assert await net.fetch() == PNG
    net = Net(fault)
    problem = await net.fails()
    assert isinstance(problem, ReplyError)
    assert problem.code == "fetch"
    assert len(net.transport.requests) == TRIES


async def test_each_try_takes_the_next_of_the_hosts_addresses() -> None:
    net = Net(httpx.ConnectError("x"), picture(), names={"pictures.example.net": [PUBLIC, "8.8.8.8"]})
    assert await net.fetch() == PNG
    assert [request.url.host for request in net.transport.requests] == [PUBLIC, "8.8.8.8"]


async def test_no_try_begins_when_the_time_is_up() -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        net.clock.advance(module.FETCH_S)
        return httpx.Response(503)

    net = Net(slow)
    assert isinstance(await net.fails(), ReplyError)
    assert len(net.transport.requests) == 1


async def test_every_try_has_only_what_is_left_of_the_time() -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        net.clock.advance(20)
        return httpx.Response(503)

    net = Net(slow)
    await net.fails()
    given = [request.extensions["timeout"]["read"] for request in net.transport.requests]
    assert given == [60, 60 - 20.5, 60 - 41.5]


async def test_a_body_without_an_end_is_cut_at_the_cap_and_not_asked_for_again() -> None:
    sent = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):  # noqa: ANN204 - httpx's own
            nonlocal sent
            while True:
                sent += 1 << 20
                yield b"\0" * (1 << 20)

    net = Net(lambda _: httpx.Response(200, headers={"content-type": "image/png"}, stream=Endless()))
    problem = await net.fails()
    assert (problem.info.type, problem.code) == (ErrorType.MEDIA, "too_large")
    assert sent <= REPLY_CAP_BYTES + (1 << 20)
    assert len(net.transport.requests) == 1


@pytest.mark.parametrize(
    "kind", ["image/png", "IMAGE/JPEG; x=y", "application/octet-stream", "binary/octet-stream", None]
)
async def test_a_pictures_type_is_taken(kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert await Net(httpx.Response(200, headers=headers, content=PNG)).fetch() == PNG


@pytest.mark.parametrize("kind", ["text/html", "application/json", "video/mp4", "text/plain; image/png", "x"])
async def test_another_type_is_no_picture(kind: str) -> None:
    problem = await Net(httpx.Response(200, headers={"content-type": kind}, content=PNG)).fails()
    assert (problem.info.type, problem.code) == (ErrorType.MEDIA, "fetch")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), MediaError),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), ReplyError),
        (OSError(24, "Too many open files"), ReplyError),
        (TimeoutError(), ReplyError),
    ],
    ids=repr,
)
async def test_a_name_that_cannot_be_looked_up_for_now_may_be_later(error: OSError, kind: type[RowProblem]) -> None:
    net = Net(names={"pictures.example.net": error})
    problem = await net.fails()
    assert type(problem) is kind
    assert problem.code == "fetch"


async def test_a_resolver_that_never_answers_is_given_up() -> None:
    async def never(host: str, port: int) -> Sequence[str]:
        await anyio.sleep_forever()
        raise AssertionError

    clock = SystemClock()
    async with Wire(MemoryTransport(lambda _: picture()), clock=clock) as wire:
        fetcher = Fetcher(wire, clock=clock, environ={}, resolve=never, timeout_s=0.01)
        with pytest.raises(ReplyError):
            await fetcher.fetch(URL, allowed_origin=None)
