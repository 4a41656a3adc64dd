"""How commands get at the backup server, or at a target folder with nothing else alive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.output import warn
from standby.errors import ConfigurationError, StandbyError

if TYPE_CHECKING:
    from standby.client import RemoteReplicas, RemoteServer
    from standby.server import BackupServer
    from standby.server.all_replicas import AllReplicas
    from standby.server.local import LocalServer
    from standby.server.replicas import Replicas

SERVER = "standby.server"
"""Where a command's context keeps the URL of the server to ask."""
WITHOUT_CONFIG = "`standby replica` needs none with --target FOLDER, the folder of the replicas"

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar="STANDBY_CONFIG",
    default=Path("standby.toml"),
    show_default=True,
    help="The configuration, or its folder; STANDBY_CONFIG names another default.",
)


def _remember(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.meta[SERVER] = value or ""


server_option = click.option(
    "--server",
    metavar="URL",
    envvar="STANDBY_SERVER",
    expose_value=False,
    callback=_remember,
    help="Have the backup server there do it (its API) with the token STANDBY_TOKEN, which may be "
    "file:PATH; no standby.toml is read. STANDBY_SERVER names a default.",
)

target_option = click.option(
    "--target",
    type=click.Path(path_type=Path),
    help="A target folder: works with only that folder alive, no standby.toml is read.",
)


@contextlib.contextmanager
def opened_server(config: Path, *, looks: bool = False) -> Iterator[BackupServer]:
    """The backup server of that configuration; who only `looks` makes no state."""
    from standby.server import BackupServer

    with BackupServer(config, keeps_state=not looks) as server:
        yield server


@contextlib.contextmanager
def opened_backup(config: Path, *, looks: bool = False) -> Iterator[LocalServer | RemoteServer]:
    """The backup server whose API `--server` names, else that of the configuration, here; who only
    `looks` makes no state."""
    url = click.get_current_context().meta.get(SERVER, "")
    if url:
        from standby.client import remote_server

        with remote_server(url) as remote:
            yield remote
        return
    from standby.server.local import LocalServer

    with opened_server(config, looks=looks) as server:
        yield LocalServer(server)


@contextlib.contextmanager
def opened_replicas(
    config: Path, target: Path | None
) -> Iterator[Replicas | AllReplicas | RemoteReplicas]:
    """The replicas of a backup server, or of a target folder alone."""
    if target is not None:
        from standby.files import is_there
        from standby.server.replicas import Replicas

        if is_there(target / "replica.json"):
            raise ConfigurationError(
                str(target), "is one replica's folder", f"Name the folder it is in: {target.parent}"
            )
        yield Replicas.of_folder(target)
        return
    if click.get_current_context().meta.get(SERVER, ""):
        with opened_backup(config) as server:
            yield server.replicas
        return
    with contextlib.ExitStack() as stack:
        yield _replicas_of(config, stack)


def _replicas_of(config: Path, stack: contextlib.ExitStack) -> AllReplicas:
    """The replicas of the configuration, without the state database where that cannot be used: the
    day it is needed least is the day of a failover."""
    from standby.server import BackupServer
    from standby.server.all_replicas import replicas_alone
    from standby.server.config import load_config

    try:
        loaded = load_config(config)
    except ConfigurationError as exc:
        exc.hint = f"{exc.hint or 'Correct it'}; {WITHOUT_CONFIG}"
        raise
    try:
        return stack.enter_context(BackupServer(loaded, keeps_state=False)).replicas
    except StandbyError as exc:
        warn(f"{exc}. This command goes on without it")
    return stack.enter_context(replicas_alone(loaded))
