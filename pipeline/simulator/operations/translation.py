"""Translation: what a recording says, in English. The simulator says the same words and calls them a translation."""

from __future__ import annotations

from pipeline.simulator.config import SimulatorConfig
from pipeline.simulator.hearing import Hearing
from pipeline.simulator.operations._audio import AudioOperation


class Translation(AudioOperation):
    """POST …/audio/translations."""

    name = "translation"
    path = "audio/translations"
    azure_name = "Translations_Create"
    task = "translate"
    fields = frozenset({"file", "model", "prompt", "response_format", "temperature"})


def make_operation(config: SimulatorConfig) -> Translation:
    """Make the operation with the hearing that the configuration wants."""
    return Translation(Hearing(config.audio))
