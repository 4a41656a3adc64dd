"""Retiring the oldest restore point: its base takes in the next layer (RULES 15).

    base(g0) <- c1(g1) <- c2        becomes        base(g1) <- c2

`merge.json` is written first and removed last; in between every step can be repeated, and at every
instant each remaining point opens with the files its record names and reads the same:

1. the retired point's record goes; the base keeps g0 and takes in c1's content: of the base only
   what c1 overlays is touched;
2. c2's locator names the base and accepts both g1 and g0; then the records drop c1, naming the
   base with g1. From here on nothing needs c1;
3. the base's data-write GUID becomes g1: same content, same identity; c2 gives g0 up;
4. c1 and the retired point's digests go.

RULES 15 rewrites the records last. Here that comes before the GUID changes: in the other order
c1, which still names g0, could not be opened between the two, nor a point whose record names it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from standby import killpoints
from standby.disk import merge, vhdx
from standby.errors import (
    DiskFull,
    IllegalTransition,
    PointDamaged,
    ReplicaBusy,
    ReplicaConflict,
)
from standby.files import ByteLock, free_bytes, is_there, remove_durably, remove_large
from standby.model.replica import LayerFile, ReplicaState, legal_commands
from standby.ports import Progress
from standby.road.lease import WriterLease
from standby.road.merge_plan import (
    MERGE_FORMAT,
    MERGE_KIND,
    MERGE_RECORD,
    DiskMerge,
    PendingMerge,
    children_of,
    complete_digests,
    pending_merge,
    planned,
)
from standby.road.record_copies import with_sound_copies, write_record
from standby.road.records import (
    encoded_record,
    inner_path,
)
from standby.road.replica import ReplicaFolder
from standby.units import MiB

__all__ = ["DiskMerge", "PendingMerge", "finish_merge", "merge_oldest", "pending_merge"]

MERGE_BYTE = 1 << 29
"""The byte of `.lock` held while a merge writes to a base: a fenced writer that was stopped in the
middle of one write still holds it, and nobody else may touch that base."""

_STUCK = "a fenced process that has not ended is merging"
_SLICE_BYTES = 64 * MiB
_SPARE_BYTES = 4 * MiB
"""For records, VHDX logs and what the file system needs for itself."""


def merge_oldest(
    folder: ReplicaFolder,
    lease: WriterLease,
    progress: Progress | None = None,
    *,
    can_punch: bool = sys.platform != "win32",
) -> None:
    """Retire the oldest point: merge every disk's next layer into its base, remove old chains.

    A merge left by a killed process is finished instead. Raises DiskFull when the space is short
    (nothing has changed then), PointDamaged when a file is not as it was left, ReplicaConflict
    when the base has another child or there is only one point. `can_punch` allows holes in the
    base, and, where space is short, merging in slices that free what they have taken over; False
    for a host that refuses sparse files (RULES 13).
    """
    _check_state(folder, lease)
    can_punch = can_punch and not folder.record().host_folder
    if pending_merge(folder) is not None:
        if not finish_merge(folder, lease, progress, can_punch=can_punch):
            raise ReplicaBusy(folder.name, _STUCK)
        return
    points = folder.points()
    if len(points) < 2:
        raise ReplicaConflict(folder.name, "its only restore point cannot be merged away")
    for layer, evidence in folder.touched_layers(points):
        path = str(inner_path(folder.path, layer.file))
        raise PointDamaged(folder.name, points[0].id, path, evidence)
    lock = ByteLock(folder.lock_path, MERGE_BYTE)
    if not lock.acquire():
        raise ReplicaBusy(folder.name, _STUCK)
    with lock:
        pending = planned(folder, points)
        for disk in pending.disks:
            complete_digests(folder, pending.point, points[1:], disk)
        _slice_bytes(folder, pending, can_punch)
        lease.write(folder.path / MERGE_RECORD, encoded_record(MERGE_KIND, MERGE_FORMAT, pending))
        killpoints.reach("merge: intent")
        _run(folder, lease, pending, progress, can_punch)


def finish_merge(
    folder: ReplicaFolder,
    lease: WriterLease,
    progress: Progress | None = None,
    *,
    can_punch: bool = sys.platform != "win32",
) -> bool:
    """Finish the merge that merge.json names, if any; repeatable.

    False, and nothing done, while a fenced process that has not ended is still in that merge:
    sessions go on without, every point reads right meanwhile."""
    pending = pending_merge(folder)
    if pending is None:
        return True
    _check_state(folder, lease)
    can_punch = can_punch and not folder.record().host_folder
    lock = ByteLock(folder.lock_path, MERGE_BYTE)
    if not lock.acquire():
        return False
    with lock:
        _run(folder, lease, pending, progress, can_punch)
    return True


# --- deciding --------------------------------------------------------------------------------


def _check_state(folder: ReplicaFolder, lease: WriterLease) -> None:
    lease.check()
    record = folder.record()
    if record.state is not ReplicaState.READY:
        legal = legal_commands(record.state, folder.name, record.identity.job)
        raise IllegalTransition(folder.name, str(record.state), "merge restore points", legal)


def _slice_bytes(folder: ReplicaFolder, pending: PendingMerge, can_punch: bool) -> int | None:
    """How to fit into the space there is: None for at once, else the bytes per slice. Raises
    DiskFull. New base blocks count in full (RULES 13); disks are merged one after another, but
    what they take over is freed only at the end."""
    needed = _SPARE_BYTES
    freed = 0
    for disk in pending.disks:
        growth, stored = _growth(folder, disk)
        needed += growth
        freed += stored
    available = free_bytes(folder.path)
    if needed <= available:
        return None
    least = max(needed - freed, _SPARE_BYTES) + 2 * _SLICE_BYTES
    if can_punch and least <= available:
        return _SLICE_BYTES
    raise DiskFull(str(folder.path), least if can_punch else needed, available)


def _growth(folder: ReplicaFolder, disk: DiskMerge) -> tuple[int, int]:
    """(bytes of blocks the base will have to add, bytes stored in the child)."""
    base_path, child_path = (inner_path(folder.path, name) for name in (disk.base, disk.child))
    if not is_there(child_path):
        return 0, 0
    with _opened(base_path) as base, _opened(child_path) as child:
        stored = int(child.mapped(0, child.virtual_size)[:, 1].sum())
        return merge.space_needed(child, base), stored


# --- doing -----------------------------------------------------------------------------------


def _run(
    folder: ReplicaFolder,
    lease: WriterLease,
    pending: PendingMerge,
    progress: Progress | None,
    can_punch: bool,
) -> None:
    """Every step from the removal of the record on, each as often as a kill makes necessary."""
    lease.check()
    remove_durably(folder.copy_path(pending.point))
    remove_durably(folder.point_path(pending.point))
    known = folder.record().points
    lease.update(points=tuple(point for point in known if point != pending.point))
    killpoints.reach("merge: record removed")
    slice_bytes = _slice_bytes(folder, pending, can_punch)
    todo = [disk for disk in pending.disks if not _has_taken_over(folder, disk)]
    for disk in todo:
        _merge_payload(folder, lease, disk, slice_bytes, progress, can_punch)
    for disk in todo:
        for path in children_of(folder, disk.disk_id, {disk.child_guid}):
            lease.check()
            _relink(path, disk, disk.base_guid)
            killpoints.reach("merge: locator")
    _rewrite_records(folder, lease, pending)
    for disk in pending.disks:
        lease.check()
        with _opened(inner_path(folder.path, disk.base), writable=True) as base:
            if base.data_write_guid != disk.child_guid:
                base.set_data_write_guid(disk.child_guid)
        killpoints.reach("merge: base guid")
        for path in children_of(folder, disk.disk_id, {disk.child_guid}):
            lease.check()
            _relink(path, disk, None)
            killpoints.reach("merge: linkage2 cleared")
    for name in (*(disk.child for disk in pending.disks), *pending.removed):
        lease.check()
        remove_large(inner_path(folder.path, name))
        killpoints.reach("merge: child removed")
    lease.check()
    remove_durably(folder.path / MERGE_RECORD)


def _has_taken_over(folder: ReplicaFolder, disk: DiskMerge) -> bool:
    """Whether the base already carries the child's identity: then it has its content."""
    info = vhdx.read_info(inner_path(folder.path, disk.base))
    return info.data_write_guid == disk.child_guid


