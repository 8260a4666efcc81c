"""Folders of runs for the page that tells of them: a real run in memory, and attempts as many as one likes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from pipeline.model import Attempt
from pipeline.store.codec import attempt_values
from pipeline.store.parts import write_attempts
from pipeline.store.summary import DeploymentUse, Summary, read_summary, write_summary
from tests.in_memory import Bench, Said, Service, refusal

HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp\x1b[31m&amp;\"'`{{ 7 * 7 }}"
PROMPT = "the-words-of-a-prompt"
QUOTE = "the service quotes the-words-of-a-prompt"
T0 = 1_763_850_000.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A folder, and what its summary says."""

    root: Path
    summary: Summary


def ran(folder: Path, *, hostile: str = "row") -> Scene:
    """Twenty rows, asked in memory: two were refused with a code of the service's, one is empty, two were throttled."""

    def judge(texts: list[str], calls: int) -> Said:
        if calls in {3, 5}:
            return refusal(429, "rate_limit_exceeded", QUOTE, {"retry-after-ms": "30", "x-request-id": f"x-{calls}"})
        if "poison" in texts[0]:
            return refusal(400, hostile, QUOTE, {"x-request-id": f"poison-{hostile[:20]!r}"})
        return None

    folder.mkdir(parents=True, exist_ok=True)
    texts = [f"{'poison ' if number in {4, 11} else ''}{PROMPT} {number}" for number in range(20)]
    bench = Bench(folder=folder, operation="chat").texts(*texts)
    bench.rows = [{**row, "id": f"{hostile} {row['n']}"} for row in bench.rows]
    name = "".join(filter(str.isprintable, hostile))  # a job file cannot name anything otherwise
    price = {"input": 1.0, "output": 2.0}
    base = {"endpoint": "https://x.openai.azure.com", "model": "unknown", "api": "azure", "price": price}
    bench.changes = {
        "name": name,
        "deployments": [{**base, "deployment": "d", "name": name, "tokens_per_minute": 90_000}],
    }
    summary = anyio.run(bench.run, Service(judge))
    return Scene(bench.out, summary)


def again(scene: Scene, **changes: Any) -> Scene:
    """The same folder, whose summary says something else."""
    path = scene.root / "_pipeline" / "summary.json"
    summary = replace(read_summary(path), **changes)
    write_summary(path, summary)
    return Scene(scene.root, summary)


def attempt(number: int, **values: Any) -> Attempt:
    """An attempt that was answered after half a second."""
    usual = Attempt(
        ordinals=(number,),
        deployment="sweden",
        started_at=T0 + number,
        latency_ms=500.0,
        status=200,
        verdict="answered",
        code=None,
        client_request_id=f"client-{number}",
        request_id=f"request-{number}",
        apim_request_id=f"apim-{number}",
        region="Sweden Central",
        estimated_tokens=300,
        input_tokens=100,
        output_tokens=50,
        retry_after_ms=None,
    )
    return replace(usual, **values)


def throttled(number: int, **values: Any) -> Attempt:
    """An attempt that was refused with 429, and told to wait for two seconds."""
    usual = {"status": 429, "verdict": "throttled", "code": "rate_limit_exceeded", "retry_after_ms": 2000.0}
    return attempt(number, **{**usual, "input_tokens": None, "output_tokens": None, **values})


def busy(count: int, *, seed: int = 1) -> Iterator[Attempt]:
    """Attempts of two deployments over some minutes, six idle hours in between; some are throttled or fail."""
    dice = random.Random(seed)
    at = T0
    for number in range(count):
        at += 6 * 3600 if number == count // 2 else 1 / 30
        values: dict[str, Any] = {
            "deployment": dice.choice(["sweden", "sweden", "west europe"]),
            "started_at": at,
            "latency_ms": dice.lognormvariate(6.6, 0.5),
        }
        turn = number * 10 // count % 5 == 2
        if turn and dice.random() < 0.12:
            yield throttled(number, **values)
        elif turn and dice.random() < 0.05:
            yield attempt(number, **values, status=500, verdict="transient", code="internal_server_error")
        else:
            yield attempt(number, **values)


def filed(scene: Scene, attempts: Iterator[Attempt], *, a_file: int = 20_000) -> Scene:
    """Give a folder these attempts instead of its own."""
    folder = scene.root / "_pipeline" / "attempts"
    for path in folder.iterdir():
        path.unlink()
    first, chunk, count = 1, [], 0
    for one in attempts:
        chunk.append(one)
        count += 1
        if len(chunk) == a_file:
            _file(folder, first, chunk)
            first, chunk = first + len(chunk), []
    if chunk:
        _file(folder, first, chunk)
    uses = (
        DeploymentUse(name="sweden", requests_per_minute=2400, tokens_per_minute=700_000),
        DeploymentUse(name="west europe", requests_per_minute=1500, tokens_per_minute=120_000),
    )
    return again(scene, attempts=count, deployments=uses)


def _file(folder: Path, first: int, attempts: list[Attempt]) -> None:
    write_attempts(
        folder / f"attempts-{first:012d}-{first + len(attempts) - 1:012d}.parquet",
        [[attempt_values(attempt) for attempt in attempts]],
    )
