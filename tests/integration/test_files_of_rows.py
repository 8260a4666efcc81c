"""Speech, pictures and cut recordings through the whole run: files, commits, restarts, verify."""

from __future__ import annotations

import json
import math
import struct
import wave
from array import array
from pathlib import Path
from typing import Any

import httpx
import pytest
from in_memory import Bench, refusal

from pipeline.store.verify import verify_folder
from pipeline.testing import MemoryTransport

SPEECH = {"input": "{{ text }}", "voice": "alloy", "response_format": "wav"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def wav(text: str) -> bytes:
    """Sound that differs from text to text."""
    data = text.encode() * 50
    return b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack(
        "<IHHIIHH", 16, 1, 1, 24000, 48000, 2, 16
    ) + b"data" + struct.pack("<I", len(data)) + data  # fmt: skip


def spoken(request: httpx.Request) -> httpx.Response:
    text = json.loads(request.content)["input"]
    return httpx.Response(200, headers={"content-type": "audio/wav"}, content=wav(text))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    deployment = {
        "endpoint": "https://x.openai.azure.com",
        "deployment": "d",
        "model": "tts-1",
        "api": "azure",
        "api_version": "2025-04-01-preview",
    }
    changes: dict[str, Any] = {
        "operation": "speech",
        "request": SPEECH,
        "deployments": [deployment],
        "output": {"media": "files"},
    }
    return Bench(folder=tmp_path, operation="speech", changes=changes).texts(*(f"text {n}" for n in range(23)))


@pytest.mark.anyio
async def test_speech_lies_in_files_named_by_ordinal_and_verify_reads_them_back(bench: Bench) -> None:
    summary = await bench.run(MemoryTransport(spoken))
    assert (summary.exit_code, summary.rows.ok) == (0, 23)
    table = bench.table()
    assert [row["audio_path"] for row in table] == [f"media/{n:012d}.wav" for n in range(23)]
    assert "audio" not in table[0]
    for row in table:
        assert (bench.out / row["audio_path"]).read_bytes() == wav(f"text {row['ordinal']}")
    assert verify_folder(bench.layout).findings == ()
    victim = bench.out / "media" / "000000000011.wav"
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert [finding.file for finding in verify_folder(bench.layout).findings] == ["media/000000000011.wav"]


@pytest.mark.anyio
async def test_speech_in_the_column_leaves_no_file(bench: Bench) -> None:
    bench.changes["output"] = {"media": "column"}
    await bench.run(MemoryTransport(spoken))
    assert [row["audio"] for row in bench.table()] == [wav(f"text {n}") for n in range(23)]
    assert not (bench.out / "media").exists()


@pytest.mark.anyio
async def test_a_file_that_a_crash_left_without_its_row_is_written_anew(bench: Bench) -> None:
    await bench.run(MemoryTransport(spoken), limit=5)
    stray = bench.out / "media" / "000000000007.wav"
    stray.write_bytes(b"half of it")
    summary = await bench.run(MemoryTransport(spoken))
    assert summary.rows.ok == 23
    assert stray.read_bytes() == wav("text 7")
    assert verify_folder(bench.layout).findings == ()


@pytest.mark.anyio
async def test_a_disk_that_refuses_a_file_ends_the_run_and_the_row_is_pending(bench: Bench) -> None:
    bench.changes["run"] = {"workers": 1}
    seen: list[int] = []

    def speak(request: httpx.Request) -> httpx.Response:
        seen.append(1)
        if len(seen) == 4:
            (bench.out / "media").rename(bench.folder / "elsewhere")
            (bench.out / "media").touch()
        return spoken(request)

    summary = await bench.run(MemoryTransport(speak))
    assert (summary.state, summary.exit_code, summary.rows.ok, summary.rows.failed) == ("stopped", 5, 3, 0)
    (bench.out / "media").unlink()
    (bench.folder / "elsewhere").rename(bench.out / "media")
    assert (await bench.run(MemoryTransport(spoken))).rows.ok == 23
    assert verify_folder(bench.layout).findings == ()


# -- recordings in pieces ------------------------------------------------------------------------------------------


def recording(path: Path, seconds: float) -> None:
    """A recording of tones with a pause of 0.6 s every five seconds."""
    rate = 8000
    tone = array("h", (int(8000 * math.sin(2 * math.pi * 440 * number / rate)) for number in range(int(4.4 * rate))))
    samples = (tone + array("h", bytes(2 * int(0.6 * rate)))) * math.ceil(seconds / 5)
    # Loudness rises, so that no two pieces are the same.
    samples = array("h", (sample * number // len(samples) for number, sample in enumerate(samples)))
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes(samples.tobytes())


def heard(request: httpx.Request) -> httpx.Response:
    """What a service says of a piece: one word, at its beginning; the number of its bytes."""
    body = {"task": "transcribe", "language": "english", "duration": 1.0, "text": f"b{len(request.content)}"}
    words = [{"word": body["text"], "start": 0.0, "end": 0.5}]
    segments = [{"id": 0, "start": 0.0, "end": 0.5, "text": body["text"]}]
    return httpx.Response(200, json={**body, "words": words, "segments": segments})


@pytest.fixture
def long(tmp_path: Path) -> Bench:
    (tmp_path / "sound").mkdir()
    recording(tmp_path / "sound" / "long.wav", 240)
    recording(tmp_path / "sound" / "short.wav", 4)
    deployment = {
        "endpoint": "https://x.openai.azure.com",
        "deployment": "d",
        "model": "whisper",
        "api": "azure",
        "api_version": "2025-04-01-preview",
    }
    changes: dict[str, Any] = {
        "operation": "transcription",
        "input": {"media_root": "sound"},
        "request": {"file": "{{ text }}", "response_format": "verbose_json", "cut_after": "30s"},
        "deployments": [deployment],
    }
    bench = Bench(folder=tmp_path, operation="transcription", changes=changes)
    return bench.texts("long.wav", "short.wav")


@pytest.mark.anyio
async def test_a_long_recording_is_sent_in_pieces_and_comes_back_as_one_row(long: Bench) -> None:
    service = MemoryTransport(heard)
    summary = await long.run(service)
    assert (summary.exit_code, summary.rows.ok) == (0, 2)
    first, second = long.table()
    pieces = len(service.requests) - 1
    assert pieces >= 7
    assert first["request"]["attempts"] == pieces
    assert len(first["output_text"].split()) == len(first["segments"]) == pieces
    starts = [segment["start_s"] for segment in first["segments"]]
    assert starts == sorted(starts)
    assert starts[-1] > 200
    assert second["request"]["attempts"] == 1
    assert len(long.attempts()) == len(service.requests)
    assert not long.layout.pieces.exists() or not list(long.layout.pieces.iterdir())


@pytest.mark.anyio
@pytest.mark.parametrize("answered", [0, 1, 4])
async def test_a_restart_pays_for_no_piece_again(long: Bench, answered: int) -> None:
    """The service goes away after some pieces; what was answered is not asked for again."""
    whole = MemoryTransport(heard)
    await Bench(folder=long.folder, operation="transcription", changes=long.changes, rows=long.rows).run(whole)
    sent = sorted(request.content for request in whole.requests)
    long.changes["output"] = {"path": "again"}
    long.changes["run"] = {"workers": 1}
    said: list[bytes] = []

    def failing(request: httpx.Request) -> httpx.Response | Exception:
        if len(said) >= answered:
            return refusal(403, "Forbidden", "the network rules refuse you")
        said.append(request.content)
        return heard(request)

    summary = await long.run(MemoryTransport(failing))
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (3, 0, 0)
    rest = MemoryTransport(heard)
    assert (await long.run(rest)).exit_code == 0
    again = [request.content for request in rest.requests]
    assert sorted(said + again) == sent


@pytest.mark.anyio
async def test_a_piece_that_fails_is_asked_again_alone_and_one_that_is_refused_fails_the_row(long: Bench) -> None:
    seen: dict[bytes, int] = {}

    def shaky(request: httpx.Request) -> httpx.Response:
        seen[request.content] = seen.get(request.content, 0) + 1
        return refusal(500) if seen[request.content] == 1 and len(seen) % 3 == 0 else heard(request)

    assert (await long.run(MemoryTransport(shaky))).exit_code == 0
    assert sum(count == 2 for count in seen.values()) >= 1
    assert max(seen.values()) == 2

    long.changes["output"] = {"path": "refused"}
    sizes = sorted(map(len, seen))

    def refusing(request: httpx.Request) -> httpx.Response:
        return refusal(400, "bad_audio") if len(request.content) == sizes[-1] else heard(request)

    summary = await long.run(MemoryTransport(refusing))
    assert (summary.exit_code, summary.rows.ok, summary.rows.failed) == (1, 1, 1)


@pytest.mark.anyio
async def test_all_workers_help_with_one_long_recording(long: Bench) -> None:
    long.texts("long.wav")
    long.changes["run"] = {"workers": 4}
    most = 0

    class Slow(MemoryTransport):
        in_flight = 0

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal most
            self.in_flight += 1
            most = max(most, self.in_flight)
            try:
                return await super().handle_async_request(request)
            finally:
                self.in_flight -= 1

    await long.run(Slow(heard, latency_s=0.05))
    assert most == 4
