"""What counts as a mutant, and that the judgements on survivors are of mutants that there are."""

from __future__ import annotations

import ast

import pytest
from mutation.operators import mutants, mutated
from mutation.run import every_mutant, judgements, modules, sample

CHANGES = {
    "a < b": {"a <= b", "a >= b"},
    "a >= b": {"a > b", "a < b"},
    "a == b": {"a != b"},
    "a is not b": {"a is b"},
    "a in b": {"a not in b"},
    "200 <= a < b": {"200 < a < b", "200 > a < b", "200 <= a <= b", "200 <= a >= b", "201 <= a < b", "199 <= a < b"},
    "a + b": {"a - b"},
    "a / b": {"a * b"},
    "a // b": {"a * b"},
    "a ** b": {"a * b"},
    "a and b": {"a or b"},
    "not a": {"a"},
    "-a": {"a"},
    "True": {"False"},
    "7": {"8", "6"},
    "0.5": {"1.0", "0.25"},
    "0.0": {"1.0"},
    "b = 'x'": {"b = 'XXxXX'"},
    "min(a, b)": {"max(a, b)", "pass"},
    "any(a)": {"all(a)", "pass"},
    "a if b else c": {"c if b else a"},
    "if a:\n    b": {"if not a:\n    b", "if a:\n    pass"},
    "while not a:\n    b = c": {"while a:\n    b = c"},
    "def f(a=1):\n    return a": {
        "def f(a=2):\n    return a",
        "def f(a=0):\n    return a",
        "def f(a=1):\n    return None",
    },
    "a.b = c": {"pass"},
    "a += 1": {"a -= 1", "pass", "a += 2", "a += 0"},
    "raise ValueError('no')": {"pass"},
    "while a:\n    break": {"while not a:\n    break", "while a:\n    pass"},
    "for a in b:\n    continue": {"for a in b:\n    break"},
    "match a:\n    case 1:\n        b = c\n    case _:\n        c = b": {
        "match a:\n    case _:\n        c = b",
        "match a:\n    case 1:\n        b = c",
        "match a:\n    case 2:\n        b = c\n    case _:\n        c = b",
        "match a:\n    case 0:\n        b = c\n    case _:\n        c = b",
    },
}
LEFT_ALONE = [
    '"""What it does."""',
    "a: 'int' = b",
    "@f(1)\ndef g():\n    return None",
    "assert a == 1",
    "__slots__ = ('a',)",
    "b = f'{a + 1} rows'",
    "b = DefectError('no')",
    "assert_never(a)",
    "class A(B):\n    pass",
    "b = c",
    "None",
]


def changed(source: str) -> set[str]:
    return {ast.unparse(mutated(mutant, source)) for mutant in mutants("pipeline/x.py", source)}


@pytest.mark.parametrize("source", CHANGES)
def test_every_operator_makes_its_changes_and_no_others(source: str) -> None:
    # A bare name or operation is a statement too, which may be left out.
    assert changed(source) - {"pass"} == CHANGES[source] - {"pass"}


@pytest.mark.parametrize("source", LEFT_ALONE)
def test_what_only_a_person_reads_is_left_alone(source: str) -> None:
    assert changed(source) <= {"pass"}


def test_a_mutant_says_where_it_is() -> None:
    (one,) = mutants("pipeline/x.py", "class A:\n    def f(self, a):\n        b = a in self.c\n")
    assert str(one) == "pipeline/x.py:3 A.f: a in self.c  ->  a not in self.c"


def test_every_module_under_test_has_tests_of_its_own_and_mutants() -> None:
    files = {mutant.file for mutant in every_mutant()}
    assert {"pipeline/pace/retry.py", "pipeline/service/classify.py", "pipeline/store/journal.py"} <= files
    assert files <= modules().keys()


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    found = every_mutant()
    assert sample(found, seed=1, count=50) == sample(found, seed=1, count=50)
    assert sample(found, seed=1, count=50) != sample(found, seed=2, count=50)
    assert len(set(sample(found, seed=3, count=len(found) + 1))) == len(found)


def test_a_change_of_one_module_leaves_the_sample_of_the_others() -> None:
    found = every_mutant()
    before = sample(found, seed=1, count=400)
    after = sample([one for one in found if one.file != "pipeline/pace/bucket.py"], seed=1, count=400)
    assert [one for one in before if one.file != "pipeline/pace/bucket.py"] == after[: len(set(before) & set(after))]


def test_every_judgement_is_of_a_mutant_that_there_is() -> None:
    there = {(one.file, one.scope, one.before, one.after) for one in every_mutant()}
    assert judgements().keys() <= there
    assert all(why.partition(":")[0] in {"equivalent", "not tested"} for why in judgements().values())
