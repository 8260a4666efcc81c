"""Recordings: what kind they are, how long, and how one too long is cut at silences into pieces (with PyAV)."""

from __future__ import annotations

import math
import operator
import wave
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from pipeline.errors import MediaError, StorageError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.resampler import AudioResampler
    from av.audio.stream import AudioStream
    from av.container import InputContainer

RATE = 16_000
"""Samples a second of pieces, mono: what speech models listen to."""
SAMPLE_BYTES = 2

PIECE_S = 720.0
"""The longest piece: 23,040,000 bytes even where FLAC saves nothing, under the services' 25 MB."""
SHORTEST_CUT_S = 30.0
"""The shortest length that recordings can be cut to: there must be room to look for a silence."""
SILENCE_S = 0.3
"""How long a pause must be to cut in it."""
OVERLAP_S = 1.0
"""Where there is no pause, both neighbours have this much of the other's sound."""
MAX_RECORDING_S = 24 * 3600.0
"""The longest recording that is cut: a few bytes of FLAC can stand for years."""

_SEARCH_S = 30.0  # a silence is looked for this far to both sides
_LEAST_RATE = 1000  # samples a second; fewer only let a small file last for days
_HOP = RATE // 100
_HOPS_OF_SILENCE = round(SILENCE_S * 100)
_QUIETER = 100.0  # 20 dB: a pause against the sound around it
_SILENT = (32768 * 10 ** (-60 / 20)) ** 2  # mean square of -60 dBFS: silence, whatever is around it
_CHUNK = RATE  # samples that are moved at once
_FEW_BAD_PACKETS = 3  # tags at the end of files, mostly
_EXTRA = 'needs PyAV: pip install "aoai-pipeline[audio]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioKind:
    """A kind of file that speech services take. `demuxer` is FFmpeg's name of it."""

    extension: str
    content_type: str
    demuxer: str


FLAC = AudioKind(extension="flac", content_type="audio/flac", demuxer="flac")
WAV = AudioKind(extension="wav", content_type="audio/wav", demuxer="wav")
OGG = AudioKind(extension="ogg", content_type="audio/ogg", demuxer="ogg")
MP3 = AudioKind(extension="mp3", content_type="audio/mpeg", demuxer="mp3")
MPGA = AudioKind(extension="mpga", content_type="audio/mpeg", demuxer="mp3")
MPEG = AudioKind(extension="mpeg", content_type="video/mpeg", demuxer="mpeg")
M4A = AudioKind(extension="m4a", content_type="audio/mp4", demuxer="mp4")
MP4 = AudioKind(extension="mp4", content_type="video/mp4", demuxer="mp4")
WEBM = AudioKind(extension="webm", content_type="audio/webm", demuxer="matroska")

# Whose own word on their length can be relied on; recorders that stream leave a wrong one in WAV.
_EXACT = (FLAC, M4A, MP4)
_MAGIC = {b"fLaC": FLAC, b"OggS": OGG, b"ID3": MP3, b"\0\0\x01\xba": MPEG, b"\0\0\x01\xb3": MPEG}
# Brands of MPEG-4 containers that hold pictures, and QuickTime's own.
_OTHER_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis", b"qt  "})


def kind_of(head: bytes) -> AudioKind | None:
    """Tell the kind by a file's first 64 bytes; None for what no speech service takes."""
    if head[:4] in {b"RIFF", b"RF64"}:
        return WAV if head[8:12] == b"WAVE" else None
    if head[:4] == b"\x1aE\xdf\xa3":
        return WEBM if b"webm" in head else None
    if head[4:8] == b"ftyp":
        return _brand(head[8:12])
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None) or _mpeg_audio(head)


def _brand(brand: bytes) -> AudioKind | None:
    if brand in _OTHER_BRANDS:
        return None
    return M4A if brand in {b"M4A ", b"M4B "} else MP4


