"""What services do beside their documentation is played where it is asked for, and nowhere else."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.simulator import refusals
from pipeline.simulator.base import Family, Occasion, Place
from pipeline.simulator.config import PoisonRule, Quirk, make_config
from pipeline.simulator.models import facts_of
from pipeline.simulator.operations import find_operations

PLACE = Place(
    family=Family.CLASSIC,
    api_version="2024-10-21",
    deployment="d",
    model="gpt-4o",
    facts=facts_of("gpt-4o"),
    dimensions=8,
)


def ask(path: str, body: dict[str, Any], *quirks: Quirk) -> Any:
    operation = find_operations(make_config({"vectors": "hash", "audio": "tones", "quirks": quirks}))[path]
    return operation.answer(operation.read(body, PLACE), PLACE, Occasion(created_s=1))


def streamed(*quirks: Quirk) -> list[dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": "one two three four five six"}], "stream": True}
    events = ask("chat/completions", body, *quirks).events
    assert events[-1] == b"data: [DONE]\n\n"
    return [orjson.loads(event.removeprefix(b"data: ")) for event in events[:-1]]


def test_a_late_filter_speaks_without_a_delta_and_after_the_end() -> None:
    plain, late = streamed(), streamed(Quirk.ASYNC_FILTER)
    extra = [event for event in late if event not in plain]
    assert [event for event in late if event in plain] == plain
    assert late[-1] in extra
    assert late[-2]["choices"][0]["finish_reason"] == "stop"
    for event in extra:
        [choice] = event["choices"]
        assert "delta" not in choice
        assert choice["content_filter_offsets"]["start_offset"] == len("one two three four five six")


@pytest.mark.parametrize(
    ("quirks", "inner", "results"),
    [
        ((), "innererror", "content_filter_result"),
        ((Quirk.INNER_ERROR,), "inner_error", "content_filter_results"),
        ((Quirk.NO_INNER_ERROR,), None, None),
    ],
)
def test_the_filters_refusal_is_spelt_as_configured(
    quirks: tuple[Quirk, ...], inner: str | None, results: str | None
) -> None:
    chat = find_operations(make_config({"vectors": "hash", "audio": "tones"}))["chat/completions"]
    refusal = refusals.poisoned(PoisonRule(contains="x"), chat, index=0, quirks=quirks)
    error = orjson.loads(refusal.body)["error"]
    assert error["code"] == "content_filter"
    assert {name for name in error if name.startswith("inner")} == ({inner} if inner else set())
    if inner is not None and results is not None:
        assert error[inner][results]["violence"]["filtered"] is True


def test_vectors_are_lists_where_base64_is_ignored() -> None:
    body = {"input": "a", "encoding_format": "base64"}
    lists = orjson.loads(ask("embeddings", body, Quirk.IGNORE_BASE64).body)["data"][0]["embedding"]
    coded = orjson.loads(ask("embeddings", body).body)["data"][0]["embedding"]
    assert (type(lists), type(coded)) == (list, str)
    assert len(lists) == 8
