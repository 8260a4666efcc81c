"""Pictures of chat and responses: from files, from columns, by address."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pybase64
import pytest

from pipeline.errors import MediaError
from pipeline.model import ErrorInfo, ErrorType, Item, Row, Target
from pipeline.operations import _pictures
from pipeline.operations.base import Operation

AZURE = Target(deployment="d", model="m", body_model=None)
HEADS = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe0",
    "gif": b"GIF89a",
    "webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
}
PNG = HEADS["png"] + b"\x00\xff rest of it"
FILE = {"type": "image_file", "image_file": {"path": "{{ path }}", "detail": "low"}}
DATA = {"type": "image_file", "image_file": {"data": "{{ photo }}"}}
TEXT = {"type": "text", "text": "What is it?"}
WHOLE = {"messages": "{{ messages }}"}


def chat_request(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def prepared(operation: Operation, **values: Any) -> Item | ErrorInfo:
    (one,) = operation.prepare([Row(ordinal=0, values=values)])
    return one


def item(operation: Operation, **values: Any) -> Item:
    one = prepared(operation, **values)
    assert isinstance(one, Item), one
    return one


def error(operation: Operation, **values: Any) -> ErrorInfo:
    one = prepared(operation, **values)
    assert isinstance(one, ErrorInfo), one
    return one


def sent(operation: Operation, **values: Any) -> Any:
    return json.loads(operation.build([item(operation, **values)], AZURE).body)


def parts(body: Any) -> Any:
    return body.get("messages", body.get("input"))[0]["content"]


def url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{pybase64.b64encode(content).decode()}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(PNG)
    for kind, head in HEADS.items():
        (tmp_path / kind).write_bytes(head + b"rest")
    return tmp_path


@pytest.mark.parametrize("kind", HEADS)
def test_a_file_is_sent_as_a_data_url_whose_kind_its_first_bytes_tell(make: Any, root: Path, kind: str) -> None:
    chat = make("chat", chat_request(TEXT, FILE), source={"media_root": root})
    image = {"type": "image_url", "image_url": {"url": url(kind, HEADS[kind] + b"rest"), "detail": "low"}}
    assert parts(sent(chat, path=kind)) == [TEXT, image]


def test_a_file_of_a_response_takes_that_apis_own_form(make: Any, root: Path) -> None:
    request = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, FILE]}]}
    responses = make("responses", request, source={"media_root": root})
    image = {"type": "input_image", "image_url": url("png", PNG), "detail": "low"}
    assert parts(sent(responses, path="deep/a.png"))[1] == image


@pytest.mark.parametrize("value", [PNG, bytearray(PNG), memoryview(PNG), pybase64.b64encode(PNG).decode()])
def test_a_binary_column_is_sent_as_a_data_url(make: Any, value: Any) -> None:
    chat = make("chat", chat_request(TEXT, DATA))
    assert chat.columns == {"photo"}
    assert chat.reads_files
    assert parts(sent(chat, photo=value))[1] == {"type": "image_url", "image_url": {"url": url("png", PNG)}}


@pytest.mark.parametrize("source", ["{{ row['my photo'] }}", "{{ row.photo }}"])
def test_a_binary_column_may_have_any_name(make: Any, source: str) -> None:
    chat = make("chat", chat_request({"type": "image_file", "image_file": {"data": source}}))
    (name,) = chat.columns
    assert parts(sent(chat, **{name: PNG}))[0]["image_url"]["url"] == url("png", PNG)


@pytest.mark.parametrize(
    ("value", "code"),
    [(None, "type"), (5, "type"), ("no base64!", "type"), ([PNG], "type"), (b"", "empty"), (b"<svg/>", "kind")],
)
def test_a_column_that_holds_no_picture_is_an_error(make: Any, value: Any, code: str) -> None:
    assert error(make("chat", chat_request(DATA)), photo=value).code == code


def test_rows_may_bring_whole_messages_that_name_pictures(make: Any, root: Path) -> None:
    chat = make("chat", WHOLE, source={"media_root": root})
    encoded = pybase64.b64encode(PNG).decode()
    messages = [
        {"role": "user", "content": [{"type": "image_file", "image_file": {"path": "deep/a.png"}}]},
        {"role": "assistant", "content": "A dot."},
        {"role": "user", "content": [TEXT, {"type": "image_file", "image_file": {"data": encoded}}]},
    ]
    body = sent(chat, messages=messages)
    assert body["messages"][0]["content"][0]["image_url"]["url"] == url("png", PNG)
    assert body["messages"][2]["content"][1]["image_url"]["url"] == url("png", PNG)
    assert messages[0]["content"][0] == {"type": "image_file", "image_file": {"path": "deep/a.png"}}


def test_pictures_keep_their_places(make: Any, root: Path) -> None:
    images = [{"type": "image_file", "image_file": {"path": "{{ " + kind + " }}"}} for kind in HEADS]
    chat = make("chat", chat_request(*images, TEXT, DATA), source={"media_root": root})
    body = sent(chat, photo=PNG, **{kind: kind for kind in HEADS})
    urls = [part["image_url"]["url"] for part in parts(body) if part["type"] == "image_url"]
    assert urls == [*(url(kind, HEADS[kind] + b"rest") for kind in HEADS), url("png", PNG)]


def test_the_jobs_own_request_is_not_changed_by_a_row(make: Any, root: Path) -> None:
    request = chat_request({"type": "image_file", "image_file": {"path": "png"}})
    chat = make("chat", request, source={"media_root": root})
    assert sent(chat) == sent(chat)
    assert request == chat_request({"type": "image_file", "image_file": {"path": "png"}})


@pytest.mark.parametrize("text", ["\\xff", "ÿ", '"', "\x00", '"\\u00ff"'])
def test_no_text_is_taken_for_a_pictures_place(make: Any, root: Path, text: str) -> None:
    chat = make("chat", chat_request({"type": "text", "text": "{{ text }}"}, FILE), source={"media_root": root})
    got = parts(sent(chat, text=text, path="png"))
    assert got[0]["text"] == text
    assert got[1]["image_url"]["url"] == url("png", HEADS["png"] + b"rest")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../a.png", "path"),
        ("/etc/passwd", "path"),
        ("link", "path"),
        ("deep/../png", "path"),
        (None, "path"),
        (5, "path"),
        ("", "path"),
        ("none.png", "not_found"),
        ("deep", "not_a_file"),
        ("empty", "empty"),
        ("text", "kind"),
        ("large", "too_large"),
    ],
)
def test_a_file_that_cannot_be_sent_is_a_media_error(make: Any, root: Path, path: Any, code: str) -> None:
    (root / "link").symlink_to(root / "png")
    (root / "empty").touch()
    (root / "text").write_text("secret")
    with (root / "large").open("wb") as file:
        file.write(PNG)
        os.truncate(file.fileno(), 20 * 2**20 + 1)
    found = error(make("chat", chat_request(FILE), source={"media_root": root}), path=path)
    assert (found.type, found.code) == (ErrorType.MEDIA, code)
    assert "secret" not in found.message


def test_a_file_needs_a_media_root(make: Any) -> None:
    chat = make("chat", chat_request(FILE))
    assert error(chat, path="a.png").code == "no_media_root"
    assert not chat.reads_files


def test_build_reads_files_only_where_rows_may_name_some(make: Any, root: Path) -> None:
    assert make("chat", WHOLE, source={"media_root": root}).reads_files
    assert make("responses", {"input": "{{ q }}"}, source={"media_root": root}).reads_files
    assert not make("responses", {"input": "{{ q }}"}).reads_files


def test_a_file_that_changed_since_is_a_media_error_when_it_is_read(make: Any, root: Path) -> None:
    chat = make("chat", chat_request(FILE), source={"media_root": root})
    asked = item(chat, path="png")
    (root / "png").write_bytes(PNG * 2)
    with pytest.raises(MediaError) as raised:
        chat.build([asked], AZURE)
    assert raised.value.code == "changed"


@pytest.mark.parametrize(
    "named", [None, "a.png", {}, {"detail": "low"}, {"path": "png", "data": "x"}, {"file_id": "x"}]
)
def test_a_part_that_names_no_picture_is_a_row_error(make: Any, root: Path, named: Any) -> None:
    messages = chat_request({"type": "image_file", "image_file": named})["messages"]
    found = error(make("chat", WHOLE, source={"media_root": root}), messages=messages)
    assert (found.type, found.code) == (ErrorType.ROW, "type")


def test_a_request_holds_at_most_fifty_pictures(make: Any, root: Path) -> None:
    chat = make("chat", WHOLE, source={"media_root": root})
    by_file = {"type": "image_file", "image_file": {"path": "png"}}
    by_url = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    fifty = [by_file] * 25 + [by_url] * 25
    assert isinstance(prepared(chat, messages=chat_request(*fifty)["messages"]), Item)
    assert error(chat, messages=chat_request(*fifty, by_url)["messages"]).code == "too_long"
    split = [{"role": "user", "content": fifty}, {"role": "user", "content": [by_file]}]
    assert error(chat, messages=split).code == "too_long"


def test_the_pictures_of_one_request_are_bounded_together(make: Any, root: Path) -> None:
    with (root / "big").open("wb") as file:
        file.write(PNG)
        os.truncate(file.fileno(), 20 * 2**20)
    chat = make("chat", WHOLE, source={"media_root": root})
    big = {"type": "image_file", "image_file": {"path": "big"}}
    assert isinstance(prepared(chat, messages=chat_request(big, big)["messages"]), Item)
    found = error(chat, messages=chat_request(big, big, big)["messages"])
    assert (found.type, found.code) == (ErrorType.MEDIA, "too_large")


def test_an_item_that_waits_holds_nothing_of_its_files(make: Any, root: Path) -> None:
    with (root / "big").open("wb") as file:
        file.write(PNG)
        os.truncate(file.fileno(), 2**20)
    chat = make("chat", chat_request(FILE), source={"media_root": root})
    tracemalloc.start()
    try:
        items = [prepared(chat, path="big") for _ in range(20)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(items) == 20
    assert held < 200_000


@pytest.mark.parametrize("name", ["chat", "responses"])
@pytest.mark.parametrize(
    "address",
    [
        "https://example.org/a.png?sig=x",
        "http://example.org/a.png",
        "HTTPS://example.org/a.png",
        "https://8.8.8.8/a.png",
        "https://[2606:4700::1]/a.png",
        "https://bücher.example/ä.png",
        "https://127.0.0.1.example.org/a.png",
        "data:image/png;base64,AAAA",
    ],
)
def test_a_public_address_is_sent_as_it_is(make: Any, name: str, address: str) -> None:
    part = {"type": "image_url", "image_url": {"url": "{{ url }}"}}
    if name == "responses":
        part = {"type": "input_image", "image_url": "{{ url }}"}
    request = chat_request(part) if name == "chat" else {"input": chat_request(part)["messages"]}
    got = parts(sent(make(name, request), url=address))[0]["image_url"]
    assert (got["url"] if name == "chat" else got) == address


ELSEWHERE = [
    "http://localhost/a.png",
    "http://LOCALHOST./a.png",
    "http://x.localhost/a.png",
    "http://printer.local/a.png",
    "http://metadata.google.internal/a.png",
    "http://intranet/a.png",
    "http://127.0.0.1/a.png",
    "http://127.1/a.png",
    "http://0x7f000001/a.png",
    "http://2130706433/a.png",
    "http://0177.0.0.1/a.png",
    "http://0/a.png",
    "http://10.1.2.3/a.png",
    "http://172.16.0.1/a.png",
    "http://192.168.1.1:8080/a.png",
    "http://100.64.0.1/a.png",
    "http://169.254.169.254/latest/meta-data",
    "http://224.0.0.1/a.png",
    "http://user:secret@127.0.0.1/a.png",
    "http://%31%32%37.0.0.1/a.png",
    "http://\uff11\uff12\uff17.0.0.1/a.png",
    "http://[::1]/a.png",
    "http://[::]/a.png",
    "http://[fe80::1]/a.png",
    "http://[fe80::1%25eth0]/a.png",
    "http://[fd00::1]/a.png",
    "http://[::ffff:127.0.0.1]/a.png",
    "http://[64:ff9b::7f00:1]/a.png",
    "http://[2002:7f00:1::]/a.png",
    "http://example.org\\@127.0.0.1/a.png",
    "http://127.0.0.1\t.example.org/a.png",
    "file:///etc/passwd",
    "ftp://example.org/a.png",
    "gopher://example.org/a.png",
    "javascript:alert(1)",
    "//example.org/a.png",
    "a.png",
    "https:///a.png",
    "https://[::1",
    " https://example.org/a.png",
]


@pytest.mark.parametrize("address", ELSEWHERE)
def test_an_address_that_is_not_the_publics_is_refused_without_repeating_it(make: Any, address: str) -> None:
    chat = make("chat", chat_request({"type": "image_url", "image_url": {"url": "{{ url }}"}}))
    found = error(chat, url=address)
    assert (found.type, found.code) == (ErrorType.MEDIA, "address")
    assert address not in found.message
    responses = make("responses", {"input": "{{ input }}"})
    content = [{"type": "input_image", "image_url": address}]
    assert error(responses, input=[{"role": "user", "content": content}]).code == "address"


@pytest.mark.parametrize("address", [None, "", 5, ["https://example.org"], {}])
def test_an_address_that_is_no_text_is_a_row_error(make: Any, address: Any) -> None:
    messages = chat_request({"type": "image_url", "image_url": {"url": address}})["messages"]
    found = error(make("chat", WHOLE), messages=messages)
    assert (found.type, found.code) == (ErrorType.ROW, "type")


def test_a_picture_that_the_service_keeps_needs_no_address(make: Any) -> None:
    part = {"type": "input_image", "file_id": "file-1", "detail": "low"}
    responses = make("responses", {"input": [{"role": "user", "content": [part]}]})
    assert parts(sent(responses)) == [part]


def test_a_data_url_of_more_than_twenty_megabytes_is_a_media_error(make: Any) -> None:
    chat = make("chat", chat_request({"type": "image_url", "image_url": {"url": "{{ url }}"}}))
    most = _pictures.MAX_PICTURE_BYTES // 3 * 4
    assert isinstance(prepared(chat, url="data:image/png;base64," + "A" * most), Item)
    assert error(chat, url="data:image/png;base64," + "A" * (most + 8)).code == "too_large"


def test_files_count_as_pictures_by_their_detail(make: Any, root: Path) -> None:
    high = {"type": "image_file", "image_file": {"path": "png"}}
    low = {"type": "image_file", "image_file": {"path": "png", "detail": "low"}}
    for name, key in (("chat", "messages"), ("responses", "input")):
        estimates = [
            item(make(name, {key: chat_request(part)["messages"]}, source={"media_root": root})).tokens
            for part in (high, low)
        ]
        assert estimates == [_pictures.PICTURE_TOKENS + 16, _pictures.LOW_DETAIL_PICTURE_TOKENS + 16]
