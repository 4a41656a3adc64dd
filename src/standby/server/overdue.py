"""Alarms of a session's replicas that are older than the job's rpo allows, whatever the reason."""

from __future__ import annotations

from collections.abc import Callable

from standby.model.job import ReplicationJob
from standby.model.report import SessionReport
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


def alarm_of_session(job: ReplicationJob, report: SessionReport, store: Store, age: Age) -> None:
    """For the VMs that the session brought no point of."""
    for item in report.machines:
        if item.outcome == "done" or not job.rpo_s:
            continue
        if item.outcome == "skipped" and not item.machine_id:  # nobody knows which VM it is
            alarm_of_known(job, report, store, age)
            continue
        if text := overdue(job, item.machine, age(job, item.machine_id)):
            item.alarms.append(text)
            store.raise_alarm(RPO, job.name, item.machine, text)


def alarm_of_known(job: ReplicationJob, report: SessionReport, store: Store, age: Age) -> None:
    """For all replicas that are known, under their VMs' names, where a session failed as a
    whole."""
    names = {item.machine_id: item.machine for item in report.machines}
    for known in store.known_replicas(job.name) if job.rpo_s else ():
        machine_id = known.identity.machine_id
        name = names.get(machine_id) or known.name.removesuffix(job.suffix)
        if text := overdue(job, name, age(job, machine_id)):
            store.raise_alarm(RPO, job.name, name, text)
