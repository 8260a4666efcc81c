from __future__ import annotations

import itertools

import pytest

from pipeline.errors import ReplyError
from pipeline.model import ErrorType, Reply
from pipeline.operations._sse import Event, StreamRefused, arrived_ms, events, is_stream, read_event


def data(body: bytes) -> list[bytes]:
    return [event.data for event in events(body)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_in_each_of_the_three_ways(end: bytes) -> None:
    lines = [b": hello", b"event: delta", b"data: 1", b"", b"", b"data:2", b"id: 7", b"retry: 3", b"", b""]
    body = end.join(lines)
    assert [(event.name, event.data) for event in events(body)] == [(b"delta", b"1"), (b"", b"2")]


def test_lines_may_end_in_different_ways_within_one_stream() -> None:
    assert data(b"data: 1\r\n\ndata: 2\r\rdata: 3\n\r\n") == [b"1", b"2", b"3"]


def test_the_lines_of_an_event_are_joined_and_one_blank_after_the_colon_is_none_of_theirs() -> None:
    assert data(b'data: {"a":\ndata:  1}\ndata\n\n') == [b'{"a":\n 1}\n']


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_ends_lines_elsewhere_ends_none_here(odd: str) -> None:
    text = f'"a{odd}b"'.encode()
    assert data(b"data: " + text + b"\n\n") == [text]


def test_a_byte_order_mark_comments_and_unknown_fields_are_skipped() -> None:
    assert data(b"\xef\xbb\xbfdata: 1\n\n: keep-alive\n\nDATA: x\n data: x\ndatum: x\n\ndata: 2\n\n") == [b"1", b"2"]


@pytest.mark.parametrize("body", [b"", b"\n\n\n", b": only\n\n", b"event: x\n\n", b"data:\n\n", b"data\n\n", b"\r"])
def test_an_event_without_data_is_none(body: bytes) -> None:
    assert data(body) == []


def test_a_name_is_forgotten_after_its_event() -> None:
    assert [event.name for event in events(b"event: a\n\ndata: 1\n\n")] == [b""]


@pytest.mark.parametrize("cut", [b"data: 2", b"data: 2\n", b"data: 2\ndata: 3\n", b"da", b"data: 2\r"])
def test_an_event_without_its_blank_line_is_none(cut: bytes) -> None:
    assert data(b"data: 1\n\n" + cut) == [b"1"]


def test_an_end_counts_the_bytes_up_to_the_events_blank_line() -> None:
    body = b"\xef\xbb\xbf: x\r\n\r\ndata: 1\r\n\r\ndata: 2\n\n"
    for event in events(body):
        assert body[: event.end].endswith((b"data: 1\r\n\r\n", b"data: 2\n\n"))
        assert data(body[: event.end])[-1] == event.data


def test_no_four_bytes_after_a_line_invent_data() -> None:
    for signs in itertools.product(b"data:\n\r", repeat=4):
        body = b"data:x\n" + bytes(signs)
        for event in events(body):
            assert event.data.startswith(b"x")
            assert event.end <= len(body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":1}', False),
        (b' \r\n{"a":1}', False),
        (b"data: {}", True),
        (b"", True),
        (b"<html>", True),
        (b": x", True),
    ],
)
def test_a_stream_is_told_from_a_plain_object(body: bytes, *, expected: bool) -> None:
    assert is_stream(body) is expected


@pytest.mark.parametrize(("end", "expected"), [(1, 10.0), (5, 10.0), (6, 20.0), (9, 20.0), (10, None)])
def test_bytes_came_when_the_first_arrival_held_them_all(end: int, expected: float | None) -> None:
    reply = Reply(status=200, headers={}, body=b"x" * 9, latency_ms=30, arrivals=((5, 10.0), (9, 20.0)))
    assert arrived_ms(reply, end) == expected


@pytest.mark.parametrize(
    "payload",
    [b"{", b"nothing", b"[1]", b"7", b"null", b'{"a":"\xff"}', b'{"a":"\xe2\x82"}', b'{"a":NaN}', b"[" * 5000],
)
def test_an_event_that_holds_no_object_is_a_reply_error(payload: bytes) -> None:
    with pytest.raises(ReplyError) as raised:
        read_event(Event(b"", payload, 1))
    assert raised.value.code == "bad_reply"


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        (b"", b'{"error":{"code":"server_error","message":"Oh dear."}}'),
        (b"", b'{"error":{"type":"server_error","code":500,"message":"Oh dear."}}'),
        (b"error", b'{"code":"server_error","message":"Oh dear."}'),
        (b"", b'{"type":"error","code":"server_error","message":"Oh dear.","sequence_number":3}'),
        (b"", b'{"object":"error","code":"server_error","message":"Oh dear."}'),
    ],
)
def test_an_error_inside_of_a_stream_is_a_reply_error_that_says_what_the_service_said(
    name: bytes, payload: bytes
) -> None:
    with pytest.raises(ReplyError) as raised:
        read_event(Event(name, payload, 1))
    assert raised.value.code == "bad_reply"
    assert "server_error: Oh dear." in raised.value.message


@pytest.mark.parametrize(
    "payload",
    [
        b'{"error":{"code":"content_filter","message":"Filtered."}}',
        b'{"error":{"code":"400","message":"Filtered.","innererror":{"code":"ResponsibleAIPolicyViolation"}}}',
    ],
)
def test_a_content_filters_error_inside_of_a_stream_is_final(payload: bytes) -> None:
    with pytest.raises(StreamRefused) as raised:
        read_event(Event(b"", payload, 1))
    info = raised.value.info
    assert (info.type, info.code, info.message) == (ErrorType.BAD_REQUEST, "content_filter", "Filtered.")


def test_an_error_that_is_null_is_none() -> None:
    assert read_event(Event(b"", b'{"error":null,"choices":[]}', 1)) == {"error": None, "choices": []}
