"""What the content filter says of prompts and answers, as JSON made ready."""

from __future__ import annotations

import orjson

_SAFE = {
    "hate": {"filtered": False, "severity": "safe"},
    "self_harm": {"filtered": False, "severity": "safe"},
    "sexual": {"filtered": False, "severity": "safe"},
    "violence": {"filtered": False, "severity": "safe"},
}
_PROMPT_SAFE = {**_SAFE, "jailbreak": {"detected": False, "filtered": False}}

SAFE_JSON = orjson.Fragment(orjson.dumps(_SAFE))
"""Nothing was found in an answer."""

FILTERED_JSON = orjson.Fragment(orjson.dumps({**_SAFE, "violence": {"filtered": True, "severity": "medium"}}))
"""The answer was withheld."""

PROMPT_SAFE_JSON = orjson.Fragment(orjson.dumps(_PROMPT_SAFE))
"""Nothing was found in a prompt."""

PROMPT_JSON = orjson.Fragment(orjson.dumps([{"prompt_index": 0, "content_filter_results": _PROMPT_SAFE}]))
"""The same as `prompt_filter_results` of a request with one prompt."""
