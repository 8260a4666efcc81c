"""Subtitles: SubRip (srt) and WebVTT (vtt), read and written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.operations._json import bad_reply

FORMATS = frozenset({"srt", "vtt"})

_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:[ \t]+(.*))?\s*")
_BLANK = re.compile(r"\n(?:[ \t]*\n)+")
_ASIDE = ("NOTE", "STYLE", "REGION")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cue:
    """One subtitle. `settings` is what a WebVTT cue says of its place on the screen."""

    start_s: float
    end_s: float
    text: str
    settings: str = ""


def read_cues(text: str, format_: str) -> list[Cue]:
    """Read a file's cues, in its order. Raises ReplyError for what is no such file; an empty srt has none."""
    body = text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip("\n")
    blocks = [block for block in _BLANK.split(body) if block.strip()]
    if format_ == "vtt":
        if not re.match(r"WEBVTT(?:[ \t\n]|$)", body) or "-->" in blocks[0]:
            raise bad_reply("the reply is no vtt, although that was asked for")
        blocks = [block for block in blocks[1:] if "-->" in block or not block.startswith(_ASIDE)]
    return [_cue(block, format_) for block in blocks]


def _cue(block: str, format_: str) -> Cue:
    """One block: a number or name (or none), the times, then the text."""
    lines = block.split("\n")
    for index, line in enumerate(lines[:2]):
        if match := _TIMES.fullmatch(line):
            return Cue(
                start_s=_seconds(match[1], match[2], match[3], match[4]),
                end_s=_seconds(match[5], match[6], match[7], match[8]),
                text="\n".join(lines[index + 1 :]),
                settings=(match[9] or "").strip(),
            )
    raise bad_reply(f"the reply is no {format_}: a subtitle in it has no times")


def _seconds(hours: str | None, minutes: str, seconds: str, fraction: str) -> float:
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + int(fraction.ljust(3, "0")) / 1000


def write_cues(cues: Sequence[Cue], format_: str) -> str:
    """Write a file, its subtitles numbered from 1."""
    return "".join(_vtt(cues) if format_ == "vtt" else _srt(cues))


def _vtt(cues: Sequence[Cue]) -> Iterable[str]:
    yield "WEBVTT\n\n"
    for cue in cues:
        settings = f" {cue.settings}" if cue.settings else ""
        yield f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}{settings}\n{cue.text}\n\n"


def _srt(cues: Sequence[Cue]) -> Iterable[str]:
    for number, cue in enumerate(cues, start=1):
        yield f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{cue.text}\n\n"


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
