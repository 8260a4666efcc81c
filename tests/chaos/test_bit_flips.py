"""F20: single bits flip in files of finished runs. `verify` finds each, and `run --repair` makes the folder whole."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from chaos.report import record
from click.testing import CliRunner
from in_memory import Bench, Service, refusal

from pipeline.cli import main
from pipeline.job.change import semantic
from pipeline.testing import MemoryTransport

FULL = os.environ.get("PIPELINE_CHAOS") == "full"
FLIPS = int(os.environ.get("PIPELINE_FLIPS", "1000" if FULL else "100"))
REPAIRS = int(os.environ.get("PIPELINE_REPAIRS", "100" if FULL else "24"))
SEED = int(os.environ.get("PIPELINE_SEED", "20"))
ROWS = 40
TELLING = ("lock", "log.jsonl")
"""Files that tell what happened, and that nothing is read from."""


def spoken(request: httpx.Request) -> httpx.Response:
    text = json.loads(request.content)["input"]
    return httpx.Response(200, headers={"content-type": "audio/mpeg"}, content=b"ID3" + text.encode() * 40)


def refused(texts: list[str], _: int) -> httpx.Response | None:
    return refusal(400, "content_filter") if texts == ["text 7"] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A finished run, and a copy of its folder as it was."""

    bench: Bench
    service: Callable[[], httpx.AsyncBaseTransport]
    pristine: Path

    def restore(self) -> None:
        shutil.rmtree(self.bench.out)
        shutil.copytree(self.pristine, self.bench.out, symlinks=True)

    def files(self) -> list[Path]:
        found = [path for path in sorted(self.bench.out.rglob("*")) if path.is_file()]
        return [path for path in found if path.name not in TELLING]

    def rows(self) -> list[dict[str, Any]]:
        """What a user reads, but for what differs from call to call."""
        return [
            {name: value for name, value in row.items() if name not in {"request", "response"}}
            for row in self.bench.table()
        ]

    def media(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.bench.layout.media.glob("*")}


OPENAI = {"endpoint": "https://x.openai.azure.com", "deployment": "d", "api": "azure"}
JOBS: dict[str, tuple[dict[str, Any], Callable[[], httpx.AsyncBaseTransport]]] = {
    "chat": ({"output": {"format": "openai-batch", "raw": "all"}}, lambda: Service(refused)),
    "embeddings": ({}, lambda: Service(refused)),
    "speech": (
        {
            "request": {"input": "{{ text }}", "voice": "alloy", "response_format": "mp3"},
            "deployments": [{**OPENAI, "model": "tts-1", "api_version": "2025-04-01-preview"}],
            "output": {"media": "files"},
        },
        lambda: MemoryTransport(spoken),
    ),
}


@pytest.fixture(params=JOBS)
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return finished(tmp_path, request.param)


def finished(tmp_path: Path, operation: str) -> Scene:
    changes, service = JOBS[operation]
    bench = Bench(folder=tmp_path, operation=operation, max_inputs=1, changes=dict(changes))
    bench.texts(*(f"text {n}" for n in range(ROWS)))
    summary = anyio.run(lambda: bench.run(service()))
    assert summary.rows.ok + summary.rows.failed == ROWS
    pristine = tmp_path / "pristine"
    shutil.copytree(bench.out, pristine)
    return Scene(bench=bench, service=service, pristine=pristine)


