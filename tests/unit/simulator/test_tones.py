"""The tone code survives what happens to recordings, and nothing else is taken for it."""

from __future__ import annotations

import io
import itertools
import random
import time
from array import array
from typing import Any

import pytest

from pipeline.simulator import tones
from pipeline.simulator.tones import Spoken, decode, encode, encode_pieces, holds_code, schedule

TEXT = "It rained, it snowed. Then: Grüße aus dem 東京 of 1984! \N{SNOWMAN} a b c (d) e"
WORDS = TEXT.split()
RATE = 16_000


def spoken_words(found: list[Spoken]) -> list[str]:
    return [spoken.word for spoken in found]


def sentences(seconds: float) -> list[str]:
    drawn = random.Random(7)
    words: list[str] = []
    length_s = 0.0
    while length_s < seconds:
        word = "".join(drawn.choice("abcdefghij") for _ in range(drawn.randint(1, 9))) + drawn.choice(
            ["", "", ".", ","]
        )
        words.append(word)
        length_s += tones.SYMBOL_S * (len(word) + 1) + tones.silence_after(word)
    return words


@pytest.mark.parametrize("rate", [6_000, 8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_what_is_encoded_is_decoded_at_its_times(rate: int) -> None:
    found = decode(encode(WORDS, rate), rate)
    assert spoken_words(found) == WORDS
    for heard, said in zip(found, schedule(WORDS), strict=True):
        assert (heard.start_s, heard.end_s) == pytest.approx((said.start_s, said.end_s), abs=0.02)


def test_every_byte_is_a_symbol_of_its_own() -> None:
    assert len({tones._symbol(byte, RATE) for byte in range(256)}) == 256
    words = [chr(number) for number in range(33, 0x250) if chr(number).strip()]
    assert spoken_words(decode(encode(words, RATE), RATE)) == words


@pytest.mark.parametrize("share", [0.05, 0.3, 1.5])
def test_loudness_does_not_matter(share: float) -> None:
    samples = array("h", encode(WORDS, RATE))
    louder = array("h", [max(-32_768, min(32_767, round(share * sample))) for sample in samples])
    assert spoken_words(decode(louder.tobytes(), RATE)) == WORDS


def test_noise_20_db_below_the_tones_does_not_matter() -> None:
    drawn = random.Random(1)
    samples = array("h", encode(WORDS, RATE))
    noisy = array("h", [max(-32_768, min(32_767, sample + drawn.randint(-1_500, 1_500))) for sample in samples])
    assert spoken_words(decode(noisy.tobytes(), RATE)) == WORDS


def test_a_recording_cut_at_silences_gives_its_words_piece_by_piece() -> None:
    words = sentences(60)
    said = list(schedule(words))
    pcm = encode(words, RATE)
    cuts = [0]
    for before, after in itertools.pairwise(said):
        if after.start_s - cuts[-1] / RATE > 10 and after.start_s - before.end_s > 0.5:
            cuts.append(round((before.end_s + after.start_s) / 2 * RATE))
    assert len(cuts) > 4
    heard: list[tuple[str, Any]] = []
    for begin, end in zip(cuts, [*cuts[1:], len(pcm) // 2], strict=True):
        found = decode(pcm[2 * begin : 2 * end], RATE)
        heard += [(spoken.word, pytest.approx(spoken.start_s + begin / RATE, abs=0.02)) for spoken in found]
    assert [(spoken.word, spoken.start_s) for spoken in said] == heard


def test_a_word_that_is_cut_in_two_is_not_heard() -> None:
    [word] = schedule(["railway"])
    middle = round((word.start_s + word.end_s) / 2 * RATE)
    pcm = encode(["railway"], RATE)
    for half in (pcm[: 2 * middle], pcm[2 * middle :]):
        assert decode(half, RATE) == []
        assert holds_code(half, RATE)


def hiss(seconds: float) -> bytes:
    drawn = random.Random(3)
    return array("h", [drawn.randint(-9_000, 9_000) for _ in range(round(seconds * RATE))]).tobytes()


@pytest.mark.parametrize("pcm", [b"", b"\1", bytes(64_000), hiss(3), bytes(8_000) + hiss(0.3) + bytes(8_000)])
def test_nothing_is_heard_where_nobody_speaks(pcm: bytes) -> None:
    assert decode(pcm, RATE) == []
    assert not holds_code(pcm, RATE)


def test_a_rate_that_is_too_low_holds_no_code() -> None:
    assert decode(encode(WORDS, RATE), 4_000) == []
    assert not holds_code(encode(WORDS, RATE), 4_000)
    with pytest.raises(ValueError, match="4000 samples"):
        encode(WORDS, 4_000)


@pytest.mark.parametrize("word", ["", " ", "two words", "line\nend"])
def test_what_is_no_word_is_not_encoded(word: str) -> None:
    with pytest.raises(ValueError, match="is no word"):
        encode([word], RATE)


def test_pieces_are_the_whole() -> None:
    assert b"".join(encode_pieces(WORDS, RATE)) == encode(WORDS, RATE)


def test_ten_minutes_are_decoded_in_seconds() -> None:
    words = sentences(600)
    pcm = encode(words, RATE)
    began = time.process_time()
    assert spoken_words(decode(pcm, RATE)) == words
    assert time.process_time() - began < 12


def compress(av: Any, pcm: bytes, *, container: str, codec: str, bit_rate: int, rate: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.layout = "mono"
        stream.bit_rate = bit_rate
        stream.codec_context.open()
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // 2)
        frame.planes[0].update(pcm)
        frame.sample_rate = RATE
        context = stream.codec_context
        resampler = av.AudioResampler(format=context.format, layout="mono", rate=rate, frame_size=context.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def expand(av: Any, content: bytes, rate: int) -> bytes:
    pcm = bytearray()
    with av.open(io.BytesIO(content)) as source:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
        for frame in source.decode(audio=0):
            for piece in resampler.resample(frame):
                pcm += bytes(piece.planes[0])[: 2 * piece.samples]
        for piece in resampler.resample(None):
            pcm += bytes(piece.planes[0])[: 2 * piece.samples]
    return bytes(pcm)


@pytest.mark.parametrize("decoded_rate", [8_000, 16_000])
@pytest.mark.parametrize(
    ("container", "codec", "bit_rate", "rate", "late_s"),
    [
        ("mp3", "libmp3lame", 24_000, 16_000, 0.02),
        ("mp3", "libmp3lame", 32_000, 16_000, 0.02),
        ("mp3", "libmp3lame", 64_000, 44_100, 0.02),
        ("ogg", "libopus", 24_000, 48_000, 0.02),
        ("webm", "libopus", 32_000, 48_000, 0.02),
        ("ipod", "aac", 24_000, 16_000, 0.1),  # the encoder is late by a frame, and says so only to some
        ("adts", "aac", 32_000, 16_000, 0.1),
    ],
)
def test_lossy_compression_keeps_the_words(
    container: str, codec: str, bit_rate: int, rate: int, late_s: float, decoded_rate: int
) -> None:
    av = pytest.importorskip("av")
    words = sentences(40)
    content = compress(av, encode(words, RATE), container=container, codec=codec, bit_rate=bit_rate, rate=rate)
    found = decode(expand(av, content, decoded_rate), decoded_rate)
    assert spoken_words(found) == words
    for heard, said in zip(found, schedule(words), strict=True):
        assert heard.start_s == pytest.approx(said.start_s, abs=late_s)
