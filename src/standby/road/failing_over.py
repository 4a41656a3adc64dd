"""Failover with nothing else alive than the target's folder (RULES 2, 4, 16; promise 6).

Failover to the newest point moves no file: the ready layers are above it already. Failover to an
older one renews them above that point; undo renews them above the newest. No point is written to.
Every verb can be killed anywhere and repeated: the state is the last thing written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from standby import killpoints
from standby.disk import vhdx
from standby.errors import (
    IllegalTransition,
    MachineRunning,
    PointDamaged,
    ReplicaBusy,
    ReplicaConflict,
    ReplicaStarted,
    StandbyError,
    TargetRefuses,
)
from standby.files import is_there
from standby.model.point import RestorePoint
from standby.model.replica import (
    COMMANDS,
    Action,
    LayerFile,
    ReplicaRecord,
    ReplicaState,
    next_state,
)
from standby.model.target_rules import TargetRules
from standby.road import naming, ready
from standby.road.committing import recover
from standby.road.lease import WriterLease, check_legal
from standby.road.points import chosen_point, points_kept_by, replicated_disks
from standby.road.records import inner_path, layer_facts
from standby.road.replica import ReplicaFolder
from standby.road.surveying import ReplicaStatus, findings, status, target_state, undo_point

__all__ = [
    "FailoverResult",
    "ReplicaStatus",
    "check_given_up",
    "check_startable",
    "check_writable",
    "damage_warnings",
    "failover",
    "findings",
    "mark_damaged",
    "permanent_failover",
    "startable_point",
    "state_after_undo",
    "status",
    "target_state",
    "undo_failover",
]


@dataclass(frozen=True, slots=True)
class FailoverResult:
    """Where the replica stands now: `point` is below the ready layers. `renewed` says whether
    files were made; `fenced` whether a running session was cut off; `warnings` are sentences."""

    record: ReplicaRecord
    point: RestorePoint
    renewed: bool
    fenced: bool
    warnings: tuple[str, ...]


def failover(
    folder: ReplicaFolder,
    *,
    point: str | None = None,
    adopt: bool = False,
    source_running: bool = False,
    source_may_run: bool = False,
    is_running: Callable[[], bool] | None = None,
    host_folder: str | None = None,
    sparse: bool = True,
) -> FailoverResult:
    """Fail over to `point` (None: the newest; an id, or an ISO time); the VM may be started then.

    A running session is fenced; what a dead one had ready to commit is committed first. `adopt`
    keeps what the replica VM wrote outside of a failover. Raises IllegalTransition, NoSuchPoint,
    PointDamaged (another point may be intact), ReplicaStarted (see `adopt`), and ReplicaConflict
    when the source VM is running and `source_may_run` does not say that this is known.
    """
    record = folder.record()
    check_legal(record, folder.name, Action.FAILOVER)
    check_writable(folder)
    if source_running and not source_may_run:
        raise ReplicaConflict(
            folder.name,
            "the source VM is running: two VMs of one identity would be alive",
            "Shut it down, or repeat with --source-may-run",
        )
    warnings = ["the source VM is running"] if source_running else []
    fenced = _settle(folder, warnings)
    with WriterLease.acquire(folder, "failover", take_over=True, action=Action.FAILOVER) as lease:
        _recover(folder, lease, warnings)
        chosen = startable_point(folder, point, adopt)
        record = folder.record()
        warnings[:0] = damage_warnings(record, chosen)
        renewed = False
        if adopt:
            record = _adopted(folder, lease, record, chosen)
            ready.put_missing_state_files(folder, lease, chosen)
        else:
            folder.check_ready()
            if ready.is_current(folder, record, chosen):
                ready.put_state_files(folder, lease, chosen)
            else:
                record = ready.renew(
                    folder,
                    lease,
                    chosen,
                    is_running=is_running,
                    host_folder=host_folder,
                    sparse=sparse,
                )
                renewed = True
        killpoints.reach("failover prepared")
        record = lease.update(
            state=ReplicaState.FAILOVER,
            failover_point=chosen.id,
            failover_started_at=f"{folder.clock.now():%Y-%m-%dT%H:%M:%SZ}",
        )
    return FailoverResult(record, chosen, renewed, fenced, tuple(warnings))


def check_writable(folder: ReplicaFolder) -> None:
    """Raise ReplicaConflict where the replica's records cannot be written: a verb would stop at
    its first lock, with less to say."""
    for path in (folder.path, folder.lock_path):
        if is_there(path) and not os.access(path, os.W_OK):
            raise ReplicaConflict(
                folder.name,
                f"{path} cannot be written: its file system is mounted read-only, or this user has "
                "no right to",
                "Make it writable, then repeat; nothing was changed",
            )


def damage_warnings(record: ReplicaRecord, point: RestorePoint) -> list[str]:
    """What a failover to `point` of a replica that is marked damaged has to say: the point's files
    are the ones that were committed, their content may not be. Nothing where it was verified."""
    if not record.damage or point.id in record.intact_points:
        return []
    marked = f"the replica is marked damaged: {record.damage}"
    if point.id in record.damaged_points:
        return [f"{marked}; the VM may start from damaged data"]
    return [
        f"{marked}; the point {point.id} was not verified since, the VM may start from damaged "
        f"data (`standby replica verify {record.name} --point {point.id}` tells)"
    ]


def state_after_undo(record: ReplicaRecord) -> ReplicaState:
    """What an undone failover goes back to: damage is not forgotten over it."""
    return ReplicaState.DAMAGED if record.damage else ReplicaState.READY


def _settle(folder: ReplicaFolder, warnings: list[str]) -> bool:
    """Commit what a dead writer left ready; True when a live one holds the replica instead."""
    try:
        lease = WriterLease.acquire(folder, "failover", action=Action.FAILOVER)
    except ReplicaBusy as exc:
        warnings.append(f"a running session is cut off ({exc.holder})")
        return True
    with lease:
        _recover(folder, lease, warnings)
    return False


def _recover(folder: ReplicaFolder, lease: WriterLease, warnings: list[str]) -> None:
    """`recover`, but a failover goes on without it: every committed point is there regardless."""
    try:
        done = recover(folder, lease)
        warnings.extend(done.findings)
    except StandbyError as exc:
        lease.check()
        warnings.append(f"an unfinished restore point is left as it is: {exc}")


def startable_point(folder: ReplicaFolder, wanted: str | None, adopt: bool) -> RestorePoint:
    """The point that `wanted` (None: the newest; an id, or an ISO time) means, all of whose files
    are as they were committed; with `adopt` and None the one below the ready layers."""
    scan = folder.scan_points()
    if adopt and wanted is None:
        wanted = folder.record().ready_point or None
    chosen = chosen_point(folder.name, scan.valid, wanted)
    for damaged, problem in scan.damaged:
        if damaged == wanted or (wanted is None and damaged > chosen.id):
            raise PointDamaged(folder.name, damaged, str(folder.point_path(damaged)), problem)
    for layer, evidence in folder.touched_layers([chosen]):
        raise PointDamaged(
            folder.name, chosen.id, str(inner_path(folder.path, layer.file)), evidence
        )
    return chosen


def _adopted(
    folder: ReplicaFolder, lease: WriterLease, record: ReplicaRecord, point: RestorePoint
) -> ReplicaRecord:
    """Take the ready layers with whatever was written to them; each must be above `point`."""
    if record.ready_point and record.ready_point != point.id and record.ready_next is None:
        raise ReplicaConflict(
            folder.name,
            f"the writes to be kept are above the point {record.ready_point}, not {point.id}",
            f"Repeat without a point, or with {record.ready_point}",
        )
    layers: dict[str, LayerFile] = {}
    for disk in replicated_disks(point):
        name = f"{disk.disk_id}/{naming.READY}"
        path = inner_path(folder.path, name)
        if not is_there(path):
            raise ReplicaConflict(
                folder.name, f"{path} is missing: there are no writes to be kept on every disk"
            )
        linkage = vhdx.read_info(path).locator.get("parent_linkage", "").strip("{}").lower()
        if linkage != disk.chain[0].data_write_guid:
            raise ReplicaConflict(
                folder.name,
                f"{path} is a child of a disk with data-write GUID {linkage}, not of "
                f"{disk.chain[0].file} of the point {point.id}",
                "Look at the folder by hand; nothing was changed",
            )
        layers[disk.disk_id] = layer_facts(folder.path, name)
    return lease.update(ready=layers, ready_next=None, ready_point=point.id)


def check_startable(folder: ReplicaFolder) -> ReplicaRecord:
    """Raise unless the replica VM may be started now: the state is failover, and no renewal of its
    ready layers was cut off in the middle (one disk old, the other new)."""
    record = folder.record()
    if record.state is not ReplicaState.FAILOVER:
        raise IllegalTransition(
            folder.name,
            str(record.state),
            "start the replica VM",
            (COMMANDS[Action.FAILOVER].format(replica=folder.name),),
        )
    if record.ready_next is not None:
        raise ReplicaConflict(
            folder.name,
            "an undo-failover was cut off while it renewed the ready layers",
            f"Repeat `standby replica undo-failover {folder.name}`",
        )
    return record


def undo_failover(
    folder: ReplicaFolder,
    drop_writes: bool = False,
    *,
    is_running: Callable[[], bool] | None = None,
    host_folder: str | None = None,
    sparse: bool = True,
) -> ReplicaRecord:
    """Drop what the replica VM wrote since the failover: its ready layers are above the newest
    point again, and the state is ready (damaged where it was before). Where the newest point's
    files are damaged, they are above the newest undamaged point, and the state is damaged.
    `is_running` says whether the VM still runs; then MachineRunning is raised. `drop_writes` drops
    what was written outside of a failover, too."""
    record = folder.record()
    is_unasked = record.state in (ReplicaState.READY, ReplicaState.DAMAGED)
    if is_unasked and not drop_writes:
        folder.check_ready()
    action = Action.UNDO_FAILOVER
    if is_unasked and drop_writes:
        action = Action.SESSION if record.state is ReplicaState.READY else Action.VERIFY
    check_legal(record, folder.name, action)
    check_writable(folder)
    if is_running is not None and is_running():
        raise MachineRunning("target", record.name, "a failover is undone with the replica VM off")
    with WriterLease.acquire(folder, "undo-failover", action=action) as lease:
        recover(folder, lease)
        sound, problem = undo_point(folder)
        state = record.state if is_unasked else state_after_undo(record)
        return ready.renew(
            folder,
            lease,
            sound,
            drop_writes=True,
            is_running=is_running,
            host_folder=host_folder,
            sparse=sparse,
            state=ReplicaState.DAMAGED if problem else state,
            damage=record.damage or problem,
            failover_point="",
            failover_started_at="",
        )


def permanent_failover(folder: ReplicaFolder, rules: TargetRules) -> ReplicaRecord:
    """The replica VM is a VM of its own from now on and the replica is gone from the list; no file
    is removed. Refused (TargetRefuses) while the target's own rules keep any point: nobody would
    keep it any more."""
    check_legal(folder.record(), folder.name, Action.PERMANENT_FAILOVER)
    check_writable(folder)
    with WriterLease.acquire(
        folder, "permanent-failover", action=Action.PERMANENT_FAILOVER
    ) as lease:
        check_given_up(folder, rules)
        return lease.update(state=ReplicaState.PERMANENT)


def check_given_up(folder: ReplicaFolder, rules: TargetRules) -> None:
    """Raise TargetRefuses while the target's own rules keep any point of the replica."""
    kept = points_kept_by(rules, folder.points(), folder.clock.now())
    if kept:
        raise TargetRefuses(
            folder.name,
            "make the failover permanent",
            f"keep_points_min = {rules.keep_points_min} and keep_days_min = "
            f"{rules.keep_days_min} in its own file keep {len(kept)} restore points "
            f"({kept[0].id} to {kept[-1].id}), and a permanent failover ends their keeping",
        )


def mark_damaged(
    folder: ReplicaFolder,
    lease: WriterLease,
    damage: str,
    damaged_points: Sequence[str] = (),
    intact_points: Sequence[str] = (),
) -> ReplicaRecord:
    """Stop sessions until the replica verifies; `damage` says what was found, for people, and what
    is known of single points goes with it. One that is failed over stays so, its writes are the
    VM's: undone it is damaged."""
    record = folder.record()
    check_legal(record, folder.name, Action.MARK_DAMAGED)
    state = next_state(record.state, Action.MARK_DAMAGED) or record.state
    return lease.update(
        state=state,
        damage=damage,
        damaged_points=tuple(damaged_points),
        intact_points=tuple(intact_points),
    )


def started(folder: ReplicaFolder) -> ReplicaStarted | None:
    """The evidence that the replica VM was started outside of a failover, None without any."""
    try:
        folder.check_ready()
    except ReplicaStarted as exc:
        return exc
    return None
