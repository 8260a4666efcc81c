from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson
import pyarrow as pa
import pybase64
import pytest

from pipeline.errors import JobFileError, ReplyError
from pipeline.job.tokens import estimate
from pipeline.model import ErrorInfo, ErrorType, Item, OutputFile, Reply, Row, RowResult, Target, Usage
from pipeline.operations import image as module
from pipeline.operations._media_out import COLUMN_BYTES, PATH_BYTES
from pipeline.operations.base import Fetching, Operation

PNG = b"\x89PNG\r\n\x1a\nand so on"
GPT = Target(deployment="d", model="gpt-image-1", body_model=None)
DALL_E = Target(deployment="d", model="dall-e-3", body_model=None)
OPENAI = Target(deployment="d", model="dall-e-3", body_model="dall-e-3")
OTHER = Target(deployment="d", model="pictures", body_model="pictures")
DRAW = {"prompt": "{{ q }}"}
ON_DALL_E = ({"deployment": "dall-e-3"},)
SAFE = {"hate": {"filtered": False, "severity": "safe"}}


def prepared(operation: Operation, **values: Any) -> Item | ErrorInfo:
    (one,) = operation.prepare([Row(ordinal=7, values=values)])
    return one


def item(operation: Operation, **values: Any) -> Item:
    one = prepared(operation, **values)
    assert isinstance(one, Item), one
    return one


def code(operation: Operation, **values: Any) -> str:
    one = prepared(operation, **values)
    assert isinstance(one, ErrorInfo), one
    assert one.type is ErrorType.ROW
    return one.code


def answer(operation: Operation, body: Any) -> RowResult:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    (result,) = operation.parse([item(operation, q="hi")], Reply(status=200, headers={}, body=data, latency_ms=1))
    assert result.ordinal == 7
    return result


def drawn(content: bytes = PNG, **entry: Any) -> dict[str, Any]:
    return {"created": 1, "data": [{"b64_json": pybase64.b64encode(content).decode(), **entry}]}


def at(url: Any = "https://pictures.example.net/a.png?sig=secret", **entry: Any) -> dict[str, Any]:
    return {"created": 1, "data": [{"url": url, **entry}]}


def sent(operation: Operation, target: Target, **values: Any) -> Any:
    return json.loads(operation.build([item(operation, **(values or {"q": "hi"}))], target).body)


def test_a_request_holds_what_the_job_says_and_the_rows_values(make: Any) -> None:
    fields = {"size": "1024x1536", "quality": "low", "output_format": "jpeg", "output_compression": 80, "n": 1}
    image = make("image", {**DRAW, **fields, "background": "opaque", "moderation": "low", "user": "u", "new": {"x": 1}})
    call = image.build([item(image, q="hi")], GPT)
    assert (call.endpoint, call.content_type, call.accept) == (
        "images/generations",
        "application/json",
        "application/json",
    )
    others = {"background": "opaque", "moderation": "low", "user": "u", "new": {"x": 1}}
    assert json.loads(call.body) == {"prompt": "hi", **fields, **others}


@pytest.mark.parametrize(
    ("target", "front"),
    [
        (GPT, {}),
        (OTHER, {"model": "pictures"}),
        (DALL_E, {"response_format": "b64_json"}),
        (OPENAI, {"model": "dall-e-3", "response_format": "b64_json"}),
    ],
)
def test_only_dall_e_is_asked_for_base64(make: Any, target: Target, front: dict[str, str]) -> None:
    image = make("image", {**DRAW, "model": "x"}, deployments=ON_DALL_E)
    body = sent(image, target)
    assert body == {**front, "prompt": "hi"}
    assert list(body)[: len(front)] == list(front)


@pytest.mark.parametrize("format_", ["url", "b64_json"])
def test_dall_e_answers_as_the_job_says(make: Any, format_: str) -> None:
    for request, values in (({"response_format": format_}, {}), ({"response_format": "{{ f }}"}, {"f": format_})):
        image = make("image", {**DRAW, **request}, deployments=ON_DALL_E)
        asked = item(image, q="hi", **values)
        assert image.build([asked], DALL_E).body.count(b"response_format") == 1
        assert sent(image, DALL_E, q="hi", **values) == {"prompt": "hi", "response_format": format_}


def test_a_row_without_a_format_has_base64(make: Any) -> None:
    image = make("image", {**DRAW, "response_format": "{{ f }}"}, deployments=ON_DALL_E)
    assert sent(image, DALL_E, q="hi", f=None) == {"response_format": "b64_json", "prompt": "hi"}


