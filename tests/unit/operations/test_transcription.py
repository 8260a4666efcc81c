"""Transcription, and translation where it is the same: rows to forms, replies to rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email import message_from_bytes
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pytest

from pipeline.errors import JobFileError, MediaError, ReplyError
from pipeline.model import Call, ErrorInfo, ErrorType, Item, OutputFile, Reply, Row, RowResult, Target, Usage
from pipeline.operations import _audio
from pipeline.operations._audio import Recording
from pipeline.operations.base import Cutting, Operation

AZURE = Target(deployment="d", model="whisper-1", body_model=None)
OPENAI = Target(deployment="d", model="whisper-1", body_model="whisper-1")
WAV = b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 30
FILE = {"file": "{{ file }}"}
BOTH = pytest.mark.parametrize("name", ["transcription", "translation"])

VERBOSE = {
    "task": "transcribe",
    "language": "english",
    "duration": 2.5,
    "text": " Hello there.",
    "segments": [
        {
            "id": 7,
            "seek": 0,
            "start": 0.0,
            "end": 2.4,
            "text": " Hello there.",
            "tokens": [1, 2],
            "temperature": 0.0,
            "avg_logprob": -0.25,
            "compression_ratio": 0.9,
            "no_speech_prob": 0.01,
        }
    ],
    "words": [{"word": "Hello", "start": 0.0, "end": 0.5}, {"word": "there", "start": 0.5, "end": 2}],
}
SRT = "1\n00:00:00,000 --> 00:00:02,400\nHello\nthere.\n\n"
VTT = "WEBVTT\n\n00:00:00.000 --> 00:00:02.400\nHello\nthere.\n\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one recording."""
    (tmp_path / "calls").mkdir()
    (tmp_path / "calls" / "a.wav").write_bytes(WAV)
    return tmp_path


@pytest.fixture
def operation(make: Any, root: Path) -> Any:
    """Make an operation over that folder."""

    def made(
        request: Mapping[str, Any] | None = None, *, name: str = "transcription", model: str = "whisper-1", **more: Any
    ) -> Operation:
        deployments = more.pop("deployments", ({"model": model},))
        return make(name, request or FILE, deployments=deployments, source={"media_root": root}, **more)

    return made


def prepared(operation: Operation, **values: Any) -> Item | ErrorInfo:
    (one,) = operation.prepare([Row(ordinal=7, values=values)])
    return one


def item(operation: Operation, **values: Any) -> Item:
    one = prepared(operation, **(values or {"file": "calls/a.wav"}))
    assert isinstance(one, Item), one
    return one


def error(operation: Operation, **values: Any) -> ErrorInfo:
    one = prepared(operation, **values)
    assert isinstance(one, ErrorInfo), one
    return one


def form(call: Call) -> list[tuple[str, str | bytes]]:
    """The form's fields, in order; of its file, the name, the type and the content."""
    found: list[tuple[str, str | bytes]] = []
    for part in message_from_bytes(f"content-type: {call.content_type}\r\n\r\n".encode() + call.body).get_payload():
        content = part.get_payload(decode=True)
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is None:
            found.append((name, content.decode()))
        else:
            found += [("filename", part.get_filename()), ("content-type", part.get_content_type()), (name, content)]
    return found


def answer(
    operation: Operation, body: Any, content_type: str | None = None, values: Mapping[str, Any] | None = None
) -> RowResult:
    data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else orjson.dumps(body)
    headers = {} if content_type is None else {"content-type": content_type}
    asked = item(operation, **(values or {}))
    (result,) = operation.parse([asked], Reply(status=200, headers=headers, body=data, latency_ms=1))
    assert result.ordinal == 7
    return result


def values(result: RowResult) -> dict[str, Any]:
    assert result.values is not None
    return dict(result.values)


