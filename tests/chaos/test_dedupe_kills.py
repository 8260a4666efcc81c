"""F1: a run that asks equal rows once, killed at a system call that makes something durable.

The calls of a whole run are counted first; then it is killed at every one of them, or as many as are asked for, each
time in a folder of its own, and gone on with. Each row has the answer to its own text, and no more is asked twice than
was in flight.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from chaos.counts import SEED, count
from chaos.harness import OPAQUE, arrivals, deployment_of, read_parts
from chaos.injected import DURABLE, Injector
from chaos.needs import need_tool
from chaos.report import record

from pipeline.simulator.serve import SimulatorProcess, start
from pipeline.store.folder import Layout
from pipeline.store.verify import verify_folder

ROWS = 60
TEXTS = 13
PART_ROWS = 10
WORKERS = 2

pytestmark = pytest.mark.timeout(1_800)


def written(folder: Path, simulator: SimulatorProcess) -> Path:
    """A job whose rows ask for one of a few texts each, in every order and over all of its ranges."""
    folder.mkdir()
    dice = random.Random(SEED)
    texts = [f"question {n % TEXTS}" for n in range(ROWS)]
    dice.shuffle(texts)
    lines = [json.dumps({"id": f"r{n}", "text": text}) for n, text in enumerate(texts)]
    (folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    job = {
        "operation": "chat",
        "input": {"path": "rows.jsonl", "id": "id"},
        "request": {"messages": [{"role": "user", "content": "{{ text }}"}]},
        "deployments": [deployment_of(simulator)],
        "output": {"path": "out", "part_rows": PART_ROWS},
        "run": {"workers": WORKERS, "dedupe": "content"},
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder / "job.json"


@pytest.mark.chaos
def test_a_run_that_asks_equal_rows_once_is_killed_at_every_durable_call_and_gives_each_row_its_answer(
    tmp_path: Path,
) -> None:
    need_tool("F1", "strace")
    wanted = count(quick=12, full=10**6)
    errors, ledger, injector = tmp_path / "errors.txt", tmp_path / "ledger.jsonl", Injector()
    with start(OPAQUE, ledger=ledger) as simulator:
        whole = written(tmp_path / "whole", simulator)
        calls = injector.most_calls(whole, errors=errors, trace=tmp_path / "trace.txt")
        assert len(arrivals(ledger)) == TEXTS
        answers = answers_by_text(whole.parent / "out")
        assert len(answers) == TEXTS
        points = [(group, number) for group in DURABLE for number in range(1, calls[group] + 1)]
        random.Random(SEED).shuffle(points)
        killed, resent, lost, doubled = 0, [], 0, 0
        for index, (group, number) in enumerate(points):
            if killed == wanted:
                break
            job, asked = written(tmp_path / str(index), simulator), len(arrivals(ledger))
            code = injector.run(job, inject=f"{group}:signal=KILL:when={number}", errors=errors)
            assert code in {0, -9}, errors.read_text()
            killed += code == -9
            assert injector.run(job, inject=None, errors=errors) == 0, errors.read_text()
            resent.append(len(arrivals(ledger)) - asked - TEXTS)
            out = job.parent / "out"
            ordinals = Counter(read_parts(out)["ordinal"].to_pylist())
            lost += len(set(range(ROWS)) - set(ordinals))
            doubled += sum(times - 1 for times in ordinals.values())
            assert verify_folder(Layout(out)).findings == (), f"{group} {number}"
            assert answers_by_text(out) == answers, f"{group} {number}"
            shutil.rmtree(job.parent)
    record(
        fault="F1",
        what="equal rows asked once",
        tried=killed,
        lost=lost,
        doubled=doubled,
        resent_max=max(resent),
        notes=f"{len(points)} durable calls of a run of {ROWS} rows with {TEXTS} texts; seed {SEED}",
    )
    print(f"\nequal rows: {killed} kills of {len(points)} points, seed {SEED}; sent again {sorted(resent)}")
    assert (lost, doubled) == (0, 0)
    assert killed >= min(wanted, len(points) // 2)
    assert max(resent) <= WORKERS


def answers_by_text(out: Path) -> dict[str, str]:
    """What each text was answered; no text has two answers."""
    found: dict[str, str] = {}
    for row in read_parts(out).select(["text", "status", "output_text"]).to_pylist():
        assert row["status"] == "ok"
        assert found.setdefault(row["text"], row["output_text"]) == row["output_text"]
    return found