@pytest.mark.parametrize("value", ["url", "b64_json", None, "{{ f }}"])
@pytest.mark.parametrize("others", [(), ON_DALL_E])
def test_a_format_is_refused_where_a_deployment_is_gpt_image(make: Any, value: Any, others: tuple[Any, ...]) -> None:
    with pytest.raises(JobFileError) as caught:
        make("image", {**DRAW, "response_format": value}, deployments=({}, *others))
    (problem,) = caught.value.problems
    assert problem.path == "request.response_format"
    assert "gpt-image" in problem.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", value) for value in (0, 2, 10, -1, "1", True, 1.0, None)),
        *(("stream", value) for value in (True, "false", None)),
        *(("response_format", value) for value in ("png", 3, None)),
    ],
)
def test_what_no_row_could_be_asked_with_is_refused_before_anything_is_sent(make: Any, name: str, value: Any) -> None:
    with pytest.raises(JobFileError) as caught:
        make("image", {**DRAW, name: value}, deployments=ON_DALL_E)
    assert [problem.path for problem in caught.value.problems] == [f"request.{name}"]
    image = make("image", {**DRAW, name: "{{ x }}"}, deployments=ON_DALL_E)
    if value is None:
        assert isinstance(prepared(image, q="hi", x=value), Item)
    else:
        assert code(image, q="hi", x=value) == "unsupported"


def test_a_job_without_a_prompt_is_refused(make: Any) -> None:
    with pytest.raises(JobFileError) as caught:
        make("image", {"n": 3})
    assert {problem.path for problem in caught.value.problems} == {"request.prompt", "request.n"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "empty"), ("", "empty"), (5, "type"), (["x"], "type"), ({}, "type"), ("\ud800", "type")],
)
def test_a_prompt_that_cannot_be_drawn_is_a_row_error(make: Any, value: Any, expected: str) -> None:
    assert code(make("image", DRAW), q=value) == expected


@pytest.mark.parametrize(
    ("models", "most"),
    [
        (("gpt-image-1",), 32_000),
        (("GPT-Image-1.5", "gpt-image-1-mini"), 32_000),
        (("dall-e-3",), 4_000),
        (("Dalle3",), 4_000),
        (("dall-e-3", "gpt-image-1"), 32_000),
        (("dall-e-3", "flux"), None),
        (("my-pictures",), None),
    ],
)
def test_a_prompt_is_too_long_where_every_model_would_refuse_it(
    make: Any, models: tuple[str, ...], most: int | None
) -> None:
    image = make("image", DRAW, deployments=tuple({"model": model} for model in models))
    if most is None:
        assert isinstance(prepared(image, q="x" * 100_000), Item)
    else:
        assert isinstance(prepared(image, q="\u00e4" * most), Item)
        assert code(image, q="\u00e4" * (most + 1)) == "too_long"


def test_a_row_errors_message_holds_nothing_of_the_row(make: Any) -> None:
    one = prepared(make("image", DRAW), q="top secret" * 10_000)
    assert isinstance(one, ErrorInfo)
    assert "secret" not in one.message


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"size": "1024x1024", "quality": "low"}, 272),
        ({"size": "1024x1024", "quality": "medium"}, 1056),
        ({"size": "1024x1024", "quality": "high"}, 4160),
        ({"size": "1024x1536", "quality": "low"}, 408),
        ({"size": "1024x1536"}, 6240),
        ({"size": "auto", "quality": "auto"}, 6240),
        ({}, 6240),
        ({"size": 5, "quality": [1]}, 6240),
        ({"size": "9" * 5000 + "x1"}, 6240),
        ({"size": "\u00b2x\u00b2", "quality": "low"}, 408),
    ],
)
def test_gpt_image_counts_the_prompt_and_the_picture(make: Any, fields: dict[str, Any], tokens: int) -> None:
    image = make("image", {**DRAW, **fields})
    asked = item(image, q="x" * 41)
    assert asked.tokens == estimate(41) + tokens
    assert image.build([asked], GPT).tokens == asked.tokens


def test_other_models_count_the_prompt_alone(make: Any) -> None:
    assert item(make("image", DRAW, deployments=ON_DALL_E), q="x" * 41).tokens == estimate(41)


