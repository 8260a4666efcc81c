"""Asks a resource for what it keeps: its files, and calls that end well or say what became of them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import anyio
import orjson

from pipeline.model import ErrorInfo, ErrorType, NoReply, Reply
from pipeline.pace.retry import full_jitter
from pipeline.pace.verdict import Answered, BadReply, Throttled, Transient, Unauthorized
from pipeline.service.address import Address
from pipeline.service.classify import classify
from pipeline.service.wire import Pieces

if TYPE_CHECKING:
    from pipeline.clock import Clock
    from pipeline.service.auth import Credentials
    from pipeline.service.wire import Wire

TAG = "pipeline_tag"
"""The metadata under which a batch or a training says which of ours it is."""
CALL_S = 120.0
"""Seconds for one call that moves no file."""
MOVE_S = 3600.0
"""Seconds for one call that moves a file."""
TRIES = 8
"""Attempts of a call that changes nothing, or that may be made twice."""
LONGEST_PAUSE_S = 60.0
"""Seconds; the longest pause between those that no reply asked for."""
LONGEST_HINT_S = 120.0
"""Seconds; where a reply asks for a longer pause the call is given up: whoever made it knows how long that may be."""
_CHUNK_BYTES = 1 << 18
_PAGE = 100
_MOST_PAGES = 200
_NOT_FOUND = 404
_TOO_MANY = 429


class LostError(Exception):
    """A call was sent, and no reply came that says whether it was carried out."""

    def __init__(self, error: ErrorInfo) -> None:
        self.error = error
        super().__init__(error.message)


class RefusedCallError(Exception):
    """The service refuses a call; sending it again would be refused again. `status` is None where it was not HTTP's."""

    def __init__(self, error: ErrorInfo) -> None:
        self.error = error
        self.status = error.http_status
        super().__init__(f"{error.code}: {error.message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file that the service keeps. `ready`: it was looked at, and can be used; `broken`: it cannot."""

    id: str
    name: str
    bytes: int
    ready: bool
    broken: bool


class ResourceApi:
    """What one deployment's resource keeps. Used from one event loop.

    Calls that change nothing are tried again, with pauses; a lost upload or submission raises LostError, for asking
    again might do it twice. All raise RefusedCallError, and RefusedError where no credential can be had.
    """

    def __init__(
        self,
        *,
        address: Address,
        wire: Wire,
        credentials: Credentials,
        headers: Mapping[str, str],
        clock: Clock,
        random: Callable[[], float],
        attempted: Callable[[], None] = lambda: None,
    ) -> None:
        """`random` gives numbers from 0 to 1; `attempted` is called at the end of each attempt."""
        self._attempted = attempted
        self._address = address
        self._wire = wire
        self._credentials = credentials
        # Bodies are compared with lengths that the service names, so they must come as they are.
        self._headers = {**headers, "accept-encoding": "identity"}
        self._clock = clock
        self._random = random

    # -- files -------------------------------------------------------------------------------------------------------

    async def upload(self, path: Path, *, name: str, purpose: str, expires_s: int | None) -> RemoteFile:
        """Upload lines under a name. Raises LostError."""
        fields = {"purpose": purpose}
        if expires_s is not None:
            fields |= {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(expires_s)}
        boundary = secrets.token_hex(16)
        body = _form(path, name, fields, boundary)
        content_type = f"multipart/form-data; boundary={boundary}"
        return _file(await self.call("POST", "files", body=body, content_type=content_type, once=True, limit_s=MOVE_S))

    async def file(self, name: str) -> RemoteFile | None:
        """Look at a file; None where there is none of that id."""
        found = await self.find(f"files/{name}")
        return None if found is None else _file(found)

    async def find_file(self, name: str, *, purpose: str) -> RemoteFile | None:
        """Find a file by the name under which it was uploaded; None where there is none."""
        async for shown in self.pages("files", {"purpose": purpose}):
            if shown.get("filename") == name:
                return _file(shown)
        return None

    async def delete_file(self, name: str) -> None:
        """Delete a file, if it is still there."""
        try:
            await self.call("DELETE", f"files/{name}")
        except RefusedCallError as refused:
            if refused.status != _NOT_FOUND:
                raise

    async def download(self, name: str, to: BinaryIO) -> None:
        """Write a file's whole content at the start of `to`, which is cut there.

        One that comes shorter than the service says is fetched again. Raises LostError, OSError.
        """
        known = await self.file(name)
        size = None if known is None else known.bytes
        for attempt in range(TRIES):
            to.seek(0)
            to.truncate()
            reply = await self._asked(lambda: self._send("GET", f"files/{name}/content", limit_s=MOVE_S, sink=to.write))
            error = _error_of(reply)
            if error is not None and not _may_pass(reply):
                raise RefusedCallError(error)
            if error is None:
                if not size or to.tell() == size:
                    return
                error = _bad_reply(f"the file {name} came with {to.tell()} bytes of {size}")
            if attempt + 1 == TRIES or _asked_pause_s(reply) > LONGEST_HINT_S:
                raise LostError(error)
            await self._pause(reply, attempt)

    # -- calls -------------------------------------------------------------------------------------------------------

    async def find(self, path: str) -> dict[str, Any] | None:
        """Look at one thing; None where there is none of that name."""
        try:
            return await self.call("GET", path)
        except RefusedCallError as refused:
            if refused.status == _NOT_FOUND:
                return None
            raise

    async def pages(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        """List everything of a kind, page by page, in the service's order."""
        after: dict[str, str] = {}
        for _ in range(_MOST_PAGES):
            shown = await self.call("GET", path, query={**query, "limit": str(_PAGE), **after}, holds="data")
            entries = [entry for entry in shown.get("data") or () if isinstance(entry, dict)]
            for entry in entries:
                yield entry
            if not shown.get("has_more") or not entries or not isinstance(entries[-1].get("id"), str):
                return
            after = {"after": entries[-1]["id"]}

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Pieces | None = None,
        content_type: str = "application/json",
        once: bool = False,
        limit_s: float = CALL_S,
        holds: str = "id",
    ) -> dict[str, Any]:
        """Make a call, and read the object that it is answered with, which `holds` a field.

        `once`: it is not made again when it is lost.
        """
        for attempt in range(TRIES):
            reply = await self._asked(
                lambda: self._send(method, path, query=query, body=body, content_type=content_type, limit_s=limit_s)
            )
            error = _error_of(reply)
            if error is None:
                assert isinstance(reply, Reply)  # noqa: S101 - it was answered
                shown = _object(reply.body)
                if shown is not None and shown.get(holds) is not None:
                    return shown
                error = _bad_reply(f"the service's answer is no JSON object with `{holds}`")
            elif not _may_pass(reply):
                raise RefusedCallError(error)
            # What was refused for being too early was not carried out; of a fault nobody knows.
            lost = not (isinstance(reply, Reply) and reply.status == _TOO_MANY)
            if (once and lost) or attempt + 1 == TRIES or _asked_pause_s(reply) > LONGEST_HINT_S:
                raise LostError(error)
            await self._pause(reply, attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _asked(self, send: Callable[[], Any]) -> Reply | NoReply:
        """Send, and once more with a new credential where the present one is refused."""
        generation = self._credentials.generation
        reply: Reply | NoReply = await send()
        if isinstance(classify(reply), Unauthorized) and await self._credentials.refused(generation):
            reply = await send()
        if isinstance(reply, Reply) and reply.status < 300:  # noqa: PLR2004 - success
            self._credentials.accepted(self._credentials.generation)
        return reply

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Pieces | None = None,
        content_type: str = "application/json",
        limit_s: float,
        sink: Callable[[bytes], Any] | None = None,
    ) -> Reply | NoReply:
        headers = {"accept": "application/json", **self._headers, **await self._credentials.headers()}
        if body is not None:
            headers["content-type"] = content_type
        url = self._address.management_url(path, query or {})
        reply = await self._wire.transfer(method, url, headers, body, timeout_s=limit_s, sink=sink)
        self._attempted()
        return reply

    async def _pause(self, reply: Reply | NoReply, attempt: int) -> None:
        hint_s = _asked_pause_s(reply)
        jitter_s = full_jitter(attempt, self._random)
        await self._clock.sleep(hint_s + jitter_s if hint_s else min(LONGEST_PAUSE_S, jitter_s))


def _asked_pause_s(reply: Reply | NoReply) -> float:
    """Seconds that a reply asks to wait for; zero where it does not."""
    return getattr(classify(reply), "hint_s", None) or 0.0


def whole(content: bytes) -> Pieces:
    """A body that is there already."""

    async def make() -> AsyncIterator[bytes]:
        yield content

    return Pieces(make, len(content))


def _form(path: Path, name: str, fields: Mapping[str, str], boundary: str) -> Pieces:
    """A form with fields and one file, which is read piece by piece."""
    lines = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields.items()
    ]
    lines.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    head, foot = "".join(lines).encode(), f"\r\n--{boundary}--\r\n".encode()

    async def make() -> AsyncIterator[bytes]:
        yield head
        async with await anyio.open_file(path, "rb") as file:
            while chunk := await file.read(_CHUNK_BYTES):
                yield chunk
        yield foot

    return Pieces(make, len(head) + path.stat().st_size + len(foot))


