"""Kinds, lengths and cuts, over recordings that the tests write themselves: a tone where somebody speaks."""

from __future__ import annotations

import array
import itertools
import math
import struct
import subprocess
import sys
import wave
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import pytest

from pipeline.errors import MediaError, StorageError
from pipeline.media import audio
from pipeline.media.audio import AudioKind, AudioPiece

RATE = 8000
TONE = "tone"
PAUSE = "pause"
HISS = "hiss"  # below -60 dBFS
HUM = "hum"  # above it, and far below the tone

Part = tuple[str, float]


def samples(kind: str, seconds: float, rate: int = RATE) -> bytes:
    count = round(seconds * rate)
    match kind:
        case "tone":
            turn = [round(9000 * math.sin(2 * math.pi * 200 * at / rate)) for at in range(rate // 200)]
            return array.array("h", itertools.islice(itertools.cycle(turn), count)).tobytes()
        case "hiss":
            return array.array("h", [(at * 7919 % 61) - 30 for at in range(count)]).tobytes()
        case "hum":
            return array.array("h", [(at * 7919 % 601) - 300 for at in range(count)]).tobytes()
        case _:
            return bytes(count * 2)


def write_wav(path: Path, parts: Iterable[Part], *, rate: int = RATE, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        for kind, seconds in parts:
            mono = samples(kind, seconds, rate)
            frames = mono
            if channels == 2:
                frames = b"".join(mono[at : at + 2] * 2 for at in range(0, len(mono), 2))
            sound.writeframes(frames)
    return path


ENCODED = {
    "flac": ("flac", "flac", audio.FLAC),
    "mp3": ("mp3", "libmp3lame", audio.MP3),
    "mpga": ("mp2", "mp2", audio.MPGA),
    "ogg": ("ogg", "libopus", audio.OGG),
    "m4a": ("ipod", "aac", audio.M4A),
    "mp4": ("mp4", "aac", audio.MP4),
    "webm": ("webm", "libopus", audio.WEBM),
    "mpeg": ("vob", "mp2", audio.MPEG),
}


def write_encoded(path: Path, name: str, seconds: float, options: dict[str, str] | None = None) -> Path:
    muxer, codec, _ = ENCODED[name]
    with av.open(str(path), "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        data = samples(TONE, seconds, 48_000)
        for at in range(0, len(data), 9600):
            chunk = data[at : at + 9600]
            frame = av.AudioFrame(format="s16", layout="mono", samples=len(chunk) // 2)
            frame.sample_rate = 48_000
            frame.pts = at // 2
            frame.planes[0].update(chunk)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, folder: Path, longest_s: float = 30, kind: AudioKind = audio.WAV) -> list[AudioPiece]:
    folder.mkdir(exist_ok=True)
    with path.open("rb") as file:
        return audio.cut_recording(file, kind, folder, longest_s=longest_s)


def decoded(path: Path) -> array.array[int]:
    sound = array.array("h")
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (audio.RATE, "mono")
        for frame in container.decode(stream):
            sound.frombytes(bytes(frame.planes[0])[: frame.samples * 2])
    return sound


def lengths(pieces: Sequence[AudioPiece]) -> list[float]:
    return [piece.end_s - piece.start_s for piece in pieces]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "pieces"


@pytest.mark.parametrize("name", ENCODED)
def test_a_file_of_every_kind_is_known_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    path = write_encoded(tmp_path / "sound", name, 1)
    assert audio.kind_of(path.read_bytes()[:64]) == ENCODED[name][2]


def test_wav_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    head = write_wav(tmp_path / "a.wav", [(TONE, 1)]).read_bytes()[:64]
    assert audio.kind_of(head) == audio.WAV
    assert audio.kind_of(b"RF64" + head[4:]) == audio.WAV


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"R",
        b"RIFF",
        b"RIFF\0\0\0\0AVI LIST",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"GIF89a",
        b"%PDF-1.7",
        b"PK\3\4",
        b"#EXTM3U\nhttp://127.0.0.1/",
        b"ffconcat version 1.0\nfile /etc/passwd",
        b"<!doctype html>",
        b'{"error": {}}',
        b"root:x:0:0:root:/root:/bin/bash",
        b"\0\0\0\x18ftypheic",
        b"\0\0\0\x18ftypavif",
        b"\0\0\0\x14ftypqt  ",
        b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0#B\x86\x81\x01B\x82\x88matroska",
        b"\xff\xf1\x50\x80",  # AAC in ADTS: layer 0
        b"\xff\xff\xff\xff",
        b"\xff\xfb",
        b"\xff\xfe\0\0h\0i\0",  # UTF-16 text
        b"\0" * 64,
        b"#!AMR\n",
        b"FORM\0\0\0\0AIFF",
    ],
    ids=repr,
)
def test_what_services_do_not_take_is_no_kind(head: bytes) -> None:
    assert audio.kind_of(head) is None


@pytest.mark.parametrize("name", ENCODED)
def test_a_file_of_every_kind_tells_its_length(tmp_path: Path, name: str) -> None:
    path = write_encoded(tmp_path / "sound", name, 3)
    with path.open("rb") as file:
        assert audio.length_s(file, ENCODED[name][2]) == pytest.approx(3, abs=0.2)
        assert file.tell() == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("webm", {"live": "1"}),  # as browsers record
        ("mp3", {"write_xing": "0"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_a_file_that_does_not_say_its_length_is_measured(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    path = write_encoded(tmp_path / "sound", name, 3, options)
    with path.open("rb") as file:
        assert audio.length_s(file, ENCODED[name][2]) == pytest.approx(3, abs=0.2)


def test_a_wav_tells_its_length(tmp_path: Path) -> None:
    with write_wav(tmp_path / "a.wav", [(TONE, 2.5)]).open("rb") as file:
        assert audio.length_s(file, audio.WAV) == 2.5


@pytest.mark.parametrize("kind", [audio.WAV, *(each[2] for each in ENCODED.values())], ids=lambda kind: kind.extension)
@pytest.mark.parametrize("content", [b"", b"RIFF", b"\0" * 5000, b"RIFF\xff\xff\xff\xffWAVEfmt " + b"\xff" * 500])
def test_a_file_that_cannot_be_read_has_no_length(tmp_path: Path, kind: AudioKind, content: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with path.open("rb") as file:
        assert audio.length_s(file, kind) is None


def test_a_recording_is_cut_in_its_pauses_and_nothing_is_lost(tmp_path: Path, out: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [(TONE, 24), (PAUSE, 1), (TONE, 25), (PAUSE, 1), (TONE, 20)], rate=audio.RATE)
    pieces = cut(path, out)
    assert [(piece.start_s, piece.end_s) for piece in pieces] == [(piece.from_s, piece.to_s) for piece in pieces]
    assert pieces[0].start_s == 0
    assert 24 < pieces[0].end_s < 25
    assert 50 < pieces[1].end_s < 51
    assert pieces[-1].end_s == 71
    assert [piece.start_s for piece in pieces[1:]] == [piece.end_s for piece in pieces[:-1]]
    with wave.open(str(path)) as sound:
        whole = array.array("h", sound.readframes(sound.getnframes()))
    assert sum((decoded(out / piece.name) for piece in pieces), array.array("h")) == whole


@pytest.mark.parametrize("quiet", [PAUSE, HISS, HUM])
def test_a_pause_need_only_be_quieter_than_what_is_around_it(tmp_path: Path, out: Path, quiet: str) -> None:
    parts = [(TONE, 24), (quiet, 0.5), (TONE, 24)]
    first, second = cut(write_wav(tmp_path / "a.wav", parts), out)
    assert 24 < first.end_s == second.start_s < 24.5


@pytest.mark.parametrize(("sound", "overlap_s"), [(PAUSE, 0), (HISS, 0), (HUM, 2), (TONE, 2)])
def test_what_is_all_alike_is_a_pause_only_below_minus_60_db(
    tmp_path: Path, out: Path, sound: str, overlap_s: float
) -> None:
    first, second = cut(write_wav(tmp_path / "a.wav", [(sound, 40)]), out)
    assert first.end_s - second.start_s == overlap_s


def test_without_a_pause_neighbours_overlap_by_two_seconds(tmp_path: Path, out: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [(TONE, 70)], rate=audio.RATE)
    pieces = cut(path, out)
    assert len(pieces) >= 3
    for left, right in itertools.pairwise(pieces):
        assert left.to_s == right.from_s
        assert left.end_s == left.to_s + 1
        assert right.start_s == right.from_s - 1
    with wave.open(str(path)) as sound:
        whole = array.array("h", sound.readframes(sound.getnframes()))
    for piece in pieces:
        first, end = (round(second * audio.RATE) for second in (piece.start_s, piece.end_s))
        assert decoded(out / piece.name) == whole[first:end]


@pytest.mark.parametrize("pause_s", [0.05, 0.15, 0.25])
def test_a_pause_shorter_than_300_ms_is_none(tmp_path: Path, out: Path, pause_s: float) -> None:
    pieces = cut(write_wav(tmp_path / "a.wav", [(TONE, 24), (PAUSE, pause_s), (TONE, 24)]), out)
    assert pieces[0].end_s > pieces[1].start_s


@pytest.mark.parametrize("seconds", [29, 30, 31, 33, 45, 59, 60, 61, 89.9, 90, 90.04, 121, 150.5])
@pytest.mark.parametrize("kind", [TONE, PAUSE])
def test_pieces_are_never_too_long_and_never_scraps(tmp_path: Path, out: Path, kind: str, seconds: float) -> None:
    pieces = cut(write_wav(tmp_path / "a.wav", [(kind, seconds)]), out)
    assert pieces[0].from_s == 0
    assert pieces[-1].to_s == pytest.approx(seconds, abs=0.01)
    assert all(left.to_s == right.from_s for left, right in itertools.pairwise(pieces))
    assert max(lengths(pieces)) <= 30
    assert min(lengths(pieces)) >= min(seconds, 10)


def test_a_recording_that_does_not_say_its_length_is_cut_all_the_same(tmp_path: Path, out: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [(TONE, 75)])
    data = bytearray(path.read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # as a recorder that streams writes it
    path.write_bytes(data)
    pieces = cut(path, out)
    assert pieces[-1].to_s == pytest.approx(75, abs=0.01)
    assert max(lengths(pieces)) <= 30
    assert min(lengths(pieces)) >= 1


def test_stereo_of_44100_hz_becomes_mono_of_16000_hz(tmp_path: Path, out: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [(TONE, 20), (PAUSE, 5), (TONE, 20)], rate=44_100, channels=2)
    pieces = cut(path, out)
    assert sum(lengths(pieces)) == 45
    for piece in pieces:
        assert len(decoded(out / piece.name)) == round((piece.end_s - piece.start_s) * audio.RATE)


@pytest.mark.parametrize("name", ENCODED)
def test_a_file_of_every_kind_can_be_cut(tmp_path: Path, out: Path, name: str) -> None:
    path = write_encoded(tmp_path / "sound", name, 40)
    pieces = cut(path, out, kind=ENCODED[name][2])
    assert len(pieces) == 2
    assert pieces[-1].to_s == pytest.approx(40, abs=0.2)
    for piece in pieces:
        assert audio.kind_of((out / piece.name).read_bytes()[:64]) == audio.FLAC


def test_the_same_recording_gives_the_same_pieces(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [(TONE, 40), (PAUSE, 0.5), (TONE, 40)])
    first, second = (cut(path, tmp_path / name) for name in ("one", "two"))
    assert first == second
    for piece in first:
        assert (tmp_path / "one" / piece.name).read_bytes() == (tmp_path / "two" / piece.name).read_bytes()


def test_pieces_have_at_most_twelve_minutes_whatever_is_asked(tmp_path: Path, out: Path) -> None:
    pieces = cut(write_wav(tmp_path / "a.wav", [(TONE, 100)] * 8), out, longest_s=3600)
    assert len(pieces) == 2
    assert max(lengths(pieces)) <= 720


def test_the_loudest_noise_stays_below_24_mb(tmp_path: Path, out: Path) -> None:
    noise = bytes(at * at * 2654435761 >> 13 & 255 for at in range(32_000))
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, audio.RATE, 0, "NONE", ""))
        for _ in range(730):
            sound.writeframes(noise)
    for piece in cut(path, out, longest_s=720):
        assert (out / piece.name).stat().st_size < 24_000_000


@pytest.mark.parametrize("kind", [audio.WAV, *(each[2] for each in ENCODED.values())], ids=lambda kind: kind.extension)
@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 5000, b"\0" * 5000, b"fLaC" + b"\xff" * 500, b"OggS\0\2" + b"\0" * 500, b"ID3\4" + b"\0" * 500],
)
def test_what_cannot_be_decoded_is_said_to_be(tmp_path: Path, out: Path, kind: AudioKind, content: bytes) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        cut(path, out, kind=kind)
    assert caught.value.code == "undecodable"


def test_a_file_that_is_mostly_broken_is_not_taken_for_a_short_one(tmp_path: Path, out: Path) -> None:
    path = write_encoded(tmp_path / "sound", "flac", 60)
    data = bytearray(path.read_bytes())
    for at in range(10_000, len(data)):
        data[at] = data[at] * 7 + 3 & 255
    path.write_bytes(data)
    with pytest.raises(MediaError) as caught:
        cut(path, out, kind=audio.FLAC)
    assert caught.value.code == "undecodable"


def test_junk_after_the_end_is_passed_over(tmp_path: Path, out: Path) -> None:
    path = write_encoded(tmp_path / "sound", "mp3", 40)
    with path.open("ab") as file:
        file.write(b"TAG" + b"junk" * 31 + b"\1")
    assert cut(path, out, kind=audio.MP3)[-1].to_s == pytest.approx(40, abs=0.5)


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:40\n#EXTINF:40,\nsecret.wav\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.wav\n",
    ],
)
def test_a_playlist_under_any_name_opens_no_other_file(
    tmp_path: Path, out: Path, playlist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "secret.wav", [(TONE, 40)])
    path = tmp_path / "list"
    path.write_text(playlist)
    for kind in (audio.WAV, *(each[2] for each in ENCODED.values())):
        with path.open("rb") as file:
            assert audio.length_s(file, kind) is None
        with pytest.raises(MediaError):
            cut(path, out, kind=kind)


def test_one_sample_a_second_is_no_sound(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "a.wav"
    data = b"\0" * 100_000
    form = struct.pack("<HHIIHH", 1, 1, 1, 1, 1, 8)
    path.write_bytes(b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt \x10\0\0\0" + form + b"data")
    with path.open("ab") as file:
        file.write(struct.pack("<I", len(data)) + data)
    with pytest.raises(MediaError) as caught:
        cut(path, out)
    assert caught.value.code == "undecodable"


@pytest.mark.parametrize("said", [200 * RATE, 2**32 - 1, 2**31 - 1])
def test_a_recording_longer_than_the_most_is_refused_whatever_it_says(tmp_path: Path, out: Path, said: int) -> None:
    path = write_wav(tmp_path / "a.wav", [(PAUSE, 100)])
    data = bytearray(path.read_bytes())
    data[40:44] = struct.pack("<I", said)
    path.write_bytes(data)
    out.mkdir()
    with path.open("rb") as file, pytest.raises(MediaError, match="several") as caught:
        audio.cut_recording(file, audio.WAV, out, longest_s=30, most_s=60)
    assert caught.value.code == "too_long"


def test_a_file_that_was_cut_off_is_not_taken_for_a_short_one(tmp_path: Path, out: Path) -> None:
    path = write_encoded(tmp_path / "sound", "flac", 60)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=r"of its 60 seconds") as caught:
        cut(path, out, kind=audio.FLAC)
    assert caught.value.code == "undecodable"


def test_a_folder_that_cannot_be_written_to_ends_the_run_not_the_row(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [(TONE, 40)])
    with path.open("rb") as file, pytest.raises(StorageError, match="cutting a recording into"):
        audio.cut_recording(file, audio.WAV, tmp_path / "missing", longest_s=30)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_ends_the_run_not_the_row(tmp_path: Path, out: Path) -> None:
    path = write_wav(tmp_path / "a.wav", [(TONE, 40)])
    out.mkdir()
    (out / "0000.flac").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        cut(path, out)


def test_without_pyav_cutting_says_how_to_install_it(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r'pip install "aoai-pipeline\[audio\]"') as caught:
        cut(write_wav(tmp_path / "a.wav", [(TONE, 40)]), out)
    assert caught.value.code == "audio_extra"


def test_without_pyav_a_wav_tells_its_length_and_others_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = write_encoded(tmp_path / "sound", "flac", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with write_wav(tmp_path / "a.wav", [(TONE, 2.5)]).open("rb") as file:
        assert audio.length_s(file, audio.WAV) == 2.5
    with sound.open("rb") as file:
        assert audio.length_s(file, audio.FLAC) is None
        assert audio.length_s(file, audio.WAV) is None


MEASURED = """
import resource, sys
from pathlib import Path
from pipeline.media import audio

def cut(name):
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    with folder.with_suffix(".wav").open("rb") as file:
        audio.cut_recording(file, audio.WAV, folder, longest_s=720)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = cut("short")
print(cut("long") - before)
"""


def test_an_hour_is_cut_in_a_few_megabytes(tmp_path: Path) -> None:
    minute = samples(TONE, 59, audio.RATE) + samples(PAUSE, 1, audio.RATE)
    for name, minutes in (("short", 1), ("long", 60)):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as sound:
            sound.setparams((1, 2, audio.RATE, 0, "NONE", ""))
            for _ in range(minutes):
                sound.writeframes(minute)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert int(done.stdout) < 32, "megabytes more than for a minute"
    assert done.stderr == ""
    assert len(list((tmp_path / "long").iterdir())) > 5
