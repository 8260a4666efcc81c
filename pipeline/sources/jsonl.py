"""JSON Lines, plain, gzip or zstd: one object a line, types fixed once, a bad line never harms its neighbours."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson
import pyarrow as pa

from pipeline.errors import StorageError
from pipeline.model import BadRow, ErrorInfo, ErrorType, Row
from pipeline.sources.base import Batch, Format, InputFile, Position
from pipeline.sources.digest import RangeDigest
from pipeline.sources.errors import SourceError
from pipeline.sources.types import MAX_DEPTH, CellError, Column, Sample, record_batch

Codec = Literal["gzip", "zstd"]
"""A compression, by the name that pyarrow gives it."""

MAX_LINE_BYTES = 32 * 2**20
"""A longer line is a failed row; it is read past, never held."""
SAMPLE_ROWS = 10_000
SAMPLE_BYTES = 64 * 2**20

_CODECS: dict[bytes, Codec] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(" ") for byte in range(256))  # noqa: PLR2004
_LONG_NUMBER = b"0" * 19
"""No integer of fewer digits leaves 64 bits; every character outside ASCII's digits is a blank in `_DIGITS`."""
_INT64_MIN, _UINT64_MAX = -(2**63), 2**64 - 1
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_SURROGATE_BYTES = re.compile(rb"\xed[\xa0-\xbf]")


class JsonlSource:
    """JSON Lines files, in order, as one input."""

    def __init__(
        self,
        files: Sequence[InputFile],
        *,
        declared: Mapping[str, str],
        kept_schema: pa.Schema | None,
    ) -> None:
        self.files = tuple(files)
        self._codecs = tuple(_codec(file.path) for file in self.files)
        sizes = tuple(itertools.accumulate((file.size for file in self.files), initial=0))
        self._bytes_before = sizes if sizes[-1] and not any(self._codecs) else None
        self.schema = _sampled_schema(self.files, self._codecs, declared) if kept_schema is None else kept_schema

    @property
    def row_count(self) -> int | None:
        """None: lines are not counted before they are read."""
        return None

    def share_before(self, position: Position) -> float | None:
        """The share of the input's bytes before a position; None where a file is compressed, or all are empty."""
        if self._bytes_before is None:
            return None
        return min(1.0, (self._bytes_before[position.file] + position.offset) / self._bytes_before[-1])

    def open(self, start: Position, *, values: frozenset[str] | None, carried: Sequence[str]) -> JsonlCursor:
        """Read from `start` on. Raises SourceError for a carried column that the schema does not hold."""
        missing = [name for name in carried if name not in self.schema.names]
        if missing:
            raise SourceError(f"the input has no column {', '.join(missing)}; it has {', '.join(self.schema.names)}")
        return JsonlCursor(
            _Lines(self.files, self._codecs, start),
            _Reader(self.schema, values=values, carried=carried),
            start=start,
        )


class JsonlCursor:
    """A reader within JSON Lines files."""

    def __init__(self, lines: _Lines, reader: _Reader, *, start: Position) -> None:
        self._lines = lines
        self._reader = reader
        self._end = start
        self._block: _Block | None = None

    def read(self, max_rows: int, digest: RangeDigest) -> Batch:
        """Read at most `max_rows` rows out of one megabyte of lines (or one longer line).

        Raises SourceError for a damaged compressed file, StorageError where the disk fails.
        """
        while True:
            block = self._block or self._lines.next(digest)
            if block is None:
                return self._reader.empty(self._end)
            taken, self._block = block.split(max_rows)
            batch = self._reader.batch(taken, self._end.ordinal, digest)
            self._end = batch.end
            if batch.rows:
                return batch

    def close(self) -> None:
        """Close the open file."""
        self._lines.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    """Whole lines of one file, without their line feeds. `offset` and `number` are those of the first line.

    `too_large` is the size of the block's only line where that was read past; its content is in the digest already.
    """

    file: int
    name: str
    offset: int
    number: int
    lines: list[bytes]
    last_is_open: bool = False
    too_large: int | None = None

    @property
    def end_offset(self) -> int:
        size = sum(map(len, self.lines)) if self.too_large is None else self.too_large
        return self.offset + size + self.feeds

    @property
    def feeds(self) -> int:
        """How many of the lines end with a line feed."""
        return len(self.lines) - self.last_is_open

    def split(self, lines: int) -> tuple[_Block, _Block | None]:
        if len(self.lines) <= lines:
            return self, None
        head = _Block(file=self.file, name=self.name, offset=self.offset, number=self.number, lines=self.lines[:lines])
        rest = _Block(
            file=self.file,
            name=self.name,
            offset=head.end_offset,
            number=self.number + lines,
            lines=self.lines[lines:],
            last_is_open=self.last_is_open,
        )
        return head, rest


