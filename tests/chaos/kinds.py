"""What the fault tests ask of each operation: rows of which no two are alike, and answers that show whose they are."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.simulator.ledger import content_key, messages_key, text_key
from pipeline.simulator.pictures import picture_key
from pipeline.simulator.sounds import write_sound
from pipeline.simulator.vectors import hash_vector

DIMENSIONS = 8
SYSTEM = "Say it in one sentence."
AUDIO_API = "2025-04-01-preview"
SOUNDS = "sounds"
SAMPLES = 800


def text_of(ordinal: int) -> str:
    """The text of a row; no two are alike, and the answer shows which it was."""
    return f"Row {ordinal} speaks of the tide at quay {ordinal * 7919 % 100_003}. It turns twice a day."


def messages_of(ordinal: int) -> list[dict[str, str]]:
    """The messages that the chat job renders for a row."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text_of(ordinal)}]


def word_of(ordinal: int) -> str:
    """What the speech job has a row say: short, for its sound is made for every call."""
    return f"r{ordinal}"


def recording_of(ordinal: int) -> bytes:
    """A tenth of a second of noise, as WAV; no two rows sound alike."""
    samples = b"".join(struct.pack("<h", (ordinal * 7919 + n * n * 31) % 20_011 - 10_000) for n in range(SAMPLES))
    head = struct.pack("<IHHIIHH", 16, 1, 1, 8_000, 16_000, 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + len(samples)) + b"WAVEfmt " + head + b"data" + _sized(samples)


def _sized(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


Judge = Callable[[Path, pa.Table], list[int]]
"""Given the output folder and its table, the ordinals whose answers are not their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An operation as a scene asks it.

    `key` names a row in the simulator's ledger, where a row is one request or one text of it; `wrong` finds mixed-up
    answers.
    """

    model: str
    request: Mapping[str, Any]
    key: Callable[[int], str]
    wrong: Judge
    api_version: str | None = None
    deployment: str = "d"
    output: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path, int], None] | None = None

    @property
    def files(self) -> bool:
        """Whether its answers lie in files of their own."""
        return self.output.get("media") == "files"


def _wrong_text(key: Callable[[int], str]) -> Judge:
    def wrong(_: Path, table: pa.Table) -> list[int]:
        texts = zip(table["ordinal"].to_pylist(), table["output_text"].to_pylist(), strict=True)
        return [ordinal for ordinal, text in texts if f"[sha:{key(ordinal)[:8]}]" not in (text or "")]

    return wrong


def _wrong_vectors(_: Path, table: pa.Table) -> list[int]:
    flat = table["embedding"].combine_chunks().flatten().buffers()[1].to_pybytes()
    size = 4 * DIMENSIONS
    return [
        ordinal
        for place, ordinal in enumerate(table["ordinal"].to_pylist())
        if flat[place * size :][:size] != hash_vector(text_of(ordinal), DIMENSIONS)
    ]


def _wrong_speech(folder: Path, table: pa.Table) -> list[int]:
    paths = zip(table["ordinal"].to_pylist(), table["audio_path"].to_pylist(), strict=True)
    return [
        ordinal
        for ordinal, path in paths
        if path is None or (folder / path).read_bytes() != write_sound([word_of(ordinal)], "wav")
    ]


def _wrong_pictures(folder: Path, table: pa.Table) -> list[int]:
    paths = zip(table["ordinal"].to_pylist(), table["image_path"].to_pylist(), strict=True)
    return [
        ordinal
        for ordinal, path in paths
        if path is None or picture_key((folder / path).read_bytes()) != _text_key(ordinal)
    ]


def _text_key(ordinal: int) -> str:
    return text_key(text_of(ordinal))


def _messages_key(ordinal: int) -> str:
    return messages_key(messages_of(ordinal))


def _input_key(ordinal: int) -> str:
    return messages_key(text_of(ordinal))


def _recording_key(ordinal: int) -> str:
    return content_key(recording_of(ordinal))


def _write_recordings(folder: Path, rows: int) -> None:
    (folder / SOUNDS).mkdir()
    for ordinal in range(rows):
        (folder / SOUNDS / f"{ordinal}.wav").write_bytes(recording_of(ordinal))


def _hearing(request: Mapping[str, Any]) -> Kind:
    return Kind(
        model="whisper",
        api_version=AUDIO_API,
        request={"file": "{{ id[1:] }}.wav", **request},
        key=_recording_key,
        wrong=_wrong_text(_recording_key),
        prepare=_write_recordings,
    )


KINDS: Mapping[str, Kind] = {
    "chat": Kind(
        model="gpt-4o-mini",
        request={
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "{{ text }}"}],
            "max_tokens": 60,
        },
        key=_messages_key,
        wrong=_wrong_text(_messages_key),
    ),
    "responses": Kind(
        model="gpt-4o-mini",
        api_version=AUDIO_API,
        request={"input": "{{ text }}", "max_output_tokens": 60},
        key=_input_key,
        wrong=_wrong_text(_input_key),
    ),
    "embeddings": Kind(
        model="text-embedding-3-small",
        request={"input": "{{ text }}", "dimensions": DIMENSIONS},
        key=_text_key,
        wrong=_wrong_vectors,
    ),
    "completions": Kind(
        model="gpt-3.5-turbo-instruct",
        request={"prompt": "{{ text }}", "max_tokens": 60},
        key=_text_key,
        wrong=_wrong_text(_text_key),
    ),
    "transcription": _hearing({"response_format": "verbose_json"}),
    "translation": _hearing({"response_format": "json"}),
    "speech": Kind(
        model="tts-1",
        api_version=AUDIO_API,
        request={"input": "{{ id }}", "voice": "alloy", "response_format": "wav"},
        key=lambda ordinal: text_key(word_of(ordinal)),
        wrong=_wrong_speech,
        output={"media": "files"},
    ),
    "image": Kind(
        model="gpt-image-1",
        deployment="gpt-image-1",
        api_version=AUDIO_API,
        request={"prompt": "{{ text }}", "size": "1024x1024", "quality": "low"},
        key=_text_key,
        wrong=_wrong_pictures,
        output={"media": "files"},
    ),
}
"""Every operation that the product runs row by row."""


LONG_S = 65


def _write_long_recordings(folder: Path, rows: int) -> None:
    (folder / SOUNDS).mkdir()
    for ordinal in range(rows):
        samples = random.Random(ordinal).randbytes(2 * 8_000 * LONG_S)
        head = recording_of(0)[:40]
        head = head[:4] + struct.pack("<I", 36 + len(samples)) + head[8:]
        (folder / SOUNDS / f"{ordinal}.wav").write_bytes(head + _sized(samples))


PIECES = replace(
    KINDS["transcription"],
    request={"file": "{{ id[1:] }}.wav", "response_format": "verbose_json", "cut_after": "30s"},
    prepare=_write_long_recordings,
)
"""Recordings that are sent in three pieces."""

SPLIT = replace(
    KINDS["embeddings"],
    request={"input": "{{ (text ~ ' ') * 600 }}", "dimensions": DIMENSIONS, "on_too_long": "split"},
)
"""Texts that are embedded in pieces: several rows of the output each."""
