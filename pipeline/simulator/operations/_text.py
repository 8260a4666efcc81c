"""What the operations that answer with text share: the extract, its end, its pieces, the events of a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson

from pipeline.simulator.base import bad_request, estimated_tokens
from pipeline.simulator.config import AnswersConfig, SimulatorConfig
from pipeline.simulator.faults import lognormal
from pipeline.simulator.schema import fit

_SUMMARY_CHARACTERS = 240
_WORDS_IN_EVENT = 4
_AS_EXTRACTED = AnswersConfig()
_SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")


def first_sentence(text: str) -> str:
    """Take a text's first sentence, or as much of it as an answer holds."""
    start = text.strip()[: _SUMMARY_CHARACTERS + 1]
    sentence = _SENTENCE_END.split(start, maxsplit=1)[0]
    return sentence if len(sentence) <= _SUMMARY_CHARACTERS else sentence[: _SUMMARY_CHARACTERS - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long answers of text are, as the configuration has it: a function of the seed and of what was asked."""

    config: AnswersConfig = _AS_EXTRACTED
    seed: int = 0

    @classmethod
    def of(cls, config: SimulatorConfig) -> Self:
        """Take them from the configuration."""
        return cls(config=config.answers, seed=config.seed)

    def lengthen(self, text: str, key: str) -> str:
        """Repeat a text up to the length that its key draws; one that is longer already stays as it is."""
        if self.config.median_tokens is None or not text:
            return text
        drawn = lognormal(self.config.median_tokens, self.config.sigma, self.seed, "length", key.encode())
        characters = 4 * max(1, min(round(drawn), self.config.most_tokens))
        if len(text) >= characters:
            return text
        repeated = f"{text} " * (characters // (len(text) + 1) + 1)
        return f"{repeated[: characters - 1]}."


def stop_at(text: str, stops: str | Sequence[str] | None) -> str:
    """End a text before the first of the stops that it holds."""
    for stop in (stops,) if isinstance(stops, str) else stops or ():
        text = text.partition(stop)[0]
    return text


def cut_to(text: str, most_tokens: int | None) -> tuple[str, bool]:
    """Cut a text to so many tokens of four characters; say whether anything was lost."""
    if most_tokens is None or estimated_tokens(text) <= most_tokens:
        return text, False
    return text[: 4 * most_tokens], True


def pieces(text: str) -> list[str]:
    """Cut a text into the pieces that a stream's events hold: a few words each, nothing for an empty text."""
    words = re.findall(r"\s*\S+\s*", text) or ([text] if text else [])
    return ["".join(words[start : start + _WORDS_IN_EVENT]) for start in range(0, len(words), _WORDS_IN_EVENT)]


def fit_json(schema: Mapping[str, Any], text: str, key: str, *, param: str) -> str:
    """Make JSON that fits a schema. Raises RefusedError for what is no schema."""
    try:
        return orjson.dumps(fit(schema, text=text, key=key)).decode()
    except ValueError as error:
        raise bad_request(f"Invalid schema for {param}: {error}", param=param, code="invalid_schema") from error


def data_event(values: Mapping[str, Any]) -> bytes:
    """Write an event that has data alone."""
    return b"data: %b\n\n" % orjson.dumps(values)


def typed_event(values: Mapping[str, Any]) -> bytes:
    """Write an event that carries its `type` as the event's name too."""
    return b"event: %b\ndata: %b\n\n" % (values["type"].encode(), orjson.dumps(values))
