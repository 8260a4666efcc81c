"""Transcription: what a recording says, in its own language."""

from __future__ import annotations

from pipeline.simulator.config import SimulatorConfig
from pipeline.simulator.hearing import Hearing
from pipeline.simulator.operations._audio import AudioOperation


class Transcription(AudioOperation):
    """POST …/audio/transcriptions."""

    name = "transcription"
    path = "audio/transcriptions"
    azure_name = "Transcriptions_Create"
    task = "transcribe"
    fields = frozenset(
        {
            "chunking_strategy",
            "file",
            "include",
            "known_speaker_names",
            "known_speaker_references",
            "language",
            "model",
            "prompt",
            "response_format",
            "stream",
            "temperature",
            "timestamp_granularities",
        }
    )


def make_operation(config: SimulatorConfig) -> Transcription:
    """Make the operation with the hearing that the configuration wants."""
    return Transcription(Hearing(config.audio))
