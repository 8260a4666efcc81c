"""Rows a second, CPU a request and peak memory, of this runner and of what people use instead, over one bare server.

    python benchmarks/peers.py [--quick] [--rounds 3] [--latency-ms 20] [--in-flight 10 100 500 2000] [--spread]
                               [--peers-python PYTHON] [--json FILE] [--plot FILE] [--docs FILE]

The server is another process on another core, answers a fixed body after the latency, and its own ceiling is printed.
Every client is a process of its own on the first core, with `--spread` on any; what it imports and opens beforehand is
not counted. Rounds are interleaved, medians are printed. The runner keeps every row durable and writes Parquet; of the
others only the cookbook's way writes anything. PYTHON is an interpreter with litellm and matplotlib, for that peer and
the plot. `--docs` puts the tables in the place of those between the marks of a page.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import os
import platform
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

DIMENSIONS = 1536
INPUTS = 16
"""Texts that one embeddings request holds."""
MOST_S = 4.0
"""Seconds that the latency alone may make a run last; fewer rows are sent where they would take longer."""
ROWS = {"pipeline": 20_000, "aiohttp": 5_000, "cookbook": 3_000, "openai": 1_000, "httpx": 1_000, "litellm": 500}
"""Requests that each client sends, but as many at least as are in flight."""
SIZES = {"pipeline": (1_000, 10_000, 100_000), "aiohttp": (1_000, 10_000, 100_000), "cookbook": (1_000, 5_000)}
"""Chat rows by which a client's cost is held against the rows."""
OTHER_SIZES = (500, 2_000)
"""The same, of clients for which more would take minutes each."""
NAMES = {
    "pipeline": "this runner: durable rows, attempts, Parquet",
    "aiohttp": "aiohttp, bare POST loop",
    "cookbook": "the cookbook's parallel processor",
    "openai": "openai SDK + asyncio.Semaphore",
    "httpx": "httpx, one AsyncClient",
    "litellm": "litellm + asyncio.Semaphore",
}
CHAT = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "The tide turns twice a day. " * 18},
            }
        ],
        "usage": {"prompt_tokens": 190, "completion_tokens": 110, "total_tokens": 300},
    }
).encode()


def embeddings(*, as_base64: bool) -> bytes:
    """A reply with a vector for each input, in the form that was asked for."""
    dice = random.Random(1)
    vector = [round(dice.uniform(-0.1, 0.1), 7) for _ in range(DIMENSIONS)]
    shown = base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode() if as_base64 else vector
    data = [{"object": "embedding", "index": index, "embedding": shown} for index in range(INPUTS)]
    usage = {"prompt_tokens": 60 * INPUTS, "total_tokens": 60 * INPUTS}
    return json.dumps({"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}).encode()


def reply(body: bytes) -> bytes:
    """The whole reply, with limits that never bind and the headers that Azure sends."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: 12345678-1234-1234-1234-123456789012\r\n"
        b"apim-request-id: 12345678-1234-1234-1234-123456789012\r\nx-ms-region: East US 2\r\n"
        b"x-ratelimit-limit-requests: 100000000\r\nx-ratelimit-remaining-requests: 99999999\r\n"
        b"x-ratelimit-limit-tokens: 100000000000\r\nx-ratelimit-remaining-tokens: 99999999999\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    ) + body


REPLIES = {
    "chat": reply(CHAT),
    "base64": reply(embeddings(as_base64=True)),
    "floats": reply(embeddings(as_base64=False)),
}


class Requests(asyncio.Protocol):
    """Puts requests together, one at a time on a connection, and hands each to `asked`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._came = bytearray()

    def data_received(self, data: bytes) -> None:
        self._came += data
        end = self._came.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._came[:end]).lower()
        at = head.find(b"content-length:") + 15
        length = int(head[at:].split(b"\r\n", 1)[0])
        if len(self._came) < end + 4 + length:
            return
        request, self._came = self._came, bytearray()
        self.asked(head, request)

    def asked(self, head: bytes, request: bytearray) -> None:
        """Answer a request; `head` is its head in lower case."""
        raise NotImplementedError

    def answer(self, reply: bytes) -> None:
        """Write a whole reply."""
        self._transport.write(reply)


class Server(Requests):
    """Answers each request, after the latency."""

    latency_s = 0.0

    def asked(self, head: bytes, request: bytearray) -> None:
        kind = "chat"
        if b"/embeddings" in head[: head.find(b"\r\n")]:
            kind = "base64" if b'"base64"' in request else "floats"
        if self.latency_s:
            asyncio.get_running_loop().call_later(self.latency_s, self.answer, REPLIES[kind])
        else:
            self.answer(REPLIES[kind])


async def serve(latency_s: float) -> None:
    Server.latency_s = latency_s
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# -- clients ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a client is to send."""

    base: str
    operation: str
    requests: int
    in_flight: int
    folder: Path

    @property
    def texts(self) -> Iterator[str]:
        """The rows."""
        count = self.requests * (INPUTS if self.operation == "embeddings" else 1)
        for number in range(count):
            yield f"Row {number} speaks of the tide at quay {number * 7919 % 100_003}. " * 15

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.operation == "chat" else "/v1/embeddings"

    def bodies(self, *, as_base64: bool) -> Iterator[dict[str, Any]]:
        """The requests' bodies."""
        texts = self.texts
        if self.operation == "chat":
            for text in texts:
                yield {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], "max_tokens": 200}
            return
        form = {"encoding_format": "base64"} if as_base64 else {}
        while some := list(itertools.islice(texts, INPUTS)):
            yield {"model": "text-embedding-3-small", "input": some, **form}