def _merge_payload(
    folder: ReplicaFolder,
    lease: WriterLease,
    disk: DiskMerge,
    slice_bytes: int | None,
    progress: Progress | None,
    can_punch: bool,
) -> None:
    lease.check()

    def checked(done: int, total: int) -> None:
        lease.check()
        if progress is not None:
            progress(done, total)

    base_path, child_path = (inner_path(folder.path, name) for name in (disk.base, disk.child))
    with (
        _opened(base_path, writable=True, sparse=can_punch) as base,
        _opened(child_path, writable=slice_bytes is not None) as child,
    ):
        base.take_back_unowned()  # what a killed merge took and never committed
        merge.merge_payload(child, base, progress=checked, slice_bytes=slice_bytes)
        killpoints.reach("merge: payload")
    killpoints.reach("merge: base closed")


def _relink(path: Path, disk: DiskMerge, linkage2: str | None) -> None:
    """Have the child of c1 at `path` name the base, accepting g1 and `linkage2`."""
    locator = vhdx.read_info(path).locator
    base_name = disk.base.rpartition("/")[2]
    absolute = locator.get("absolute_win32_path")
    if absolute:
        absolute = absolute[: absolute.rfind("\\") + 1] + base_name
    with _opened(path, writable=True) as child:
        child.set_parent_locator(disk.child_guid, f".\\{base_name}", absolute, linkage2)


