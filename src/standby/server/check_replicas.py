"""What `standby check` finds where VMs meet their replicas: VMs that run, replicas that take no
session, seeds that are not there, a first full that does not fit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from standby.disk import open_disk
from standby.disk.vhdx import default_block_size
from standby.errors import (
    IllegalTransition,
    LinkError,
    MachineRunning,
    MoverDied,
    StandbyError,
)
from standby.files import is_there
from standby.host.folder import FolderHost
from standby.host.folder.inventory import disk_chain, plain_path
from standby.host.folder.locks import LOCK_FILE
from standby.model.extent import Kind, blocks_touched
from standby.model.job import ReplicationJob
from standby.model.machine import Machine, PowerState
from standby.model.replica import Action, ReplicaIdentity, legal_actions, legal_commands
from standby.ports import Host
from standby.road.points import TargetState, match_disks
from standby.server.check_targets import Target, write_hint
from standby.server.config import HostConfig
from standby.server.config_check import Finding, Level, excludes_disk, is_allowed
from standby.server.crew import RepositoryView, replica_name
from standby.server.facts import points_lost, repository_key
from standby.server.plan import first_full_short, mapping_moves
from standby.server.remote_host import RemoteHost


def running_machines(config: HostConfig, host: Host, machines: Sequence[Machine]) -> list[Finding]:
    """VMs of a folder host that run: no checkpoint of them can be taken."""
    findings = []
    for machine in machines:
        reason = ""
        with contextlib.suppress(StandbyError):
            if isinstance(host, FolderHost):
                reason, _ = host.reason_to_be_running(machine)
            elif isinstance(host, RemoteHost) and host.power_state(machine) is not PowerState.OFF:
                reason = f"says mover {config.mover}"
        if reason:
            refused = MachineRunning(config.name, machine.name, reason)
            findings.append(
                Finding(
                    Level.ERROR,
                    f"VM {machine.name} of host {config.name}",
                    str(refused),
                    "a folder host's VM is replicated while it is off",
                    f"VM {machine.name}",
                )
            )
    return findings


def unlockable_machines(
    config: HostConfig, host: Host, machines: Sequence[Machine]
) -> list[Finding]:
    """VMs of a folder host of this machine in whose folder no checkpoint can be taken: its lock
    and clones are there."""
    findings = []
    for machine in machines if isinstance(host, FolderHost) else ():
        folder = config.path / machine.folder
        lock = folder / LOCK_FILE
        with contextlib.suppress(StandbyError):
            is_open = is_allowed(folder, os.W_OK | os.X_OK)
            if is_open and (not is_there(lock) or is_allowed(lock)):
                continue
            where = f"VM {machine.name} of host {config.name}"
            closed = lock if is_open else folder
            what = f"{closed} cannot be written by this user"
            hint = f"give it write access: a session keeps {LOCK_FILE} and checkpoints there"
            findings.append(Finding(Level.ERROR, where, what, hint, str(closed)))
    return findings


def replica_findings(
    job: ReplicationJob,
    machines: Sequence[Machine],
    source: Host,
    target: Target,
    identified: str,
    repository: RepositoryView | None = None,
) -> list[Finding]:
    """What would keep the job from a point of each of its VMs, of the installation `identified`,
    and what its first session does with files that are at the target already. `repository`, where
    it can be opened from here, knows what was there. Raises where the target's mover is away."""
    findings = []
    for machine in machines:
        where = f"[jobs.{job.name}] VM {machine.name}"
        identity = ReplicaIdentity(identified, job.source, machine.id, job.name)
        try:
            findings += _replica(job, machine, source, target, identity, where, repository)
        except (MoverDied, LinkError):
            raise
        except StandbyError as exc:
            findings.append(Finding(Level.ERROR, where, str(exc), "", target.shown()))
    return findings