def _mpeg_audio(head: bytes) -> AudioKind | None:
    """Read a frame's header: eleven bits of sync, then the layer, III or II; layer 0 would be bare AAC."""
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:  # noqa: PLR2004 - the sync
        return None
    version, layer, bit_rate, rate = head[1] >> 3 & 3, head[1] >> 1 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bit_rate == 0xF or rate == 3:  # noqa: PLR2004 - reserved values
        return None
    return {1: MP3, 2: MPGA}.get(layer)


def length_s(file: BinaryIO, kind: AudioKind) -> float | None:
    """How long a recording is, in seconds, by what it says or where its last packet ends; None where neither tells.

    PyAV reads it where it is installed; without it, only plain WAV tells. Blocking.
    """
    av = _pyav()
    if av is None:
        return _wave_length_s(file) if kind == WAV else None
    try:
        with av.open(_Input(file), "r", format=kind.demuxer) as container:
            return _said_length_s(container) or _packed_length_s(container)
    except (av.FFmpegError, ValueError, OSError):
        return None
    finally:
        file.seek(0)


def _wave_length_s(file: BinaryIO) -> float | None:
    try:
        with wave.open(file, "rb") as sound:
            return sound.getnframes() / sound.getframerate()
    except (wave.Error, EOFError, ArithmeticError):
        return None
    finally:
        file.seek(0)


def _said_length_s(container: InputContainer) -> float | None:
    """What the stream of sound says, else the container, which counts microseconds; None for less than nothing."""
    stream = next(iter(container.streams.audio), None)
    if stream is not None and stream.duration is not None and stream.time_base is not None:
        said_s = float(stream.duration * stream.time_base)
    else:
        said_s = (container.duration or 0) / 1_000_000
    return said_s if said_s > 0 else None


def _packed_length_s(container: InputContainer) -> float | None:
    """Where the last packet of sound ends: what records without knowing its end, such as a browser, says no length."""
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    ends_s = (
        float((packet.pts + (packet.duration or 0)) * packet.time_base)
        for packet in container.demux(stream)
        if packet.pts is not None
    )
    return max(ends_s, default=None)


class _Input:
    """A file as FFmpeg reads it: seeking before its beginning is no exception but an error that FFmpeg knows."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read
        self.tell = file.tell
        self._seek = file.seek

    def seek(self, offset: int, whence: int = 0) -> int:
        """The new position; -1 where there is none."""
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError):
            return -1


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPiece:
    """A file below the folder that the pieces were cut to, and its place in the recording, in seconds.

    It holds the sound from `start_s` to `end_s` and speaks for `from_s` to `to_s`: all of it where it was cut in a
    silence, less than all where it overlaps a neighbour.
    """

    name: str
    start_s: float
    end_s: float
    from_s: float
    to_s: float


def cut_recording(
    file: BinaryIO, kind: AudioKind, folder: Path, *, longest_s: float, most_s: float = MAX_RECORDING_S
) -> list[AudioPiece]:
    """Cut a recording into FLAC files of 16 kHz mono, none longer than `longest_s`, which is 30 to 720. Blocking.

    The same bytes give the same pieces, of about equal length. A cut lies in the quietest 300 ms near its place; where
    those are no pause (20 dB below what is around them, or below -60 dBFS), the neighbours overlap by two seconds.
    Holds about a minute of sound in memory.

    Raises MediaError: `audio_extra` without PyAV, `undecodable` (damaged, cut off, no sound), `too_long` for more than
    `most_s`; StorageError where the folder cannot be written to.
    """
    av = _pyav()
    if av is None:
        raise MediaError(code="audio_extra", message=f"to cut a recording {_EXTRA}")
    try:
        container: InputContainer = av.open(_Input(file), "r", format=kind.demuxer)
    except (av.FFmpegError, ValueError, OSError):
        raise _undecodable("it cannot be read as " + kind.extension) from None
    with container:
        if not container.streams.audio:
            raise _undecodable("it holds no sound")
        stream = container.streams.audio[0]
        if stream.rate < _LEAST_RATE:
            raise _undecodable(f"its {stream.rate} samples a second are no sound")
        said_s = _said_length_s(container)
        with closing(_decoded(container, stream, av)) as samples:
            pieces = _cut(_Sound(samples, most_s=most_s), said_s, folder, min(longest_s, PIECE_S), av)
    length_s = pieces[-1].to_s
    if kind in _EXACT and said_s is not None and length_s < said_s * 0.99 - 2:
        raise _undecodable(f"only {length_s:.0f} of its {said_s:.0f} seconds can be decoded")
    return pieces


def _pyav() -> ModuleType | None:
    """PyAV, which is an extra of the installation and takes its time to be imported; None where it is missing."""
    try:
        import av  # noqa: PLC0415
    except ImportError:
        return None
    return av


def _undecodable(why: str) -> MediaError:
    return MediaError(code="undecodable", message=f"the recording must be cut, but {why}")


def _too_long(most_s: float) -> MediaError:
    return MediaError(code="too_long", message=f"the recording is longer than {most_s / 3600:g} hours: make it several")


def _decoded(container: InputContainer, stream: AudioStream, av: ModuleType) -> Generator[bytes]:
    """The recording's samples, 16 bits each, as they are decoded. Raises MediaError where they cannot be."""
    resampler: AudioResampler | None = None
    shape: tuple[Any, ...] | None = None
    packets = bad = 0
    try:
        for packet in container.demux(stream):
            packets += 1
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                bad += 1
                continue
            for frame in frames:
                found = (frame.format.name, frame.layout.name, frame.sample_rate)
                if resampler is None or shape != found:
                    yield from _drained(resampler)
                    resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
                    shape = found
                yield from map(_bytes, resampler.resample(frame))
        yield from _drained(resampler)
    except (av.FFmpegError, ValueError, ArithmeticError, OSError):
        raise _undecodable("its sound cannot be decoded") from None
    if bad > _FEW_BAD_PACKETS + packets // 100:
        raise _undecodable(f"{bad} of its {packets} packets cannot be decoded")


