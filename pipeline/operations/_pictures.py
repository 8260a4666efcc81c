"""Pictures of a request: files and binary columns become data URLs, addresses are looked at before they are sent."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import orjson
import pybase64

from pipeline.errors import MediaError, RowError, TemplateError
from pipeline.job.template import compile_text, has_template
from pipeline.media.files import MediaFile, find_media

# Azure's documented limit of one chat request.
MAX_PICTURES = 50
# What the services take of one picture, and of all that one request carries, before base64. Source: OpenAI's guide.
MAX_PICTURE_BYTES = 20 * 2**20
MAX_BYTES = 50 * 2**20

# A 2048 x 2048 picture in high detail by gpt-4o's tiles (85 + 8 x 170), and any picture in low detail.
PICTURE_TOKENS = 1445
LOW_DETAIL_PICTURE_TOKENS = 85

MARK = b"\xff"
"""Stands in an encoded body for the URL of a picture; no text has it, since it is never part of UTF-8."""

_MARKED = orjson.Fragment(b'"%b"' % MARK)
_HEAD_BYTES = 12
# Blanks, controls and backslashes: clients disagree on which host a URL with one of them names.
_ODD = re.compile(r"[\x00-\x20\x7f-\xa0\\]")
_PRIVATE_NAMES = (".localhost", ".local", ".internal")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Style = Literal["chat", "responses"]


class Picture(NamedTuple):
    """A picture to be sent as a data URL. `kind` is the subtype of its media type."""

    kind: str
    source: MediaFile | bytes


@dataclass(frozen=True, slots=True)
class Column:
    """Stands in a request for the value of a binary column, which templates would refuse."""

    name: str


def defer_columns(node: Any) -> tuple[Any, frozenset[str]]:
    """Put a `Column` where `image_file.data` is one bare `{{ column }}`; also returns the columns' names."""
    names: frozenset[str] = frozenset()
    if isinstance(node, Mapping):
        deferred = dict(node)
        for key, value in node.items():
            deferred[key], found = defer_columns(value)
            names |= found
        source = deferred.get("image_file")
        column = _bare_column(source.get("data")) if isinstance(source, dict) else None
        if column is not None:
            deferred["image_file"] = {**deferred["image_file"], "data": Column(column)}
            names |= {column}
        return deferred, names
    if isinstance(node, list | tuple):
        pairs = [defer_columns(value) for value in node]
        return [value for value, _ in pairs], names.union(*(found for _, found in pairs))
    return node, names


def _bare_column(text: Any) -> str | None:
    if not isinstance(text, str) or not has_template(text):
        return None
    try:
        template = compile_text(text)
    except TemplateError:
        # Whoever compiles the request says so, with the field's name.
        return None
    return next(iter(template.columns), None) if template.bare and template.columns else None


def take_pictures(
    messages: Any, values: Mapping[str, Any], *, root: Path | None, style: Style, place: str
) -> tuple[Any, tuple[Picture, ...]]:
    """Replace the `image_file` parts of messages by parts of the API's own whose URL is a mark; give their pictures.

    Messages are copied where they change. Parts with an address are checked and stay. Blocking: it looks at the
    files' first bytes. Raises RowError, codes `type` and `too_long`, and MediaError: those of `find_media`, `kind`,
    `empty`, `too_large` and `address`.
    """
    if not isinstance(messages, list) or not any(map(_has_parts, messages)):
        return messages, ()
    taker = _Taker(values, root, style)
    taken = [taker.message(message, f"{place}.{index}") for index, message in enumerate(messages)]
    return taken, tuple(taker.pictures)


def data_url(picture: Picture) -> bytes:
    """Read a picture and write it as a data URL. Blocking. Raises MediaError where its file is not what it was."""
    content = picture.source if isinstance(picture.source, bytes) else picture.source.read()
    return b"data:image/%b;base64,%b" % (picture.kind.encode(), pybase64.b64encode(content))


def _has_parts(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), list)


