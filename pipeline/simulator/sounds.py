"""Recordings as samples: reads what was uploaded, writes what is spoken. PyAV does it where it is installed.

WAV and raw PCM need nothing but the standard library. The other formats, without PyAV, are written as silence of the
right length that carries the words as a tag, and only such files can be read.
"""

from __future__ import annotations

import io
import struct
import sys
import wave
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any

from pipeline.simulator import tones
from pipeline.simulator.containers import silent_aac, silent_flac, silent_mp3, silent_opus, tagged_words

SPEECH_RATE = 24_000
"""Samples a second of what is spoken, as the service has it for wav and pcm."""

CODECS = find_spec("av") is not None
"""Whether PyAV is installed."""

LONGEST_S = 6 * 3_600
"""The longest recording that is decoded: a few bytes of FLAC can stand for years."""

_HEARD_RATE = 16_000
_SILENT_PEAK = 200  # of 32,767
_STREAMED_SIZES = frozenset({0, 0xFFFFFFFF})  # what a WAV's head says when its writer did not know
_CODECS = {"mp3": ("mp3", "libmp3lame"), "opus": ("ogg", "libopus"), "aac": ("adts", "aac"), "flac": ("flac", "flac")}
_SILENT: Mapping[str, Callable[[float, str], bytes]] = {
    "mp3": silent_mp3,
    "opus": silent_opus,
    "aac": silent_aac,
    "flac": silent_flac,
}
_BIT_RATE = 48_000


class UndecodableError(Exception):
    """The bytes are no recording in the format that they are said to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """Mono samples of 16 bits, little-endian; or, where they cannot be had, the words of the tag.

    `pcm` is None where the bytes could not be looked into; the duration is then a guess by their number.
    """

    pcm: bytes | None
    sample_rate: int
    duration_s: float
    tag: tuple[str, ...] | None = None

    @property
    def silent(self) -> bool:
        """Whether there is nothing to be heard."""
        if self.pcm is None:
            return False
        samples = _samples(self.pcm)
        loudest = max(max(samples, default=0), -min(samples, default=0))
        return loudest < _SILENT_PEAK


def read_sound(content: bytes, filename: str, *, codecs: bool = CODECS, longest_s: float = LONGEST_S) -> Sound:
    """Read a recording, mono, its first channel.

    Raises UndecodableError for what its own decoder refuses, and for what is longer than `longest_s`.
    """
    if PurePath(filename).suffix.lower() == ".wav":
        sound = _read_wave(content, codecs=codecs)
        if sound is not None:
            return sound
    words = tagged_words(content)
    if words is not None:
        spoken = list(tones.schedule(words))
        end_s = spoken[-1].end_s + tones.GAP_S if spoken else 0.0
        return Sound(pcm=None, sample_rate=0, duration_s=round(end_s, 3), tag=tuple(words))
    return _decode(content, longest_s) if codecs else unread_sound(content)


def unread_sound(content: bytes) -> Sound:
    """Take a recording unread; its duration is what it would be at 32 kbit/s."""
    return Sound(pcm=None, sample_rate=0, duration_s=round(len(content) / 4_000, 3))


def write_sound(words: Iterable[str], kind: str, *, codecs: bool = CODECS) -> bytes:
    """Speak words in tones, as "wav", "pcm", "mp3", "opus", "aac" or "flac"."""
    words = list(words)
    if kind not in ("wav", "pcm") and not codecs:
        spoken = list(tones.schedule(words))
        return _SILENT[kind](spoken[-1].end_s if spoken else 0.0, " ".join(words))
    pcm = tones.encode(words, SPEECH_RATE)
    match kind:
        case "pcm":
            return pcm
        case "wav":
            return wave_file(pcm, SPEECH_RATE)
        case _:
            return _encode(pcm, *_CODECS[kind])


def wave_file(pcm: bytes, sample_rate: int) -> bytes:
    """Put mono samples of 16 bits into a WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(sample_rate)
        writer.writeframes(pcm)
    return file.getvalue()


def _samples(pcm: bytes) -> array[int]:
    samples = array("h")
    samples.frombytes(pcm[: len(pcm) // 2 * 2])
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _read_wave(content: bytes, *, codecs: bool) -> Sound | None:
    """Read PCM of 8 or 16 bits; None where PyAV may know more. Raises UndecodableError for what is no WAV at all."""
    if content[:4] not in (b"RIFF", b"RF64") or content[8:12] != b"WAVE":
        raise UndecodableError("it does not begin as a WAV file does")
    try:
        with wave.open(io.BytesIO(_with_true_size(content))) as reader:
            channels, width, rate = reader.getnchannels(), reader.getsampwidth(), reader.getframerate()
            data = reader.readframes(len(content))
            if rate <= 0:
                raise UndecodableError("it has no samples a second")
    except (wave.Error, EOFError, struct.error, RuntimeError):
        if not codecs:
            raise UndecodableError("its WAV encoding is not PCM") from None
        return None
    if width == 1:
        data = b"".join(struct.pack("<h", (value - 128) << 8) for value in data)
    elif width != 2:  # noqa: PLR2004 - bytes a sample
        data = b"".join(data[place + width - 2 : place + width] for place in range(0, len(data), width))
    if channels > 1:
        samples = _samples(data)[::channels]
        data = samples.tobytes()
    return Sound(pcm=data, sample_rate=rate, duration_s=round(len(data) / 2 / rate, 3))


def _with_true_size(content: bytes) -> bytes:
    """Give a WAV that was streamed the size that its head leaves open."""
    place = content.find(b"data", 12)
    if place < 0 or struct.unpack_from("<I", content, place + 4)[0] not in _STREAMED_SIZES:
        return content
    size = len(content) - place - 8
    return (
        b"RIFF"
        + struct.pack("<I", len(content) - 8)
        + content[8 : place + 4]
        + struct.pack("<I", size)
        + content[place + 8 :]
    )


def _decode(content: bytes, longest_s: float) -> Sound:
    import av  # noqa: PLC0415 - an extra

    pcm = bytearray()
    try:
        with av.open(io.BytesIO(content), mode="r") as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=_HEARD_RATE)
            for frame in container.decode(audio=0):
                for heard in resampler.resample(frame):
                    pcm += bytes(heard.planes[0])[: 2 * heard.samples]
                if len(pcm) > 2 * _HEARD_RATE * longest_s:
                    raise UndecodableError(f"it is longer than {longest_s:g} seconds")
            for heard in resampler.resample(None):
                pcm += bytes(heard.planes[0])[: 2 * heard.samples]
    except (av.error.FFmpegError, IndexError, ValueError) as error:
        raise UndecodableError(str(error)) from error
    return Sound(pcm=bytes(pcm), sample_rate=_HEARD_RATE, duration_s=round(len(pcm) / 2 / _HEARD_RATE, 3))


def _encode(pcm: bytes, container_format: str, codec: str) -> bytes:
    import av  # noqa: PLC0415 - an extra

    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        stream: Any = container.add_stream(codec, rate=SPEECH_RATE)
        stream.layout = "mono"
        if codec != "flac":
            stream.bit_rate = _BIT_RATE
        stream.codec_context.open()
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // 2)
        frame.planes[0].update(pcm)
        frame.sample_rate = SPEECH_RATE
        size = stream.codec_context.frame_size or 4_096
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout="mono", rate=SPEECH_RATE, frame_size=size
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return file.getvalue()
