"""What admission charges differs by model, and can be configured part by part."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.simulator.base import Family, Occasion, Place
from pipeline.simulator.config import CostConfig, make_config
from pipeline.simulator.cost import DOCUMENTED, Cost, PromptCount, Rounding, cost_of
from pipeline.simulator.models import facts_of
from pipeline.simulator.operations import find_operations

OPERATIONS = {
    operation.name: operation
    for operation in find_operations(make_config({"vectors": "hash", "audio": "tones"})).values()
}
WORDS = "Twice a day, the tide turns."
PICTURES = [
    {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": detail}}
    for detail in ("high", "low")
]
SEEN = [{"type": "input_image", "image_url": "https://example.com/a.png", "detail": "low"}]


def charged(operation: str, body: dict[str, Any], cost: Cost, model: str = "gpt-4o") -> int:
    model = "text-embedding-3-small" if operation == "embeddings" else model
    place = Place(
        family=Family.V1, api_version=None, deployment="d", model=model, facts=facts_of(model), dimensions=8, cost=cost
    )
    return OPERATIONS[operation].read(body, place).tokens


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


@pytest.mark.parametrize(
    ("cost", "tokens"),
    [
        (Cost(), 7 + 3 * 100),
        (Cost(prompt=PromptCount.NONE), 300),
        (Cost(prompt=PromptCount.TOKENS), 8 + 300),
        (Cost(characters_per_token=7), 4 + 300),
        (Cost(answers=False), 7),
        (Cost(choices=False), 7 + 100),
        (Cost(factor=0.1), 31),
        (Cost(factor=4), 4 * 307),
        (Cost(answer_when_absent=500), 7 + 300),
    ],
)
def test_each_part_of_a_cost_counts(cost: Cost, tokens: int) -> None:
    assert charged("chat", {"messages": said(WORDS), "max_tokens": 100, "n": 3}, cost) == tokens


@pytest.mark.parametrize("bound", ["max_tokens", "max_completion_tokens"])
def test_either_name_of_the_bound_counts_and_none_is_what_the_model_assumes(bound: str) -> None:
    cost = Cost(answer_when_absent=500)
    assert charged("chat", {"messages": said(WORDS), bound: 40}, cost) == 47
    assert charged("chat", {"messages": said(WORDS)}, cost) == 507


@pytest.mark.parametrize(
    ("model", "tokens"),
    [("gpt-4o", 23), ("gpt-4.1-mini", 7), ("gpt-35-turbo", 16), ("gpt-3.5-turbo-16k", 16), ("never-heard-of", 23)],
)
def test_a_model_has_the_cost_that_is_known_of_it(model: str, tokens: int) -> None:
    assert charged("chat", {"messages": said(WORDS)}, cost_of(model)) == tokens


@pytest.mark.parametrize(("rounding", "tokens"), [(None, 3), (Rounding.EACH, 3), (Rounding.SUM, 2)])
def test_texts_of_embeddings_are_rounded_as_configured(rounding: Rounding | None, tokens: int) -> None:
    assert charged("embeddings", {"input": ["abcde", "x"]}, Cost(rounding=rounding)) == tokens


def test_messages_of_a_chat_are_rounded_together_unless_it_is_configured() -> None:
    bodies = {"messages": said("a", "b"), "max_tokens": 1}
    assert charged("chat", bodies, Cost()) == 2
    assert charged("chat", bodies, Cost(rounding=Rounding.EACH)) == 3


def test_embeddings_set_nothing_aside_for_an_answer_and_count_given_tokens_by_their_number() -> None:
    assert charged("embeddings", {"input": [[1, 2, 3], [4]]}, Cost(answer_when_absent=500)) == 4
    assert charged("embeddings", {"input": [[1, 2, 3], [4]]}, Cost(factor=10)) == 40


def test_what_embeddings_are_paid_for_is_not_what_admission_counts() -> None:
    body = {"input": ["abcde", "x"]}
    config = make_config({"deployments": {"d": {"cost": {"factor": 10}}}})
    cost = config.deployments["d"].cost.cost("text-embedding-3-small")
    model = "text-embedding-3-small"
    place = Place(
        family=Family.V1, api_version=None, deployment="d", model=model, facts=facts_of(model), dimensions=8, cost=cost
    )
    asked = OPERATIONS["embeddings"].read(body, place)
    paid = orjson.loads(OPERATIONS["embeddings"].answer(asked, place, Occasion(created_s=1)).body)["usage"]
    assert (asked.tokens, paid) == (30, {"prompt_tokens": 3, "total_tokens": 3})


def test_pictures_cost_by_their_detail() -> None:
    body = {"messages": [{"role": "user", "content": PICTURES}], "max_tokens": 1}
    assert charged("chat", body, Cost()) == 765 + 85 + 1
    assert charged("chat", body, Cost(picture_tokens=11_000, picture_low_tokens=0)) == 11_001


def test_pictures_cost_in_responses_too() -> None:
    body = {"input": [{"role": "user", "content": SEEN}], "max_output_tokens": 20}
    assert charged("responses", body, Cost()) == 85 + 20


@pytest.mark.parametrize(("choices", "tokens"), [(True, 3 + 60), (False, 3 + 10)])
def test_best_of_counts_for_every_prompt_unless_choices_do_not(choices: bool, tokens: int) -> None:  # noqa: FBT001
    body = {"prompt": ["abcde", "x"], "max_tokens": 10, "best_of": 3}
    assert charged("completions", body, Cost(choices=choices), "gpt-3.5-turbo-instruct") == tokens


def test_the_part_for_the_answer_is_told_apart() -> None:
    charge = Cost(factor=2).charge(texts=["abcd"], rounding=Rounding.SUM, most=10, choices=3)
    assert (charge.tokens, charge.answer) == (62, 60)


def test_a_configured_part_leaves_the_others_as_they_are_known() -> None:
    cost = CostConfig(factor=2).cost("gpt-4.1")
    assert (cost.factor, cost.answer_when_absent) == (2, 0)
    off = CostConfig(answers=False, choices=False, answer_when_absent=0, picture_tokens=0).cost("gpt-4o")
    assert (off.answers, off.choices, off.answer_when_absent, off.picture_tokens) == (False, False, 0, 0)
    assert CostConfig().cost("gpt-4o") == DOCUMENTED