class _Lines:
    """The files' bytes, cut into blocks of whole lines."""

    def __init__(self, files: Sequence[InputFile], codecs: Sequence[Codec | None], start: Position) -> None:
        self._files = files
        self._codecs = codecs
        self._file = start.file
        self._offset = start.offset
        self._number = start.line
        self._stream: _Stream | None = None
        self._pending = b""

    def next(self, digest: RangeDigest) -> _Block | None:
        """Give the next whole lines, about a megabyte of them, or one longer line; None at the end of the input."""
        while self._file < len(self._files):
            if self._stream is None:
                self._stream = self._open()
            block = self._next_in_file(self._stream, digest)
            if block is not None:
                self._offset = block.end_offset
                self._number += block.feeds
                return block
            self.close()
            self._file, self._offset, self._number = self._file + 1, 0, 1
        return None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self) -> _Stream:
        stream = _Stream(self._files[self._file].path, self._codecs[self._file], self._offset)
        self._pending = stream.read() if self._offset == 0 else b""
        if self._pending.startswith(_BOM):
            self._pending = self._pending[len(_BOM) :]
            self._offset = len(_BOM)
        return stream

    def _next_in_file(self, stream: _Stream, digest: RangeDigest) -> _Block | None:
        head: list[bytes] = []
        size = 0
        while size <= MAX_LINE_BYTES:
            data = self._pending or stream.read()
            self._pending = b""
            if not data:
                return self._block(lines=[b"".join(head)], last_is_open=True) if head else None
            first = data.find(b"\n")
            if first < 0:
                head.append(data)
                size += len(data)
                continue
            if size + first > MAX_LINE_BYTES:
                self._pending = data
                break
            last = data.rfind(b"\n")
            self._pending = data[last + 1 :]
            return self._block(lines=(b"".join(head) + data[:last]).split(b"\n"))
        return self._read_past(stream, head, digest)

    def _read_past(self, stream: _Stream, parts: list[bytes], digest: RangeDigest) -> _Block:
        """Read to the end of a line that is too large, holding none of it."""
        size = 0
        for part in parts:
            digest.raw(part)
            size += len(part)
        while True:
            data = self._pending or stream.read()
            feed = data.find(b"\n")
            content = data if feed < 0 else data[:feed]
            digest.raw(content)
            size += len(content)
            self._pending = b"" if feed < 0 else data[feed + 1 :]
            if feed >= 0 or not data:
                digest.raw(b"\n")
                return self._block(lines=[b""], last_is_open=feed < 0, too_large=size)

    def _block(self, *, lines: list[bytes], last_is_open: bool = False, too_large: int | None = None) -> _Block:
        return _Block(
            file=self._file,
            name=self._files[self._file].path.name,
            offset=self._offset,
            number=self._number,
            lines=lines,
            last_is_open=last_is_open,
            too_large=too_large,
        )


