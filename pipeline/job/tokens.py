"""Token counts: exact ones where a tokenizer is installed, and the estimate by characters that admission uses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol, cast

CHARACTERS_A_TOKEN = 4
LONG_TEXT = 20_000
"""Characters of a text beyond which counting takes so long that the event loop should not wait for it."""
SPECIAL = "<|"
"""What every special token begins with."""

# The first prefix that fits decides. Source: tiktoken 0.14, model.py; its Azure spelling of gpt-3.5 included.
_ENCODINGS = (
    ("gpt-oss", "o200k_harmony"),
    ("gpt-4o", "o200k_base"),
    ("gpt-4.1", "o200k_base"),
    ("gpt-4.5", "o200k_base"),
    ("gpt-4", "cl100k_base"),
    ("gpt-3.5", "cl100k_base"),
    ("gpt-35", "cl100k_base"),
    ("text-embedding-", "cl100k_base"),
    ("davinci-002", "cl100k_base"),
    ("babbage-002", "cl100k_base"),
)

# Longest input of one text, in tokens. Source: the services' model pages; the API's stated limit is 8,192.
_MAX_INPUT_TOKENS = {
    "text-embedding-3-small": 8_192,
    "text-embedding-3-large": 8_192,
    "text-embedding-ada-002": 8_192,
}


class _Tokenizer(Protocol):
    """What is used of the tokenizer, which has no types. Threads may share it."""

    def encode_ordinary(self, text: str) -> list[int]:
        """Give the tokens of a text; special tokens written out in it are ordinary text."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Give those of several; special tokens written out in them are special."""

    def decode_bytes(self, tokens: list[int]) -> bytes:
        """Give the bytes that tokens stand for."""


def encoding_for(model: str) -> str:
    """The name of a model's encoding; `o200k_base`, that of all newer models, where the model is not known."""
    return next((encoding for prefix, encoding in _ENCODINGS if model.startswith(prefix)), "o200k_base")


def estimate(characters: int) -> int:
    """Tokens by the services' own rule of thumb for admission, four characters to a token, rounded up."""
    return -(-characters // CHARACTERS_A_TOKEN)


@cache
def _tokenizer(encoding: str) -> _Tokenizer | None:
    try:
        from splintr import Tokenizer  # noqa: PLC0415 - a compiled package of 19 MB, not there on every platform
    except ImportError:
        return None
    return cast("_Tokenizer", Tokenizer.from_pretrained(encoding))


def forget() -> None:
    """Let go of the vocabularies, which take 30 MB; who counts again loads them again, in a twentieth of a second."""
    _tokenizer.cache_clear()


def count(texts: Sequence[str], model: str) -> list[int]:
    """Tokens of each text, in order: exact where the tokenizer is installed, else `estimate`.

    Special tokens written out in a text count as ordinary text, as the services count them.
    """
    tokenizer = _tokenizer(encoding_for(model))
    if tokenizer is None:
        return [estimate(len(text)) for text in texts]
    return [len(_encoded(tokenizer, text)) for text in texts]


def cut(text: str, most: int, model: str) -> str:
    """The beginning of a text, up to `most` tokens: exact where the tokenizer is installed, else by `estimate`.

    No character is cut in two. `most` is at least one.
    """
    tokenizer = _tokenizer(encoding_for(model))
    if tokenizer is None:
        return text[: most * CHARACTERS_A_TOKEN]
    # A token may end within a character, whose bytes are then left out.
    return tokenizer.decode_bytes(_encoded(tokenizer, text)[:most]).decode("utf-8", "ignore")


def _encoded(tokenizer: _Tokenizer, text: str) -> list[int]:
    """The tokens of a text. Only a batch lets go of the interpreter, and only without special tokens is it the same."""
    if len(text) > LONG_TEXT and SPECIAL not in text:
        return tokenizer.encode_batch([text])[0]
    return tokenizer.encode_ordinary(text)


def at_most(text: str) -> int:
    """A bound that needs no tokenizer: a token is at least one byte, so n bytes of UTF-8 have at most n tokens."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def max_input_tokens(model: str) -> int | None:
    """The most tokens of one text to embed; None where the model is not known."""
    return _MAX_INPUT_TOKENS.get(model)
