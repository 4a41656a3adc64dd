"""The copy of each point's commit record, which stands in where the record itself is lost.

    points/<id>.json    the commit record: its rename is the restore point
    points/<id>.copy    the same bytes, put there after it and removed before it

A copy makes no point, and a record that can be read and goes with its files is never judged by its
copy. Of a lost record a copy proves nothing by itself: it is the key with which the point's disks
are read and compared with their digests, and only then becomes the record again (`restoring`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from standby.errors import DiskFull, DiskIO, StandbyError
from standby.files import File, is_there
from standby.model.point import PointDisk, RestorePoint
from standby.model.replica import LayerFile, ReplicaRecord
from standby.road.lease import WriterLease
from standby.road.points import POINT_FORMAT, counts
from standby.road.records import RECORD_SIZE_MAX, Envelope, RecordDamaged, layer_facts
from standby.road.replica import PointScan, ReplicaFolder, encode_point


@dataclass(frozen=True, slots=True)
class LostRecord:
    """A point whose commit record is damaged, gone, or not the one of its files. `copy` goes with
    the files, None where there is none that does: `without_copy` says why."""

    point_id: str
    problem: str
    copy: RestorePoint | None
    without_copy: str = ""


class ReplicaByCopies(ReplicaFolder):
    """The replica as it is read where copies stand in for the records of some of its points."""

    def __init__(self, folder: ReplicaFolder, stand_ins: Mapping[str, RestorePoint]) -> None:
        super().__init__(folder.path, folder.clock)
        self.stand_ins = dict(stand_ins)

    def scan_points(self, record: ReplicaRecord | None = None) -> PointScan:
        """As of the folder, with the copies among the valid records."""
        scan = super().scan_points(record)
        others = [point for point in scan.valid if point.id not in self.stand_ins]
        valid = sorted([*others, *self.stand_ins.values()], key=lambda point: point.id)
        damaged = tuple(lost for lost in scan.damaged if lost[0] not in self.stand_ins)
        return PointScan(tuple(valid), scan.void, damaged)


# --- writing ---------------------------------------------------------------------------------


def write_record(folder: ReplicaFolder, lease: WriterLease, point: RestorePoint) -> None:
    """Put the record of a committed point into place anew, then its copy. Where the copy stands in
    for the record, only the copy: the record comes back when the point is proved."""
    if not (isinstance(folder, ReplicaByCopies) and point.id in folder.stand_ins):
        lease.write(folder.point_path(point.id), encode_point(point))
    else:
        folder.stand_ins[point.id] = point
    write_copy(folder, lease, point)


def write_copy(folder: ReplicaFolder, lease: WriterLease, point: RestorePoint) -> None:
    """Put the copy of a record that is in place beside it. What keeps it from being written fails
    nothing, as the point is there: the next session writes it. Raises Fenced."""
    try:
        lease.write(folder.copy_path(point.id), encode_point(point))
    except (DiskFull, DiskIO):
        lease.check()


def renew_copies(
    folder: ReplicaFolder, lease: WriterLease, points: Iterable[RestorePoint]
) -> list[str]:
    """Have the record of each of `points` stand beside itself again: a replica of before has no
    copies, a killed writer leaves an older one. What was damaged, as sentences. For records that
    were just found to go with their files."""
    said = []
    for point in points:
        path = folder.copy_path(point.id)
        try:
            is_current = is_there(path) and folder.read_point(path) == point
        except (RecordDamaged, StandbyError) as exc:
            is_current = False
            said.append(
                f"the copy of the commit record of {point.id} was damaged and is written anew: "
                f"{exc}"
            )
        if not is_current:
            write_copy(folder, lease, point)
    return said


# --- reading ---------------------------------------------------------------------------------


def lost_records(folder: ReplicaFolder) -> list[LostRecord]:
    """The points whose commit record is lost, oldest first. One that reads well is so only when its
    files are others and the copy is of these files: then it is an older one that was put back."""
    judge = folder.record()
    scan = folder.scan_points(judge)
    found = [_lost(folder, judge, point_id, problem) for point_id, problem in scan.damaged]
    for point in scan.valid:
        touched = next(iter(folder.touched_layers([point])), None)
        if touched is None:
            continue
        layer, evidence = touched
        problem = f"it is not of these files ({layer.file}: {evidence}), and its copy is"
        lost = _lost(folder, judge, point.id, problem)
        if lost.copy is not None and _files(lost.copy) != _files(point):
            found.append(lost)
    return sorted(found, key=lambda lost: lost.point_id)


def with_copies(folder: ReplicaFolder, lost: Sequence[LostRecord]) -> ReplicaFolder:
    """The replica read with the copies of the `lost` records that go with their files."""
    stand_ins = {item.point_id: item.copy for item in lost if item.copy is not None}
    return ReplicaByCopies(folder, stand_ins) if stand_ins else folder


def with_sound_copies(folder: ReplicaFolder) -> ReplicaFolder:
    """The replica read with every sound copy of a lost record, whether or not it goes with the
    files: for whoever changes these, so that records and copies go on naming the right ones."""
    judge = folder.record()
    stand_ins = {}
    for point_id, _ in folder.scan_points(judge).damaged:
        try:
            stand_ins[point_id] = _sound_copy(folder, judge, point_id)
        except (RecordDamaged, StandbyError):
            continue
    return ReplicaByCopies(folder, stand_ins) if stand_ins else folder


def _files(point: RestorePoint) -> list[tuple[str, str]]:
    """The point's files as they are told apart, whatever their sizes."""
    return [(layer.file, layer.data_write_guid) for disk in point.disks for layer in disk.chain]


