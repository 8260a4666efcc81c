"""The command line: a group whose commands are imported when they are called, and how it ends."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from pipeline.cli.endings import USAGE, end_quietly, ending, have_streams, interrupted, let_go_of_streams

_HELP = {
    "init": "Write a commented job file that runs.",
    "validate": "Check job files and show the first rows as they would be sent.",
    "plan": "Say how many requests, tokens, dollars and minutes a run would take.",
    "doctor": "Check network, credentials, deployments and disk for a job.",
    "run": "Run a job, or continue it.",
    "retry": "Send failed rows again.",
    "status": "Show how far a run is: counts, rate, throttling, cost.",
    "pause": "Have a run that goes on send nothing new for a while.",
    "resume": "Have a paused run go on.",
    "drain": "Have a run that goes on end once its requests have.",
    "set": "Change a run that goes on: workers, and the share of the quota left to others.",
    "errors": "List the rows that failed, and why.",
    "show": "Show one row with all its attempts.",
    "export": "Write everything finished as one Parquet, JSONL or CSV file.",
    "runs": "List the invocations of a run: when, how long, state, exit code, rows, cost.",
    "report": "Write the HTML page of a run: outcome, cost, pace, latencies, what failed.",
    "schedule": "Print a crontab line, systemd units, a Kubernetes CronJob or a GitHub workflow.",
    "verify": "Read every byte of a run back and check it.",
    "simulate": "Serve the simulator on this machine.",
    "schema": "Print the JSON Schema of job files.",
}

_EPILOG = """\b
Exit codes:
  0    every row ok              4    stopped early, to be continued
  1    finished, rows failed     5    storage or damage
  2    usage or job file         70   a defect of ours
  3    refused, needs a person   75   another run holds the folder
  129, 130, 143  SIGHUP, SIGINT, SIGTERM, after a clean stop
"""


class _Commands(click.Group):
    """Commands by name; each lives in a module of its own, whose import only its own call pays for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Name the commands in the order in which one meets them."""
        return list(_HELP)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command."""
        if cmd_name not in _HELP:
            return None
        command: click.Command = importlib.import_module(f"pipeline.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of one that is not there, the nearest is named."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches  # noqa: PLC0415 - for who mistyped

            near = get_close_matches(args[0], _HELP, 1)
            advice = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"{error.message}{advice}", error.ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_HELP.items()))

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run a command and end with its exit code; what went wrong is said in a few words on stderr."""
        if sys.platform == "win32":
            click.echo("pipeline runs on Linux and macOS; on Windows, use it within WSL (wsl --install)", err=True)
            sys.exit(USAGE)
        have_streams()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            code = self._main(*args, **extra)
        finally:
            if extra.get("args") is None and not args:  # the process ends here, with a code that is known
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
            else:
                signal.signal(signal.SIGTERM, before)
        let_go_of_streams()
        sys.exit(code)

    def _main(self, *args: Any, **extra: Any) -> int:
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except BrokenPipeError:
            return end_quietly()
        except BaseException as error:  # noqa: BLE001 - every ending has its exit code
            return ending(error)
        return code if isinstance(code, int) else 0

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse; --help prints here."""
        with _told_apart():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command."""
        with _told_apart():
            return super().invoke(ctx)


@contextmanager
def _told_apart() -> Iterator[None]:
    """Tell a reader that went away and Ctrl-C from other failures, before click gives both the exit code 1."""
    try:
        yield
    except BrokenPipeError:
        sys.exit(end_quietly())
    except KeyboardInterrupt:
        sys.exit(interrupted())


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 - click's signature
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - a tenth of what --help may take

        click.echo(f"pipeline {version('aoai-pipeline')}")
        ctx.exit()


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Ask Azure OpenAI about every row of a table, and keep the answers as Parquet.

    A job file says which rows, what to ask and where; `pipeline init chat` writes one to begin with, and
    `pipeline run --simulate` tries it without an account. A run that was stopped is continued by the same command.
    """
