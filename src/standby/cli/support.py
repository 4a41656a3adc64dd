"""`standby support`: what a support case needs."""

from __future__ import annotations

from pathlib import Path

import click

from standby.cli.output import json_option, print_json, warn
from standby.cli.serving import config_option

PROBLEMS_EXIT = 3


@click.group()
def support() -> None:
    """Collect what a support case needs.

    \b
    Example:
      standby support bundle
    """


@support.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write; default standby-support-TIME.zip here.",
)
@config_option
@json_option
def bundle(output: Path | None, config: Path, as_json: bool) -> int:
    """One .zip with the configuration, versions, newest sessions, alarms, replicas, movers, logs.

    Secrets and references to them are masked; names of VMs, hosts and folders are not. Works with
    a broken configuration or database too. Exit code 3: something could not be collected.

    \b
    Example: standby support bundle --output case-4711.zip
    """
    from standby.server.support import write_bundle

    path, problems = write_bundle(config, output)
    if as_json:
        print_json({"file": path, "problems": problems})
    else:
        click.echo(f"wrote {path}")
        for name, text in problems.items():
            warn(f"{name}: {text}")
    return PROBLEMS_EXIT if problems else 0