HEADERS = {"authorization": "Bearer k", "content-type": "application/json"}
Timed = Callable[[Awaitable[Any]], Any]


def read(operation: str, body: bytes) -> None:
    """Take out of a reply what a script would keep."""
    answer = json.loads(body)
    if operation == "chat":
        assert answer["choices"][0]["message"]["content"]  # noqa: S101 - a benchmark of right answers
    else:
        import numpy as np  # noqa: PLC0415 - not every client's

        vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
        assert [len(one) for one in vectors] == [DIMENSIONS] * INPUTS  # noqa: S101 - as above


async def pull(load: Load, post: Callable[[dict[str, Any]], Awaitable[None]], *, as_base64: bool = True) -> None:
    """So many workers, which share the rows."""
    bodies = load.bodies(as_base64=as_base64)

    async def work() -> None:
        for body in bodies:
            await post(body)

    await asyncio.gather(*(work() for _ in range(load.in_flight)))


async def with_semaphore(load: Load, post: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """A task a row, held back by a semaphore."""
    semaphore = asyncio.Semaphore(load.in_flight)

    async def one(body: dict[str, Any]) -> None:
        async with semaphore:
            await post(body)

    await asyncio.gather(*(one(body) for body in load.bodies(as_base64=False)))


async def by_aiohttp(load: Load) -> tuple[float, float]:
    import aiohttp  # noqa: PLC0415 - each client's own

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=load.in_flight)) as session:

        async def post(body: dict[str, Any]) -> None:
            async with session.post(load.base + load.path, json=body, headers=HEADERS) as answer:
                read(load.operation, await answer.read())

        return await timed(pull(load, post))


async def by_httpx(load: Load) -> tuple[float, float]:
    import httpx  # noqa: PLC0415 - each client's own

    limits = httpx.Limits(max_connections=load.in_flight, max_keepalive_connections=load.in_flight)
    async with httpx.AsyncClient(limits=limits, timeout=600, trust_env=False) as client:

        async def post(body: dict[str, Any]) -> None:
            answer = await client.post(load.base + load.path, json=body, headers=HEADERS)
            read(load.operation, answer.content)

        return await timed(pull(load, post))


