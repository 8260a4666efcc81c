"""Vectors are functions of their text."""

from __future__ import annotations

import math
from array import array

import pytest

from pipeline.simulator.vectors import Vectors, hash_vector


@pytest.mark.parametrize("dimensions", [1, 2, 3, 8, 32, 100, 256, 512, 1024, 1536, 3072])
def test_a_vector_is_finite_and_nearly_of_norm_one(dimensions: int) -> None:
    for number in range(20):
        vector = array("f", hash_vector(f"text {number}", dimensions))
        assert len(vector) == dimensions
        assert all(map(math.isfinite, vector))
        assert math.hypot(*vector) == pytest.approx(1, abs=0.125)


def test_texts_have_their_own_vectors() -> None:
    assert len({hash_vector(f"text {number}", 8) for number in range(10_000)}) == 10_000


def test_the_same_text_has_the_same_vector() -> None:
    assert hash_vector("ä", 1536) == hash_vector("ä", 1536)


def test_without_the_model_every_vector_is_a_digests() -> None:
    vectors = Vectors("hash")
    assert vectors.of(["a", "b"], 8) == [hash_vector("a", 8), hash_vector("b", 8)]
    assert not vectors.slow(["a"] * 2048, 8)


def test_large_vectors_never_come_from_the_model() -> None:
    vectors = Vectors("auto")
    assert vectors.of(["a"], 257) == [hash_vector("a", 257)]
    assert not vectors.slow(["a"] * 2048, 257)


@pytest.mark.parametrize("dimensions", [8, 256])
def test_a_text_has_its_vector_whatever_it_is_packed_with(dimensions: int) -> None:
    vectors = Vectors("auto")
    texts = ["the quick brown fox", "a much longer text about nothing in particular, " * 20, "\u200b", "x"]
    packed = vectors.of(texts, dimensions)
    assert packed == [vectors.of([text], dimensions)[0] for text in texts]
    for vector in packed:
        values = array("f", vector)
        assert len(values) == dimensions
        assert math.hypot(*values) == pytest.approx(1, abs=0.125)
