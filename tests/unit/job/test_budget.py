"""What a job must say before its budget can be kept to."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.job.budget import ANSWER_BOUNDS, budget_problems
from pipeline.job.prices import BATCH_SHARE, cost_of, price_for, rates
from pipeline.job.spec import DeploymentSpec, Price, RunSpec


def place(model: str = "gpt-4o-mini", **keys: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate(
        {
            "name": keys.pop("name", model),
            "endpoint": "https://x.openai.azure.com",
            "deployment": model,
            "model": model,
            "api": "azure",
            "auth": "none",
            **keys,
        }
    )


def said(operation: str, request: Any, *places: DeploymentSpec, **run: Any) -> list[tuple[str, str]]:
    found = budget_problems(
        operation=operation, request=request, run=RunSpec.model_validate(run), deployments=places or (place(),)
    )
    return [(".".join(map(str, path)), message) for path, message in found]


@pytest.mark.parametrize("operation", ["speech", "image", "transcription", "translation"])
@pytest.mark.parametrize("run", [{"max_cost": 1.0}, {"max_tokens_total": 1}])
def test_what_cannot_be_bounded_has_no_budget(operation: str, run: dict[str, Any]) -> None:
    ((path, message),) = said(operation, {}, **run)
    assert path == f"run.{next(iter(run))}"
    assert f"what {operation} may cost at most is not known" in message


@pytest.mark.parametrize(("operation", "bounds"), sorted(ANSWER_BOUNDS.items()))
def test_answers_need_a_bound(operation: str, bounds: tuple[str, ...]) -> None:
    assert bool(said(operation, {}, max_cost=1.0)) is bool(bounds)
    for bound in bounds:
        assert said(operation, {bound: "{{ most }}"}, max_cost=1.0) == []
        assert said(operation, {bound: None}, max_cost=1.0) != []
    assert said(operation, None, max_cost=1.0) == []  # rows bring their requests along
    assert said(operation, {}) == []


def test_every_price_that_is_missing_is_named() -> None:
    found = said(
        "chat",
        {"max_tokens": 5},
        place(),
        place("own", price={"input": 1.0}),
        place("unheard-of"),
        max_cost=1.0,
    )
    assert [path for path, _ in found] == ["run.max_cost", "run.max_cost"]
    assert "give `deployments.1.price.output`, dollars" in found[0][1]
    assert "give `deployments.2.price.input` and `deployments.2.price.output`" in found[1][1]
    assert "does not know unheard-of" in found[1][1]


def test_tokens_need_no_price() -> None:
    assert said("chat", {"max_tokens": 5}, place("unheard-of"), max_tokens_total=5) == []


def test_embeddings_need_no_price_of_answers() -> None:
    assert said("embeddings", {}, place("own", price={"input": 1.0}), max_cost=1.0) == []


def test_the_dearest_of_the_lanes_deployments_counts() -> None:
    cheap, dear = place("gpt-4o-mini"), place("gpt-4o")
    other = place("o3", lane="batch")
    assert cost_of(rates((cheap, dear, other), "online"), 1_000_000, 1_000_000) == 12.5
    listed = price_for("o3")
    assert listed is not None
    assert cost_of(rates((cheap, dear, other), "batch"), 1_000_000, 0) == listed.input * BATCH_SHARE  # type: ignore[operator]


def test_the_jobs_own_price_wins_and_is_taken_as_given() -> None:
    (rate,) = rates((place(price=Price(input=1.0, output=2.0), lane="batch"),), "batch")
    assert (rate.input, rate.output, rate.listed) == (1.0, 2.0, False)


def test_a_price_that_is_not_known_is_none_and_never_zero() -> None:
    found = rates((place("unheard-of"), place()), "online")
    assert cost_of(found, 1, 0) is None
    assert cost_of(rates((place(price=Price(input=1.0)),), "online"), 1, 1) is None
    assert cost_of(rates((place(price=Price(input=1.0)),), "online"), 1_000_000, 0) == 1.0
    assert cost_of(found, 0, 0) == 0.0
