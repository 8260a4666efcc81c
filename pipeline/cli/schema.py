"""`pipeline schema`: the JSON Schema of job files."""

from __future__ import annotations

import click

from pipeline import operations, sources
from pipeline.cli.common import echo_json


@click.command("schema")
def command() -> None:
    r"""Print the JSON Schema (draft 2020-12) of job files, for editors.

    \b
    pipeline schema > job.schema.json
    and at the head of a job file:  # yaml-language-server: $schema=job.schema.json
    """
    from pipeline.job.schema import json_schema  # noqa: PLC0415 - pydantic, for the command that needs it

    echo_json(json_schema(operations=operations.names(), formats=sources.names()))