class _Taker:
    """Goes through one row's messages."""

    def __init__(self, values: Mapping[str, Any], root: Path | None, style: Style) -> None:
        self.pictures: list[Picture] = []
        self._values = values
        self._root = root
        self._style = style
        self._parts = 0
        self._bytes = 0

    def message(self, message: Any, place: str) -> Any:
        if not _has_parts(message):
            return message
        content = enumerate(message["content"])
        return {**message, "content": [self._part(part, f"{place}.content.{index}") for index, part in content]}

    def _part(self, part: Any, place: str) -> Any:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image_file":
            self._count(place)
            return self._sent(part, place)
        if kind in ("image_url", "input_image"):
            self._count(place)
            source = part.get("image_url")
            url = source.get("url") if isinstance(source, dict) else source
            # The responses API knows pictures by the id of an uploaded file, too.
            if url is not None or not part.get("file_id"):
                check_address(url, place)
        return part

    def _count(self, place: str) -> None:
        self._parts += 1
        if self._parts > MAX_PICTURES:
            raise RowError(code="too_long", message=f"{place}: a request holds at most {MAX_PICTURES} pictures")

    def _sent(self, part: Mapping[str, Any], place: str) -> dict[str, Any]:
        named = part.get("image_file")
        if not isinstance(named, dict) or ("path" in named) == ("data" in named):
            raise RowError(code="type", message=f"{place}.image_file needs either a path or data")
        picture = self._by_column(named["data"], place) if "data" in named else self._by_path(named["path"])
        self._bytes += len(picture.source) if isinstance(picture.source, bytes) else picture.source.size
        if self._bytes > MAX_BYTES:
            raise MediaError(
                code="too_large", message=f"{place}: the request's pictures have more than {MAX_BYTES} bytes in all"
            )
        self.pictures.append(picture)
        others = {key: value for key, value in named.items() if key not in ("path", "data")}
        if self._style == "chat":
            return {"type": "image_url", "image_url": {"url": _MARKED, **others}}
        return {"type": "input_image", "image_url": _MARKED, **others}

    def _by_path(self, name: Any) -> Picture:
        file = find_media(self._root, name, max_bytes=MAX_PICTURE_BYTES)
        return Picture(_kind(file.head, file.name), file)

    def _by_column(self, data: Any, place: str) -> Picture:
        value = self._values.get(data.name) if isinstance(data, Column) else data
        content = _decoded(value) if isinstance(value, str) else value
        if not isinstance(content, bytes | bytearray | memoryview):
            raise RowError(
                code="type",
                message=f"{place}.image_file.data is neither binary nor base64; it takes one bare {{{{ column }}}}",
            )
        content = bytes(content)
        if not content:
            raise MediaError(code="empty", message=f"{place}: the picture is empty")
        if len(content) > MAX_PICTURE_BYTES:
            raise MediaError(
                code="too_large", message=f"{place}: has {len(content)} bytes, more than {MAX_PICTURE_BYTES}"
            )
        return Picture(_kind(content, place), content)


def _decoded(text: str) -> bytes | None:
    """Read base64, which is how JSON holds what is binary; None for any other text."""
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        return None


def _kind(head: bytes, name: str) -> str:
    """Tell a picture's kind by its first bytes, whatever it is called."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[:4] == b"RIFF" and head[8:_HEAD_BYTES] == b"WEBP":
        return "webp"
    raise MediaError(code="kind", message=f"{name}: is none of PNG, JPEG, GIF and WEBP")


def check_address(url: Any, place: str) -> None:
    """Check where the service is to fetch a picture. The message never repeats the address: it may hold a key.

    Raises RowError, code `type`, for what is no text; MediaError, code `too_large`, for a data URL of more than
    20 MB; code `address` for every scheme but http, https and data, and for hosts of private networks, this machine
    or link-local ones, however they are written. Names are not looked up.
    """
    if not isinstance(url, str) or not url:
        raise RowError(code="type", message=f"{place}: the picture's address is no text")
    if url[:5].lower() == "data:":
        size = 3 * len(url.partition(",")[2]) // 4
        if size > MAX_PICTURE_BYTES:
            raise MediaError(code="too_large", message=f"{place}: has {size} bytes, more than {MAX_PICTURE_BYTES}")
        return
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise MediaError(code="address", message=f"{place}: the picture's address is no URL") from None
    if parts.scheme not in ("http", "https") or not host or _ODD.search(url):
        raise MediaError(
            code="address", message=f"{place}: the picture's address is no http, https or data URL; use image_file"
        )
    if _is_private(host):
        raise MediaError(
            code="address",
            message=f"{place}: the picture's address is on a private network, which the service cannot reach; "
            "use image_file",
        )


def _is_private(host: str) -> bool:
    name = unicodedata.normalize("NFKC", unquote(host)).lower().rstrip(".")
    try:
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            # Also 127.1, 0x7f000001 and 2130706433, which clients take for addresses.
            address = ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, ValueError):
            return "." not in name or name.endswith(_PRIVATE_NAMES)
    if isinstance(address, ipaddress.IPv6Address):
        within = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        address = address.ipv4_mapped or address.sixtofour or within or address
    return not address.is_global or address.is_multicast
