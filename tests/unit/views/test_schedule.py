from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from pipeline.views.schedule import Scheduled, ScheduleError, cron, github, kubernetes, read_times, systemd

HOSTILE = [
    "/srv/plain/job.yaml",
    "/srv/with spaces/job file.yaml",
    "/srv/100%/job.yaml",
    "/srv/a\\%b/job.yaml",
    "/srv/a\\\\%%b\\/job.yaml",
    '/srv/it\'s "quoted"/job.yaml',
    "/srv/$HOME/`id`/$(id)/job.yaml",
    "/srv/;rm -rf/&&/|/job.yaml",
    "/srv/${{ secrets.KEY }}/job.yaml",
    "/srv/#no comment/*.yaml",
    "/srv/m\u00fcller/\u65e5\u672c/job.yaml",
    "/srv/-dash/~/job.yaml",
    "/srv/a=b/%n %h/job.yaml",
]


def _scheduled(path: str = HOSTILE[0], at: str = "02:15") -> Scheduled:
    return Scheduled(
        name="nightly",
        program=("/opt/bin/pipeline",),
        job=PurePosixPath(path),
        log=PurePosixPath(path).with_suffix(".log"),
        folder=PurePosixPath(path).parent,
        times=read_times(at),
    )


def _as_cron_does(line: str) -> str:
    """The command that Debian's cron hands to the shell: do_command.c, child_process()."""
    command = line.split(None, 5)[5]
    done, escaped = "", False
    for one in command:
        if escaped:
            done = done[:-1] + one if one == "%" else done + one
            escaped = False
        elif one == "%":
            return done
        else:
            done += one
            escaped = one == "\\"
    return done


def _as_systemd_does(value: str) -> list[str]:
    """The words of an ExecStart: quotes and backslashes as in C, then %% and $$ (systemd.service, COMMAND LINES)."""
    words = [
        re.sub(r"\\(.)", r"\1", quoted or plain) for quoted, plain in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', value)
    ]
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


@pytest.mark.parametrize("path", HOSTILE)
def test_cron_calls_the_very_command_for_any_path(path: str, tmp_path: Path) -> None:
    printer = tmp_path / "pipeline"
    printer.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 4\n')
    printer.chmod(0o755)
    scheduled = replace(_scheduled(path), program=(str(printer),), log=tmp_path / PurePosixPath(path).parent.name)
    (line,) = [line for line in cron(scheduled).splitlines() if not line.startswith("#")]
    ended = subprocess.run(["/bin/sh", "-c", _as_cron_does(line)], capture_output=True, text=True, check=False, cwd="/")

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    said = Path(str(scheduled.log)).read_text().splitlines()
    assert said == list(scheduled.command[1:])


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 70, 75, 130, 143])
def test_cron_mails_what_a_person_must_act_on_and_nothing_else(code: int, tmp_path: Path) -> None:
    printer = tmp_path / "pipeline"
    printer.write_text(f"#!/bin/sh\necho noise\nexit {code}\n")
    printer.chmod(0o755)
    scheduled = replace(_scheduled(), program=(str(printer),), log=tmp_path / "log")
    command = _as_cron_does(cron(scheduled).splitlines()[-1])
    ended = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)

    mailed = ended.stdout + ended.stderr
    assert bool(mailed) == (code in {1, 2, 3, 5, 70})
    assert f"ended with {code}" in mailed or not mailed


def test_cron_reads_the_environment_file_first(tmp_path: Path) -> None:
    secrets = tmp_path / "it's 100% secret.env"
    secrets.write_text("KEY_OF_TEST=from-the-file\n")
    printer = tmp_path / "pipeline"
    printer.write_text("#!/bin/sh\necho $KEY_OF_TEST\n")
    printer.chmod(0o755)
    scheduled = replace(_scheduled(), program=(str(printer),), log=tmp_path / "log", env_file=secrets)
    subprocess.run(["/bin/sh", "-c", _as_cron_does(cron(scheduled).splitlines()[-1])], check=True)

    assert (tmp_path / "log").read_text() == "from-the-file\n"


def test_a_line_that_cron_would_cut_is_refused() -> None:
    with pytest.raises(ScheduleError, match="shorter path"):
        cron(_scheduled("/srv/" + "long/" * 200 + "job.yaml"))


@pytest.mark.parametrize("path", HOSTILE)
def test_systemd_calls_the_very_command_for_any_path(path: str) -> None:
    service = systemd(_scheduled(path))["pipeline-nightly.service"]
    (line,) = [line for line in service.splitlines() if line.startswith("ExecStart=")]

    assert _as_systemd_does(line.removeprefix("ExecStart=")) == list(_scheduled(path).command)


