"""What a target says of a replica with only its folder alive: for prepare (RULES 6), for people."""

from __future__ import annotations

import contextlib
import re
import shutil
from dataclasses import dataclass, replace

from standby.errors import (
    PointDamaged,
    ReplicaConflict,
    ReplicaMissing,
    ReplicaStarted,
    StandbyError,
)
from standby.files import is_folder, is_there, listed
from standby.host.folder import FolderHost
from standby.model.machine import PowerState
from standby.model.point import RestorePoint
from standby.model.replica import (
    COMMANDS,
    Action,
    ReplicaIdentity,
    ReplicaRecord,
    ReplicaState,
    legal_actions,
)
from standby.road import naming
from standby.road.extent_log import ExtentLog
from standby.road.lease import holder_of, is_processing
from standby.road.merging import pending_merge
from standby.road.points import (
    PartialState,
    TargetState,
    chosen_point,
    older_disks,
    parsed_time,
    target_disks,
)
from standby.road.replica import ReplicaFolder


def target_state(folder: ReplicaFolder) -> TargetState:
    """What the target holds; a point that a merge under way retires is no loss when it goes, so it
    is not among the points. Raises ReplicaMissing where there is no replica, ReplicaConflict or
    PointDamaged where its records cannot be read."""
    record = folder.record()
    scan = folder.scan_points(record)
    newest = scan.valid[-1] if scan.valid else None
    merge = pending_merge(folder)
    retiring = merge.point if merge is not None else ""
    return TargetState(
        identity=record.identity,
        generation=record.generation,
        state=record.state,
        newest=newest.id if newest else "",
        points=tuple(point.id for point in scan.valid if point.id != retiring),
        known_disks=record.disks,
        disks=target_disks(newest) if newest else (),
        partials=partials(folder),
        older=older_disks([point for point in scan.valid if point.id != retiring]),
        damaged="; ".join(
            str(PointDamaged(folder.name, point, str(folder.point_path(point)), problem))
            for point, problem in scan.damaged
        ),
    )


def seen_state(folder: ReplicaFolder) -> TargetState:
    """`target_state` for who only looks: `damaged` also where files are not as they were left, for
    which a session is refused. A session that is at work changes them, and is not looked at."""
    state = target_state(folder)
    if state.damaged or state.state is not ReplicaState.READY or is_processing(folder):
        return state
    try:
        folder.check_untouched()
    except (PointDamaged, ReplicaStarted) as exc:
        return replace(state, damaged=str(exc))
    return state


def lasting_points(folder: ReplicaFolder) -> tuple[RestorePoint, ...]:
    """The points that count, oldest first, without one that a merge under way retires: nothing may
    build on what goes with it."""
    merge = pending_merge(folder)
    return tuple(point for point in folder.points() if merge is None or point.id != merge.point)


def undo_point(folder: ReplicaFolder) -> tuple[RestorePoint, str]:
    """The point an undone failover goes back to: the newest whose files are as they were
    committed, and what is wrong with those above it, '' for nothing. PointDamaged of the newest
    where there is none, NoSuchPoint without any point."""
    points = folder.points()
    newest = chosen_point(folder.name, points, None)
    problem = next(iter(folder.touched_layers([newest])), None)
    if problem is None:
        return newest, ""
    layer, evidence = problem
    with contextlib.suppress(ReplicaConflict):  # a damaged merge.json: nobody knows what lasts
        for point in reversed(lasting_points(folder)):
            if next(iter(folder.touched_layers([point])), None) is None:
                return point, f"restore point {newest.id}: {layer.file}: {evidence}"
    raise PointDamaged(folder.name, newest.id, layer.file, evidence)


def possible_commands(
    folder: ReplicaFolder, record: ReplicaRecord, power: PowerState = PowerState.OFF
) -> tuple[str, ...]:
    """The commands that would be accepted now, as far as the folder alone shows it, with the
    replica's VM in that state: an undo is refused while it is not off."""
    actions = legal_actions(record.state)
    special: dict[Action, str] = {}
    scan = folder.scan_points(record)
    touched = next(iter(folder.touched_layers(scan.valid)), None)
    try:
        sound, problem = undo_point(folder)
    except StandbyError:
        refused = {Action.FAILOVER, Action.UNDO_FAILOVER}
    else:
        refused = set()
        if problem or any(point_id > sound.id for point_id, _ in scan.damaged):
            special[Action.FAILOVER] = f" --point {sound.id}"
    if touched is not None or scan.damaged:
        refused.add(Action.SESSION)
    if record.state is ReplicaState.NEW:
        refused.clear()
    if power is not PowerState.OFF and is_there(folder.path / "vm.toml"):
        refused.add(Action.UNDO_FAILOVER)
    if record.state in (ReplicaState.READY, ReplicaState.DAMAGED) and any(
        folder.touched_ready(record)
    ):
        refused.add(Action.SESSION)
        special[Action.FAILOVER] = " --adopt"
        special[Action.UNDO_FAILOVER] = " --drop-writes"
        actions = (*actions, Action.UNDO_FAILOVER)
    return tuple(
        COMMANDS[action].format(replica=folder.name, job=record.identity.job)
        + special.get(action, "")
        for action in actions
        if action in COMMANDS and action not in refused
    )


def partials(folder: ReplicaFolder) -> tuple[PartialState, ...]:
    """Every unfinished transfer with a readable extent log, older generations' too. DiskIO where a
    folder cannot be looked into."""
    found = []
    homes = [path for path in listed(folder.path) if is_folder(path)]
    for path in [path for home in homes for path in listed(home) if path.suffix == ".extents"]:
        name = naming.partial_name(path.name)
        if name is None or not is_there(path.with_suffix(".partial.vhdx")):
            continue
        try:
            log = ExtentLog.open(path, writable=False)
        except StandbyError:
            continue  # resuming judges it when the transfer begins; until then it holds nothing
        found.append(
            PartialState(
                path.parent.name,
                name.point,
                name.generation,
                log.checkpoint_id,
                log.logged_bytes,
                log.mark,
            )
        )
        log.close()
    return tuple(found)


