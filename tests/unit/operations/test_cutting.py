"""Recordings too long for one request: cut, asked for piece by piece, joined as if it had been one."""

from __future__ import annotations

import math
import os
import random
import sys
import wave
from collections.abc import Mapping, Sequence
from dataclasses import replace
from email import message_from_bytes
from pathlib import Path
from typing import Any

import av
import orjson
import pyarrow as pa
import pytest

from pipeline.errors import MediaError
from pipeline.model import Item, Reply, Row, RowResult, Target, Usage
from pipeline.operations import _audio
from pipeline.operations._audio import Recording
from pipeline.operations._joining import Piece
from pipeline.operations._subtitles import read_cues
from pipeline.operations.base import Cutting

RATE = 16_000
OPENAI = Target(deployment="d", model="whisper-1", body_model="whisper-1")
CUT = {"file": "{{ file }}", "cut_after": "30s"}


def write_wav(path: Path, seconds: float, *, pauses: Sequence[float] = ()) -> Path:
    """A tone with pauses of a second each, beginning at these seconds."""
    tone = b"".join(round(9000 * math.sin(at / 9)).to_bytes(2, "little", signed=True) for at in range(RATE))
    sound = bytearray((tone * (int(seconds) + 1))[: int(seconds * RATE) * 2])
    for pause in pauses:
        sound[int(pause * RATE) * 2 : int((pause + 1) * RATE) * 2] = bytes(RATE * 2)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(sound)
    return path


@pytest.fixture
def operation(make: Any, tmp_path: Path) -> Any:
    """Make an operation over the test's folder."""

    def made(
        request: Mapping[str, Any] = CUT, *, name: str = "transcription", model: str = "whisper-1", **more: Any
    ) -> Cutting:
        found = make(name, request, deployments=({"model": model},), source={"media_root": tmp_path}, **more)
        assert isinstance(found, Cutting)
        return found

    return made


def asked(operation: Cutting, **values: Any) -> Item:
    (one,) = operation.prepare([Row(ordinal=7, values=values or {"file": "a.wav"})])
    assert isinstance(one, Item), one
    return one


def cut(operation: Cutting, item: Item, folder: Path) -> list[Item]:
    folder.mkdir(exist_ok=True)
    pieces = operation.cut(item, folder)
    assert pieces is not None
    return list(pieces)


def place(item: Item) -> Piece:
    found = item.content.piece
    assert isinstance(found, Piece)
    return found


def answered(operation: Cutting, piece: Item, body: Any) -> RowResult:
    data = body.encode() if isinstance(body, str) else orjson.dumps(body)
    (result,) = operation.parse([piece], Reply(status=200, headers={}, body=data, latency_ms=1))
    return result


def join(operation: Cutting, item: Item, pieces: Sequence[Item], bodies: Sequence[Any]) -> dict[str, Any]:
    results = [answered(operation, piece, body) for piece, body in zip(pieces, bodies, strict=True)]
    joined = operation.join(item, pieces, results)
    assert joined.ordinal == item.ordinal
    assert joined.values is not None
    return dict(joined.values)


def set_in(item: Item, places: Sequence[tuple[float, float, float, float]]) -> list[Item]:
    """Pieces at these places, as if they had been cut: start, end, from, to."""
    return [replace(item, content=replace(item.content, piece=Piece(*each, identity="x"))) for each in places]


QUIET = ((0.0, 25.0, 0.0, 25.0), (25.0, 50.0, 25.0, 50.0), (50.0, 60.0, 50.0, 60.0))
LOUD = ((0.0, 26.0, 0.0, 25.0), (24.0, 51.0, 25.0, 50.0), (49.0, 60.0, 50.0, 60.0))


def test_a_short_recording_is_not_cut(operation: Any, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 29)
    audio = operation()
    assert audio.cut(asked(audio), tmp_path) is None


def test_without_a_length_only_the_size_decides(operation: Any, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 100)
    audio = operation({"file": "{{ file }}"})
    assert audio.cut(asked(audio), tmp_path) is None


@pytest.mark.parametrize(
    ("model", "seconds", "is_cut"),
    [("gpt-4o-transcribe", 1399, False), ("gpt-4o-mini-transcribe", 1401, True), ("whisper-1", 1501, False)],
)
def test_a_models_own_limit_counts_where_the_job_says_none(
    operation: Any,
    tmp_path: Path,
    model: str,
    seconds: int,
    is_cut: bool,  # noqa: FBT001
) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 1, 8000, 0, "NONE", ""))
        file.writeframes(b"\x80" * 8000 * seconds)
    audio = operation({"file": "{{ file }}"}, model=model)
    folder = tmp_path / "pieces"
    folder.mkdir()
    pieces = audio.cut(asked(audio), folder)
    assert (pieces is not None) is is_cut


