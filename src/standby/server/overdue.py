"""Replicas that are older than their job's rpo allows, whatever the reason: said wherever somebody
looks, and the alarms of a session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from standby.model.job import ReplicationJob
from standby.model.machine import Inventory
from standby.model.replica import ReplicaState
from standby.model.report import MachineReport, SessionReport
from standby.server.config_check import selects

if TYPE_CHECKING:
    from standby.road.surveying import ReplicaStatus
    from standby.server.store import Store

RPO = "rpo"
"""The kind of alarm of a replica whose newest point is too old."""

Age = Callable[[ReplicationJob, str], float | None]
"""Seconds since the newest point of the replica of that VM's id; None without one."""


def overdue(job: ReplicationJob, name: str, age_s: float | None) -> str:
    """How a replica of that age breaks the job's rpo, '' where it does not."""
    if not job.rpo_s:
        return ""
    if age_s is None:
        return f"{name} has no restore point; rpo is {job.rpo_s} s"
    if age_s > job.rpo_s:
        return f"the newest restore point of {name} is {age_s:.0f} s old; rpo is {job.rpo_s} s"
    return ""


# --- for who looks -------------------------------------------------------------------------------


def overdue_replica(job: ReplicationJob, item: ReplicaStatus) -> str:
    """How the replica breaks the job's rpo now, '' where it does not, or is not (any more) of a VM
    that the job takes. Before its first point is there, only the session says so."""
    if (item.identity.source_host, item.identity.job) != (job.source, job.name):
        return ""
    if item.state is ReplicaState.PERMANENT or not selects(job, item.machine):
        return ""
    return overdue(job, item.machine, item.newest_age_s) if item.points else ""


def overdue_jobs(
    jobs: Iterable[ReplicationJob], replicas: Iterable[ReplicaStatus]
) -> dict[str, list[str]]:
    """By job, in what its replicas break its rpo; jobs of which none does are left out."""
    found: dict[str, list[str]] = {}
    known = {job.name: job for job in jobs if job.rpo_s}
    for item in replicas:
        job = known.get(item.identity.job)
        if job is None or item.target not in ("", job.target):
            continue
        if text := overdue_replica(job, item):
            found.setdefault(job.name, []).append(text)
    return found


def is_left_out(
    job: ReplicationJob,
    machine_id: str,
    inventory: Inventory,
    replicas: Iterable[ReplicaStatus],
    *,
    are_all_seen: bool,
) -> bool:
    """Whether the replica of that VM is owed no point any more: the job does not take the VM, or
    VM and replica are both gone. A VM that the source cannot describe may be any; without
    `are_all_seen` a replica that is not among `replicas` may be there all the same."""
    for machine in inventory.machines:
        if machine.id == machine_id:
            return not selects(job, machine.name)
    if inventory.problems:
        return False
    for item in replicas:
        if (item.identity.machine_id, item.identity.job) == (machine_id, job.name):
            return not selects(job, item.machine)
    return are_all_seen


# --- of a session --------------------------------------------------------------------------------


def alarm_of_session(job: ReplicationJob, report: SessionReport, store: Store, age: Age) -> None:
    """For the VMs that the session brought no point of. VMs that say that they have one id have one
    replica: its alarm is raised once, under the name of the VM that the replica was made of."""
    if not job.rpo_s:
        return
    known = names_of(job, store)
    told: set[str] = set()
    for item in report.machines:
        if item.outcome == "done" or (item.machine_id and item.machine_id in told):
            continue
        if item.outcome == "skipped" and not item.machine_id:  # nobody knows which VM it is
            alarm_of_known(job, report, store, age)
            continue
        age_s = age(job, item.machine_id)
        sharing = _sharing(report.machines, item) if age_s is not None else [item]
        owner, name = item, item.machine
        if len(sharing) > 1:
            told.add(item.machine_id)
            name = known.get(item.machine_id, item.machine)
            owner = next((other for other in sharing if other.machine == name), item)
        if text := overdue(job, name, age_s):
            owner.alarms.append(text)
            store.raise_alarm(RPO, job.name, name, text)


def alarm_of_known(job: ReplicationJob, report: SessionReport, store: Store, age: Age) -> None:
    """For all replicas that are known, under their VMs' names, where a session failed as a
    whole."""
    if not job.rpo_s:
        return
    said: dict[str, list[str]] = {}
    for item in report.machines:
        said.setdefault(item.machine_id, []).append(item.machine)
    for machine_id, known in names_of(job, store).items():
        names = said.get(machine_id, [])
        name = names[0] if len(names) == 1 else known
        if text := overdue(job, name, age(job, machine_id)):
            store.raise_alarm(RPO, job.name, name, text)


def _sharing(machines: Collection[MachineReport], item: MachineReport) -> list[MachineReport]:
    """All of them that have the id of `item`."""
    return [other for other in machines if item.machine_id and other.machine_id == item.machine_id]


def names_of(job: ReplicationJob, store: Store) -> Mapping[str, str]:
    """The job's known replicas: the names of their VMs, as those of the replicas tell them, by the
    VMs' ids."""
    return {
        item.identity.machine_id: item.name.removesuffix(job.suffix)
        for item in store.known_replicas(job.name)
    }
