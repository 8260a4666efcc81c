"""`pipeline simulate`: the simulator on a loopback port."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.simulator.config import SimulatorConfig

_PORT = 8788


@click.command("simulate")
@click.option("--port", type=click.IntRange(0, 65_535), default=_PORT, show_default=True, help="0 takes a free one.")
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="YAML or JSON: deployments with quotas, latency, faults, poisoned texts, quota changes.",
)
@click.option("--ledger", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Append every call.")
@click.option(
    "--speed", type=click.FloatRange(min=0, min_open=True), metavar="FACTOR", help="Quota time passes faster."
)
@click.option("--seed", type=int, metavar="N", help="What the faults are drawn from.")
@click.option("--vectors", type=click.Choice(["auto", "model", "hash"]), help="Where embeddings come from.")
def command(*, port: int, config_file: Path | None, ledger: Path | None, **settings: Any) -> None:
    """Serve a simulated Azure OpenAI on 127.0.0.1 until Ctrl-C.

    One line of JSON on stdout says the port once it listens. Point a job at it with
    AZURE_OPENAI_ENDPOINT=http://127.0.0.1:PORT, AZURE_OPENAI_API_KEY=any and `api: azure` (or `openai`) in its
    deployments, which the address alone does not tell.
    """
    from pipeline.simulator.serve import serve  # noqa: PLC0415 - for the command that needs it

    config = _config(config_file, {name: value for name, value in settings.items() if value is not None})
    try:
        serve(config, port=port, ledger=ledger, exit_with_parent=False)
    except OSError as error:
        raise click.UsageError(f"{error.strerror or error}: try another --port, or 0 for a free one") from error
    except ModuleNotFoundError as error:
        raise click.UsageError(str(error)) from error


def _config(file: Path | None, settings: dict[str, Any]) -> SimulatorConfig:
    """Read the configuration, options on top. Raises click.UsageError with what is wrong."""
    import yaml  # noqa: PLC0415 - for the command that needs it
    from pydantic import ValidationError  # noqa: PLC0415

    from pipeline.simulator.config import SimulatorConfig, load_config, make_config  # noqa: PLC0415

    try:
        config = SimulatorConfig() if file is None else load_config(file)
        return make_config({**config.model_dump(), **settings})
    except ValidationError as error:
        places = ((".".join(map(str, found["loc"])), found["msg"]) for found in error.errors(include_url=False))
        problems = [f"{place}: {said}" if place else said.removeprefix("Value error, ") for place, said in places]
        raise click.UsageError("\n".join(f"{file}: {problem}" for problem in problems)) from error
    except (ValueError, yaml.YAMLError) as error:
        raise click.UsageError(f"{file}: {error}") from error
