"""Ask the advisory database about the locked packages, for CI: a known hole fails, what could not be asked warns.

    python .ci/audit.py [requirements.lock]

Exit code 1 where a package has a known hole; 0 otherwise, with a line that begins with WARNING unless every package was
asked about. Another site's outage must not stop a merge, and must never read as clean. `make audit` is the strict one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The holes that were found, one a line, and what was not asked, if anything."""

    holes: tuple[str, ...] = ()
    warning: str | None = None


def judge(report: str) -> Verdict:
    """Judge what pip-audit wrote as JSON. Anything else is a warning, never clean."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
        holes = tuple(
            f"{package['name']} {package['version']}: {hole['id']}, fixed in {', '.join(hole['fix_versions']) or '?'}"
            for package in packages
            for hole in package.get("vulns", ())
        )
        unasked = sum("vulns" not in package for package in packages)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Verdict(warning="no package could be audited: pip-audit gave no report")
    if not packages:
        return Verdict(warning="no package was audited: the report names none")
    if unasked:
        return Verdict(holes=holes, warning=f"{unasked} of {len(packages)} packages could not be audited")
    return Verdict(holes=holes)


def ask(
    lock: Path, *, command: tuple[str, ...] = (sys.executable, "-m", "pip_audit"), seconds: float = SECONDS
) -> Verdict:
    """Have pip-audit look at a lock file, for at most `seconds`."""
    if not lock.is_file():
        return Verdict(warning=f"no package could be audited: there is no {lock}")
    options = ("--require-hashes", "--disable-pip", "--timeout", "10", "--progress-spinner", "off", "--format", "json")
    try:
        done = subprocess.run(
            [*command, *options, "--requirement", str(lock)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Verdict(warning=f"no package could be audited: no answer within {seconds:g} s")
    except OSError as error:
        return Verdict(warning=f"no package could be audited: pip-audit cannot be started ({error.strerror})")
    return judge(done.stdout)


def told(verdict: Verdict) -> int:
    """Say what was found; give the exit code."""
    for hole in verdict.holes:
        print(f"known hole: {hole}")
    if verdict.warning:
        print(f"WARNING: {verdict.warning}")
    elif not verdict.holes:
        print("no locked package has a known hole")
    return 1 if verdict.holes else 0


if __name__ == "__main__":
    sys.exit(told(ask(Path(sys.argv[1] if len(sys.argv) > 1 else "requirements.lock"))))
