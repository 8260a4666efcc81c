"""The files of a batch on this side: lines on their way out, and results on their way back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import orjson

from pipeline.model import ErrorInfo, ErrorType, Reply
from pipeline.pace.batches import Filled
from pipeline.store.files import PRIVATE_FILE, PRIVATE_FOLDER, publish, storage
from pipeline.store.journal import BatchLine

if TYPE_CHECKING:
    from pipeline.model import Call, Item

_DEEPEST_LINE = 64 << 20


class LinesFile:
    """Lines that become one batch, written as they come; published whole, or dropped. Blocking."""

    def __init__(self, folder: Path, tag: str, *, url: str) -> None:
        """`url` is what every line asks. Raises StorageError."""
        self.tag = tag
        self.url = url
        self.path = lines_path(folder, tag)
        self.filled = Filled()
        self.lines: list[BatchLine] = []
        self._temporary = self.path.with_suffix(".tmp")
        with storage(f"writing {self.path}"):
            folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            self._file = os.fdopen(os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE), "wb")

    def add(self, items: Sequence[Item], call: Call, *, tries: int) -> None:
        """Write a line. Raises StorageError."""
        line = line_of(items, call, self.url)
        with storage(f"writing {self.path}"):
            self._file.write(line)
        self.filled.add(size=len(line), inputs=sum(item.inputs for item in items), tokens=prompt_tokens(items))
        self.lines.append(BatchLine(tries=tries, ordinals=tuple(item.ordinal for item in items)))

    def publish(self) -> None:
        """Make it whole and durable. Raises StorageError."""
        with storage(f"writing {self.path}"):
            self._file.close()
            publish(self._temporary, self.path)

    def drop(self) -> None:
        """Forget it."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def lines_path(folder: Path, tag: str) -> Path:
    """Where a batch's lines lie."""
    return folder / f"{tag}.jsonl"


def line_of(items: Sequence[Item], call: Call, url: str) -> bytes:
    """A line of the Batch API; its name is the ordinal of its first row."""
    head = orjson.dumps({"custom_id": custom_id(items[0].ordinal), "method": "POST", "url": url})
    return b'%b,"body":%b}\n' % (head[:-1], call.body)


def custom_id(ordinal: int) -> str:
    """The name of the line whose first row has this ordinal."""
    return f"row-{ordinal}"


def prompt_tokens(items: Sequence[Item]) -> int:
    """The estimate of what items' prompts take."""
    return sum(item.tokens - item.output_tokens for item in items)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """What came of a line: a reply as a call of its own would have had, or the service's error in its place."""

    reply: Reply | None
    error: ErrorInfo | None
    request_id: str | None


class Results:
    """The output and error files of a batch, with the place of each line's result. Blocking."""

    def __init__(self, *paths: Path) -> None:
        """Index the files; lines that are none of ours, or cut, are passed over. Raises StorageError."""
        self._files: list[BinaryIO] = []
        self._places: dict[str, tuple[BinaryIO, int, int]] = {}
        with storage("reading the results of a batch"):
            for path in paths:
                file = path.open("rb")
                self._files.append(file)
                for name, offset, length in _named_lines(file):
                    self._places.setdefault(name, (file, offset, length))

    def of(self, ordinal: int) -> LineResult | None:
        """What came of the line whose first row has this ordinal; None where nothing did."""
        place = self._places.get(custom_id(ordinal))
        if place is None:
            return None
        file, offset, length = place
        with storage("reading the results of a batch"):
            file.seek(offset)
            shown = orjson.loads(file.read(length))
        return _result(shown)

    def __enter__(self) -> Self:
        """Use it in a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the files back."""
        for file in self._files:
            file.close()


def _named_lines(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    offset = 0
    for line in file:
        length = len(line)
        if length <= _DEEPEST_LINE:
            try:
                shown = orjson.loads(line)
            except orjson.JSONDecodeError:
                shown = None
            if isinstance(shown, dict) and isinstance(shown.get("custom_id"), str):
                yield shown["custom_id"], offset, length
        offset += length


def _result(shown: dict[str, Any]) -> LineResult:
    """Read a line of an output or error file: `response` with a status and a body, or `error`."""
    response = shown.get("response")
    if isinstance(response, dict) and isinstance(response.get("status_code"), int):
        request_id = response.get("request_id")
        body = response.get("body")
        return LineResult(
            reply=Reply(
                status=response["status_code"],
                headers={},
                body=body.encode() if isinstance(body, str) else orjson.dumps(body),
                latency_ms=0.0,
            ),
            error=None,
            request_id=request_id if isinstance(request_id, str) and request_id.isprintable() else None,
        )
    error = shown.get("error")
    error = error if isinstance(error, dict) else {}
    return LineResult(
        reply=None,
        error=ErrorInfo(
            type=ErrorType.REPLY,
            code=str(error.get("code") or "no_result")[:100],
            message=str(error.get("message") or "the batch ended without a result for this row")[:500],
        ),
        request_id=None,
    )
