"""What transcription and translation share: a recording a row, sent as a form, cut where it is too long."""

from __future__ import annotations

import hashlib
import wave
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from pipeline.errors import MediaError, RowError
from pipeline.job.spec import parse_duration
from pipeline.job.template import RequestTemplate, compile_request, compile_text, has_template
from pipeline.media import audio
from pipeline.media.files import MediaFile, find_media
from pipeline.model import Call, Item, OutputFile, Reply, Row, RowResult, Target, Usage
from pipeline.operations import _multipart, _subtitles, _transcript
from pipeline.operations._checks import is_fixed, refuse
from pipeline.operations._joining import Piece, Timed, join_cues, join_segments, join_texts, join_words
from pipeline.operations._one_row import OneRow

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.job.spec import Job

MAX_BODY_BYTES = 26_214_400
"""The service's limit of one request (25 MiB)."""
MAX_FILE_BYTES = MAX_BODY_BYTES - 65_536
"""The largest file that is sent whole: it leaves room for the form's other fields."""
MAX_RECORDING_BYTES = 4 * 2**30
"""The largest file that is cut; no plain WAV is larger."""

_HEAD_BYTES = 64
_OWN = frozenset({"cut_after", "file", "filename"})
# The deployment says which model; a row takes its transcript whole, never as events.
_NOT_SENT = frozenset({"model", "stream"})
_CUT_AFTER_PROBLEM = f"must be a duration of at least {audio.SHORTEST_CUT_S:g} s, such as 10m"

