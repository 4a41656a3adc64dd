"""`standby replica …`: the day it counts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.hints import completed
from standby.cli.output import (
    confirmed,
    dry_run_option,
    if_cancelled,
    json_option,
    print_json,
    print_table,
    progress_bars,
    size,
    warn,
    yes_option,
)
from standby.cli.replica_texts import (
    POWER,
    age,
    going_on,
    names_of,
    none_shown,
    show_leftovers,
    show_repair,
    show_verdict,
    way_out,
)
from standby.cli.serving import config_option, opened_replicas, server_option, target_option
from standby.errors import StandbyError
from standby.model.replica import RUNS_ON

if TYPE_CHECKING:
    from standby.road.verb_plans import VerbPlan

WARNINGS_EXIT = 3
DAMAGED_EXIT = 13
REPEAT = "`standby replica show {}` says what the replica is now; repeating the command ends it"


def _point(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """What --point was given: an empty text would mean the beginning of any id."""
    if value is not None and not value.strip():
        raise click.BadParameter("is empty; give a point's id or a time, or leave --point out.")
    return value


@click.group()
def replica() -> None:
    """Replicas: look at them, fail over to them, verify them.

    With --target FOLDER everything works when only the target's storage is left. A name that
    several target hosts have is written HOST:NAME.

    \b
    Example:
      standby replica list
      standby replica failover web01_replica --dry-run
    """


# --- looking ---------------------------------------------------------------------------------


@replica.command("list")
@config_option
@server_option
@target_option
@json_option
def list_replicas(config: Path, target: Path | None, as_json: bool) -> int:
    """All replicas and their newest restore points. Exit code 3: one needs a look.

    \b
    Example: standby replica list
    """
    with opened_replicas(config, target) as replicas:
        found = replicas.all()
        unreadable = replicas.unreadable()
    needs_a_look = unreadable or any(item.findings for item in found)
    if as_json:
        print_json({"replicas": found, "unreadable": unreadable})
        return WARNINGS_EXIT if needs_a_look else 0
    names = names_of(found)
    rows = [
        [
            item.name,
            item.target,
            item.state.value,
            str(len(item.points)),
            item.points[-1].id if item.points else "",
            age(item.newest_age_s),
            going_on(item),
        ]
        for item in found
    ]
    columns = ["replica", "target", "state", ">points", "newest point", ">age", "~now"]
    if target is not None:  # a folder alone is no host
        for row in (columns, *rows):
            del row[1]
    if rows:
        print_table("", columns, rows)
    else:
        click.echo(none_shown(unreadable))
    for item, name in zip(found, names, strict=True):
        if item.findings:
            count = f"{len(item.findings)} findings" if len(item.findings) > 1 else item.findings[0]
            warn(f"{name}: {count}; see `standby replica show {name}`")
    for folder, problem in unreadable.items():
        warn(f"{folder}: {problem}")
    return WARNINGS_EXIT if needs_a_look else 0


@replica.command()
@click.argument("name")
@config_option
@server_option
@target_option
@json_option
def show(name: str, config: Path, target: Path | None, as_json: bool) -> int:
    """Points, state and findings of the replica NAME. Exit code 3: it needs a look.

    \b
    Example: standby replica show web01_replica
    """
    with opened_replicas(config, target) as replicas:
        found = replicas.show(name)
    if as_json:
        print_json(found)
        return WARNINGS_EXIT if found.findings else 0
    click.echo(f"{found.name}: {found.state.value}\n  in {found.folder}")
    if found.failover_point:
        click.echo(f"  failed over to {found.failover_point} since {found.failover_started_at}")
    if found.failover_point or found.power.value in ("running", "paused"):
        known = found.power.value != "unknown"
        click.echo(f"  {POWER[found.power.value] if known else 'nobody says whether its VM runs'}")
    if found.is_processing:
        click.echo(f"  a session runs: {found.holder}")
    rows = [
        (item.id, item.taken_at[:19], item.consistency, size(item.changed_bytes), size(item.size))
        for item in found.points
    ]
    print_table("", ("point", "taken at (UTC)", "kind", ">changed", ">file size"), rows)
    click.echo("possible now:" if found.actions else "possible now: nothing")
    for command in found.actions:
        click.echo(f"  {completed(command)}")
    for text in found.findings:
        warn(text)
    return WARNINGS_EXIT if found.findings else 0


@replica.command()
@click.argument("name")
@click.option("--point", callback=_point, help="Only this point; default all.")
@click.option("--repair", is_flag=True, help="Write damaged pieces anew where they can be had.")
@config_option
@server_option
@target_option
@json_option
def verify(
    name: str, point: str | None, repair: bool, config: Path, target: Path | None, as_json: bool
) -> int:
    """Read every byte of the replica NAME and compare it with its digests. Exit code 13: damaged;
    3: only digests are, every disk is intact.

    \b
    Example: standby replica verify web01_replica --repair
    """
    left = (
        "pieces that were written anew stay so; repeat the command for the others"
        if repair
        else "nothing was changed, and nothing said of the points; repeat the command"
    )
    with (
        if_cancelled(left),
        opened_replicas(config, target) as replicas,
        progress_bars(not as_json) as update,
    ):
        verdicts = replicas.verify(
            name, point=point, progress=lambda done, total: update("verify", done, total)
        )
        is_ok = all(item.is_ok for item in verdicts)
        repairs = replicas.repair(name, verdicts) if repair and not is_ok else []
        if repairs:
            verdicts = replicas.verify(name, point=point)
            is_ok = all(item.is_ok for item in verdicts)
        found = replicas.show(name)
    is_intact = all(item.is_intact for item in verdicts)
    if as_json:
        print_json({"points": verdicts, "repairs": repairs, "is_ok": is_ok})
    else:
        for verdict in verdicts:
            show_verdict(verdict)
        for done in repairs:
            show_repair(done)
        if not is_ok:
            what = "is damaged" if not is_intact else "has damaged digests, its data is intact"
            warn(f"{name} {what}; {way_out(found, verdicts, name, has_tried=repair)}")
    return 0 if is_ok else WARNINGS_EXIT if is_intact else DAMAGED_EXIT


# --- acting ----------------------------------------------------------------------------------


def _agreed(plan: VerbPlan, question: str, *, yes: bool, dry_run: bool, as_json: bool) -> bool:
    """Show what would be done, and ask; False when that was all that was wanted."""
    if dry_run:
        if as_json:
            print_json(plan)
        else:
            for line in plan.effects:
                click.echo(line)
            show_leftovers(plan)
            for text in plan.warnings:
                warn(text)
        return False
    lines = [*plan.effects, *(f"warning: {text}" for text in plan.warnings)]
    confirmed(lines, question, yes=yes, as_json=as_json)
    return True


@replica.command()
@click.argument("name")
@click.option(
    "--point",
    callback=_point,
    help="A point's id, or a time (ISO 8601): the newest point before it.",
)
@click.option("--power-on", is_flag=True, help="Start the VM with QEMU.")
@click.option("--source-may-run", is_flag=True, help="The source VM runs, and that is known.")
@click.option("--adopt", is_flag=True, help="Keep what the VM wrote outside of a failover.")
@yes_option
@dry_run_option
@config_option
@server_option
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
        plan = replicas.plan(
            "failover",
            name,
            point=point,
            adopt=adopt,
            source_may_run=source_may_run,
            power_on=power_on,
        )
        question = f"Fail over {plan.replica} to {plan.point}?"
        if not _agreed(plan, question, yes=yes, dry_run=dry_run, as_json=as_json):
            return WARNINGS_EXIT if plan.warnings else 0
        with if_cancelled(REPEAT.format(name)):
            result = replicas.failover(
                name,
                point=point,
                adopt=adopt,
                source_may_run=source_may_run,
            )
        if power_on:
            try:
                replicas.power(name, on=True)
            except StandbyError:
                click.echo(f"failed over to {result.point.id}, but the VM does not run", err=True)
                raise
    if as_json:
        print_json(result)
    else:
        if result.point.id != plan.point:
            click.echo(f"{result.point.id} was all there but for its commit, which is made good")
        click.echo(f"{plan.replica}: failed over to {result.point.id}; the VM's disks are")
        for disk in result.point.disks:
            if not disk.excluded:
                click.echo(f"  {disk.place}: {disk.disk_id}/ready.vhdx")
        if not power_on:
            called = name if name.endswith(f":{plan.replica}") else plan.replica
            click.echo(f"next: `standby replica power on {called}` starts it with QEMU")
    for text in result.warnings:
        warn(text)
    return WARNINGS_EXIT if result.warnings else 0


@replica.command("undo-failover")
@click.argument("name")
@click.option("--drop-writes", is_flag=True, help="Also drop writes made outside of a failover.")
@yes_option
@dry_run_option
@config_option
@server_option
@target_option
@json_option
def undo_failover(
    name: str,
    drop_writes: bool,
    yes: bool,
    dry_run: bool,
    config: Path,
    target: Path | None,
    as_json: bool,
) -> None:
    """Drop what the replica NAME wrote since its failover; replication goes on.

    \b
    Example: standby replica undo-failover web01_replica --yes
    """
    with opened_replicas(config, target) as replicas:
        plan = replicas.plan("undo-failover", name, drop_writes=drop_writes)
        question = f"Drop everything {plan.replica} wrote since its failover?"
        if not _agreed(plan, question, yes=yes, dry_run=dry_run, as_json=as_json):
            return
        with if_cancelled(REPEAT.format(name)):
            record = replicas.undo_failover(name, drop_writes=drop_writes)
    if as_json:
        print_json(record)
    else:
        click.echo(f"{plan.replica}: {record.state.value} again, above {record.ready_point}")


@replica.command("permanent-failover")
@click.argument("name")
@yes_option
@dry_run_option
@config_option
@server_option
@target_option
@json_option
def permanent_failover(
    name: str, yes: bool, dry_run: bool, config: Path, target: Path | None, as_json: bool
) -> int:
    """Make the failed-over replica NAME a VM of its own; its job leaves it alone from now on.

    \b
    Example: standby replica permanent-failover web01_replica --yes
    """
    with opened_replicas(config, target) as replicas:
        plan = replicas.plan("permanent-failover", name)
        question = f"Make {plan.replica} a VM of its own? It will not be replicated to any more."
        if not _agreed(plan, question, yes=yes, dry_run=dry_run, as_json=as_json):
            return WARNINGS_EXIT if plan.warnings else 0
        record = replicas.permanent_failover(name)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(record) | {"leftovers": plan.leftovers})
    else:
        runs = ", and runs" if RUNS_ON in plan.effects else ""
        click.echo(f"{plan.replica}: a VM of its own now{runs}")
        show_leftovers(plan)
    return WARNINGS_EXIT if plan.warnings else 0


@replica.command()
@click.argument("state", type=click.Choice(["on", "off"]))
@click.argument("name")
@click.option(
    "--force", is_flag=True, help="End the guest at once, without asking it to shut down."
)
@config_option
@server_option
@target_option
@json_option
def power(
    state: str, name: str, force: bool, config: Path, target: Path | None, as_json: bool
) -> None:
    """Start or stop the VM of the failed-over replica NAME, also after a reboot. One that runs, or
    is off, already is left so: that is no error.

    \b
    Example: standby replica power on web01_replica
    """
    with opened_replicas(config, target) as replicas:
        before = replicas.show(name).power.value
        if state == "off" and not force and before != "off":
            text = "a guest that runs gets 60 s to shut down; --force ends it at once"
            click.echo(text, err=True)
        left = (
            "a guest that was asked to shut down may still do so"
            if state == "off"
            else "the VM may be on already"
        )
        with if_cancelled(f"{left}; `standby replica show {name}` tells"):
            now = replicas.power(name, on=state == "on", force=force).value
    if as_json:
        print_json({"replica": name, "power": now, "was": before})
    else:
        click.echo(f"{name}: {f'is {now} already' if now == before else now}")
