"""Starts commands of fault tests by fork, in process groups of their own, with their words in a file."""

from __future__ import annotations

import os
from pathlib import Path

from forked import Child, popen


class Forked:
    """Starts `pipeline` by fork."""

    def start(self, *arguments: str, errors: Path, gate: int | None = None) -> Child:
        """Start `pipeline` with these arguments; it begins once the gate, if there is one, opens."""
        with errors.open("ab") as file:
            return popen(
                "pipeline",
                *arguments,
                env={**os.environ, "SIMULATOR_KEY": "k"},
                stderr=file.fileno(),
                start_new_session=True,
                gate=gate,
            )