@BOTH
def test_a_form_holds_what_the_job_says_and_the_recording(operation: Any, name: str) -> None:
    audio = operation(
        {
            "language": "{{ lang }}",
            **FILE,
            "prompt": "Names: Grüße",
            "temperature": 0.2,
            "response_format": "json",
            "brand_new": {"x": [1, True]},
        },
        name=name,
    )
    call = audio.build([item(audio, file="calls/a.wav", lang="en")], AZURE)
    assert call.endpoint == {"transcription": "audio/transcriptions", "translation": "audio/translations"}[name]
    assert form(call) == [
        ("language", "en"),
        ("prompt", "Names: Grüße"),
        ("temperature", "0.2"),
        ("response_format", "json"),
        ("brand_new[x][]", "1"),
        ("brand_new[x][]", "true"),
        ("filename", "a.wav"),
        ("content-type", "audio/wav"),
        ("file", WAV),
    ]
    assert call.accept == "application/json"
    assert call.tokens == 0


@BOTH
def test_the_model_comes_first_and_only_where_the_path_does_not_say_it(operation: Any, name: str) -> None:
    audio = operation(name=name)
    assert form(audio.build([item(audio)], OPENAI))[0] == ("model", "whisper-1")
    assert "model" not in dict(form(audio.build([item(audio)], AZURE)))


def test_a_model_in_the_request_and_a_stream_are_not_sent(operation: Any) -> None:
    audio = operation({**FILE, "model": "other", "stream": False})
    assert {"model", "stream"}.isdisjoint(dict(form(audio.build([item(audio)], AZURE))))


@pytest.mark.parametrize("said", ["word", ["word"], "{{ g }}"])
def test_granularities_are_a_list_even_where_one_is_said(operation: Any, said: Any) -> None:
    audio = operation({**FILE, "timestamp_granularities": said})
    found = form(audio.build([item(audio, file="calls/a.wav", g=["word"])], AZURE))
    assert [pair for pair in found if "granularities" in pair[0]] == [("timestamp_granularities[]", "word")]


def test_both_granularities_are_two_fields(operation: Any) -> None:
    audio = operation({**FILE, "timestamp_granularities": ["word", "segment"], "include": ["logprobs"]})
    found = form(audio.build([item(audio)], AZURE))
    assert found[:3] == [
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
        ("include[]", "logprobs"),
    ]


def test_a_field_that_is_null_in_a_row_is_left_out(operation: Any) -> None:
    audio = operation({**FILE, "language": "{{ lang }}"})
    assert "language" not in dict(form(audio.build([item(audio, file="calls/a.wav", lang=None)], AZURE)))


@pytest.mark.parametrize(
    ("models", "more", "expected"),
    [
        (["whisper-1"], {}, "verbose_json"),
        (["whisper", "whisper-1"], {}, "verbose_json"),
        (["Systran/faster-Whisper-small"], {}, "verbose_json"),
        (["gpt-4o-transcribe"], {}, "json"),
        (["gpt-4o-mini-transcribe"], {}, "json"),
        (["gpt-4o-transcribe-diarize"], {}, "diarized_json"),
        (["gpt-4o-transcribe-diarize", "gpt-4o-transcribe"], {}, "json"),
        (["whisper-1", "gpt-4o-transcribe"], {}, "json"),
        (["my-own"], {}, "json"),
        (["my-own"], {"timestamp_granularities": ["word"]}, "verbose_json"),
        (["whisper-1"], {"response_format": "text"}, "text"),
        (["whisper-1"], {"response_format": None}, "verbose_json"),
    ],
)
def test_a_job_that_names_no_format_gets_the_one_that_says_most(
    operation: Any, models: list[str], more: Mapping[str, Any], expected: str
) -> None:
    audio = operation({**FILE, **more}, deployments=tuple({"model": model} for model in models))
    assert ("response_format", expected) in form(audio.build([item(audio)], AZURE))


@pytest.mark.parametrize(("format_", "accept"), [("json", "application/json"), ("srt", "text/plain, */*")])
def test_the_reply_is_asked_for_in_its_own_type(operation: Any, format_: str, accept: str) -> None:
    audio = operation({**FILE, "response_format": format_})
    assert audio.build([item(audio)], AZURE).accept == accept


def test_the_same_rows_give_the_same_bytes(operation: Any) -> None:
    audio = operation()
    assert audio.build([item(audio)], OPENAI) == audio.build([item(audio)], OPENAI)


def test_a_recording_in_a_file_is_not_held_while_it_waits(operation: Any) -> None:
    content = item(operation()).content
    assert isinstance(content, Recording)
    assert "fmt" not in repr(content)
    assert len(content.content.head) <= 64


