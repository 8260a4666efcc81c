from __future__ import annotations

import pytest

from pipeline.errors import ReplyError
from pipeline.operations._subtitles import Cue, read_cues, write_cues

HELLO = Cue(start_s=0.0, end_s=1.5, text="Hello.")
SRT = "1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n2\n01:02:03,004 --> 01:02:04,000\nTwo\nlines.\n\n"
VTT = "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n01:02:03.004 --> 01:02:04.000\nTwo\nlines.\n\n"
CUES = [HELLO, Cue(start_s=3723.004, end_s=3724.0, text="Two\nlines.")]


@pytest.mark.parametrize(("format_", "text"), [("srt", SRT), ("vtt", VTT)])
def test_what_is_read_is_written_again(format_: str, text: str) -> None:
    assert read_cues(text, format_) == CUES
    assert write_cues(CUES, format_) == text


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("srt", "1\r\n00:00:00,000 --> 00:00:01,500\r\nHello.\r\n\r\n"),
        ("srt", "\ufeff1\n00:00:00,000 --> 00:00:01,500\nHello.\n"),
        ("srt", "\n\n\n1\n00:00:00.000 --> 00:00:01.5\nHello."),
        ("srt", "00:00:00,000 --> 00:00:01,500\nHello."),
        ("vtt", "WEBVTT\n\n00:00.000 --> 00:01.500\nHello."),
        ("vtt", "WEBVTT - made by hand\nLanguage: en\n\na name\n00:00.000 --> 00:01.500\nHello."),
        ("vtt", "WEBVTT\n\nNOTE nothing\n\nSTYLE\n::cue {}\n\nREGION\nid:a\n\n00:00.000 --> 00:01.500\nHello."),
        ("vtt", "WEBVTT\n\nNOTEBOOK\n00:00.000 --> 00:01.500\nHello."),
    ],
)
def test_every_way_to_write_it_is_read(format_: str, text: str) -> None:
    assert read_cues(text, format_) == [HELLO]


def test_where_a_cue_is_shown_is_kept() -> None:
    text = "WEBVTT\n\n00:00:00.000 --> 00:00:01.500 align:start line:0\nHello.\n\n"
    assert write_cues(read_cues(text, "vtt"), "vtt") == text


@pytest.mark.parametrize(
    ("format_", "text"),
    [("srt", ""), ("srt", "\n"), ("vtt", "WEBVTT"), ("vtt", "WEBVTT\n\n"), ("vtt", "\ufeffWEBVTT\n")],
)
def test_silence_has_no_cues(format_: str, text: str) -> None:
    assert read_cues(text, format_) == []


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("srt", "Hello."),
        ("srt", VTT),
        ("srt", "1\n\n2\n"),
        ("srt", SRT + "3\n00:00:0"),
        ("srt", "1\n00:00:00,000 -> 00:00:01,500\nHello."),
        ("srt", "1\nx\n00:00:00,000 --> 00:00:01,500\nHello."),
        ("vtt", ""),
        ("vtt", SRT),
        ("vtt", "WEBVTTX\n\n"),
        ("vtt", "WEBVTT\n00:00.000 --> 00:01.500\nHello."),
        ("vtt", VTT + "00:0"),
        ("vtt", "Hello."),
    ],
)
def test_what_is_none_is_a_reply_error(format_: str, text: str) -> None:
    with pytest.raises(ReplyError):
        read_cues(text, format_)


@pytest.mark.parametrize(("seconds", "said"), [(0.0, "00:00:00"), (59.9996, "00:01:00"), (3599.9999, "01:00:00")])
def test_times_are_rounded_up_to_whole_minutes(seconds: float, said: str) -> None:
    assert f"{said}.000 --> {said}.000" in write_cues([Cue(start_s=seconds, end_s=seconds, text="x")], "vtt")


def test_a_hundred_hours_are_written() -> None:
    assert "100:00:00,000" in write_cues([Cue(start_s=360_000, end_s=360_001, text="x")], "srt")