class _Stream:
    """One file's uncompressed bytes from an offset on."""

    def __init__(self, path: Path, codec: Codec | None, offset: int) -> None:
        self._path = path
        self._codec = codec
        try:
            self._file: BinaryIO | pa.NativeFile
            if codec is None:
                self._file = path.open("rb", buffering=0)
                self._file.seek(offset)
            else:
                self._file = pa.CompressedInputStream(pa.OSFile(str(path), "r"), codec)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
        if codec is not None:
            while offset > 0 and (skipped := len(self._read(min(offset, _BLOCK_BYTES)))):
                offset -= skipped

    def read(self) -> bytes:
        """Give up to a megabyte; nothing at the end."""
        return self._read(_BLOCK_BYTES)

    def _read(self, size: int) -> bytes:
        try:
            return self._file.read(size)
        except OSError as error:
            if error.errno is None:
                raise SourceError(f"{self._path}: damaged or cut {self._codec} data: {error}") from error
            raise StorageError(f"{self._path}: cannot be read: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()


class _Reader:
    """Lines to rows and columns, for one choice of columns."""

    def __init__(self, schema: pa.Schema, *, values: frozenset[str] | None, carried: Sequence[str]) -> None:
        wanted = set(schema.names) if values is None else values
        needed = [name for name in schema.names if name in wanted or name in carried]
        self._columns = tuple(Column(field=schema.field(name)) for name in needed)
        self._unseen = tuple(sorted(wanted - set(schema.names)))
        self._carried = tuple(carried)
        self._schema = pa.schema([schema.field(name) for name in carried])
        self._checks_numbers = any(column.takes_numbers for column in self._columns)
        self._checks_depth = any(column.is_json for column in self._columns)

    def empty(self, end: Position) -> Batch:
        arrays = [pa.array([], field.type) for field in self._schema]
        return Batch(rows=(), carried=record_batch(arrays, self._schema, rows=0), end=end)

    def batch(self, block: _Block, ordinal: int, digest: RangeDigest) -> Batch:
        """Read a block's lines as rows from `ordinal` on."""
        parsed = _parse(block)
        if block.too_large is None and parsed.lines:
            content = b"\n".join(parsed.lines) + b"\n"
            digest.raw(content.replace(b"\r\n", b"\n") if b"\r" in content else content)
        else:
            content = b""
        if self._checks_depth:
            parsed.refuse_deep()
        if self._checks_numbers and _LONG_NUMBER in content.translate(_DIGITS):
            parsed.refuse_long_integers([column.name for column in self._columns if column.coercion() is None])
        arrays = {column.name: self._array(column, parsed) for column in self._columns}
        for name in self._unseen:
            for document in parsed.documents:
                document.setdefault(name)
        faults = parsed.faults
        rows: tuple[Row | BadRow, ...] = tuple(
            [
                Row(ordinal=number, values=document)
                if not faults or number - ordinal not in faults
                else BadRow(ordinal=number, error=faults[number - ordinal])
                for number, document in enumerate(parsed.documents, start=ordinal)
            ]
        )
        end = Position(
            ordinal=ordinal + len(rows),
            file=block.file,
            offset=block.end_offset,
            line=block.number + block.feeds,
        )
        carried = record_batch([arrays[name] for name in self._carried], self._schema, rows=len(rows))
        return Batch(rows=rows, carried=carried, end=end)

    def _array(self, column: Column, parsed: _Parsed) -> pa.Array[Any]:
        name = column.name
        cells = [document.setdefault(name) for document in parsed.documents]
        coerce = column.coercion()
        if coerce is not None:
            for index, cell in enumerate(cells):
                if cell is None:
                    continue
                try:
                    # A double has lost the digits that text and decimals keep.
                    exact = parsed.exact(index).get(name) if isinstance(cell, float) else cell
                    cells[index] = parsed.documents[index][name] = coerce(exact)
                except CellError as error:
                    cells[index] = None
                    parsed.refuse(index, error.fault.code, f"column {name}: {error.fault.reason}")
        array, faults = column.array(cells)
        for index, fault in faults.items():
            parsed.refuse(index, fault.code, f"column {name}: {fault.reason}")
        return array


@dataclass(slots=True, kw_only=True)
class _Parsed:
    """A block's rows on their way: lines that are not blank, their numbers and objects, and what is wrong with some.

    A refused line's object is empty or as it was read; it is not looked at again.
    """

    name: str
    lines: list[bytes]
    numbers: Sequence[int]
    documents: list[dict[str, Any]]
    faults: dict[int, ErrorInfo]

    def refuse(self, index: int, code: str, message: str) -> None:
        """Make a row a bad one; the first reason stays."""
        if index not in self.faults:
            place = f"{self.name}:{self.numbers[index]}"
            self.faults[index] = ErrorInfo(type=ErrorType.ROW, code=code, message=f"{place}: {message}")

    def exact(self, index: int) -> dict[str, Any]:
        """Read the line again with numbers as they are written.

        Raises CellError where this slower parser's depth ends before the other's.
        """
        try:
            document: dict[str, Any] = json.loads(self.lines[index], parse_float=Decimal)
        except RecursionError:
            raise CellError("too_deep", f"nested more than {MAX_DEPTH} deep") from None
        return document

    def refuse_deep(self) -> None:
        for index, line in enumerate(self.lines):
            if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(line) > MAX_DEPTH + 1:
                self.refuse(index, "too_deep", f"nested more than {MAX_DEPTH} deep")
                self.documents[index] = {}

    def refuse_long_integers(self, columns: Sequence[str]) -> None:
        """Refuse rows whose integers the fast parser turned into doubles."""
        for index, line in enumerate(self.lines):
            if index in self.faults or _LONG_NUMBER not in line.translate(_DIGITS):
                continue
            try:
                document = self.exact(index)
            except CellError as error:
                self.refuse(index, error.fault.code, error.fault.reason)
                self.documents[index] = {}
                continue
            for name in columns:
                if _has_long_integer(document.get(name)):
                    self.refuse(
                        index,
                        "integer_range",
                        f"column {name}: an integer beyond 64 bits; declare it as decimal(PRECISION,0) or string",
                    )
                    self.documents[index][name] = None


def _parse(block: _Block) -> _Parsed:
    lines = block.lines
    faults: dict[int, ErrorInfo] = {}
    if block.too_large is None:
        try:
            documents = [orjson.loads(line) for line in lines]
        except orjson.JSONDecodeError:
            return _parse_each(block)
        if set(map(type, documents)) <= {dict}:
            numbers = range(block.number, block.number + len(lines))
            return _Parsed(name=block.name, lines=lines, numbers=numbers, documents=documents, faults=faults)
        return _parse_each(block)
    parsed = _Parsed(name=block.name, lines=[b""], numbers=[block.number], documents=[{}], faults=faults)
    parsed.refuse(0, "row_too_large", f"the line has {block.too_large} bytes, more than {MAX_LINE_BYTES}")
    return parsed


def _parse_each(block: _Block) -> _Parsed:
    parsed = _Parsed(name=block.name, lines=[], numbers=(numbers := []), documents=[], faults={})
    for number, line in enumerate(block.lines, start=block.number):
        if not line.strip():
            continue
        index = len(parsed.lines)
        parsed.lines.append(line)
        numbers.append(number)
        try:
            document = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            document = {}
            parsed.refuse(index, *_parse_fault(line, error))
        if not isinstance(document, dict):
            document = {}
            parsed.refuse(index, "not_an_object", "the line is JSON but no object")
        parsed.documents.append(document)
    return parsed


def _parse_fault(line: bytes, error: orjson.JSONDecodeError) -> tuple[str, str]:
    """Say what is wrong with a line that is not JSON: code and message."""
    try:
        line.decode()
    except UnicodeDecodeError as broken:
        if _SURROGATE_BYTES.match(line, broken.start):
            return "surrogate", f"half a surrogate pair at byte {broken.start + 1}"
        return "invalid_utf8", f"not UTF-8 at byte {broken.start + 1}"
    if "surrogate" in error.msg:
        return "surrogate", f"half a surrogate pair at character {error.pos + 1}"
    if "limit" in error.msg:
        return "too_deep", f"nested more than {MAX_DEPTH} deep"
    return "invalid_json", f"not JSON: {error.msg.partition(': line ')[0]} at character {error.pos + 1}"


def _depth(line: bytes) -> int:
    depth = deepest = 0
    for byte in _STRING.sub(b"", line):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def _has_long_integer(value: Any) -> bool:
    match value:
        case int():
            return not _INT64_MIN <= value <= _UINT64_MAX
        case list():
            return any(map(_has_long_integer, value))
        case dict():
            return any(map(_has_long_integer, value.values()))
        case _:
            return False


def _codec(path: Path) -> Codec | None:
    """Tell a file's compression by its first bytes."""
    try:
        with path.open("rb") as file:
            head = file.read(max(map(len, _CODECS)))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
    return next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)


