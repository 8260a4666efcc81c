"""Words as tones: a code that survives resampling and lossy compression, so that a simulator can hear what was said.

A byte is a symbol of 80 ms in which four tones sound at once, each one of four: two bits a tone. A word is the symbols
of its UTF-8 bytes and of their CRC-8, one after the other; silence is between words. Tones lie 150 Hz apart from
400 Hz to 2,650 Hz; a symbol is judged by its middle 40 ms, in which all of them are orthogonal. A word whose CRC is
wrong, such as one that was cut in two, is not heard.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import add, mul, sub

SYMBOL_S = 0.08
GAP_S = 0.16
"""The silence after a word."""
PAUSE_S = 0.8
"""The silence after a word that ends a sentence."""

_JUDGED_S = 0.04
_RAMP_S = 0.004
_GROUPS = 4
_TONES_A_GROUP = 4
_LOWEST_HZ = 400
_STEP_HZ = 150
_LOUDNESS = 0.19  # of full scale, for each of the four tones
_LEAST_RATE = 6_000
_JUDGED_RATE = 8_000  # samples in between are left out: they say nothing about tones below 3 kHz
_BLOCK_S = 0.005
_LEAST_PEAK = 200  # of 32,767: below it everything is silence
_SILENT_SHARE = 0.3  # of the loud blocks' peak
_LOUD_QUANTILE = 0.9
_LEAST_GAP_BLOCKS = 12
_TOLERANCE_S = 0.03  # of a word's length
_LEAST_PURITY = 0.6  # of a symbol's energy lies in its four tones
_CRC_POLYNOMIAL = 0x07
_MOST_LOOKED_AT = 100
_LEAST_SYMBOLS = 2  # a byte and its CRC
_SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A word and when it sounds, in seconds from the beginning."""

    word: str
    start_s: float
    end_s: float


def schedule(words: Iterable[str]) -> Iterator[Spoken]:
    """Say when each word sounds in what `encode` makes. Raises ValueError for what is no word."""
    at_s = GAP_S
    for word in words:
        if not word or word != "".join(word.split()):
            raise ValueError(f"{word!r} is no word: it is empty or holds blanks")
        end_s = at_s + SYMBOL_S * (len(word.encode()) + 1)
        yield Spoken(word=word, start_s=round(at_s, 3), end_s=round(end_s, 3))
        at_s = end_s + silence_after(word)


def silence_after(word: str) -> float:
    """Give the seconds of silence that follow a word: more of them at a sentence's end."""
    return PAUSE_S if word.endswith(_SENTENCE_ENDS) else GAP_S


def encode(words: Iterable[str], sample_rate: int) -> bytes:
    """Make mono PCM of 16 bits, little-endian. Raises ValueError for what is no word, or for a rate below 6 kHz."""
    return b"".join(encode_pieces(words, sample_rate))


def encode_pieces(words: Iterable[str], sample_rate: int) -> Iterator[bytes]:
    """Make the same word by word, for recordings that are larger than memory."""
    if sample_rate < _LEAST_RATE:
        raise ValueError(f"{sample_rate} samples a second cannot hold the tones; take {_LEAST_RATE} or more")
    written = 0
    for spoken in schedule(words):
        silence = round(spoken.start_s * sample_rate) - written
        data = spoken.word.encode()
        sound = b"".join(_symbol(byte, sample_rate) for byte in (*data, _crc(data)))
        yield bytes(2 * silence) + sound
        written += silence + len(sound) // 2
    yield bytes(2 * round(GAP_S * sample_rate))


def decode(pcm: bytes | bytearray | memoryview, sample_rate: int) -> list[Spoken]:
    """Hear the words in mono PCM of 16 bits, little-endian; nothing where there are none. Times are true to 0.02 s."""
    if sample_rate < _LEAST_RATE:
        return []
    samples = _samples(pcm)
    heard = []
    for start, end in _sounds(samples, sample_rate):
        word = _read_word(samples, start, end, sample_rate)
        if word is not None:
            heard.append(Spoken(word=word, start_s=round(start / sample_rate, 3), end_s=round(end / sample_rate, 3)))
    return heard


def holds_code(pcm: bytes | bytearray | memoryview, sample_rate: int) -> bool:
    """Say whether there are symbols of the code, though they may be damaged: most sounds have one in their middle."""
    if sample_rate < _LEAST_RATE:
        return False
    samples = _samples(pcm)
    sounds = list(islice(_sounds(samples, sample_rate), _MOST_LOOKED_AT))
    found = [_read_symbol(samples, _symbol_middle(start, end, sample_rate), sample_rate) for start, end in sounds]
    return sum(byte is not None for byte in found) * 2 > len(found)


def _symbol_middle(start: int, end: int, sample_rate: int) -> int:
    """Find the middle of the symbol in the middle of a sound."""
    symbol = SYMBOL_S * sample_rate
    return round(start + (int((end - start) / 2 / symbol) + 0.5) * symbol)


