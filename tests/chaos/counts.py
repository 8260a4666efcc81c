"""How often faults are tried: quick counts, or the full ones of `make chaos`; and the seed that replays them.

PIPELINE_TRIES asks for another count, where one or two tries show what is to be shown.
"""

from __future__ import annotations

import os

FULL = os.environ.get("PIPELINE_CHAOS") == "full"
"""Whether the full counts are asked for."""

SEED = int(os.environ.get("PIPELINE_SEED", "20"))
"""What every draw of the fault tests begins with."""


def count(*, quick: int, full: int) -> int:
    """The one that this invocation asks for."""
    return int(os.environ.get("PIPELINE_TRIES") or (full if FULL else quick))
