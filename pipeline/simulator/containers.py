"""Silence in the formats that compress sound, with words as a tag: valid files, made without any codec.

Every frame is the shortest that its format has for silence, repeated for as long as the words would sound.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator

_MARK = b"SIMULATED_WORDS="
_RATE = 24_000

_MP3_FRAME = b"\xff\xf3\x44\xc4" + bytes(92)  # MPEG-2 layer III, 32 kbit/s, 24 kHz, mono; all parts empty
_MP3_SAMPLES = 576
_AAC_FRAME = bytes((0xFF, 0xF1, 0x58, 0x40, 0x01, 0x7F, 0xFC)) + bytes(3) + b"\x07"
_AAC_SAMPLES = 1_024
_OPUS_PACKET = b"\xf8\xff\xfe"  # one frame of 20 ms, silent
_OPUS_SAMPLES = 960  # of 48 kHz, whatever the input's rate was
_OPUS_SKIP = 312
_FLAC_SAMPLES = 4_096
_OGG_SERIAL = 1
_PAGE_PACKETS = 50


def silent_mp3(duration_s: float, words: str) -> bytes:
    """Write MP3 with an ID3v2 tag."""
    return _id3(words) + _MP3_FRAME * math.ceil(duration_s * _RATE / _MP3_SAMPLES)


def silent_aac(duration_s: float, words: str) -> bytes:
    """Write AAC as ADTS with an ID3v2 tag."""
    return _id3(words) + _AAC_FRAME * math.ceil(duration_s * _RATE / _AAC_SAMPLES)


def silent_opus(duration_s: float, words: str) -> bytes:
    """Write Opus in Ogg with its comment header."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, _OPUS_SKIP, _RATE, 0, 0)
    tags = b"OpusTags" + _comments(words)
    count = math.ceil((duration_s * 48_000 + _OPUS_SKIP) / _OPUS_SAMPLES)
    return b"".join(_ogg_pages(head, tags, count))


def silent_flac(duration_s: float, words: str) -> bytes:
    """Write FLAC with a comment block; its frames are constant."""
    count = math.ceil(duration_s * _RATE / _FLAC_SAMPLES)
    bits = _RATE << 44 | 0 << 41 | 15 << 36 | count * _FLAC_SAMPLES
    info = struct.pack(">HH", _FLAC_SAMPLES, _FLAC_SAMPLES) + bytes(6) + bits.to_bytes(8) + bytes(16)
    comments = _comments(words)
    blocks = _flac_block(0, info) + _flac_block(0x84, comments)
    return b"fLaC" + blocks + b"".join(map(_flac_frame, range(count)))


def tagged_words(content: bytes) -> list[str] | None:
    """Read the words of a file that one of these functions wrote; None where there is no tag."""
    start = content.find(_MARK)
    if start < 0:
        return None
    start += len(_MARK)
    size = content[start : start + 8]
    if len(size) < 8 or not size.isdigit():  # noqa: PLR2004 - digits
        return None
    return content[start + 8 : start + 8 + int(size)].decode(errors="replace").split()


def _tag(words: str) -> bytes:
    data = words.encode()
    return _MARK + b"%08d" % len(data) + data


def _id3(words: str) -> bytes:
    text = b"\x03" + b"comment\0" + _tag(words)
    frame = b"TXXX" + _syncsafe(len(text)) + b"\0\0" + text
    return b"ID3\x04\0\0" + _syncsafe(len(frame)) + frame


def _syncsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))


def _comments(words: str) -> bytes:
    comment = _tag(words)
    vendor = b"simulator"
    return struct.pack("<I", len(vendor)) + vendor + struct.pack("<II", 1, len(comment)) + comment


def _ogg_pages(head: bytes, tags: bytes, count: int) -> Iterator[bytes]:
    yield _ogg_page([head], number=0, granule=0, flags=2)
    yield _ogg_page([tags], number=1, granule=0, flags=0)
    number = 2
    for first in range(0, count, _PAGE_PACKETS):
        packets = min(_PAGE_PACKETS, count - first)
        flags = 4 if first + packets == count else 0
        yield _ogg_page([_OPUS_PACKET] * packets, number=number, granule=(first + packets) * _OPUS_SAMPLES, flags=flags)
        number += 1


def _ogg_page(packets: Iterable[bytes], *, number: int, granule: int, flags: int) -> bytes:
    """Write a page that holds whole packets. Raises OverflowError for more than 65,025 bytes."""
    packets = list(packets)
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes((len(packet) % 255,)) for packet in packets)
    start = b"OggS" + struct.pack("<BBqIIIB", 0, flags, granule, _OGG_SERIAL, number, 0, len(lacing))
    page = bytearray(start + lacing + b"".join(packets))
    page[22:26] = struct.pack("<I", _ogg_crc(page))
    return bytes(page)


def _ogg_crc(data: bytes | bytearray) -> int:
    """Compute Ogg's CRC-32: zlib's polynomial with the bits the other way round, from zero."""
    mirrored = bytes(data).translate(_MIRROR)
    crc = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF  # begins at zero and is not inverted at the end
    return int(f"{crc:032b}"[::-1], 2)


_MIRROR = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def _flac_block(kind: int, data: bytes) -> bytes:
    return bytes((kind,)) + len(data).to_bytes(3) + data


def _flac_frame(number: int) -> bytes:
    head = b"\xff\xf8\xc7\x08" + _utf8(number)  # 4,096 samples, 24 kHz, mono, 16 bits
    head += bytes((_crc(head, 0x07, 8),))
    frame = head + b"\0\0\0"  # a constant subframe: zero
    return frame + _crc(frame, 0x8005, 16).to_bytes(2)


def _utf8(number: int) -> bytes:
    return chr(number).encode(errors="surrogatepass")


def _crc(data: bytes, polynomial: int, width: int) -> int:
    top, mask = 1 << (width - 1), (1 << width) - 1
    value = 0
    for byte in data:
        value ^= byte << (width - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value
