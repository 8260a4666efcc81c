"""`pipeline runs`: the invocations of a folder, across kills, and of a folder of outputs."""

from __future__ import annotations

import json
import signal
import time

from tests.cli.bench import Bench, Serve


def _runs(bench: Bench, *target: str) -> list[dict[str, object]]:
    result = bench.call("runs", *(target or ("out",)), "--json")
    assert result.exit_code == 0, result.output
    runs: list[dict[str, object]] = json.loads(result.stdout)["runs"]
    return runs


def test_each_invocation_is_listed_with_its_own_rows(bench: Bench) -> None:
    assert bench.call("run", "job.yaml", "--limit", "5").exit_code == 0
    assert bench.call("run", "job.yaml").exit_code == 0
    assert bench.call("run", "job.yaml").exit_code == 0

    runs = _runs(bench)
    assert [(one["number"], one["state"], one["exit_code"], one["new_rows"]) for one in runs] == [
        (1, "stopped", 0, 5),
        (2, "complete", 0, 7),
        (3, "complete", 0, 0),
    ]
    assert sum(float(str(one["new_cost_usd"])) for one in runs) == bench.summary()["cost_usd"]
    lines = bench.call("runs", "job.yaml", "--limit", "2").stdout.splitlines()
    assert len(lines) == 3
    assert bench.call("verify", "job.yaml").exit_code == 0


def test_a_refused_invocation_that_did_not_hold_the_folder_is_not_listed(bench: Bench) -> None:
    assert bench.call("run", "job.yaml").exit_code == 0
    assert bench.call("run", "job.yaml", "--set", "request.max_completion_tokens=7").exit_code == 2

    assert len(_runs(bench)) == 1


def test_a_killed_one_is_listed_as_killed_and_the_next_goes_on(bench: Bench, served: Serve) -> None:
    bench.environ["TEST_ENDPOINT"] = served({"latency": {"median_ms": 300}}).url
    bench.rows([f"question {number}?" for number in range(60)])
    process = bench.popen("run", "job.yaml", "--progress", "none")
    try:
        summary = bench.output / "_pipeline" / "summary.json"
        until = time.monotonic() + 60
        while not summary.exists() or not json.loads(summary.read_text())["rows"]["ok"]:
            assert time.monotonic() < until
            time.sleep(0.1)
        (running,) = _runs(bench)
        assert (running["state"], running["ended"]) == ("running", None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()

    assert [one["state"] for one in _runs(bench)] == ["killed"]
    assert bench.call("run", "job.yaml").exit_code == 0
    assert [(one["state"], one["exit_code"]) for one in _runs(bench)] == [("killed", None), ("complete", 0)]
    assert "killed" in (bench.output / "_pipeline" / "report.html").read_text()


def test_nights_over_a_changed_input_are_listed_each_with_what_it_sent(bench: Bench) -> None:
    texts = ["a?", "b?", "c?"]
    for new in ("d?", "e?", "f?", ""):
        bench.rows(texts if new else texts[:-1])
        assert bench.call("run", "job.yaml", "--set", "input.incremental=content").exit_code == 0
        texts = [new, *texts]

    runs = _runs(bench)
    told = [(one["number"], one["state"], one["ok"], one["new_rows"]) for one in runs]
    assert told == [(1, "complete", 3, 3), (2, "complete", 4, 1), (3, "complete", 5, 1), (4, "complete", 5, 1)]
    assert all(one["new_cost_usd"] == one["cost_usd"] for one in runs)
    assert len(_runs(bench, ".")) == 4, "those moved aside tell what the folder in their place tells"
    assert bench.call("verify", "job.yaml").exit_code == 0


def test_a_folder_of_outputs_is_listed_by_time_with_those_moved_aside(bench: Bench) -> None:
    assert bench.call("run", "job.yaml").exit_code == 0
    assert bench.call("run", "job.yaml", "--fresh").exit_code == 0
    assert bench.call("run", "job.yaml", "--set", "output.path=other").exit_code == 0

    runs = _runs(bench, ".")
    folders = [str(one["folder"]).rpartition("/")[2] for one in runs]
    assert sorted(folder.partition(".")[0] for folder in folders) == ["other", "out", "out"]
    assert [one["begun"] for one in runs] == sorted(str(one["begun"]) for one in runs)
    assert bench.call("runs", ".").stdout.count("complete") == 3
