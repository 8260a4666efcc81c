"""Every rule of docs/security.md has tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
RULES = [f"S{number}" for number in range(1, 19)]
TABLE = {
    line.split()[1]: re.findall(r"`([a-z_/0-9]+\.py)::(test_[a-z_0-9]+)`", line)
    for line in (TESTS.parent / "docs" / "security.md").read_text().splitlines()
    if re.match(r"\| S\d+ ", line)
}


def test_the_table_holds_every_rule_in_order() -> None:
    assert list(TABLE) == RULES


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_tests_and_they_exist(rule: str) -> None:
    assert TABLE[rule]
    for file, name in TABLE[rule]:
        tree = ast.parse((TESTS / file).read_text())
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in found, f"{rule}: {file} has no {name}"
