"""`python -m pipeline.simulator`: the simulator on a loopback port."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import get_args

import click
import yaml

from pipeline.simulator.config import Audio, SimulatorConfig, Vectors, load_config, read_config
from pipeline.simulator.serve import serve


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option("--config", "config_path", metavar="FILE", help="YAML or JSON; - reads one line of stdin.")
@click.option("--ledger", type=click.Path(dir_okay=False, path_type=Path), help="Append every call to this file.")
@click.option("--vectors", type=click.Choice(get_args(Vectors)), help="Where embeddings come from.")
@click.option("--audio", type=click.Choice(get_args(Audio)), help="How recordings are heard.")
@click.option("--exit-with-parent", is_flag=True, help="End when stdin ends or the parent dies; ignore Ctrl-C.")
def main(
    port: int,
    config_path: str | None,
    ledger: Path | None,
    vectors: Vectors | None,
    audio: Audio | None,
    *,
    exit_with_parent: bool,
) -> None:
    """Serve a simulated Azure OpenAI on loopback until it is told to stop."""
    try:
        config = _read(config_path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        click.echo(f"pipeline.simulator: {config_path}: {error}", err=True)
        sys.exit(2)
    chosen = {"vectors": vectors, "audio": audio}
    config = config.model_copy(update={name: choice for name, choice in chosen.items() if choice is not None})
    try:
        serve(config, port=port, ledger=ledger, exit_with_parent=exit_with_parent)
    except (OSError, ModuleNotFoundError) as error:
        click.echo(f"pipeline.simulator: {error}", err=True)
        sys.exit(5 if isinstance(error, OSError) else 2)


def _read(path: str | None) -> SimulatorConfig:
    if path is None:
        return SimulatorConfig()
    if path == "-":
        return read_config(_one_line())
    return load_config(Path(path))


def _one_line() -> str:
    """Read one line of stdin and nothing behind it: what follows belongs to the watch over the parent."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


if __name__ == "__main__":
    main(prog_name="python -m pipeline.simulator")
