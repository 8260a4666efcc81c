"""The official SDK takes the simulator for the service, in all three URL families."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from forked import start_simulator

from pipeline.simulator.ledger import messages_key
from pipeline.simulator.serve import SimulatorProcess

MESSAGES: list[Any] = [{"role": "user", "content": "First sentence. Second sentence."}]
TEXT = f"First sentence. [sha:{messages_key(MESSAGES)[:8]}]"
CONFIG = {
    "deployments": {
        "chat": {"model": "gpt-4o-mini"},
        "embed": {"model": "text-embedding-3-small"},
        "slow": {"model": "gpt-4o-mini", "requests_per_minute": 1},
        "small": {"model": "gpt-4o-mini", "tokens_per_minute": 30},
    },
    "keys": ["right"],
    "poison": [
        {"contains": "POISON"},
        {"contains": "LATE", "status": 200},
        {"contains": "BAD", "status": 422, "code": "bad_text", "name_index": True},
    ],
    "vectors": "hash",
}
FAMILIES = ["classic", "v1", "openai"]
Client = openai.AzureOpenAI | openai.OpenAI


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with start_simulator(CONFIG) as process:
        yield process


def make_client(simulator: SimulatorProcess, family: str, key: str = "right") -> Client:
    if family == "classic":
        return openai.AzureOpenAI(azure_endpoint=simulator.url, api_key=key, api_version="2024-10-21", max_retries=0)
    path = "/openai/v1" if family == "v1" else "/v1"
    return openai.OpenAI(base_url=simulator.url + path, api_key=key, max_retries=0)


@pytest.fixture(params=FAMILIES)
def client(request: pytest.FixtureRequest, simulator: SimulatorProcess) -> Iterator[Client]:
    with make_client(simulator, request.param) as made:
        yield made


def test_a_chat_is_answered(client: Client) -> None:
    answer = client.chat.completions.create(model="chat", messages=MESSAGES, max_tokens=100)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_is_the_same_answer(client: Client) -> None:
    text = ""
    usage = None
    stream = client.chat.completions.create(
        model="chat", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            text += choice.delta.content or ""
    assert text == TEXT
    assert usage is not None


def test_embeddings_are_answered(client: Client) -> None:
    coded = client.embeddings.create(model="embed", input=["one", "two"], dimensions=8)
    lists = client.embeddings.create(model="embed", input=["one", "two"], dimensions=8, encoding_format="float")
    assert [len(item.embedding) for item in coded.data] == [8, 8]
    assert [item.index for item in coded.data] == [0, 1]
    for one, other in zip(coded.data, lists.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)


def test_models_are_listed(client: Client) -> None:
    assert {model.id for model in client.models.list()} == {"gpt-4o-mini", "text-embedding-3-small"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_key_is_an_authentication_error(simulator: SimulatorProcess, family: str) -> None:
    with make_client(simulator, family, "wrong") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="chat", messages=MESSAGES)


def test_an_unknown_deployment_is_a_not_found_error(client: Client) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nowhere", messages=MESSAGES)
    assert caught.value.code in {"DeploymentNotFound", "model_not_found"}


def test_a_poisoned_prompt_is_a_bad_request_by_the_content_filter(client: Client) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "a POISON b"}])
    assert caught.value.code == "content_filter"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["innererror"]["content_filter_result"]["violence"]["filtered"] is True


def test_a_late_filter_ends_the_answer(client: Client) -> None:
    answer = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "LATE"}])
    assert answer.choices[0].finish_reason == "content_filter"


def test_a_refused_text_of_a_pack_is_named(client: Client) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.embeddings.create(model="embed", input=["good", "BAD"], dimensions=8)
    assert (caught.value.code, caught.value.param) == ("bad_text", "input[1]")


def test_an_empty_text_is_a_bad_request(client: Client) -> None:
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="embed", input=["good", ""], dimensions=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_used_up_quota_is_a_rate_limit_error(simulator: SimulatorProcess, family: str) -> None:
    with make_client(simulator, family) as client:
        with contextlib.suppress(openai.RateLimitError):
            client.chat.completions.create(model="slow", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="slow", messages=MESSAGES)
    headers = caught.value.response.headers
    assert 0 < float(headers["retry-after-ms"]) <= 60_000
    assert 1 <= int(headers["retry-after"]) <= 60
    assert headers.get("policy-id") == (None if family == "openai" else "DeploymentRatelimit-Call")


def test_a_request_larger_than_the_quota_is_told_to_come_back_tomorrow(client: Client) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="small", messages=MESSAGES, max_tokens=31)
    assert caught.value.response.headers["retry-after"] == "86400"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_headers_of_an_answer_have_their_real_names(simulator: SimulatorProcess, family: str) -> None:
    with make_client(simulator, family) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="small", messages=MESSAGES, max_tokens=1, extra_headers={"x-ms-client-request-id": "mine"}
        )
    azure = {"apim-request-id", "x-ms-region", "x-ms-deployment-name", "x-ms-client-request-id"}
    assert {"x-request-id", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "date"} <= set(raw.headers)
    assert (azure <= set(raw.headers)) is (family != "openai")
    assert raw.headers["x-ratelimit-limit-tokens"] == "30"
    if family != "openai":
        assert raw.headers["x-ms-client-request-id"] == "mine"
        assert raw.headers["x-ratelimit-reset-tokens"].isdecimal()
