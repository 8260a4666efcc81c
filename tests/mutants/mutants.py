"""The list of `mutants.toml`, and the guarantees of docs/GUARANTEES.md with the tests that they name."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
"""How long a test may take; one that a mutant makes hang has failed then."""
DOCUMENT = ROOT / "docs" / "GUARANTEES.md"
_HEADING = re.compile(r"## (G\d+) ")
_TEST = re.compile(r"^- `(tests/[^`]+::[^`]+)`$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One line of the product, changed so that a guarantee is broken, and the tests that must fail for it.

    A test may name one of its parameters, where all of them would take long.
    """

    guarantee: str
    breaks: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)
    seconds: int = SECONDS

    @property
    def functions(self) -> frozenset[str]:
        """The tests without their parameters, as the document names them."""
        return frozenset(test.partition("[")[0] for test in self.tests)

    def apply(self, source: str) -> str:
        """Return the changed source. Raises ValueError where the old text does not stand there exactly once."""
        if (found := source.count(self.old)) != 1:
            raise ValueError(f"{self.file} holds this {found} times, not once: {self.old!r}")
        return source.replace(self.old, self.new)


def mutants() -> list[Mutant]:
    """Read the list."""
    found = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text("utf-8"))["mutant"]
    return [Mutant(**{**one, "tests": tuple(one["tests"])}) for one in found]


def guarantees() -> dict[str, list[str]]:
    """Return the tests that the document names for each guarantee, in its order."""
    found: dict[str, list[str]] = {}
    for line in DOCUMENT.read_text("utf-8").splitlines():
        if heading := _HEADING.match(line):
            found[heading[1]] = []
        elif test := _TEST.match(line):
            list(found.values())[-1].append(test[1])
    return found


@cache
def names_of_tests(file: str) -> frozenset[str]:
    """Return the names of the tests in a file; none where there is no such file."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    functions = (
        node
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(node.name for node in functions if node.name.startswith("test_"))