def _lost(folder: ReplicaFolder, judge: ReplicaRecord, point_id: str, problem: str) -> LostRecord:
    try:
        copy = _sized_as_now(folder, _sound_copy(folder, judge, point_id))
        for layer, evidence in folder.touched_layers([copy]):
            raise RecordDamaged(f"its copy is not of these files ({layer.file}: {evidence})")
    except (RecordDamaged, StandbyError) as exc:
        return LostRecord(point_id, problem, None, str(exc))
    return LostRecord(point_id, problem, copy)


def _sound_copy(folder: ReplicaFolder, judge: ReplicaRecord, point_id: str) -> RestorePoint:
    """The copy of a lost record; raises RecordDamaged, or DiskIO."""
    path = folder.copy_path(point_id)
    if not is_there(path):
        raise RecordDamaged("no copy of it is there")
    try:
        copy = folder.read_point(path)
    except RecordDamaged as exc:
        raise RecordDamaged(f"its copy is damaged, too: {exc}") from exc
    if not counts(judge, copy):
        raise RecordDamaged(f"its copy is of a fenced writer of generation {copy.generation}")
    if _is_of_another_release(folder.point_path(point_id), path):
        raise RecordDamaged("it is sound, of another release: use that one")
    return copy


def _is_of_another_release(record: Path, copy: Path) -> bool:
    """Whether the record is whole, in another format, and says something else than its copy: a
    flipped digit of the format leaves the rest as it was."""
    try:
        mine, other = _envelope(record), _envelope(copy)
    except (msgspec.DecodeError, UnicodeDecodeError, RecordDamaged, DiskIO):
        return False
    body = bytes(mine.record)
    return (
        mine.format != POINT_FORMAT
        and mine.standby == other.standby
        and mine.crc32 == f"{zlib.crc32(body):08x}"
        and body != bytes(other.record)
    )


def _envelope(path: Path) -> Envelope:
    with File(path) as file:
        if file.size > RECORD_SIZE_MAX:
            raise RecordDamaged(f"{file.size} bytes, too large for a record")
        return msgspec.json.decode(file.read(0, file.size), type=Envelope)


def _sized_as_now(folder: ReplicaFolder, point: RestorePoint) -> RestorePoint:
    """The point with the sizes its files have now, of those that are the committed ones by their
    GUIDs: a repair that was killed makes files longer. What they hold is proved by reading."""

    def sized(layer: LayerFile) -> LayerFile:
        try:
            now = layer_facts(folder.path, layer.file)
        except StandbyError:  # it is missing, or no disk: whoever looks at the point says so
            return layer
        return now if now.data_write_guid == layer.data_write_guid else layer

    def disk(part: PointDisk) -> PointDisk:
        return replace(part, chain=tuple(sized(layer) for layer in part.chain))

    return replace(point, disks=tuple(disk(part) for part in point.disks))
