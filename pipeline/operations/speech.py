"""Speech: a text in, its sound out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from pipeline.errors import ReplyError, RowError
from pipeline.job.template import compile_request
from pipeline.model import Call, Item, Reply, Row, RowResult, Target, Usage
from pipeline.operations import OperationEntry
from pipeline.operations._checks import is_fixed, lacking, refuse, text_of
from pipeline.operations._json import bad_reply, check_framed, write_body
from pipeline.operations._media_out import Media, kept_bytes, media_fields, place_media
from pipeline.operations._one_row import OneRow

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

# The service's documented limits of one request (Azure OpenAI and OpenAI REST references, audio/speech).
MAX_CHARACTERS = 4096
MIN_SPEED, MAX_SPEED = 0.25, 4.0
DEFAULT_FORMAT = "mp3"

# How long a text will sound and how large that is; only ranges end by it. Ordinary English has some 15 characters a
# second; wav and pcm are 24,000 samples of 16 bits a second, the others' rates are what the service is seen to send.
CHARACTERS_A_SECOND = 15
BYTES_A_SECOND: Mapping[str, int] = {
    "mp3": 20_000,
    "opus": 8_000,
    "aac": 16_000,
    "flac": 32_000,
    "wav": 48_000,
    "pcm": 48_000,
}

# What a RIFF header says when its writer streams: nothing, or more than a reply can hold.
_STREAMED_FROM = 64 << 20
_RIFF_HEAD = 12
_SAMPLE_BYTES = 2

# The deployment says which model.
_NOT_SENT = frozenset({"model"})


class Speech(NamedTuple):
    """What an item holds: the encoded body without `model`, and what the reply is judged and billed by."""

    body: bytes
    format: str
    characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechOperation(OneRow):
    """One row, one request. The service counts characters, so that a request costs no tokens of the quota."""

    media: Media
    name: str = "speech"
    reads_files: bool = False

    def item(self, row: Row) -> Item:
        """Render and check; row errors carry the codes `empty`, `type`, `too_long`, `range` and `unsupported`."""
        body = self.template.render(row.values)
        speech = _checked(body)
        return Item(
            ordinal=row.ordinal,
            content=speech,
            tokens=0,
            reply_bytes=kept_bytes(self.media, _expected_bytes(speech, body.get("speed"))),
        )

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Put the model's name in front of the body where the path does not say it."""
        (item,) = items
        body: bytes = item.content.body
        if target.body_model is not None:
            body = b'{"model":' + orjson.dumps(target.body_model) + b"," + body[1:]
        return Call(
            endpoint="audio/speech",
            body=body,
            tokens=item.tokens,
            accept="application/octet-stream",
            shows_end=False,
        )

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Take the sound, once it is one: not empty, of a kind that is sound, and of the format asked for."""
        (item,) = items
        speech: Speech = item.content
        _check_kind(reply)
        check_framed(reply)
        _CHECKS[speech.format](reply.body)
        values, files = place_media("audio", self.media, reply.body, speech.format)
        usage = Usage(characters=speech.characters)
        return [RowResult(ordinal=item.ordinal, values=values, files=files, usage=usage)]

    def schema(self) -> pa.Schema:
        """`audio`, `audio_path`, or both, as `output.media` says."""
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        return pa.schema(media_fields("audio", self.media))


def _checked(body: Mapping[str, Any]) -> Speech:
    """Check what the service would refuse, and what this operation cannot read back."""
    text = text_of(body, "input", most=MAX_CHARACTERS)
    if body.get("instructions") not in (None, ""):
        text_of(body, "instructions", most=MAX_CHARACTERS)
    voice = body.get("voice")
    if not voice:
        raise RowError(code="empty", message="request.voice is empty or null; name one, such as alloy")
    if not isinstance(voice, (str, dict)):
        raise RowError(code="type", message="request.voice is no voice's name")
    for name, problem in ((name, _unfit(name, body[name])) for name in _JUDGED if name in body):
        if problem is not None:
            raise RowError(code="range" if name == "speed" else "unsupported", message=f"request.{name} {problem}")
    return Speech(write_body(body), body.get("response_format") or DEFAULT_FORMAT, len(text))


_JUDGED = ("response_format", "speed", "stream_format")


def _unfit(name: str, value: Any) -> str | None:
    """Say what is wrong with a field whose values are known; None where nothing is."""
    match name:
        case "response_format":
            known = isinstance(value, str) and value in BYTES_A_SECOND
            return None if known else f"is none of {', '.join(BYTES_A_SECOND)}"
        case "speed":
            number = type(value) in (int, float) and MIN_SPEED <= value <= MAX_SPEED
            return None if number else f"is no number from {MIN_SPEED} to {MAX_SPEED:g}"
        case _:
            return None if value == "audio" else "is not `audio`: a row takes its sound whole, never as events"


def _expected_bytes(speech: Speech, speed: Any) -> int:
    """About how large the sound of a text will be."""
    seconds = speech.characters / CHARACTERS_A_SECOND / (speed or 1)
    return int(seconds * BYTES_A_SECOND[speech.format])


def _check_kind(reply: Reply) -> None:
    if not reply.body:
        raise bad_reply("the reply is empty where sound was asked for")
    said = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said and not said.startswith("audio/") and not said.endswith("/octet-stream"):
        raise bad_reply(f"the reply is {_mime(said)} where sound was asked for")


def _mime(said: str) -> str:
    """A content type for a message: the service's word, where it is one."""
    plain = len(said) <= 100 and said.isascii() and said.isprintable()  # noqa: PLR2004 - longer ones are no types
    return said if plain else "of an unreadable type"


