"""Embeddings answer text by text."""

from __future__ import annotations

import base64
from array import array
from typing import Any

import orjson
import pytest

from pipeline.simulator.base import Family, Occasion, Place, RefusedError
from pipeline.simulator.ledger import text_key
from pipeline.simulator.models import facts_of
from pipeline.simulator.operations.embeddings import Embeddings
from pipeline.simulator.vectors import Vectors, hash_vector

OPERATION = Embeddings(Vectors("hash"))


def place(model: str = "text-embedding-3-small") -> Place:
    facts = facts_of(model)
    return Place(
        family=Family.CLASSIC,
        api_version="2024-10-21",
        deployment="d",
        model=model,
        facts=facts,
        dimensions=facts.dimensions,
    )


def answered(body: dict[str, Any], where: Place | None = None) -> dict[str, Any]:
    where = where or place()
    asked = OPERATION.read(body, where)
    values: dict[str, Any] = orjson.loads(OPERATION.answer(asked, where, Occasion(created_s=1)).body)
    return values


def refusal(body: dict[str, Any], where: Place | None = None) -> str:
    with pytest.raises(RefusedError) as caught:
        answered(body, where)
    assert caught.value.status == 400
    message: str = orjson.loads(caught.value.body)["error"]["message"]
    return message


def test_base64_and_lists_hold_the_same_vectors() -> None:
    body = {"input": ["one", "two"], "dimensions": 8}
    lists = [item["embedding"] for item in answered(body)["data"]]
    coded = [
        array("f", base64.b64decode(item["embedding"])).tolist()
        for item in answered({**body, "encoding_format": "base64"})["data"]
    ]
    assert lists == coded == [array("f", hash_vector(text, 8)).tolist() for text in ("one", "two")]


@pytest.mark.parametrize(
    ("model", "size"),
    [("text-embedding-3-small", 1536), ("text-embedding-3-large", 3072), ("text-embedding-ada-002", 1536)],
)
def test_a_model_has_its_own_size(model: str, size: int) -> None:
    assert len(answered({"input": "one"}, place(model))["data"][0]["embedding"]) == size


def test_a_token_is_four_characters_rounded_up_text_by_text() -> None:
    asked = OPERATION.read({"input": ["a", "bcde", "fghij"]}, place())
    assert asked.tokens == 1 + 1 + 2
    assert asked.keys == tuple(map(text_key, ["a", "bcde", "fghij"]))


def test_token_lists_are_taken() -> None:
    assert OPERATION.read({"input": [1, 2, 3]}, place()).tokens == 3
    asked = OPERATION.read({"input": [[1, 2], [3]]}, place())
    assert (asked.tokens, asked.texts) == (3, ("[1,2]", "[3]"))


@pytest.mark.parametrize("given", [None, "", [], [""], ["a", ""], [None], {"a": 1}, 5, [[]], [1.5], [True]])
def test_what_is_no_text_is_refused(given: object) -> None:
    assert "'$.input' is invalid" in refusal({"input": given})


def test_too_many_texts_are_refused() -> None:
    assert "max number of inputs is 2048" in refusal({"input": ["a"] * 2049})
    assert len(answered({"input": ["a"] * 2048, "dimensions": 1})["data"]) == 2048


def test_an_over_long_text_is_refused() -> None:
    assert "maximum context length is 8192 tokens" in refusal({"input": ["a", "b" * (4 * 8192 + 1)]})
    assert answered({"input": "b" * (4 * 8192), "dimensions": 1})


def test_a_pack_of_too_many_tokens_is_refused() -> None:
    assert "max 300000 tokens per request" in refusal({"input": ["b" * 4000] * 301})


@pytest.mark.parametrize(
    ("model", "change", "words"),
    [
        ("text-embedding-ada-002", {"dimensions": 8}, "does not support specifying dimensions"),
        ("text-embedding-3-small", {"dimensions": 1537}, "less than or equal to 1536"),
        ("text-embedding-3-small", {"dimensions": 0}, "less than the minimum of 1"),
        ("text-embedding-3-small", {"dimensions": "8"}, "less than the minimum of 1"),
        ("text-embedding-3-small", {"encoding_format": "hex"}, "not one of"),
        ("text-embedding-3-small", {"inputs": "a"}, "Unrecognized request argument supplied: inputs"),
    ],
)
def test_wrong_options_are_refused(model: str, change: dict[str, Any], words: str) -> None:
    assert words in refusal({"input": "a", **change}, place(model))
