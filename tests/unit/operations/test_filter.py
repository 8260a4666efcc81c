from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import ReplyError
from pipeline.operations._filter import filter_column

SAFE = {"hate": {"filtered": False, "severity": "safe"}}
JAILBREAK = {"jailbreak": {"detected": True, "filtered": True}}


def told(root: Any, choice: Any) -> Any:
    text = filter_column(root, choice)
    return None if text is None else json.loads(text)


@pytest.mark.parametrize("outer", ["prompt_filter_results", "prompt_annotations"])
@pytest.mark.parametrize("inner", ["content_filter_results", "content_filter_result"])
def test_both_names_of_both_are_read(outer: str, inner: str) -> None:
    root = {outer: [{"prompt_index": 0, inner: SAFE}]}
    assert told(root, {inner: JAILBREAK}) == {"prompt": SAFE, "completion": JAILBREAK}


def test_an_empty_verdict_gives_way_to_the_other_name() -> None:
    error = {"error": {"code": "content_filter_error", "message": "The contents are not filtered"}}
    assert told({}, {"content_filter_results": {}, "content_filter_result": error}) == {"completion": error}


def test_old_names_of_categories_and_errors_are_kept_as_they_came() -> None:
    odd = {"self-harm": {"filtered": False}, "error": {"code": 5}, "custom_blocklists": {"details": [{"id": "x"}]}}
    assert told({}, {"content_filter_results": odd}) == {"completion": odd}


def test_several_prompts_are_a_list() -> None:
    root = {
        "prompt_filter_results": [{"content_filter_results": SAFE}, {}, None, {"content_filter_results": JAILBREAK}]
    }
    assert told(root, {}) == {"prompt": [SAFE, JAILBREAK]}


def test_a_picture_holds_what_is_said_of_its_own_prompt() -> None:
    picture = {"content_filter_results": SAFE, "prompt_filter_results": JAILBREAK}
    assert told({}, picture) == {"prompt": JAILBREAK, "completion": SAFE}


def test_the_sides_of_a_response_are_told_apart() -> None:
    root = {
        "content_filters": [
            {"blocked": False, "source_type": "prompt", "content_filter_results": SAFE},
            {"blocked": True, "source_type": "completion", "content_filter_results": JAILBREAK},
            {"source_type": "completion", "content_filter_results": SAFE},
        ]
    }
    assert told(root, {}) == {"prompt": SAFE, "completion": [JAILBREAK, SAFE]}


@pytest.mark.parametrize("nothing", [None, [], {}, "", 0, [None], [{}], [1], [{"content_filter_results": None}]])
def test_what_says_nothing_is_null(nothing: Any) -> None:
    for name in ("prompt_filter_results", "prompt_annotations", "content_filters"):
        assert told({name: nothing}, {}) is None
    assert told({}, {"content_filter_results": None, "content_filter_result": {}}) is None


def test_a_verdict_that_cannot_be_written_is_a_reply_error() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"x": deep}
    with pytest.raises(ReplyError):
        filter_column({}, {"content_filter_results": deep})
