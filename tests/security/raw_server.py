"""A socket that answers each request with the bytes that a function of it gives, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Answer = Callable[[bytes], bytes]


@dataclass(slots=True, kw_only=True)
class RawServer:
    """Where it listens, and the requests that have come, head and body."""

    port: int
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answer(status: int, body: bytes = b"{}", *headers: str) -> bytes:
    """A whole reply that closes its connection."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


@contextmanager
def raw_server(answers: Answer) -> Iterator[RawServer]:
    """Serve on loopback until the context ends."""
    found = RawServer(port=0)

    class Handler(socketserver.StreamRequestHandler):
        timeout = 20

        def handle(self) -> None:
            found.connections += 1
            head = b""
            length = 0
            while line := self.rfile.readline(65536):
                head += line
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
                if line in (b"\r\n", b"\n"):
                    break
            if not head:
                return
            request = head + self.rfile.read(length)
            found.requests.append(request)
            with contextlib.suppress(OSError):  # who has enough goes away
                self.wfile.write(answers(request))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        found.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