def test_systemd_is_told_what_each_exit_code_means() -> None:
    service = systemd(replace(_scheduled(), grace_s=100.0))["pipeline-nightly.service"]

    assert "SuccessExitStatus=75\n" in service
    assert "Restart=on-failure\nRestartPreventExitStatus=1 2 3 5\n" in service
    assert "TimeoutStopSec=115\n" in service


def test_a_program_whose_path_has_a_dollar_is_called_by_env() -> None:
    service = systemd(replace(_scheduled(), program=("/opt/$x/pipeline",)))["pipeline-nightly.service"]

    assert 'ExecStart=/usr/bin/env "/opt/$$x/pipeline" run' in service
    with pytest.raises(ScheduleError, match="install it"):
        systemd(replace(_scheduled(), program=("/opt/$x=/pipeline",)))


@pytest.mark.parametrize("target", [cron, systemd])
@pytest.mark.parametrize("path", ["/srv/a\nb/job.yaml", "/srv/a\x1b/job.yaml", "/srv/a\u202e/job.yaml"])
def test_a_path_that_no_line_can_hold_is_refused(path: str, target: object) -> None:
    with pytest.raises(ScheduleError, match="rename it"):
        target(_scheduled(path))  # type: ignore[operator]


@pytest.mark.parametrize("path", HOSTILE)
def test_kubernetes_calls_the_very_command_for_any_path(path: str) -> None:
    value = yaml.safe_load(kubernetes(_scheduled(path), image="r/p:1", claim=None))
    spec = value["spec"]["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]

    assert [one.replace("$$(", "$(") for one in container["command"]] == ["pipeline", *_scheduled(path).command[1:]]
    assert container["volumeMounts"][0]["mountPath"] == str(PurePosixPath(path).parent)
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 40
    rules = {
        code: rule["action"]
        for rule in spec["podFailurePolicy"]["rules"]
        for code in rule.get("onExitCodes", {}).get("values", ())
    }
    assert rules == {1: "FailJob", 2: "FailJob", 3: "FailJob", 5: "FailJob", 75: "Ignore"}
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # which podFailurePolicy needs
    assert value["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("code", [0, 3, 4, 75])
def test_the_workflow_calls_the_very_command_and_fails_for_what_needs_a_person(
    path: str, code: int, tmp_path: Path
) -> None:
    inside = PurePosixPath(path.removeprefix("/"))
    value = yaml.safe_load(
        github(replace(_scheduled(path), variables=("KEY",)), job=inside, output=PurePosixPath("out/x"))
    )
    steps = value["jobs"]["run"]["steps"]
    (step,) = [step for step in steps if step.get("name") == "run"]
    job = step["env"]["JOB"].replace("${{ '${{' }}", "${{")
    printer = tmp_path / "pipeline"
    printer.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@"\nexit {code}\n')
    printer.chmod(0o755)
    ended = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        env={"JOB": job, "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == (3 if code == 3 else 0)
    assert ended.stdout.splitlines()[:2] == ["run", str(inside)]
    assert step["env"]["KEY"] == "${{ secrets.KEY }}"
    assert [one["if"] for one in steps if "cache/save" in one.get("uses", "")] == ["always()"]
    assert value["on"]["schedule"] == [{"cron": "15 2 * * *"}]
    assert value["concurrency"]["cancel-in-progress"] is False


TIMES = {
    "02:15": ("15 2 * * *", "*-*-* 02:15:00"),
    "daily 2:05": ("5 2 * * *", "*-*-* 02:05:00"),
    "weekdays 02:15": ("15 2 * * 1-5", "Mon,Tue,Wed,Thu,Fri *-*-* 02:15:00"),
    "Mon,Thu 22:00": ("0 22 * * mon,thu", "Mon,Thu *-*-* 22:00:00"),
    "sun 00:00": ("0 0 * * sun", "Sun *-*-* 00:00:00"),
    "0 0 * * 7": ("0 0 * * 7", "Sun *-*-* 00:00:00"),
    "every 15 minutes": ("*/15 * * * *", "*-*-* *:00,15,30,45:00"),
    "every minute": ("* * * * *", "*-*-* *:*:00"),
    "every 6 hours": ("0 */6 * * *", "*-*-* 00,06,12,18:00:00"),
    "5-20/5 8-10 1,15 jan-mar *": ("5-20/5 8-10 1,15 jan-mar *", "*-01,02,03-01,15 08,09,10:05,10,15,20:00"),
}


@pytest.mark.parametrize("text", TIMES)
def test_times_are_the_same_for_cron_and_systemd(text: str) -> None:
    times = read_times(text)

    assert (times.cron, times.calendar) == TIMES[text]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noon",
        "25:00",
        "02:60",
        "every 7 minutes",
        "every 0 hours",
        "* * * *",
        "60 * * * *",
        "* * 0 * *",
        "5-1 * * * *",
        *[
            "*/0 * * * *",
            "* * * foo *",
            "*-5 * * * *",
            "a; rm 02:15",
            "someday 02:15",
            "1,,2 * * * *",
            "\u0665 * * * *",
        ],
    ],
)
def test_what_is_no_time_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ScheduleError):
        read_times(text)


