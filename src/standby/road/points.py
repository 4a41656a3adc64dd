"""Restore points as values: which records count, which one is meant, which disk is which.

Pure functions; `replica` reads the files, `committing` writes them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from standby.errors import NoSuchPoint, ReplicaConflict
from standby.model.machine import CheckpointDisk, MachineDisk
from standby.model.point import PointDisk, RestorePoint
from standby.model.replica import (
    ReplicaDisk,
    ReplicaIdentity,
    ReplicaRecord,
    ReplicaState,
)
from standby.model.target_rules import TargetRules

POINT_FORMAT = 1


def counts(record: ReplicaRecord, point: RestorePoint) -> bool:
    """The void rule: a point record counts only if it is of the current generation or was there
    when that was last raised; what a fenced writer renamed into place later is void."""
    return point.generation == record.generation or point.id in record.points


def disk_of(point: RestorePoint, disk_id: str) -> PointDisk | None:
    """The disk's part of the point, None where it has none or was excluded."""
    for disk in point.disks:
        if disk.disk_id == disk_id and disk.chain and not disk.excluded:
            return disk
    return None


def newest_with(points: Sequence[RestorePoint], disk_id: str) -> RestorePoint | None:
    """The newest of `points`, oldest first, that has the disk: the next state of it builds on
    that one."""
    return next((point for point in reversed(points) if disk_of(point, disk_id)), None)


def replicated_disks(point: RestorePoint) -> tuple[PointDisk, ...]:
    """The point's disks that have files."""
    return tuple(disk for disk in point.disks if disk.chain and not disk.excluded)


def layer_names(point: RestorePoint) -> set[str]:
    """Every disk file the point needs, as recorded."""
    return {layer.file for disk in replicated_disks(point) for layer in disk.chain}