def test_a_recording_may_be_a_columns_bytes_with_or_without_a_name(operation: Any) -> None:
    plain = operation({"file": "{{ sound }}"})
    assert form(plain.build([item(plain, sound=WAV)], AZURE))[-3:] == [
        ("filename", "file.wav"),
        ("content-type", "audio/wav"),
        ("file", WAV),
    ]
    named = operation({"file": "{{ row['the sound'] }}", "filename": "{{ n }}"})
    assert named.columns == {"the sound", "n"}
    found = form(named.build([item(named, **{"the sound": WAV, "n": "tuesday.mp3"})], AZURE))
    assert ("filename", "tuesday.wav") in found
    assert "filename" not in [name for name, _ in found if name != "filename"]


def test_a_name_for_the_file_is_only_its_name(operation: Any) -> None:
    audio = operation({**FILE, "filename": "{{ n }}"})
    assert ("filename", "x.wav") in form(audio.build([item(audio, file="calls/a.wav", n="x")], AZURE))
    assert ("filename", "a.wav") in form(audio.build([item(audio, file="calls/a.wav", n=None)], AZURE))


def test_a_files_name_may_be_put_together(operation: Any) -> None:
    audio = operation({"file": "calls/{{ name }}.wav"})
    assert audio.columns == {"name"}
    assert form(audio.build([item(audio, name="a")], AZURE))[-1] == ("file", WAV)


def test_a_template_that_may_reach_any_column_reaches_any(operation: Any) -> None:
    assert operation({"file": "{{ row[name] }}"}).columns is None


@pytest.mark.parametrize(
    ("file", "type_", "code"),
    [
        (None, ErrorType.ROW, "empty"),
        ("", ErrorType.ROW, "empty"),
        (7, ErrorType.ROW, "type"),
        (["calls/a.wav"], ErrorType.ROW, "type"),
        ({"path": "calls/a.wav"}, ErrorType.ROW, "type"),
        (b"", ErrorType.MEDIA, "empty"),
        (b"<html>", ErrorType.MEDIA, "kind"),
        ("/etc/passwd", ErrorType.MEDIA, "path"),
        ("../a.wav", ErrorType.MEDIA, "path"),
        ("missing.wav", ErrorType.MEDIA, "not_found"),
        ("calls", ErrorType.MEDIA, "not_a_file"),
        ("text.wav", ErrorType.MEDIA, "kind"),
        ("empty.wav", ErrorType.MEDIA, "empty"),
        ("huge.wav", ErrorType.MEDIA, "too_large"),
        ("a\0.wav", ErrorType.MEDIA, "path"),
        ("\ud800", ErrorType.MEDIA, "unreadable"),
    ],
)
def test_a_row_without_a_recording_is_an_error_before_anything_is_sent(
    operation: Any, root: Path, file: Any, type_: ErrorType, code: str
) -> None:
    (root / "text.wav").write_text("hello")
    (root / "empty.wav").touch()
    with (root / "huge.wav").open("wb") as huge:
        huge.write(WAV)
        huge.truncate(10 * 10**9)
    found = error(operation(), file=file)
    assert (found.type, found.code) == (type_, code)


def test_a_job_without_a_media_root_names_no_files(make: Any) -> None:
    audio = make("transcription", FILE, deployments=({"model": "whisper-1"},))
    assert error(audio, file="a.wav").code == "no_media_root"
    assert isinstance(prepared(audio, file=WAV), Item)


@pytest.mark.parametrize(
    ("request_", "row", "code"),
    [
        ({"response_format": "{{ x }}"}, "yaml", "unsupported"),
        ({"response_format": "{{ x }}"}, None, "unsupported"),
        ({"response_format": "{{ x }}"}, ["json"], "unsupported"),
        ({"filename": "{{ x }}"}, 7, "type"),
        ({"prompt": "{{ x }}"}, "\ud800", "type"),
    ],
)
def test_a_row_whose_fields_cannot_be_sent_is_an_error(
    operation: Any, request_: Mapping[str, Any], row: Any, code: str
) -> None:
    assert error(operation({**FILE, **request_}), file="calls/a.wav", x=row).code == code