async def by_openai(load: Load) -> tuple[float, float]:
    import openai  # noqa: PLC0415 - each client's own

    async with openai.AsyncOpenAI(api_key="k", base_url=f"{load.base}/v1", max_retries=0) as client:

        async def post(body: dict[str, Any]) -> None:
            if load.operation == "chat":
                answer = await client.chat.completions.create(**body)
                assert answer.choices[0].message.content  # noqa: S101 - a benchmark of right answers
            else:
                vectors = await client.embeddings.create(**body)
                assert len(vectors.data[-1].embedding) == DIMENSIONS  # noqa: S101 - as above

        return await timed(with_semaphore(load, post))


async def by_litellm(load: Load) -> tuple[float, float]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm  # noqa: PLC0415 - each client's own

    async def post(body: dict[str, Any]) -> None:
        given = {**body, "model": f"openai/{body['model']}"}
        if load.operation == "chat":
            answer = await litellm.acompletion(api_base=f"{load.base}/v1", api_key="k", num_retries=0, **given)
            assert answer.choices[0].message.content  # noqa: S101 - a benchmark of right answers
        else:
            vectors = await litellm.aembedding(api_base=f"{load.base}/v1", api_key="k", **given)
            assert len(vectors.data[-1]["embedding"]) == DIMENSIONS  # noqa: S101 - as above

    return await timed(with_semaphore(load, post))


