"""Token counts: exact ones where a tokenizer is installed, and the estimate by characters that admission uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import cast

CHARACTERS_A_TOKEN = 4

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


def encoding_for(model: str) -> str:
    """The name of a model's encoding; `o200k_base`, that of all newer models, where the model is not known."""
    return next((encoding for prefix, encoding in _ENCODINGS if model.startswith(prefix)), "o200k_base")


def estimate(characters: int) -> int:
    """Tokens by the services' own rule of thumb for admission, four characters to a token, rounded up."""
    return -(-characters // CHARACTERS_A_TOKEN)


@cache
def _counter() -> Callable[..., list[int]] | None:
    try:
        from toktok import batch_count  # noqa: PLC0415 - a compiled package of 20 MB, not there on every platform
    except ImportError:
        return None
    return cast("Callable[..., list[int]]", batch_count)


def count(texts: Sequence[str], model: str) -> list[int]:
    """Tokens of each text, in order: exact where the tokenizer is installed, else `estimate`.

    Special tokens written out in a text count as ordinary text, as the services count them.
    """
    counter = _counter()
    if counter is None:
        return [estimate(len(text)) for text in texts]
    return counter(texts, encoding_for(model))


@cache
def _cutter() -> Callable[[str, int, str], tuple[str, int]] | None:
    try:
        from toktok import truncate  # noqa: PLC0415 - a compiled package of 20 MB, not there on every platform
    except ImportError:
        return None
    return cast("Callable[[str, int, str], tuple[str, int]]", truncate)


def cut(text: str, most: int, model: str) -> str:
    """The beginning of a text, up to `most` tokens: exact where the tokenizer is installed, else by `estimate`.

    No character is cut in two. `most` is at least one.
    """
    cutter = _cutter()
    return text[: most * CHARACTERS_A_TOKEN] if cutter is None else cutter(text, most, encoding_for(model))[0]


def at_most(text: str) -> int:
    """A bound that needs no tokenizer: a token is at least one byte, so n bytes of UTF-8 have at most n tokens."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def max_input_tokens(model: str) -> int | None:
    """The most tokens of one text to embed; None where the model is not known."""
    return _MAX_INPUT_TOKENS.get(model)
