"""Forms are taken apart strictly."""

from __future__ import annotations

import random

import httpx
import pytest

from pipeline.simulator.multipart import Form, Upload, read_form

TYPE = "multipart/form-data; boundary=B"
FILE = (
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"\0\r\n--C\r\n\xff\r\n--B--\r\n"
)


def field(name: str, value: str) -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def test_fields_and_files_are_read_in_their_order() -> None:
    body = field("model", "whisper") + field("g[]", "word") + field("g[]", "segment") + field("empty", "") + FILE
    assert read_form(body, TYPE) == {
        "model": ["whisper"],
        "g[]": ["word", "segment"],
        "empty": [""],
        "file": [Upload(filename="a.wav", content_type="audio/wav", content=b"\0\r\n--C\r\n\xff")],
    }


def test_an_empty_form_has_no_fields() -> None:
    assert read_form(b"--B--", TYPE) == {}


@pytest.mark.parametrize(
    "content_type", ['multipart/form-data; boundary="B"', "Multipart/Form-Data;charset=x;boundary=B"]
)
def test_the_boundary_is_read_as_it_may_be_written(content_type: str) -> None:
    assert read_form(field("a", "b") + b"--B--", content_type) == {"a": ["b"]}


def test_what_is_before_and_behind_the_boundaries_says_nothing() -> None:
    assert read_form(b"preamble\r\n" + field("a", "b") + b"--B--\r\nepilogue", TYPE) == {"a": ["b"]}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b'"a\\"b.wav"', 'a"b.wav'),
        (b'"a%22b.wav"', 'a"b.wav'),
        (b"plain.wav", "plain.wav"),
        ('"ü;x=.wav"'.encode(), "ü;x=.wav"),
    ],
)
def test_file_names_may_hold_anything(written: bytes, read: str) -> None:
    body = FILE.replace(b'"a.wav"', written)
    [upload] = read_form(body, TYPE)["file"]
    assert isinstance(upload, Upload)
    assert upload.filename == read


@pytest.mark.parametrize(
    ("body", "content_type", "problem"),
    [
        (FILE, "application/json", "content type"),
        (FILE, "multipart/form-data", "content type"),
        (FILE, "multipart/form-data; boundary=" + "x" * 71, "content type"),
        (b"", TYPE, "does not begin"),
        (b"xx--B\r\n", TYPE, "does not begin"),
        (FILE[:-9], TYPE, "cut off"),
        (FILE[:60], TYPE, "cut off"),
        (b"--Bx\r\n", TYPE, "line end"),
        (b"--B\r\n\r\n--B--", TYPE, "no end of its headers"),
        (b"--B\r\nno header\r\n\r\nx\r\n--B--", TYPE, "header that is none"),
        (b"--B\r\nA : b\r\n\r\nx\r\n--B--", TYPE, "header that is none"),
        (b"--B\r\nA: b\r\n\r\nx\r\n--B--", TYPE, "not form-data"),
        (b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n--B--", TYPE, "no name"),
        (b'--B\r\nContent-Disposition: form-data; name="\r\n\r\nx\r\n--B--', TYPE, "cannot be read"),
        (b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--B--', TYPE, "UTF-8"),
        (
            b'--B\r\nContent-Disposition: form-data; name="a"\r\n' + b"x: y\r\n" * 2_000 + b"\r\nx\r\n--B--",
            TYPE,
            "headers",
        ),
        (field("a", "b") * 1_001 + b"--B--", TYPE, "more than 1000 parts"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, content_type: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read_form(body, content_type)


def test_random_bytes_are_refused_and_never_crash_it() -> None:
    drawn = random.Random(5)
    whole = field("a", "b") + FILE
    for _ in range(3_000):
        body = bytearray(whole)
        for _ in range(drawn.randint(1, 4)):
            body[drawn.randrange(len(body))] = drawn.randrange(256)
        form: Form = {}
        try:
            form = read_form(bytes(body), TYPE)
        except ValueError:
            continue
        assert sum(map(len, form.values())) <= 3


def test_a_clients_own_form_is_understood() -> None:
    content = random.Random(2).randbytes(100_000)
    request = httpx.Request(
        "POST",
        "http://127.0.0.1/",
        data={"model": "m", "timestamp_granularities[]": ["word", "segment"]},
        files={"file": ('na"me ü.mp3', content, "audio/mpeg")},
    )
    form = read_form(request.read(), request.headers["content-type"])
    assert form["model"] == ["m"]
    assert form["timestamp_granularities[]"] == ["word", "segment"]
    [upload] = form["file"]
    assert upload == Upload(filename='na"me ü.mp3', content_type="audio/mpeg", content=content)
