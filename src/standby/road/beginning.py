"""Beginning a disk of a point at the target: what its partial file builds on or starts from."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath

import msgspec

from standby.clock import Clock
from standby.errors import ProtocolError
from standby.files import make_folder_durably
from standby.model.point import PointDisk, RestorePoint
from standby.road import naming
from standby.road.lease import WriterLease
from standby.road.partial import PartialDisk, PartialSpec
from standby.road.places import plain_name
from standby.road.points import disk_of, newest_with
from standby.road.replica import ReplicaFolder
from standby.road.seeding import outgrown, seeded
from standby.road.surveying import lasting_points


class BeginDisk(msgspec.Struct, frozen=True):
    """Arguments of `begin_disk`. `has_parent`: a child of what the newest point holds; `copy`: a
    new base from that; `copy_of`: from what that holds of the disk of this id, which this one
    replaces; `seed`: from the file the user put here, which may be called `seed_name`."""

    path: str
    disk_id: str
    point: str
    checkpoint: str
    virtual_size: int
    logical_sector_size: int
    physical_sector_size: int
    page83: str
    has_parent: bool
    copy: bool
    seed: bool
    seed_name: str
    copy_of: str = ""


def check_names(disk_id: str, seed_name: str) -> None:
    """Raise PathRefused unless both stay where they are looked for."""
    plain_name(disk_id, "disk")
    if seed_name:
        plain_name(seed_name, "seed")


def check_point_id(point: str) -> None:
    """Raise ProtocolError unless `point` can be the id of a restore point."""
    if not naming.is_point_id(point):
        raise ProtocolError("backup server", f"{point!r} is no id of a restore point")


def begin_partial(
    folder: ReplicaFolder, lease: WriterLease, wanted: BeginDisk, clock: Clock
) -> PartialDisk:
    """Make or resume the partial disk of a point."""
    disk_id = wanted.disk_id
    check_names(disk_id, wanted.seed_name)
    check_names(wanted.copy_of or disk_id, "")
    check_point_id(wanted.point)
    owner = newest_with(lasting_points(folder), disk_id)
    held = disk_of(owner, disk_id) if owner is not None else None
    chain: tuple[Path, ...] = ()
    digests: tuple[Path, ...] = ()
    copy_from: tuple[Path, ...] = ()
    root = b""
    if owner is None or held is None:
        copy_from = _first_base(folder, lease, wanted)
    elif wanted.copy:
        copy_from = folder.chain_paths(owner, disk_id)
    elif wanted.has_parent:
        chain, digests, root = _parent(folder, owner, held)
    disk_folder = folder.disk_path(disk_id)
    make_folder_durably(disk_folder)
    lease.check()
    host_folder = folder.record().host_folder
    on_host = ""
    if host_folder and chain:
        on_host = str(PureWindowsPath(host_folder) / disk_id / chain[0].name)
    spec = PartialSpec(
        disk_id,
        wanted.point,
        lease.generation,
        wanted.checkpoint,
        wanted.virtual_size,
        wanted.logical_sector_size,
        wanted.physical_sector_size,
        wanted.page83,
        chain,
        digests,
        copy_from,
        root,
        on_host,
    )
    return PartialDisk.open(disk_folder, spec, sparse=not host_folder, clock=clock)


def _parent(
    folder: ReplicaFolder, owner: RestorePoint, held: PointDisk
) -> tuple[tuple[Path, ...], tuple[Path, ...], bytes]:
    """Layers, digest files and digest root of the state that a child builds on."""
    layers = folder.chain_paths(owner, held.disk_id)
    digests = tuple(folder.digest_paths(owner.id, held.disk_id))
    return layers, digests, bytes.fromhex(held.root)


def _first_base(folder: ReplicaFolder, lease: WriterLease, wanted: BeginDisk) -> tuple[Path, ...]:
    """The layers that the first base of a disk is copied from, () where there is nothing here."""
    before = newest_with(lasting_points(folder), wanted.copy_of) if wanted.copy_of else None
    if before is not None:
        return folder.chain_paths(before, wanted.copy_of)
    disk_id = wanted.disk_id
    shape = (wanted.virtual_size, wanted.logical_sector_size)
    kept = outgrown(folder, lease, disk_id, shape)
    if kept is not None:
        return (kept,)
    if wanted.seed and folder.newest() is None:
        return seeded(
            folder, lease, disk_id, wanted.seed_name, wanted.point, wanted.checkpoint, shape
        )
    return ()
