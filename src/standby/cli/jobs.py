"""`standby job …`: plan, start, and what happened."""

from __future__ import annotations

from pathlib import Path

import click

from standby.cli.output import (
    dry_run_option,
    json_option,
    print_json,
    print_table,
    progress_bars,
    size,
    warn,
)
from standby.cli.serving import config_option, opened_server
from standby.model.report import SessionReport
from standby.server.plan import Basis, Figure, JobPlan

OUTCOME_EXIT = {"done": 0, "warnings": 3, "failed": 16}


@click.group()
def job() -> None:
    """Replication jobs."""


@job.command("list")
@config_option
@json_option
def list_jobs(config: Path, as_json: bool) -> None:
    """All jobs of the configuration.

    \b
    Example: standby job list --json
    """
    with opened_server(config) as server:
        jobs = server.jobs()
    if as_json:
        print_json(jobs)
        return
    rows = [
        (item.name, item.source, ", ".join(item.machines), item.target, str(item.restore_points))
        for item in jobs
    ]
    print_table("", ("job", "source", "machines", "target", ">restore points"), rows)


@job.command()
@click.argument("name")
@click.option("--scan", is_flag=True, help="Read the disks: exact figures, nothing is changed.")
@config_option
@json_option
def plan(name: str, scan: bool, config: Path, as_json: bool) -> int:
    """What a session of the job NAME would do, per disk.

    \b
    Example: standby job plan nightly --scan
    """
    with opened_server(config) as server:
        made = server.plan(name, scan=scan)
    if as_json:
        print_json(made)
    else:
        show_plan(made)
    return 3 if any(item.action != "replicate" for item in made.machines) else 0


@job.command()
@click.argument("name")
@click.option("--machine", "machines", multiple=True, help="Only this VM; may be repeated.")
@click.option("--take-over", is_flag=True, help="Fence another writer that hangs.")
@click.option("--accept-loss", is_flag=True, help="Go on although the target lost points.")
@dry_run_option
@config_option
@json_option
def start(
    name: str,
    machines: tuple[str, ...],
    take_over: bool,
    accept_loss: bool,
    dry_run: bool,
    config: Path,
    as_json: bool,
) -> int:
    """Run a session of the job NAME: a new restore point of every VM.

    \b
    Example: standby job start nightly --machine web01
    """
    with opened_server(config) as server:
        if dry_run:
            made = server.plan(name)
            if as_json:
                print_json(made)
            else:
                show_plan(made)
            return 0
        with progress_bars(not as_json) as update:
            report = server.start(
                name,
                machines=machines or None,
                take_over=take_over,
                accept_loss=accept_loss,
                progress=lambda machine, place, done, total: update(
                    f"{machine} {place}", done, total
                ),
            )
    if as_json:
        print_json(report)
    else:
        show_report(report)
    return OUTCOME_EXIT[report.outcome]


@job.command()
@click.argument("name", required=False)
@click.option("--limit", default=20, show_default=True, help="How many.")
@config_option
@json_option
def sessions(name: str | None, limit: int, config: Path, as_json: bool) -> None:
    """Past sessions (of the job NAME), newest first.

    \b
    Example: standby job sessions nightly
    """
    with opened_server(config) as server:
        found = server.sessions(name, limit)
    if as_json:
        print_json(found)
        return
    rows = []
    for item in found:
        disks = [disk for machine in item.machines for disk in machine.disks]
        rows.append(
            (
                item.id,
                item.job,
                item.outcome or "unfinished",
                str(len(item.machines)),
                size(sum(disk.read for disk in disks)),
                size(sum(disk.sent for disk in disks)),
            )
        )
    print_table("", ("session", "job", "outcome", ">VMs", ">read", ">sent"), rows)


@job.command()
@click.argument("session")
@config_option
@json_option
def report(session: str, config: Path, as_json: bool) -> None:
    """What SESSION (an id of `job sessions`) did.

    \b
    Example: standby job report 20261123T220000Z-1f2e
    """
    with opened_server(config) as server:
        found = server.report(session)
    if as_json:
        print_json(found)
    else:
        show_report(found)


@job.command()
@click.argument("name")
@config_option
@json_option
def acknowledge(name: str, config: Path, as_json: bool) -> None:
    """Acknowledge the alarms of the job NAME; held retention goes on.

    \b
    Example: standby job acknowledge nightly
    """
    with opened_server(config) as server:
        count = server.acknowledge(name)
    if as_json:
        print_json({"acknowledged": count})
    else:
        click.echo(f"acknowledged {count} alarms of job {name}")


# --- shown -----------------------------------------------------------------------------------


def _figure(figure: Figure) -> str:
    if figure.basis is Basis.ESTIMATED:
        return f"~{size(figure.value)} ({size(figure.low)} to {size(figure.high)})"
    prefix = "≤ " if figure.basis is Basis.UPPER_BOUND else ""
    return prefix + size(figure.value)


def show_plan(made: JobPlan) -> None:
    """A plan as a table."""
    rows = []
    for machine in made.machines:
        if machine.action != "replicate":
            rows.append((machine.machine, "", machine.action, "", "", "", machine.reason))
        for disk in machine.disks:
            rows.append(
                (
                    machine.machine,
                    disk.place,
                    disk.mode.value,
                    _figure(disk.read),
                    _figure(disk.send),
                    _figure(disk.space),
                    disk.reason,
                )
            )
    print_table(
        f"Plan of job {made.job}",
        ("VM", "disk", "mode", ">read", ">send", ">space", "why"),
        rows,
    )
    click.echo(f"free at the target: {size(made.free_bytes)}")


def show_report(found: SessionReport) -> None:
    """A session as tables; warnings and alarms on stderr."""
    rows = []
    for machine in found.machines:
        for disk in machine.disks:
            rows.append(
                (
                    machine.machine,
                    disk.place,
                    disk.mode,
                    size(disk.read),
                    size(disk.changed),
                    size(disk.sent),
                    size(disk.written),
                    machine.outcome,
                    machine.point,
                )
            )
        if not machine.disks:
            rows.append((machine.machine, "", "", "", "", "", "", machine.outcome, ""))
    print_table(
        f"Session {found.id} of job {found.job}: {found.outcome}",
        ("VM", "disk", "mode", ">read", ">changed", ">sent", ">written", "outcome", "point"),
        rows,
    )
    for machine in found.machines:
        steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in machine.steps_s.items())
        click.echo(f"{machine.machine}: {steps}")
    if found.bottleneck:
        click.echo(f"bottleneck: {found.bottleneck}")
    for machine in found.machines:
        for text in (*machine.warnings, *machine.alarms):
            warn(f"{machine.machine}: {text}")
        if machine.error:
            click.echo(f"error: {machine.machine}: {machine.error}", err=True)