@pytest.mark.parametrize(
    ("request_", "path"),
    [
        ({"language": "en"}, "request.file"),
        ({**FILE, "response_format": "yaml"}, "request.response_format"),
        ({**FILE, "response_format": 7}, "request.response_format"),
        ({**FILE, "cut_after": "soon"}, "request.cut_after"),
        ({**FILE, "cut_after": "10s"}, "request.cut_after"),
        ({**FILE, "cut_after": "{{ x }}"}, "request.cut_after"),
        ({**FILE, "cut_after": True}, "request.cut_after"),
    ],
)
@BOTH
def test_what_no_row_could_be_asked_with_is_the_jobs_error(
    operation: Any, name: str, request_: Mapping[str, Any], path: str
) -> None:
    with pytest.raises(JobFileError) as caught:
        operation(request_, name=name)
    assert [problem.path for problem in caught.value.problems] == [path]


def test_translations_have_no_speakers(operation: Any) -> None:
    with pytest.raises(JobFileError, match="none of json, srt, text, verbose_json, vtt"):
        operation({**FILE, "response_format": "diarized_json"}, name="translation")


def test_a_file_that_changed_since_is_the_rows_error(operation: Any, root: Path) -> None:
    audio = operation()
    waiting = item(audio)
    (root / "calls" / "a.wav").write_bytes(WAV + b"more")
    with pytest.raises(MediaError) as caught:
        audio.build([waiting], AZURE)
    assert caught.value.code == "changed"


@pytest.mark.parametrize("over", [0, 1])
def test_a_form_above_the_services_limit_is_not_sent(operation: Any, over: int) -> None:
    audio = operation({"file": "{{ sound }}"})
    frame = len(audio.build([item(audio, sound=WAV)], AZURE).body) - len(WAV)
    asked = item(audio, sound=WAV.ljust(_audio.MAX_BODY_BYTES - frame + over, b"\0"))
    if over:
        with pytest.raises(MediaError) as caught:
            audio.build([asked], AZURE)
        assert caught.value.code == "too_large"
    else:
        assert len(audio.build([asked], AZURE).body) == 26_214_400


@BOTH
def test_it_reads_files_and_cuts(operation: Any, name: str) -> None:
    audio = operation(name=name)
    assert audio.reads_files
    assert isinstance(audio, Cutting)
    assert audio.limits.items == 1


@BOTH
def test_verbose_json_fills_every_column(operation: Any, name: str) -> None:
    audio = operation(name=name)
    result = answer(audio, VERBOSE)
    assert values(result) == {
        "output_text": " Hello there.",
        "language": "english",
        "duration_s": 2.5,
        "segments": [
            {
                "id": 0,
                "start_s": 0.0,
                "end_s": 2.4,
                "text": " Hello there.",
                "speaker": None,
                "avg_logprob": -0.25,
                "no_speech_prob": 0.01,
            }
        ],
        "words": [
            {"word": "Hello", "start_s": 0.0, "end_s": 0.5},
            {"word": "there", "start_s": 0.5, "end_s": 2.0},
        ],
    }
    assert result.usage == Usage(seconds=2.5)
    pa.Table.from_pylist([values(result)], schema=audio.schema())


def test_plain_json_fills_the_text(operation: Any) -> None:
    result = answer(operation(model="gpt-4o-transcribe"), {"text": "Hello."})
    assert {name: value for name, value in values(result).items() if value is not None} == {"output_text": "Hello."}
    assert result.usage is None


def test_diarized_json_names_the_speakers(operation: Any) -> None:
    said = {"type": "transcript.text.segment", "id": "seg_001", "start": 0.5, "end": 1, "text": "Hi.", "speaker": "A"}
    reply = {"task": "transcribe", "duration": 1.5, "text": "Hi. Yes.", "segments": [said, {**said, "speaker": "B"}]}
    result = answer(operation(model="gpt-4o-transcribe-diarize"), reply)
    segments = values(result)["segments"]
    assert [(segment["id"], segment["speaker"]) for segment in segments] == [(0, "A"), (1, "B")]


