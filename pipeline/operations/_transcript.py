"""What speech services answer, in every format that they answer in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from pipeline.model import Reply, Usage
from pipeline.operations import _subtitles
from pipeline.operations._json import bad_reply, check_framed, read_object, read_usage

if TYPE_CHECKING:
    import pyarrow as pa

JSON_FORMATS = frozenset({"json", "verbose_json", "diarized_json"})
FORMATS = JSON_FORMATS | _subtitles.FORMATS | {"text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What was heard. Segments and words are rows of `segment_type` and `word_type`; None where nothing was said.

    `response` is the reply as JSON.
    """

    text: str
    language: str | None = None
    duration_s: float | None = None
    segments: list[dict[str, Any]] | None = None
    words: list[dict[str, Any]] | None = None
    usage: Usage | None = None
    response: bytes


def segment_type() -> pa.DataType:
    """A segment; `id` is its place, from 0. Times are seconds from the recording's beginning."""
    import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

    return pa.struct(
        [
            ("id", pa.int64()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("text", pa.string()),
            ("speaker", pa.string()),
            ("avg_logprob", pa.float64()),
            ("no_speech_prob", pa.float64()),
        ],
    )


def word_type() -> pa.DataType:
    """A word, with its times in seconds from the recording's beginning."""
    import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

    return pa.struct([("word", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())])


def read_transcript(reply: Reply, format_: str) -> Transcript:
    """Read a reply in the format that was asked for. Raises ReplyError where it is not in it.

    Times are finite and not negative; their order is the service's own.
    """
    if format_ in JSON_FORMATS:
        return _read_json(reply)
    text = _plain_text(reply, format_)
    response = orjson.dumps(text)
    if format_ == "text":
        return Transcript(text=text.removesuffix("\n").removesuffix("\r"), response=response)
    return Transcript(text=text, segments=cue_segments(_subtitles.read_cues(text, format_)), response=response)


def cue_segments(cues: list[_subtitles.Cue]) -> list[dict[str, Any]]:
    """Subtitles as segments."""
    return [
        _segment(index, start_s=cue.start_s, end_s=cue.end_s, text=cue.text.replace("\n", " "))
        for index, cue in enumerate(cues)
    ]


def _segment(
    index: int,
    *,
    start_s: float | None,
    end_s: float | None,
    text: str,
    speaker: str | None = None,
    avg_logprob: float | None = None,
    no_speech_prob: float | None = None,
) -> dict[str, Any]:
    return {
        "id": index,
        "start_s": start_s,
        "end_s": end_s,
        "text": text,
        "speaker": speaker,
        "avg_logprob": avg_logprob,
        "no_speech_prob": no_speech_prob,
    }


def _plain_text(reply: Reply, format_: str) -> str:
    """The body as text; not a web page, and not JSON, which is what errors are written in."""
    if not reply.body:
        raise bad_reply("the reply is empty")
    check_framed(reply)
    said = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said.endswith(("json", "html", "xml")):
        raise bad_reply(f"the reply is no {format_}, although that was asked for: its content type is another")
    try:
        text = reply.body.decode()
    except UnicodeDecodeError:
        raise bad_reply("the reply is no text: it is not UTF-8") from None
    if "\0" in text:
        # UTF-16 reads as UTF-8 with a NUL beside each letter of ASCII.
        raise bad_reply("the reply is no text: it holds NUL")
    start = text.lstrip("\ufeff \r\n\t")[:15].lower()
    if start.startswith(("<!doctype", "<html", "<?xml")) or _is_object(text):
        raise bad_reply(f"the reply is no {format_}, although that was asked for")
    return text


def _is_object(text: str) -> bool:
    if not text.lstrip().startswith("{"):
        return False
    try:
        return type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False


def _read_json(reply: Reply) -> Transcript:
    root = read_object(reply)
    text = root.get("text")
    if type(text) is not str:
        raise bad_reply("the reply holds no text")
    duration_s = _seconds(root, "duration")
    return Transcript(
        text=text,
        language=_optional_text(root, "language"),
        duration_s=duration_s,
        segments=_listed(root, "segments", _read_segment),
        words=_listed(root, "words", _read_word),
        usage=_usage(root.get("usage"), duration_s),
        response=reply.body,
    )


def _listed(root: Mapping[str, Any], name: str, read: Any) -> list[dict[str, Any]] | None:
    entries = root.get(name)
    if entries is None:
        return None
    if type(entries) is not list or any(type(entry) is not dict for entry in entries):
        raise bad_reply(f"{name} is no list of objects")
    return [read(index, entry) for index, entry in enumerate(entries)]


def _read_segment(index: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    return _segment(
        index,
        start_s=_seconds(entry, "start"),
        end_s=_seconds(entry, "end"),
        text=_required_text(entry, "text"),
        speaker=_optional_text(entry, "speaker"),
        avg_logprob=_number(entry, "avg_logprob"),
        no_speech_prob=_number(entry, "no_speech_prob"),
    )


def _read_word(_index: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "word": _required_text(entry, "word"),
        "start_s": _seconds(entry, "start"),
        "end_s": _seconds(entry, "end"),
    }


def _required_text(entry: Mapping[str, Any], name: str) -> str:
    text = entry.get(name)
    if type(text) is not str:
        raise bad_reply(f"a {name} is no text")
    return text


def _optional_text(entry: Mapping[str, Any], name: str) -> str | None:
    return None if entry.get(name) is None else _required_text(entry, name)


def _number(entry: Mapping[str, Any], name: str) -> float | None:
    """A finite number; null where there is none. Some services write numbers as text."""
    value = entry.get(name)
    if value is None:
        return None
    if type(value) not in (int, float, str):
        raise bad_reply(f"{name} is no number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise bad_reply(f"{name} is no number") from None
    if not math.isfinite(number):
        raise bad_reply(f"{name} is no finite number")
    return number


def _seconds(entry: Mapping[str, Any], name: str) -> float | None:
    number = _number(entry, name)
    if number is not None and number < 0:
        raise bad_reply(f"{name} is a negative time")
    return number


def _usage(value: Any, duration_s: float | None) -> Usage | None:
    """What the service counted, in seconds or in tokens; where it says nothing, the length that it heard."""
    counted = read_usage(value)
    if counted is not None and counted.total_tokens is not None:
        return counted
    seconds = value.get("seconds") if type(value) is dict else None
    if type(seconds) is float or type(seconds) is int:
        duration_s = float(seconds) if seconds >= 0 else duration_s
    return None if duration_s is None else Usage(seconds=duration_s)
