"""Whatever a service answers, an operation makes results or a failed attempt of it, and nothing else comes out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import operations
from pipeline.errors import ReplyError
from pipeline.job.load import load_job
from pipeline.job.training import TRAINING
from pipeline.model import Item, NoReply, NoReplyKind, Reply, Row, RowResult
from pipeline.operations._sse import events
from pipeline.operations.base import Operation
from pipeline.pace.verdict import RowRefused, Verdict
from pipeline.service.classify import CODE_CHARS, MESSAGE_CHARS, classify
from tests.contract.test_operations import ANSWERS as SHAPES
from tests.contract.test_operations import Subject, check, places, replaced, sent, without
from tests.fuzz.effort import DEEP, JSON, SCALARS, effort, mangled

NAMES = sorted(set(operations.names()) - {TRAINING})
ENVIRON = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "AZURE_OPENAI_API_KEY": "k" * 32}
KEYS = (
    b'"choices"',
    b'"message"',
    b'"content"',
    b'"usage"',
    b'"data"',
    b'"embedding"',
    b'"output"',
    b'"error"',
    b'"code"',
    b"null",
    b"[]",
    b"{}",
    b"1e999",
    b"NaN",
    b'"\\ud800"',
    b"[" * 300,
    b'{"a":' * 300,
    b"\xff",
    b"\x00",
    b"9" * 30,
)
STREAM_PIECES = (
    b"data: ",
    b"\n\n",
    b"\r\n\r\n",
    b"\r",
    b":",
    b"event: error\n",
    b"data: [DONE]\n\n",
    b"data: {}\n\n",
    b'data: {"choices":[]}\n\n',
    b'data: {"error":{"code":"content_filter"}}\n\n',
    b"\xef\xbb\xbf",
    b"id: 1\n",
    b"retry: 0\n",
    b"null",
    b'{"choices":[{"index":99999999999,"delta":{"content":"x"}}]}',
    b'{"choices":[{"index":-1,"delta":[]}]}',
    b'"index":7',
    b'"delta":null',
)


def subject_of(folder: Path, name: str) -> Subject:
    """An operation from its own starter, as the contract tests make it."""
    folder.mkdir()
    entry = operations.get(name)
    (folder / "job.yaml").write_text(entry.starter)
    (folder / "rows.jsonl").write_text(entry.starter_rows)
    for file, content in entry.starter_files().items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)
    job = load_job(folder / "job.yaml", environ=ENVIRON, operations=NAMES)
    rows = [Row(ordinal=n, values=json.loads(line)) for n, line in enumerate(entry.starter_rows.splitlines(), 10)]
    return Subject(entry=entry, job=job, operation=entry.factory(job), rows=tuple(rows))


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    folder = tmp_path_factory.mktemp("subjects")
    return {name: subject_of(folder / name, name) for name in NAMES}


@pytest.fixture(scope="module")
def parsing(subjects: Mapping[str, Subject]) -> Mapping[str, tuple[Operation, list[Item], Any]]:
    """Each operation with a pack of items and a true answer to them, made once."""
    return {
        name: (one.operation, one.pack(), SHAPES[one.call().endpoint](sent(one.call())))
        for name, one in subjects.items()
    }


def parse(operation: Operation, items: list[Item], body: bytes) -> list[RowResult] | None:
    try:
        return operation.parse(items, Reply(status=200, headers={}, body=body, latency_ms=1))
    except ReplyError:
        return None


def written(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@effort(40)
def test_an_answer_of_any_shape_is_results_or_a_failed_attempt(
    name: str, parsing: Mapping[str, Any], subjects: Mapping[str, Subject], data: st.DataObject
) -> None:
    operation, items, answer = parsing[name]
    if isinstance(answer, bytes):
        body = data.draw(mangled(answer, (b"RIFF", b"ID3", b"", b"\xff\xfb", b"{}", b"OggS")))
    else:
        place = data.draw(st.sampled_from(list(places(answer))))
        other = data.draw(st.sampled_from(list(places(answer))))
        shape = replaced(answer, place, data.draw(JSON | DEEP))
        if data.draw(st.booleans()) and other and other != place[: len(other)] and place != other[: len(place)]:
            shape = without(shape, other)
        body = written(shape)
        if data.draw(st.booleans()):
            body = data.draw(mangled(body, KEYS))
    results = parse(operation, items, body)
    if results is not None:
        check(subjects[name], results)


@pytest.mark.parametrize("name", NAMES)
@given(body=st.binary(max_size=200) | JSON.map(written))
@effort(25)
def test_any_bytes_are_results_or_a_failed_attempt(name: str, parsing: Mapping[str, Any], body: bytes) -> None:
    operation, items, _ = parsing[name]
    parse(operation, items, body)


HEADER_VALUES = (
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), max_size=40)
    | st.sampled_from(
        ["0", "-1", "nan", "inf", "1e400", "86400", "1.5", "true", "false", "1h2m3s", "9" * 400, "\x1b]0;x", "a" * 5000]
    )
    | st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT"))
)
HEADER_NAMES = (
    "retry-after",
    "retry-after-ms",
    "x-ms-retry-after-ms",
    "date",
    "x-should-retry",
    "x-request-id",
    "apim-request-id",
    "x-ms-region",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "policy-id",
    "azure-openai-deployment-utilization",
)
HEADERS = st.dictionaries(st.sampled_from(HEADER_NAMES), HEADER_VALUES, max_size=6)
ERRORS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("error", "code", "message", "type", "param", "innererror", "inner_error", "detail", "statusCode"),
        SCALARS | JSON,
    ),
)
DEEP_MESSAGES = st.integers(100, 1200).map(lambda depth: b'{"error":{"message":' + b"[" * depth + b"]" * depth + b"}}")
BODIES = (
    st.binary(max_size=200)
    | JSON.map(written)
    | ERRORS.map(written)
    | ERRORS.map(lambda error: written({"error": error}))
    | ERRORS.map(lambda error: written([{"error": error}]))
    | DEEP_MESSAGES
    | st.text(max_size=60).map(lambda text: f"<html><style>{text}</style>{text}".encode("utf-8", "surrogatepass"))
)


@given(status=st.integers(100, 999), headers=HEADERS, body=BODIES)
@effort(300)
def test_every_reply_has_a_verdict_whose_words_are_short_and_printable(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    verdict = classify(Reply(status=status, headers=headers, body=body, latency_ms=1))
    assert isinstance(verdict, Verdict)
    error = getattr(verdict, "error", None)
    if error is not None:
        assert error.code
        assert error.message
        # What is escaped is longer than it was.
        assert len(error.code) <= CODE_CHARS * 10
        assert len(error.message) <= MESSAGE_CHARS * 10
        assert not set(error.code + error.message) & set("\x00\x1b\x07\r\n\u202e\u2028\x9b")
    hint_s = getattr(verdict, "hint_s", None)
    assert hint_s is None or 0 < hint_s < float("inf")


@pytest.mark.parametrize("kind", list(NoReplyKind))
def test_every_kind_of_no_reply_has_a_verdict(kind: NoReplyKind) -> None:
    assert isinstance(classify(NoReply(kind=kind, message="no", latency_ms=1)), Verdict)


def chunk(delta: Any, **others: Any) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "model": "m",
        "choices": [{"index": 0, "delta": delta, **others}],
    }


USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
COMPLETED = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "model": "m",
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]}],
    "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
}
STREAMS: dict[str, tuple[dict[str, Any], list[tuple[str, Any]]]] = {
    "chat": (
        {"messages": [{"role": "user", "content": "{{ q }}"}], "stream": True},
        [
            ("", chunk({"role": "assistant", "content": ""})),
            ("", chunk({"content": "He"})),
            ("", chunk({"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f", "arguments": "{"}}]})),
            ("", chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]})),
            ("", chunk({"content": "llo"}, logprobs={"content": []})),
            ("", chunk({}, finish_reason="stop")),
            ("", {"choices": [], "usage": USAGE}),
        ],
    ),
    "completions": (
        {"prompt": "{{ q }}", "stream": True},
        [
            ("", {"id": "c", "object": "text_completion", "choices": [{"index": 0, "text": "He"}]}),
            ("", {"id": "c", "choices": [{"index": 0, "text": "llo", "finish_reason": "stop"}]}),
            ("", {"choices": [], "usage": USAGE}),
        ],
    ),
    "responses": (
        {"input": "{{ q }}", "stream": True},
        [
            ("response.created", {"type": "response.created", "response": {**COMPLETED, "status": "in_progress"}}),
            ("response.output_text.delta", {"type": "response.output_text.delta", "delta": "Hi."}),
            ("response.completed", {"type": "response.completed", "response": COMPLETED}),
        ],
    ),
}


def sse(said: list[tuple[str, Any]]) -> bytes:
    lines = []
    for name, event in said:
        lines += [b"event: " + name.encode()] if name else []
        lines += [b"data: " + (event if isinstance(event, bytes) else written(event)), b""]
    return b"\n".join([*lines, b"data: [DONE]", b"", b""])


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Operation, list[Item]]]:
    folder = tmp_path_factory.mktemp("streams")
    made = {}
    for name, (request, _) in STREAMS.items():
        job = {
            "operation": name,
            "input": {"path": "rows.jsonl"},
            "request": request,
            "deployments": [{"endpoint": "https://x.openai.azure.com", "deployment": "d", "api": "azure"}],
            "output": {"path": name},
        }
        (folder / f"{name}.json").write_text(json.dumps(job))
        operation = operations.get(name).factory(load_job(folder / f"{name}.json", environ=ENVIRON, operations=NAMES))
        items = [one for one in operation.prepare([Row(ordinal=7, values={"q": "hi"})]) if isinstance(one, Item)]
        assert len(items) == 1
        made[name] = (operation, items)
    return made


@pytest.mark.parametrize("name", STREAMS)
@given(data=st.data())
@effort(80)
def test_a_stream_of_any_bytes_is_a_result_or_a_failed_attempt(
    name: str, streaming: Mapping[str, tuple[Operation, list[Item]]], data: st.DataObject
) -> None:
    operation, items = streaming[name]
    said = list(STREAMS[name][1])
    true = parse(operation, items, sse(said))
    assert true is not None
    assert true[0].ok
    if data.draw(st.booleans()):
        number = data.draw(st.integers(0, len(said) - 1))
        event = said[number][1]
        place = data.draw(st.sampled_from(list(places(event))))
        said[number] = (said[number][0], replaced(event, place, data.draw(JSON | DEEP)))
    body = sse(said)
    if data.draw(st.booleans()):
        body = data.draw(mangled(body, STREAM_PIECES))
    results = parse(operation, items, body)
    if results is not None:
        assert [result.ordinal for result in results] == [7]
        for column in operation.schema() if results[0].ok else ():
            assert results[0].values is not None
            assert results[0].values[column.name] is None or isinstance(results[0].values[column.name], str | float)


@given(
    body=st.binary(max_size=300) | st.just(sse(STREAMS["chat"][1])).flatmap(lambda body: mangled(body, STREAM_PIECES))
)
@effort(150)
def test_events_never_reach_past_the_body_and_hold_no_line_end(body: bytes) -> None:
    ends = [0]
    for event in events(body):
        assert event.data
        assert b"\r" not in event.data
        ends.append(event.end)
    assert ends == sorted(ends)
    assert ends[-1] <= len(body)


@given(cut=st.integers(0, 10_000))
@effort(100)
def test_a_stream_cut_anywhere_before_its_last_answer_is_a_failed_attempt(
    streaming: Mapping[str, tuple[Operation, list[Item]]], cut: int
) -> None:
    for name, (operation, items) in streaming.items():
        said = STREAMS[name][1]
        body = sse(said)
        # Behind the last event that matters nothing is missed.
        whole = body.rindex(b"finish_reason" if name != "responses" else b"response.completed")
        assert parse(operation, items, body[: cut % whole]) is None


DEPTHS = (200, 260, 500, 1000, 1100, 100_000)


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_error_that_nests_deep_is_a_verdict_all_the_same(depth: int) -> None:
    body = b'{"error":{"code":"x","message":' + b"[" * depth + b"]" * depth + b"}}"
    verdict = classify(Reply(status=400, headers={}, body=body, latency_ms=1))
    assert isinstance(verdict, RowRefused)
    assert verdict.error.message


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("status", ["failed", "incomplete", "completed"])
def test_a_failed_response_whose_error_nests_deep_is_a_failed_attempt(
    parsing: Mapping[str, Any], depth: int, status: str
) -> None:
    operation, items, _ = parsing["responses"]
    error = b'{"code":"x","message":' + b"[" * depth + b"]" * depth + b"}"
    parse(operation, items, b'{"status":"%b","output":[],"error":%b}' % (status.encode(), error))