# gpt-4o-transcribe takes 1,500 s (Azure's and OpenAI's audio guides), its diarizing sibling 1,400 s (its own refusals,
# as users report them); Whisper has no such limit.
LONGEST_S = 1400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording, and what is asked about it. `content` is a file, or the bytes of a binary column.

    `fields` are the form's, as they are sent; `format` the reply's. `piece` is its place where it is part of another.
    """

    fields: tuple[tuple[str, str], ...]
    format: str
    content: MediaFile | bytes = field(repr=False)
    filename: str
    kind: audio.AudioKind
    piece: Piece | None = None

    @property
    def size(self) -> int:
        """In bytes."""
        return self.content.size if isinstance(self.content, MediaFile) else len(self.content)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open it for reading. Raises MediaError where the file is no longer what it was."""
        if isinstance(self.content, bytes):
            yield BytesIO(self.content)
        else:
            with self.content.open() as file:
                yield file


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioOperation(OneRow):
    """One row, one recording, one request, or one for every piece of a recording too long for one.

    `file_column` is the column that may hold the recording itself. `cut_after_s`: longer ones are cut; None leaves it
    to their size. `subtitle_files` puts subtitles beside the parts as well.
    """

    name: str
    endpoint: str
    file: RequestTemplate
    file_column: str | None
    media_root: Path | None
    formats: frozenset[str]
    cut_after_s: float | None
    subtitle_files: bool
    keep_response: bool
    reads_files: bool = True

    @property
    def columns(self) -> frozenset[str] | None:
        """The columns that the request's templates read."""
        if self.template.columns is None or self.file.columns is None:
            return None
        return self.template.columns | self.file.columns

    def item(self, row: Row) -> Item:
        """Render and look at the recordings' first bytes.

        Row errors carry the codes `empty`, `type` and `unsupported`; those of recordings are find_media's and `kind`,
        for what no speech service takes.
        """
        return Item(ordinal=row.ordinal, content=self._recording(row.values), tokens=0)

    def _recording(self, values: Mapping[str, Any]) -> Recording:
        body = self.template.render(values)
        filename = body.pop("filename", None)
        if filename is not None and not isinstance(filename, str):
            raise RowError(code="type", message="request.filename is no text")
        format_ = body.get("response_format")
        if not isinstance(format_, str) or format_ not in self.formats:
            raise RowError(code="unsupported", message=f"request.response_format is none of {_said(self.formats)}")
        if isinstance(body.get("timestamp_granularities"), str):
            body["timestamp_granularities"] = [body["timestamp_granularities"]]
        fields = tuple(pair for name, value in body.items() for pair in _multipart.form_fields(name, value))
        content = self._content(values)
        head = content.head if isinstance(content, MediaFile) else content[:_HEAD_BYTES]
        kind = audio.kind_of(head)
        if kind is None:
            raise MediaError(
                code="kind",
                message="the recording is none of flac, m4a, mp3, mp4, mpeg, mpga, ogg, wav, webm by its first bytes",
            )
        name = filename or (content.name if isinstance(content, MediaFile) else "")
        return Recording(
            fields=fields,
            format=format_,
            content=content,
            filename=_multipart.safe_filename(name, kind.extension),
            kind=kind,
        )

    def _content(self, values: Mapping[str, Any]) -> MediaFile | bytes:
        value = None if self.file_column is None else values.get(self.file_column)
        if isinstance(value, bytes):
            if not value:
                raise MediaError(code="empty", message="the recording has no bytes")
            if len(value) > MAX_RECORDING_BYTES:
                raise MediaError(code="too_large", message=f"the recording has {len(value)} bytes")
            return value
        name = self.file.render(values).get("file")
        if name is None or name == "":
            raise RowError(code="empty", message="request.file is empty or null")
        if not isinstance(name, str):
            raise RowError(code="type", message="request.file is neither a file's name nor a recording's bytes")
        return find_media(self.media_root, name, max_bytes=MAX_RECORDING_BYTES)

    def build(self, items: Sequence[Item], target: Target) -> Call:
        """Write the form: the model where the path does not say it, the fields, the recording.

        Raises MediaError where the file is no longer what it was, and `too_large` where one request cannot carry it.
        """
        (item,) = items
        recording: Recording = item.content
        if recording.size > MAX_BODY_BYTES:
            raise _too_large(recording.size)
        content = recording.content
        body, content_type = _multipart.encode(
            [*([] if target.body_model is None else [("model", target.body_model)]), *recording.fields],
            _multipart.FilePart(
                name="file",
                filename=recording.filename,
                content_type=recording.kind.content_type,
                content=content if isinstance(content, bytes) else content.read(),
            ),
        )
        if len(body) > MAX_BODY_BYTES:
            raise _too_large(len(body))
        in_json = recording.format in _transcript.JSON_FORMATS
        return Call(
            endpoint=self.endpoint,
            body=body,
            tokens=item.tokens,
            content_type=content_type,
            accept="application/json" if in_json else "text/plain, */*",
            shows_end=in_json,
        )

    def parse(self, items: Sequence[Item], reply: Reply) -> list[RowResult]:
        """Read what was heard, in the format that was asked for."""
        (item,) = items
        return [self._result(item, _transcript.read_transcript(reply, item.content.format))]

    def _result(self, item: Item, heard: _transcript.Transcript) -> RowResult:
        values: dict[str, Any] = {
            "output_text": heard.text,
            "language": heard.language,
            "duration_s": heard.duration_s,
            "segments": heard.segments,
            "words": heard.words,
        }
        files: tuple[OutputFile, ...] = ()
        recording: Recording = item.content
        if self.subtitle_files:
            if recording.format in _subtitles.FORMATS and recording.piece is None:
                files = (OutputFile(column="subtitles_path", suffix=recording.format, content=heard.text.encode()),)
            else:
                values["subtitles_path"] = None
        return RowResult(
            ordinal=item.ordinal,
            values=values,
            usage=heard.usage,
            response=heard.response if self.keep_response else None,
            files=files,
        )

    def schema(self) -> pa.Schema:
        """Text, language, length, segments and words; `subtitles_path` where subtitles go to files."""
        import pyarrow as pa  # noqa: PLC0415 - `pipeline --help` does not pay for it

        columns = [
            ("output_text", pa.string()),
            ("language", pa.string()),
            ("duration_s", pa.float64()),
            ("segments", pa.list_(_transcript.segment_type())),
            ("words", pa.list_(_transcript.word_type())),
        ]
        return pa.schema([*columns, ("subtitles_path", pa.string())] if self.subtitle_files else columns)

    def cut(self, item: Item, folder: Path) -> Sequence[Item] | None:
        """Cut a recording that is larger than one request may be, or longer than `cut_after_s`.

        Raises MediaError: `audio_extra` where PyAV is not installed, and what cut_recording raises.
        """
        recording: Recording = item.content
        with recording.open() as file:
            if not self._is_too_long(recording, file):
                return None
            longest_s = self.cut_after_s or audio.PIECE_S
            pieces = audio.cut_recording(file, recording.kind, folder, longest_s=longest_s)
        identity = _identity(recording)
        stem = recording.filename.rpartition(".")[0]
        return [
            replace(
                item,
                content=replace(
                    recording,
                    content=find_media(folder, piece.name, max_bytes=MAX_FILE_BYTES),
                    filename=_multipart.safe_filename(f"{stem}-{number}.flac", audio.FLAC.extension),
                    kind=audio.FLAC,
                    piece=Piece(piece.start_s, piece.end_s, piece.from_s, piece.to_s, identity),
                ),
            )
            for number, piece in enumerate(pieces, start=1)
        ]

    def _is_too_long(self, recording: Recording, file: BinaryIO) -> bool:
        if recording.size > MAX_FILE_BYTES:
            return True
        if self.cut_after_s is None:
            return False
        length_s = audio.length_s(file, recording.kind)
        return length_s is not None and length_s > self.cut_after_s

    def piece_key(self, piece: Item) -> str:
        """A digest of the recording, of where it was cut, and of what is asked about it."""
        recording: Recording = piece.content
        said = orjson.dumps([recording.piece and tuple(recording.piece), recording.fields, audio.RATE])
        return hashlib.blake2b(said, digest_size=16).hexdigest()

    def join(self, item: Item, pieces: Sequence[Item], results: Sequence[RowResult]) -> RowResult:
        """One transcript of all pieces', with times in the recording.

        What two pieces heard, where they overlap, is kept once. Names of speakers stay as they are: the service gives
        them anew in every piece.
        """
        recording: Recording = item.content
        places = [piece.content.piece for piece in pieces]
        found = [result.values or {} for result in results]
        texts = [values["output_text"] for values in found]
        if recording.format in _subtitles.FORMATS:
            cues = join_cues(places, [_subtitles.read_cues(text, recording.format) for text in texts])
            text = _subtitles.write_cues(cues, recording.format)
            segments: list[Timed] | None = _transcript.cue_segments(cues)
        else:
            text = join_texts(places, texts, [values["words"] for values in found])
            segments = join_segments(places, [values["segments"] for values in found])
        responses = [result.response for result in results if result.response is not None]
        heard = _transcript.Transcript(
            text=text,
            language=next((values["language"] for values in found if values["language"] is not None), None),
            duration_s=places[-1].to_s,
            segments=None if segments is None else [{**one, "id": index} for index, one in enumerate(segments)],
            words=join_words(places, [values["words"] for values in found]),
            usage=_summed([result.usage for result in results]),
            response=b"[" + b",".join(responses) + b"]",
        )
        return self._result(item, heard)


