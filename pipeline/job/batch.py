"""Lines made for the Batch API: which operation their `url` asks for, and the body that each of them holds."""

from __future__ import annotations

from collections.abc import Mapping

BATCH_FORMAT = "openai-batch"
"""What a job file calls lines made for the Batch API, as input and as output."""

OPERATION_OF: Mapping[str, str] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/embeddings": "embeddings",
    "/images/generations": "image",
    "/responses": "responses",
}
"""The operations that lines of the Batch API can ask for, by their `url`; `/v1` may stand before it."""

URL_OF: Mapping[str, str] = {operation: url for url, operation in OPERATION_OF.items()}
"""The same the other way round."""


def operation_of(url: object) -> str | None:
    """The operation that a line's `url` asks for; None for any that is not known."""
    return OPERATION_OF.get(url.removeprefix("/v1")) if isinstance(url, str) else None
