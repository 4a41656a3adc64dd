"""What the backup server says of a point that is to be committed, joined with what was sealed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from standby.errors import VerifyFailed
from standby.model.machine import Machine
from standby.model.point import PointDisk, RestorePoint
from standby.road.open_replicas import OpenReplica
from standby.road.partial import PartialSpec, SealedDisk
from standby.road.points import POINT_FORMAT


class DiskFacts(msgspec.Struct, frozen=True):
    """One disk of the VM: the digest root of its source, hex; what its release and its checkpoint
    said of it."""

    disk_id: str
    place: str
    excluded: bool
    root: str
    tracker_id: str
    identity: str


class PointFacts(msgspec.Struct, frozen=True):
    """Arguments of `commit_point`."""

    path: str
    point: str
    taken_at: str
    consistency: str
    session: str
    machine: Machine
    disks: tuple[DiskFacts, ...]
    state_files: dict[str, str]
    changed_bytes: int


def sealed_point(
    replica: OpenReplica, facts: PointFacts, now: datetime
) -> tuple[RestorePoint, dict[str, SealedDisk]]:
    """The point to commit and its sealed disks, whose roots must be the source's: VerifyFailed
    otherwise."""
    name = replica.folder.name
    sealed = {
        disk.disk_id: _checked(name, disk, replica.sealed)
        for disk in facts.disks
        if not disk.excluded
    }
    newest = replica.folder.newest()
    is_complete = facts.state_files or facts.machine.generation == 1
    point = RestorePoint(
        POINT_FORMAT,
        facts.point,
        newest.id if newest is not None else "",
        replica.lease.generation,
        facts.taken_at,
        now.isoformat(),
        facts.consistency,
        facts.session,
        facts.machine,
        tuple(
            PointDisk(disk.disk_id, disk.place, 0, 0, 0, "", (), excluded=True)
            if disk.excluded
            else _recorded(disk, replica.partials[disk.disk_id].spec)
            for disk in facts.disks
        ),
        facts.state_files,
        "" if is_complete else "firmware state missing",
        facts.changed_bytes,
    )
    return point, sealed


def _checked(replica: str, disk: DiskFacts, sealed: Mapping[str, SealedDisk]) -> SealedDisk:
    done = sealed[disk.disk_id]
    if done.root.hex() != disk.root:
        raise VerifyFailed(replica, disk.disk_id)
    return done


def _recorded(disk: DiskFacts, spec: PartialSpec) -> PointDisk:
    return PointDisk(
        disk.disk_id,
        disk.place,
        spec.virtual_size,
        spec.logical_sector_size,
        spec.physical_sector_size,
        disk.root,
        (),
        disk.tracker_id,
        disk.identity,
    )
