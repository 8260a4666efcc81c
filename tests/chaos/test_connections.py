"""F14: names, connections and certificates: what passes is waited for, what does not stops the run.

Nothing is ever sent in clear or to a service that is not verified, and no row fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from chaos.hostile import WIRES, Line, serving
from chaos.names import MODES, ROWS, SLOW_S
from chaos.report import record, record_skip
from chaos.resources import start_run
from in_memory import Bench

from pipeline.run import run_job
from pipeline.store.summary import Summary

NAMES = Path(__file__).with_name("names.py")
REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}]}
BODY = json.dumps(REPLY).encode()
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
TRANSPORTS = ["as installed", "httpx"]

pytestmark = [pytest.mark.chaos, pytest.mark.anyio]


async def answer(line: Line) -> None:
    await line.write(ANSWER)


def bench(folder: Path, endpoint: str, *, bundle: Path | None = None, **run: Any) -> Bench:
    made = Bench(folder=folder, operation="chat").texts(*map(str, range(ROWS)))
    deployment = {"endpoint": endpoint, "api": "azure", "deployment": "d", "model": "gpt-4o"}
    if bundle is not None:
        deployment["ca_bundle"] = str(bundle)
    made.changes = {"deployments": [deployment], "run": {"workers": 2, "timeout": "10s", **run}}
    return made


async def ran(made: Bench, transport: str, authority: trustme.CA | None) -> Summary:
    """Run over the transport that is installed, or over the one that stands in."""
    if transport == "as installed":
        return await run_job(made.job())
    over = WIRES[transport](b"" if authority is None else authority.cert_pem.bytes())
    try:
        return await run_job(made.job(), transport=over)
    finally:
        await over.aclose()


def past(days: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def context(authority: trustme.CA, name: str, **dates: datetime) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name, **dates).configure_cert(made)
    return made


CERTIFICATES: dict[str, tuple[Callable[[trustme.CA, trustme.CA], ssl.SSLContext], str]] = {
    "expired": (lambda own, _: context(own, "127.0.0.1", not_before=past(9), not_after=past(2)), "expired"),
    "not yet valid": (lambda own, _: context(own, "127.0.0.1", not_before=past(-2), not_after=past(-9)), "clock"),
    "for another name": (lambda own, _: context(own, "other.example"), "another name"),
    "for another address": (lambda own, _: context(own, "127.0.0.2"), "another name"),
    "of an unknown issuer": (lambda _, other: context(other, "127.0.0.1"), "ca_bundle"),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("certificate", CERTIFICATES)
async def test_a_certificate_that_does_not_verify_stops_the_run_before_anything_is_sent(
    tmp_path: Path, transport: str, certificate: str
) -> None:
    own = trustme.CA()
    bundle = tmp_path / "ca.pem"
    own.cert_pem.write_to_path(str(bundle))
    make, said = CERTIFICATES[certificate]
    async with serving(answer, tls=make(own, trustme.CA()), keep=True) as service:
        made = bench(tmp_path, f"https://127.0.0.1:{service.port}", bundle=bundle)
        summary = await ran(made, transport, own)
        assert service.requests == []
    assert (summary.exit_code, summary.state) == (3, "refused")
    assert (summary.rows.ok, summary.rows.failed) == (0, 0)
    assert said in (summary.reason or "")
    async with serving(answer, tls=context(own, "127.0.0.1"), keep=True) as service:
        made = bench(tmp_path, f"https://127.0.0.1:{service.port}", bundle=bundle)
        assert (await ran(made, transport, own)).exit_code == 0
        assert len(service.requests) == ROWS
    record(fault="F14", what=f"a certificate {certificate}", tried=1, notes=f"{transport}: exit {summary.exit_code}")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_certificate_that_goes_bad_in_the_middle_of_a_run_stops_it(tmp_path: Path, transport: str) -> None:
    own = trustme.CA()
    bundle = tmp_path / "ca.pem"
    own.cert_pem.write_to_path(str(bundle))
    changing = context(own, "127.0.0.1")
    changing.num_tickets = 0  # a session that is resumed was verified when it began
    answered = 0

    async def handle(line: Line) -> None:
        nonlocal answered
        answered += 1
        if answered == ROWS // 2:
            own.issue_cert("other.example").configure_cert(changing)
        await answer(line)

    async with serving(handle, tls=changing, keep=True) as service:
        made = bench(tmp_path, f"https://127.0.0.1:{service.port}", bundle=bundle, workers=1)
        summary = await ran(made, transport, own)
        assert len(service.requests) == ROWS // 2
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (3, ROWS // 2, 0)
    record(fault="F14", what="a certificate replaced by another name's", tried=1, notes=f"{transport}: exit 3")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refused_connection_is_waited_for(tmp_path: Path, transport: str) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    made = bench(tmp_path, f"http://127.0.0.1:{port}", max_outage="1s")
    summary = await ran(made, transport, None)
    assert (summary.exit_code, summary.state) == (4, "stopped")
    assert (summary.rows.ok, summary.rows.failed) == (0, 0)
    assert "connect: The connection" in (summary.reason or "")
    made = bench(tmp_path, f"http://127.0.0.1:{port}")
    running = asyncio.create_task(ran(made, transport, None))
    await asyncio.sleep(1.0)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b'"}]}')
        writer.write(ANSWER.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", port):
        summary = await running
    assert (summary.exit_code, summary.rows.ok) == (0, ROWS)
    record(fault="F14", what="connection refused", tried=2, notes=f"{transport}: exit 4, or waited for; 0 rows failed")


@pytest.mark.parametrize("host", ["203.0.113.7", "service.example", "localhost.example", "127.0.0.1.example"])
def test_nothing_is_sent_in_clear_to_another_machine(tmp_path: Path, host: str) -> None:
    made = bench(tmp_path, f"http://{host}")
    log = tmp_path / "stderr.txt"
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(Exception, match="https"):
        made.job()
    assert start_run(tmp_path / "job.json", log=log).wait() == 2
    assert "https" in log.read_text()
    assert not (tmp_path / "out").exists()
    record(fault="F14", what="http to another machine", tried=1, notes="exit 2")


def has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-Urmn", "true"], check=False, capture_output=True).returncode == 0


EXPECTED = {
    "good": (0, ""),
    "slow": (0, ""),
    "servfail at first": (0, ""),
    "servfail": (4, "could not be looked up"),
    "silent": (4, "run.max_outage"),
    "nxdomain": (3, "does not exist"),
}
"""The exit code, and what the run says last."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_a_name_that_cannot_be_looked_up_is_waited_for_and_one_that_does_not_exist_stops_the_run(
    tmp_path: Path, mode: str
) -> None:
    if not has_namespaces():
        record_skip(fault="F14", why="names: this machine allows no namespaces (unshare)")
        pytest.skip("this machine allows no namespaces (unshare): the faults of names are NOT TESTED")
    done = subprocess.run(
        ["unshare", "-Urmn", sys.executable, str(NAMES), mode, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    code, said = EXPECTED[mode]
    assert found["exit_code"] == code, found["said"]
    assert said in found["said"]
    assert found["rows"]["failed"] == 0
    assert (found["seen"], found["rows"]["ok"]) == ((ROWS, ROWS) if code == 0 else (0, 0))
    notes = f"exit {code}, {SLOW_S} s a lookup" if mode == "slow" else f"exit {code}"
    record(fault="F14", what=f"a name server: {mode}", tried=1, notes=notes)
