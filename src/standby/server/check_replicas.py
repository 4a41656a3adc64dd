"""What `standby check` finds where VMs meet their replicas: VMs that run, replicas that take no
session, seeds that are not there, a first full that does not fit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from standby.clock import SYSTEM_CLOCK
from standby.disk import open_disk
from standby.disk.vhdx import default_block_size
from standby.errors import IllegalTransition, MachineRunning, StandbyError
from standby.files import free_bytes
from standby.host.folder import FolderHost
from standby.host.folder.inventory import disk_chain, plain_path
from standby.model.extent import Kind, blocks_touched
from standby.model.job import ReplicationJob
from standby.model.machine import Machine, PowerState
from standby.model.replica import Action, ReplicaIdentity, legal_actions, legal_commands
from standby.ports import Host
from standby.road.points import TargetState, match_disks
from standby.road.replica import ReplicaFolder
from standby.road.seed_check import missing_seed
from standby.road.seeding import found_replica
from standby.road.surveying import target_state
from standby.server.config import Config, HostConfig
from standby.server.config_check import Finding, Level, excludes_disk
from standby.server.plan import first_full_refused
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


def replica_findings(
    config: Config, job: ReplicationJob, machines: Sequence[Machine], source: Host
) -> list[Finding]:
    """What would keep the job from a point of each of its VMs, at a target of this machine."""
    findings = []
    for machine in machines:
        where = f"[jobs.{job.name}] VM {machine.name}"
        try:
            findings += _replica(config, job, machine, source, where)
        except StandbyError as exc:
            target = str(config.hosts[job.target].path)
            findings.append(Finding(Level.ERROR, where, str(exc), "", target))
    return findings


def _replica(
    config: Config, job: ReplicationJob, machine: Machine, source: Host, where: str
) -> list[Finding]:
    root = config.hosts[job.target].path
    identity = ReplicaIdentity(config.installation, job.source, machine.id, job.name)
    found = found_replica(root, identity, machine.name + job.suffix, SYSTEM_CLOCK)
    path = found.path
    if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
        what, hint = f"{path} cannot be written by this user", f"give it write access to {path}"
        return [Finding(Level.ERROR, where, what, hint, str(path))]
    folder = ReplicaFolder(path, SYSTEM_CLOCK)
    state = target_state(folder) if found.exists else None
    if state is not None and Action.SESSION not in legal_actions(state.state):
        legal = legal_commands(state.state, path.name, job.name)
        refused = IllegalTransition(path.name, state.state.value, Action.SESSION.value, legal)
        hint = f"until then sessions of job {job.name} leave the VM out"
        return [Finding(Level.ERROR, where, str(refused), hint, str(path))]
    if state is not None and state.newest:
        return []
    return _first_point(job, machine, source, folder, state, where)


def _first_point(
    job: ReplicationJob,
    machine: Machine,
    source: Host,
    folder: ReplicaFolder,
    state: TargetState | None,
    where: str,
) -> list[Finding]:
    """What keeps the first point from being made."""
    known = state.known_disks if state is not None else ()
    matched = match_disks(folder.name, known, machine.disks).matched
    disks = [disk for disk in machine.disks if not excludes_disk(job, machine.name, disk.place)]
    if job.seed.get(machine.name, False):
        seeds = {matched[disk.place].id: PurePosixPath(disk.file).name for disk in disks}
        problem = missing_seed(folder, seeds)
        hint = "seed.vhdx, seed.raw or seed.img in the disk's folder, or the source's file name"
        where = f"[jobs.{job.name}.seed] {machine.name}"
        return [Finding(Level.ERROR, where, problem, hint, str(folder.path))] if problem else []
    begun = state is not None and state.partials
    if begun or machine.name in job.map or not isinstance(source, FolderHost):
        return []
    needed = sum(_stored(source.path, machine, disk.file) for disk in disks)
    free = free_bytes(_nearest(folder.path))
    if needed <= free:
        return []
    problem = first_full_refused(needed, free)
    return [Finding(Level.ERROR, where, problem, "make room", str(folder.path.parent))]


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


def _nearest(path: Path) -> Path:
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path
