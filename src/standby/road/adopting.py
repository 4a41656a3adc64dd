"""Disk files that are at the target already: seeds, and the disks of an existing VM (RULES 16).

A seed becomes the partial disk of the first point, updated in place: its log begins with the whole
disk open, so that opening it reads what it holds and only differences travel. The disks of an
existing VM become the first point as they are. Either file keeps a name that nothing discards
until that point is committed, or, for a seed, until its log stands beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from standby import killpoints
from standby.digesting import DigestWriter, page_nodes, root_of_pages
from standby.disk import vhdx
from standby.errors import DiskUnsupported, ReplicaConflict
from standby.files import make_folder_durably, remove_durably, rename_to_new
from standby.model.machine import Machine
from standby.model.point import PointDisk, RestorePoint
from standby.ports import Progress
from standby.road import resuming
from standby.road.committing import commit
from standby.road.extent_log import ExtentLog, LogHeader
from standby.road.lease import WriterLease
from standby.road.naming import new_point_id
from standby.road.partial import SealedDisk
from standby.road.points import POINT_FORMAT
from standby.road.replica import ReplicaFolder
from standby.road.verifying import read_pages

SEED = "seed"
"""What the log of a disk that began as a seed says it is a copy of."""

ADOPTED = "adopted.vhdx"
"""A disk of an existing VM on its way into the first point; no pattern of unfinished files."""


def adopt_disk(
    folder: ReplicaFolder,
    lease: WriterLease,
    disk_id: str,
    file: Path,
    point_id: str,
    checkpoint_id: str = "",
) -> Path:
    """Make the disk file `file`, somewhere on the replica's file system, the partial disk of the
    first point; where it is then. `PartialDisk.open` with the same ids reads it and goes on.

    Raises ReplicaConflict when the disk has a point already, DiskUnsupported for a file that is
    not a VHDX of its own.
    """
    lease.check()
    _check_first(folder, disk_id)
    info = _checked_info(file)
    home = folder.disk_path(disk_id)
    make_folder_durably(home)
    path = resuming.partial_path(home, point_id, lease.generation)
    header = LogHeader(
        disk_id,
        point_id,
        lease.generation,
        checkpoint_id,
        info.virtual_size,
        copy_of=SEED,
    )
    log = ExtentLog.create(
        resuming.log_path(home, point_id, lease.generation), header, [(0, info.virtual_size)]
    )
    log.close()
    killpoints.reach("seed announced")
    _move_in(folder, file, path)
    return path


def make_found_point(
    folder: ReplicaFolder,
    lease: WriterLease,
    machine: Machine,
    files: Mapping[str, Path],
    *,
    state_files: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> RestorePoint:
    """Commit the state found in `files` (by disk id; of a VM that is off) as the first point.

    The files are moved into the replica's folder, read once for their digests and not changed;
    `state_files` are recorded. Repeatable after a kill, with the same `files`.
    """
    lease.check()
    place_of = {disk.id: disk.place for disk in folder.record().disks}
    for disk_id, file in files.items():
        _check_first(folder, disk_id)
        home = folder.disk_path(disk_id)
        make_folder_durably(home)
        if not (home / ADOPTED).exists():
            _checked_info(file)
            lease.check()
            _move_in(folder, file, home / ADOPTED)
        killpoints.reach("disk moved in")
    point_id = new_point_id(folder.clock)
    disks: list[PointDisk] = []
    sealed: dict[str, SealedDisk] = {}
    for disk_id in files:
        info = _checked_info(folder.disk_path(disk_id) / ADOPTED)
        sealed[disk_id] = _digested(folder, lease, point_id, disk_id, progress)
        disks.append(
            PointDisk(
                disk_id,
                place_of.get(disk_id, ""),
                info.virtual_size,
                info.logical_sector_size,
                info.physical_sector_size,
                "",
                (),
            )
        )
    now = f"{folder.clock.now():%Y-%m-%dT%H:%M:%SZ}"
    point = RestorePoint(
        POINT_FORMAT,
        point_id,
        "",
        lease.generation,
        now,
        now,
        "offline",
        lease.session.partition("/")[0],  # without what else its server calls it by
        machine,
        tuple(disks),
        dict(state_files or {}),
        "" if state_files or machine.generation == 1 else "firmware state missing",
    )
    return commit(folder, lease, point, sealed)


def _check_first(folder: ReplicaFolder, disk_id: str) -> None:
    newest = folder.newest()
    if newest is not None:
        raise ReplicaConflict(
            folder.name,
            f"{disk_id} cannot begin with a file that was found: there is the point {newest.id}",
            "Use a new replica, or take the VM out of the job's `seed` and `map`",
        )


def _checked_info(file: Path) -> vhdx.VhdxInfo:
    info = vhdx.read_info(file)
    if info.has_parent:
        raise DiskUnsupported(
            str(file),
            "beginning a replica with a differencing disk",
            "Merge the VM's checkpoints first",
        )
    if info.log_is_dirty:
        raise DiskUnsupported(
            str(file),
            "beginning a replica with a disk that was not closed clean",
            "Start and shut down the VM once, or `standby disk check` it",
        )
    return info


def _move_in(folder: ReplicaFolder, file: Path, path: Path) -> None:
    if not rename_to_new(file, path):
        raise ReplicaConflict(folder.name, f"{path} is in the way of {file}")


def _digested(
    folder: ReplicaFolder,
    lease: WriterLease,
    point_id: str,
    disk_id: str,
    progress: Progress | None,
) -> SealedDisk:
    """Read the adopted disk, write its digests: what a sealed partial disk would be."""
    home = folder.disk_path(disk_id)
    path = home / ADOPTED
    digests = resuming.digests_path(home, point_id, lease.generation)
    remove_durably(digests)
    numbers: list[int] = []
    nodes: list[bytes] = []
    with contextlib.closing(vhdx.open_vhdx(path)) as disk:
        size = disk.virtual_size
        with DigestWriter(digests, size, complete=True) as writer:
            for page_number, leaves, _ in read_pages(disk, size, progress=progress):
                writer.add(page_number, leaves)
                numbers.append(page_number)
                nodes.append(page_nodes(leaves.reshape(1, -1)).tobytes())
                if len(numbers) % 64 == 0:
                    lease.check()
            root = _root(size, numbers, nodes)
            writer.finish(root)
    info = vhdx.read_info(path)
    return SealedDisk(
        disk_id, point_id, path, path.stat().st_size, info.data_write_guid, root, digests
    )


def _root(size: int, numbers: list[int], nodes: list[bytes]) -> bytes:
    table = np.frombuffer(b"".join(nodes), dtype=np.uint8).reshape(-1, 16)
    return root_of_pages(size, np.array(numbers, dtype=np.int64), table)