async def by_cookbook(load: Load) -> tuple[float, float]:
    """The published script's way, in short: one loop that starts a request where the limits of a minute allow it.

    It looks once a millisecond, retries from a queue, appends each answer to a file, and has no bound in flight. Its
    counting of tokens is left out.
    """
    import aiohttp  # noqa: PLC0415 - each client's own

    results = load.folder / "results.jsonl"
    retries: deque[dict[str, Any]] = deque()
    under_way: set[asyncio.Task[None]] = set()

    async def call(session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        try:
            async with session.post(load.base + load.path, json=body, headers=HEADERS) as answer:
                said = await answer.json()
        except aiohttp.ClientError:
            retries.append(body)
            return
        with results.open("a") as file:
            file.write(json.dumps([body, said]) + "\n")

    async def go() -> None:
        per_minute = 100_000_000.0
        left, looked_at = per_minute, time.monotonic()
        bodies = load.bodies(as_base64=False)
        async with aiohttp.ClientSession() as session:
            while (body := retries.popleft() if retries else next(bodies, None)) is not None or under_way:
                now = time.monotonic()
                left, looked_at = min(per_minute, left + per_minute * (now - looked_at) / 60), now
                if body is not None and left >= 1:
                    left -= 1
                    task = asyncio.create_task(call(session, body))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                await asyncio.sleep(0.001)

    return await timed(go())


async def by_pipeline(load: Load) -> tuple[float, float]:
    from pipeline import load_job, run_job  # noqa: PLC0415 - each client's own
    from pipeline.cores import on_one_core  # noqa: PLC0415
    from pipeline.memory import collect_seldom, keep_memory_small  # noqa: PLC0415

    # What the command does, too.
    keep_memory_small()

    with (load.folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": f"r{number}", "text": text}) + "\n" for number, text in enumerate(load.texts))
    request: dict[str, Any] = {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 200}
    deployment = {"endpoint": load.base, "api": "openai", "deployment": "d", "key": "${K}", "model": "gpt-4o-mini"}
    if load.operation == "embeddings":
        request = {"input": "{{ text }}"}
        deployment |= {"model": "text-embedding-3-small", "max_inputs": INPUTS}
    job = {
        "operation": load.operation,
        "input": {"path": "rows.jsonl", "id": "id"},
        "request": request,
        "deployments": [deployment],
        "run": {"workers": load.in_flight},
        "output": {"path": "out"},
    }
    path = load.folder / "job.yaml"
    path.write_text(json.dumps(job))
    os.environ["K"] = "k"
    loaded = load_job(path)
    collect_seldom()

    async def go() -> None:
        summary = await run_job(loaded)
        if summary.rows.ok != sum(1 for _ in load.texts):
            raise SystemExit(f"not every row is ok: {summary}")

    with on_one_core():
        return await timed(go())


CLIENTS: dict[str, Callable[[Load], Awaitable[tuple[float, float]]]] = {
    "pipeline": by_pipeline,
    "aiohttp": by_aiohttp,
    "cookbook": by_cookbook,
    "openai": by_openai,
    "httpx": by_httpx,
    "litellm": by_litellm,
}


def cpu_s() -> float:
    """User and system seconds of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


async def timed(work: Awaitable[None]) -> tuple[float, float]:
    """Seconds, and seconds of CPU."""
    began, used = time.perf_counter(), cpu_s()
    await work
    return time.perf_counter() - began, cpu_s() - used


def run_client(options: argparse.Namespace) -> None:
    """Send what is asked for, and print what it took, as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        load = Load(
            base=options.base,
            operation=options.operation,
            requests=options.requests,
            in_flight=options.in_flight[0],
            folder=Path(folder),
        )
        took = run(CLIENTS[options.client](load))
        print(json.dumps([*took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6]))


def run(work: Any) -> Any:
    """Run on uvloop, where it is installed."""
    try:
        import uvloop  # noqa: PLC0415 - litellm's environment has none
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


# -- the comparison --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Medians of one client under one load."""

    client: str
    operation: str
    in_flight: int
    latency_ms: float
    requests: int
    rows_per_second: float
    cpu_us_per_request: float
    cpu_us_per_row: float
    peak_mb: float


@contextlib.contextmanager
def serving(latency_ms: float) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


class Prober(asyncio.Protocol):
    """Asks again as soon as it is answered: the least that a client can do."""

    left = 0

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._missing -= len(data)
        if self._missing <= 0:
            self._ask()

    def _ask(self) -> None:
        if Prober.left <= 0:
            self._transport.close()
            self._ended.set()
            return
        Prober.left -= 1
        self._missing = len(REPLIES["chat"])
        self._transport.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 900\r\n\r\n" + b"x" * 900)


async def ceiling(base: str, requests: int = 50_000) -> float:
    """Requests a second of the server, without a latency, asked by next to nothing over 100 connections."""
    Prober.left = requests
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    port = int(base.rpartition(":")[2])
    await asyncio.gather(*(loop.create_connection(lambda: Prober(ended), "127.0.0.1", port) for _ in range(100)))
    await ended.wait()
    return requests / (time.perf_counter() - began)


def measure(client: str, base: str, operation: str, *, requests: int, in_flight: int, python: str) -> list[float]:
    """Seconds, seconds of CPU, and MB of peak resident memory, imports included, of one client's run."""
    command = [python, __file__, "--client", client, "--base", base, "--operation", operation]
    command += ["--requests", str(requests), "--in-flight", str(in_flight)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return cast("list[float]", json.loads(done.stdout.splitlines()[-1]))


def compare(
    counts: dict[str, int], operation: str, in_flight: int, latency_ms: float, options: argparse.Namespace
) -> list[Figures]:
    """Measure each client in turn, as often as is asked for; `counts` are the requests that each sends."""
    found: dict[str, list[list[float]]] = {client: [] for client in counts}
    with serving(latency_ms) as base:
        for _ in range(options.rounds):
            for client, requests in counts.items():
                python = options.peers_python if client == "litellm" else sys.executable
                found[client].append(
                    measure(client, base, operation, requests=requests, in_flight=in_flight, python=python)
                )
    figures = []
    for client, runs in found.items():
        figures.append(figures_of(client, operation, in_flight, latency_ms, counts[client], runs))
        print(line(figures[-1]), flush=True)
    return figures


def figures_of(
    client: str, operation: str, in_flight: int, latency_ms: float, requests: int, runs: Sequence[Sequence[float]]
) -> Figures:
    """The medians of a client's runs."""
    seconds, used, peak = (statistics.median(some) for some in zip(*runs, strict=True))
    each = INPUTS if operation == "embeddings" else 1
    return Figures(
        client=client,
        operation=operation,
        in_flight=in_flight,
        latency_ms=latency_ms,
        requests=requests,
        rows_per_second=round(requests * each / seconds),
        cpu_us_per_request=round(used / requests * 1e6),
        cpu_us_per_row=round(used / requests * 1e6 / each, 1),
        peak_mb=round(peak),
    )


def sizes(clients: Sequence[str], latency_ms: float, options: argparse.Namespace) -> list[Figures]:
    """What each client makes of fewer and of more rows, 100 in flight."""
    of = {client: SIZES.get(client, OTHER_SIZES) for client in clients}
    rounds = (
        {client: rows[place] for client, rows in of.items() if place < len(rows)}
        for place in range(max(map(len, of.values())))
    )
    return [one for counts in rounds for one in compare(counts, "chat", 100, latency_ms, options)]


def size(client: str, operation: str, in_flight: int, latency_ms: float, options: argparse.Namespace) -> int:
    """How many requests a client sends: few enough that the latency alone does not make it long."""
    most = ROWS[client] // (4 if options.quick else 1) // (4 if operation == "embeddings" else 1)
    if latency_ms:
        most = min(most, round(MOST_S * in_flight / latency_ms * 1000))
    return max(most, in_flight)


def line(found: Figures) -> str:
    return (
        f"{found.operation:<10} {found.in_flight:>6} {found.latency_ms:>7.0f} {found.rows_per_second:>9,} "
        f"{found.cpu_us_per_request:>12,} {found.cpu_us_per_row:>9,} {found.peak_mb:>8,}  {NAMES[found.client]}"
    )


def bound(options: argparse.Namespace) -> list[Figures]:
    """What the runner makes of latencies that alone decide: 100 in flight at 100 ms, 1,000 at a second."""
    found = []
    for in_flight, latency_ms, requests in ((100, 100.0, 10_000), (1_000, 1000.0, 10_000)):
        with serving(latency_ms) as base:
            run = measure("pipeline", base, "chat", requests=requests, in_flight=in_flight, python=sys.executable)
        one = figures_of("pipeline", "chat", in_flight, latency_ms, requests, [run])
        share = one.rows_per_second / (in_flight / latency_ms * 1000)
        print(f"{line(one)}: {share:.1%} of in flight ÷ latency", flush=True)
        found.append(one)
        if options.quick:
            break
    return found


def machine() -> dict[str, Any]:
    """What it ran on."""
    model = platform.processor()
    with contextlib.suppress(OSError):
        for said in Path("/proc/cpuinfo").read_text().splitlines():
            if said.startswith("model name"):
                model = said.partition(":")[2].strip()
    return {
        "platform": platform.platform(),
        "processor": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": [round(one, 2) for one in os.getloadavg()],
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100 in flight, a quarter of the rows, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[10, 100, 500, 2000])
    parser.add_argument("--only", nargs="+", choices=list(CLIENTS), help="these clients alone")
    parser.add_argument("--spread", action="store_true", help="leave all cores to the clients")
    parser.add_argument("--peers-python", help="an interpreter with litellm and matplotlib")
    parser.add_argument("--json")
    parser.add_argument("--plot", help="write the plot there, an .svg or .png")
    parser.add_argument("--docs", help="put the tables between the marks of this page")
    parser.add_argument("--from-json", help="measure nothing; take the figures of this file")
    for hidden in ("--client", "--base", "--operation"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--requests", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0)) if not (options.client or options.serve) else None
        if cores:
            os.environ["BENCHMARK_CORES"] = f"{cores[0]},{cores[-1]}"
        first, last = os.environ["BENCHMARK_CORES"].split(",")
        os.environ |= {"BENCHMARK_SPREAD": "1"} if options.spread else {}
        if options.serve or "BENCHMARK_SPREAD" not in os.environ:
            os.sched_setaffinity(0, {int(last if options.serve else first)})
    if options.serve:
        run(serve(options.latency_ms / 1000))
    elif options.client:
        run_client(options)
    else:
        report(options)


MARKS = ("<!-- figures of benchmarks/peers.py -->", "<!-- end of figures -->")


def markdown(found: dict[str, Any]) -> str:
    """The tables of a page, and what they were measured on."""
    on, figures = found["machine"], found["figures"]
    load = f"load average {on['load'][0]} before and {found['load_after']:.1f} after"
    box = f"{on['processor']}, {on['cores']} cores, Python {on['python']}, {on['platform'].partition('-')[0]}"
    most = f"The server alone, without a latency: {found['server_requests_per_second']:,} requests/s."
    said = [f"{box}; {on['at']}; {load}; rounds: {found['rounds']}. {most}"]
    tables = {
        "Chat:": [one for one in figures if one["operation"] == "chat"],
        f"Embeddings, {INPUTS} inputs a request, {DIMENSIONS} floats:": [
            one for one in figures if one["operation"] == "embeddings"
        ],
        "Chat, by the number of rows:": found["sizes"],
    }
    for title, some in tables.items():
        if not some:
            continue
        said += ["", title, ""]
        said += ["| in flight | latency, ms | client | requests | rows/s | CPU µs a request | CPU µs a row | peak MB |"]
        said += ["|---|---|---|---|---|---|---|---|"]
        said += [
            f"| {one['in_flight']:,} | {one['latency_ms']:.0f} | {NAMES[one['client']]} | {one['requests']:,} | "
            f"{one['rows_per_second']:,} | {one['cpu_us_per_request']:,} | {one['cpu_us_per_row']:,} | "
            f"{one['peak_mb']:,} |"
            for one in some
        ]
    return "\n".join(said)


def put(page: Path, text: str) -> None:
    """Put the text between the marks."""
    before, _, rest = page.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}")


def report(options: argparse.Namespace) -> None:
    """Compare, print the table, write the file, the plot and the page."""
    if options.from_json:
        found = json.loads(Path(options.from_json).read_text())
        target = Path(options.from_json)
    else:
        found = compared(options)
        target = Path(options.json) if options.json else Path(tempfile.gettempdir()) / "peers.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found, indent=1) + "\n")
    if options.docs:
        plot = f"\n\n![Rows a second, CPU a request and peak memory]({Path(options.plot).name})" if options.plot else ""
        put(Path(options.docs), markdown(found) + plot)
    if options.plot:
        Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
        python = options.peers_python or sys.executable
        subprocess.run([python, str(Path(__file__).with_name("plot.py")), str(target), options.plot], check=True)


def compared(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, and print the table."""
    if options.quick:
        options.in_flight, options.rounds = [100], 1
    clients = options.only or [client for client in CLIENTS if client != "litellm" or options.peers_python]
    before = machine()
    print(json.dumps(before))
    with serving(0.0) as base:
        most = run(ceiling(base))
    print(f"the server alone: {most:,.0f} requests/s over 100 connections")
    print("operation  flight latency    rows/s   CPU µs/req   µs/row  peak MB")
    figures = []
    for in_flight in options.in_flight:
        # The cookbook's way has no bound in flight, so it is measured once.
        some = [client for client in clients if client != "cookbook" or in_flight == 100]
        counts = {client: size(client, "chat", in_flight, options.latency_ms, options) for client in some}
        figures += compare(counts, "chat", in_flight, options.latency_ms, options)
    counts = {client: size(client, "embeddings", 100, options.latency_ms, options) for client in clients}
    figures += compare(counts, "embeddings", 100, options.latency_ms, options)
    figures += bound(options) if "pipeline" in clients else []
    return {
        "machine": before,
        "load_after": os.getloadavg()[0],
        "server_requests_per_second": round(most),
        "rounds": options.rounds,
        "figures": [asdict(one) for one in figures],
        "sizes": [] if options.quick else [asdict(one) for one in sizes(clients, options.latency_ms, options)],
    }


if __name__ == "__main__":
    main()
