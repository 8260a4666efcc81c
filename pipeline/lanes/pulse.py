"""A count of what the run has got done, so that somebody can see that it still gets something done."""

from __future__ import annotations


class Pulse:
    """Beats at everything that brings a run further: leave to send, an attempt's end, a commit, rows read, a part."""

    __slots__ = ("beats",)

    def __init__(self) -> None:
        self.beats = 0

    def beat(self) -> None:
        """Note that something was done."""
        self.beats += 1
