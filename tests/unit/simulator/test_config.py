"""Configurations say all that is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.simulator.config import (
    CostConfig,
    FaultKind,
    Quirk,
    Shortage,
    SimulatorConfig,
    load_config,
    make_config,
    read_config,
)

EVERYTHING = """
deployments:
  chat: {model: gpt-4o-mini, requests_per_minute: 600, tokens_per_minute: 50000, request_window_s: 10}
  embed: {model: text-embedding-3-small, dimensions: 256, cost: {rounding: sum, factor: 1.5}}
  ptu: {model: gpt-4o, provisioned: {tokens_per_minute: 100000, spillover: chat}, cost: {prompt: tokens}}
keys: [secret]
region: East US 2
latency: {median_ms: 100, sigma: 0.4, per_output_token_ms: 2}
faults: {rates: {500: 0.05, reset_before: 0.01}, attempts: 3, headers: {retry-after: 5}}
poison:
  - {contains: POISON, status: 400, code: content_filter, name_index: true}
answers: {median_tokens: 150, sigma: 0.4}
schedule:
  - {at_s: 30, deployment: chat, requests_per_minute: 300}
speed: 60
seed: 7
vectors: hash
"""


def test_yaml_and_its_own_json_give_the_same_configuration(tmp_path: Path) -> None:
    config = read_config(EVERYTHING)
    assert read_config(config.model_dump_json()) == config
    path = tmp_path / "simulator.yaml"
    path.write_text(EVERYTHING)
    assert load_config(path) == config
    assert config.faults.rates == {"500": 0.05, "reset_before": 0.01}
    assert config.faults.headers == {"retry-after": "5"}


def test_nothing_is_a_configuration() -> None:
    assert read_config("") == SimulatorConfig()


PTU = {"provisioned": {"tokens_per_minute": 100}}
SPILLING = {"provisioned": {"tokens_per_minute": 100, "spillover": "b"}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"deployment": {}}, "Extra inputs are not permitted"),
        ({"deployments": {"a": {"rpm": 5}}}, "Extra inputs are not permitted"),
        ({"deployments": {"a": {"request_window_s": 5}}}, "Input should be 1 or 10"),
        ({"faults": {"rates": {"explode": 0.1}}}, "neither a status"),
        ({"faults": {"rates": {"200": 0.1}}}, "neither a status"),
        ({"faults": {"rates": {"500": 0.6, "502": 0.6}}}, "more than 1"),
        ({"faults": {"rates": {"500": 1.5}}}, "less than or equal to 1"),
        ({"poison": [{"contains": ""}]}, "at least 1 character"),
        ({"speed": 0}, "greater than 0"),
        ({"vectors": "dreams"}, "'auto', 'model' or 'hash'"),
        ({"answers": {"median_tokens": 0}}, "greater than 0"),
        ({"deployments": {"a": {"cost": {"prompt": "bytes"}}}}, "'characters', 'tokens' or 'none'"),
        ({"deployments": {"a": {"cost": {"factor": 0}}}}, "greater than 0"),
        ({"deployments": {"a": {"cost": {"answer_when_absent": -1}}}}, "greater than or equal to 0"),
        ({"deployments": {"a": {"provisioned": {}}}}, "tokens_per_minute\n  Field required"),
        ({"deployments": {"a": PTU | {"tokens_per_minute": 5}}}, "leave them out"),
        ({"deployments": {"a": PTU | {"requests_per_minute": 5}}}, "leave them out"),
        ({"deployments": {"a": SPILLING, "c": {}}}, "a.provisioned.spillover: there is no deployment 'b'"),
        ({"deployments": {"a": SPILLING, "b": PTU}}, "a.provisioned.spillover: 'b' is provisioned too"),
        ({"deployments": {"a": PTU}, "schedule": [{"at_s": 1, "deployment": "a"}]}, "schedule.0: 'a' is provisioned"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_config(values)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        make_config({"speed": -1, "keys": 5, "latency": {"median_ms": -1}})
    assert caught.value.error_count() == 3


def test_everything_that_can_be_played_is_documented() -> None:
    page = Path(__file__).parents[3] / "docs" / "simulator.md"
    text = page.read_text(encoding="utf-8")
    played = [kind.value for kind in [*FaultKind, *Shortage, *Quirk]]
    assert [name for name in [*played, *CostConfig.model_fields] if f"`{name}`" not in text] == []