def _sampled_schema(
    files: Sequence[InputFile], codecs: Sequence[Codec | None], declared: Mapping[str, str]
) -> pa.Schema:
    sample = Sample()
    for document in itertools.islice(_sampled_documents(files, codecs), SAMPLE_ROWS):
        sample.add(document)
    return sample.schema(declared)


def _sampled_documents(files: Sequence[InputFile], codecs: Sequence[Codec | None]) -> Iterator[dict[str, Any]]:
    lines = _Lines(files, codecs, Position())
    digest = RangeDigest()
    size = 0
    try:
        while size < SAMPLE_BYTES and (block := lines.next(digest)) is not None:
            _refuse_other_formats(block)
            size += block.end_offset - block.offset
            yield from _parse(block).documents
    finally:
        lines.close()


def _refuse_other_formats(block: _Block) -> None:
    if block.number != 1 or not block.lines:
        return
    first = block.lines[0]
    if first.startswith(_UTF16_BOMS):
        raise SourceError(f"{block.name}: the file is UTF-16; write it as UTF-8")
    if first.strip() in {b"[", b"{"}:
        raise SourceError(
            f"{block.name}: this is JSON over several lines; JSON Lines has one object a line "
            "(`jq -c '.[]' FILE` or `jq -c . FILE` turns it into that)"
        )


FORMAT = Format(
    name="jsonl",
    title="JSON Lines file",
    suffixes=tuple(f".{name}{packed}" for name in ("jsonl", "ndjson", "json") for packed in ("", ".gz", ".zst")),
    open=lambda given: JsonlSource(given.files, declared=given.declared, kept_schema=given.kept_schema),
)
