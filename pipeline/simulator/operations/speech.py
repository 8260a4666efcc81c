"""Speech: the words of the input as tones, which the simulator's transcription hears again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pybase64

from pipeline.simulator.base import (
    Answer,
    Asked,
    JsonOperation,
    Occasion,
    Place,
    Versions,
    bad_request,
    estimated_tokens,
    missing,
)
from pipeline.simulator.config import SimulatorConfig
from pipeline.simulator.ledger import text_key
from pipeline.simulator.operations._fields import Kinds, Ranges, check_choice, check_fields, check_length
from pipeline.simulator.operations._text import typed_event
from pipeline.simulator.sounds import write_sound

MOST_CHARACTERS = 4_096

_FIELDS: Kinds = {
    "input": str,
    "instructions": str,
    "model": str,
    "response_format": str,
    "speed": (int, float),
    "stream_format": str,
    "voice": (str, dict),
}
_RANGES: Ranges = {"speed": (0.25, 4.0)}
_VOICES = (
    "alloy",
    "ash",
    "ballad",
    "cedar",
    "coral",
    "echo",
    "fable",
    "marin",
    "nova",
    "onyx",
    "sage",
    "shimmer",
    "verse",
)
_TYPES = {
    "aac": b"audio/aac",
    "flac": b"audio/flac",
    "mp3": b"audio/mpeg",
    "opus": b"audio/opus",
    "pcm": b"audio/pcm",
    "wav": b"audio/wav",
}
_BYTES_IN_EVENT = 16_384


class Speech(JsonOperation):
    """POST …/audio/speech. Voice, speed and instructions are checked and change nothing."""

    name = "speech"
    path = "audio/speech"
    field = "input"
    azure_name = "Speech_Create"
    versions = Versions(preview=True)

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check the fields; no tokens are charged."""
        check_fields(body, _FIELDS, _RANGES)
        text = body.get("input")
        if not text:
            raise missing("input")
        check_length("input", text, MOST_CHARACTERS)
        if body.get("voice") is None:
            raise missing("voice")
        if isinstance(body["voice"], str):
            check_choice("voice", body["voice"], _VOICES)
        check_choice("response_format", body.get("response_format"), tuple(_TYPES))
        check_choice("stream_format", body.get("stream_format"), ("audio", "sse"))
        if place.model.startswith("tts-1"):
            for name in ("instructions", "stream_format"):
                if body.get(name) not in (None, "audio"):
                    raise bad_request(
                        f"Unsupported parameter: '{name}' is not supported with this model.",
                        param=name,
                        code="unsupported_parameter",
                    )
        check_length("instructions", body.get("instructions") or "", MOST_CHARACTERS)
        return Asked(body=body, tokens=0, keys=(text_key(text),), texts=(text,))

    def slow(self, asked: Asked, place: Place) -> bool:  # noqa: ARG002 - the protocol's
        """Say yes: sound takes milliseconds."""
        return True

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:  # noqa: ARG002 - the protocol's
        """Answer with the sound, or with its pieces as events."""
        kind = asked.body.get("response_format") or "mp3"
        sound = write_sound(asked.body["input"].split(), kind)
        if asked.body.get("stream_format") == "sse":
            return Answer(events=tuple(_events(asked, sound)))
        return Answer(body=sound, content_type=_TYPES[kind])


def make_operation(config: SimulatorConfig) -> Speech:  # noqa: ARG001 - every operation's
    """Make the operation."""
    return Speech()


def _events(asked: Asked, sound: bytes) -> Iterator[bytes]:
    for start in range(0, len(sound), _BYTES_IN_EVENT):
        piece = pybase64.b64encode_as_string(sound[start : start + _BYTES_IN_EVENT])
        yield typed_event({"type": "speech.audio.delta", "audio": piece})
    tokens = estimated_tokens(asked.body["input"])
    usage = {"input_tokens": tokens, "output_tokens": 2 * tokens, "total_tokens": 3 * tokens}
    yield typed_event({"type": "speech.audio.done", "usage": usage})
