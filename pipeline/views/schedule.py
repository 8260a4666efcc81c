"""A job on a schedule: what cron, systemd, Kubernetes and GitHub are to be given for it, quoted for each. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any

import yaml

CRON_COMMAND_CHARS = 998
"""Characters that Debian's cron takes of a command (MAX_COMMAND, less its end)."""
NO_MAIL = (0, 4, 75, 129, 130, 143)
"""Exit codes that nobody needs to hear of: done, or gone on with by the next call."""
FINAL = (1, 2, 3, 5)
"""Exit codes that running again does not mend."""
HELD = 75
RESTART_S = 600
SPARE_S = 15
"""Seconds beyond run.grace before a run that was asked to stop is killed."""
GITHUB_DEADLINE_S = 5 * 3600 + 1800
"""Seconds; GitHub ends a job after six hours."""

_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_FIELDS: tuple[tuple[str, int, int, Mapping[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
    ("day of the week", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_CLOCK = re.compile(r"(?:(?P<days>[a-z,-]+) )?(?P<hour>\d{1,2}):(?P<minute>\d\d)")
_EVERY = re.compile(r"every (?:(?P<number>\d+) )?(?P<unit>minute|hour)s?")
_ITEM = re.compile(r"(?P<first>\*|\w+)(?:-(?P<last>\w+))?(?:/(?P<step>\d+))?")
_USUAL = "02:15, weekdays 02:15, mon,thu 22:00, every 15 minutes, every 6 hours, or the five fields of cron"


class ScheduleError(ValueError):
    """What is asked for cannot be written for that scheduler. The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """When to run: `fields` are cron's five, as they were given or made; the sets are what each of them means."""

    fields: tuple[str, str, str, str, str]
    sets: tuple[frozenset[int], frozenset[int], frozenset[int], frozenset[int], frozenset[int]]

    @property
    def cron(self) -> str:
        """The five fields."""
        return " ".join(self.fields)

    @property
    def calendar(self) -> str:
        """The same for systemd's OnCalendar. Raises ScheduleError for days that it would join otherwise than cron."""
        minutes, hours, days, months, weekdays = self.sets
        if self.fields[2][0] != "*" and self.fields[4][0] != "*":
            raise ScheduleError(
                "systemd cannot run on days of the month or of the week, as cron does where both are named: name one"
            )
        week = (
            "" if len(weekdays) == len(_DAYS) else ",".join(_DAYS[day].capitalize() for day in sorted(weekdays)) + " "
        )
        return f"{week}*-{_listed(months, 3)}-{_listed(days, 2)} {_listed(hours, 1)}:{_listed(minutes, 0)}:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """What is to run. `program` is what `pipeline` is called by, `arguments` are more options of `run`.

    `folder` holds job, input and output, for what needs to mount it; `variables` are those that the job file reads.
    `timezone` is an IANA name; None: the scheduler's own. `grace_s` is run.grace.
    """

    name: str
    program: tuple[str, ...]
    job: PurePath
    log: PurePath
    folder: PurePath
    times: Times
    arguments: tuple[str, ...] = ()
    env_file: PurePath | None = None
    timezone: str | None = None
    grace_s: float = 25.0
    variables: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        """The whole command: JSON lines on stderr, nothing that redraws."""
        return (*self.program, "run", str(self.job), "--log-format", "json", "--progress", "plain", *self.arguments)

    @property
    def slug(self) -> str:
        """The name as units and objects may have it: lower-case letters, digits and single hyphens."""
        return "pipeline-" + (re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40].strip("-") or "job")


def read_times(text: str) -> Times:
    """Read when to run. Raises ScheduleError."""
    words = " ".join(text.lower().split())
    if match := _EVERY.fullmatch(words):
        fields = _every(int(match["number"] or 1), match["unit"])
    elif match := _CLOCK.fullmatch(words):
        fields = str(int(match["minute"])), str(int(match["hour"])), "*", "*", _weekdays(match["days"])
    else:
        parts = words.split()
        if len(parts) != len(_FIELDS):
            raise ScheduleError(f"{text!r} is no time: write {_USUAL}")
        fields = parts[0], parts[1], parts[2], parts[3], parts[4]
    sets = [_set(value, *field) for value, field in zip(fields, _FIELDS, strict=True)]
    sets[4] = frozenset(day % len(_DAYS) for day in sets[4])
    return Times(fields=fields, sets=(sets[0], sets[1], sets[2], sets[3], sets[4]))


def cron(scheduled: Scheduled) -> str:
    """A line for `crontab -e`. It mails only what a person must act on. Raises ScheduleError."""
    if scheduled.timezone is not None:
        raise ScheduleError("cron goes by the machine's time zone: leave --timezone out, or take --for systemd")
    log, job = shlex.quote(str(scheduled.log)), shlex.quote(str(scheduled.job))
    known = "|".join(map(str, NO_MAIL))
    command = f"{shlex.join(scheduled.command)} >>{log} 2>&1"
    if scheduled.env_file is not None:
        command = f"set -a; . {shlex.quote(str(scheduled.env_file))}; set +a; {command}"
    command += f"; code=$?; case $code in {known}) ;; *) echo pipeline run {job} ended with $code, see {log};; esac"
    line = f"{scheduled.times.cron} {_for_cron(command)}"
    if len(_for_cron(command)) > CRON_COMMAND_CHARS:
        raise ScheduleError(
            f"the line would be longer than cron takes ({CRON_COMMAND_CHARS} characters): give the job a shorter path"
        )
    _check(line)
    return (
        "# For `crontab -e`. A run that was stopped early (4) is gone on with next time, one that still goes on (75)\n"
        "# is left alone, every other failure is mailed. Without --env-file, set the job's variables above this line.\n"
        f"{line}\n"
    )


def systemd(scheduled: Scheduled) -> dict[str, str]:
    """A service and its timer, by the names of their files. Raises ScheduleError."""
    program = scheduled.command[0]
    if "$" in program and "=" in program:
        raise ScheduleError(f"systemd cannot call {program}: install it where the path has no $ or =")
    called = ("/usr/bin/env", *scheduled.command) if "$" in program else scheduled.command
    lines = [
        "[Unit]",
        f"Description={_raw(scheduled.name)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=1d",
        "StartLimitBurst=48",
        "",
        "[Service]",
        "Type=oneshot",
    ]
    if scheduled.env_file is not None:
        lines.append(f"EnvironmentFile={_raw(str(scheduled.env_file))}")
    lines += [
        f"ExecStart={' '.join(map(_for_systemd, called))}",
        "# Another run holds the folder: fine.",
        f"SuccessExitStatus={HELD}",
        "# Stopped early (4), a defect, killed: again. What needs a person: not.",
        "Restart=on-failure",
        f"RestartPreventExitStatus={' '.join(map(str, FINAL))}",
        f"RestartSec={RESTART_S}",
        "# Longer than run.grace: calls in flight are kept.",
        f"TimeoutStopSec={_stop_s(scheduled)}",
        "NoNewPrivileges=true",
    ]
    when = scheduled.times.calendar + ("" if scheduled.timezone is None else f" {scheduled.timezone}")
    timer = [
        "[Unit]",
        f"Description={_raw(scheduled.name)}, on its schedule",
        "",
        "[Timer]",
        f"OnCalendar={when}",
        "Persistent=true",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    for line in (*lines, *timer):
        _check(line)
    return {
        f"{scheduled.slug}.service": "\n".join(lines) + "\n",
        f"{scheduled.slug}.timer": "\n".join(timer) + "\n",
    }


def kubernetes(scheduled: Scheduled, *, image: str, claim: str | None) -> str:
    """A CronJob over a volume that holds the job, its input and its output at the same paths as here."""
    name = scheduled.slug
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": list(FINAL)}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [HELD]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
    ]
    container = {
        "name": "pipeline",
        "image": image,
        "command": [_for_kubernetes(one) for one in ("pipeline", *scheduled.command[len(scheduled.program) :])],
        "envFrom": [{"secretRef": {"name": name}}],
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "work", "mountPath": str(scheduled.folder)}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - in a container of its own
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": _stop_s(scheduled),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "work", "persistentVolumeClaim": {"claimName": claim or name}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    spec: dict[str, Any] = {"schedule": scheduled.times.cron}
    if scheduled.timezone is not None:
        spec["timeZone"] = scheduled.timezone
    spec |= {
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "jobTemplate": {"spec": {"backoffLimit": 20, "podFailurePolicy": {"rules": rules}, "template": {"spec": pod}}},
    }
    manifest = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": spec}
    return (
        "# Exit codes 1, 2, 3 and 5 need a person and fail the Job; 75 (another run holds the folder) is tried again\n"
        "# and counts for nothing; the others, 4 among them, are tried again with back-off. The claim holds the job\n"
        f"# file, its input and its output at the paths below. The Secret {name} holds the variables that the job\n"
        f"# reads{_named(scheduled.variables)}, and the key's where it names none.\n" + _yaml(manifest)
    )


def github(scheduled: Scheduled, *, job: PurePosixPath, output: PurePosixPath) -> str:
    """A workflow; `job` and `output` are relative to the repository. What a run left is kept in the cache between runs.

    Raises ScheduleError.
    """
    if scheduled.timezone not in {None, "UTC"}:
        raise ScheduleError("GitHub goes by UTC: give --at in UTC, and leave --timezone out")
    script = (
        "set +e\n"
        'pipeline run "$JOB" --log-format json --progress plain '
        f"--deadline {GITHUB_DEADLINE_S}s{''.join(f' {shlex.quote(one)}' for one in scheduled.arguments)}\n"
        "code=$?\n"
        "case $code in\n"
        f'  4|{HELD}|129|130|143) echo "::notice::pipeline ended with $code; the next run goes on" ;;\n'
        "  *) exit $code ;;\n"
        "esac\n"
    )
    # The name of a variable in the environment is no content: the values are the repository's secrets.
    secret = {name: f"${{{{ secrets.{name} }}}}" for name in scheduled.variables}
    key = f"{scheduled.slug}-${{{{ github.run_id }}}}-${{{{ github.run_attempt }}}}"
    steps: list[dict[str, Any]] = [
        {"uses": "actions/checkout@v4"},
        {"uses": "actions/setup-python@v5", "with": {"python-version": "3.13"}},
        {"run": "pip install aoai-pipeline"},
        {
            "uses": "actions/cache/restore@v4",
            "with": {"path": _for_github(str(output)), "key": key, "restore-keys": f"{scheduled.slug}-"},
        },
        {"name": "run", "shell": "bash", "env": {"JOB": _for_github(str(job)), **secret}, "run": _for_github(script)},
        # However it ended: what was paid for is kept.
        {
            "uses": "actions/cache/save@v4",
            "if": "always()",
            "with": {"path": _for_github(str(output)), "key": key},
        },
        {
            "uses": "actions/upload-artifact@v4",
            "if": "always()",
            "with": {
                "name": "report",
                "path": _for_github(str(output / "_pipeline" / "report.html")),
                "include-hidden-files": True,
            },
        },
    ]
    workflow = {
        "name": _for_github(scheduled.name),
        "on": {"schedule": [{"cron": scheduled.times.cron}], "workflow_dispatch": {}},
        "permissions": {"contents": "read"},
        "concurrency": {"group": scheduled.slug, "cancel-in-progress": False},
        "jobs": {"run": {"runs-on": "ubuntu-latest", "timeout-minutes": 360, "steps": steps}},
    }
    return (
        "# For .github/workflows; times are UTC. A run that was stopped early (4) is gone on with by the next one;\n"
        "# what needs a person fails the workflow. The output folder, answers included, lies in the repository's\n"
        "# cache, which forgets what nobody used for a week: a run that begins anew then pays anew.\n"
        "# `pip install` asks the index of your runners; from a checkout it is `pip install FOLDER`. A key that the\n"
        "# job does not name has to be handed over by the name that it is read from, beside the others under `env`.\n"
        + _yaml(workflow)
    )


def _every(number: int, unit: str) -> tuple[str, str, str, str, str]:
    most = 60 if unit == "minute" else 24
    if not number or most % number:
        raise ScheduleError(f"every {number} {unit}s does not come out even: {most} must be a multiple of it")
    step = "*" if number == 1 else f"*/{number}"
    return (step, "*", "*", "*", "*") if unit == "minute" else ("0", step, "*", "*", "*")


def _weekdays(days: str | None) -> str:
    return {None: "*", "daily": "*", "weekdays": "1-5", "weekends": "0,6"}.get(days, days or "*")


def _set(text: str, name: str, low: int, high: int, names: Mapping[str, int]) -> frozenset[int]:
    """What a field of cron means. Raises ScheduleError."""
    found: set[int] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ScheduleError(f"{text!r} is no {name}: write {_USUAL}")
        whole = match["first"] == "*"
        first = low if whole else _number(match["first"], names)
        last = _number(match["last"], names) if match["last"] else high if whole or match["step"] else first
        step = int(match["step"] or 1)
        if first is None or last is None or not low <= first <= last <= high or not step or (whole and match["last"]):
            raise ScheduleError(f"{text!r} is no {name}: it goes from {low} to {high}")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(text: str, names: Mapping[str, int]) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else names.get(text)


def _listed(numbers: frozenset[int], field: int) -> str:
    """A set as systemd writes it."""
    _, low, high, _ = _FIELDS[field]
    whole = len(numbers) == high - low + 1
    return "*" if whole else ",".join(f"{number:02d}" for number in sorted(numbers))


def _for_cron(command: str) -> str:
    r"""Escape what ends a command for cron. It reads `\%` as `%`, and `\\%` as a backslash and the end."""
    return re.sub(r"(\\?)%", lambda found: ("\\''" if found[1] else "") + r"\%", command)


def _for_systemd(text: str) -> str:
    """Quote an argument: systemd expands `%` and `$`, and reads backslashes as C does."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@+=:,./%-]+", escaped) else f'"{escaped}"'


def _raw(text: str) -> str:
    """A value that systemd reads to the end of its line. Raises ScheduleError for one that would lose its ends."""
    if text != text.strip() or text.endswith("\\"):
        raise ScheduleError(f"systemd would lose an end of {text!r}: rename it")
    return text.replace("%", "%%")


def _for_kubernetes(text: str) -> str:
    """Keep Kubernetes from reading `$(NAME)`."""
    return text.replace("$(", "$$(")


def _for_github(text: str) -> str:
    """Keep GitHub from reading `${{ … }}`."""
    return text.replace("${{", "${{ '${{' }}")


def _check(line: str) -> None:
    if not all(one.isprintable() or one == " " for one in line):
        raise ScheduleError("a path or name has a control character or a line end: rename it")


def _stop_s(scheduled: Scheduled) -> int:
    return math.ceil(scheduled.grace_s) + SPARE_S


def _named(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


def _yaml(value: Mapping[str, Any]) -> str:
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=200)
    return text


class _Dumper(yaml.SafeDumper):
    """Writes scripts as blocks, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - yaml's signature
        """Write what stands twice twice."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Write a text of several lines as a block."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)


_Dumper.add_representer(str, _Dumper.represent_str)