def parsed_time(text: str) -> datetime | None:
    """The instant meant by ISO 8601 `text`, UTC where it names no zone; None when it is none."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def chosen_point(replica: str, points: Sequence[RestorePoint], wanted: str | None) -> RestorePoint:
    """The point that `wanted` means: None the newest, an id or an unambiguous beginning of one,
    or an ISO time for the newest point taken at or before it. Raises NoSuchPoint."""
    known = tuple(point.id for point in points)
    if wanted is None:
        if points:
            return points[-1]
        raise NoSuchPoint(replica, "at all", known)
    matching = [point for point in points if point.id == wanted]
    if not matching and wanted:
        matching = [point for point in points if point.id.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    instant = parsed_time(wanted)
    why = "not an id, and not a time such as 2026-11-22T22:00"
    if matching:
        why = "several begin so"
    elif instant is not None:
        older = [
            point
            for point in points
            if (taken := parsed_time(point.taken_at)) is not None and taken <= instant
        ]
        if older:
            return older[-1]
        why = f"a time older than the oldest, taken at {points[0].taken_at}" if points else ""
    raise NoSuchPoint(replica, wanted, known, why)


def points_kept_by(
    rules: TargetRules, points: Sequence[RestorePoint], now: datetime
) -> tuple[RestorePoint, ...]:
    """The points (oldest first) that the target's own rules keep, whoever orders otherwise. A
    point whose time cannot be read is kept while any rule asks for days."""
    newest = {point.id for point in points[max(0, len(points) - rules.keep_points_min) :]}
    since = now - timedelta(days=rules.keep_days_min)

    def is_kept(point: RestorePoint) -> bool:
        taken = parsed_time(point.taken_at)
        is_young = rules.keep_days_min > 0 and (taken is None or taken > since)
        return point.id in newest or is_young

    return tuple(point for point in points if is_kept(point))


def points_to_retire(
    points: Sequence[RestorePoint], keep: int, rules: TargetRules, now: datetime
) -> tuple[RestorePoint, ...]:
    """The points (oldest first) to merge away so that `keep` of them remain, never against the
    target's own rules. Only the oldest can end (RULES 15), so the first one that those keep ends
    the list; the newest is always kept."""
    kept = {point.id for point in points_kept_by(rules, points, now)}
    over = points[: max(0, len(points) - max(keep, 1))]
    return tuple(itertools.takewhile(lambda point: point.id not in kept, over))


# --- which disk is which ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiskMatches:
    """How a machine's disks relate to the replica's. `known` is what replica.json should list from
    now on: removed disks stay in it, so that no id is ever used twice."""

    matched: dict[str, ReplicaDisk]
    """By controller place, every disk present, the new ones too."""
    new: tuple[ReplicaDisk, ...]
    removed: tuple[ReplicaDisk, ...]
    known: tuple[ReplicaDisk, ...]


def match_disks(
    replica: str,
    known: Sequence[ReplicaDisk],
    present: Sequence[MachineDisk | CheckpointDisk],
) -> DiskMatches:
    """Match by the host's disk id, then page-83 id and controller place, then page-83 id alone
    where nobody else has it, then the place for disks that have no identity (RULES 1).

    Raises ReplicaConflict where two disks could be the same one: page-83 ids are repeated by
    clones, and guessing would write one disk's changes onto another.
    """
    places = Counter(disk.place for disk in present)
    if clash := [place for place, count in places.items() if count > 1]:
        raise ReplicaConflict(replica, f"two disks at the place {clash[0]}", "Check the VM's disks")
    host_ids = Counter(_host_id(disk) for disk in present)
    if clash := [host_id for host_id, count in host_ids.items() if host_id and count > 1]:
        raise ReplicaConflict(
            replica, f"two disks with the host's id {clash[0]}", "Give each disk an id of its own"
        )

    pairs: dict[str, ReplicaDisk] = {}
    left = list(present)
    free = list(known)

    def pair(key: Callable[[MachineDisk | CheckpointDisk | ReplicaDisk], str], what: str) -> None:
        mine = Counter(key(disk) for disk in free)
        theirs = Counter(key(disk) for disk in left)
        for disk in list(left):
            value = key(disk)
            if not value or not mine[value]:
                continue
            if mine[value] > 1 or theirs[value] > 1:
                raise ReplicaConflict(
                    replica,
                    f"the disk at {disk.place} cannot be told from another of the same {what}",
                    "Give the VM's disks ids (`id` in vm.toml), or exclude one of them",
                )
            match = next(item for item in free if key(item) == value)
            pairs[disk.place] = match
            left.remove(disk)
            free.remove(match)

    pair(_host_id, "host id")
    pair(lambda disk: f"{disk.page83}@{disk.place}" if disk.page83 else "", "page-83 id and place")
    pair(lambda disk: disk.page83, "page-83 id")
    pair(_anonymous_place, "place")

    number = 1 + max((_number(disk.id) for disk in known), default=-1)
    new = []
    for disk in left:
        new.append(ReplicaDisk(f"disk{number}", disk.place, _host_id(disk), disk.page83))
        number += 1
    updated = {
        match.id: replace(
            match,
            place=disk.place,
            host_id=_host_id(disk) or match.host_id,
            page83=disk.page83 or match.page83,
        )
        for disk in present
        if (match := pairs.get(disk.place)) is not None
    }
    matched = {place: updated[match.id] for place, match in pairs.items()}
    matched.update({disk.place: disk for disk in new})
    return DiskMatches(
        matched=matched,
        new=tuple(new),
        removed=tuple(free),
        known=(*(updated.get(disk.id, disk) for disk in known), *new),
    )


def _host_id(disk: MachineDisk | CheckpointDisk | ReplicaDisk) -> str:
    return "" if isinstance(disk, CheckpointDisk) else disk.host_id


def _anonymous_place(disk: MachineDisk | CheckpointDisk | ReplicaDisk) -> str:
    return "" if disk.page83 or _host_id(disk) else disk.place


def _number(disk_id: str) -> int:
    digits = disk_id.removeprefix("disk")
    return int(digits) if digits.isdecimal() else -1


# --- what a target says of itself (RULES 6) --------------------------------------------------


@dataclass(frozen=True, slots=True)
class TargetDisk:
    """What the newest point holds of one disk: `root` is hex, sizes are bytes. `point` is '' but
    for a disk that the newest point has not: then the newest that has it."""

    disk_id: str
    root: str
    tracker_id: str
    virtual_size: int
    logical_sector_size: int
    physical_sector_size: int
    identity: str
    place: str = ""
    point: str = ""


@dataclass(frozen=True, slots=True)
class PartialState:
    """An unfinished transfer: `logged_bytes` are acknowledged; everything below `mark` was scanned
    under `checkpoint_id`."""

    disk_id: str
    point_id: str
    generation: int
    checkpoint_id: str
    logged_bytes: int
    mark: int


@dataclass(frozen=True, slots=True)
class TargetState:
    """What prepare begins with: who the replica is, where it stands, what it holds. `disks` are
    those of the newest point, `older` those that only points before it have. `damaged` says which
    commit records cannot be read, '' if none: no session goes on before that is settled."""

    identity: ReplicaIdentity
    generation: int
    state: ReplicaState
    newest: str
    points: tuple[str, ...]
    known_disks: tuple[ReplicaDisk, ...]
    disks: tuple[TargetDisk, ...]
    partials: tuple[PartialState, ...]
    older: tuple[TargetDisk, ...] = ()
    damaged: str = ""


def target_disks(point: RestorePoint) -> tuple[TargetDisk, ...]:
    """What `point` says of each of its disks."""
    return tuple(
        TargetDisk(
            disk.disk_id,
            disk.root,
            disk.tracker_id,
            disk.virtual_size,
            disk.logical_sector_size,
            disk.physical_sector_size,
            disk.identity,
            disk.place,
        )
        for disk in replicated_disks(point)
    )


def older_disks(points: Sequence[RestorePoint]) -> tuple[TargetDisk, ...]:
    """What `points`, oldest first, hold of the disks that the newest of them has not (excluded, or
    not in the VM). No tracker id: it was given up when a newer point came."""
    seen = {disk.disk_id for disk in replicated_disks(points[-1])} if points else set()
    found: list[TargetDisk] = []
    for point in reversed(points[:-1]):
        for disk in target_disks(point):
            if disk.disk_id not in seen:
                seen.add(disk.disk_id)
                found.append(replace(disk, tracker_id="", point=point.id))
    return tuple(found)


def files_claimed_by(points: Iterable[RestorePoint]) -> set[str]:
    """Names, relative to the replica's folder, that these points need: disk files and digests."""
    claimed: set[str] = set()
    for point in points:
        claimed |= layer_names(point)
        claimed |= {f"points/{point.id}.{disk.disk_id}.digests" for disk in replicated_disks(point)}
    return claimed