def test_a_recording_of_more_than_25_mb_is_cut_into_requests_that_are_not(operation: Any, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 850)
    audio = operation({"file": "{{ file }}"})
    item = asked(audio)
    assert item.content.size > _audio.MAX_BODY_BYTES
    with pytest.raises(MediaError, match="takes at most 26214400"):
        audio.build([item], OPENAI)
    pieces = cut(audio, item, tmp_path / "pieces")
    assert len(pieces) == 2
    for piece in pieces:
        assert len(audio.build([piece], OPENAI).body) <= _audio.MAX_BODY_BYTES
        assert audio.cut(piece, tmp_path) is None


def test_a_large_but_short_recording_becomes_one_piece(operation: Any, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 4, 96_000, 0, "NONE", ""))
        file.writeframes(bytes(96_000 * 8 * 40))
    audio = operation({"file": "{{ file }}"})
    item = asked(audio)
    pieces = cut(audio, item, tmp_path / "pieces")
    assert len(pieces) == 1
    joined = join(audio, item, pieces, [{"text": "x", "duration": 40, "segments": [], "words": None}])
    assert (joined["output_text"], joined["duration_s"], joined["segments"]) == ("x", 40, [])


def test_pieces_ask_what_the_recording_was_asked(operation: Any, tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 70, pauses=[25, 50])
    audio = operation({**CUT, "language": "en", "timestamp_granularities": ["word"]})
    item = asked(audio)
    pieces = cut(audio, item, tmp_path / "pieces")
    assert len(pieces) == 3
    for number, piece in enumerate(pieces, start=1):
        assert (piece.ordinal, piece.tokens) == (item.ordinal, item.tokens)
        assert piece.content.fields == item.content.fields
        call = audio.build([piece], OPENAI)
        *fields, file = message_from_bytes(
            f"content-type: {call.content_type}\r\n\r\n".encode() + call.body
        ).get_payload()
        assert len(fields) == 4
        assert (file.get_filename(), file.get_content_type()) == (f"a-{number}.flac", "audio/flac")
        assert file.get_payload(decode=True)[:4] == b"fLaC"


def test_a_recording_in_a_column_is_cut_as_well(operation: Any, tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "a.wav", 70).read_bytes()
    audio = operation({**CUT, "file": "{{ sound }}"})
    item = asked(audio, sound=sound)
    pieces = cut(audio, item, tmp_path / "pieces")
    assert len(pieces) == 3
    assert not any(isinstance(piece.content.content, bytes) for piece in pieces)


