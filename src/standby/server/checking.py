"""`standby check`: everything that would keep a job from running, found without running it.

Nothing is made or changed, the state database included: that is looked at where it is there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from standby.clock import SYSTEM_CLOCK
from standby.errors import LinkError, MoverDied, StandbyError
from standby.files import is_there
from standby.host.folder import FolderHost
from standby.model.job import ReplicationJob
from standby.model.machine import Inventory, Machine
from standby.ports import Host, inventory_of
from standby.repository import Repository
from standby.repository.database import FILE_NAME
from standby.road.surveying import ReplicaStatus
from standby.server.all_replicas import PlainHosts
from standby.server.check_movers import Asked, asked_movers, proxy_findings
from standby.server.check_replicas import (
    replica_findings,
    running_machines,
    unlockable_machines,
)
from standby.server.check_targets import target_of
from standby.server.config import Config, HostConfig
from standby.server.config_check import (
    Finding,
    Level,
    check_paths,
    excludes_disk,
    is_allowed,
    is_denied,
    local_repositories,
    replica_conflicts,
    same_names,
    selects,
    target_folders,
    unusable_machines,
)
from standby.server.fleet import Fleet
from standby.server.inventory import GONE_HINT, gone_from, name_of, taken_by
from standby.server.overdue import overdue_replica
from standby.server.remote_host import RemoteHost
from standby.server.store.looking import problem_of

Hosts = Callable[[str], Host]
"""A host by its name in the configuration."""


def checked_alone(config: Config) -> list[Finding]:
    """`check_configuration` with no backup server around it, and every mover asked."""
    with contextlib.closing(PlainHosts(config)) as hosts:
        return check_configuration(config, hosts.host, hosts.fleet)


def check_configuration(config: Config, host: Hosts, fleet: Fleet | None = None) -> list[Finding]:
    """Everything wrong with the configuration, its paths, what is there in them, the movers that
    jobs need, the VMs it takes and their disks. Without `fleet` only movers of hosts are asked."""
    findings = [*check_paths(config), *proxy_findings(config)]
    refused = {item.where for item in findings if item.level is Level.ERROR}
    asked = asked_movers(config, fleet, SYSTEM_CLOCK) if fleet is not None else Asked()
    findings += asked.findings
    jobs = list(config.jobs.values())
    inventories: dict[str, Inventory] = {}
    for name in sorted({job.source for job in jobs}):
        if config.hosts[name].mover in asked.lost:
            continue
        try:
            inventories[name] = inventory_of(host(name))
        except StandbyError as exc:
            if f"[hosts.{name}] path" not in refused:
                findings.append(_host_problem(config.hosts[name], exc))
            continue
        path = config.hosts[name].path
        is_folder_host = config.hosts[name].is_folder
        findings += unusable_machines(
            name, inventories[name].problems, jobs, path, is_folder_host=is_folder_host
        )
    away = {item.mend for item in findings if item not in asked.findings}
    away |= {f"mover {name}" for name in asked.lost}
    for job in jobs:
        if job.source in inventories:
            findings += _machines_of(job, inventories[job.source], config.hosts[job.source])
            findings += _names(job, inventories[job.source])
            at_fault = _fault(config.hosts[job.target])
            if f"[hosts.{job.target}] path" in refused or at_fault in away:
                continue
            if job.name in asked.unserved:
                continue
            try:
                found = _at_target(config, job, inventories[job.source], host)
                findings += [item for item in found if item not in findings]
            except StandbyError as exc:
                findings.append(_host_problem(config.hosts[job.target], exc))
                away.add(at_fault)
    for job in jobs:
        findings += _without_effect(config, job, host)
    machines = {name: inventory.machines for name, inventory in inventories.items()}
    findings += replica_conflicts(jobs, machines, target_folders(config))
    findings += same_names(jobs, machines)
    for name, inventory in inventories.items():
        wanted = [
            item
            for item in inventory.machines
            if any(job.source == name and selects(job, item.name) for job in jobs)
        ]
        findings += running_machines(config.hosts[name], host(name), wanted)
        findings += unlockable_machines(config.hosts[name], host(name), wanted)
        findings += _disks(config.hosts[name], host(name), inventory.machines, jobs)
    for name, path in local_repositories(config).items():
        if f"[repositories.{name}] path" not in refused:
            findings += _repository(f"[repositories.{name}]", path)
    if "[standby] state_database" not in refused:
        findings += _state_database(config)
    return findings


def _state_database(config: Config) -> list[Finding]:
    """What keeps the state database from being used."""
    hint = "move that file away or restore it, or name another database"
    mend = "the state database"
    try:
        place = config.state_place()
        problem = problem_of(place)
        if isinstance(place, Path) and is_there(place) and not is_allowed(place):
            problem, mend = f"{place} cannot be read and written by this user", str(place)
            hint = f"give it read and write access to {place}"
    except StandbyError as exc:
        problem = str(exc)
    where = "[standby] state_database"
    return [Finding(Level.ERROR, where, problem, hint, mend)] if problem else []


def _host_problem(host: HostConfig, error: StandbyError) -> Finding:
    """A host whose VMs cannot be listed."""
    where = f"[hosts.{host.name}]"
    if not host.is_folder:
        hint = f"`standby host check {host.name}` says what is missing"
        return Finding(Level.ERROR, where, str(error), hint, f"host {host.name}")
    if not host.mover or not isinstance(error, MoverDied | LinkError):
        return Finding(Level.ERROR, where, str(error), "correct its path, or what is there")
    why = error.exit_status if isinstance(error, MoverDied) else str(error)
    return Finding(
        Level.ERROR,
        where,
        f"mover {host.mover} cannot be reached: {why}",
        f"is `standby mover run` at work there, and is [movers.{host.mover}] address right? "
        "`standby infrastructure check` tries every part",
        _fault(host),
    )


def _fault(host: HostConfig) -> str:
    """What is to be mended where the host's mover is away."""
    return f"mover {host.mover}"


