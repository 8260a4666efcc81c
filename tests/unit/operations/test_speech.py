from __future__ import annotations

import json
import struct
from typing import Any

import orjson
import pyarrow as pa
import pytest

from pipeline.errors import JobFileError, ReplyError
from pipeline.job.spec import Job
from pipeline.model import ErrorInfo, ErrorType, Item, OutputFile, Reply, Row, RowResult, Target
from pipeline.operations import speech as module
from pipeline.operations._media_out import COLUMN_BYTES, PATH_BYTES
from pipeline.operations.base import Operation
from pipeline.operations.speech import BYTES_A_SECOND, MAX_CHARACTERS

AZURE = Target(deployment="d", model="tts-1", body_model=None)
OPENAI = Target(deployment="d", model="tts-1", body_model="tts-1")
SAY = {"input": "{{ q }}", "voice": "alloy"}


def wav(samples: int = 100, *, says: int | None = None) -> bytes:
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 24_000, 48_000, 2, 16)
    sound = form + b"data" + struct.pack("<I", 2 * samples) + b"\x01\x02" * samples
    return b"RIFF" + struct.pack("<I", len(sound) if says is None else says) + sound


SOUNDS = {
    "mp3": [
        b"ID3\x04" + bytes(20),
        b"\xff\xfb\x90\x64" + bytes(20),
        b"\xff\xf3\xe4\xc4" + bytes(20),
        b"\xff\xe3\x18\xc4",
    ],
    "opus": [b"OggS\0\2" + bytes(20)],
    "aac": [b"\xff\xf1\x50\x80" + bytes(20), b"\xff\xf9\x50\x80" + bytes(20)],
    "flac": [b"fLaC\0\0\0\x22" + bytes(20)],
    "wav": [wav(), wav(says=0xFFFFFFFF), wav(says=0), wav(says=0x7FFFFFFF - 8)],
    "pcm": [b"\0\1" * 50, b"\0\0", b"{}\xff\xff"],
}


def prepared(operation: Operation, **values: Any) -> Item | ErrorInfo:
    (one,) = operation.prepare([Row(ordinal=7, values=values)])
    return one


def item(operation: Operation, **values: Any) -> Item:
    one = prepared(operation, **values)
    assert isinstance(one, Item), one
    return one


def code(operation: Operation, **values: Any) -> str:
    one = prepared(operation, **values)
    assert isinstance(one, ErrorInfo), one
    assert one.type is ErrorType.ROW
    return one.code


def answer(operation: Operation, body: bytes, content_type: str | None = "audio/mpeg") -> RowResult:
    headers = {} if content_type is None else {"content-type": content_type}
    asked = item(operation, q="hello")
    (result,) = operation.parse([asked], Reply(status=200, headers=headers, body=body, latency_ms=1))
    assert result.ordinal == 7
    return result


def test_a_request_holds_what_the_job_says_and_the_rows_values(make: Any) -> None:
    speech = make("speech", {**SAY, "speed": 1.5, "response_format": "opus", "instructions": "Slowly.", "new": [1]})
    call = speech.build([item(speech, q="hi")], AZURE)
    assert (call.endpoint, call.content_type, call.accept) == (
        "audio/speech",
        "application/json",
        "application/octet-stream",
    )
    assert json.loads(call.body) == {
        "input": "hi",
        "voice": "alloy",
        "speed": 1.5,
        "response_format": "opus",
        "instructions": "Slowly.",
        "new": [1],
    }


def test_the_model_comes_first_and_only_where_the_path_does_not_say_it(make: Any) -> None:
    speech = make("speech", {**SAY, "model": "another"})
    asked = item(speech, q="hi")
    assert b"model" not in speech.build([asked], AZURE).body
    assert list(json.loads(speech.build([asked], OPENAI).body)) == ["model", "input", "voice"]