def _too_large(size: int) -> MediaError:
    return MediaError(
        code="too_large",
        message=f"the request has {size} bytes; the service takes at most {MAX_BODY_BYTES}",
    )


def _said(formats: frozenset[str]) -> str:
    return ", ".join(sorted(formats))


def _identity(recording: Recording) -> str:
    content = recording.content
    if isinstance(content, MediaFile):
        return f"{content.name}:{content.size}:{content.mtime_ns}"
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _summed(usages: Sequence[Usage | None]) -> Usage | None:
    """The sum of what is known; a figure that one request lacks is not known of their sum."""
    known = [usage for usage in usages if usage is not None]
    if not known or len(known) < len(usages):
        return None
    sums = {name: [getattr(usage, name) for usage in known] for name in Usage.__dataclass_fields__}
    return Usage(**{name: None if None in counts else sum(counts) for name, counts in sums.items()})


def create_audio(job: Job, *, name: str, endpoint: str, formats: frozenset[str]) -> AudioOperation:
    """Compile the job's request. Raises JobFileError for what no row could be asked with."""
    models = [deployment.model.lower() for deployment in job.deployments]
    request = {key: value for key, value in job.request.items() if key not in _OWN | _NOT_SENT}
    if request.get("response_format") is None:
        request["response_format"] = _default_format(models, request)
    file = job.request.get("file")
    refuse(job, dict(_problems(job, request, formats)))
    return AudioOperation(
        name=name,
        endpoint=endpoint,
        template=compile_request(
            request | {key: job.request[key] for key in ("filename",) if job.request.get(key) is not None},
        ),
        file=compile_request({"file": file}),
        file_column=_bare_column(file),
        media_root=job.input.media_root,
        formats=formats,
        cut_after_s=_cut_after_s(job.request.get("cut_after"), models),
        subtitle_files=job.output.media == "files" and _may_be_subtitles(request["response_format"]),
        keep_response=job.output.raw == "all",
    )


