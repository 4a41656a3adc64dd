"""Replicas with several real restore points, made by the road's own parts."""

from __future__ import annotations

from pathlib import Path

import replicas
from partials import content_of, send_changes
from standby.disk import open_disk
from standby.disk.vhdx import VhdxDisk
from standby.model.point import PointDisk, RestorePoint
from standby.ports import VirtualDisk
from standby.road import ready
from standby.road.committing import commit
from standby.road.lease import WriterLease
from standby.road.naming import new_point_id
from standby.road.partial import PartialDisk, PartialSpec
from standby.road.points import disk_of
from standby.road.replica import ReplicaFolder
from standby.road.verifying import verify_point
from standby.testing.disks import content as content_in

Contents = dict[str, bytes | bytearray]
"""What each disk holds at a point, by disk id."""


def spec_for(
    folder: ReplicaFolder, lease: WriterLease, point_id: str, disk_id: str, size: int
) -> PartialSpec:
    """A child of the newest point's disk; of another size: a new chain from its content."""
    newest = folder.newest()
    held = disk_of(newest, disk_id) if newest is not None else None
    values = ("checkpoint-" + point_id, size)
    if held is None or newest is None:
        return PartialSpec(disk_id, point_id, lease.generation, *values)
    chain = folder.chain_paths(newest, disk_id)
    if held.virtual_size != size:
        return PartialSpec(disk_id, point_id, lease.generation, *values, copy_from=chain)
    return PartialSpec(
        disk_id,
        point_id,
        lease.generation,
        *values,
        parent_chain=chain,
        digests=tuple(folder.digest_paths(newest.id, disk_id)),
        parent_root=bytes.fromhex(held.root),
    )


def add_point(folder: ReplicaFolder, contents: Contents) -> RestorePoint:
    """Transfer, commit, renew the ready layers."""
    with WriterLease.acquire(folder, "session") as lease:
        newest = folder.newest()
        folder.clock.advance(3600)  # type: ignore[attr-defined]
        point_id = new_point_id(folder.clock, newest.id if newest else "")
        sealed = {}
        disks = []
        for number, (disk_id, content) in enumerate(contents.items()):
            spec = spec_for(folder, lease, point_id, disk_id, len(content))
            partial = PartialDisk.open(folder.disk_path(disk_id), spec)
            send_changes(partial, content)
            sealed[disk_id] = partial.seal()
            root = sealed[disk_id].root.hex()
            disks.append(PointDisk(disk_id, f"scsi:0:{number}", len(content), 512, 4096, root, ()))
        point = RestorePoint(
            1,
            point_id,
            newest.id if newest else "",
            lease.generation,
            folder.clock.now().isoformat(),
            "",
            "offline",
            "session",
            replicas.machine(tuple(contents)),
            tuple(disks),
            {},
        )
        done = commit(folder, lease, point, sealed)
        ready.renew(folder, lease, done)
    return done


def make_replica(path: Path, states: list[Contents]) -> ReplicaFolder:
    """A replica with one point per state."""
    folder = replicas.new_replica(path, disks=tuple(states[0]))
    for contents in states:
        add_point(folder, contents)
    return folder


def check_points(folder: ReplicaFolder, states: list[Contents], *, digests: bool = True) -> None:
    """Each point holds exactly its state: by its record's chain, by its `digests`, and the newest
    through the ready layer with nothing but the files' own locators."""
    folder.check_untouched()
    points = folder.points()
    assert len(points) == len(states)
    for point, contents in zip(points, states, strict=True):
        for disk_id, content in contents.items():
            chain = folder.chain_paths(point, disk_id)
            is_read = False
            if point is points[-1]:
                with open_disk(folder.disk_path(disk_id) / "ready.vhdx") as disk:
                    assert content_in(disk) == content
                    is_read = layers_of(disk)[1:] == [*chain]  # but in the middle of a merge
            assert is_read or content_of(*chain) == content
        if digests:
            verdict = verify_point(folder, point.id, device=False, threads=1)
            assert verdict.is_ok, verdict


def layers_of(disk: VirtualDisk | None) -> list[Path]:
    """The files of an open disk, newest layer first."""
    found: list[Path] = []
    while disk is not None:
        found.append(disk.path)
        disk = disk.parent if isinstance(disk, VhdxDisk) else None
    return found
