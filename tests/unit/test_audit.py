"""CI's audit of packages: a known hole fails, what could not be asked is said, nothing else reads as clean."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load() -> ModuleType:
    path = Path(__file__).parents[2] / ".ci" / "audit.py"
    spec = importlib.util.spec_from_file_location("ci_audit", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


audit = load()
CLEAN = {"name": "attrs", "version": "25.1", "vulns": []}
HOLE = {"name": "jinja2", "version": "3.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1"], "aliases": []}]}
UNFIXED = {"name": "yaml", "version": "6", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}
SKIPPED = {"name": "other", "skip_reason": "Dependency not found on PyPI and could not be audited: other (1)"}


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.mark.parametrize(
    ("text", "holes", "warning"),
    [
        (report(CLEAN, CLEAN), (), None),
        (report(CLEAN, HOLE), ("jinja2 3.0: PYSEC-1, fixed in 3.1",), None),
        (report(UNFIXED), ("yaml 6: PYSEC-2, fixed in ?",), None),
        (report(CLEAN, SKIPPED, SKIPPED), (), "2 of 3 packages could not be audited"),
        (report(SKIPPED, HOLE), ("jinja2 3.0: PYSEC-1, fixed in 3.1",), "1 of 2 packages could not be audited"),
        (report(), (), "no package was audited: the report names none"),
        ("", (), "no package could be audited: pip-audit gave no report"),
        ("ERROR: no network", (), "no package could be audited: pip-audit gave no report"),
        ("[]", (), "no package could be audited: pip-audit gave no report"),
        ("{}", (), "no package could be audited: pip-audit gave no report"),
        ('{"dependencies": 5}', (), "no package could be audited: pip-audit gave no report"),
        ('{"dependencies": [5]}', (), "no package could be audited: pip-audit gave no report"),
        (report({"name": "a", "vulns": [{}]}), (), "no package could be audited: pip-audit gave no report"),
    ],
)
def test_a_report_is_holes_and_what_was_not_asked(text: str, holes: tuple[str, ...], warning: str | None) -> None:
    verdict = audit.judge(text)
    assert (verdict.holes, verdict.warning) == (holes, warning)


def command(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.mark.parametrize(
    ("program", "warning"),
    [
        (command(f"print({report(CLEAN)!r})"), None),
        (command(f"print({report(CLEAN, SKIPPED)!r})"), "1 of 2 packages could not be audited"),
        (command("raise SystemExit('unreachable')"), "no package could be audited: pip-audit gave no report"),
        (
            ("/nowhere/pip-audit",),
            "no package could be audited: pip-audit cannot be started (No such file or directory)",
        ),
    ],
)
def test_what_cannot_be_asked_is_a_warning(tmp_path: Path, program: tuple[str, ...], warning: str | None) -> None:
    lock = tmp_path / "requirements.lock"
    lock.touch()
    verdict = audit.ask(lock, command=program)
    assert (verdict.holes, verdict.warning) == ((), warning)


def test_a_service_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.touch()
    begun = time.monotonic()
    verdict = audit.ask(lock, command=command("import time; time.sleep(60)"), seconds=0.5)
    assert verdict.warning == "no package could be audited: no answer within 0.5 s"
    assert time.monotonic() - begun < 30


def test_a_missing_lock_file_is_a_warning(tmp_path: Path) -> None:
    assert audit.ask(tmp_path / "none.lock").warning.startswith("no package could be audited: there is no ")


@pytest.mark.parametrize(
    ("packages", "code", "first"), [((HOLE,), 1, "known hole: "), ((CLEAN,), 0, "no locked package")]
)
def test_only_a_known_hole_stops_a_merge(
    packages: tuple[dict[str, Any], ...], code: int, first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.told(audit.judge(report(*packages))) == code
    assert capsys.readouterr().out.startswith(first)


def test_a_warning_is_visible_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.told(audit.judge(report(SKIPPED))) == 0
    assert capsys.readouterr().out == "WARNING: 1 of 1 packages could not be audited\n"
