"""What transcription and translation share: the form, its checks, and the answer in every format."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar

import orjson

from pipeline.simulator.base import (
    Answer,
    Asked,
    Family,
    Occasion,
    Place,
    RefusedError,
    Versions,
    bad_request,
    estimated_tokens,
    missing,
)
from pipeline.simulator.hearing import Heard, Hearing, Segment
from pipeline.simulator.ledger import body_digest, content_key
from pipeline.simulator.models import longest_recording_s
from pipeline.simulator.multipart import Upload, read_form
from pipeline.simulator.operations._fields import check_range
from pipeline.simulator.operations._text import data_event, pieces
from pipeline.simulator.sounds import UndecodableError

MOST_BYTES = 26_214_400
"""The largest body that the service reads: 25 MiB, the form around the file included."""

_FORMATS = ("flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm")
_PLAIN = b"text/plain; charset=utf-8"
_LANGUAGES = {
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "it": "italian",
    "ja": "japanese",
    "nl": "dutch",
    "pl": "polish",
    "pt": "portuguese",
    "zh": "chinese",
}
_LANGUAGE = re.compile("[a-z]{2,3}")
_AUDIO_TOKENS_A_SECOND = 10
_SEEK_A_SECOND = 100
_LEAST_S = 0.1


class AudioOperation:
    """A recording in a form, its words out."""

    name: ClassVar[str]
    path: ClassVar[str]
    azure_name: ClassVar[str]
    task: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    field: ClassVar[str] = "file"
    deployment_in_path: ClassVar[bool] = True
    versions: ClassVar[Versions] = Versions()
    can_fail: ClassVar[bool] = False

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing

    def decode(self, body: bytes, content_type: str) -> Mapping[str, Any]:
        """Take the form apart: names that end with [] give lists. Raises RefusedError."""
        if len(body) > MOST_BYTES:
            message = f"Maximum content size limit ({MOST_BYTES}) exceeded ({len(body)} bytes read)"
            raise RefusedError(
                413, {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
            )
        try:
            form = read_form(body, content_type)
        except ValueError as error:
            raise bad_request(f"Could not parse multipart form: {error}") from None
        values: dict[str, Any] = {}
        for name, given in form.items():
            if name.endswith("[]"):
                values[name] = given
            elif len(given) == 1:
                values[name] = given[0]
            else:
                raise bad_request(f"Duplicate form field: '{name}'.", param=name)
        return values

    def digest(self, body: bytes, fields: Mapping[str, Any]) -> bytes:  # noqa: ARG002 - the protocol's
        """Name the form by its fields: clients draw a new boundary each time."""
        named = {name: _plain(value) for name, value in fields.items()}
        return body_digest(orjson.dumps(named, option=orjson.OPT_SORT_KEYS))

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check the fields; no tokens are charged. The texts are the file's name and the prompt."""
        for name, value in body.items():
            if name.partition("[")[0] not in self.fields:
                raise bad_request(f"Unrecognized request argument supplied: {name}")
            if name != "file" and isinstance(value, Upload):
                raise bad_request(f"Invalid type for '{name}': expected a string, but got a file.", param=name)
        upload = body.get("file")
        if not isinstance(upload, Upload):
            raise missing("file")
        if PurePath(upload.filename).suffix.lower().removeprefix(".") not in _FORMATS:
            raise bad_request(f"Invalid file format. Supported formats: {list(_FORMATS)}", param="file")
        if not upload.content:
            raise _too_short()
        self._check_options(body, place)
        texts = (upload.filename, body.get("prompt", ""))
        return Asked(body=body, tokens=0, keys=(content_key(upload.content),), texts=texts)

    def slow(self, asked: Asked, place: Place) -> bool:  # noqa: ARG002 - the protocol's
        """Say yes: a recording is looked through from end to end."""
        return True

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:  # noqa: ARG002 - the protocol's
        """Answer in the format that was asked for. Raises RefusedError for what is no recording."""
        body = asked.body
        upload: Upload = body["file"]
        try:
            heard = self._hearing.hear(upload.content, upload.filename, prompt=body.get("prompt") or None)
        except UndecodableError:
            raise bad_request(
                "The audio file could not be decoded or its format is not supported.", param="file"
            ) from None
        if heard.duration_s < _LEAST_S:
            raise _too_short()
        _check_length(heard.duration_s, place.model)
        if body.get("stream") == "true" and _by_tokens(place.model):
            return Answer(events=tuple(_events(heard)), output_tokens=estimated_tokens(heard.text))
        kind = body.get("response_format", "json")
        write = _PLAIN_WRITERS.get(kind)
        if write is not None:
            text = write(heard)
            return Answer(body=text.encode(), content_type=_PLAIN, output_tokens=estimated_tokens(heard.text))
        values = self._values(kind, heard, asked, place)
        return Answer(body=orjson.dumps(values), output_tokens=estimated_tokens(heard.text))

    def _check_options(self, body: Mapping[str, Any], place: Place) -> None:
        kind = body.get("response_format", "json")
        allowed = formats_of(place.model)
        if kind not in allowed:
            raise bad_request(
                f"response_format '{kind}' is not compatible with model '{place.model}'. Use {_listed(allowed)} "
                "instead.",
                param="response_format",
                code="unsupported_value",
            )
        if "temperature" in body:
            try:
                temperature = float(body["temperature"])
            except ValueError:
                raise bad_request("Invalid type for 'temperature': expected a decimal.", param="temperature") from None
            check_range("temperature", temperature, (0, 1), whole=False)
        language = body.get("language")
        if language and not _LANGUAGE.fullmatch(language):
            raise bad_request(
                f"Invalid language '{language}'. Language parameter must be specified in ISO-639-1 format.",
                param="language",
                code="invalid_language_format",
            )
        granularities = body.get("timestamp_granularities[]", [])
        if not all(granularity in ("word", "segment") for granularity in granularities):
            raise bad_request(
                "Invalid value: timestamp_granularities may hold 'word' and 'segment'.",
                param="timestamp_granularities",
                code="invalid_value",
            )
        if granularities and kind != "verbose_json":
            raise bad_request(
                "timestamp_granularities is only supported with response_format 'verbose_json'.",
                param="timestamp_granularities",
                code="unsupported_parameter",
            )

    def _values(self, kind: str, heard: Heard, asked: Asked, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {"text": heard.text}
        if kind == "verbose_json":
            granularities = _granularities(asked, place)
            language = asked.body.get("language") or "en"
            values = {
                "task": self.task,
                "language": "english" if self.task == "translate" else _LANGUAGES.get(language, language),
                "duration": heard.duration_s,
                **values,
            }
            if "word" in granularities:
                values["words"] = [
                    {"word": word.word, "start": word.start_s, "end": word.end_s} for word in heard.words
                ]
            if "segment" in granularities:
                values["segments"] = list(map(_segment, range(len(heard.segments)), heard.segments))
        elif kind == "diarized_json":
            values = {"task": self.task, "duration": heard.duration_s, **values, "segments": list(_diarized(heard))}
        usage = _usage(heard, asked, place)
        return values if usage is None else {**values, "usage": usage}


def formats_of(model: str) -> tuple[str, ...]:
    """Give the response formats that a model writes."""
    if "diarize" in model:
        return ("json", "text", "diarized_json")
    if _by_tokens(model):
        return ("json",)
    return ("json", "text", "srt", "verbose_json", "vtt")


def _by_tokens(model: str) -> bool:
    return model.startswith("gpt-") and "transcribe" in model


def _granularities(asked: Asked, place: Place) -> Sequence[str]:
    """Give what is to be timed. Azure's stable dated versions do not know the field: they leave it unread."""
    stable = place.family is Family.CLASSIC and not (place.api_version or "").endswith("-preview")
    given: Sequence[str] = asked.body.get("timestamp_granularities[]", ())
    return ("segment",) if stable or not given else given


def _check_length(duration_s: float, model: str) -> None:
    most_s = longest_recording_s(model)
    if most_s is not None and duration_s > most_s:
        raise bad_request(
            f"audio duration {duration_s:.6f} seconds is longer than {most_s:.0f} seconds which is the maximum for "
            "this model",
            code="invalid_value",
        )


def _too_short() -> RefusedError:
    return bad_request(
        f"Audio file is too short. Minimum audio length is {_LEAST_S} seconds.", param="file", code="audio_too_short"
    )


def _listed(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _plain(value: Any) -> Any:
    if isinstance(value, Upload):
        return [value.filename, content_key(value.content)]
    return [_plain(entry) for entry in value] if isinstance(value, list) else value


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": int(segment.start_s * _SEEK_A_SECOND),
        "start": segment.start_s,
        "end": segment.end_s,
        "text": f" {segment.text}",
        "tokens": list(range(50_364, 50_364 + estimated_tokens(segment.text))),
        "temperature": 0.0,
        "avg_logprob": -0.1,
        "compression_ratio": 1.0,
        "no_speech_prob": 0.01,
    }


def _diarized(heard: Heard) -> Iterator[dict[str, Any]]:
    """Let two speakers take turns, a sentence each."""
    for number, segment in enumerate(heard.segments):
        yield {
            "type": "transcript.text.segment",
            "id": f"seg_{number:03}",
            "start": segment.start_s,
            "end": segment.end_s,
            "text": segment.text,
            "speaker": "AB"[number % 2],
        }


def _usage(heard: Heard, asked: Asked, place: Place) -> dict[str, Any] | None:
    """Count tokens for the models that are paid by them, seconds for the others; Azure says nothing of seconds."""
    if _by_tokens(place.model):
        return _token_usage(heard, asked.body.get("prompt", ""))
    return None if place.family.azure else {"type": "duration", "seconds": math.ceil(heard.duration_s)}


def _token_usage(heard: Heard, prompt: str) -> dict[str, Any]:
    text_tokens = estimated_tokens(prompt)
    audio_tokens = math.ceil(heard.duration_s * _AUDIO_TOKENS_A_SECOND)
    output_tokens = estimated_tokens(heard.text)
    return {
        "type": "tokens",
        "input_tokens": text_tokens + audio_tokens,
        "input_token_details": {"text_tokens": text_tokens, "audio_tokens": audio_tokens},
        "output_tokens": output_tokens,
        "total_tokens": text_tokens + audio_tokens + output_tokens,
    }


def _events(heard: Heard) -> Iterator[bytes]:
    for piece in pieces(heard.text):
        yield data_event({"type": "transcript.text.delta", "delta": piece})
    done = {"type": "transcript.text.done", "text": heard.text, "usage": _token_usage(heard, "")}
    yield data_event(done)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1_000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1_000:02}{point}{rest % 1_000:03}"


def _srt(heard: Heard) -> str:
    return "".join(
        f"{number}\n{_clock(segment.start_s, ',')} --> {_clock(segment.end_s, ',')}\n{segment.text}\n\n"
        for number, segment in enumerate(heard.segments, start=1)
    )


def _vtt(heard: Heard) -> str:
    return "WEBVTT\n\n" + "".join(
        f"{_clock(segment.start_s, '.')} --> {_clock(segment.end_s, '.')}\n{segment.text}\n\n"
        for segment in heard.segments
    )


_PLAIN_WRITERS: Mapping[str, Callable[[Heard], str]] = {
    "text": lambda heard: f"{heard.text}\n",
    "srt": _srt,
    "vtt": _vtt,
}
