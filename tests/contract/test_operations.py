"""What every operation keeps to, whether it is the product's or a file that somebody added."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, dataclass
from email import message_from_bytes
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pybase64
import pytest

from pipeline import operations
from pipeline.errors import ReplyError
from pipeline.job.load import load_job
from pipeline.job.spec import Job
from pipeline.job.training import TRAINING
from pipeline.model import Call, ErrorInfo, ErrorType, Item, Reply, Row, RowResult, Target
from pipeline.operations import OperationEntry
from pipeline.operations.base import Operation

sys.path.insert(0, str(Path(__file__).parent))

OWN = "pipeline.operations"
TOYS = "toy_operations"
FOUND = [(package, name) for package in (OWN, TOYS) for name in operations.names(package)]
# No row of a training has an answer of its own.
ASKED = [found for found in FOUND if found != (OWN, TRAINING)]

AZURE = Target(deployment="d", model="m", body_model=None)
OPENAI = Target(deployment="d", model="m", body_model="the model")

DEEP: list[Any] = []
for _ in range(5000):
    DEEP = [DEEP]
PLAIN: tuple[Any, ...] = (None, "", "x", 0, -1, 2**70, 1.5, math.nan, True, [], {}, ["x"], {"a": 1})
HOSTILE: tuple[Any, ...] = (*PLAIN, DEEP, b"\xff", "\ud800", "\x00", " ", "{{ row }}")
WRONG: tuple[Any, ...] = (None, True, -1, 10**30, 1.5, "", "x", [], {}, [None], {"__proto__": "; drop"}, [[[]]])


def answer_chat(body: Mapping[str, Any]) -> Any:
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    message = {"role": "assistant", "content": "Hello.", "refusal": None, "tool_calls": [{"id": "1"}]}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {"index": index, "message": message, "finish_reason": "stop", "content_filter_results": safe}
            for index in range(body.get("n", 1))
        ],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": safe}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def answer_embeddings(body: Mapping[str, Any]) -> Any:
    vector = pybase64.b64encode(struct.pack(f"<{body['dimensions']}f", *[0.5] * body["dimensions"])).decode()
    return {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(body["input"]))],
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }


def answer_responses(body: Mapping[str, Any]) -> Any:
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    text = {"type": "output_text", "text": "Hello.", "annotations": []}
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "incomplete_details": None,
        "error": None,
        "model": body["model"],
        "output": [
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "role": "assistant", "content": [text, {"type": "refusal", "refusal": "No."}]},
            {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
        ],
        "content_filters": [{"source_type": "prompt", "content_filter_results": safe}],
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 5,
        },
    }


def answer_completions(body: Mapping[str, Any]) -> Any:
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "model": "m",
        "choices": [
            {"index": index, "text": " Hello.", "finish_reason": "stop", "content_filter_results": safe}
            for index in range(body.get("n", 1))
        ],
        "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": safe}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def answer_speech(body: Mapping[str, Any]) -> bytes:
    assert body["response_format"] == "wav"
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 24_000, 48_000, 2, 16)
    sound = form + b"data" + struct.pack("<I", 200) + b"\1\2" * 100
    return b"RIFF" + struct.pack("<I", len(sound)) + sound


def answer_images(body: Mapping[str, Any]) -> Any:
    safe = {"hate": {"filtered": False, "severity": "safe"}}
    picture = pybase64.b64encode(b"\x89PNG\r\n\x1a\n and so on").decode()
    return {
        "created": 1,
        "data": [
            {
                "b64_json": picture,
                "revised_prompt": f"{body['prompt']} In oil.",
                "content_filter_results": safe,
                "prompt_filter_results": safe,
            }
        ],
        "usage": {
            "input_tokens": 9,
            "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
            "output_tokens": 272,
            "total_tokens": 281,
        },
    }


def answer_audio(body: Mapping[str, Any]) -> Any:
    assert body["response_format"] == "verbose_json"
    segment = {"id": 0, "start": 0.0, "end": 1.0, "text": " Hello.", "avg_logprob": -0.25, "no_speech_prob": 0.01}
    return {
        "task": "transcribe",
        "language": "english",
        "duration": 1.0,
        "text": "Hello.",
        "segments": [segment],
        "words": [{"word": "Hello", "start": 0.0, "end": 0.75}],
        "usage": {"type": "duration", "seconds": 1},
    }


# Its path names no deployment in any family of paths.
NAMED_IN_THE_BODY = {"responses": "d"}

# The service counts characters or seconds: no tokens of the quota.
NO_TOKENS = frozenset({"speech", "transcription", "translation"})

ANSWERS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "completions": answer_completions,
    "responses": answer_responses,
    "chat/completions": answer_chat,
    "embeddings": answer_embeddings,
    "audio/speech": answer_speech,
    "audio/transcriptions": answer_audio,
    "audio/translations": answer_audio,
    "images/generations": answer_images,
    "two-words": lambda body: {"words": [body["word"], body["word"]]},
}


def sent(call: Call) -> dict[str, Any]:
    """A body's fields, read by another than the one who wrote it: JSON, or a form with bytes for its file."""
    if call.content_type == "application/json":
        body: dict[str, Any] = json.loads(call.body)
        return body
    form = message_from_bytes(f"content-type: {call.content_type}\r\n\r\n".encode() + call.body)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
    contents = {name: part.get_payload(decode=True) for name, part in parts.items()}
    return {name: each if parts[name].get_filename() else each.decode() for name, each in contents.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One operation, made from its own starter job, with the starter's rows."""

    entry: OperationEntry
    job: Job
    operation: Operation
    rows: tuple[Row, ...]

    def items(self) -> list[Item]:
        found = [one for one in self.operation.prepare(self.rows) if isinstance(one, Item)]
        assert len(found) == len(self.rows), "the starter's own rows can all be asked"
        return found

    def pack(self) -> list[Item]:
        return self.items()[: self.operation.limits.items]

    def call(self) -> Call:
        return self.operation.build(self.pack(), AZURE)

    def answer(self) -> Any:
        call = self.call()
        return ANSWERS[call.endpoint](sent(call))

    def parse(self, body: Any) -> list[RowResult]:
        data = body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
        return self.operation.parse(self.pack(), Reply(status=200, headers={}, body=data, latency_ms=1))


@pytest.fixture(params=FOUND, ids=lambda found: found[1])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    return subject_of(*request.param, tmp_path)


@pytest.fixture(params=ASKED, ids=lambda found: found[1])
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    """One whose rows are answered."""
    return subject_of(*request.param, tmp_path)


def subject_of(package: str, name: str, tmp_path: Path) -> Subject:
    entry = operations.get(name, package)
    file = tmp_path / "job.yaml"
    file.write_text(entry.starter)
    (tmp_path / "rows.jsonl").write_text(entry.starter_rows)
    for path, content in entry.starter_files().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    environ = {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "AZURE_OPENAI_API_KEY": "k" * 32}
    job = load_job(file, environ=environ, operations=operations.names(package))
    rows = [json.loads(line) for line in entry.starter_rows.splitlines()]
    return Subject(
        entry=entry,
        job=job,
        operation=entry.factory(job),
        rows=tuple(Row(ordinal=ordinal, values=values) for ordinal, values in enumerate(rows, start=10)),
    )


def check(subject: Subject, results: list[RowResult]) -> None:
    """One result an item, in order; ok rows hold every declared column, and every value fits its type."""
    assert [result.ordinal for result in results] == [item.ordinal for item in subject.pack()]
    schema = subject.operation.settled(subject.operation.facts(results)).schema()
    for result in results:
        assert result.response is None or orjson.loads(result.response) is not None
        if result.ok:
            assert result.values is not None
            assert set(result.values) == set(schema.names)
            for column in schema:
                fit(result.values[column.name], column.type)
        else:
            assert result.values is None


def fit(value: Any, type_: pa.DataType) -> None:
    if pa.types.is_fixed_size_list(type_) and type_.value_type == pa.float32():
        assert isinstance(value, bytes)
        assert len(value) == 4 * type_.list_size
    else:
        pa.array([value], type_)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


def without(value: Any, path: tuple[Any, ...]) -> Any:
    copy = value.copy()
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = without(value[path[0]], path[1:])
    return copy


def test_a_file_in_a_folder_is_an_operation() -> None:
    assert (TOYS, "two-words") in FOUND


def test_it_is_known_by_its_modules_name_and_described_in_a_line(subject: Subject) -> None:
    assert subject.entry.name == subject.operation.name
    assert subject.entry.description
    assert "\n" not in subject.entry.description


def test_its_starter_names_columns_that_the_starters_rows_hold(subject: Subject) -> None:
    assert subject.operation.columns is not None
    for row in subject.rows:
        assert subject.operation.columns <= set(row.values)


def test_it_is_frozen(subject: Subject) -> None:
    with pytest.raises((FrozenInstanceError, AttributeError)):
        subject.operation.name = "another"


def test_its_limits_let_at_least_one_item_through(subject: Subject) -> None:
    limits = subject.operation.limits
    assert limits.items >= 1
    assert limits.tokens is None or limits.tokens >= 1
    assert limits.reply_bytes is None or limits.reply_bytes >= max(item.reply_bytes for item in subject.items())


def test_the_same_rows_give_the_same_bytes(subject: Subject) -> None:
    again = subject.entry.factory(subject.job)
    for target in (AZURE, OPENAI):
        first = subject.operation.build(subject.pack(), target)
        assert first == subject.operation.build(subject.pack(), target)
        assert first == again.build(subject.pack(), target)


def test_preparing_rows_together_or_alone_gives_the_same_items(subject: Subject) -> None:
    alone = [one for row in subject.rows for one in subject.operation.prepare([row])]
    assert alone == subject.operation.prepare(subject.rows)


def test_the_body_names_the_model_only_where_the_path_does_not(asked: Subject) -> None:
    named = sent(asked.operation.build(asked.pack(), AZURE)).get("model")
    assert named == NAMED_IN_THE_BODY.get(asked.entry.name)
    assert sent(asked.operation.build(asked.pack(), OPENAI))["model"] == "the model"


def test_a_call_costs_at_most_what_its_items_do(subject: Subject) -> None:
    least = 0 if subject.entry.name in NO_TOKENS else 1
    assert all(item.tokens >= least for item in subject.pack())
    assert least <= subject.call().tokens <= sum(item.tokens for item in subject.pack())


def test_an_answer_gives_every_row_its_declared_columns(asked: Subject) -> None:
    results = asked.parse(asked.answer())
    check(asked, results)
    assert all(result.ok for result in results)


def test_what_a_run_has_settled_stays_settled(asked: Subject) -> None:
    results = asked.parse(asked.answer())
    settled = asked.operation.settled(asked.operation.facts(results))
    assert settled.facts(results) == {}
    assert settled.settled(settled.facts(results)).schema() == settled.schema()


def test_hostile_rows_are_items_or_errors_and_every_item_builds(subject: Subject) -> None:
    for column in subject.operation.columns or ():
        rows = [Row(ordinal=n, values={**subject.rows[0].values, column: value}) for n, value in enumerate(HOSTILE)]
        prepared = subject.operation.prepare(rows)
        assert len(prepared) == len(rows)
        for one in prepared:
            assert isinstance(one, Item | ErrorInfo)
            if isinstance(one, Item):
                assert sent(subject.operation.build([one], OPENAI))


def test_a_missing_column_is_an_item_or_an_error(subject: Subject) -> None:
    (one,) = subject.operation.prepare([Row(ordinal=0, values={})])
    assert isinstance(one, Item | ErrorInfo)


def test_an_answer_cut_anywhere_is_a_reply_error(asked: Subject) -> None:
    answer = asked.answer()
    body = answer if isinstance(answer, bytes) else orjson.dumps(answer)
    for end in range(0, len(body), 1 + len(body) // 200):
        with pytest.raises(ReplyError):
            asked.parse(body[:end])


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b" ", b"null", b"[]", b"7", b'"x"', b"{}", b"<html>502</html>", b"NaN", b"\xff\xfe", b"[" * 100_000),
        *(b'{"a":' * 100_000, orjson.dumps({f"key{n}": n for n in range(100_000)}), b'{"error":{"message":"no"}}'),
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)
def test_a_body_without_an_answer_is_a_reply_error(subject: Subject, body: bytes) -> None:
    with pytest.raises(ReplyError):
        subject.parse(body)


def test_an_answer_with_anything_wrong_anywhere_is_results_or_a_reply_error(asked: Subject) -> None:
    answer = asked.answer()
    broken = [replaced(answer, path, wrong) for path in places(answer) for wrong in WRONG]
    broken += [without(answer, path) for path in places(answer) if path]
    for body in broken:
        try:
            results = asked.parse(json.dumps(body).encode())
        except ReplyError:
            continue
        check(asked, results)


@pytest.mark.parametrize(
    "message", ["", "no", "input[0]", "input[1]", "input[99999]", "index 2", "input[-1]", "9" * 9999]
)
def test_blame_is_one_of_the_items_or_nobody(subject: Subject, message: str) -> None:
    error = ErrorInfo(type=ErrorType.BAD_REQUEST, code="x", message=message, http_status=400)
    assert subject.operation.blame(subject.pack(), error) in {None, *range(len(subject.pack()))}