def test_an_item_holds_its_text_once_and_no_sound(make: Any) -> None:
    asked = item(make("speech", SAY), q="x" * 4096)
    assert len(asked.content.body) < 4096 + 100


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "empty"), ("", "empty"), (5, "type"), (["x"], "type"), ({}, "type"), (True, "type"), ("\ud800", "type")],
)
def test_an_input_that_cannot_be_spoken_is_a_row_error(make: Any, value: Any, expected: str) -> None:
    assert code(make("speech", SAY), q=value) == expected


def test_an_input_of_more_than_4096_characters_is_too_long(make: Any) -> None:
    speech = make("speech", {**SAY, "instructions": "{{ how }}"})
    assert isinstance(prepared(speech, q="\u00e4" * MAX_CHARACTERS, how="x" * MAX_CHARACTERS), Item)
    assert code(speech, q="x" * (MAX_CHARACTERS + 1), how=None) == "too_long"
    assert code(speech, q="x", how="x" * (MAX_CHARACTERS + 1)) == "too_long"


def test_a_row_errors_message_holds_nothing_of_the_row(make: Any) -> None:
    one = prepared(make("speech", SAY), q="top secret" * 1000)
    assert isinstance(one, ErrorInfo)
    assert "secret" not in one.message


@pytest.mark.parametrize(("voice", "expected"), [(None, "empty"), ("", "empty"), (5, "type"), (["a"], "type")])
def test_a_row_without_a_voice_is_a_row_error(make: Any, voice: Any, expected: str) -> None:
    assert code(make("speech", {**SAY, "voice": "{{ voice }}"}), q="hi", voice=voice) == expected


def test_a_voice_of_ones_own_is_sent_as_it_is(make: Any) -> None:
    speech = make("speech", {**SAY, "voice": {"id": "voice_1"}})
    assert json.loads(speech.build([item(speech, q="hi")], AZURE).body)["voice"] == {"id": "voice_1"}


WRONG = [
    ("speed", 0.24, "range"),
    ("speed", 4.01, "range"),
    ("speed", "1.0", "range"),
    ("speed", True, "range"),
    ("speed", [1], "range"),
    ("response_format", "ogg", "unsupported"),
    ("response_format", "../x", "unsupported"),
    ("response_format", 3, "unsupported"),
    ("response_format", ["mp3"], "unsupported"),
    ("stream_format", "sse", "unsupported"),
    ("stream_format", True, "unsupported"),
]


@pytest.mark.parametrize(("name", "value", "expected"), WRONG)
def test_a_rows_field_that_cannot_be_served_is_a_row_error(make: Any, name: str, value: Any, expected: str) -> None:
    one = prepared(make("speech", {**SAY, name: "{{ x }}"}), q="hi", x=value)
    assert isinstance(one, ErrorInfo)
    assert (one.code, one.message.split()[0]) == (expected, f"request.{name}")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, value, _ in WRONG] + [("speed", None)])
def test_a_jobs_field_that_cannot_be_served_is_refused_before_anything_is_sent(
    make: Any, name: str, value: Any
) -> None:
    with pytest.raises(JobFileError) as caught:
        make("speech", {**SAY, name: value})
    assert [problem.path for problem in caught.value.problems] == [f"request.{name}"]


def test_everything_that_is_wrong_with_a_job_is_said_at_once(make: Any) -> None:
    with pytest.raises(JobFileError) as caught:
        make("speech", {"speed": 9, "stream_format": "sse"})
    assert {problem.path for problem in caught.value.problems} == {
        "request.speed",
        "request.stream_format",
        "request.input",
        "request.voice",
    }


@pytest.mark.parametrize("fields", [{"speed": 0.25}, {"speed": 4}, {"stream_format": "audio"}], ids=repr)
def test_a_field_within_its_bounds_is_sent(make: Any, fields: dict[str, Any]) -> None:
    speech = make("speech", {**SAY, **fields})
    assert json.loads(speech.build([item(speech, q="hi")], AZURE).body) == {"input": "hi", "voice": "alloy", **fields}


def test_a_row_without_a_format_or_speed_has_the_services_own(make: Any) -> None:
    speech = make("speech", {**SAY, "response_format": "{{ f }}", "speed": "{{ s }}"})
    asked = item(speech, q="hi", f=None, s=None)
    assert json.loads(speech.build([asked], AZURE).body) == {"input": "hi", "voice": "alloy"}
    assert asked.content.format == "mp3"