def _rewrite_records(folder: ReplicaFolder, lease: WriterLease, pending: PendingMerge) -> None:
    """Every record that names a merged child names the base instead, as it will be left."""
    bases = {disk.child: disk for disk in pending.disks}
    following = {layer.file for disk in pending.disks for layer in disk.next}

    def rewritten(layers: Iterable[LayerFile]) -> tuple[LayerFile, ...]:
        result: list[LayerFile] = []
        merged = {disk.base for disk in pending.disks}
        for layer in layers:
            if layer.file in bases:
                continue
            path = inner_path(folder.path, layer.file)
            if layer.file in merged:
                guid = next(d.child_guid for d in pending.disks if d.base == layer.file)
                layer = LayerFile(layer.file, path.stat().st_size, guid)
            elif layer.file in following:
                layer = replace(layer, size=path.stat().st_size)
            result.append(layer)
        return tuple(result)

    seen = with_sound_copies(folder)
    for point in seen.points():
        disks = tuple(replace(disk, chain=rewritten(disk.chain)) for disk in point.disks)
        if disks != point.disks:
            write_record(seen, lease, replace(point, disks=disks))
            killpoints.reach("merge: record rewritten")
    record = folder.record()
    ready, upcoming = (
        {disk_id: rewritten([layer])[0] for disk_id, layer in layers.items()}
        for layers in (record.ready or {}, record.ready_next or {})
    )
    changes = {"ready": ready or record.ready, "ready_next": upcoming or record.ready_next}
    lease.update(**changes)


# --- small things ----------------------------------------------------------------------------


def _opened(path: Path, *, writable: bool = False, sparse: bool = True) -> vhdx.VhdxDisk:
    """One file alone, whatever it is a child of, its data-write GUID kept whatever is written."""
    return vhdx.open_vhdx(path, writable=writable, keep_data_write_guid=True, sparse=sparse)