def verified(scene: Scene) -> tuple[int, str]:
    """The exit code of `pipeline verify`, and what it says."""
    result = CliRunner().invoke(main, ["verify", str(scene.bench.out)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def some_bit(files: list[Path], dice: random.Random) -> tuple[Path, int]:
    """A bit of any file: by turns any bit of the folder, and any bit of a file, so that small ones are met, too."""
    sizes = [path.stat().st_size for path in files]
    weights = sizes if dice.random() < 0.5 else [1 if size else 0 for size in sizes]
    (path,) = dice.choices(files, weights)
    return path, dice.randrange(path.stat().st_size * 8)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_verify_finds_every_flipped_bit(scene: Scene) -> None:
    dice = random.Random(SEED)
    files = scene.files()
    assert verified(scene)[0] == 0
    met: Counter[str] = Counter()
    flips = -(-FLIPS // len(JOBS))
    for _ in range(flips):
        path, bit = some_bit(files, dice)
        flip(path, bit)

        code, said = verified(scene)

        assert code == 5, f"seed {SEED}: bit {bit} of {path.name} was not found: {code} {said}"
        flip(path, bit)
        met[path.parent.name if path.suffix != ".json" else path.name] += 1
    assert verified(scene)[0] == 0
    print(f"\n{scene.bench.operation}: {flips} bits, seed {SEED}: {dict(met)}")
    record(fault="F20", what=f"bit flips in a finished {scene.bench.operation} run: verify finds each", tried=flips)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_a_repair_after_a_flipped_bit_leaves_the_rows_as_they_were(scene: Scene) -> None:
    dice = random.Random(SEED + 1)
    rows, media = scene.rows(), scene.media()
    names = [path.relative_to(scene.bench.out) for path in scene.files()]
    kinds = sorted({name.parent for name in names} | {name for name in names if name.parent.name == "_pipeline"})
    resent = []
    slowest_s = 0.0
    repairs = -(-REPAIRS // len(JOBS))
    for turn in range(repairs):
        scene.restore()
        kind = kinds[turn % len(kinds)]
        files = [
            path
            for path in scene.files()
            if kind in {path.relative_to(scene.bench.out), path.relative_to(scene.bench.out).parent}
        ]
        path = dice.choice([path for path in files if path.stat().st_size])
        bit = dice.randrange(path.stat().st_size * 8)
        place = f"seed {SEED}: bit {bit} of {path.name}"
        flip(path, bit)
        scene.bench.events.clear()
        began = time.monotonic()

        summary = anyio.run(lambda: scene.bench.run(scene.service(), repair=True))

        slowest_s = max(slowest_s, time.monotonic() - began)
        assert summary.state == "complete", place
        assert verified(scene)[0] == 0, place
        assert scene.rows() == rows, place
        assert scene.media() == media, place
        (ended,) = [event for event in scene.bench.events if event["event"] == "repair_ended"]
        resent.append(ended["rows_again"])
    print(f"\n{scene.bench.operation}: {repairs} repairs, seed {SEED}; rows sent again: {sorted(resent)}")
    assert max(resent) <= 10
    record(
        fault="F20",
        what=f"repair after a flipped bit in a finished {scene.bench.operation} run",
        tried=repairs,
        resent_max=max(resent),
        recover_s_max=round(slowest_s, 1),
        notes="rows sent again, of parts of 10",
    )


HARMS: dict[str, tuple[str, Callable[[Bench], list[Path]], int]] = {
    "the journal": ("chat", lambda bench: [bench.layout.journal], 0),
    "the journal and a part": ("chat", lambda bench: [bench.layout.journal, bench.parts()[1]], 10),
    "two parts and the manifest": ("chat", lambda bench: [*bench.parts()[:2], bench.layout.manifest], 20),
    "ids and attempts": ("chat", lambda bench: [bench.layout.ids, *bench.layout.attempts.iterdir()], 0),
    "files of rows": ("speech", lambda bench: sorted(bench.layout.media.iterdir())[8:12], 4),
}


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("harm", HARMS if FULL else ["the journal and a part", "files of rows"])
def test_a_repair_that_dies_at_any_step_is_gone_on_with(tmp_path: Path, harm: str) -> None:
    operation, chosen, most = HARMS[harm]
    scene = finished(tmp_path, operation)
    bench = scene.bench
    rows, media = scene.rows(), scene.media()
    for path in chosen(bench):
        flip(path, path.stat().st_size * 8 - 20)
    copies = tmp_path / "copies"
    job = json.dumps(semantic(bench.job()))
    script = Path(__file__).with_name("crashing_repair.py")
    subprocess.run([sys.executable, script, bench.out, job, copies], check=True)
    steps = sorted(int(path.name) for path in copies.iterdir())
    resent = []
    for step in steps if FULL else steps[SEED % 4 :: 4]:
        shutil.rmtree(bench.out)
        shutil.copytree(copies / str(step), bench.out)
        scene.bench.events.clear()
        counted = Counting(scene.service())

        summary = anyio.run(lambda: bench.run(counted, repair=True))  # noqa: B023 - called at once

        assert summary.state == "complete", f"step {step}"
        assert scene.rows() == rows, f"step {step}"
        assert scene.media() == media, f"step {step}"
        assert verified(scene)[0] == 0, f"step {step}"
        assert counted.calls <= most, f"step {step}"
        resent.append(counted.calls)
    print(f"\n{harm}: died before {len(resent)} of {len(steps)} steps; calls sent again: {sorted(resent)}")
    assert len(steps) > 10
    record(fault="F20", what=f"a repair that dies at a step, {harm} damaged", tried=len(resent), resent_max=max(resent))


class Counting(httpx.AsyncBaseTransport):
    """Counts the calls of another transport."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.calls = 0
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        return await self._inner.handle_async_request(request)