def _problems(job: Job, request: Mapping[str, Any], formats: frozenset[str]) -> Iterator[tuple[str, str]]:
    if job.request.get("file") is None:
        yield "file", "is missing: say which column names the recording"
    format_ = request["response_format"]
    if is_fixed(format_) and format_ not in formats:
        yield "response_format", f"is none of {_said(formats)}"
    cut_after = job.request.get("cut_after")
    if cut_after is not None:
        try:
            too_short = parse_duration(cut_after) < audio.SHORTEST_CUT_S
        except ValueError:
            too_short = True
        if too_short:
            yield "cut_after", _CUT_AFTER_PROBLEM


def _default_format(models: Sequence[str], request: Mapping[str, Any]) -> str:
    """The format that says most of what the models can say; `json` is known to all of them."""
    if request.get("timestamp_granularities") is not None or all("whisper" in model for model in models):
        return "verbose_json"
    return "diarized_json" if all("diarize" in model for model in models) else "json"


def _cut_after_s(said: Any, models: Sequence[str]) -> float | None:
    """What the job says, else the shortest limit of its models."""
    if said is not None:
        return parse_duration(said)
    limited = any(model.startswith("gpt-4o") and "transcribe" in model for model in models)
    return LONGEST_S if limited else None


def _bare_column(file: Any) -> str | None:
    """The column that a template is and nothing else; None for any other."""
    if not isinstance(file, str) or not has_template(file):
        return None
    template = compile_text(file)
    return next(iter(template.columns)) if template.bare and template.columns else None


def _may_be_subtitles(format_: Any) -> bool:
    return not is_fixed(format_) or format_ in _subtitles.FORMATS


def starter_recordings() -> dict[str, bytes]:
    """Recordings for a first job: a second of one tone each, since a starter cannot speak."""
    return {f"recordings/{name}.wav": _tone(hertz) for name, hertz in (("a", 220), ("b", 330), ("c", 440))}


def _tone(hertz: int) -> bytes:
    """A second of a triangle wave, which needs no floating point, so that it is the same bytes everywhere."""
    file = BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(audio.SAMPLE_BYTES)
        sound.setframerate(audio.RATE)
        ramp = (
            abs(moment * hertz * 2 % (2 * audio.RATE) - audio.RATE) - audio.RATE // 2 for moment in range(audio.RATE)
        )
        sound.writeframes(b"".join(level.to_bytes(2, "little", signed=True) for level in ramp))
    return file.getvalue()
