"""Every operation's request, held against Azure's own descriptions of its API (azure_requests.json says which)."""

from __future__ import annotations

import io
import json
import wave
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline import operations
from pipeline.job.availability import absence
from pipeline.job.load import load_job
from pipeline.job.training import TRAINING
from pipeline.model import Call, Item, Row
from pipeline.service.address import Address, address, target

FACTS = json.loads(Path(__file__).with_name("azure_requests.json").read_text(encoding="utf-8"))["versions"]
ENDPOINT = "https://res.openai.azure.com"
DEPLOYMENT = "my deployment"

# A value for every field that a description has, good for every model that takes the field.
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
SAMPLES: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "background": "opaque",
    "best_of": 2,
    "chunking_strategy": "auto",
    "data_sources": [{"type": "azure_search", "parameters": {}}],
    "dimensions": 8,
    "echo": False,
    "encoding_format": "base64",
    "file": "{{ path }}",
    "frequency_penalty": 0.5,
    "function_call": "auto",
    "functions": [{"name": "look"}],
    "include": ["logprobs"],
    "input": "{{ text }}",
    "input_type": "query",
    "instructions": "Be brief.",
    "language": "en",
    "logit_bias": {"50256": -100},
    "logprobs": True,
    "max_completion_tokens": 20,
    "max_output_tokens": 20,
    "max_tokens": 20,
    "max_tool_calls": 2,
    "messages": [{"role": "user", "content": "{{ text }}"}],
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "moderation": "low",
    "n": 1,
    "output_compression": 90,
    "output_format": "jpeg",
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "x"},
    "presence_penalty": -0.5,
    "previous_response_id": "resp_1",
    "prompt": "{{ text }}",
    "quality": "auto",
    "reasoning": {"effort": "low"},
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
    "seed": 7,
    "size": "1024x1024",
    "speed": 1.5,
    "stop": ["x"],
    "store": False,
    "stream": False,
    "stream_format": "audio",
    "stream_options": {"include_usage": True},
    "style": "vivid",
    "suffix": "end",
    "temperature": 0.5,
    "text": {"format": {"type": "text"}},
    "timestamp_granularities": ["word", "segment"],
    "tool_choice": "auto",
    "tools": [TOOL],
    "top_logprobs": 2,
    "top_p": 0.5,
    "truncation": "auto",
    "user": "u",
    "user_security_context": {"application_name": "a"},
    "voice": "alloy",
}
OF_OPERATION: dict[str, dict[str, Any]] = {
    "completions": {"logprobs": 2, "n": 2},
    "chat": {"n": 2},
    "image": {"response_format": "b64_json"},
    "responses": {"background": False, "include": ["reasoning.encrypted_content"], "prompt": {"id": "p"}},
    "speech": {"response_format": "mp3"},
    "transcription": {"response_format": "verbose_json"},
    "translation": {"response_format": "verbose_json"},
}
KINDS: dict[type, tuple[str, ...]] = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    str: ("string",),
    list: ("array",),
    dict: ("object",),
}
# What one model takes, another refuses; what is never sent is the deployment's or the run's own business.
MODELS: dict[str, dict[str, frozenset[str]]] = {
    "image": {
        "dall-e-3": frozenset({"background", "output_compression", "output_format", "moderation"}),
        "gpt-image-1": frozenset({"style", "response_format"}),
    },
    "transcription": {"whisper-1": frozenset({"chunking_strategy", "include"})},
    "speech": {"gpt-4o-mini-tts": frozenset()},
}
NOT_OF_A_JOB = frozenset({"model"})
STREAMED = frozenset({"chat", "completions", "responses"})

ASKED = sorted(set(operations.names()) - {TRAINING})

CASES = [
    (version, operation, model, stream)
    for version, facts in FACTS.items()
    for operation in ASKED
    if operation in facts["operations"]
    for model in MODELS.get(operation, {"m": None})
    for stream in ((False, True) if operation in STREAMED else (False,))
]


def place(version: str) -> Address:
    api, _, date = version.partition(" ")
    return address(endpoint=ENDPOINT, deployment=DEPLOYMENT, api=api, api_version=date or None)


def request_of(version: str, operation: str, model: str, *, stream: bool) -> dict[str, Any]:
    """A request with every field that the description has and the model takes."""
    refused = MODELS.get(operation, {}).get(model, frozenset())
    fields = {name.removesuffix("[]") for name in FACTS[version]["operations"][operation]["fields"]} - NOT_OF_A_JOB
    if operation not in STREAMED:
        fields -= {"stream"}
    if not stream:
        fields -= {"stream_options"}
    values = SAMPLES | OF_OPERATION.get(operation, {})
    return {name: values[name] for name in sorted(fields - refused)} | ({"stream": True} if stream else {})