def _replica(
    job: ReplicationJob,
    machine: Machine,
    source: Host,
    target: Target,
    identity: ReplicaIdentity,
    where: str,
    repository: RepositoryView | None,
) -> list[Finding]:
    path, exists = target.find(identity, machine.name + job.suffix)
    name, shown = replica_name(path), target.shown(path)
    if problem := target.write_problem(path):
        hint = write_hint(target, problem, path)
        return [Finding(Level.ERROR, where, f"{shown} {problem}", hint, shown)]
    state = target.state(path) if exists else None
    if state is not None and Action.SESSION not in legal_actions(state.state):
        legal = legal_commands(state.state, name, job.name)
        refused = IllegalTransition(name, state.state.value, Action.SESSION.value, legal)
        hint = f"until then sessions of job {job.name} leave the VM out"
        return [Finding(Level.ERROR, where, str(refused), hint, shown)]
    if state is not None and state.damaged:
        hint = f"until then sessions of job {job.name} fail"
        return [Finding(Level.ERROR, where, state.damaged, hint, shown)]
    newest = state.newest if state is not None else ""
    lost = ""
    if repository is not None:
        lost = points_lost(None, repository, repository_key(identity), newest)
    if lost:
        hint = f"is its storage mounted? `standby job start {job.name} --accept-loss` goes on so"
        return [Finding(Level.ERROR, where, f"{shown}: {lost}", hint, shown)]
    if newest:
        return []
    return _first_point(job, machine, source, target, path, state, where)


def _first_point(
    job: ReplicationJob,
    machine: Machine,
    source: Host,
    target: Target,
    path: str,
    state: TargetState | None,
    where: str,
) -> list[Finding]:
    """What keeps the first point from being made, and what it is made from."""
    known = state.known_disks if state is not None else ()
    matched = match_disks(replica_name(path), known, machine.disks).matched
    disks = [disk for disk in machine.disks if not excludes_disk(job, machine.name, disk.place)]
    shown = target.shown(path)
    if job.seed.get(machine.name, False):
        seeds = {matched[disk.place].id: disk.file_name for disk in disks}
        problem = target.missing_seed(path, seeds)
        hint = "seed.vhdx, seed.raw or seed.img in the disk's folder, or the source's file name"
        where = f"[jobs.{job.name}.seed] {machine.name}"
        return [Finding(Level.ERROR, where, problem, hint, shown)] if problem else []
    if machine.name in job.map:
        return _mapped(job, machine, target)
    begun = state is not None and state.partials
    if begun or not isinstance(source, FolderHost):
        return []
    needed = sum(_stored(source.path, machine, disk.file) for disk in disks)
    free = target.free_bytes(path)
    if needed <= free:
        return []
    problem = first_full_short(needed, free)
    return [Finding(Level.WARNING, where, problem, "make room", target.shown())]


def _mapped(job: ReplicationJob, machine: Machine, target: Target) -> list[Finding]:
    """What the first session does with the VM that the job maps to."""
    where = f"[jobs.{job.name}.map] {machine.name}"
    folder = job.map[machine.name]
    try:
        places = target.mapped_places(folder)
    except (MoverDied, LinkError):
        raise
    except StandbyError as exc:
        hint = f"name the folder of a VM in {target.shown()}, or none"
        return [Finding(Level.ERROR, where, str(exc), hint)]
    shared = [disk.place for disk in machine.disks if disk.place in places]
    if not shared:
        problem = f"the VM in {folder} has no disk at a place where {machine.name} has one"
        return [Finding(Level.ERROR, where, problem, "or take the VM out of `map`")]
    return [
        Finding(
            Level.WARNING,
            where,
            mapping_moves(folder, shared),
            "copy that VM's folder first if it is to start again",
        )
    ]


def _stored(root: Path, machine: Machine, file: str) -> int:
    """What a full of the disk may take, by its allocation tables; 0 where it cannot be looked at,
    which is a finding of its own."""
    with contextlib.suppress(StandbyError):
        paths = [layer.path for layer in disk_chain(plain_path(root, machine.folder), file)]
        with contextlib.closing(open_disk(paths[0], parents=paths[1:])) as disk:
            size = default_block_size(disk.virtual_size)
            stored = (item for item in disk.extents() if item.kind == Kind.DATA)
            return min(blocks_touched(stored, size), -(-disk.virtual_size // size)) * size
    return 0
