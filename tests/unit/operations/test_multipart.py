"""Forms, read back by the standard library's own parser of MIME."""

from __future__ import annotations

from email import message_from_bytes
from email.message import Message
from typing import Any

import pytest

from pipeline.errors import RowError
from pipeline.operations._multipart import FilePart, encode, form_fields, safe_filename

FILE = FilePart(name="file", filename="a.wav", content_type="audio/wav", content=b"RIFF\r\n--\r\n\0\xff")


def parts(fields: list[tuple[str, str]], file: FilePart = FILE) -> list[Message]:
    body, content_type = encode(fields, file)
    form = message_from_bytes(f"content-type: {content_type}\r\n\r\n".encode() + body)
    assert form.get_content_type() == "multipart/form-data"
    assert not form.defects
    return list(form.get_payload())


def name(part: Message) -> Any:
    return part.get_param("name", header="content-disposition")


def content(part: Message) -> Any:
    return part.get_payload(decode=True)


@pytest.mark.parametrize(
    ("value", "fields"),
    [
        ("en", [("f", "en")]),
        ("", [("f", "")]),
        (0, [("f", "0")]),
        (0.2, [("f", "0.2")]),
        (True, [("f", "true")]),
        (False, [("f", "false")]),
        (None, []),
        ([], []),
        ({}, []),
        (["word", "segment"], [("f[]", "word"), ("f[]", "segment")]),
        ({"type": "server_vad", "threshold": 0.5}, [("f[type]", "server_vad"), ("f[threshold]", "0.5")]),
        ({"a": ["x", None, "y"], "b": None}, [("f[a][]", "x"), ("f[a][]", "y")]),
    ],
)
def test_values_are_spelt_as_the_sdks_spell_them(value: Any, fields: list[tuple[str, str]]) -> None:
    assert list(form_fields("f", value)) == fields


@pytest.mark.parametrize("value", ["\ud800", {"\ud800": "x"}, ["ok", "\udfff"]])
def test_half_a_surrogate_pair_is_the_rows_error(value: Any) -> None:
    with pytest.raises(RowError) as caught:
        list(form_fields("f", value))
    assert caught.value.code == "type"


def test_fields_come_in_order_and_the_file_comes_last() -> None:
    found = parts([("model", "whisper-1"), ("t[]", "word"), ("t[]", "segment"), ("prompt", "Wörter, 词")])
    assert [(name(part), content(part).decode()) for part in found[:-1]] == [
        ("model", "whisper-1"),
        ("t[]", "word"),
        ("t[]", "segment"),
        ("prompt", "Wörter, 词"),
    ]
    assert name(found[-1]) == "file"
    assert found[-1].get_filename() == "a.wav"
    assert found[-1].get_content_type() == "audio/wav"
    assert content(found[-1]) == FILE.content


def test_only_the_file_says_a_type() -> None:
    field, file = parts([("a", "b")])
    assert field["content-type"] is None
    assert file["content-type"] == "audio/wav"


@pytest.mark.parametrize("value", ["", "\r\n", "a\r\n\r\n--b\r\n", '"', "--", "\r\n--\r\n", "a\nb", "\0"])
def test_any_text_is_carried_as_it_is(value: str) -> None:
    assert content(parts([("prompt", value)])[0]).decode() == value


def test_a_fields_name_cannot_leave_its_quotes() -> None:
    (field, _) = parts([('a"\r\nX-Evil: 1\r\n\r\n', "x")])
    assert field.keys() == ["Content-Disposition"]
    assert name(field) == "a%22%0D%0AX-Evil: 1%0D%0A%0D%0A"
    assert content(field) == b"x"


def test_the_same_parts_give_the_same_bytes_and_others_another_boundary() -> None:
    first = encode([("a", "b")], FILE)
    assert first == encode([("a", "b")], FILE)
    assert first[1] != encode([("a", "c")], FILE)[1]


def test_a_part_that_holds_another_forms_boundary_is_carried_whole() -> None:
    body, _ = encode([("a", "b")], FILE)
    carrier = FilePart(name="file", filename="b.wav", content_type="audio/wav", content=body)
    assert content(parts([("a", "b")], carrier)[-1]) == body


def test_a_body_is_not_shown_where_a_part_is() -> None:
    assert "RIFF" not in repr(FILE)


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ("talk.wav", "talk.mp3"),
        ("talk.MP3", "talk.mp3"),
        ("talk", "talk.mp3"),
        ("talk.2024.wav", "talk.2024.mp3"),
        ("calls/monday/talk.wav", "talk.mp3"),
        ("C:\\calls\\talk.wav", "talk.mp3"),
        ("../../etc/passwd", "passwd.mp3"),
        ("", "file.mp3"),
        (".wav", "wav.mp3"),
        ("...", "file.mp3"),
        ("/", "file.mp3"),
        ("прив ет.wav", "file.mp3"),
        ("Grüße 3.wav", "Gr_e_3.mp3"),
        ('a"; name="model.wav', "a_name_model.mp3"),
        ("a\r\nb\0.wav", "a_b.mp3"),
        ("\ud800.wav", "file.mp3"),
        ("x" * 500 + ".wav", "x" * 100 + ".mp3"),
    ],
)
def test_a_filename_is_plain_and_its_extension_is_the_contents(said: str, sent: str) -> None:
    assert safe_filename(said, "mp3") == sent
