"""The independent witness: a line on disk when a request arrived and a line when its reply was handed to the socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson


def text_key(text: str) -> str:
    """Name a text by 8 bytes of its BLAKE2b digest, as 16 hex digits."""
    return blake2b(text.encode(), digest_size=8).hexdigest()


def messages_key(messages: Any) -> str:
    """Name a chat's messages by 8 bytes of the BLAKE2b digest of their JSON without spaces, its keys sorted."""
    return blake2b(orjson.dumps(messages, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()


def content_key(content: bytes) -> str:
    """Name a file's content by 8 bytes of its BLAKE2b digest, as 16 hex digits."""
    return blake2b(content, digest_size=8).hexdigest()


def body_digest(body: bytes) -> bytes:
    """Name a request's body by 8 bytes of its BLAKE2b digest."""
    return blake2b(body, digest_size=8).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A request came in whole. `keys` names what was asked, for the pairing with its answer; empty when unreadable.

    Each text of embeddings, completions, speech and images by `text_key`, the messages of a chat and the input of
    responses by `messages_key`, a recording by `content_key`.

    `session` counts the simulator's starts on this file from 0, `seq` the requests of one from 1; `t` is epoch seconds.
    """

    session: int
    seq: int
    t: float
    op: str
    deployment: str
    digest: str
    keys: tuple[str, ...]
    client_request_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A reply was handed to the socket. `tokens` is what the quota was charged.

    `status` is None when no status line was sent. `fault` names what was wrong with the reply: a kind of fault,
    `status` for an injected status, `client_gone` when nobody listened any more, `defect` when the simulator broke;
    None for an honest reply, refusals among them. `sent_bytes` is how much of a body left before it was cut or an error
    was put in the place of its rest; None elsewhere.

    `refused_by` says who answered 429: `requests`, `tokens` or `utilization` for a quota, or the name of a shortage,
    which `fault` has too. `served_by` is the deployment that answered in the place of the one that was asked.
    """

    session: int
    seq: int
    t: float
    status: int | None
    tokens: int
    fault: str | None
    sent_bytes: int | None = None
    refused_by: str | None = None
    served_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something happened beside calls: `what`, such as "batch.created" or "line", to whom, and its particulars.

    A "line" of a batch has `custom_id`, `keys` as of `Arrived`, and `status`.
    """

    session: int
    t: float
    what: str
    id: str
    details: dict[str, Any]


class Ledger:
    """Appends to the file, one write for all lines since the last turn of the event loop; only whole lines.

    `later` is handed the flush to be called soon. A torn line that a crash left at the end of the file is cut off.
    """

    def __init__(self, path: Path, *, now_s: float, later: Callable[[Callable[[], None]], object]) -> None:
        _cut_torn_line(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._later = later
        self._lines: list[bytes] = []
        self._append({"event": "started", "t": now_s, "pid": os.getpid()})

    def arrived(
        self,
        *,
        seq: int,
        t: float,
        op: str,
        deployment: str,
        digest: str,
        keys: tuple[str, ...],
        client_request_id: str | None,
    ) -> None:
        """Note that a request came in."""
        self._append(
            {
                "event": "arrived",
                "seq": seq,
                "t": t,
                "op": op,
                "deployment": deployment,
                "digest": digest,
                "keys": keys,
                "client_request_id": client_request_id,
            }
        )

    def answered(
        self,
        *,
        seq: int,
        t: float,
        status: int | None,
        tokens: int,
        fault: str | None,
        sent_bytes: int | None = None,
        refused_by: str | None = None,
        served_by: str | None = None,
    ) -> None:
        """Note that its reply left."""
        line = {"event": "answered", "seq": seq, "t": t, "status": status, "tokens": tokens, "fault": fault}
        seldom = {"sent_bytes": sent_bytes, "refused_by": refused_by, "served_by": served_by}
        self._append({**line, **{name: value for name, value in seldom.items() if value is not None}})

    def noted(self, *, t: float, what: str, name: str, details: dict[str, Any]) -> None:
        """Note what happened beside calls."""
        self._append({"event": "noted", "t": t, "what": what, "id": name, "details": details})

    def flush(self) -> None:
        """Write what is waiting. Raises OSError."""
        data = b"".join(self._lines)
        self._lines.clear()
        while data:
            data = data[os.write(self._fd, data) :]

    def close(self) -> None:
        """Write what is waiting and close the file."""
        self.flush()
        os.close(self._fd)

    def _append(self, line: dict[str, Any]) -> None:
        if not self._lines:
            self._later(self.flush)
        self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def read_ledger(path: Path) -> Iterator[Arrived | Answered]:
    """Read the calls of a ledger in the order of writing, also while it is written.

    A request is in flight when it arrived and was not answered. Raises OSError; ValueError for a damaged line.
    """
    return (entry for entry in _entries(path) if not isinstance(entry, Noted))


def read_notes(path: Path) -> Iterator[Noted]:
    """Read what a ledger noted beside calls, as `read_ledger` reads those."""
    return (entry for entry in _entries(path) if isinstance(entry, Noted))


def _entries(path: Path) -> Iterator[Arrived | Answered | Noted]:
    session = -1
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            values = orjson.loads(line)
            match values.pop("event"):
                case "started":
                    session += 1
                case "arrived":
                    values["keys"] = tuple(values["keys"])
                    yield Arrived(session=session, **values)
                case "answered":
                    yield Answered(session=session, **values)
                case "noted":
                    yield Noted(session=session, **values)
                case other:
                    raise ValueError(f"{path}: unknown ledger event {other!r}")


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("r+b") as file:
        data_end = file.seek(0, os.SEEK_END)
        position = data_end
        while position:
            start = max(0, position - 65_536)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position != data_end:
            file.truncate(position)