# --- targets -------------------------------------------------------------------------------------


def _at_target(
    config: Config, job: ReplicationJob, inventory: Inventory, host: Hosts
) -> list[Finding]:
    """What is found at the job's target, here or at a mover. Raises where nothing can be asked."""
    place = config.hosts[job.target]
    at_target = host(job.target)
    target = target_of(config, job, at_target)
    if isinstance(at_target, RemoteHost) and (problem := target.write_problem()):
        where = f"[hosts.{place.name}] path"
        text = f"{target.shown()}: {problem}"
        hint = "mount it, or correct the path and its permissions"
        return [Finding(Level.ERROR, where, text, hint, target.shown())]
    taken = taken_by(job, inventory).machines
    path = local_repositories(config).get(job.repository)
    with contextlib.ExitStack() as stack:
        repository: Repository | None = None
        with contextlib.suppress(StandbyError):  # a finding of its own, or none yet
            if path is not None:
                repository = stack.enter_context(Repository(path, create=False))
        replicas = target.replicas()
        own = [item for item in replicas if item.identity.installation == config.installation]
        return [
            *replica_findings(
                job, taken, host(job.source), target, config.installation, repository
            ),
            *_gone(job, inventory, replicas),
            *_overdue(job, own),
        ]


# --- VMs and disks -------------------------------------------------------------------------------


def _machines_of(job: ReplicationJob, inventory: Inventory, host: HostConfig) -> list[Finding]:
    """Names and patterns that take no VM: each by itself, a job may have lost one of many."""
    idle = [
        pattern
        for pattern in job.machines
        if not any(_names_of(taken_by(replace(job, machines=(pattern,)), inventory)))
    ]
    if not idle:
        return []
    return [
        Finding(
            Level.WARNING,
            f"[jobs.{job.name}] machines",
            f"{', '.join(idle)} matches none of the {len(inventory.machines)} VMs of host "
            f"{job.source}",
            "a VM is a folder with a vm.toml in the host's folder"
            if host.is_folder
            else f"on {host.shown} `Get-VM` lists the VMs; replicas are taken only by name",
        )
    ]


def _names_of(inventory: Inventory) -> list[str]:
    return [item.name for item in inventory.machines] + [
        name_of(item) for item in inventory.problems
    ]


def _gone(
    job: ReplicationJob, inventory: Inventory, replicas: Sequence[ReplicaStatus]
) -> list[Finding]:
    """VMs with a replica that are not at the source any more."""
    return [
        Finding(
            Level.WARNING,
            f"[jobs.{job.name}] machines",
            f"VM {item.machine} of the replica {item.name} is not on host {job.source} any more",
            GONE_HINT,
        )
        for item in gone_from(job, inventory, replicas)
    ]


def _overdue(job: ReplicationJob, replicas: Sequence[ReplicaStatus]) -> list[Finding]:
    """Replicas that are older than the job's rpo allows."""
    return [
        Finding(
            Level.WARNING,
            f"[jobs.{job.name}] rpo",
            text,
            f"`standby job sessions {job.name}` and `standby job report` say why no session "
            f"brought one; `standby job start {job.name}` runs one",
        )
        for item in replicas
        if (text := overdue_replica(job, item))
    ]


