"""What `pipeline schedule` prints, run by Debian's cron and judged by systemd itself: `make test-schedulers`.

Cron runs in a mount namespace of its own, in which the machine's crontabs are not to be seen; that needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.simulator.serve import SimulatorProcess, start
from tests.cli.bench import JOB, KEY
from tests.unit.views.test_schedule import TIMES

pytestmark = [pytest.mark.scheduler, pytest.mark.timeout(300)]
FOLDERS = ("plain", "with spaces", "100% it's", "a\\%b $HOME ;#", '%n %% m\u00fcller = "x"')
ISOLATED = """
mount -t tmpfs none /run && mount -t tmpfs none /var/spool/cron && mount -t tmpfs none /etc/cron.d &&
mount --bind /dev/null /etc/crontab && mkdir -m 1730 /var/spool/cron/crontabs && crontab "$1" && exec cron -f
"""


def _needs(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        assert not os.environ.get("CI"), f"CI must have {missing}"
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install cron systemd)")


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with start({"keys": [KEY], "vectors": "hash"}) as process:
        yield process


def _job(folder: Path, simulator: SimulatorProcess) -> Path:
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text('{"id": "a", "question": "one?"}\n{"id": "b", "question": "two?"}\n')
    (folder / "job file.yaml").write_text(JOB)
    (folder / "secret.env").write_text(f"TEST_ENDPOINT={simulator.url}\nTEST_KEY={KEY}\n")
    return folder / "job file.yaml"


def _schedule(job: Path, *options: str) -> str:
    arguments = ["schedule", str(job), "--env-file", str(job.with_name("secret.env")), *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_real_cron_runs_the_line_whatever_the_folders_name(tmp_path: Path, simulator: SimulatorProcess) -> None:
    _needs("cron", "crontab", "unshare")
    if os.geteuid():
        pytest.skip("cron can only be run apart by root")
    jobs = [_job(tmp_path / name, simulator) for name in FOLDERS]
    table = tmp_path / "crontab"
    table.write_text("".join(_schedule(job, "--at", "every minute") for job in jobs))
    logs = [job.with_suffix(".log") for job in jobs]
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", ISOLATED, "sh", str(table)],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    try:
        until = time.monotonic() + 200
        waiting = jobs
        while waiting:
            assert time.monotonic() < until, [log.read_text() if log.exists() else "no log" for log in logs]
            assert process.poll() is None
            time.sleep(0.5)
            waiting = [job for job in jobs if not (job.parent / "out" / "_pipeline" / "checksums.json").is_file()]
    finally:
        process.kill()
        process.wait(20)

    for job, log in zip(jobs, logs, strict=True):
        (part,) = (job.parent / "out").glob("part-*.parquet")
        assert pq.read_table(part).column("status").to_pylist() == ["ok", "ok"]
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        assert lines[0]["event"] == "run_started"


@pytest.mark.parametrize("folder", FOLDERS)
def test_systemd_finds_nothing_wrong_with_the_units(folder: str, tmp_path: Path, simulator: SimulatorProcess) -> None:
    _needs("systemd-analyze")
    job = _job(tmp_path / folder, simulator)
    _schedule(job, "--at", "weekdays 02:15", "--for", "systemd", "--write", str(tmp_path / "units"))
    units = sorted((tmp_path / "units").iterdir())
    ended = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)

    assert [unit.name for unit in units] == ["pipeline-asked.service", "pipeline-asked.timer"]
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


@pytest.mark.parametrize("text", TIMES)
def test_systemd_reads_every_time(text: str) -> None:
    _needs("systemd-analyze")
    ended = subprocess.run(["systemd-analyze", "calendar", TIMES[text][1]], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "Normalized form" in ended.stdout


def test_systemd_would_notice_a_wrong_unit(tmp_path: Path) -> None:
    _needs("systemd-analyze")
    unit = tmp_path / "wrong.service"
    unit.write_text("[Service]\nType=oneshot\nExecStart=/no/such/program\n")

    assert subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, check=False).returncode != 0
