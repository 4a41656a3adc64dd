"""What failover, undo-failover and permanent-failover would do: shown before a person says yes.

A plan raises what the verb itself would raise, as far as that can be seen without becoming the
replica's writer; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from standby.errors import ReplicaConflict, UnknownName
from standby.files import is_file, is_there
from standby.host.folder import OWN_FILES
from standby.model.point import RestorePoint
from standby.model.replica import RUNS_ON, Action, ReplicaRecord, ReplicaState, next_state
from standby.road import naming, ready
from standby.road.failing_over import (
    check_given_up,
    check_writable,
    damage_warnings,
    startable_point,
    state_after_undo,
)
from standby.road.lease import check_legal, holder_of, is_processing
from standby.road.points import chosen_point, replicated_disks
from standby.road.records import inner_path
from standby.road.replica import ReplicaFolder
from standby.road.replica_work import ReplicaWork
from standby.road.surveying import undo_point
from standby.units import counted, format_bytes

FILES_SHOWN = 6
"""Names of files that a list of what stays behind gives at most."""


@dataclass(frozen=True, slots=True)
class VerbPlan:
    """What `action` would make of `replica`. `effects` are sentences, in order; `drops_bytes` is
    the size of the files whose writes would be lost; `leftovers` say what stays behind for the
    user to remove, and how."""

    replica: str
    action: str
    state: str
    becomes: str
    point: str
    taken_at: str
    effects: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    drops_bytes: int = 0
    leftovers: tuple[str, ...] = ()


def plan_failover(
    replicas: ReplicaWork,
    name: str,
    *,
    point: str | None = None,
    adopt: bool = False,
    source_may_run: bool = False,
    power_on: bool = False,
) -> VerbPlan:
    """What `ReplicaWork.failover` would do."""
    folder = replicas.folder(name)
    record = folder.record()
    check_legal(record, folder.name, Action.FAILOVER)
    check_writable(folder)
    warnings = []
    if replicas.source_is_running(record):
        if not source_may_run:
            raise ReplicaConflict(
                folder.name,
                "the source VM is running: two VMs of one identity would be alive",
                "Shut it down, or repeat with --source-may-run",
            )
        warnings.append("the source VM is running: two VMs of one identity will be alive")
    if not adopt:
        folder.check_ready()
    chosen = startable_point(folder, point, adopt)
    warnings[:0] = damage_warnings(record, chosen)
    if is_processing(folder):
        warnings.append(f"the session that runs now is cut off ({holder_of(folder)})")
    effects = []
    if adopt:
        effects.append(f"the VM keeps what it wrote outside of a failover, above {chosen.id}")
    elif ready.is_current(folder, record, chosen):
        effects.append(f"the VM starts from its ready layers above {chosen.id}; no file is made")
    else:
        effects.append(f"new empty ready layers are made above {chosen.id} for the VM to start")
    newer = sum(1 for item in folder.points() if item.id > chosen.id)
    if newer:
        effects.append(f"{newer} newer restore points stay, for undo-failover")
    effects.append("sessions skip the replica until undo-failover or permanent-failover")
    if power_on:
        effects.append("the VM is started with QEMU")
    return _plan(folder, record, Action.FAILOVER, chosen, effects, warnings)


def plan_undo_failover(replicas: ReplicaWork, name: str, *, drop_writes: bool = False) -> VerbPlan:
    """What `ReplicaWork.undo_failover` would do."""
    folder = replicas.folder(name)
    record = folder.record()
    is_unasked = record.state in (ReplicaState.READY, ReplicaState.DAMAGED)
    if not (is_unasked and drop_writes):
        folder.check_ready()
        check_legal(record, folder.name, Action.UNDO_FAILOVER)
    check_writable(folder)
    replicas.check_off(folder)
    sound, problem = undo_point(folder)
    sizes = {
        layer.file: path.stat().st_size
        for layer in (record.ready or {}).values()
        if is_there(path := inner_path(folder.path, layer.file))
    }
    effects = [
        f"what the VM wrote is dropped: {file}, {format_bytes(size)} as a file"
        for file, size in sorted(sizes.items())
    ]
    which = "newest undamaged" if problem else "newest"
    effects.append(f"new empty ready layers are made above the {which} point {sound.id}")
    if problem:
        effects.append(f"the replica is damaged then, and sessions skip it: {problem}")
    elif state_after_undo(record) is ReplicaState.READY:
        effects.append("sessions go on with the replica")
    return _plan(
        folder, record, Action.UNDO_FAILOVER, sound, effects, [], drops_bytes=sum(sizes.values())
    )


def plan_permanent_failover(replicas: ReplicaWork, name: str) -> VerbPlan:
    """What `ReplicaWork.permanent_failover` would do."""
    folder = replicas.folder(name)
    record = folder.record()
    check_legal(record, folder.name, Action.PERMANENT_FAILOVER)
    check_writable(folder)
    check_given_up(folder, replicas.rules(folder))
    points = folder.points()
    chosen = chosen_point(folder.name, points, record.failover_point or None)
    effects = [
        f"the VM stays as it is, above {chosen.id}, in {folder.path}; no file is removed",
        f"the replica is gone from the list, and its {len(points)} restore points with it",
        "its job replicates to it no more; this cannot be undone",
    ]
    if replicas.is_running(folder)():
        effects.append(RUNS_ON)
    warnings = [f"the replica is marked damaged: {record.damage}"] if record.damage else []
    plan = _plan(folder, record, Action.PERMANENT_FAILOVER, chosen, effects, warnings)
    return replace(plan, leftovers=_leftovers(folder, record, chosen))


def _leftovers(
    folder: ReplicaFolder, record: ReplicaRecord, point: RestorePoint
) -> tuple[str, ...]:
    """What a permanent failover leaves that the VM does not need: files by name, with their size,
    and what goes on naming the replica."""
    needed = {layer.file for disk in replicated_disks(point) for layer in disk.chain}
    needed |= {layer.file for layer in (record.ready or {}).values()}
    needed |= {naming.RECORD, point.machine.nvram or naming.NVRAM, *OWN_FILES}
    names, size, count = set(), 0, 0
    for path in sorted(folder.path.rglob("*")):
        name = path.relative_to(folder.path).as_posix()
        if path.name.startswith(".") or name in needed or not is_file(path):
            continue
        names.add(f"{naming.POINTS}/" if name.startswith(f"{naming.POINTS}/") else name)
        size, count = size + path.stat().st_size, count + 1
    shown = sorted(names)
    more = f" and {len(shown) - FILES_SHOWN} more" if len(shown) > FILES_SHOWN else ""
    job, source = record.identity.job, record.identity.source_host
    return (
        f"in {folder.path} the VM needs its disks' files down to {point.id}; of no use any more: "
        f"{', '.join(shown[:FILES_SHOWN])}{more} ({count} files, {format_bytes(size)})",
        f"the job {job} takes the VM of host {source} for replicated as long as "
        f"{naming.RECORD} is there: add it to exclude_machines of the job, then the files above "
        f"and {naming.RECORD} may be deleted",
        "the job's repository keeps the replica's digests (up to 0.25 % of its disks), and the "
        "sessions it had stay in `standby job sessions`: no other replica minds",
    )


PLANS: dict[str, Callable[..., VerbPlan]] = {
    "failover": plan_failover,
    "undo-failover": plan_undo_failover,
    "permanent-failover": plan_permanent_failover,
}
"""What each verb would do: called with (replicas, name) and the verb's options."""


def plan_verb(replicas: ReplicaWork, action: str, name: str, **options: Any) -> VerbPlan:
    """What `action` would do to the replica; UnknownName for one that has no plan."""
    if action not in PLANS:
        raise UnknownName("action", action, tuple(PLANS))
    return PLANS[action](replicas, name, **options)


def _plan(
    folder: ReplicaFolder,
    record: ReplicaRecord,
    action: Action,
    point: RestorePoint,
    effects: list[str],
    warnings: list[str],
    drops_bytes: int = 0,
) -> VerbPlan:
    becomes = next_state(record.state, action) or record.state
    if record.state is ReplicaState.FAILOVER and action is Action.UNDO_FAILOVER:
        becomes = state_after_undo(record)
    disks = counted(len(replicated_disks(point)), "disk")
    head = f"{folder.name}: {record.state} becomes {becomes}, {disks}, point of {point.taken_at}"
    return VerbPlan(
        folder.name,
        action.value,
        record.state.value,
        becomes.value,
        point.id,
        point.taken_at,
        (head, *effects),
        tuple(warnings),
        drops_bytes,
    )
