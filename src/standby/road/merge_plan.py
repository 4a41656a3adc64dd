"""What a merge is going to do, as a value, as merge.json, and how it is decided (RULES 15)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from standby.digesting import DigestFile, merge_digests
from standby.disk import vhdx
from standby.errors import DiskError, ReplicaConflict
from standby.files import is_there
from standby.model.point import PointDisk, RestorePoint
from standby.model.replica import LayerFile
from standby.road import naming
from standby.road.points import disk_of, layer_names, replicated_disks
from standby.road.rebuilding import rebuild_digests
from standby.road.records import RecordDamaged, inner_path, layer_facts, read_record
from standby.road.replica import ReplicaFolder

MERGE_RECORD = "merge.json"
MERGE_KIND = "merge"
MERGE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class DiskMerge:
    """One disk's part: `child` is merged into `base`; `next` are the files above `child`. Names
    are relative to the replica's folder, GUIDs data-write GUIDs before the merge."""

    disk_id: str
    base: str
    base_guid: str
    child: str
    child_guid: str
    next: tuple[LayerFile, ...]


@dataclass(frozen=True, slots=True)
class PendingMerge:
    """merge.json: what retiring `point` does. `removed` are files that no other point needs: old
    chains (RULES 14), excluded or vanished disks, and the point's digests."""

    format: int
    point: str
    disks: tuple[DiskMerge, ...]
    removed: tuple[str, ...]

    def guids_of(self, file: str) -> frozenset[str]:
        """The data-write GUIDs that `file` may have while the merge is under way, and then any
        size is right; empty for a file that it does not touch."""
        guids: set[str] = set()
        for disk in self.disks:
            if file == disk.base:
                guids |= {disk.base_guid, disk.child_guid}
            elif file == disk.child:
                guids.add(disk.child_guid)
            guids |= {layer.data_write_guid for layer in disk.next if layer.file == file}
        return frozenset(guids)


def pending_merge(folder: ReplicaFolder) -> PendingMerge | None:
    """The merge that a killed process left, None when there is none. Raises ReplicaConflict when
    merge.json cannot be read."""
    path = folder.path / MERGE_RECORD
    if not is_there(path):
        return None
    try:
        pending = read_record(path, MERGE_KIND, MERGE_FORMAT, PendingMerge)
        for name in _all_names(pending):
            inner_path(folder.path, name)
    except RecordDamaged as exc:
        raise ReplicaConflict(
            folder.name, f"{path}: {exc}", "The disk files are untouched by this message"
        ) from exc
    return pending


def planned(folder: ReplicaFolder, points: Sequence[RestorePoint]) -> PendingMerge:
    """What retiring the first of `points` means for every disk. Changes nothing."""
    oldest, later = points[0], points[1:]
    needed: set[str] = set().union(*(layer_names(point) for point in later))
    disks: list[DiskMerge] = []
    removed = [
        _relative(folder, folder.digests_path(oldest.id, disk.disk_id))
        for disk in replicated_disks(oldest)
    ]
    for disk in replicated_disks(oldest):
        removed += [layer.file for layer in disk.chain if layer.file not in needed]
        merged = _planned_disk(folder, disk, later)
        if merged is not None:
            disks.append(merged)
    return PendingMerge(MERGE_FORMAT, oldest.id, tuple(disks), tuple(removed))


def _planned_disk(
    folder: ReplicaFolder, oldest: PointDisk, later: Sequence[RestorePoint]
) -> DiskMerge | None:
    """The merge of the one layer above the oldest point's file; None when nobody builds on it."""
    base = oldest.chain[0]
    above: dict[str, LayerFile] = {}
    for point in later:
        disk = disk_of(point, oldest.disk_id)
        names = [layer.file for layer in disk.chain] if disk is not None else []
        if disk is None or base.file not in names:
            continue
        place = names.index(base.file)
        if place == 0:
            return None  # a later point is this very file: nothing to merge yet
        above[names[place - 1]] = disk.chain[place - 1]
    if not above:
        return None
    child = next(iter(above.values()))
    for path in children_of(folder, oldest.disk_id, {base.data_write_guid}):
        name = _relative(folder, path)
        if name != child.file and naming.partial_name(path.name) is None:
            raise ReplicaConflict(
                folder.name,
                f"{path} is another child of {base.file}, which a merge would break",
                "End what uses it, or move the file away",
            )
    following = tuple(
        layer_facts(folder.path, _relative(folder, path))
        for path in children_of(folder, oldest.disk_id, {child.data_write_guid})
    )
    return DiskMerge(
        oldest.disk_id,
        base.file,
        base.data_write_guid,
        child.file,
        child.data_write_guid,
        following,
    )


def children_of(folder: ReplicaFolder, disk_id: str, guids: Iterable[str]) -> Iterator[Path]:
    """The disk files in a disk's folder whose parent has one of these data-write GUIDs."""
    wanted = set(guids)
    for path in sorted(folder.disk_path(disk_id).glob("*.vhdx")):
        try:
            info = vhdx.read_info(path)
        except DiskError:
            if naming.partial_name(path.name) is not None:
                continue  # cut off while it was made: resuming discards it
            raise
        if info.has_parent and _guid(info.locator.get("parent_linkage", "")) in wanted:
            yield path


def complete_digests(
    folder: ReplicaFolder, retired: str, later: Sequence[RestorePoint], disk: DiskMerge
) -> None:
    """Have the digests of the point that becomes the base's be complete: then nobody needs the
    retired point's. Harmless when the merge never happens."""
    owner = _owner_of(later, disk)
    if owner is None:
        raise ReplicaConflict(folder.name, f"no restore point has {disk.child} as its newest layer")
    newer = folder.digests_path(owner.id, disk.disk_id)
    older = folder.digests_path(retired, disk.disk_id)
    try:
        with DigestFile.open(newer) as file:
            if file.is_complete:
                return
        merge_digests(newer, older, newer)
    except (DiskError, ValueError):
        # Damaged or missing: the disk itself knows. PointDamaged when that is damaged too.
        rebuild_digests(folder, owner.id, disk.disk_id, complete=True)


def _owner_of(points: Sequence[RestorePoint], disk: DiskMerge) -> RestorePoint | None:
    for point in points:
        part = disk_of(point, disk.disk_id)
        if part is not None and part.chain[0].file == disk.child:
            return point
    return None


def _guid(text: str) -> str:
    return text.strip("{}").lower()


def _relative(folder: ReplicaFolder, path: Path) -> str:
    return path.relative_to(folder.path).as_posix()


def _all_names(pending: PendingMerge) -> Iterator[str]:
    yield from pending.removed
    for disk in pending.disks:
        yield from (disk.base, disk.child, *(layer.file for layer in disk.next))