def _not(format_: str) -> ReplyError:
    return bad_reply(f"the reply is no {format_}, although that was asked for")


def _check_mp3(body: bytes) -> None:
    """An ID3 tag, or the head of a frame of layer III."""
    if body[:3] != b"ID3" and not (body[:1] == b"\xff" and len(body) > 1 and body[1] & 0xE6 == 0xE2):  # noqa: PLR2004
        raise _not("mp3")


def _check_opus(body: bytes) -> None:
    if body[:4] != b"OggS":
        raise _not("opus")


def _check_aac(body: bytes) -> None:
    """The head of an ADTS frame, whose layer is always 0."""
    if body[:1] != b"\xff" or len(body) == 1 or body[1] & 0xF6 != 0xF0:  # noqa: PLR2004
        raise _not("aac")


def _check_flac(body: bytes) -> None:
    if body[:4] != b"fLaC":
        raise _not("flac")


def _check_wav(body: bytes) -> None:
    """RIFF and WAVE, and as many bytes as the head promises, unless its writer streamed and could not know."""
    if len(body) < _RIFF_HEAD or body[:4] != b"RIFF" or body[8:12] != b"WAVE":
        raise _not("wav")
    promised = int.from_bytes(body[4:8], "little") + 8
    if len(body) < promised <= _STREAMED_FROM:
        raise bad_reply(f"the wav was cut: its head says {promised} bytes, {len(body)} came")


def _check_pcm(body: bytes) -> None:
    """Samples have no head: whole ones, and nothing that reads as JSON or HTML."""
    if body.lstrip()[:1] in (b"{", b"[", b"<", b'"') and body.isascii():
        raise _not("pcm")
    if len(body) % _SAMPLE_BYTES:
        raise bad_reply("the pcm was cut: it ends within a sample of 16 bits")


_CHECKS: Mapping[str, Callable[[bytes], None]] = {
    "mp3": _check_mp3,
    "opus": _check_opus,
    "aac": _check_aac,
    "flac": _check_flac,
    "wav": _check_wav,
    "pcm": _check_pcm,
}


def create(job: Job) -> SpeechOperation:
    """Compile the job's request. Raises JobFileError for what no row could be asked with."""
    request = {key: value for key, value in job.request.items() if key not in _NOT_SENT}
    problems = {
        name: problem
        for name in _JUDGED
        if name in request and is_fixed(request[name]) and (problem := _unfit(name, request[name]))
    }
    problems |= lacking(request, "input", "voice")
    refuse(job, problems)
    return SpeechOperation(template=compile_request(request), media=job.output.media)


_STARTER = """\
# Speak one text a row. Try it without an account:   pipeline run --simulate THIS_FILE
operation: speech

input:
  path: rows.jsonl                          # one JSON object a line; Parquet works too
  id: id                                    # the column that names a row (optional)

request:                                    # the API's own body; {{ column }} reads the row
  input: "{{ text }}"                       # at most 4,096 characters
  voice: alloy                              # or echo, fable, onyx, nova, shimmer, …
  response_format: wav                      # or mp3, opus, aac, flac, pcm
  speed: 1.0                                # 0.25 to 4

deployments:
  - endpoint: ${AZURE_OPENAI_ENDPOINT}      # https://NAME.openai.azure.com
    deployment: tts                         # your deployment's name
    model: tts-1                            # what stands behind it
    api: azure
    api_version: "2025-04-01-preview"       # the generally available ones have no speech
    requests_per_minute: 60                 # your quota; leave out to learn it from the replies

output:
  path: out/speech                          # a folder that the run owns; run again to continue
  media: auto                               # sound up to 1 MB in the column `audio`, else a file; column | files

run:
  workers: 4                                # requests in flight at most
"""

_STARTER_ROWS = """\
{"id": "a", "text": "The ferry leaves at nine from the second pier."}
{"id": "b", "text": "Please mind the step on your way out."}
{"id": "c", "text": "Tomorrow will be dry, with a light wind from the west."}
"""

OPERATION = OperationEntry(
    name="speech",
    factory=create,
    description="Speech: a text in, its sound out, in a column or a file.",
    starter=_STARTER,
    starter_rows=_STARTER_ROWS,
)
