"""What is known of the models that may stand behind a deployment: context, vector sizes, reasoning."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_CONTEXT_TOKENS = 128_000
EMBEDDING_CONTEXT_TOKENS = 8_192
DEFAULT_DIMENSIONS = 1_536


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model takes and gives. `can_shorten` says whether the request may name `dimensions`."""

    context_tokens: int
    dimensions: int
    can_shorten: bool
    reasons: bool


_CONTEXT_TOKENS = {
    "gpt-4.1": 1_047_576,
    "gpt-4o": 128_000,
    "gpt-4-turbo": 128_000,
    "gpt-4-32k": 32_768,
    "gpt-4": 8_192,
    "gpt-35-turbo": 16_385,
    "gpt-3.5-turbo": 16_385,
    "gpt-5": 400_000,
    "o1": 200_000,
    "o3": 200_000,
    "o4": 200_000,
}
_DIMENSIONS = {"text-embedding-ada-002": 1_536, "text-embedding-3-small": 1_536, "text-embedding-3-large": 3_072}
_PURPOSES = {  # models that serve these operations and no others; of the rest nothing is said
    "dall-e": ("images",),
    "gpt-35-turbo-instruct": ("completions",),
    "gpt-3.5-turbo-instruct": ("completions",),
    "gpt-4o-mini-transcribe": ("transcription",),
    "gpt-4o-mini-tts": ("speech",),
    "gpt-4o-transcribe": ("transcription",),
    "gpt-image": ("images",),
    "text-embedding": ("embeddings",),
    "tts": ("speech",),
    "whisper": ("transcription", "translation"),
}
_LONGEST_RECORDINGS_S = {
    "gpt-4o-transcribe-diarize": 1_400.0,
    "gpt-4o-transcribe": 1_500.0,
    "gpt-4o-mini-transcribe": 1_500.0,
}
_REASONING = ("gpt-5", "o1", "o3", "o4")


def serves(model: str, operation: str) -> bool:
    """Say whether a model takes an operation, by the ledger's names of operations; an unknown one takes all."""
    return next((operation in purposes for name, purposes in _PURPOSES.items() if model.startswith(name)), True)


def longest_recording_s(model: str) -> float | None:
    """Give the longest recording that a model hears, in seconds, as the service's refusals name it; None for any."""
    return next((seconds for name, seconds in _LONGEST_RECORDINGS_S.items() if model.startswith(name)), None)


def facts_of(model: str) -> ModelFacts:
    """Find a model by the longest known beginning of its name; an unknown one gets the defaults."""
    family = max((name for name in _CONTEXT_TOKENS if model.startswith(name)), key=len, default="")
    return ModelFacts(
        context_tokens=_CONTEXT_TOKENS.get(family, DEFAULT_CONTEXT_TOKENS),
        dimensions=_DIMENSIONS.get(model, DEFAULT_DIMENSIONS),
        can_shorten=model != "text-embedding-ada-002",
        reasons=model.startswith(_REASONING),
    )
