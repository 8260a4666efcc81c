"""How long fuzzing looks: a few seconds and the same inputs every time, or PIPELINE_FUZZ examples of new ones."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("PIPELINE_FUZZ", "0"))
"""Examples of each property; 0: the quick number that the property names, from a fixed seed."""

SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "\x00", "\u202e", "__proto__", '"; drop table', "{{ row }}", "../../x", 2**63, -1, 1e308])
    | st.sampled_from(["failed", "incomplete", "completed", "content_filter", "length", "error", "stop", "message"])
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
"""Any JSON value."""


def nested(depth: int) -> Any:
    """Lists and objects within each other."""
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


DEEP = st.sampled_from([nested(depth) for depth in (199, 253, 260, 500, 900)])
"""JSON that is deeper than what writes it may be able to go."""


def effort(quick: int) -> settings:
    """Examples of one property: `quick` of them from a fixed seed, or as many new ones as PIPELINE_FUZZ says."""
    return settings(
        max_examples=EXAMPLES or quick,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@st.composite
def mangled(draw: st.DrawFn, text: bytes, pieces: tuple[bytes, ...] = ()) -> bytes:
    """A text that was cut, doubled, flipped, shuffled or interspersed in a few places. `pieces` are put in as well."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 40)))
        kind = draw(st.integers(0, 5))
        inserted = draw(st.sampled_from(pieces) | st.binary(max_size=6)) if pieces else draw(st.binary(max_size=6))
        match kind:
            case 0:
                text = text[:start]
            case 1:
                text = text[:start] + text[end:]
            case 2:
                text = text[:end] + text[start:end] + text[end:]
            case 3:
                text = text[:start] + inserted + text[end:]
            case 4:
                text = (
                    text[:start]
                    + bytes([byte ^ draw(st.integers(1, 255)) for byte in text[start : start + 1]])
                    + text[start + 1 :]
                )
            case _:
                text = text[:start] + inserted + text[start:]
    return text
