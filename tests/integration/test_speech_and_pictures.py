"""Every format of speech, and pictures in base64 and behind URLs, from the simulator over sockets to the parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import start_simulator
from in_memory import Bench

from pipeline.operations.image import kind_of
from pipeline.operations.speech import BYTES_A_SECOND
from pipeline.run import run_job
from pipeline.simulator.serve import SimulatorProcess

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with start_simulator({"vectors": "hash"}) as started:
        yield started


def bench(folder: Path, simulator: SimulatorProcess, operation: str, model: str, **changes: Any) -> Bench:
    deployment = {
        "endpoint": simulator.url,
        "deployment": model,
        "model": model,
        "api": "azure",
        "api_version": "2025-04-01-preview",
    }
    made = Bench(folder=folder, operation=operation, changes={"deployments": [deployment], **changes})
    return made.texts(*(f"text {n}" for n in range(3)))


@pytest.mark.parametrize("format_", sorted(BYTES_A_SECOND))
async def test_speech_of_every_format_is_kept(tmp_path: Path, simulator: SimulatorProcess, format_: str) -> None:
    request = {"input": "{{ text }}", "voice": "alloy", "response_format": format_}
    spoken = bench(tmp_path, simulator, "speech", "tts-1", request=request, output={"media": "files"})
    summary = await run_job(spoken.job())
    assert (summary.exit_code, summary.rows.ok) == (0, 3)
    for row in spoken.table():
        assert row["audio_path"] == f"media/{row['ordinal']:012d}.{format_}"
        assert (spoken.layout.root / row["audio_path"]).stat().st_size > 100
        assert row["usage"]["characters"] == len(row["text"])


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("gpt-image-1", {"quality": "low", "output_format": "jpeg"}),
        ("dall-e-3", {}),
        ("dall-e-3", {"response_format": "b64_json"}),
        ("dall-e-3", {"response_format": "url"}),
        ("a-model-that-answers-with-urls", {}),
    ],
)
async def test_pictures_are_kept_however_they_come(
    tmp_path: Path, simulator: SimulatorProcess, model: str, fields: dict[str, str]
) -> None:
    request = {"prompt": "{{ text }}", "size": "1024x1024", **fields}
    drawn = bench(tmp_path, simulator, "image", model, request=request)
    summary = await run_job(drawn.job())
    assert (summary.exit_code, summary.rows.ok) == (0, 3)
    table = drawn.table()
    assert {kind_of(row["image"]) for row in table} == {"jpg" if fields.get("output_format") == "jpeg" else "png"}
    assert len({row["image"] for row in table}) == 3
    assert [row["image_path"] for row in table] == [None] * 3
