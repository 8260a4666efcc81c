"""Small PNG and JPEG files that are functions of a key: a grid of eight by eight fields, one for each of its bits."""

from __future__ import annotations

import re
import struct
import zlib
from functools import lru_cache

_FIELDS = 8
_NAME = re.compile(
    r"(?P<key>[0-9a-f]{16})-(?P<width>[1-9][0-9]{1,3})x(?P<height>[1-9][0-9]{1,3})\.(?P<format>png|jpeg)"
)
_LARGEST = 4_096
_COMMENT = b"simulator:"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DARK, _LIGHT = -64, 64  # of a block's mean brightness, against medium grey
# the standard table of DC lengths: how many codes there are of each length, and the categories in order (JPEG, K.3)
_DC_COUNTS = bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0))
_DC_CATEGORIES = bytes(range(12))
_QUANTUM = 8


def picture_name(key: str, width: int, height: int, kind: str) -> str:
    """Name a picture so that `picture_file` can make it again."""
    return f"{key}-{width}x{height}.{kind}"


def picture_file(name: str) -> tuple[bytes, str] | None:
    """Make the picture of a name, with its media type; None where the name is nobody's."""
    match = _NAME.fullmatch(name)
    if match is None or max(int(match["width"]), int(match["height"])) > _LARGEST:
        return None
    return picture(match["key"], int(match["width"]), int(match["height"]), match["format"]), f"image/{match['format']}"


@lru_cache(maxsize=64)
def picture(key: str, width: int, height: int, kind: str) -> bytes:
    """Draw a key of 16 hex digits as "png" or "jpeg". The key is in the file too, as a comment."""
    return _jpeg(key, width, height) if kind == "jpeg" else _png(key, width, height)


def picture_key(content: bytes) -> str | None:
    """Read the key of a picture that `picture` made; None where there is none."""
    start = content.find(_COMMENT)
    found = content[start + len(_COMMENT) : start + len(_COMMENT) + 16] if start >= 0 else b""
    return found.decode() if re.fullmatch(rb"[0-9a-f]{16}", found) else None


def _is_light(key: str, column: int, row: int) -> bool:
    return bool(int(key, 16) >> (_FIELDS * row + column) & 1)


def _png(key: str, width: int, height: int) -> bytes:
    colour = bytes.fromhex(key[:6])
    palette = bytes(part // 2 for part in colour) + bytes(255 - part // 4 for part in colour)
    rows = []
    for row in range(_FIELDS):
        bits = "".join("01"[_is_light(key, column * _FIELDS // width, row)] for column in range(width))
        packed = int(bits.ljust((width + 7) // 8 * 8, "0"), 2).to_bytes((width + 7) // 8)
        rows.append(b"\0" + packed)
    pixels = b"".join(rows[line * _FIELDS // height] for line in range(height))
    return _PNG_SIGNATURE + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette),
            _chunk(b"tEXt", b"Comment\0" + _COMMENT + key.encode()),
            _chunk(b"IDAT", zlib.compress(pixels, 1)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _jpeg(key: str, width: int, height: int) -> bytes:
    """Write a grey baseline JPEG whose blocks of eight by eight pixels have one brightness each."""
    segments = (
        _segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        _segment(0xFE, _COMMENT + key.encode()),
        _segment(0xDB, b"\0" + bytes([_QUANTUM] * 64)),
        _segment(0xC0, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)),
        _segment(0xC4, b"\0" + _DC_COUNTS + _DC_CATEGORIES),
        _segment(0xC4, b"\x10" + bytes((1, *[0] * 15)) + b"\0"),  # one AC code, of one bit: the block ends
        _segment(0xDA, bytes((1, 1, 0, 0, 63, 0))),
    )
    return b"\xff\xd8" + b"".join(segments) + _scan(key, width, height) + b"\xff\xd9"


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _scan(key: str, width: int, height: int) -> bytes:
    codes = _dc_codes()
    bits = []
    before = 0
    columns, lines = -(-width // 8), -(-height // 8)
    for line in range(lines):
        for column in range(columns):
            light = _is_light(key, column * _FIELDS // columns, line * _FIELDS // lines)
            level = _LIGHT if light else _DARK  # a block's DC is 8 times its mean, which the quantum takes away again
            difference, before = level - before, level
            category = abs(difference).bit_length()
            value = difference if difference > 0 else difference + (1 << category) - 1
            bits.append(codes[category] + (f"{value:0{category}b}" if category else "") + "0")
    joined = "".join(bits)
    joined += "1" * (-len(joined) % 8)
    return int(joined, 2).to_bytes(len(joined) // 8).replace(b"\xff", b"\xff\0")


@lru_cache(maxsize=1)
def _dc_codes() -> list[str]:
    codes: list[str] = []
    code = 0
    for length, count in enumerate(_DC_COUNTS, start=1):
        for _ in range(count):
            codes.append(f"{code:0{length}b}")
            code += 1
        code <<= 1
    return codes
