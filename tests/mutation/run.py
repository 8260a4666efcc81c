"""Change the product a little, many times, and see whether its unit tests notice: `make mutation SEED=… COUNT=…`.

A seeded sample of the mutants of `operators.py` over the modules of `TARGETS`, drawn so that a change of one module
leaves the sample of the others as it was. Each mutant lives in a forked process
that imports the changed module from memory and runs the tests beside that module, those of its own file first, up to
the first that fails; no file is changed. A mutant is killed when a test fails, when the tests cannot be imported, or
when they use up their time: CPU seconds, so that a busy machine kills nobody, and a minute in which a test waits for
what never comes.

A mutant that survives is listed, with the judgement of `survivors.toml` where it has one. The exit code is 1 where
fewer than nine in ten are killed (equivalent ones left out), or where a survivor has no judgement.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from _pytest.config import default_plugins
from mutation.operators import Mutant, mutants, mutated

ROOT = Path(__file__).resolve().parents[2]
PACE = "tests/unit/pace"
TARGETS = {
    "pipeline/pace/*.py": (PACE,),
    "pipeline/service/classify.py": ("tests/unit/service/test_classify.py",),
    "pipeline/store/journal.py": ("tests/unit/store/test_journal.py", "tests/unit/store/test_ballast.py"),
}
"""The modules under test, and the tests that answer for them."""
WANTED = 0.9
"""The share of mutants that must be killed, of those that are not equivalent."""
CPU_S = 20
"""CPU seconds that the tests of one mutant may take; they take about seven without one."""
WAIT_S = 40
"""Seconds that one test may take: nothing here waits, unless for ever."""
WALL_S = 400
"""Seconds after which a mutant's process is ended, whatever it does."""
PASSED, FAILED = 0, 1
# Imported once, before the processes are forked; never the product itself, which each imports with its own change.
PRELOADED = (
    *("anyio.pytest_plugin", "anyio._backends._asyncio", "hypothesis", "orjson", "ormsgpack", "pyarrow.parquet"),
    *("pydantic", "pygments.lexers", "pytest", "pytest_timeout", "sqlite3"),
    *(f"_pytest.{name}" for name in default_plugins),
)


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a changed tree."""

    def __init__(self, mutant: Mutant, tree: ast.Module) -> None:
        self._name = mutant.file.removesuffix(".py").replace("/", ".")
        self._path = str(ROOT / mutant.file)
        self._code = compile(tree, self._path, "exec")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Take over the changed module alone."""
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed code as the module."""
        exec(self._code, module.__dict__)  # noqa: S102 - that is what a mutant is


def modules() -> dict[str, tuple[str, ...]]:
    """Return every module under test with its tests, those of its own file first."""
    found: dict[str, tuple[str, ...]] = {}
    for pattern, tests in TARGETS.items():
        for path in sorted(ROOT.glob(pattern)):
            file = path.relative_to(ROOT).as_posix()
            own = f"{PACE}/test_{path.stem}.py"
            found[file] = (own, *tests) if tests == (PACE,) and (ROOT / own).exists() else tests
    return found


def every_mutant() -> list[Mutant]:
    """Return all mutants of the modules under test."""
    return [mutant for file in modules() for mutant in mutants(file, (ROOT / file).read_text("utf-8"))]


def sample(found: list[Mutant], *, seed: int, count: int) -> list[Mutant]:
    """Draw `count` of the mutants: those whose texts, with the seed, have the lowest digests.

    What a mutant's digest is does not depend on the others, so that most of a sample outlives a change of the source.
    """
    alike: Counter[tuple[str, ...]] = Counter()
    drawn = []
    for mutant in found:
        text = (mutant.file, mutant.scope, mutant.operator, mutant.before, mutant.after)
        alike[text] += 1
        drawn.append((hashlib.sha256(repr((seed, text, alike[text])).encode()).digest(), mutant))
    return [mutant for _, mutant in sorted(drawn, key=lambda one: one[0])[:count]]


def judgements() -> dict[tuple[str, str, str, str], str]:
    """Return why known survivors live: by file, scope, and the text before and after."""
    text = (Path(__file__).parent / "survivors.toml").read_text("utf-8")
    return {
        (one["file"], one["scope"], one["before"], one["after"]): one["why"] for one in tomllib.loads(text)["survivor"]
    }


def judgement(mutant: Mutant, known: dict[tuple[str, str, str, str], str]) -> str | None:
    """Return why this mutant survives, None where nobody has said."""
    return known.get((mutant.file, mutant.scope, mutant.before, mutant.after))


def _fork(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """Start the tests with one change, or, without a bound on their time, with none; return the process."""
    changed = mutant and _Changed(mutant, mutated(mutant, (ROOT / mutant.file).read_text("utf-8")))
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        if changed:
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
            sys.meta_path.insert(0, changed)
        os._exit(_pytest(tests))
    except BaseException:  # noqa: BLE001 - whatever a mutant raises, it must not come back here
        os._exit(FAILED)


def _pytest(tests: Sequence[str]) -> int:
    import hypothesis  # noqa: PLC0415 - after the fork
    import pytest  # noqa: PLC0415

    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutation", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("mutation")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return int(
        pytest.main(
            [
                "-x",
                "-panyio",
                "-ppytest_timeout",
                "-pno:cacheprovider",
                "--assert=plain",
                "-o",
                f"timeout={WAIT_S}",
                *_unique(tests),
            ]
        )
    )


def _unique(tests: Sequence[str]) -> list[str]:
    """Name the files of folders, each once, in order."""
    files = [
        file.as_posix()
        for test in tests
        for file in (sorted(Path(test).glob("test_*.py")) if Path(test).is_dir() else [Path(test)])
    ]
    return list(dict.fromkeys(files))


def killed(
    found: Sequence[Mutant], tests: dict[str, tuple[str, ...]], *, workers: int
) -> Iterator[tuple[Mutant, bool]]:
    """Run the tests against each mutant, `workers` at a time; yield each with whether it was killed, as they end."""
    waiting = list(reversed(found))
    running: dict[int, tuple[Mutant, float]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            running[_fork(mutant, tests[mutant.file])] = mutant, time.monotonic()
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended:
            mutant, _ = running.pop(ended)
            yield mutant, os.waitstatus_to_exitcode(status) != PASSED
            continue
        for process, (_, began) in running.items():
            if time.monotonic() - began > WALL_S:
                os.killpg(process, signal.SIGKILL)
        time.sleep(0.02)


def main() -> int:
    """Read the command line, run the sample, say what lived."""
    parser = argparse.ArgumentParser(description="Run the unit tests against a sample of mutants.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="names of modules: their part of the sample alone")
    options = parser.parse_args()
    os.chdir(ROOT)
    for name in PRELOADED:
        importlib.import_module(name)
    tests = modules()
    found = every_mutant()
    chosen = sample(found, seed=options.seed, count=options.count)
    if options.only:
        chosen = [mutant for mutant in chosen if Path(mutant.file).stem in options.only]
    files = sorted({mutant.file for mutant in chosen})
    _, status = os.waitpid(_fork(None, [test for file in files for test in tests[file]]), 0)
    if status != 0:
        print("the tests fail without any mutant; mend them first")
        return FAILED
    print(f"{len(chosen)} of {len(found)} mutants, seed {options.seed}", flush=True)
    results = []
    for mutant, dead in killed(chosen, tests, workers=options.workers):
        results.append((mutant, dead))
        if not dead:
            print(f"{len(results)}: lives: {mutant}", flush=True)
    return _report(results)


def _report(results: list[tuple[Mutant, bool]]) -> int:
    known = judgements()
    survivors = sorted((mutant for mutant, dead in results if not dead), key=lambda one: (one.file, one.number))
    for mutant in survivors:
        print(f"survived: {mutant}\n          {judgement(mutant, known) or 'NOT JUDGED'}")
    every, dead = (
        Counter(mutant.file for mutant, _ in results),
        Counter(mutant.file for mutant, dead in results if dead),
    )
    for file in sorted(every):
        print(f"{file}: {dead[file]} of {every[file]} killed")
    same = sum((judgement(mutant, known) or "").startswith("equivalent") for mutant in survivors)
    share = dead.total() / max(1, every.total() - same)
    print(f"{dead.total()} of {every.total()} killed, {same} are equivalent: {share:.1%} (wanted: {WANTED:.0%})")
    unjudged = sum(judgement(mutant, known) is None for mutant in survivors)
    if unjudged:
        print(f"{unjudged} survivors have no judgement: write a test, or say in tests/mutation/survivors.toml why not")
    return FAILED if share < WANTED or unjudged else PASSED


if __name__ == "__main__":
    sys.exit(main())