@pytest.mark.parametrize("content_type", [None, "text/plain; charset=utf-8", "text/plain", "application/octet-stream"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_text_is_the_text(operation: Any, content_type: str | None, end: str) -> None:
    result = answer(operation({**FILE, "response_format": "text"}), f"Grüße.\nZwei.{end}", content_type)
    assert values(result)["output_text"] == "Grüße.\nZwei."
    assert values(result)["segments"] is None


@pytest.mark.parametrize(("format_", "reply"), [("srt", SRT), ("vtt", VTT)])
def test_subtitles_are_text_and_segments(operation: Any, format_: str, reply: str) -> None:
    audio = operation({**FILE, "response_format": format_})
    result = answer(audio, reply, "text/plain")
    assert values(result)["output_text"] == reply
    (segment,) = values(result)["segments"]
    assert (segment["start_s"], segment["end_s"], segment["text"]) == (0.0, 2.4, "Hello there.")
    assert result.files == ()
    assert "subtitles_path" not in audio.schema().names


@pytest.mark.parametrize(("format_", "reply"), [("srt", SRT), ("vtt", VTT)])
def test_subtitles_are_files_as_well_where_media_are(operation: Any, format_: str, reply: str) -> None:
    audio = operation({**FILE, "response_format": format_}, media="files")
    result = answer(audio, reply, "text/plain")
    assert result.files == (OutputFile(column="subtitles_path", suffix=format_, content=reply.encode()),)
    assert values(result)["output_text"] == reply
    assert {*values(result), "subtitles_path"} == set(audio.schema().names)


def test_a_job_whose_rows_choose_their_format_has_a_path_where_there_is_a_file(operation: Any) -> None:
    audio = operation({**FILE, "response_format": "{{ f }}"}, media="files")
    spoken = answer(audio, {"text": "x"}, values={"file": "calls/a.wav", "f": "json"})
    assert values(spoken)["subtitles_path"] is None
    assert spoken.files == ()
    shown = answer(audio, SRT, values={"file": "calls/a.wav", "f": "srt"})
    assert "subtitles_path" not in values(shown)
    assert len(shown.files) == 1
    assert "subtitles_path" not in operation(media="files").schema().names


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"type": "duration", "seconds": 3}, Usage(seconds=3.0)),
        ({"type": "duration", "seconds": 2.75}, Usage(seconds=2.75)),
        (
            {"type": "tokens", "input_tokens": 14, "output_tokens": 101, "total_tokens": 115},
            Usage(input_tokens=14, output_tokens=101, total_tokens=115),
        ),
        (None, Usage(seconds=2.5)),
        ({}, Usage(seconds=2.5)),
        ({"type": "duration", "seconds": -1}, Usage(seconds=2.5)),
        ({"type": "duration", "seconds": "3"}, Usage(seconds=2.5)),
        ("3", Usage(seconds=2.5)),
    ],
)
def test_usage_is_seconds_or_tokens_and_else_the_length(operation: Any, usage: Any, expected: Usage) -> None:
    assert answer(operation(), {**VERBOSE, "usage": usage}).usage == expected


@pytest.mark.parametrize(("raw", "kept"), [("all", True), ("auto", False), ("failed", False)])
def test_the_reply_is_kept_as_json_where_the_job_wants_it(operation: Any, raw: str, kept: bool) -> None:  # noqa: FBT001
    response = answer(operation(raw=raw), VERBOSE).response
    assert response == (orjson.dumps(VERBOSE) if kept else None)
    text = answer(operation({**FILE, "response_format": "text"}, raw=raw), "Hi.\n").response
    assert text == (b'"Hi.\\n"' if kept else None)


