"""Which VMs a job takes: those that its source describes, and those that it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from standby.errors import JobError, UnknownName
from standby.model.job import ReplicationJob
from standby.model.machine import Inventory, MachineProblem
from standby.model.report import MachineReport
from standby.road.surveying import ReplicaStatus
from standby.server.config_check import selects


def name_of(problem: MachineProblem) -> str:
    """What a job's patterns are compared with: the VM's name, its folder where that is unknown."""
    return problem.name or problem.folder


def taken_by(job: ReplicationJob, inventory: Inventory) -> Inventory:
    """What of the host's VMs the job takes, or would."""
    return Inventory(
        tuple(item for item in inventory.machines if selects(job, item.name)),
        tuple(item for item in inventory.problems if selects(job, name_of(item))),
    )


def warnings_of(job: ReplicationJob, inventory: Inventory) -> list[str]:
    """What is amiss with the host, and with VMs that the job takes."""
    return [item.text for item in inventory.warnings if not item.name or selects(job, item.name)]


def hidden_from(job: ReplicationJob, inventory: Inventory) -> dict[str, str]:
    """By folder, what there is to say of folders that hide the name of their VM, while a name or
    pattern of the job matches nothing: that may be the VM."""
    hidden = [
        item for item in inventory.problems if not item.name and not selects(job, item.folder)
    ]
    if not hidden:
        return {}
    idle = []
    for pattern in job.machines:
        found = taken_by(replace(job, machines=(pattern,)), inventory)
        if not found.machines and not found.problems:
            idle.append(pattern)
    if not idle:
        return {}
    missed = f"no VM on host {job.source} matches {', '.join(idle)}"
    return {
        item.folder: f"{missed}, but one cannot be read and may be meant: {item.problem}"
        for item in hidden
    }


def wanted_of(job: ReplicationJob, inventory: Inventory, names: Sequence[str] | None) -> Inventory:
    """`taken_by` the job, only those of `names` (of VMs; folders of such as cannot be described)
    where given. Raises UnknownName for a name that is not among them, JobError for none at all."""
    found = taken_by(job, inventory)
    if names is not None:
        known = [item.name for item in found.machines]
        known += [name for item in found.problems for name in (item.name, item.folder) if name]
        for name in names:
            if name not in known:
                raise UnknownName(f"VM in job {job.name}", name, tuple(dict.fromkeys(known)))
        found = Inventory(
            tuple(item for item in found.machines if item.name in names),
            tuple(item for item in found.problems if {item.name, item.folder} & set(names)),
        )
    if not found.machines and not found.problems:
        raise JobError(
            job.name,
            "; ".join(hidden_from(job, inventory).values())
            or f"no VM on host {job.source} matches {', '.join(job.machines)}",
            "See `standby job plan` and the job's `machines`",
        )
    return found


def failed_report(problem: MachineProblem, machine_id: str = "") -> MachineReport:
    """What a session says of a VM that it could not begin with, named by its folder."""
    return MachineReport(
        problem.folder, problem.id or machine_id, outcome="failed", error=problem.problem
    )


def gone_from(
    job: ReplicationJob, inventory: Inventory, replicas: Sequence[ReplicaStatus]
) -> list[ReplicaStatus]:
    """The job's replicas whose VM, which it would take, is not at the source any more: nobody
    brings those a new restore point. None while the host has VMs that it cannot describe: one of
    them may be it."""
    if inventory.problems:
        return []
    known = {machine.id for machine in inventory.machines}
    return [
        item
        for item in replicas
        if (item.identity.source_host, item.identity.job) == (job.source, job.name)
        and item.identity.machine_id not in known
        and selects(job, item.machine)
    ]


GONE_HINT = "if it is meant to be gone, add it to exclude_machines, or remove the replica's folder"


def hidden_report(folder: str, text: str) -> MachineReport:
    """What a session says of a VM that it could not see (`hidden_from`)."""
    return MachineReport(folder, "", outcome="skipped", warnings=[text])


def gone_report(job: ReplicationJob, replica: ReplicaStatus) -> MachineReport:
    """What a session says of a VM that is not at the source any more."""
    who = f"VM {replica.machine} (id {replica.identity.machine_id})"
    text = f"{who} is not on host {job.source} any more; {GONE_HINT}"
    return MachineReport(
        replica.machine,
        replica.identity.machine_id,
        replica.name,
        outcome="skipped",
        warnings=[text],
    )
