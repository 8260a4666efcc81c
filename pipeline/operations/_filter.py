"""What Azure's content filter said of a prompt and of an answer, in every spelling that the service has used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.operations._json import write_json

_PROMPTS = ("prompt_filter_results", "prompt_annotations")
_RESULTS = ("content_filter_results", "content_filter_result")


def filter_column(root: Mapping[str, Any], choice: Mapping[str, Any]) -> str | None:
    """Tell what the filter said as JSON: `{"prompt": …, "completion": …}`, each absent when it said nothing.

    `root` is the reply, `choice` the part of it that holds the answer (a choice, or a picture's entry). A verdict is
    kept as it came, an `error` (the filter did not run) and old names of its categories included. It is a list where
    the service judged several texts or pictures one by one. Raises ReplyError when it nests too deep to be written.
    """
    by_side = {"prompt": [*_prompts(root), *_prompts(choice)], "completion": _verdicts(choice)}
    for side, verdict in _sided(root.get("content_filters")):
        by_side[side].append(verdict)
    said = {side: found[0] if len(found) == 1 else found for side, found in by_side.items() if found}
    return write_json(said) if said else None


def _prompts(holder: Mapping[str, Any]) -> list[Any]:
    """A list with an entry a prompt; of pictures, the verdict itself."""
    found = next((found for name in _PROMPTS if (found := holder.get(name))), None)
    if type(found) is list:
        return [verdict for entry in found if type(entry) is dict for verdict in _verdicts(entry)]
    if type(found) is dict:
        return _verdicts(found) or [found]
    return []


def _verdicts(holder: Mapping[str, Any]) -> list[Any]:
    """Find the results of one text: at most one, under either name."""
    return [found for name in _RESULTS if (found := holder.get(name))][:1]


def _sided(entries: Any) -> list[tuple[str, Any]]:
    """Read the list of the responses API, whose entries say which side they judge."""
    if type(entries) is not list:
        return []
    return [
        ("prompt" if entry.get("source_type") == "prompt" else "completion", verdict)
        for entry in entries
        if type(entry) is dict
        for verdict in _verdicts(entry)
    ]
