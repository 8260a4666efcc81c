"""Every guarantee has its tests, every test a mutant that it must catch, and every mutant still has its place."""

from __future__ import annotations

import ast
from difflib import ndiff

import pytest
from mutants.mutants import ROOT, Mutant, guarantees, mutants, names_of_tests

ALL = [f"G{number}" for number in range(1, 20)]


def test_the_document_states_every_guarantee_in_order() -> None:
    assert list(guarantees()) == ALL


@pytest.mark.parametrize("guarantee", ALL)
def test_a_guarantee_has_tests_that_exist_and_each_has_a_mutant(guarantee: str) -> None:
    linked = guarantees()[guarantee]
    assert linked, f"{guarantee} names no test"
    for test in linked:
        file, _, name = test.partition("::")
        assert name in names_of_tests(file), f"{guarantee} names a test that does not exist: {test}"
    assert len(linked) == len(set(linked))
    caught = {test for mutant in mutants() if mutant.guarantee == guarantee for test in mutant.functions}
    assert caught == set(linked), "the tests of the document, and those of tests/mutants/mutants.toml"


@pytest.mark.parametrize("mutant", mutants(), ids=lambda mutant: f"{mutant.guarantee}: {mutant.breaks}")
def test_a_mutant_has_its_place_and_changes_one_line_of_the_product(mutant: Mutant) -> None:
    assert mutant.file.startswith("pipeline/")
    source = (ROOT / mutant.file).read_text("utf-8")
    changed = mutant.apply(source)
    ast.parse(changed)
    lines = [line[0] for line in ndiff(source.splitlines(), changed.splitlines()) if line[0] in "+-"]
    assert sorted(lines) == ["+", "-"]