def test_days_that_cron_and_systemd_read_differently_are_refused_for_systemd() -> None:
    with pytest.raises(ScheduleError, match="name one"):
        systemd(_scheduled(at="0 0 1 * mon"))


@pytest.mark.parametrize(("target", "zone"), [("cron", "Europe/Berlin"), ("github", "Europe/Berlin")])
def test_a_time_zone_is_refused_where_it_would_be_ignored(target: str, zone: str) -> None:
    scheduled = replace(_scheduled(), timezone=zone)
    with pytest.raises(ScheduleError, match=r"zone|UTC"):
        _ = (
            cron(scheduled)
            if target == "cron"
            else github(scheduled, job=PurePosixPath("a"), output=PurePosixPath("b"))
        )


def test_a_time_zone_goes_to_those_that_know_it() -> None:
    scheduled = replace(_scheduled(), timezone="Europe/Berlin")

    assert "OnCalendar=*-*-* 02:15:00 Europe/Berlin\n" in systemd(scheduled)["pipeline-nightly.timer"]
    assert yaml.safe_load(kubernetes(scheduled, image="i", claim="c"))["spec"]["timeZone"] == "Europe/Berlin"


@pytest.mark.parametrize("name", ["N\u00e4chtlich & mehr", "--x--", "\u65e5\u672c", "A" * 90, "%n $x"])
def test_any_name_becomes_one_that_units_and_objects_may_have(name: str) -> None:
    assert re.fullmatch("pipeline-[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", replace(_scheduled(), name=name).slug)
    assert shlex.quote(replace(_scheduled(), name=name).slug) == replace(_scheduled(), name=name).slug


def _told_by_kubernetes(spec: dict[str, Any], code: int) -> str:
    """What a Job controller does about a pod that ended so: the first rule that fits decides; without one it counts."""
    if code == 0:
        return "done"
    for rule in spec["podFailurePolicy"]["rules"]:
        wanted = rule.get("onExitCodes")
        if wanted is not None and (code in wanted["values"]) == (wanted["operator"] == "In"):
            return {"FailJob": "no restart", "Ignore": "a new pod, which counts for nothing", "Count": "restart"}[
                rule["action"]
            ]
    return "restart"


def _said_in_the_docs() -> dict[int, str]:
    """The column for Kubernetes of the table of exit codes, by code."""
    text = (Path(__file__).parents[3] / "docs" / "running.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if re.match(r"\| \d", line)]
    return {int(code): cells[-1].strip() for cells in rows if len(cells) == 4 for code in cells[0].split(",")}


def test_kubernetes_does_with_each_exit_code_what_the_docs_say() -> None:
    value = yaml.safe_load(kubernetes(_scheduled(HOSTILE[0]), image="r/p:1", claim=None))
    spec = value["spec"]["jobTemplate"]["spec"]
    said = _said_in_the_docs()

    assert set(said) == {0, 1, 2, 3, 4, 5, 70, 75, 129, 130, 143}
    for code, words in said.items():
        assert words.startswith(_told_by_kubernetes(spec, code)), code


def test_the_api_server_takes_the_failure_policy() -> None:
    value = yaml.safe_load(kubernetes(_scheduled(HOSTILE[0]), image="r/p:1", claim=None))
    spec = value["spec"]["jobTemplate"]["spec"]

    assert spec["template"]["spec"]["restartPolicy"] == "Never", "a failure policy is for no other"
    assert spec["backoffLimit"] > 0, "what is tried again must have tries"
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in {"FailJob", "FailIndex", "Ignore", "Count"}
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule), "one of both, never both"
        codes = rule.get("onExitCodes", {"operator": "In", "values": [1]})
        assert codes["operator"] in {"In", "NotIn"}
        assert codes["values"] == sorted(set(codes["values"])), "in order, each once"
        assert 0 not in codes["values"], "success is no failure"
        assert 1 <= len(codes["values"]) <= 255
