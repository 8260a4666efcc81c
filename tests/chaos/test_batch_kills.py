"""SIGKILL before and after each call of the batch lane: no batch is submitted twice, no result stays unread."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from batch_scene import BatchScene

KILLS = int(os.environ.get("PIPELINE_BATCH_KILLS", "24"))
OCCURRENCES = 4
_ID = re.compile(r"/(file-|batch_)[0-9a-f]+")
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_800)]


class Killer:
    """Stands between the run and the service; kills the run once before and once after each call, counted by kind."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.points: list[tuple[str, int, str]] = []
        self._counts: Counter[str] = Counter()
        self._struck: set[tuple[str, int, str]] = set()
        self._lock = threading.Lock()

    def strikes(self, kind: str, number: int, moment: str) -> bool:
        point = (kind, number, moment)
        with self._lock:
            if len(self.points) >= KILLS or number > OCCURRENCES or point in self._struck:
                return False
            self._struck.add(point)
            self.points.append(point)
            assert self.process is not None
            os.killpg(self.process.pid, signal.SIGKILL)
            return True

    def number(self, kind: str) -> int:
        """Which of its kind a call is: one that was killed before it was carried out is made once more."""
        with self._lock:
            return self._counts[kind] + 1

    def carried_out(self, kind: str) -> None:
        with self._lock:
            self._counts[kind] += 1


def handler(killer: Killer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            path = self.path.split("?")[0].removeprefix("/openai/v1/")
            kind = f"{self.command} {_ID.sub('/ID', '/' + path)}"
            number = killer.number(kind)
            if killer.strikes(kind, number, "before"):
                self.close_connection = True
                return
            connection = http.client.HTTPConnection("127.0.0.1", killer.port)
            connection.request(self.command, self.path, body, dict(self.headers))
            reply = connection.getresponse()
            content = reply.read()
            connection.close()
            killer.carried_out(kind)
            if killer.strikes(kind, number, "after"):
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.getheaders():
                if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 - the base class's

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's
            pass

    return Handler


@contextmanager
def between(port: int) -> Iterator[tuple[Killer, str]]:
    killer = Killer(port)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(killer))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield killer, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_no_batch_is_submitted_twice_and_no_result_stays_unread(tmp_path: Path) -> None:
    offline = {"in_progress_s": 0.05, "ends": ["completed", "expired", "completed", "cancelled"], "done_share": 0.5}
    place = BatchScene(folder=tmp_path, rows=80, deployment={"enqueued_tokens": 800}, simulator={"offline": offline})
    with place.served() as simulator, between(simulator.port) as (killer, url):
        place.url = url
        job = place.write_job()
        command = [sys.executable, "-m", "pipeline", "run", str(job), "--progress", "none", "--json"]
        codes = []
        while not codes or codes[-1] != 0:
            with (tmp_path / "stderr.txt").open("ab") as errors:
                killer.process = subprocess.Popen(
                    command, env={**os.environ, "K": "k"}, stdout=errors, stderr=errors, start_new_session=True
                )
            codes.append(killer.process.wait(120))
            assert codes[-1] in {0, -signal.SIGKILL}, (tmp_path / "stderr.txt").read_text()[-2000:]
    place.assert_each_row_once()
    assert len(killer.points) == codes.count(-signal.SIGKILL)
    assert len(killer.points) >= min(KILLS, 40)
    print(f"{len(killer.points)} kills at {Counter(f'{moment} {kind}' for kind, _, moment in killer.points)}")