def call_of(folder: Path, version: str, operation: str, model: str, *, stream: bool) -> tuple[Call, Address]:
    """The call of one row, from a job file on."""
    recording = io.BytesIO()
    with wave.open(recording, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    (folder / "a.wav").write_bytes(recording.getvalue())
    api, _, date = version.partition(" ")
    deployment = {"endpoint": ENDPOINT, "deployment": DEPLOYMENT, "model": model, "api": api, "auth": "entra"}
    file = folder / "job.json"
    job = {
        "operation": operation,
        "input": {"path": "rows.jsonl", "media_root": "."},
        "request": request_of(version, operation, model, stream=stream),
        "deployments": [deployment | ({"api_version": date} if date else {})],
        "output": {"path": "out"},
    }
    file.write_text(json.dumps(job))
    made = operations.get(operation).factory(load_job(file, environ={}, operations=operations.names()))
    (item,) = made.prepare([Row(ordinal=0, values={"text": "Hello", "path": "a.wav"})])
    assert isinstance(item, Item), item
    there = place(version)
    return made.build([item], target(there, model=model)), there


def form(call: Call) -> list[tuple[str, str | None, Any]]:
    """The parts of a form: name, file name, content."""
    head = f"Content-Type: {call.content_type}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + call.body)
    assert message.is_multipart()
    return [
        (str(part.get_param("name", header="content-disposition")), part.get_filename(), part.get_payload(decode=True))
        for part in message.iter_parts()  # type: ignore[attr-defined]
    ]


def kind(value: Any) -> frozenset[str]:
    """The JSON types that a value has."""
    return frozenset(KINDS.get(type(value), ()))


def types_of(fact: str | list[str]) -> frozenset[str]:
    return frozenset({fact} if isinstance(fact, str) else fact)


def test_every_operation_is_described_somewhere() -> None:
    described = {operation for facts in FACTS.values() for operation in facts["operations"]}
    assert set(ASKED) <= described


@pytest.mark.parametrize("version", FACTS)
def test_the_descriptions_list_the_operations_that_are_said_to_be_there(version: str) -> None:
    api, _, date = version.partition(" ")
    known = set(ASKED)
    described = known & set(FACTS[version]["operations"])
    if api == "azure":
        assert {name for name in known if absence(name, date) is None} == described
        fields = {name.removesuffix("[]") for name in FACTS[version]["operations"]["transcription"]["fields"]}
        lacking = absence("transcription", date, ["timestamp_granularities"])
        assert (lacking is None) == ("timestamp_granularities" in fields)
    else:
        assert described == known


@pytest.mark.parametrize(("version", "operation", "model", "stream"), CASES)
def test_a_request_goes_where_it_is_described(
    tmp_path: Path, version: str, operation: str, model: str, *, stream: bool
) -> None:
    facts = FACTS[version]["operations"][operation]
    call, there = call_of(tmp_path, version, operation, model, stream=stream)
    url = urlsplit(there.url(call.endpoint))
    path = facts["path"].replace("{deployment}", "my%20deployment")
    assert (url.scheme, url.netloc, url.path) == ("https", "res.openai.azure.com", FACTS[version]["base"] + path)
    date = version.partition(" ")[2]
    assert parse_qs(url.query) == {name: [date or "preview"] for name in facts["query"]}
    assert call.content_type.partition(";")[0] == facts["content_type"]
    assert call.stream == stream


@pytest.mark.parametrize(("version", "operation", "model", "stream"), CASES)
def test_a_request_holds_described_fields_of_the_described_types(
    tmp_path: Path, version: str, operation: str, model: str, *, stream: bool
) -> None:
    facts = FACTS[version]["operations"][operation]
    fields = facts["fields"]
    call, _ = call_of(tmp_path, version, operation, model, stream=stream)
    if facts["content_type"] == "multipart/form-data":
        parts = form(call)
        sent = {name for name, _, _ in parts}
        assert [name for name, filename, _ in parts if filename is not None] == ["file"]
        assert fields["file"] == "binary"
        for name in sent:
            assert name in fields, f"{name} is no field of {operation} in {version}"
            repeats = sum(name == other for other, _, _ in parts)
            assert repeats == 1 or "array" in types_of(fields[name])
    else:
        body = json.loads(call.body)
        sent = set(body)
        for name, value in body.items():
            assert name in fields, f"{name} is no field of {operation} in {version}"
            assert kind(value) & types_of(fields[name]), f"{name}: {value!r} is not {fields[name]}"
    assert set(facts["required"]) <= sent
    asked = request_of(version, operation, model, stream=stream)
    spelled = {name if name in fields else f"{name}[]" for name in asked}
    # What a job asks for is sent, but for a stream that it does not want.
    assert spelled - sent <= {"stream"}


@pytest.mark.parametrize(("version", "operation", "model", "stream"), CASES)
def test_the_deployment_is_named_once(
    tmp_path: Path, version: str, operation: str, model: str, *, stream: bool
) -> None:
    facts = FACTS[version]["operations"][operation]
    call, _ = call_of(tmp_path, version, operation, model, stream=stream)
    if facts["content_type"] == "multipart/form-data":
        named = [content.decode() for name, _, content in form(call) if name == "model"]
    else:
        named = [value for name, value in json.loads(call.body).items() if name == "model"]
    assert named == ([] if "{deployment}" in facts["path"] else [DEPLOYMENT])