def test_a_key_names_what_was_asked_and_nothing_else(operation: Any, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", 70)
    os.utime(path, ns=(0, 10**18))
    audio = operation()
    first = [audio.piece_key(piece) for piece in cut(audio, asked(audio), tmp_path / "one")]
    assert len(set(first)) == 3
    again = operation()
    assert [again.piece_key(piece) for piece in cut(again, asked(again), tmp_path / "two")] == first
    for request in ({"language": "en"}, {"cut_after": "40s"}, {"response_format": "json"}):
        other = operation({**CUT, **request})
        keys = [other.piece_key(piece) for piece in cut(other, asked(other), tmp_path / "three")]
        assert not set(keys) & set(first)
    os.utime(path, ns=(0, 10**18 + 1))
    assert not {audio.piece_key(piece) for piece in cut(audio, asked(audio), tmp_path / "four")} & set(first)


def test_a_key_of_a_column_goes_by_its_bytes(operation: Any, tmp_path: Path) -> None:
    audio = operation({**CUT, "file": "{{ sound }}"})
    keys = []
    for number, seconds in enumerate((70, 70, 71)):
        sound = write_wav(tmp_path / "a.wav", seconds).read_bytes()
        keys.append([audio.piece_key(piece) for piece in cut(audio, asked(audio, sound=sound), tmp_path / str(number))])
    assert keys[0] == keys[1]
    assert not set(keys[0]) & set(keys[2])


def test_a_recording_that_changed_before_it_was_cut_is_the_rows_error(operation: Any, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", 70)
    audio = operation()
    item = asked(audio)
    write_wav(path, 71)
    with pytest.raises(MediaError) as caught:
        audio.cut(item, tmp_path)
    assert caught.value.code == "changed"


def test_without_pyav_a_long_recording_says_what_to_install(
    operation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(tmp_path / "a.wav", 70)
    write_wav(tmp_path / "short.wav", 20)
    monkeypatch.setitem(sys.modules, "av", None)
    audio = operation()
    with pytest.raises(MediaError, match=r"aoai-pipeline\[audio\]") as caught:
        audio.cut(asked(audio), tmp_path)
    assert caught.value.code == "audio_extra"
    assert audio.cut(asked(audio, file="short.wav"), tmp_path) is None


def test_a_recording_whose_length_cannot_be_read_is_sent_as_it_is(operation: Any, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVEnothing that is sound")
    audio = operation()
    assert audio.cut(asked(audio), tmp_path) is None


def verbose(text: str, *, start: float = 0.0, end: float = 1.0, **more: Any) -> dict[str, Any]:
    segment = {"id": 0, "start": start, "end": end, "text": text, "avg_logprob": -0.5}
    return {"text": text, "language": "english", "duration": 25, "segments": [segment], **more}


@pytest.fixture
def item(operation: Any, tmp_path: Path) -> Item:
    """A recording to be cut."""
    write_wav(tmp_path / "a.wav", 1)
    return asked(operation())


def test_times_are_those_of_the_recording(operation: Any, item: Item) -> None:
    bodies = [verbose(text, start=1, end=4.5) for text in ("One.", "Two.", "Three.")]
    audio = operation()
    joined = join(audio, item, set_in(item, QUIET), bodies)
    assert joined["output_text"] == "One. Two. Three."
    assert [(each["id"], each["start_s"], each["end_s"], each["text"]) for each in joined["segments"]] == [
        (0, 1, 4.5, "One."),
        (1, 26, 29.5, "Two."),
        (2, 51, 54.5, "Three."),
    ]
    assert joined["segments"][2]["avg_logprob"] == -0.5
    assert joined["duration_s"] == 60
    assert joined["language"] == "english"
    assert joined["words"] is None
    pa.Table.from_pylist([joined], schema=audio.schema())


def test_a_service_that_hears_beyond_the_end_does_not_reach_into_the_next_piece(operation: Any, item: Item) -> None:
    bodies = [verbose("One.", start=20, end=30), verbose("Two."), verbose("Three.", start=99, end=100)]
    segments = join(operation(), item, set_in(item, QUIET), bodies)["segments"]
    assert [(each["start_s"], each["end_s"]) for each in segments] == [(20, 25), (25, 26), (60, 60)]


def test_what_both_pieces_heard_at_a_seam_in_speech_is_kept_once(operation: Any, item: Item) -> None:
    bodies = [
        verbose("We went over the hill", start=20, end=26),
        verbose("over the hill and home.", start=0, end=5),
        verbose("Good night.", start=3, end=4),
    ]
    joined = join(operation(), item, set_in(item, LOUD), bodies)
    assert joined["output_text"] == "We went over the hill and home. Good night."
    assert [(each["start_s"], each["end_s"], each["text"]) for each in joined["segments"]] == [
        (20, 24, "We went"),
        (24, 29, "over the hill and home."),
        (52, 53, "Good night."),
    ]


def heard(*segments: tuple[float, float, str]) -> dict[str, Any]:
    entries = [{"start": start, "end": end, "text": text} for start, end, text in segments]
    return {"text": " ".join(entry["text"] for entry in entries), "segments": entries}


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (
            [(20, 24, "And then."), (24.2, 25.5, "We went")],
            [(0.2, 1.5, "We went"), (1.6, 3, "home.")],
            ["And then.", "We went", "home."],
        ),
        (
            [(20, 24.3, "And then."), (24.4, 25.5, "We went")],
            [(0, 0.3, "then."), (0.4, 3, "We went home.")],
            ["And then.", "We went home."],
        ),
        ([(24, 24.9, "We went"), (25.1, 26, "hone")], [(0.5, 1, "went"), (1.05, 3, "home.")], ["We went", "home."]),
        ([(20, 24, "And then.")], [(3, 4, "Home.")], ["And then.", "Home."]),
        ([], [(3, 4, "Home.")], ["Home."]),
        ([(20, 24, "And then.")], [], ["And then."]),
    ],
)
def test_a_segment_that_both_pieces_hold_is_kept_once(
    operation: Any, item: Item, first: list[Any], second: list[Any], kept: list[str]
) -> None:
    joined = join(operation(), item, set_in(item, LOUD), [heard(*first), heard(*second), heard((5, 6, "End."))])
    assert [each["text"] for each in joined["segments"]] == [*kept, "End."]
    assert [each["id"] for each in joined["segments"]] == list(range(len(kept) + 1))


def test_no_word_begins_before_the_one_in_front_of_it(operation: Any, item: Item) -> None:
    words = [
        [{"word": "over", "start": 24.3, "end": 24.6}, {"word": "the", "start": 24.7, "end": 24.9}],
        [{"word": "the", "start": 0, "end": 0.2}, {"word": "hill", "start": 0.5, "end": 0.9}],
        [],
    ]
    bodies = [{"text": " ".join(each["word"] for each in part), "words": part} for part in words]
    joined = join(operation(), item, set_in(item, LOUD), bodies)
    assert [(each["word"], each["start_s"], each["end_s"]) for each in joined["words"]] == [
        ("over", 24.3, 24.6),
        ("the", 24.3, 24.3),
        ("hill", 24.5, 24.9),
    ]


def test_speakers_keep_the_names_that_each_piece_gave_them(operation: Any, item: Item) -> None:
    bodies = [{"text": name, "segments": [{"start": 1, "end": 2, "text": name, "speaker": name}]} for name in "ABA"]
    audio = operation({**CUT, "response_format": "diarized_json"})
    joined = join(audio, item, set_in(item, QUIET), bodies)
    assert [each["speaker"] for each in joined["segments"]] == ["A", "B", "A"]


def test_text_alone_is_joined_by_spaces(operation: Any, item: Item, tmp_path: Path) -> None:
    audio = operation({**CUT, "response_format": "text"})
    item = asked(audio)
    joined = join(audio, item, set_in(item, QUIET), ["One.\n", "Two.\n", "\n"])
    assert joined["output_text"] == "One. Two."
    assert joined["segments"] is None
    joined = join(audio, item, set_in(item, LOUD), ["One two three", "two three four", "four five"])
    assert joined["output_text"] == "One two three four five"


@pytest.mark.parametrize("format_", ["srt", "vtt"])
def test_subtitles_are_timed_and_numbered_anew(operation: Any, tmp_path: Path, format_: str) -> None:
    def file(*cues: tuple[str, str, str]) -> str:
        blocks = [f"{number}\n00:00:{a} --> 00:00:{b}\n{text}\n" for number, (a, b, text) in enumerate(cues, start=1)]
        head = "WEBVTT\n\n" if format_ == "vtt" else ""
        return head + "\n".join(blocks)

    write_wav(tmp_path / "a.wav", 1)
    audio = operation({**CUT, "response_format": format_}, media="files")
    item = asked(audio)
    replies = [
        file(("20.000", "26.000", "We went\nover the hill")),
        file(("00.100", "05.000", "over the hill"), ("06.000", "07.500", "and home")),
        file(("03.000", "04.000", "Good night.")),
    ]
    pieces = set_in(item, LOUD)
    results = [answered(audio, piece, reply) for piece, reply in zip(pieces, replies, strict=True)]
    assert all(result.files == () for result in results)
    joined = audio.join(item, pieces, results)
    assert joined.values is not None
    text = joined.values["output_text"]
    assert [(cue.start_s, cue.end_s, cue.text) for cue in read_cues(text, format_)] == [
        (20, 24.1, "We went"),
        (24.1, 29, "over the hill"),
        (30, 31.5, "and home"),
        (52, 53, "Good night."),
    ]
    assert [each["start_s"] for each in joined.values["segments"]] == [20, 24.1, 30, 52]
    assert joined.files[0].content == text.encode()
    assert text.startswith("WEBVTT" if format_ == "vtt" else "1\n00:00:20,000 --> 00:00:24,100\n")
    assert ("\n4\n00:00:52,000" in text) is (format_ == "srt")


@pytest.mark.parametrize(
    ("usages", "whole"),
    [
        ([{"seconds": 25}, {"seconds": 25}, {"seconds": 10}], Usage(seconds=60.0)),
        (
            [{"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}] * 3,
            Usage(input_tokens=3, output_tokens=6, total_tokens=9),
        ),
        ([{"seconds": 25}, None, {"seconds": 10}], None),
        ([None, None, None], None),
    ],
)
def test_usage_is_the_sum_and_unknown_where_a_piece_is(
    operation: Any, item: Item, usages: list[Any], whole: Usage | None
) -> None:
    audio = operation()
    pieces = set_in(item, QUIET)
    results = [
        answered(audio, piece, {"text": "x", "usage": usage}) for piece, usage in zip(pieces, usages, strict=True)
    ]
    assert audio.join(item, pieces, results).usage == whole


def test_all_replies_are_kept_where_the_job_wants_them(operation: Any, item: Item) -> None:
    audio = operation(raw="all")
    pieces = set_in(item, QUIET)
    results = [answered(audio, piece, {"text": text}) for piece, text in zip(pieces, "abc", strict=True)]
    assert orjson.loads(audio.join(item, pieces, results).response or b"") == [{"text": text} for text in "abc"]
    assert operation().join(item, pieces, [replace(each, response=None) for each in results]).response is None


def test_a_language_is_the_first_that_was_heard(operation: Any, item: Item) -> None:
    bodies = [{"text": "", "language": None}, verbose("Zwei.", language="german"), verbose("Three.")]
    assert join(operation(), item, set_in(item, QUIET), bodies)["language"] == "german"


@pytest.mark.parametrize("seed", range(60))
def test_words_of_any_recording_come_back_once_and_in_order(operation: Any, item: Item, seed: int) -> None:
    """A service that hears every word of a piece, its times a little off, and spoils those at the edges."""
    chance = random.Random(seed)
    spoken = []
    at = 0.0
    while at < 58:
        length = chance.uniform(0.1, 0.5)
        spoken.append((f"word{len(spoken)}", at, at + length))
        at += length + chance.uniform(0, 0.2)
    audio = operation({**CUT, "timestamp_granularities": ["word"]})
    places = LOUD if seed % 2 else QUIET
    if places is QUIET:
        spoken = [word for word in spoken if not any(word[1] < cut_at < word[2] for cut_at in (25, 50))]
    bodies = []
    for start, end, _, _ in places:
        heard = [
            {
                "word": name if start <= first and last <= end else name[:3],
                "start": max(0, first - start + chance.uniform(-0.05, 0.05)),
                "end": max(0, last - start + 0.05),
            }
            for name, first, last in spoken
            if last > start + 0.06 and first < end - 0.06
        ]
        bodies.append({"text": " ".join(word["word"] for word in heard), "words": heard})
    joined = join(audio, item, set_in(item, places), bodies)
    assert [word["word"] for word in joined["words"]] == [name for name, _, _ in spoken]
    assert joined["output_text"].split() == [name for name, _, _ in spoken]
    starts = [word["start_s"] for word in joined["words"]]
    assert starts == sorted(starts)
    for word, (_, first, last) in zip(joined["words"], spoken, strict=True):
        assert word["start_s"] == pytest.approx(first, abs=0.12)
        assert word["end_s"] == pytest.approx(last, abs=0.12)


def test_words_that_do_not_meet_go_by_their_middles(operation: Any, item: Item) -> None:
    def spoken(*words: tuple[str, float, float]) -> dict[str, Any]:
        return {
            "text": " ".join(word for word, _, _ in words),
            "words": [{"word": word, "start": start, "end": end} for word, start, end in words],
        }

    bodies = [
        spoken(("one", 24.0, 24.4), ("two", 24.6, 25.2), ("tree", 25.3, 25.8)),
        spoken(("won", 0.0, 0.4), ("to", 0.6, 1.2), ("three", 1.3, 1.8)),
        spoken(("end", 4, 5)),
    ]
    joined = join(operation(), item, set_in(item, LOUD), bodies)
    assert [word["word"] for word in joined["words"]] == ["one", "two", "three", "end"]
    assert joined["output_text"] == "one two three end"


def test_a_recording_that_is_cut_sent_and_heard_is_the_same_as_one_that_is_not(operation: Any, tmp_path: Path) -> None:
    """From a file to pieces to answers and back: what is heard of a piece is how long its tone and its pauses are."""
    pauses = [11, 25, 37, 52, 66]
    write_wav(tmp_path / "a.wav", 80, pauses=pauses)
    audio = operation()
    item = asked(audio)
    pieces = cut(audio, item, tmp_path / "pieces")
    bodies = []
    for piece in pieces:
        assert isinstance(piece.content, Recording)
        with piece.content.open() as file, av.open(file) as container:
            sound = b"".join(bytes(frame.planes[0])[: frame.samples * 2] for frame in container.decode(audio=0))
        tenths = [max(sound[at : at + 3200]) > 0 for at in range(0, len(sound), 3200)]
        silent = [at for at in range(1, len(tenths)) if not tenths[at] and tenths[at - 1]]
        words = [{"word": "pause", "start": at / 10, "end": at / 10 + 1} for at in silent]
        bodies.append({"text": " ".join("pause" for _ in words), "words": words})
    joined = join(audio, item, pieces, bodies)
    heard = [word["start_s"] for word in joined["words"]]
    assert heard == pytest.approx(pauses, abs=0.11)
    assert place(pieces[-1]).to_s == joined["duration_s"] == 80
