"""What is spoken can be read again in every format, with a codec library and without."""

from __future__ import annotations

import io
import struct
import wave
from array import array

import pytest

from pipeline.simulator import tones
from pipeline.simulator.containers import silent_aac, silent_flac, silent_mp3, silent_opus, tagged_words
from pipeline.simulator.hearing import Hearing, segments_of
from pipeline.simulator.ledger import content_key
from pipeline.simulator.sounds import UndecodableError, read_sound, unread_sound, wave_file, write_sound

WORDS = ["The", "sea", "is", "calm.", "Nobody", "sails."]
PCM = tones.encode(WORDS, 16_000)
TONES = Hearing("tones")


def stereo(width: int) -> bytes:
    """Write the words into the left of two channels, with so many bytes a sample."""
    samples = array("h", PCM)
    pairs = bytearray()
    for sample in samples:
        left = struct.pack("<i", sample << 16)[-width:] if width > 1 else bytes(((sample >> 8) + 128,))
        pairs += left + (bytes(width) if width > 1 else b"\x80")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(width)
        writer.setframerate(16_000)
        writer.writeframes(bytes(pairs))
    return file.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_of_any_width_is_read_by_its_first_channel(width: int) -> None:
    heard = TONES.hear(stereo(width), "x.wav")
    assert heard.text == " ".join(WORDS)
    assert heard.duration_s == pytest.approx(len(PCM) / 32_000, abs=0.001)


def test_wav_that_was_streamed_is_read_to_its_end() -> None:
    content = bytearray(wave_file(PCM, 16_000))
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    assert TONES.hear(bytes(content), "x.WAV").text == " ".join(WORDS)


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"ID3" + bytes(100), wave_file(b"", 16_000)[:30]]
)
def test_what_is_no_wav_cannot_be_decoded(content: bytes) -> None:
    with pytest.raises(UndecodableError):
        read_sound(content, "x.wav")


@pytest.mark.parametrize("name", ["x.mp3", "x.ogg", "x.flac", "x.m4a", "x.webm"])
def test_bytes_that_are_no_sound_cannot_be_decoded(name: str) -> None:
    pytest.importorskip("av")
    with pytest.raises(UndecodableError):
        read_sound(b"these are no frames of anything" * 100, name)


@pytest.mark.parametrize("write", [silent_mp3, silent_aac, silent_opus, silent_flac])
def test_silence_carries_its_words_as_a_tag(write: object) -> None:
    assert callable(write)
    content = write(4.2, "Grüße an alle.")
    assert tagged_words(content) == ["Grüße", "an", "alle."]
    assert TONES.hear(content, "x.mp3").text == "Grüße an alle."


@pytest.mark.parametrize("write", [silent_mp3, silent_aac, silent_opus, silent_flac])
def test_silence_is_a_file_that_decoders_take_and_as_long_as_it_says(write: object) -> None:
    av = pytest.importorskip("av")
    assert callable(write)
    with av.open(io.BytesIO(write(12.5, "word " * 3_000))) as container:
        frames = list(container.decode(audio=0))
    assert sum(frame.samples for frame in frames) / frames[0].sample_rate == pytest.approx(12.5, abs=0.2)


@pytest.mark.parametrize("content", [b"", b"SIMULATED_WORDS=", b"SIMULATED_WORDS=x0000001a"])
def test_a_tag_that_is_damaged_is_none(content: bytes) -> None:
    assert tagged_words(content) is None


@pytest.mark.parametrize("kind", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_what_is_spoken_is_no_longer_than_its_words(kind: str) -> None:
    if kind not in ("wav", "pcm"):
        pytest.importorskip("av")
    content = write_sound(WORDS, kind)
    if kind == "pcm":
        content = wave_file(content, 24_000)
    heard = TONES.hear(content, "x.wav" if kind == "pcm" else f"x.{kind}")
    assert heard.text == " ".join(WORDS)
    assert heard.duration_s == pytest.approx(list(tones.schedule(WORDS))[-1].end_s + tones.GAP_S, abs=0.1)


@pytest.mark.parametrize("kind", ["mp3", "opus", "aac", "flac"])
def test_without_a_codec_library_words_are_spoken_and_heard_by_their_tag(kind: str) -> None:
    sound = read_sound(write_sound(WORDS, kind, codecs=False), f"x.{kind}", codecs=False)
    assert sound.tag == tuple(WORDS)
    assert sound.duration_s == pytest.approx(list(tones.schedule(WORDS))[-1].end_s + tones.GAP_S)


def test_without_a_codec_library_other_files_are_not_looked_into() -> None:
    sound = read_sound(b"x" * 8_000, "x.mp3", codecs=False)
    assert (sound.pcm, sound.tag, sound.duration_s) == (None, None, 2.0)
    floats = bytearray(wave_file(PCM, 16_000))
    floats[20:22] = b"\x03\x00"
    with pytest.raises(UndecodableError, match="not PCM"):
        read_sound(bytes(floats), "x.wav", codecs=False)


def test_a_wav_of_no_samples_a_second_cannot_be_decoded() -> None:
    content = bytearray(wave_file(PCM, 16_000))
    content[24:28] = bytes(4)
    with pytest.raises(UndecodableError):
        read_sound(bytes(content), "x.wav")


def test_a_few_bytes_that_stand_for_hours_are_not_all_decoded() -> None:
    pytest.importorskip("av")
    content = silent_flac(3_600, "").replace(b"SIMULATED_WORDS=", b"SOMETHING_ELSE==")
    assert len(content) < 400_000
    with pytest.raises(UndecodableError, match="longer than 60 seconds"):
        read_sound(content, "x.flac", longest_s=60)


def test_sentences_end_with_their_sign_or_a_pause() -> None:
    spoken = [*tones.schedule(["One", "two.", "Three"]), tones.Spoken(word="four", start_s=9.0, end_s=9.5)]
    assert [segment.text for segment in segments_of(spoken)] == ["One two.", "Three", "four"]
    assert segments_of([]) == []


def test_silence_says_nothing() -> None:
    heard = TONES.hear(wave_file(bytes(64_000), 16_000), "x.wav")
    assert (heard.text, heard.segments, heard.duration_s) == ("", (), 2.0)


def test_a_sound_without_a_code_is_named_by_its_digest() -> None:
    content = wave_file(array("h", [9_000, -9_000] * 16_000).tobytes(), 16_000)
    heard = TONES.hear(content, "x.wav")
    assert heard.text == f"Recording of {len(content)} bytes [sha:{content_key(content)[:8]}]."
    assert heard.duration_s == 2.0


def test_a_code_that_was_cut_says_nothing() -> None:
    [word] = tones.schedule(["railway"])
    pcm = tones.encode(["railway"], 16_000)[: round((word.start_s + word.end_s) / 2 * 16_000) * 2]
    assert TONES.hear(wave_file(pcm, 16_000), "x.wav").text == ""


def test_an_opaque_recording_is_never_looked_into() -> None:
    heard = Hearing("opaque").hear(b"x" * 8_000, "x.wav")
    assert heard.duration_s == unread_sound(b"x" * 8_000).duration_s == 2.0
    assert heard.text.startswith("Recording of 8000 bytes [sha:")
