"""A job in a folder, and the command called there: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from forked import Child, popen, run

from pipeline.cli import main
from pipeline.simulator.serve import SimulatorProcess

KEY = "right-key"
JOB = """\
name: asked
operation: chat
input:
  path: rows.jsonl
  id: id
request:
  messages:
    - role: user
      content: "{{ question }}"
  max_completion_tokens: 50
deployments:
  - endpoint: ${TEST_ENDPOINT}
    deployment: gpt-4o-mini
    api: azure
    key: ${TEST_KEY}
output:
  path: out
run:
  workers: 4
"""

Serve = Callable[[Mapping[str, Any]], SimulatorProcess]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A folder with `job.yaml` and `rows.jsonl`, and the environment in which commands are called there."""

    folder: Path
    environ: dict[str, str]

    @property
    def job(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def output(self) -> Path:
        return self.folder / "out"

    def write(self, text: str) -> Path:
        self.job.write_text(text, encoding="utf-8")
        return self.job

    def rows(self, questions: list[str]) -> None:
        lines = [json.dumps({"id": f"r-{index}", "question": text}) for index, text in enumerate(questions)]
        (self.folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def call(self, *arguments: str | Path) -> Result:
        """Call the command in this process."""
        with _inside(self.folder):
            return CliRunner(env=self.environ).invoke(main, [str(argument) for argument in arguments])

    def popen(
        self, *arguments: str | Path, stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE, **environ: str
    ) -> Child:
        """Start the command in a process of its own."""
        return popen(
            "pipeline",
            *arguments,
            cwd=self.folder,
            env={**os.environ, **self.environ, **environ},
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    def run_into(self, stdout: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Call the command in a process of its own that writes its stdout to a file descriptor."""
        environ = {**os.environ, **self.environ}
        return run(
            "pipeline", *arguments, cwd=self.folder, env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True
        )

    def summary(self, folder: Path | None = None) -> dict[str, Any]:
        """What the run's summary.json says."""
        value: dict[str, Any] = json.loads(((folder or self.output) / "_pipeline" / "summary.json").read_text())
        return value


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
