"""Embeddings as little-endian float32 bytes: a small real model's where it is installed, else made of a digest."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from hashlib import shake_128
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.simulator.config import Vectors as VectorsChoice

MODEL_DIMENSIONS = 256

_MOST_AT_ONCE = 32
_BLOCK_DIMENSIONS = 256
_SIGN_AND_LOW_BITS = 0x800FFFFF  # what the text decides: the sign and 20 bits of the mantissa


@functools.lru_cache(maxsize=64)
def _masks(dimensions: int) -> tuple[int, int]:
    """Give the bits that the text decides and the bits that are fixed, of one block.

    Exponent and the mantissa's first three bits are fixed so that every magnitude lies within 1/8 of an octave of
    1/sqrt(dimensions): all values are finite and the norm is within an eighth of 1.
    """
    wanted = 1 / math.sqrt(dimensions)
    exponent = math.floor(math.log2(wanted))
    eighth = min(7, max(0, round((wanted / 2.0**exponent - 1) * 8 - 0.5)))
    fixed = ((exponent + 127) << 23) | (eighth << 20)
    length = min(dimensions, _BLOCK_DIMENSIONS)
    return (
        int.from_bytes(_SIGN_AND_LOW_BITS.to_bytes(4, "little") * length, "little"),
        int.from_bytes(fixed.to_bytes(4, "little") * length, "little"),
    )


def hash_vector(text: str, dimensions: int) -> bytes:
    """Make a vector that only this text has: finite float32 values, norm within an eighth of 1.

    Beyond 256 dimensions the first 256 values come again, rotated by one more place each time.
    """
    decided, fixed = _masks(dimensions)
    size = 4 * min(dimensions, _BLOCK_DIMENSIONS)
    bits = int.from_bytes(shake_128(text.encode()).digest(size), "little")
    block = (bits & decided | fixed).to_bytes(size, "little")
    if dimensions <= _BLOCK_DIMENSIONS:
        return block
    twice = block + block
    blocks = math.ceil(dimensions / _BLOCK_DIMENSIONS)
    return b"".join([twice[4 * (turn % _BLOCK_DIMENSIONS) :][:size] for turn in range(blocks)])[: 4 * dimensions]


class _Model:
    """The model, loaded when it is first needed: that takes a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: Any = None

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    def load(self) -> Any:
        with self._lock:
            if self._loaded is None:
                import wordllama  # noqa: PLC0415 - an extra, and slow to import

                cache_dir = Path(wordllama.__file__).parent
                self._loaded = wordllama.WordLlama.load(disable_download=True, cache_dir=cache_dir)
        return self._loaded

    def vectors(self, texts: Sequence[str], dimensions: int) -> list[bytes]:
        import numpy as np  # noqa: PLC0415 - comes with the model

        with np.errstate(invalid="ignore", divide="ignore"):
            vectors = self.load().embed(list(texts), norm=True)
            if dimensions < MODEL_DIMENSIONS:
                vectors = vectors[:, :dimensions]
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.ascontiguousarray(vectors, dtype="<f4")
        whole = np.isfinite(vectors).all(axis=1)
        return [
            row.tobytes() if good else hash_vector(text, dimensions)
            for row, good, text in zip(vectors, whole, texts, strict=True)
        ]


class Vectors:
    """Gives every text its vector. The model knows up to 256 dimensions, and not every text has a word that it knows.

    Raises ModuleNotFoundError when the model is demanded and not installed.
    """

    def __init__(self, choice: VectorsChoice) -> None:
        installed = choice != "hash" and find_spec("wordllama") is not None
        if choice == "model" and not installed:
            raise ModuleNotFoundError("vectors: model needs the package wordllama (the extra `demo`)")
        self._model = _Model() if installed else None

    def slow(self, texts: Sequence[str], dimensions: int) -> bool:
        """Whether to do it in a thread: the model takes about 80 microseconds a text, and a second before the first."""
        if self._model is None or dimensions > MODEL_DIMENSIONS:
            return False
        return not self._model.loaded or len(texts) > _MOST_AT_ONCE

    def of(self, texts: Sequence[str], dimensions: int) -> list[bytes]:
        """Give each text's vector as little-endian float32 bytes."""
        if self._model is not None and dimensions <= MODEL_DIMENSIONS:
            return self._model.vectors(texts, dimensions)
        return [hash_vector(text, dimensions) for text in texts]
