"""The operations that are not chat: what is counted, what is refused, what the answers' parts say."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from pipeline.simulator.base import Answer, Failure, Family, Occasion, Operation, Place, RefusedError, Versions
from pipeline.simulator.config import make_config
from pipeline.simulator.ledger import content_key, messages_key, text_key
from pipeline.simulator.models import facts_of, serves
from pipeline.simulator.operations import find_operations
from pipeline.simulator.sounds import wave_file

OPERATIONS = {
    operation.name: operation
    for operation in find_operations(make_config({"vectors": "hash", "audio": "tones"})).values()
}
FORM = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n%b\r\n%b--B--\r\n'
FORM_TYPE = "multipart/form-data; boundary=B"
SILENCE = wave_file(bytes(32_000), 16_000)
MODELS = {
    "chat": "gpt-4o",
    "completions": "gpt-35-turbo-instruct",
    "embeddings": "text-embedding-3-small",
    "images": "dall-e-3",
    "responses": "gpt-4o",
    "speech": "tts-1",
    "transcription": "whisper-1",
    "translation": "whisper-1",
}


def place(name: str, model: str | None = None, family: Family = Family.V1) -> Place:
    model = model or MODELS[name]
    return Place(family=family, api_version=None, deployment="d", model=model, facts=facts_of(model), dimensions=1_536)


def ask(name: str, body: dict[str, Any], where: Place | None = None, **occasion: Any) -> Answer:
    operation = OPERATIONS[name]
    where = where or place(name)
    return operation.answer(operation.read(body, where), where, Occasion(created_s=1, **occasion))


def answered(name: str, body: dict[str, Any], where: Place | None = None, **occasion: Any) -> dict[str, Any]:
    values: dict[str, Any] = orjson.loads(ask(name, body, where, **occasion).body)
    return values


def refused(name: str, body: dict[str, Any], where: Place | None = None) -> dict[str, Any]:
    with pytest.raises(RefusedError) as caught:
        ask(name, body, where)
    assert caught.value.status == 400
    error: dict[str, Any] = orjson.loads(caught.value.body)["error"]
    return error


def form(extra: bytes = b"", content: bytes = SILENCE) -> dict[str, Any]:
    return dict(OPERATIONS["transcription"].decode(FORM % (content, extra), FORM_TYPE))


def field(name: str, value: str) -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


ASKED: dict[str, tuple[dict[str, Any], int, tuple[str, ...]]] = {
    "chat": ({"messages": [{"role": "user", "content": "abcde"}]}, 18, ()),
    "completions": ({"prompt": ["abcde", "x"], "max_tokens": 10, "best_of": 3}, 3 + 60, ("abcde", "x")),
    "embeddings": ({"input": ["abcde", "x"]}, 3, ("abcde", "x")),
    "images": ({"prompt": "abcde"}, 0, ("abcde",)),
    "responses": ({"input": "abcde", "instructions": "xy", "max_output_tokens": 20}, 23, ()),
    "speech": ({"input": "abcde", "voice": "alloy"}, 0, ("abcde",)),
    "transcription": (form(), 0, ()),
    "translation": (form(), 0, ()),
}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_is_named_and_counted(name: str) -> None:
    body, tokens, texts = ASKED[name]
    asked = OPERATIONS[name].read(body, place(name))
    assert asked.tokens == tokens
    assert asked.keys
    if texts:
        assert asked.keys == tuple(map(text_key, texts))


def test_the_pairing_keys_are_those_of_the_helpers() -> None:
    assert OPERATIONS["responses"].read({"input": "a"}, place("responses")).keys == (messages_key("a"),)
    assert OPERATIONS["transcription"].read(form(), place("transcription")).keys == (content_key(SILENCE),)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_every_operation_refuses_what_it_does_not_know(name: str) -> None:
    body = {**ASKED[name][0], "surprise": 1}
    assert "surprise" in refused(name, body)["message"]


@pytest.mark.parametrize("name", [name for name in sorted(OPERATIONS) if name not in ("transcription", "translation")])
@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"{", b'"x"'])
def test_every_json_operation_refuses_what_is_no_object(name: str, body: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        OPERATIONS[name].decode(body, "application/json")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("versions", "version", "served"),
    [
        (Versions(), "2024-10-21", True),
        (Versions(), "2024-10-21-preview", True),
        (Versions(), None, False),
        (Versions(), "latest", False),
        (Versions(preview=True), "2024-10-21", False),
        (Versions(preview=True), "2024-02-15-preview", True),
        (Versions(since="2025-03-01-preview", preview=True), "2025-02-01-preview", False),
        (Versions(since="2025-03-01-preview", preview=True), "2025-03-01-preview", True),
        (Versions(since="2025-03-01-preview", preview=True), "2025-04-01-preview", True),
        (Versions(since="2025-03-01-preview", preview=True), "2025-04-01", False),
    ],
)
def test_versions_serve_what_they_know(versions: Versions, version: str | None, *, served: bool) -> None:
    assert versions.serve(version) is served


# Responses


def test_a_failed_response_holds_its_error_and_no_filter_results() -> None:
    body = answered("responses", {"input": "a"}, failure=Failure(code="server_error", message="No."))
    assert (body["status"], body["error"]) == ("failed", {"code": "server_error", "message": "No."})
    assert body["output"] == []
    assert "content_filters" not in body


@pytest.mark.parametrize("family", list(Family))
def test_azures_responses_say_what_the_filter_found(family: Family) -> None:
    body = answered("responses", {"input": "a"}, place("responses", family=family), filtered=True)
    assert ("content_filters" in body) is family.azure
    assert body["incomplete_details"] == {"reason": "content_filter"}
    if family.azure:
        prompt, completion = body["content_filters"]
        assert (prompt["source_type"], prompt["blocked"]) == ("prompt", False)
        assert (completion["source_type"], completion["blocked"]) == ("completion", True)


def test_a_reasoning_models_response_begins_with_its_reasoning() -> None:
    body = answered("responses", {"input": "a. b"}, place("responses", "o3"))
    assert [item["type"] for item in body["output"]] == ["reasoning", "message"]
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == 64
    starved = answered("responses", {"input": "a. b", "max_output_tokens": 16}, place("responses", "o3"))
    assert (starved["status"], [item["type"] for item in starved["output"]]) == ("incomplete", ["reasoning"])


def test_the_last_users_message_is_answered() -> None:
    given = [
        {"role": "user", "content": [{"type": "input_text", "text": "First."}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]},
        {"role": "user", "content": "Second. Third."},
    ]
    [message] = answered("responses", {"input": given})["output"]
    assert message["content"][0]["text"] == f"Second. [sha:{messages_key(given)[:8]}]"


FUNCTION = {"type": "function", "name": "look", "parameters": {"properties": {"x": {"type": "integer"}}}}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "function_call"),
        ({"tool_choice": "none"}, "message"),
        ({"tool_choice": {"type": "function", "name": "look"}}, "function_call"),
        (
            {
                "input": [
                    {"role": "user", "content": "a"},
                    {"type": "function_call_output", "call_id": "c", "output": "1"},
                ]
            },
            "message",
        ),
    ],
)
def test_functions_are_called_as_the_choice_says(change: dict[str, Any], kind: str) -> None:
    [item] = answered("responses", {"input": "a", "tools": [FUNCTION], **change})["output"]
    assert item["type"] == kind


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"content": "a"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": 7}]}, "input[0].content"),
        ({"max_output_tokens": 15}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": ["x"]}, "tools[0].type"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": 7}}}}, "text.format.schema"),
        ({"input": "x" * 600_000}, "input"),
    ],
)
def test_a_wrong_response_request_is_refused_by_its_field(change: dict[str, Any], param: str) -> None:
    assert refused("responses", {"input": "a", **change})["param"] == param


# Completions


def test_completions_echo_stop_and_count() -> None:
    body = answered(
        "completions", {"prompt": "One. Two.", "echo": True, "stop": ["ne."], "max_tokens": 40, "logprobs": 1}
    )
    [choice] = body["choices"]
    assert choice["text"] == f"One. Two.[sha:{text_key('One. Two.')[:8]}] O"
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize("family", list(Family))
def test_azures_completions_judge_every_prompt(family: Family) -> None:
    body = answered("completions", {"prompt": ["a", "b"]}, place("completions", family=family))
    indices = [result["prompt_index"] for result in body.get("prompt_filter_results", ())]
    assert indices == ([0, 1] if family.azure else [])
    filtered = answered("completions", {"prompt": "a"}, filtered=True)["choices"][0]
    assert (filtered["text"], filtered["finish_reason"]) == ("", "content_filter")


def test_prompts_may_be_tokens() -> None:
    assert len(answered("completions", {"prompt": [1, 2, 3]})["choices"]) == 1
    assert len(answered("completions", {"prompt": [[1, 2], [3]]})["choices"]) == 2


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [None]}, "prompt"),
        ({"n": 2, "best_of": 1}, "best_of"),
        ({"stream": True, "best_of": 2}, "best_of"),
        ({"best_of": 21}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"max_tokens": True}, "max_tokens"),
    ],
)
def test_a_wrong_completion_request_is_refused_by_its_field(change: dict[str, Any], param: str) -> None:
    assert refused("completions", {"prompt": "a", **change})["param"] == param


# Images


def test_a_withheld_picture_is_missing_beside_what_the_filter_says() -> None:
    [entry] = answered("images", {"prompt": "a"}, filtered=True)["data"]
    assert "url" not in entry
    assert entry["content_filter_results"]["violence"]["filtered"] is True


def test_a_url_is_the_simulators_own() -> None:
    [entry] = answered("images", {"prompt": "a"}, origin="http://127.0.0.1:1")["data"]
    assert entry["url"] == f"http://127.0.0.1:1/_simulator/images/{text_key('a')}-1024x1024.png"


@pytest.mark.parametrize(
    ("size", "good"),
    [
        ("1024x1024", True),
        ("1600x1200", True),
        ("1601x1200", False),
        ("4096x1024", False),
        ("320x320", False),
        ("big", False),
    ],
)
def test_gpt_image_2_takes_any_size_within_its_bounds(size: str, *, good: bool) -> None:
    where = place("images", "gpt-image-2")
    if good:
        assert answered("images", {"prompt": "a", "size": size}, where)["size"] == size
    else:
        assert refused("images", {"prompt": "a", "size": size}, where)["param"] == "size"


# Audio


def test_the_same_form_has_the_same_digest_whatever_its_boundary() -> None:
    operation: Operation = OPERATIONS["transcription"]
    one = FORM % (SILENCE, field("language", "en"))
    other = one.replace(b"--B", b"--C")
    again = operation.decode(other, "multipart/form-data; boundary=C")
    first = operation.decode(one, FORM_TYPE)
    assert operation.digest(one, first) == operation.digest(other, again)
    changed = operation.decode(one.replace(b"\r\n\r\nen", b"\r\n\r\nde"), FORM_TYPE)
    assert operation.digest(one, changed) != operation.digest(one, first)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        (field("temperature", "warm"), "temperature"),
        (field("temperature", "nan"), "temperature"),
        (field("response_format", "xml"), "response_format"),
        (field("timestamp_granularities[]", "letter"), "timestamp_granularities"),
    ],
)
def test_a_wrong_form_is_refused_by_its_field(extra: bytes, param: str) -> None:
    assert refused("transcription", form(extra))["param"] == param


def test_a_form_without_a_file_or_with_two_values_is_refused() -> None:
    operation = OPERATIONS["transcription"]
    body = field("file", "text") + b"--B--"
    assert refused("transcription", dict(operation.decode(body, FORM_TYPE)))["param"] == "file"
    with pytest.raises(RefusedError):
        form(field("language", "en") * 2)
    with pytest.raises(RefusedError):
        operation.decode(b"{}", "application/json")


def test_a_translation_knows_no_language_field() -> None:
    assert "language" in refused("translation", form(field("language", "de")))["message"]


@pytest.mark.parametrize("family", list(Family))
def test_seconds_are_counted_by_openai_and_tokens_by_the_models_that_are_paid_by_them(family: Family) -> None:
    by_seconds = answered("transcription", form(), place("transcription", family=family))
    assert by_seconds.get("usage") == (None if family.azure else {"type": "duration", "seconds": 1})
    by_tokens = answered("transcription", form(), place("transcription", "gpt-4o-transcribe", family))
    assert by_tokens["usage"]["input_token_details"]["audio_tokens"] == 10


def test_a_moment_is_too_short() -> None:
    error = refused("transcription", form(content=wave_file(bytes(1_600), 16_000)))
    assert error["code"] == "audio_too_short"


@pytest.mark.parametrize(
    ("model", "seconds", "taken"),
    [
        ("whisper-1", 1_600, True),
        ("gpt-4o-mini-transcribe", 1_500, True),
        ("gpt-4o-transcribe", 1_501, False),
        ("gpt-4o-transcribe-diarize", 1_401, False),
    ],
)
def test_a_recording_can_be_too_long_for_a_model(model: str, seconds: int, *, taken: bool) -> None:
    content = wave_file(bytes(2 * 6_000 * seconds), 6_000)
    where = place("transcription", model)
    if taken:
        assert answered("transcription", form(content=content), where)["text"] == ""
    else:
        error = refused("transcription", form(content=content), where)
        assert error["code"] == "invalid_value"
        assert f"audio duration {seconds}.000000 seconds is longer than" in error["message"]


@pytest.mark.parametrize(
    ("model", "operation", "served"),
    [
        ("gpt-4o", "chat", True),
        ("anything", "speech", True),
        ("text-embedding-3-small", "chat", False),
        ("whisper-1", "translation", True),
        ("gpt-4o-transcribe", "translation", False),
        ("gpt-4o-mini-tts", "transcription", False),
        ("gpt-35-turbo-instruct", "chat", False),
        ("dall-e-3", "images", True),
    ],
)
def test_models_serve_what_they_are_made_for(model: str, operation: str, *, served: bool) -> None:
    assert serves(model, operation) is served


def test_a_voice_that_streams_sends_its_sound_in_pieces() -> None:
    body = {"input": "a b", "voice": "alloy", "stream_format": "sse", "response_format": "wav"}
    *pieces, done = ask("speech", body, place("speech", "gpt-4o-mini-tts")).events
    assert all(piece.startswith(b"event: speech.audio.delta\n") for piece in pieces)
    assert b'"usage"' in done