def _drained(resampler: AudioResampler | None) -> Iterator[bytes]:
    return iter(()) if resampler is None else map(_bytes, resampler.resample(None))


def _bytes(frame: AudioFrame) -> bytes:
    return bytes(memoryview(frame.planes[0])[: frame.samples * SAMPLE_BYTES])


class _Sound:
    """Samples that are read in any number, and may be put back. Numbers are samples."""

    def __init__(self, samples: Iterator[bytes], *, most_s: float) -> None:
        self._samples = samples
        self._most_s = most_s
        self._buffer = bytearray()
        self._decoded = 0

    def read(self, most: int) -> bytes:
        """The next samples, at most so many; fewer, or none, only at the end."""
        wanted = most * SAMPLE_BYTES
        while len(self._buffer) < wanted and (data := next(self._samples, None)) is not None:
            self._buffer += data
            self._decoded += len(data) // SAMPLE_BYTES
            if self._decoded > self._most_s * RATE:
                raise _too_long(self._most_s)
        taken = bytes(self._buffer[:wanted])
        del self._buffer[:wanted]
        return taken

    def put_back(self, samples: bytes) -> None:
        """Have these read first."""
        self._buffer[:0] = samples


def _cut(sound: _Sound, said_s: float | None, folder: Path, longest_s: float, av: ModuleType) -> list[AudioPiece]:
    pieces: list[AudioPiece] = []
    overlap = round(OVERLAP_S * RATE)
    start = begin = 0
    while True:
        low, high = _window(None if said_s is None else said_s - start / RATE, longest_s)
        name = f"{len(pieces):04d}.flac"
        with _writing(folder / name, av) as piece:
            piece.copy(sound, low - overlap)
            tail = sound.read(high - low + 2 * overlap)
            if len(tail) < (high - low + 2 * overlap) * SAMPLE_BYTES:
                piece.write(tail)
                if start == 0 and piece.written == 0:
                    raise _undecodable("it holds no sound")
                end = start + piece.written
                pieces.append(_piece(name, start, end, begin, end))
                return pieces
            place, silent = _quietest(tail[overlap * SAMPLE_BYTES : -overlap * SAMPLE_BYTES])
            cut = start + low + place
            shared = 0 if silent else overlap
            kept = (overlap + place + shared) * SAMPLE_BYTES
            piece.write(tail[:kept])
        pieces.append(_piece(name, start, cut + shared, begin, cut))
        sound.put_back(tail[kept - 2 * shared * SAMPLE_BYTES :])
        start, begin = cut - shared, cut


