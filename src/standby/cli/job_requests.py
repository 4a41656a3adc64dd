"""`standby job next`, `pause`, `resume`, `retry`: what the running server does and is asked."""

from __future__ import annotations

from pathlib import Path

import click

from standby.cli.output import json_option, print_json, print_table
from standby.cli.serving import config_option, opened_backup, server_option

machine_option = click.option("--machine", default="", help="Only this VM of the session.")


@click.command("next")
@click.argument("name", required=False)
@config_option
@server_option
@json_option
def next_runs(name: str | None, config: Path, as_json: bool) -> None:
    """When each job (or the job NAME) runs next by its schedule, while `standby server` runs.

    \b
    Example: standby job next nightly
    """
    from standby.cli.times import when
    from standby.errors import UnknownName

    with opened_backup(config) as server:
        table = server.job_table()
    known = tuple(item.name for item in table.jobs)
    if name is not None and name not in known:
        raise UnknownName("job", name, known)
    found = [item for item in table.times if name in (None, item.job)]
    if as_json:
        print_json({"jobs": found})
        return
    rows = [(item.job, item.schedule, when(item.next_run, table.now, table.zone)) for item in found]
    print_table("", ("job", "~schedule", "next run"), rows)


def _ask(kind: str, name: str, machine: str, config: Path, as_json: bool) -> None:
    with opened_backup(config) as server:
        asked = server.ask(name, kind, machine)
    if as_json:
        print_json({"job": name, "session": asked.session, "machine": machine, "asked": kind})
    else:
        click.echo(asked.text)


@click.command()
@click.argument("name")
@machine_option
@config_option
@server_option
@json_option
def pause(name: str, machine: str, config: Path, as_json: bool) -> None:
    """Pause the server's session of the job NAME: what was transferred is kept, and nothing of the
    job runs until `job resume`. With --machine the other VMs go on.

    \b
    Example: standby job pause nightly --machine db01
    """
    _ask("pause", name, machine, config, as_json)


@click.command()
@click.argument("name")
@machine_option
@config_option
@server_option
@json_option
def resume(name: str, machine: str, config: Path, as_json: bool) -> None:
    """Go on with the paused session of the job NAME, or with one VM of it.

    \b
    Example: standby job resume nightly
    """
    _ask("resume", name, machine, config, as_json)


@click.command()
@click.argument("name")
@machine_option
@config_option
@server_option
@json_option
def retry(name: str, machine: str, config: Path, as_json: bool) -> None:
    """Try the VMs of the job's newest session that were not done again, now.

    \b
    Example: standby job retry nightly
    """
    _ask("retry", name, machine, config, as_json)


@click.command()
@click.argument("name", required=False)
@config_option
@server_option
@json_option
def alarms(name: str | None, config: Path, as_json: bool) -> int:
    """Open alarms (of the job NAME), newest first; `job acknowledge` closes them. Exit code 3:
    there are some.

    \b
    Example: standby job alarms nightly
    """
    with opened_backup(config) as server:
        found = server.alarms(name)
    if as_json:
        print_json({"alarms": found})
    elif found:
        rows = [
            (str(item.id), item.last_at[:19], item.kind, item.job, item.machine, item.text)
            for item in found
        ]
        print_table("", (">alarm", "last at (UTC)", "kind", "job", "VM", "~text"), rows)
    else:
        click.echo("no open alarms")
    return 3 if found else 0


COMMANDS = (alarms, next_runs, pause, resume, retry)
