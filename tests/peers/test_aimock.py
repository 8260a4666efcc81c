"""The batch lane against aimock (@copilotkit/aimock), whose Batch API others wrote: to its end, each row once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest

from pipeline.job.load import load_job
from pipeline.operations import names
from pipeline.run import run_job
from pipeline.store.folder import Layout
from pipeline.store.verify import verify_folder

CLI = Path(__file__).parent / "node_modules/@copilotkit/aimock/dist/cli.js"
ROWS = 50
SAID = "Quay and tide."
SAID_IN_BATCHES = "Mock batch completion"
"""What aimock answers to every line of a batch, whatever its fixtures say."""
pytestmark = pytest.mark.peer


@contextmanager
def aimock(folder: Path) -> Iterator[str]:
    """Serve answers to everything that speaks of a row; gives the URL, and ends the server."""
    assert CLI.exists(), "make test-peers installs it"
    fixtures = folder / "fixtures.json"
    fixtures.write_text(json.dumps({"fixtures": [{"match": {"userMessage": "Row"}, "response": {"content": SAID}}]}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    node = shutil.which("node")
    assert node is not None, "aimock needs Node.js"
    process = subprocess.Popen([node, str(CLI), "-p", str(port), "-f", str(fixtures)], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=1):
                    break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        process.kill()  # asked to end, it waits for connections that others keep
        process.wait(10)


def asked(url: str) -> list[dict[str, Any]]:
    """What the server was asked, by its own journal."""
    with urllib.request.urlopen(f"{url}/__aimock/journal") as reply:
        shown = json.load(reply)
    entries: list[dict[str, Any]] = shown if isinstance(shown, list) else shown["entries"]
    return entries


@pytest.mark.parametrize("lane", ["batch", "online"])
def test_a_job_ends_with_every_row_answered_once(tmp_path: Path, lane: str) -> None:
    rows = [{"id": f"r{number}", "text": f"Row {number} of the harbour's log"} for number in range(ROWS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with aimock(tmp_path) as url:
        deployment = {"endpoint": f"{url}/v1", "api": "openai", "deployment": "gpt-4o-mini", "key": "${K}"}
        job = {
            "operation": "chat",
            "input": {"path": "rows.jsonl", "id": "id"},
            "request": {"messages": [{"role": "user", "content": "{{ text }}"}], "max_tokens": 40},
            "deployments": [deployment],
            "output": {"path": "out"},
            "run": {"lane": lane, "poll": "100ms"},
        }
        file = tmp_path / "job.json"
        file.write_text(json.dumps(job))
        loaded = load_job(file, environ={**os.environ, "K": "k"}, operations=names())
        summary = anyio.run(lambda: run_job(loaded))
        assert (summary.state, summary.exit_code, summary.rows.ok) == ("complete", 0, ROWS), summary.reason
        calls = asked(url)
    layout = Layout(tmp_path / "out")
    table = pq.read_table(next(layout.root.glob("part-*.parquet"))).to_pylist()
    assert [row["ordinal"] for row in table] == list(range(ROWS))
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert {row["output_text"] for row in table} == {SAID if lane == "online" else SAID_IN_BATCHES}
    assert not verify_folder(layout).findings
    submitted = [call for call in calls if call["method"] == "POST" and call["path"].endswith("/batches")]
    assert len(submitted) == (lane == "batch")