@pytest.mark.parametrize(
    ("media", "fields", "expected"),
    [
        ("column", {"size": "1024x1024"}, 2 * 1024 * 1024),
        ("column", {"size": "1024x1024", "output_format": "jpeg"}, 1024 * 1024 // 2),
        ("column", {"size": "99999x99999"}, 2 * 10_000 * 10_000),
        ("column", {"output_format": []}, 2 * 1024 * 1536),
        ("files", {}, PATH_BYTES),
        ("auto", {"size": "1024x1024"}, PATH_BYTES),
        ("auto", {"size": "1024x1024", "output_format": "jpeg"}, 1024 * 1024 // 2),
    ],
)
def test_a_range_expects_what_its_part_will_hold(make: Any, media: str, fields: dict[str, Any], expected: int) -> None:
    assert item(make("image", {**DRAW, **fields}, media=media), q="hi").reply_bytes == expected


PICTURES = {
    "png": PNG,
    "jpg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "webp": b"RIFF\x10\0\0\0WEBPVP8 ",
    "gif": b"GIF89a\1\0",
}


@pytest.mark.parametrize(("kind", "content"), [*PICTURES.items(), ("gif", b"GIF87a\1\0")])
def test_a_picture_is_of_the_kind_that_its_first_bytes_say(make: Any, kind: str, content: bytes) -> None:
    image = make("image", {**DRAW, "output_format": "png"}, media="files")
    result = answer(image, drawn(content))
    assert result.files == (OutputFile(column="image_path", suffix=kind, content=content),)
    assert result.values == {"revised_prompt": None, "content_filter": None}
    assert replace(image.fetched(answer(image, at()), content), response=None) == result


def test_a_picture_stands_in_its_column_with_what_the_service_says_of_it(make: Any) -> None:
    image = make("image", DRAW)
    body = drawn(revised_prompt="Hi, in oil.", content_filter_results=SAFE, prompt_filter_results=SAFE)
    body["usage"] = {
        "input_tokens": 9,
        "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
        "output_tokens": 272,
        "total_tokens": 281,
    }
    result = answer(image, body)
    assert result.values == {
        "image": PNG,
        "image_path": None,
        "revised_prompt": "Hi, in oil.",
        "content_filter": json.dumps({"prompt": SAFE, "completion": SAFE}, separators=(",", ":")),
    }
    assert set(result.values) == set(image.schema().names)
    assert result.usage == Usage(input_tokens=9, output_tokens=272, total_tokens=281)
    assert (result.files, result.fetch, result.again, result.response) == ((), None, None, None)


def test_dall_e_names_no_usage(make: Any) -> None:
    assert answer(make("image", DRAW, deployments=ON_DALL_E), drawn()).usage is None


@pytest.mark.parametrize(("over", "in_a_file"), [(0, False), (1, True)])
def test_a_picture_over_a_megabyte_goes_to_a_file(make: Any, over: int, in_a_file: bool) -> None:  # noqa: FBT001
    content = PNG + bytes(COLUMN_BYTES - len(PNG) + over)
    result = answer(make("image", DRAW), drawn(content))
    assert result.values is not None
    assert result.values["image"] == (None if in_a_file else content)
    assert [file.column for file in result.files] == (["image_path"] if in_a_file else [])
    assert ("image_path" in result.values) is not in_a_file


@pytest.mark.parametrize(
    ("media", "names"),
    [
        ("auto", {"image": pa.binary(), "image_path": pa.string()}),
        ("column", {"image": pa.binary()}),
        ("files", {"image_path": pa.string()}),
    ],
)
def test_the_columns_are_those_that_the_job_asks_for(make: Any, media: str, names: dict[str, pa.DataType]) -> None:
    texts = {"revised_prompt": pa.string(), "content_filter": pa.string()}
    assert make("image", DRAW, media=media).schema() == pa.schema({**names, **texts})


def test_a_url_is_left_to_be_fetched_and_then_completes_the_row(make: Any) -> None:
    image = make("image", {**DRAW, "response_format": "url"}, deployments=ON_DALL_E)
    assert isinstance(image, Fetching)
    waiting = answer(image, at(revised_prompt="Hi, in oil.", content_filter_results=SAFE))
    assert waiting.fetch == "https://pictures.example.net/a.png?sig=secret"
    assert waiting.ok
    assert waiting.response is not None
    assert b"sig=" not in waiting.response
    done = image.fetched(waiting, PNG)
    assert done.fetch is None
    assert done.values is not None
    assert (done.values["image"], done.values["revised_prompt"]) == (PNG, "Hi, in oil.")
    assert json.loads(done.values["content_filter"]) == {"completion": SAFE}
    assert set(done.values) == set(image.schema().names)


def test_base64_wins_over_a_url(make: Any) -> None:
    result = answer(make("image", DRAW), drawn(url="https://pictures.example.net/"))
    assert (result.fetch, result.values and result.values["image"]) == (None, PNG)


@pytest.mark.parametrize(
    "content", [b"", b"<html>expired</html>", b"{}", b"RIFF\0\0\0\0WAVE", b"\x89PN", b"BM", b"%PDF-"]
)
def test_what_is_no_picture_is_a_reply_error_however_it_came(make: Any, content: bytes) -> None:
    image = make("image", DRAW)
    with pytest.raises(ReplyError):
        answer(image, drawn(content))
    with pytest.raises(ReplyError):
        image.fetched(answer(image, at()), content)


@pytest.mark.parametrize("encoded", ["", "x", "!!!!", "iVBO Rw0K", "iVBORw0KGgo", "\u00e4" * 4])
def test_base64_that_is_none_is_a_reply_error(make: Any, encoded: str) -> None:
    with pytest.raises(ReplyError):
        answer(make("image", DRAW), {"data": [{"b64_json": encoded}]})


@pytest.mark.parametrize("stray", ["!", " ", "\n", "\u00e4"])
def test_base64_with_anything_else_in_it_is_a_reply_error(make: Any, stray: str) -> None:
    encoded = pybase64.b64encode(PNG).decode()
    with pytest.raises(ReplyError):
        answer(make("image", DRAW), {"data": [{"b64_json": encoded[:8] + stray + encoded[8:]}]})


@pytest.mark.parametrize("url", ["", "a.png", "file:///etc/passwd", "data:image/png;base64,AA", "x" * 99, 5, None, {}])
def test_a_url_that_is_none_is_a_reply_error(make: Any, url: Any) -> None:
    with pytest.raises(ReplyError) as caught:
        answer(make("image", DRAW), at(url))
    assert "passwd" not in caught.value.message


def test_a_url_without_an_end_is_a_reply_error(make: Any) -> None:
    with pytest.raises(ReplyError):
        answer(make("image", DRAW), at("https://x.example/" + "a" * 20_000))


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": []}, {"data": ["x"]}, {"data": [{}]}, {"data": {}}])
def test_a_reply_without_a_picture_is_a_reply_error(make: Any, body: Any) -> None:
    with pytest.raises(ReplyError):
        answer(make("image", DRAW), body)


def test_a_picture_that_the_filter_withheld_is_the_rows_end(make: Any) -> None:
    found = {"violence": {"filtered": True, "severity": "high"}, "hate": {"filtered": False}}
    body = {"data": [{"content_filter_results": found}], "usage": {"input_tokens": 3}}
    result = answer(make("image", DRAW), body)
    assert result.error is not None
    assert (result.error.code, result.error.http_status) == ("content_filter", 200)
    assert result.values is None
    assert result.usage == Usage(input_tokens=3)
    assert result.response is not None
    assert orjson.loads(result.response) == body


@pytest.mark.parametrize("found", [SAFE, {}, None, [], {"hate": None}, {"hate": {"filtered": "true"}}], ids=repr)
def test_a_missing_picture_that_nobody_withheld_is_a_reply_error(make: Any, found: Any) -> None:
    with pytest.raises(ReplyError):
        answer(make("image", DRAW), {"data": [{"content_filter_results": found}]})


@pytest.mark.parametrize("raw", ["auto", "failed", "none"])
def test_the_reply_is_not_kept_where_the_job_does_not_ask_for_it(make: Any, raw: str) -> None:
    assert answer(make("image", DRAW, raw=raw), drawn()).response is None


def test_the_reply_that_is_kept_holds_neither_pictures_nor_the_keys_to_them(make: Any) -> None:
    image = make("image", DRAW, raw="all")
    body = drawn(PNG * 100_000, revised_prompt="x")
    body["data"].append({"b64_json": "AAAA", "url": "https://pictures.example.net/b.png?sig=secret"})
    kept = answer(image, body).response
    assert kept is not None
    assert len(kept) < 200
    assert orjson.loads(kept) == {
        "created": 1,
        "data": [{"revised_prompt": "x"}, {"url": "https://pictures.example.net/b.png"}],
    }
    waiting = answer(image, at())
    assert waiting.response is not None
    assert b"secret" not in waiting.response
    assert image.fetched(waiting, PNG).response == waiting.response


def test_an_item_holds_its_prompt_once(make: Any) -> None:
    assert len(item(make("image", DRAW), q="x" * 30_000).content.body) < 30_100


def test_pictures_fix_nothing_and_blame_nobody(make: Any) -> None:
    image = make("image", DRAW)
    error = ErrorInfo(type=ErrorType.BAD_REQUEST, code="x", message="input[0]", http_status=400)
    assert image.blame([item(image, q="hi")], error) is None
    assert image.facts([answer(image, drawn())]) == {}
    assert image.settled({}) is image


def test_the_starter_asks_for_a_family_that_it_names() -> None:
    assert module.family("gpt-image-1") == "gpt-image"
    assert "model: gpt-image-1" in module.OPERATION.starter