def _bad_reply(message: str) -> ErrorInfo:
    return ErrorInfo(type=ErrorType.REPLY, code="bad_reply", message=message)


def _error_of(reply: Reply | NoReply) -> ErrorInfo | None:
    """What is wrong with a reply; None for one that is no refusal."""
    verdict = classify(reply)
    return None if isinstance(verdict, Answered) else verdict.error


def _may_pass(reply: Reply | NoReply) -> bool:
    """Whether the same call may be answered another time."""
    return isinstance(classify(reply), Transient | Throttled | BadReply | Answered)


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        shown = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return shown if isinstance(shown, dict) else None


def _file(shown: Mapping[str, Any]) -> RemoteFile:
    state = str(shown.get("status") or "").lower()
    size = shown.get("bytes")
    return RemoteFile(
        id=str(shown.get("id")),
        name=str(shown.get("filename") or ""),
        bytes=size if isinstance(size, int) else 0,
        ready=state in {"processed", "uploaded", ""},
        broken=state in {"error", "deleted", "deleting"},
    )


def text_in(value: Any) -> str | None:
    """A text that says something; None for anything else."""
    return value if isinstance(value, str) and value else None


def count_in(value: Any) -> int | None:
    """A whole number; None for anything else."""
    return value if isinstance(value, int) else None
