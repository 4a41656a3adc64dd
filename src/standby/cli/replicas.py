"""`standby replica …`: the day it counts."""

from __future__ import annotations

from pathlib import Path

import click

from standby.cli.output import (
    confirmed,
    dry_run_option,
    json_option,
    print_json,
    print_table,
    progress_bars,
    size,
    warn,
    yes_option,
)
from standby.cli.serving import config_option, opened_replicas, target_option


@click.group()
def replica() -> None:
    """Replicas: look at them, fail over to them, verify them.

    With --target FOLDER everything works when only the target's storage is left.
    """


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


@replica.command("list")
@config_option
@target_option
@json_option
def list_replicas(config: Path, target: Path | None, as_json: bool) -> None:
    """All replicas and their newest restore points.

    \b
    Example: standby replica list
    """
    with opened_replicas(config, target) as replicas:
        found = replicas.all()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            item.name,
            item.state.value + (" (a session runs)" if item.is_processing else ""),
            str(len(item.points)),
            item.points[-1].id if item.points else "",
            _age(item.newest_age_s),
            str(len(item.findings)) if item.findings else "",
        )
        for item in found
    ]
    print_table("", ("replica", "state", ">points", "newest", ">age", ">findings"), rows)


@replica.command()
@click.argument("name")
@config_option
@target_option
@json_option
def show(name: str, config: Path, target: Path | None, as_json: bool) -> int:
    """Points, state and findings of the replica NAME.

    \b
    Example: standby replica show web01_replica
    """
    with opened_replicas(config, target) as replicas:
        found = replicas.show(name)
    if as_json:
        print_json(found)
        return 3 if found.findings else 0
    click.echo(f"{found.name}: {found.state.value}, in {found.folder}")
    if found.failover_point:
        click.echo(f"failed over to {found.failover_point} since {found.failover_started_at}")
    rows = [
        (item.id, item.taken_at, item.consistency, size(item.changed_bytes), size(item.size))
        for item in found.points
    ]
    print_table("", ("point", "taken at", "consistency", ">changed", ">size"), rows)
    click.echo(f"possible now: {', '.join(found.actions)}")
    for text in found.findings:
        warn(text)
    return 3 if found.findings else 0


@replica.command()
@click.argument("name")
@click.option("--point", help="A point's id, or a time (ISO 8601): the newest point before it.")
@click.option("--power-on", is_flag=True, help="Start the VM with QEMU.")
@click.option("--source-may-run", is_flag=True, help="The source VM runs, and that is known.")
@click.option("--adopt", is_flag=True, help="Keep what the VM wrote outside of a failover.")
@yes_option
@dry_run_option
@config_option
@target_option
@json_option
def failover(
    name: str,
    point: str | None,
    power_on: bool,
    source_may_run: bool,
    adopt: bool,
    yes: bool,
    dry_run: bool,
    config: Path,
    target: Path | None,
    as_json: bool,
) -> int:
    """Work from the replica NAME from now on (undo with `undo-failover`).

    \b
    Example: standby replica failover web01_replica --point 20261122T220000Z-9c1d --yes
    """
    with opened_replicas(config, target) as replicas:
        chosen = replicas.chosen(name, point)
        if dry_run:
            if as_json:
                print_json(chosen)
            else:
                click.echo(f"would fail over {name} to {chosen.id}, taken at {chosen.taken_at}")
            return 0
        confirmed(f"Fail over {name} to {chosen.id}, taken at {chosen.taken_at}?", yes)
        result = replicas.failover(
            name,
            point=point,
            adopt=adopt,
            source_may_run=source_may_run,
            power_on=power_on,
        )
    if as_json:
        print_json(result)
    else:
        click.echo(f"{name}: failed over to {result.point.id}")
        for disk, layer in sorted((result.record.ready or {}).items()):
            click.echo(f"  {disk}: {layer.file}")
    for text in result.warnings:
        warn(text)
    return 3 if result.warnings else 0


@replica.command("undo-failover")
@click.argument("name")
@click.option("--drop-writes", is_flag=True, help="Also drop writes made outside of a failover.")
@yes_option
@config_option
@target_option
@json_option
def undo_failover(
    name: str, drop_writes: bool, yes: bool, config: Path, target: Path | None, as_json: bool
) -> None:
    """Drop what the replica NAME wrote since its failover; replication goes on.

    \b
    Example: standby replica undo-failover web01_replica --yes
    """
    confirmed(f"Drop everything {name} wrote since its failover?", yes)
    with opened_replicas(config, target) as replicas:
        record = replicas.undo_failover(name, drop_writes=drop_writes)
    if as_json:
        print_json(record)
    else:
        click.echo(f"{name}: {record.state.value} again")


@replica.command("permanent-failover")
@click.argument("name")
@yes_option
@config_option
@target_option
@json_option
def permanent_failover(
    name: str, yes: bool, config: Path, target: Path | None, as_json: bool
) -> None:
    """Make the failed-over replica NAME a VM of its own; its job leaves it alone from now on.

    \b
    Example: standby replica permanent-failover web01_replica --yes
    """
    confirmed(f"Make {name} a VM of its own? It will not be replicated to any more.", yes)
    with opened_replicas(config, target) as replicas:
        record = replicas.permanent_failover(name)
    if as_json:
        print_json(record)
    else:
        click.echo(f"{name}: a VM of its own now")


@replica.command()
@click.argument("name")
@click.option("--point", help="Only this point; default all.")
@click.option("--repair", is_flag=True, help="Write damaged pieces anew where they can be had.")
@config_option
@target_option
@json_option
def verify(
    name: str, point: str | None, repair: bool, config: Path, target: Path | None, as_json: bool
) -> int:
    """Read every byte of the replica NAME and compare it with its digests.

    \b
    Example: standby replica verify web01_replica --repair
    """
    with opened_replicas(config, target) as replicas, progress_bars(not as_json) as update:
        verdicts = replicas.verify(
            name, point=point, progress=lambda done, total: update("verify", done, total)
        )
        is_ok = all(item.is_ok for item in verdicts)
        repairs = replicas.repair(name, verdicts) if repair and not is_ok else []
        if repairs:
            verdicts = replicas.verify(name, point=point)
            is_ok = all(item.is_ok for item in verdicts)
    if as_json:
        print_json({"points": verdicts, "repairs": repairs})
    else:
        for verdict in verdicts:
            click.echo(f"{verdict.point_id}: {'ok' if verdict.is_ok else 'DAMAGED'}")
            for disk in verdict.disks:
                if disk.problem:
                    click.echo(f"  {disk.disk_id}: {disk.problem}")
                for extent in disk.damaged[:20]:
                    click.echo(f"  {disk.disk_id}: {size(extent.length)} at {extent.offset:#x}")
        for done in repairs:
            click.echo(f"repaired {size(done.repaired_bytes)}, {size(done.missing_bytes)} missing")
    return 0 if is_ok else 13


@replica.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@click.argument("name")
@click.option("--force", is_flag=True, help="End a guest that does not shut down.")
@config_option
@target_option
@json_option
def power(
    state: str, name: str, force: bool, config: Path, target: Path | None, as_json: bool
) -> None:
    """Start or stop the VM of the failed-over replica NAME, also after a reboot.

    \b
    Example: standby replica power on web01_replica
    """
    with opened_replicas(config, target) as replicas:
        now = replicas.power(name, on=state == "on", force=force)
    if as_json:
        print_json({"replica": name, "power": now.value})
    else:
        click.echo(f"{name}: {now.value}")