def _disks(
    config: HostConfig, host: Host, machines: Sequence[Machine], jobs: Sequence[ReplicationJob]
) -> list[Finding]:
    """Disks that a session could not open: every file of the chain is looked at, headers and
    tables of one, not the content."""
    findings = []
    name = config.name
    at = f" on the machine of mover {config.mover}" if config.mover else ""
    for machine in machines:
        files = {disk.place: disk.file for disk in machine.disks}
        folder = config.path / machine.folder
        takers = [job for job in jobs if job.source == name and selects(job, machine.name)]
        wanted = [
            disk.place
            for disk in machine.disks
            if not all(excludes_disk(job, machine.name, disk.place) for job in takers)
        ]
        if isinstance(host, FolderHost):
            problems: Mapping[str, str] = host.disk_problems(machine)
        else:
            problems = {
                disk.place: f"{disk.file} cannot be read"
                for disk in machine.disks
                if not disk.virtual_size
            }
        findings += [
            Finding(
                Level.ERROR,
                f"VM {machine.name} of host {name}, {place}",
                problem,
                (
                    f"give this user read access to the file{at}; the job leaves it out with "
                    if is_denied(problem)
                    else "put the disk's file back whole (from a backup), or correct `file` in "
                    f"{folder / 'vm.toml'}{at}; the job leaves it out with "
                )
                + f'exclude_disks = ["{machine.name}:{place}"]',
                str(folder / files[place]),
            )
            for place, problem in problems.items()
            if takers and place in wanted
        ]
    return findings


# --- names that match nothing --------------------------------------------------------------------


def _names(job: ReplicationJob, inventory: Inventory) -> list[Finding]:
    """`exclude_disks`, `seed` and `map` that name a VM or place that is not there."""
    taken = taken_by(job, inventory)
    machines = {machine.name: machine for machine in taken.machines}
    unreadable = {name for item in taken.problems for name in (name_of(item), item.folder)}
    findings = []
    for pattern in job.exclude_disks:
        single = replace(job, exclude_disks=(pattern,))
        matches = any(
            excludes_disk(single, machine.name, disk.place)
            for machine in taken.machines
            for disk in machine.disks
        )
        vm = pattern.partition(":")[0].casefold()
        if not matches and not any(fnmatchcase(name.casefold(), vm) for name in unreadable):
            findings.append(
                Finding(
                    Level.WARNING,
                    f"[jobs.{job.name}] exclude_disks",
                    f"{pattern!r} matches no disk of the job's VMs",
                    "write VM:place, for example db01:scsi:0:1; vm.toml has the places",
                )
            )
    for table, names in (
        ("seed", [vm for vm, is_so in job.seed.items() if is_so]),
        ("map", job.map),
    ):
        for name in names:
            if name not in machines and name not in unreadable:
                findings.append(
                    Finding(
                        Level.WARNING,
                        f"[jobs.{job.name}.{table}] {name}",
                        "the job takes no VM of that name",
                        f"its VMs: {', '.join(machines) or 'none'}",
                    )
                )
    return findings


def _without_effect(config: Config, job: ReplicationJob, host: Hosts) -> list[Finding]:
    """What the file says and nobody acts on."""
    findings = []
    if job.checkpoint_max_growth and isinstance(host(job.source), FolderHost):
        findings.append(
            Finding(
                Level.WARNING,
                f"[jobs.{job.name}] checkpoint_max_growth",
                f"has no effect: the checkpoints of folder host {job.source} do not grow",
                "checkpoint_max_age bounds them",
            )
        )
    if job.name in config.schedules:
        findings.append(
            Finding(
                Level.WARNING,
                f"[jobs.{job.name}] schedule",
                "is not acted on by `standby job start`; nothing starts the job by itself unless "
                "a scheduler runs",
                "keep `standby server` running",
            )
        )
    return findings


# --- repositories --------------------------------------------------------------------------------


def _repository(where: str, path: Path) -> list[Finding]:
    """What keeps the repository from being used; one that is not there yet is made by a session."""
    file = path / FILE_NAME
    if not is_there(file):
        return []
    if not os.access(file, os.W_OK):
        what, hint = f"{file} cannot be written by this user", f"give it write access to {file}"
        return [Finding(Level.ERROR, where, what, hint, str(file))]
    try:
        with Repository(path, create=False) as repository:
            for key in repository.replicas():
                repository.states(key)
    except StandbyError as exc:
        hint = f"move {path} away: the next session builds it anew, and compares digest trees once"
        return [Finding(Level.ERROR, where, str(exc), hint, str(path))]
    return []
