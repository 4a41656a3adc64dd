"""`standby server`: the backup server as a service of the system."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path

import click

from standby.cli.output import json_option, print_json, print_table
from standby.cli.serving import config_option, opened_backup, opened_server, server_option


class WithRun(click.Group):
    """A group whose command `run` is meant where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `run` before options that are not the group's own."""
        if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=WithRun)
def server() -> None:
    """The backup server: runs jobs by their schedules. `standby server` is `standby server run`.

    \b
    Example:
      standby server run --config /etc/standby/standby.toml
      standby server status
    """


@server.command()
@config_option
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Instead of [logs] format.")
@click.option("--listen", default="", metavar="HOST:PORT", help="Instead of [server] listen.")
@click.option(
    "--least-generation",
    type=click.IntRange(0, 2**31 - 1),
    default=0,
    help="Begin with this generation or a higher one: the number that movers name which refuse a "
    "server whose state database was lost while the clock was ahead.",
)
@json_option
def run(
    config: Path, log_format: str | None, listen: str, least_generation: int, as_json: bool
) -> None:
    """Run due sessions until SIGTERM or Ctrl-C; sessions under way stop then, and go on with the
    next start.

    Says on standard output when it is ready, and on standard error what happens, a line each. A
    second server on the same state database stands by until the first one ends. The API answers
    at [server] listen, standing by too; `standby token add` makes tokens for it.

    \b
    Example: standby server run --config /etc/standby/standby.toml
    \b
    /etc/systemd/system/standby.service:
      [Unit]
      Description=standby backup server
      After=network-online.target
      Wants=network-online.target
      [Service]
      Type=notify
      User=standby
      ExecStart=/usr/local/bin/standby server run --config /etc/standby/standby.toml
      Restart=on-failure
      TimeoutStopSec=90
      KillMode=mixed
      [Install]
      WantedBy=multi-user.target
    """
    from standby.disk.serve.ending import ended_by_signals
    from standby.server import logs
    from standby.server.config import load_config
    from standby.server.serve import opened_api, opened_daemon

    found = load_config(config)
    logs.configure(form=log_format or found.logs.form, level=found.logs.level, file=found.logs.file)

    def ready(is_active: bool) -> None:
        state = "active" if is_active else "standing by"
        if as_json:
            told = {"installation": found.installation, "state": state, "pid": os.getpid()}
            click.echo(json.dumps(told | {"api": api.address}))
        else:
            click.echo(f"backup server of {found.installation}: {state}, API at {api.address}")
        sys.stdout.flush()
        _tell_system("READY=1")

    with (
        opened_server(config) as backup,
        opened_api(backup, listen) as api,
        opened_daemon(
            backup, address=api.address, on_ready=ready, least_generation=least_generation
        ) as daemon,
    ):
        api.context.server_id = daemon.id
        ended = ended_by_signals()

        def stop() -> None:
            ended()
            _tell_system("STOPPING=1")
            daemon.stop()

        threading.Thread(target=stop, name="signals", daemon=True).start()
        daemon.run()


def _tell_system(text: str) -> None:
    """systemd's notification protocol (sd_notify): a datagram to the socket it names."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place or sys.platform == "win32":
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as system:
        try:
            system.sendto(text.encode(), "\0" + place[1:] if place.startswith("@") else place)
        except OSError as exc:
            click.echo(f"warning: {place}: {exc.strerror}", err=True)


@server.command()
@config_option
@server_option
@json_option
def status(config: Path, as_json: bool) -> int:
    """Which server is active, what it is at, and what comes next. Exit code 3: none is active.

    \b
    Example: standby server status --json
    """
    from standby.cli.times import when

    with opened_backup(config) as backup:
        found = backup.server_status()
        table = backup.job_table()
    if as_json:
        print_json(found)
        return 0 if found.active is not None else 3
    if found.active is None:
        click.echo("no server is active")
    else:
        where = f" at {found.active.address}" if found.active.address else ""
        click.echo(f"active: {found.active.server}{where}")
    if found.is_config_changed:
        click.echo("configuration changed since start; restart to use it")
    if found.sessions:
        rows = [(item.id, item.job, str(item.state), item.detail) for item in found.sessions]
        print_table("", ("session", "job", "state", "~detail"), rows)
    rows_of_jobs = [
        (item.job, item.schedule, when(item.next_run, table.now, table.zone)) for item in found.jobs
    ]
    print_table("", ("job", "~schedule", "next run"), rows_of_jobs)
    if found.webhooks:
        print_table(
            "",
            ("webhook", ">delivered", ">failed", ">waiting", "~last error"),
            [
                (item.name, str(item.delivered), str(item.failed), str(item.waiting),
                 item.last_error)
                for item in found.webhooks
            ],
        )  # fmt: skip
    return 0 if found.active is not None else 3
