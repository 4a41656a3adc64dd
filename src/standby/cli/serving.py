"""How commands get at the backup server, or at a target folder with nothing else alive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.errors import ConfigurationError

if TYPE_CHECKING:
    from standby.server import BackupServer
    from standby.server.all_replicas import AllReplicas
    from standby.server.replicas import Replicas

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="STANDBY_CONFIG",
    default=Path("standby.toml"),
    show_default=True,
    help="The configuration, or its folder; STANDBY_CONFIG names another default.",
)

target_option = click.option(
    "--target",
    type=click.Path(path_type=Path),
    help="A target folder: works with only that folder alive, no standby.toml is read.",
)


@contextlib.contextmanager
def opened_server(config: Path) -> Iterator[BackupServer]:
    """The backup server of that configuration."""
    from standby.server import BackupServer

    with BackupServer(config) as server:
        yield server


@contextlib.contextmanager
def opened_replicas(config: Path, target: Path | None) -> Iterator[Replicas | AllReplicas]:
    """The replicas of a configuration, or of a target folder alone."""
    if target is not None:
        from standby.server.replicas import Replicas

        if (target / "replica.json").exists():
            raise ConfigurationError(
                str(target), "is one replica's folder", f"Name the folder it is in: {target.parent}"
            )
        yield Replicas.of_folder(target)
        return
    with opened_server(config) as server:
        yield server.replicas
