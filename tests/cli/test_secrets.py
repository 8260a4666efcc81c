from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.simulator.serve import SimulatorProcess
from pipeline.store.journal import JournalReader
from tests.cli.bench import JOB, Bench, Serve

KEY = "canary-key-5f2c9"
HEADER = "canary-header-81ab3"
PROMPT = "canaryprompt77e0d"
HEADERS = '    headers: {Ocp-Apim-Subscription-Key: "${TEST_HEADER}"}\noutput:'

# What can go wrong with a row or a run, each with what the simulator does about it.
FAULTS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "wrong key": {"keys": ["another"]},
    "throttled": {"faults": {"rates": {"429": 1.0}, "attempts": 1, "headers": {"retry-after-ms": "50"}}},
    "overloaded": {"faults": {"rates": {"500": 1.0}, "attempts": 1}},
    "refused": {"faults": {"rates": {"403": 1.0}}},
    "filtered": {"poison": [{"contains": "canary", "status": 400, "message": f"You said {PROMPT}"}]},
    "reset": {"faults": {"rates": {"reset_during": 1.0}, "attempts": 1}},
    "no JSON": {"faults": {"rates": {"html": 1.0}, "attempts": 1}},
    "no deployment": {"deployments": {"another": {}}},
}


@pytest.fixture(params=FAULTS)
def troubled(request: pytest.FixtureRequest, bench: Bench, served: Serve) -> Bench:
    process: SimulatorProcess = served({"keys": [KEY], **FAULTS[request.param]})
    bench.environ.update({"TEST_ENDPOINT": process.url, "TEST_KEY": KEY, "TEST_HEADER": HEADER})
    bench.write(JOB.replace("output:", HEADERS, 1))
    bench.rows([f"{PROMPT} {number}" for number in range(4)])
    return bench


def test_no_secret_and_no_prompt_is_written_where_it_does_not_belong(troubled: Bench) -> None:
    run = troubled.call("run", "job.yaml", "--log-level", "debug")
    said = [run, *[troubled.call(*line, "out") for line in (("status",), ("verify",))]]

    private = troubled.output / "_pipeline"
    texts = {f"output of {index}": result.output for index, result in enumerate(said)}
    texts |= {name: (private / name).read_text() for name in ("log.jsonl", "summary.json")}
    texts["attempts"] = json.dumps(_attempts(private), default=str)
    with JournalReader(private / "journal" / "00.sqlite") as reader:
        texts["journal"] = json.dumps([reader.noted(key) for key in ("job", "schema", "files", "facts", "totals")])
    for place, text in texts.items():
        assert text, place
        for secret in (KEY, HEADER, PROMPT):
            assert secret not in text, place


def test_no_byte_of_the_output_folder_holds_a_secret(troubled: Bench) -> None:
    troubled.call("run", "job.yaml", "--log-level", "debug")

    for path in troubled.output.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for secret in (KEY, HEADER):
            assert secret.encode() not in content, path


def _attempts(private: Path) -> list[object]:
    return [row for path in (private / "attempts").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
