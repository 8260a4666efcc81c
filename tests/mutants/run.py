"""Break each guarantee once and see its tests fail: `make guarantees`.

Each mutant of `mutants.toml` is applied to a copy of the project, never to the project itself; its tests run there,
and every one of them must fail, after all of them passed in an unchanged copy. A test that fails before it begins,
or that is skipped, proves nothing: it counts as one that did not fail.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutants.mutants import ROOT, SECONDS, Mutant, mutants

SECONDS_A_MUTANT = 600
PATIENCE_S = 3600
"""How long all tests may take without a mutant, and each of them: there nothing hangs, but the machine may be busy."""
PLUGINS = ("anyio", "pytest_timeout", "mutants.outcomes")
"""All that the tests need; to load every plugin there is takes longer than most of them."""
LEFT_OUT = (".git", ".venv", "out", "dist", "__pycache__", ".*_cache", ".hypothesis")


def main() -> int:
    """Read the command line, try the mutants, say which of them nobody noticed."""
    parser = argparse.ArgumentParser(description="See the tests of every guarantee fail when it is broken.")
    parser.add_argument("--only", default="", help="one guarantee, such as G7")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    chosen = [mutant for mutant in mutants() if options.only in {"", mutant.guarantee}]
    with tempfile.TemporaryDirectory(prefix="pipeline-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.workers):
            copies.put(_copy(Path(folder) / str(number)))
        with ThreadPoolExecutor(options.workers) as pool:
            if problems := [
                line
                for found in pool.map(lambda one: _unchanged(copies, *one), _all(chosen, options.workers))
                for line in found
            ]:
                print("without any mutant these do not pass; mend them first:", *problems, sep="\n  ")
                return 1
            return _report(list(pool.map(lambda mutant: _tried(copies, mutant), chosen)))


def _report(results: Sequence[tuple[Mutant, list[str], float]]) -> int:
    unnoticed = sum(bool(missed) for _, missed, _ in results)
    tests = {test for mutant, _, _ in results for test in mutant.functions}
    print(f"{len(results)} mutants, {len(tests)} tests: {unnoticed or 'none'} unnoticed")
    return 1 if unnoticed else 0


def _all(chosen: Sequence[Mutant], shares: int) -> list[tuple[list[str], Mapping[str, str]]]:
    """Return every test once, with the variables that it is run with, in so many shares of each kind."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for mutant in chosen:
        groups.setdefault(tuple(mutant.environ.items()), []).extend(mutant.tests)
    return [
        (share, dict(environ))
        for environ, tests in groups.items()
        for number in range(shares)
        if (share := sorted(set(tests))[number::shares])
    ]


def _unchanged(copies: SimpleQueue[Path], tests: list[str], environ: Mapping[str, str]) -> list[str]:
    copy = copies.get()
    try:
        outcomes = _outcomes(copy, tests, environ, seconds=PATIENCE_S, all_s=PATIENCE_S)
    finally:
        copies.put(copy)
    return [test for test in tests if outcomes.get(test.partition("[")[0]) != {"passed"}]


def _tried(copies: SimpleQueue[Path], mutant: Mutant) -> tuple[Mutant, list[str], float]:
    """Try one mutant; return the tests that did not notice it, and the seconds that it took."""
    copy = copies.get()
    began = time.monotonic()
    path = copy / mutant.file
    source = path.read_text("utf-8")
    try:
        _write(path, mutant.apply(source))
        outcomes = _outcomes(copy, mutant.tests, mutant.environ, seconds=mutant.seconds)
    finally:
        _write(path, source)
        copies.put(copy)
    missed = [test for test in mutant.tests if "failed" not in outcomes.get(test.partition("[")[0], set())]
    took = time.monotonic() - began
    print(
        f"{mutant.guarantee:<4} {took:5.1f} s  {mutant.breaks}{': NOT NOTICED BY' if missed else ''}",
        *missed,
        flush=True,
    )
    return mutant, missed, took


def _write(path: Path, source: str) -> None:
    """Replace a module, and forget what Python has compiled of it: its times are too coarse for that."""
    path.write_text(source, "utf-8")
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


def _copy(target: Path) -> Path:
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return target


def _outcomes(
    copy: Path,
    tests: Iterable[str],
    environ: Mapping[str, str],
    *,
    seconds: int = SECONDS,
    all_s: int = SECONDS_A_MUTANT,
) -> dict[str, set[str]]:
    """Run tests in a copy; return how each ended, over all its parameters. Skipped ones have no outcome."""
    told = copy / "outcomes.jsonl"
    told.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
        *(f"-p{plugin}" for plugin in PLUGINS),
        *("-o", f"timeout={seconds}", *tests),
    ]
    paths = os.pathsep.join([str(copy), str(copy / "tests")])
    changed = {
        **os.environ,
        **environ,
        "PYTHONPATH": paths,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "MUTANTS_OUTCOMES": str(told),
    }
    try:
        subprocess.run(
            command,
            cwd=copy,
            env=changed,
            timeout=all_s,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        print(f"the tests did not end in {all_s} s: {' '.join(tests)}")
    found: dict[str, set[str]] = {}
    for node, phase, outcome in map(json.loads, told.read_text().splitlines() if told.exists() else []):
        if phase == "call" and outcome != "skipped":
            found.setdefault(node.partition("[")[0], set()).add(outcome)
    return found


if __name__ == "__main__":
    sys.exit(main())