@pytest.mark.parametrize(
    "change",
    [
        {"text": None},
        {"text": 7},
        {"duration": -1},
        {"duration": "long"},
        {"duration": [2]},
        {"duration": "nan"},
        {"duration": "inf"},
        {"duration": True},
        {"language": 7},
        {"segments": {}},
        {"segments": "x"},
        {"segments": [7]},
        {"segments": [{"start": 0, "end": 1}]},
        {"segments": [{"start": -1, "end": 1, "text": "x"}]},
        {"segments": [{"start": "soon", "end": 1, "text": "x"}]},
        {"segments": [{"start": 0, "end": {}, "text": "x"}]},
        {"segments": [{"start": 0, "end": 1, "text": "x", "speaker": 3}]},
        {"segments": [{"start": 0, "end": 1, "text": "x", "avg_logprob": "low"}]},
        {"words": 7},
        {"words": [{"start": 0, "end": 1}]},
        {"words": [{"word": "x", "start": -0.5, "end": 1}]},
        {"words": [{"word": 7, "start": 0, "end": 1}]},
    ],
    ids=json.dumps,
)
def test_a_reply_with_something_wrong_in_it_is_a_failed_attempt(operation: Any, change: Mapping[str, Any]) -> None:
    with pytest.raises(ReplyError):
        answer(operation(), {**VERBOSE, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"duration": "2.5"},
        {"duration": 2},
        {"duration": None},
        {"language": None},
        {"language": ""},
        {"text": ""},
        {"segments": []},
        {"segments": None},
        {"words": []},
        {"segments": [{"start": 3, "end": 2, "text": "backwards"}, {"start": 1, "end": 1, "text": ""}]},
        {"segments": [{"text": "no times"}]},
        {"words": [{"word": "x", "start": 9, "end": 99}]},
        {"brand_new": {"x": 1}},
    ],
    ids=json.dumps,
)
def test_what_services_get_wrong_without_harm_is_kept_as_they_say_it(operation: Any, change: Mapping[str, Any]) -> None:
    audio = operation()
    result = answer(audio, {**VERBOSE, **change})
    assert result.ok
    pa.Table.from_pylist([values(result)], schema=audio.schema())


def test_a_json_reply_cut_anywhere_is_a_failed_attempt(operation: Any) -> None:
    audio, body = operation(), orjson.dumps(VERBOSE)
    for end in range(len(body)):
        with pytest.raises(ReplyError):
            answer(audio, body[:end])


ERROR = '{"error": {"message": "The model is overloaded."}}'
PAGE = "<!DOCTYPE html><html><body>502</body></html>"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (ERROR, None),
        (ERROR, "application/json"),
        (ERROR, "text/plain"),
        (f"\n {ERROR}", None),
        ('{"text": "Hello."}', "application/json; charset=utf-8"),
        ('{"text": "Hello."}', "text/plain"),
        ("Hello.", "application/json"),
        ("Hello.", "application/problem+json"),
        ("Hello.", "text/html"),
        (PAGE, None),
        (PAGE, "text/plain"),
        ("<html></html>", None),
        ("<?xml version='1.0'?><Error/>", None),
        (b"\xff\xfe\x00", None),
        ("Hello.".encode("utf-16-le"), "text/plain; charset=utf-16"),
        (b"", None),
        (b"", "text/plain"),
    ],
)
@pytest.mark.parametrize("format_", ["text", "srt", "vtt"])
def test_no_page_and_no_json_is_taken_for_a_text(
    operation: Any, format_: str, body: str | bytes, content_type: str | None
) -> None:
    with pytest.raises(ReplyError):
        answer(operation({**FILE, "response_format": format_}), body, content_type)


@pytest.mark.parametrize(("format_", "body"), [("text", "Hello."), ("srt", SRT), ("vtt", VTT)])
def test_a_text_that_may_have_been_cut_is_a_failed_attempt(operation: Any, format_: str, body: str) -> None:
    audio = operation({**FILE, "response_format": format_})
    asked = item(audio)
    assert not audio.build([asked], AZURE).shows_end
    for framed in (True, False):
        reply = Reply(status=200, headers={}, body=body.encode(), latency_ms=1, framed=framed)
        if framed:
            assert audio.parse([asked], reply)[0].ok
        else:
            with pytest.raises(ReplyError, match="where it ends"):
                audio.parse([asked], reply)


@pytest.mark.parametrize("body", ["Hello.", "{braces} are fine", "[music]", "<laughs> So.", "{"])
def test_a_text_may_begin_like_something_else(operation: Any, body: str) -> None:
    assert values(answer(operation({**FILE, "response_format": "text"}), body))["output_text"] == body


@pytest.mark.parametrize(("format_", "body"), [("srt", VTT), ("vtt", SRT), ("srt", "Hello."), ("vtt", "Hello.")])
def test_subtitles_of_another_kind_are_a_failed_attempt(operation: Any, format_: str, body: str) -> None:
    with pytest.raises(ReplyError):
        answer(operation({**FILE, "response_format": format_}), body)
