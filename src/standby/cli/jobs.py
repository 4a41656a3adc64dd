"""`standby job …`: plan, start, stop, and what happened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from standby.cli.output import (
    dry_run_option,
    if_cancelled,
    json_option,
    print_json,
    print_table,
    progress_bars,
    size,
    warn,
)
from standby.cli.serving import config_option, opened_backup, server_option
from standby.model.report import DiskReport, MachineReport, SessionReport, WanReport

if TYPE_CHECKING:
    from standby.client import RemoteServer
    from standby.server.local import LocalServer, Queued
    from standby.server.plan import Figure, JobPlan

WARNINGS_EXIT = 3
KEPT = "what was transferred is kept; the next `standby job start {}` goes on from it"
UNCHANGED = "nothing was changed"
OUTCOME_EXIT = {"done": 0, "warnings": WARNINGS_EXIT, "failed": 16, "interrupted": 130}


@click.group()
def job() -> None:
    """Replication jobs: plan, start, stop, and what their sessions did.

    \b
    Example:
      standby job plan nightly
      standby job start nightly
    """


@job.command("list")
@config_option
@server_option
@json_option
def list_jobs(config: Path, as_json: bool) -> None:
    """All jobs of the configuration, and which replicas are older than their job's rpo allows.

    \b
    Example: standby job list --json
    """
    from standby.cli.times import when
    from standby.server.overdue import overdue_jobs

    with opened_backup(config, looks=True) as server:
        table = server.job_table()
        seen = server.replicas.all() if any(item.rpo_s for item in table.jobs) else []
    late = overdue_jobs(table.jobs, seen)
    times = {item.job: item for item in table.times}
    if as_json:
        runs = {name: item.next_run for name, item in times.items()}
        print_json({"jobs": table.jobs, "next_runs": runs, "overdue": late})
        return
    rows = [
        (
            item.name,
            item.source,
            ", ".join(item.machines),
            item.target,
            str(item.restore_points),
            times[item.name].schedule,
            when(times[item.name].next_run, table.now, table.zone),
        )
        for item in table.jobs
    ]
    columns = ("job", "source", "~machines", "target", ">restore points", "~schedule", "next run")
    print_table("", columns, rows)
    for name, texts in late.items():
        for text in texts:
            warn(f"job {name}: {text}")


@job.command()
@click.argument("name")
@click.option("--scan", is_flag=True, help="Read the disks: exact figures; nothing is changed.")
@config_option
@server_option
@json_option
def plan(name: str, scan: bool, config: Path, as_json: bool) -> int:
    """What a session of the job NAME would do, per disk. Exit code 3: not every VM would be
    replicated, the target's space may not do, or there is an alarm; 12: the source's VMs cannot be
    listed.

    \b
    Example: standby job plan nightly --scan
    """
    with if_cancelled(UNCHANGED), opened_backup(config, looks=True) as server:
        made = server.plan(name, scan=scan)
    return _planned(made, as_json)


def _planned(made: JobPlan, as_json: bool) -> int:
    if as_json:
        print_json(made)
    else:
        show_plan(made)
    is_whole = all(item.action == "replicate" and not item.alarms for item in made.machines)
    return 0 if is_whole and not made.warnings else WARNINGS_EXIT


@job.command()
@click.argument("name")
@click.option("--machine", "machines", multiple=True, help="Only this VM; may be repeated.")
@click.option("--take-over", is_flag=True, help="Fence another writer that hangs.")
@click.option("--accept-loss", is_flag=True, help="Go on although the target lost points.")
@click.option("--queue", is_flag=True, help="Have the running `standby server` do it.")
@dry_run_option
@config_option
@server_option
@json_option
def start(
    name: str,
    machines: tuple[str, ...],
    take_over: bool,
    accept_loss: bool,
    queue: bool,
    dry_run: bool,
    config: Path,
    as_json: bool,
) -> int:
    """Run a session of the job NAME: a new restore point of every VM.

    Ctrl-C or `job stop` end it; what was transferred is kept, and the next session goes on from
    it. Exit code 0: done; 3: with warnings or alarms; 12: the source's VMs cannot be listed;
    16: a VM failed; 130: stopped.

    \b
    Example: standby job start nightly --machine web01
    """
    with opened_backup(config, looks=dry_run) as server:
        if dry_run:
            return _planned(_only(server.plan(name), machines), as_json)
        if queue:
            queued = server.enqueue(name, machines, take_over=take_over, accept_loss=accept_loss)
            return _show_queued(queued, as_json)
        with if_cancelled(KEPT.format(name)), progress_bars(not as_json) as update:
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


def _show_queued(queued: Queued, as_json: bool) -> int:
    if as_json:
        print_json(queued)
    else:
        click.echo(
            f"session {queued.session} of job {queued.job} is queued; see `standby server status`"
        )
    return 0


def _only(made: JobPlan, machines: tuple[str, ...]) -> JobPlan:
    """The plan of these VMs only; all of them where none is named."""
    from dataclasses import replace

    from standby.errors import UnknownName

    known = tuple(item.machine for item in made.machines)
    for name in machines:
        if name not in known:
            raise UnknownName(f"VM in job {made.job}", name, known)
    chosen = tuple(item for item in made.machines if not machines or item.machine in machines)
    return replace(made, machines=chosen)


@job.command()
@click.argument("name")
@click.option(
    "--timeout", default=120, show_default=True, help="Seconds to wait for it.", metavar="SECONDS"
)
@config_option
@server_option
@json_option
def stop(name: str, timeout: int, config: Path, as_json: bool) -> None:
    """End the running session of the job NAME, in whatever process it is, and wait for that.

    What was transferred is kept, and the next session goes on from it.

    \b
    Example: standby job stop nightly
    """
    asked = "the session was asked to end and will; `standby job sessions {}` shows when it has"
    with if_cancelled(asked.format(name)), opened_backup(config) as server:
        stopped = server.stop(name, timeout_s=timeout)
    if as_json:
        print_json({"job": name, "stopped": stopped})
    elif not stopped:
        click.echo(f"no session of job {name} runs")
    for report in stopped if not as_json else ():
        click.echo(f"session {report.id} of job {name} ended: {report.outcome}")


@job.command()
@click.argument("name", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="How many.")
@config_option
@server_option
@json_option
def sessions(name: str | None, limit: int, config: Path, as_json: bool) -> None:
    """Past sessions (of the job NAME), newest first.

    \b
    Example: standby job sessions nightly
    """
    with opened_backup(config, looks=True) as server:
        found = server.sessions(name, limit)
        alive = set() if as_json else server.alive(found)
    if as_json:
        print_json({"sessions": found})
        return
    rows = []
    for item in found:
        rows.append(
            (
                item.id,
                item.job,
                item.outcome or ("running" if item.id in alive else "unfinished"),
                str(sum(1 for machine in item.machines if machine.machine)),
                _total(item, "read"),
                _total(item, "sent"),
            )
        )
    if rows:
        print_table("", ("session", "job", "outcome", ">VMs", ">read", ">sent"), rows)
    else:
        click.echo("no sessions yet")


@job.command()
@click.argument("session", required=False)
@config_option
@server_option
@json_option
def report(session: str | None, config: Path, as_json: bool) -> None:
    """What SESSION (an id of `job sessions`, or a job's name for its newest; default the newest of
    all) did.

    \b
    Example: standby job report 20261123T220000Z-1f2e
    """
    with opened_backup(config, looks=True) as server:
        found = _reported(server, session)
        runs = not as_json and bool(server.alive([found]))
    if as_json:
        print_json(found)
    else:
        show_report(found, runs=runs)


def _reported(server: LocalServer | RemoteServer, wanted: str | None) -> SessionReport:
    """The session of that id, or the newest of the job of that name. ConfigurationError where there
    was none yet."""
    from standby.errors import ConfigurationError, UnknownName

    try:
        return server.report(wanted)
    except UnknownName as exc:
        jobs = [item.name for item in server.job_table().jobs]
        if wanted is not None and wanted not in jobs:
            raise UnknownName("session or job", wanted, (*jobs, *exc.known)) from None
    found = server.sessions(wanted, 1)
    if found:
        return found[0]
    name = wanted or (jobs[0] if len(jobs) == 1 else "NAME")
    whose = f"job {wanted}" if wanted else "any job"
    hint = f"`standby job start {name}` runs one"
    raise ConfigurationError("job report", f"no session of {whose} has run yet", hint)


@job.command()
@click.argument("name")
@config_option
@server_option
@json_option
def acknowledge(name: str, config: Path, as_json: bool) -> None:
    """Acknowledge the alarms of the job NAME; held retention goes on.

    \b
    Example: standby job acknowledge nightly
    """
    with opened_backup(config) as server:
        count = server.acknowledge(name)
    if as_json:
        print_json({"job": name, "acknowledged": count})
    else:
        click.echo(f"acknowledged {count} alarms of job {name}")


# --- shown -----------------------------------------------------------------------------------


def _figure(figure: Figure) -> str:
    if figure.basis.value == "estimated":
        return f"~{size(figure.value)}"
    prefix = "<= " if figure.basis.value == "upper bound" and figure.value else ""
    return prefix + size(figure.value)


def show_plan(made: JobPlan) -> None:
    """A plan: a line per VM, a table of its disks, why each is done so."""
    click.echo(f"Plan of job {made.job}")
    bases = set()
    for machine in made.machines:
        target = f" to {machine.replica}" if machine.replica else ""
        click.echo(f"\n{machine.machine}: {machine.action}{target}")
        if machine.reason:
            click.echo(f"  {machine.reason}")
        rows = []
        for disk in machine.disks:
            figures = (disk.read, disk.send, disk.space)
            bases |= {figure.basis.value for figure in figures if figure.value}
            rows.append((disk.place, disk.mode.value, *map(_figure, figures), disk.reason))
        if rows:
            print_table("", ("disk", "mode", ">read", ">send", ">space", "~why"), rows)
        for disk in machine.disks:
            if disk.send.basis.value == "estimated":
                low, high = size(disk.send.low), size(disk.send.high)
                click.echo(f"{disk.place}: the last sessions sent {low} to {high}")
        for text in (*machine.warnings, *machine.alarms):
            warn(f"{machine.machine}: {text}")
    if not made.machines:
        click.echo("no VM matches")
    if made.free_bytes or any(machine.disks for machine in made.machines):  # else nobody said
        click.echo(f"\nfree at the target: {size(made.free_bytes)}")
    if "estimated" in bases:
        click.echo("~ is the median of the last sessions")
    if "upper bound" in bases:
        more = "" if made.is_exact else "; `job plan --scan` reads the disks and knows what to send"
        click.echo(f"<= is an upper bound{more}")
    for text in made.warnings:
        warn(text)


def show_report(found: SessionReport, *, runs: bool = False) -> None:
    """A session, which may still run: a line and a table of disks per VM; warnings, alarms and
    errors on stderr."""
    state = found.outcome or ("running" if runs else "unfinished")
    click.echo(f"Session {found.id} of job {found.job}: {state}")
    for machine in found.machines:
        if machine.machine:
            _show_machine(machine)
    if found.bottleneck:
        click.echo(f"\nbottleneck: {found.bottleneck}")
    for machine in found.machines:
        for text in (*machine.warnings, *machine.alarms):
            warn(f"{machine.machine}: {text}")
        if machine.error:
            who = f"{machine.machine}: " if machine.machine else ""
            click.echo(f"error: {who}{machine.error}", err=True)


FIGURES = ("read", "skipped", "changed", "sent", "written")


def _told(count: int, *, is_known: bool) -> str:
    """Bytes; a dash for nothing that only means that nobody said."""
    return size(count) if count or is_known else "-"


def _is_known(machine: MachineReport, disk: DiskReport) -> bool:
    return not machine.is_cut or disk.is_whole or disk.mode == "excluded"


def _total(found: SessionReport, name: str) -> str:
    """One figure of all disks of a session."""
    disks = [(machine, disk) for machine in found.machines for disk in machine.disks]
    is_known = all(_is_known(machine, disk) for machine, disk in disks)
    if found.outcome in ("", "interrupted"):  # it may have been killed before it noted its disks
        is_known = is_known and all(item.disks or not item.is_cut for item in found.machines)
    return _told(sum(getattr(disk, name) for _, disk in disks), is_known=is_known)


def _show_machine(machine: MachineReport) -> None:
    point = f", restore point {machine.point}" if machine.point else ""
    click.echo(f"\n{machine.machine}: {machine.outcome or 'unfinished'}{point}")
    rows = [
        (
            disk.place,
            disk.mode,
            *(_told(getattr(disk, name), is_known=_is_known(machine, disk)) for name in FIGURES),
        )
        for disk in machine.disks
    ]
    if rows:
        print_table("", ("disk", "mode", *(f">{name}" for name in FIGURES)), rows)
    for disk in machine.disks:
        if disk.wan is not None:
            click.echo(_over_wan(disk.place, disk.wan))
    steps = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in machine.steps_s.items())
    if steps:
        click.echo(f"steps: {steps}")


PIECES = {
    "asked": "in the cache",
    "copy": "in known disks",
    "parts": "in parts known",
    "delta": "like known ones",
    "stream": "compressed",
    "raw": "as they are",
    "zero": "zero",
    "direct": "directly",
}
"""How pieces travelled, for people."""


def _over_wan(place: str, told: WanReport) -> str:
    """What WAN accelerators did for a disk, in a line."""
    if told.left:
        before = f", after {size(told.sent)} over them" if told.sent else ""
        return f"{place} not over WAN accelerators {told.name}{before}: {told.left}"
    pieces = ", ".join(f"{n} {PIECES.get(kind, kind)}" for kind, n in told.pieces.items() if n)
    cpu = ", ".join(f"{seconds:.1f} s {side}" for side, seconds in told.cpu_s.items())
    wire = f" ({size(told.wire_sent)} with all headers)" if told.wire_sent else ""
    return (
        f"{place} over WAN accelerators {told.name}: {size(told.sent)} sent{wire} and "
        f"{size(told.received)} received, directly about {size(told.direct)}; "
        f"pieces of 4 KiB: {pieces or 'none'}; processor: {cpu}"
    )
