"""Where a command prints to, gone or full; a terminal that is closed; a process that is stopped for a while."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from forked import Child

from tests.cli.bench import Bench, Serve

SLOW = {"latency": {"median_ms": 700, "sigma": 0}}


@pytest.fixture
def slow(bench: Bench, served: Serve) -> Bench:
    """Twelve rows, four at a time, of 0.7 seconds each."""
    bench.environ["TEST_ENDPOINT"] = served(SLOW).url
    return bench


def buffered(bench: Bench) -> dict[str, str]:
    """The environment, in which Python buffers what it prints as it does for users."""
    return {**os.environ, **bench.environ, "PYTHONUNBUFFERED": ""}


def shell(bench: Bench, redirections: str, *options: str) -> int:
    """Run the job from a shell, with its streams as given; the run's own exit code."""
    command = f'"{sys.executable}" -m pipeline run job.yaml {" ".join(options)} {redirections}'
    return subprocess.run(
        ["bash", "-c", command], cwd=bench.folder, env=buffered(bench), check=False, timeout=60
    ).returncode


GONE = {
    "stdout full": ">/dev/full",
    "stdout closed": ">&-",
    "stderr full": "2>/dev/full",
    "stderr closed": "2>&-",
    "everything closed": "<&- >&- 2>&-",
    "everything full": ">/dev/full 2>/dev/full",
    "nobody reads": "> >(exec <&-)",
}


@pytest.mark.parametrize("gone", GONE)
def test_a_stream_that_is_gone_harms_no_run(bench: Bench, gone: str) -> None:
    assert shell(bench, GONE[gone], "--json" if gone == "stdout full" else "") == 0
    assert bench.summary()["state"] == "complete"
    assert len(list(bench.output.glob("*.parquet"))) == 1


def test_no_stream_at_all_hides_no_exit_code(bench: Bench) -> None:
    bench.rows(["question 0?", "poison"])
    assert shell(bench, GONE["everything full"]) == 1
    bench.job.write_text("nonsense")
    assert shell(bench, GONE["everything full"]) == 2


def test_the_reader_of_a_pipeline_may_leave_early(bench: Bench) -> None:
    script = f'set -o pipefail; "{sys.executable}" -m pipeline run job.yaml | head -n 0'
    done = subprocess.run(["bash", "-c", script], cwd=bench.folder, env=buffered(bench), check=False, timeout=60)
    assert done.returncode == 0
    assert bench.summary()["state"] == "complete"


def test_a_terminal_that_goes_away_is_no_reason_to_stop(slow: Bench) -> None:
    screen, terminal = pty.openpty()
    process = slow.popen("run", "job.yaml", stderr=terminal, TERM="xterm")
    os.close(terminal)
    sent = b""
    while b"in flight" not in sent:
        sent += os.read(screen, 65_536)
    os.close(screen)

    stdout, _ = process.communicate(timeout=60)

    assert process.returncode == 0
    assert stdout.startswith("complete: 12 rows ok")


def until_it_sends(bench: Bench, process: Child | subprocess.Popen[str]) -> None:
    """Wait until calls are in flight."""
    while process.poll() is None:
        try:
            if bench.summary()["in_flight"]:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    pytest.fail("the run ended before it sent anything")


def test_a_hangup_ends_a_run_as_cleanly_as_the_other_signals(slow: Bench) -> None:
    process = slow.popen("run", "job.yaml")
    until_it_sends(slow, process)

    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)

    assert process.returncode == 129
    summary = slow.summary()
    assert (summary["state"], summary["reason"], summary["rows"]["failed"]) == ("interrupted", "stopped by SIGHUP", 0)
    assert summary["rows"]["ok"] >= 4
    assert slow.call("run", "job.yaml").exit_code == 0
    assert slow.summary()["attempts"] == 12


@pytest.mark.parametrize("ignored", ["HUP", "INT"])
def test_a_signal_that_the_caller_has_ignored_stays_ignored(slow: Bench, ignored: str) -> None:
    process = subprocess.Popen(
        ["bash", "-c", f"trap '' {ignored}; exec \"{sys.executable}\" -m pipeline run job.yaml"],
        cwd=slow.folder,
        env=buffered(slow),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until_it_sends(slow, process)

    process.send_signal(signal.Signals[f"SIG{ignored}"])
    process.communicate(timeout=60)

    assert process.returncode == 0


def test_a_run_that_was_stopped_for_longer_than_its_deadlines_goes_on(slow: Bench) -> None:
    process = slow.popen("run", "job.yaml", "--set", "run.timeout=2s")
    until_it_sends(slow, process)

    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)

    assert process.returncode == 0
    summary = slow.summary()
    assert (summary["rows"]["ok"], summary["rows"]["failed"]) == (12, 0)
    print(f"\n{summary['attempts']} attempts for 12 rows, 4 of them in flight when the process was stopped")
    assert summary["attempts"] <= 12 + 4
