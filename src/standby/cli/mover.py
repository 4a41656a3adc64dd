"""`standby mover`: a service on any machine that reads, receives and keeps for backup servers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from standby.cli.output import json_option


@click.group()
def mover() -> None:
    """The mover of this machine: reads disks, writes replicas, keeps digests.

    A backup server connects to it and says what to do; it opens nothing outside of the folders
    that its mover.toml names, whoever asks.

    \b
    Example: standby mover run --config /etc/standby/mover.toml
    """


@mover.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("mover.toml"),
    show_default=True,
    help="The mover's own configuration, or its folder.",
)
@json_option
def run(config: Path, as_json: bool) -> None:
    """Serve until SIGTERM or Ctrl-C; what is under way is closed clean, to be gone on with.

    Says where it listens on standard output, and on standard error what happens, a line each; with
    --json both as JSON objects.

    \b
    Example: standby mover run --config /etc/standby/mover.toml
    \b
    mover.toml:
      name = "px1"
      listen = "0.0.0.0:9440"
      identity = "identity"                  folder of the key and certificate
      state = "/var/lib/standby-mover"
      roles = ["source", "target", "repository", "host"]
      [roots]                                nothing else is opened, whoever asks
      vms = "/srv/vms"
      [protect]                              kept whatever a server says
      keep_points_min = 3
    """
    from standby.disk.serve.ending import ended_by_signals
    from standby.road.event_log import EventLog
    from standby.road.service_config import load_service_config
    from standby.road.service_process import run_service

    found = load_service_config(config)
    ended = ended_by_signals()

    def wait(address: str) -> None:
        if as_json:
            click.echo(json.dumps({"name": found.name, "address": address}))
        else:
            click.echo(f"mover {found.name} listens on {address}")
        sys.stdout.flush()
        ended()

    run_service(found, EventLog(sys.stderr, as_json=as_json), wait)