def _samples(pcm: bytes | bytearray | memoryview) -> array[int]:
    samples = array("h")
    samples.frombytes(memoryview(pcm)[: len(pcm) // 2 * 2])
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def _tones_of(byte: int) -> list[int]:
    """Give the four frequencies of a byte, in Hz."""
    return [_LOWEST_HZ + _STEP_HZ * (_TONES_A_GROUP * group + (byte >> 2 * group & 3)) for group in range(_GROUPS)]


@lru_cache(maxsize=2_048)
def _symbol(byte: int, sample_rate: int) -> bytes:
    length = round(SYMBOL_S * sample_rate)
    ramp = max(1, round(_RAMP_S * sample_rate))
    turns = [2 * math.pi * tone / sample_rate for tone in _tones_of(byte)]
    samples = array("h")
    for index in range(length):
        edge = min(index, length - 1 - index)
        gain = 32_767 * _LOUDNESS * (1.0 if edge >= ramp else 0.5 - 0.5 * math.cos(math.pi * edge / ramp))
        # each tone starts at a phase of its own, so that their peaks do not fall together
        samples.append(round(gain * sum(math.sin(turn * index + 1.9 * group) for group, turn in enumerate(turns))))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tobytes()


def _crc(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ _CRC_POLYNOMIAL if value & 0x80 else value << 1) & 0xFF
    return value


def _sounds(samples: Sequence[int], sample_rate: int) -> Iterator[tuple[int, int]]:
    """Find what lies between silences, as sample numbers."""
    block = round(_BLOCK_S * sample_rate)
    peaks = [max(samples[start : start + block]) for start in range(0, len(samples), block)]
    loud = sorted(peak for peak in peaks if peak >= _LEAST_PEAK)
    if not loud:
        return
    bound = loud[int(len(loud) * _LOUD_QUANTILE)] * _SILENT_SHARE
    first = last = None
    for number, peak in enumerate([*peaks, *[0] * _LEAST_GAP_BLOCKS]):
        if peak > bound:
            first = number if first is None else first
            last = number
        elif first is not None and last is not None and number - last >= _LEAST_GAP_BLOCKS:
            yield first * block, min(len(samples), (last + 1) * block)
            first = last = None


def _read_word(samples: Sequence[int], start: int, end: int, sample_rate: int) -> str | None:
    seconds = (end - start) / sample_rate
    count = round(seconds / SYMBOL_S)
    if count < _LEAST_SYMBOLS or abs(seconds - count * SYMBOL_S) > _TOLERANCE_S:
        return None
    # the blocks' edges are as likely too early as too late: the symbols lie in the middle of what was found
    begin_s = start / sample_rate + (seconds - count * SYMBOL_S) / 2
    data = bytearray()
    for number in range(count):
        middle = round((begin_s + (number + 0.5) * SYMBOL_S) * sample_rate)
        byte = _read_symbol(samples, middle, sample_rate)
        if byte is None:
            return None
        data.append(byte)
    if _crc(bytes(data[:-1])) != data[-1]:
        return None
    try:
        return data[:-1].decode()
    except UnicodeDecodeError:
        return None


def _read_symbol(samples: Sequence[int], middle: int, sample_rate: int) -> int | None:
    """Find the loudest tone of each group about a sample; None where most of the sound is something else.

    The window is folded about its middle, where cosines are even and sines odd: that halves the work.
    """
    stride = max(1, sample_rate // _JUDGED_RATE)
    tables = _tables(sample_rate / stride)
    reach = len(tables[0][0]) * stride
    after = samples[middle : middle + reach : stride]
    before = samples[middle - stride : middle - stride - reach : -stride] if middle > stride + reach else samples[:0]
    if not len(after) == len(before) == len(tables[0][0]):
        return None
    even, odd = list(map(add, after, before)), list(map(sub, after, before))
    byte = 0
    found = 0.0
    for group in range(_GROUPS):
        powers = [
            sum(map(mul, even, cosine)) ** 2 + sum(map(mul, odd, sine)) ** 2
            for cosine, sine in tables[_TONES_A_GROUP * group : _TONES_A_GROUP * (group + 1)]
        ]
        best = max(powers)
        byte |= powers.index(best) << 2 * group
        found += best
    energy = sum(map(mul, after, after)) + sum(map(mul, before, before))
    return byte if found / len(after) >= _LEAST_PURITY * energy else None


@lru_cache(maxsize=16)
def _tables(rate: float) -> list[tuple[list[float], list[float]]]:
    """Make a cosine and a sine of every tone for half a window, from half a sample beside its middle on."""
    length = round(_JUDGED_S * rate / 2)
    tables = []
    for number in range(_GROUPS * _TONES_A_GROUP):
        turn = 2 * math.pi * (_LOWEST_HZ + _STEP_HZ * number) / rate
        turns = [turn * (index + 0.5) for index in range(length)]
        tables.append((list(map(math.cos, turns)), list(map(math.sin, turns))))
    return tables
