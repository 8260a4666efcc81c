"""A server between a run and its service, which kills the run before and after each call."""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from forked import Child, popen

OCCURRENCES = 4
_ID = re.compile(r"/(file-|batch_|ftjob-)[0-9a-f]+")


class Killer:
    """Stands between the run and the service; kills the run once before and once after each call, counted by kind.

    At most `kills` times, once a process, and of each kind only its first calls, `each` of them; `only` names points
    such as ("POST /files", "after").
    """

    def __init__(
        self, port: int, *, kills: int, only: frozenset[tuple[str, str]] | None = None, each: int = OCCURRENCES
    ) -> None:
        self.port = port
        self._kills = kills
        self._each = each
        self._killed: Child | None = None
        self._only = only
        self.process: Child | None = None
        self.points: list[tuple[str, int, str]] = []
        self._counts: Counter[str] = Counter()
        self._struck: set[tuple[str, int, str]] = set()
        self._lock = threading.Lock()

    def strikes(self, kind: str, number: int, moment: str) -> bool:
        point = (kind, number, moment)
        with self._lock:
            if self._only is not None and (kind, moment) not in self._only:
                return False
            if len(self.points) >= self._kills or number > self._each or point in self._struck:
                return False
            if self.process is self._killed:
                return False  # a call of one that is dying
            self._struck.add(point)
            self.points.append(point)
            assert self.process is not None
            self._killed = self.process
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
    """What passes each call on."""

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
def between(
    port: int, *, kills: int, only: frozenset[tuple[str, str]] | None = None, each: int = OCCURRENCES
) -> Iterator[tuple[Killer, str]]:
    """Serve at a URL of its own what the service at `port` answers."""
    killer = Killer(port, kills=kills, only=only, each=each)
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


def run_to_the_end(killer: Killer, job: Path, errors: Path) -> list[int]:
    """Call `pipeline run` again and again until it ends with 0; gives the exit codes, all of them 0 or SIGKILL's."""
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        with errors.open("ab") as said:
            killer.process = popen(
                "pipeline",
                *("run", job, "--progress", "none", "--json"),
                env={**os.environ, "K": "k"},
                stdout=said.fileno(),
                stderr=said.fileno(),
                start_new_session=True,
            )
        codes.append(killer.process.wait(120))
        assert codes[-1] in {0, -signal.SIGKILL}, errors.read_text()[-2000:]
    return codes
