"""Takes a multipart/form-data body apart, strictly: what is not well-formed is refused, never guessed at."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_MOST_PARTS = 1_000
_MOST_HEAD_BYTES = 8_192
_TYPE = re.compile(r'multipart/form-data\s*;.*?\bboundary=(?:"([^"]{1,70})"|([^\s;"]{1,70})(?![^\s;]))', re.IGNORECASE)
_DISPOSITION = re.compile(r"form-data\s*(?P<parameters>(?:;.*)?)", re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(?P<name>[a-zA-Z]+)=(?:"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<token>[^\s;"]+))\s*')
_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A part with a filename. `content_type` is empty where the part has none."""

    filename: str
    content_type: str
    content: bytes


Form = dict[str, list[str | Upload]]


def read_form(body: bytes, content_type: str) -> Form:
    """Give each field's values in the order in which they came. Raises ValueError, which says what is wrong."""
    match = _TYPE.match(content_type)
    if match is None:
        raise ValueError("the content type is not multipart/form-data with a boundary")
    delimiter = b"\r\n--" + (match[1] or match[2]).encode("latin-1")
    # the first boundary has no line end before it; the rest of what is before or behind the boundaries says nothing
    start = body.find(delimiter[2:]) if not body.startswith(delimiter[2:]) else 0
    if start < 0 or (start > 0 and body[start - 2 : start] != b"\r\n"):
        raise ValueError("the body does not begin with the boundary")
    position = start + len(delimiter) - 2
    form: Form = {}
    for _ in range(_MOST_PARTS + 1):
        if body.startswith(b"--", position):
            return form
        if not body.startswith(b"\r\n", position):
            raise ValueError("a boundary is followed by something else than a line end")
        end = body.find(delimiter, position)
        if end < 0:
            raise ValueError("the last boundary is missing: the body was cut off")
        name, value = _read_part(body, position + 2, end)
        form.setdefault(name, []).append(value)
        position = end + len(delimiter)
    raise ValueError(f"the form has more than {_MOST_PARTS} parts")


def _read_part(body: bytes, start: int, end: int) -> tuple[str, str | Upload]:
    head_end = body.find(b"\r\n\r\n", start, min(end + 2, start + _MOST_HEAD_BYTES))
    if head_end < 0:
        raise ValueError("a part has no end of its headers")
    headers = _read_headers(body[start:head_end])
    content = body[head_end + 4 : end]
    parameters = _read_disposition(headers.get("content-disposition", ""))
    name = parameters.get("name")
    if not name:
        raise ValueError("a part has no name")
    if "filename" in parameters:
        upload = Upload(filename=parameters["filename"], content_type=headers.get("content-type", ""), content=content)
        return name, upload
    try:
        return name, content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the field {name!r} is not UTF-8") from None


def _read_headers(head: bytes) -> Mapping[str, str]:
    headers = {}
    for line in head.decode("utf-8", errors="replace").split("\r\n"):
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or not name:
            raise ValueError("a part has a header that is none")
        headers[name.lower()] = value.strip()
    return headers


def _read_disposition(value: str) -> Mapping[str, str]:
    match = _DISPOSITION.fullmatch(value)
    if match is None:
        raise ValueError("a part is not form-data")
    parameters = {}
    position = 0
    text = match["parameters"]
    while position < len(text):
        parameter = _PARAMETER.match(text, position)
        if parameter is None:
            raise ValueError("a part's Content-Disposition cannot be read")
        given = parameter["token"] if parameter["quoted"] is None else _unquote(parameter["quoted"])
        parameters[parameter["name"].lower()] = given
        position = parameter.end()
    return parameters


def _unquote(text: str) -> str:
    """Undo both ways in which clients write quotes: a backslash, or percent signs as browsers have it."""
    text = re.sub(r"\\(.)", r"\1", text)
    for escape, character in _ESCAPES.items():
        text = text.replace(escape, character)
    return text