@dataclass(frozen=True, slots=True)
class PointSummary:
    """One restore point for a list: `size` is the bytes its own layers take as files."""

    id: str
    taken_at: str
    committed_at: str
    consistency: str
    size: int
    changed_bytes: int
    disks: int


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica as its folder shows it; `machine` is the VM's name at the newest point (without one
    the name the replica began with), `newest_age_s` is None without a point, `findings` are
    sentences about what is not as it should be, `actions` the commands that would be accepted
    now, `power` whether its VM runs (unknown where nothing says so), `target` the host
    it is at, as whoever tells it calls that."""

    name: str
    machine: str
    folder: str
    identity: ReplicaIdentity
    state: ReplicaState
    generation: int
    is_processing: bool
    holder: str
    points: tuple[PointSummary, ...]
    newest_age_s: float | None
    ready_point: str
    failover_point: str
    failover_started_at: str
    actions: tuple[str, ...]
    free_bytes: int
    findings: tuple[str, ...]
    power: PowerState = PowerState.UNKNOWN
    target: str = ""


def status(folder: ReplicaFolder) -> ReplicaStatus:
    """Everything about the replica; only a folder without a readable replica.json raises."""
    if not folder.exists():
        raise ReplicaMissing(folder.name, str(folder.record_path), "it is not there")
    record = folder.record()
    scan = folder.scan_points(record)
    processing = is_processing(folder)
    power = power_of(folder)
    age = None
    if scan.valid and (taken := parsed_time(scan.valid[-1].taken_at)) is not None:
        age = (folder.clock.now() - taken).total_seconds()
    return ReplicaStatus(
        name=folder.name,
        machine=scan.valid[-1].machine.name if scan.valid else record.name,
        folder=str(folder.path),
        identity=record.identity,
        state=record.state,
        generation=record.generation,
        is_processing=processing,
        holder=holder_of(folder) if processing else "",
        points=tuple(
            PointSummary(
                point.id,
                point.taken_at,
                point.committed_at,
                point.consistency,
                sum(disk.chain[0].size for disk in point.disks if disk.chain),
                point.changed_bytes,
                len(point.disks),
            )
            for point in scan.valid
        ),
        newest_age_s=age,
        ready_point=record.ready_point,
        failover_point=record.failover_point,
        failover_started_at=record.failover_started_at,
        actions=(
            *possible_commands(folder, record, power),
            *_power_commands(folder.name, record.state, power),
        ),
        free_bytes=shutil.disk_usage(folder.path).free,
        findings=tuple(findings(folder)),
        power=power,
    )


def asked_as(name: str, found: ReplicaStatus) -> ReplicaStatus:
    """The status of a replica that was asked for as `name`: its commands name it so where that is
    HOST:NAME."""
    full = f"{found.target}:{found.name}"
    if name != full:
        return found
    word = re.compile(rf"(?<= ){re.escape(found.name)}(?= |$)")
    return replace(found, actions=tuple(word.sub(full, text) for text in found.actions))


def _power_commands(name: str, state: ReplicaState, power: PowerState) -> tuple[str, ...]:
    """What starts or stops the VM of a replica that failed over."""
    if state not in (ReplicaState.FAILOVER, ReplicaState.PERMANENT):
        return ()
    return (f"standby replica power {'on' if power is PowerState.OFF else 'off'} {name}",)


def power_of(folder: ReplicaFolder) -> PowerState:
    """Whether the replica's VM runs, as far as its folder shows it; changes nothing."""
    with contextlib.suppress(StandbyError):
        if is_there(folder.path / "vm.toml"):
            host = FolderHost("target", folder.path.parent, None, folder.clock)
            return host.seen_power(host.machine_in(folder.name))
    return PowerState.UNKNOWN


def findings(folder: ReplicaFolder) -> list[str]:
    """What is not as it should be, one sentence each."""
    record = folder.record()
    scan = folder.scan_points(record)
    found = [f"marked damaged: {record.damage}"] if record.damage else []
    found += [f"restore point {point_id}: record: {problem}" for point_id, problem in scan.damaged]
    found += [
        f"restore point {point.id} does not count: a writer of generation {point.generation} put "
        "it there after it had been fenced; its files may be deleted"
        for point in scan.void
    ]
    found += [f"{layer.file}: {evidence}" for layer, evidence in folder.touched_layers(scan.valid)]
    if record.state in (ReplicaState.NEW, ReplicaState.READY, ReplicaState.DAMAGED):
        found += [
            f"{path.relative_to(folder.path).as_posix()} was written outside of a failover: "
            f"{evidence}"
            for path, evidence in folder.touched_ready(record)
        ]
    try:
        if pending_merge(folder) is not None:
            found.append("a merge of restore points was cut off; the next session ends it")
    except ReplicaConflict as exc:
        found.append(exc.problem)
    if record.ready_next is not None:
        found.append("renewing the ready layers was cut off; the next session or failover ends it")
    newest = scan.valid[-1].id if scan.valid else ""
    if record.state is ReplicaState.READY and record.ready_point != newest:
        found.append(
            f"the ready layers are above {record.ready_point or 'no point'}, the newest is {newest}"
        )
    found += [
        f"{name}: a seed that is not needed any more; delete it"
        if naming.is_seed(name)
        else f"{name}: unknown file; it is left alone"
        for name in folder.unknown_files()
    ]
    return found
