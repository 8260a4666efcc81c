"""What happens to files under a run: each ends with an exit code and a few words that say what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from forked import Child

from tests.cli.bench import Bench, Serve

SLOW = {"latency": {"median_ms": 700, "sigma": 0}}


def until_rows_are_ok(bench: Bench, process: Child) -> None:
    """Wait until some answers are kept."""
    while process.poll() is None:
        try:
            if bench.summary()["rows"]["ok"]:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.01)
    pytest.fail("the run ended before a row was ok")


def delete(bench: Bench) -> None:
    shutil.rmtree(bench.output)


def move(bench: Bench) -> None:
    bench.output.rename(bench.folder / "elsewhere")


def delete_journal(bench: Bench) -> None:
    for path in (bench.output / "_pipeline" / "journal").glob("00.sqlite*"):
        path.unlink()


def cut_input(bench: Bench) -> None:
    os.truncate(bench.folder / "rows.jsonl", 3000)


ODDITIES: dict[str, tuple[Callable[[Bench], None], int, str]] = {
    "the output folder is deleted": (delete, 5, "was moved or deleted while the run wrote to it"),
    "the output folder is moved": (move, 5, "was moved or deleted while the run wrote to it"),
    "the journal is deleted": (delete_journal, 5, "was moved or deleted while the run wrote to it"),
    "the input is cut": (cut_input, 2, "the input was cut while it was read"),
}


@pytest.mark.parametrize("name", ODDITIES)
def test_what_is_taken_away_under_a_run_ends_it_in_plain_words(bench: Bench, served: Serve, name: str) -> None:
    act, code, words = ODDITIES[name]
    bench.environ["TEST_ENDPOINT"] = served(SLOW).url
    usual = bench.job.read_text().replace("workers: 4", "workers: 8\n  grace: 5s\n  window: 1B")
    bench.job.write_text(usual.replace("path: out", "path: out\n  part_rows: 32"))
    bench.rows([f"question {number}?" for number in range(4000)])
    process = bench.popen("run", "job.yaml", "--progress", "none", "--log-format", "console")
    until_rows_are_ok(bench, process)

    act(bench)
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == code, stderr
    assert words in stdout, stderr
    assert "run the same command again" in stdout
    assert "Traceback" not in stderr
    assert "defect" not in stdout + stderr


def test_a_folder_that_was_moved_and_is_put_back_is_continued(bench: Bench, served: Serve) -> None:
    bench.environ["TEST_ENDPOINT"] = served(SLOW).url
    process = bench.popen("run", "job.yaml")
    until_rows_are_ok(bench, process)
    move(bench)
    process.communicate(timeout=60)
    (bench.folder / "elsewhere").rename(bench.output)

    assert bench.call("run", "job.yaml").exit_code == 0
    assert bench.summary()["attempts"] == 12


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root: a read-only disk is NOT TESTED")
def test_a_disk_that_may_only_be_read_is_said_before_anything_is_sent(bench: Bench) -> None:
    disk = bench.folder / "disk"
    disk.mkdir()
    bench.job.write_text(bench.job.read_text().replace("path: out", "path: disk/out"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(disk)], check=True)
    try:
        done = bench.call("run", "job.yaml")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert done.exit_code == 5
    assert "Read-only file system" in done.stderr
    assert str(Path("disk") / "out") in done.stderr
