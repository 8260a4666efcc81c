"""Runs `pipeline run` beside a name server of its own: `unshare -Urmn python names.py MODE FOLDER`.

The network and the mounts must be its own: it takes port 53 of loopback and puts its own /etc/resolv.conf in place. It
prints the run's exit code, the requests that its service saw and what the run said last.
"""

from __future__ import annotations

import fcntl
import http.server
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import trustme

HOST = "service.test"
ROWS = 6
A_RECORD, AAAA_RECORD = 1, 28
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
SLOW_S = 1.5
REPLY = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
MODES = ("good", "slow", "servfail at first", "servfail", "silent", "nxdomain")
HOPELESS = ("servfail", "silent", "nxdomain")


def raise_loopback() -> None:
    """Bring the new network's loopback up."""
    name, up = b"lo", 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", name, up))  # SIOCSIFFLAGS


def answer(query: bytes, *, code: int) -> bytes:
    """Answer a query for an address: 127.0.0.1 for IPv4, none for IPv6, or an error."""
    end = query.index(b"\0", 12) + 5
    (asked,) = struct.unpack("!H", query[end - 4 : end - 2])
    found = code == NOERROR and asked == A_RECORD
    head = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, found, 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", A_RECORD, 1, 0, 4) + b"\x7f\0\0\1"
    return head + query[12:end] + (record if found else b"")


def serve_names(mode: str) -> None:
    """Answer on port 53 of loopback as a mode has it."""
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.bind(("127.0.0.1", 53))
    asked = 0
    while True:
        query, address = one.recvfrom(4096)
        asked += 1
        if mode == "silent":
            continue
        if mode == "slow":
            time.sleep(SLOW_S / 2)
        broken = mode == "servfail" or (mode == "servfail at first" and asked <= 12)
        code = SERVFAIL if broken else NXDOMAIN if mode == "nxdomain" else NOERROR
        one.sendto(answer(query, code=code), address)


class Chat(http.server.BaseHTTPRequestHandler):
    """Answers every chat the same."""

    seen = 0

    def do_POST(self) -> None:
        """Answer."""
        Chat.seen += 1
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(REPLY).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Run the job of one mode."""
    mode, folder = sys.argv[1], Path(sys.argv[2])
    raise_loopback()
    resolver = folder / "resolv.conf"
    resolver.write_text(f"nameserver 127.0.0.1\noptions timeout:{5 if mode == 'slow' else 1} attempts:1\n")
    subprocess.run(["mount", "--bind", str(resolver), "/etc/resolv.conf"], check=True)
    threading.Thread(target=serve_names, args=(mode,), daemon=True).start()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Chat)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(ROWS)))
    deployment = {"endpoint": f"https://{HOST}:{server.server_port}", "api": "azure", "deployment": "d"}
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl"},
        "request": {"messages": [{"role": "user", "content": "{{ text }}"}]},
        "deployments": [{**deployment, "model": "gpt-4o", "ca_bundle": "ca.pem"}],
        "output": {"path": "out"},
        "run": {"workers": 2, "timeout": "20s", "max_outage": "6s" if mode in HOPELESS else "90s"},
    }
    (folder / "job.json").write_text(json.dumps(job))
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    run = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(folder / "job.json"), "--progress", "none", "--json"],
        env={**environ, "AZURE_OPENAI_API_KEY": "0123456789abcdef"},
        capture_output=True,
        text=True,
        check=False,
    )
    summary = json.loads((folder / "out" / "_pipeline" / "summary.json").read_text())
    print(json.dumps({"exit_code": run.returncode, "seen": Chat.seen, "rows": summary["rows"], "said": run.stderr}))


if __name__ == "__main__":
    main()
