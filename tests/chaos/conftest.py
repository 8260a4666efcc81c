"""Chooses fault tests by the classes that PIPELINE_FAULT lists: those whose module's first words name one."""

from __future__ import annotations

import os
import re

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of other classes; UsageError when none is left."""
    wanted = os.environ.get("PIPELINE_FAULT")
    if not wanted:
        return
    kept = [item for item in items if not _faults(item).isdisjoint(wanted.split(","))]
    if not kept:
        raise pytest.UsageError(f"no test names the fault class {wanted} in its module's first words")
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _faults(item: pytest.Item) -> set[str]:
    """The classes before the colon of its module's docstring, such as F2 and F3."""
    module = getattr(item, "module", None)
    head = ((module.__doc__ if module else None) or "").partition(":")[0]
    return set(re.findall(r"\bF[0-9]+\b", head))
