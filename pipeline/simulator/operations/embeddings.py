"""Embeddings: every text has its own vector, whatever it was packed with."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, cast

import orjson
import pybase64

from pipeline.simulator.base import Answer, Asked, JsonOperation, Occasion, Place, bad_request, estimated_tokens
from pipeline.simulator.config import Quirk, SimulatorConfig
from pipeline.simulator.cost import Rounding
from pipeline.simulator.ledger import text_key
from pipeline.simulator.models import EMBEDDING_CONTEXT_TOKENS
from pipeline.simulator.vectors import Vectors

MAX_INPUTS = 2_048
MAX_REQUEST_TOKENS = 300_000

_FIELDS = frozenset({"input", "model", "dimensions", "encoding_format", "user", "input_type"})


class Embeddings(JsonOperation):
    """POST …/embeddings."""

    name = "embeddings"
    path = "embeddings"
    field = "input"
    azure_name = "Embeddings_Create"

    def __init__(self, vectors: Vectors, *, always_lists: bool = False) -> None:
        self._vectors = vectors
        self._always_lists = always_lists

    def read(self, body: Mapping[str, Any], place: Place) -> Asked:
        """Check the texts and charge them. Raises RefusedError."""
        if not body.keys() <= _FIELDS:
            unknown = next(iter(body.keys() - _FIELDS))
            raise bad_request(f"Unrecognized request argument supplied: {unknown}")
        _check_options(body, place)
        given = body.get("input")
        inputs: Sequence[Any] = [given] if isinstance(given, str) or _is_tokens(given) else cast("Sequence[Any]", given)
        if not isinstance(inputs, list) or not inputs:
            raise _invalid_input()
        if len(inputs) > MAX_INPUTS:
            raise bad_request(
                f"Too many inputs for model {place.model}. The max number of inputs is {MAX_INPUTS}. We hope to "
                "increase the number of inputs per request soon. Please contact us through an Azure support request "
                "at: https://go.microsoft.com/fwlink/?linkid=2213926 for further questions."
            )
        total = given_tokens = 0
        texts = []
        written = []
        for text in inputs:
            if isinstance(text, str) and text:
                tokens = estimated_tokens(text)
                texts.append(text)
                written.append(text)
            elif _is_tokens(text):
                tokens = len(text)
                given_tokens += tokens
                texts.append(orjson.dumps(text).decode())
            else:
                raise _invalid_input()
            if tokens > EMBEDDING_CONTEXT_TOKENS:
                raise bad_request(
                    f"This model's maximum context length is {EMBEDDING_CONTEXT_TOKENS} tokens, however you requested "
                    f"{tokens} tokens ({tokens} in your prompt; 0 for the completion). Please reduce your prompt; or "
                    "completion length."
                )
            total += tokens
        if total > MAX_REQUEST_TOKENS:
            raise bad_request(
                f"Requested {total} tokens, max {MAX_REQUEST_TOKENS} tokens per request", code="max_tokens_per_request"
            )
        charge = place.cost.charge(texts=written, rounding=Rounding.EACH, tokens=given_tokens, most=0)
        return Asked(body=body, tokens=charge.tokens, keys=tuple(map(text_key, texts)), texts=tuple(texts))

    def slow(self, asked: Asked, place: Place) -> bool:
        """Say yes where the model has much to do."""
        return self._vectors.slow(asked.texts, _dimensions(asked, place))

    def answer(self, asked: Asked, place: Place, occasion: Occasion) -> Answer:  # noqa: ARG002 - the protocol's
        """Answer with a vector for each text, base64 or a list as asked."""
        vectors = self._vectors.of(asked.texts, _dimensions(asked, place))
        data = []
        if asked.body.get("encoding_format") == "base64" and not self._always_lists:
            for index, vector in enumerate(vectors):
                encoded = pybase64.b64encode(vector)
                data.append(b'{"object":"embedding","index":%d,"embedding":"%b"}' % (index, encoded))
        else:
            for index, vector in enumerate(vectors):
                numbers = orjson.dumps(array("f", vector).tolist())
                data.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, numbers))
        tokens = _prompt_tokens(asked)
        body = b'{"object":"list","data":[%b],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}' % (
            b",".join(data),
            orjson.dumps(place.model),
            tokens,
            tokens,
        )
        return Answer(body=body)


def make_operation(config: SimulatorConfig) -> Embeddings:
    """Make the operation with the vectors that the configuration wants."""
    return Embeddings(Vectors(config.vectors), always_lists=Quirk.IGNORE_BASE64 in config.quirks)


def _dimensions(asked: Asked, place: Place) -> int:
    return asked.body.get("dimensions") or place.dimensions


def _prompt_tokens(asked: Asked) -> int:
    """Count what is paid for, whatever admission counted."""
    given = asked.body["input"]
    if _is_tokens(given):
        return len(given)
    inputs = [given] if isinstance(given, str) else given
    return sum(estimated_tokens(text) if isinstance(text, str) else len(text) for text in inputs)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(number) is int for number in value)


def _check_options(body: Mapping[str, Any], place: Place) -> None:
    dimensions = body.get("dimensions")
    most = place.facts.dimensions
    if dimensions is not None:
        if not place.facts.can_shorten:
            raise bad_request("This model does not support specifying dimensions.")
        if type(dimensions) is not int or dimensions < 1:
            raise bad_request(f"{dimensions} is less than the minimum of 1 - 'dimensions'")
        if dimensions > most:
            raise bad_request(f"Invalid value for 'dimensions' = {dimensions}. Must be less than or equal to {most}.")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise bad_request(f"'{body['encoding_format']}' is not one of ['float', 'base64'] - 'encoding_format'")


def _invalid_input() -> Exception:
    return bad_request(
        "'$.input' is invalid. Please check the API reference: https://platform.openai.com/docs/api-reference."
    )