def _piece(name: str, start: int, end: int, begin: int, to: int) -> AudioPiece:
    return AudioPiece(name=name, start_s=start / RATE, end_s=end / RATE, from_s=begin / RATE, to_s=to / RATE)


def _window(left_s: float | None, longest_s: float) -> tuple[int, int]:
    """Where to look for the next cut, in samples from the piece's beginning: around its share of what is left.

    Equal shares leave no scrap at the end. `left_s` is what the recording says, None where it says nothing.
    """
    most_s = longest_s - OVERLAP_S
    reach_s = min(_SEARCH_S, longest_s / 8)
    # A second more: what a container says is not to the sample.
    shares = 1 if left_s is None else math.ceil((left_s + OVERLAP_S) / longest_s)
    share_s = most_s if left_s is None or shares <= 1 else left_s / shares
    high_s = min(share_s + reach_s, most_s)
    return round((high_s - 2 * reach_s) * RATE), round(high_s * RATE)


def _quietest(samples: bytes) -> tuple[int, bool]:
    """The middle of the quietest 300 ms, in samples, and whether they are a pause. Of equals, the most central."""
    sound = memoryview(samples).cast("h")
    powers = [_power(sound[at : at + _HOP]) for at in range(0, len(sound) - _HOP + 1, _HOP)]
    sums = [sum(powers[at : at + _HOPS_OF_SILENCE]) for at in range(len(powers) - _HOPS_OF_SILENCE + 1)]
    middle = len(sums) // 2
    at = min(range(len(sums)), key=lambda index: (sums[index], abs(index - middle)))
    quiet = sums[at] / _HOPS_OF_SILENCE
    around = sum(powers) / len(powers)
    return round((at + _HOPS_OF_SILENCE / 2) * _HOP), quiet <= max(around / _QUIETER, _SILENT)


def _power(sound: memoryview[int]) -> float:
    total: int = sum(map(operator.mul, sound, sound))
    return total / len(sound)


@contextmanager
def _writing(path: Path, av: ModuleType) -> Iterator[_Piece]:
    """A piece's file, whole at the end of the block. Raises StorageError where it cannot be written."""
    try:
        with closing(_Piece(path, av)) as piece:
            yield piece
            piece.finish()
    except (OSError, av.FFmpegError) as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(f"cutting a recording into {path.parent}: {reason}; free some space there") from error


class _Piece:
    """One FLAC file being written. `written` counts samples."""

    def __init__(self, path: Path, av: ModuleType) -> None:
        self.written = 0
        self._av = av
        self._container = av.open(str(path), "w", format="flac")
        self._stream = self._container.add_stream("flac", rate=RATE, layout="mono")
        self._stream.codec_context.format = "s16"

    def copy(self, sound: _Sound, samples: int) -> None:
        """Write so many samples, fewer where there are no more."""
        while samples > 0 and (data := sound.read(min(samples, _CHUNK))):
            self.write(data)
            samples -= len(data) // SAMPLE_BYTES

    def write(self, data: bytes) -> None:
        """Write samples."""
        for at in range(0, len(data), _CHUNK * SAMPLE_BYTES):
            chunk = data[at : at + _CHUNK * SAMPLE_BYTES]
            frame = self._av.AudioFrame(format="s16", layout="mono", samples=len(chunk) // SAMPLE_BYTES)
            frame.sample_rate = RATE
            frame.pts = self.written
            plane = frame.planes[0]
            plane.update(chunk.ljust(plane.buffer_size, b"\0"))
            self._container.mux(self._stream.encode(frame))
            self.written += frame.samples

    def finish(self) -> None:
        """Write what the encoder still holds."""
        self._container.mux(self._stream.encode(None))

    def close(self) -> None:
        """Give the file back."""
        self._container.close()