def test_no_tokens_are_asked_for_and_characters_are_what_is_used(make: Any) -> None:
    speech = make("speech", SAY)
    asked = item(speech, q="h\u00e9llo")
    assert asked.tokens == 0
    assert speech.build([asked], AZURE).tokens == 0
    (result,) = speech.parse([asked], Reply(status=200, headers={}, body=SOUNDS["mp3"][0], latency_ms=1))
    assert result.usage is not None
    assert (result.usage.characters, result.usage.input_tokens) == (5, None)


@pytest.mark.parametrize(("format_", "sound"), [(name, sound) for name, sounds in SOUNDS.items() for sound in sounds])
@pytest.mark.parametrize("content_type", ["audio/mpeg", "Audio/X; rate=24000", "application/octet-stream", None])
def test_sound_of_the_format_asked_for_is_kept_byte_for_byte(
    make: Any, format_: str, sound: bytes, content_type: str | None
) -> None:
    speech = make("speech", {**SAY, "response_format": format_})
    result = answer(speech, sound, content_type)
    assert result.values == {"audio": sound, "audio_path": None}
    assert result.response is None


@pytest.mark.parametrize("asked", sorted(BYTES_A_SECOND))
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\xff",
        b'{"error":{"message":"no"}}',
        b"[1]",
        b'"sound"',
        b"<html>502</html> ",
        b"\n <!doctype html>x",
    ],
    ids=repr,
)
def test_what_is_no_sound_is_a_reply_error_under_every_format(make: Any, asked: str, body: bytes) -> None:
    with pytest.raises(ReplyError):
        answer(make("speech", {**SAY, "response_format": asked}), body, "audio/mpeg")


@pytest.mark.parametrize("asked", sorted(set(BYTES_A_SECOND) - {"pcm"}))
@pytest.mark.parametrize("came", sorted(set(BYTES_A_SECOND) - {"pcm"}))
def test_sound_of_another_format_is_a_reply_error(make: Any, asked: str, came: str) -> None:
    speech = make("speech", {**SAY, "response_format": asked})
    for sound in SOUNDS[came]:
        if asked == came:
            assert answer(speech, sound).ok
        else:
            with pytest.raises(ReplyError):
                answer(speech, sound)


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/html; charset=utf-8", "text/plain", "video/mp4", "x", "a" * 5000]
)
def test_another_content_type_is_a_reply_error(make: Any, content_type: str) -> None:
    with pytest.raises(ReplyError) as caught:
        answer(make("speech", SAY), SOUNDS["mp3"][0], content_type)
    assert len(caught.value.message) < 200


def test_a_wav_shorter_than_its_head_says_was_cut(make: Any) -> None:
    speech = make("speech", {**SAY, "response_format": "wav"})
    for end in range(len(wav())):
        with pytest.raises(ReplyError):
            answer(speech, wav()[:end])
    assert answer(speech, wav() + b"LIST").ok


def test_riff_that_holds_no_sound_is_no_wav(make: Any) -> None:
    with pytest.raises(ReplyError):
        answer(make("speech", {**SAY, "response_format": "wav"}), wav().replace(b"WAVE", b"WEBP"))


def test_pcm_that_ends_within_a_sample_was_cut(make: Any) -> None:
    with pytest.raises(ReplyError):
        answer(make("speech", {**SAY, "response_format": "pcm"}), b"\0\1\0")


@pytest.mark.parametrize("format_", sorted(BYTES_A_SECOND))
def test_files_are_named_by_the_jobs_format(make: Any, format_: str) -> None:
    sound = SOUNDS[format_][0]
    speech = make("speech", {**SAY, "response_format": format_}, media="files")
    result = answer(speech, sound)
    assert result.values == {}
    assert result.files == (OutputFile(column="audio_path", suffix=format_, content=sound),)
    assert speech.schema() == pa.schema([("audio_path", pa.string())])


def test_sound_goes_into_the_column_where_the_job_says_so_however_large(make: Any) -> None:
    sound = SOUNDS["mp3"][0] + bytes(COLUMN_BYTES)
    speech = make("speech", SAY, media="column")
    result = answer(speech, sound)
    assert (result.values, result.files) == ({"audio": sound}, ())
    assert speech.schema() == pa.schema([("audio", pa.binary())])


@pytest.mark.parametrize(("over", "in_a_file"), [(0, False), (1, True)])
def test_sound_over_a_megabyte_goes_to_a_file_of_itself(make: Any, over: int, in_a_file: bool) -> None:  # noqa: FBT001
    sound = SOUNDS["mp3"][0] + bytes(COLUMN_BYTES - len(SOUNDS["mp3"][0]) + over)
    speech = make("speech", SAY)
    result = answer(speech, sound)
    assert result.values is not None
    files = (OutputFile(column="audio_path", suffix="mp3", content=sound),) if in_a_file else ()
    assert result.files == files
    assert set(result.values) | {file.column for file in files} == set(speech.schema().names)
    assert result.values["audio"] == (None if in_a_file else sound)


def test_what_a_range_expects_to_hold_follows_length_format_and_speed(make: Any) -> None:
    text = "x" * 15 * 10
    seconds = {"mp3": 20_000, "wav": 48_000}
    for format_, rate in seconds.items():
        speech = make("speech", {**SAY, "response_format": format_, "speed": "{{ s }}"}, media="column")
        assert item(speech, q=text, s=None).reply_bytes == 10 * rate
        assert item(speech, q=text, s=2).reply_bytes == 5 * rate
    assert item(make("speech", SAY, media="files"), q=text).reply_bytes == PATH_BYTES
    assert item(make("speech", SAY), q="x" * 4096).reply_bytes == PATH_BYTES
    assert item(make("speech", SAY), q=text).reply_bytes == 200_000


def test_a_refused_job_names_the_places_in_its_file_in_their_order(tmp_path: Any) -> None:
    from pipeline import operations  # noqa: PLC0415
    from pipeline.job.load import load_job  # noqa: PLC0415

    file = tmp_path / "job.yaml"
    starter = module.OPERATION.starter.replace("  speed: 1.0", "  speed: 9").replace("  voice:", "  voic:")
    file.write_text(starter)
    environ = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "AZURE_OPENAI_API_KEY": "k"}
    job: Job = load_job(file, environ=environ, operations=operations.names())
    with pytest.raises(JobFileError) as caught:
        module.create(job)
    missing, speed = caught.value.problems
    lines = starter.splitlines()
    assert missing.path == "request.voice"
    assert lines[(missing.line or 0) - 1].startswith("  input:")
    assert lines[(speed.line or 0) - 1].strip().startswith("speed: 9")


def test_speech_fixes_nothing_and_blames_nobody(make: Any) -> None:
    speech = make("speech", SAY)
    error = ErrorInfo(type=ErrorType.BAD_REQUEST, code="x", message="input[0]", http_status=400)
    assert speech.blame([item(speech, q="hi")], error) is None
    assert speech.facts([answer(speech, SOUNDS["mp3"][0])]) == {}
    assert speech.settled({}) is speech


def test_a_body_is_json_that_orjson_reads_too(make: Any) -> None:
    speech = make("speech", SAY)
    assert orjson.loads(speech.build([item(speech, q='"\n\u2028')], OPENAI).body)["input"] == '"\n\u2028'


@pytest.mark.parametrize("format_", BYTES_A_SECOND)
def test_sound_that_may_have_been_cut_is_a_failed_attempt(make: Any, format_: str) -> None:
    speech = make("speech", {**SAY, "response_format": format_})
    asked = item(speech, q="hello")
    assert not speech.build([asked], AZURE).shows_end
    for body in SOUNDS[format_]:
        assert speech.parse([asked], Reply(status=200, headers={}, body=body, latency_ms=1))[0].ok
        with pytest.raises(ReplyError, match="where it ends"):
            speech.parse([asked], Reply(status=200, headers={}, body=body, latency_ms=1, framed=False))
