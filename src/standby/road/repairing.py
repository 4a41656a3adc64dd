"""Healing damaged pieces of restore points in place (RULES 16)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from standby import digesting
from standby.digesting import PAGE, PIECE, DigestChain
from standby.disk import vhdx
from standby.errors import StandbyError
from standby.model.extent import Extent, Kind
from standby.model.point import PointDisk, RestorePoint
from standby.model.replica import LayerFile
from standby.road.baseline import open_digests
from standby.road.lease import WriterLease
from standby.road.points import disk_of
from standby.road.records import inner_path, layer_facts
from standby.road.replica import ReplicaFolder, encode_point
from standby.road.verifying import DiskVerdict, PointVerdict

ReadPiece = Callable[[str, int, int], bytes | None]
"""read_piece(disk id, offset, length): bytes from the source, another replica or a cache, which
may be wrong ones; None where there are none."""


@dataclass(slots=True)
class RepairReport:
    """What a repair did: bytes healed, and per disk the runs that nobody had right."""

    point_id: str
    healed_bytes: int = 0
    missing: dict[str, tuple[Extent, ...]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether everything that was damaged is healed."""
        return not self.missing and not self.problems


def repair(
    folder: ReplicaFolder, lease: WriterLease, verdict: PointVerdict, read_piece: ReadPiece
) -> RepairReport:
    """Write what `read_piece` has of the damaged pieces of a point, where its leaf is the recorded
    one, into the layer that holds the piece; data-write GUIDs stay.

    Disks whose digests are not sound, or whose files cannot be opened, are named in `problems`.
    Verify again afterwards: points that share a layer may be healed too.
    """
    lease.check()
    point = folder.point(verdict.point_id)
    report = RepairReport(point.id)
    for found in verdict.disks:
        disk = disk_of(point, found.disk_id)
        if disk is None or found.is_ok:
            continue
        try:
            missing = _repair_disk(folder, lease, point, disk, found, read_piece, report)
        except StandbyError as exc:
            lease.check()
            report.problems[found.disk_id] = str(exc)
            continue
        if missing:
            report.missing[found.disk_id] = tuple(missing)
        elif not found.damaged and found.problem:
            report.problems[found.disk_id] = found.problem
    return report


def _repair_disk(
    folder: ReplicaFolder,
    lease: WriterLease,
    point: RestorePoint,
    disk: PointDisk,
    verdict: DiskVerdict,
    read_piece: ReadPiece,
    report: RepairReport,
) -> list[Extent]:
    if not verdict.damaged:
        return []
    missing: list[Extent] = []
    with contextlib.ExitStack() as stack:
        paths = folder.digest_paths(point.id, disk.disk_id)
        digests = open_digests(paths, disk.virtual_size, bytes.fromhex(disk.root))
        stack.callback(digests.close)
        layers = [
            stack.enter_context(
                vhdx.open_vhdx(
                    inner_path(folder.path, layer.file), writable=True, keep_data_write_guid=True
                )
            )
            for layer in disk.chain
        ]
        for extent in verdict.damaged:
            for offset in range(extent.offset, extent.stop, PIECE):
                length = min(PIECE, disk.virtual_size - offset)
                data = read_piece(disk.disk_id, offset, length)
                if data is None or not _is_recorded(digests, offset, length, data):
                    _add(missing, Extent(offset, length))
                    continue
                lease.check()
                _write(layers, offset, data)
                report.healed_bytes += length
        for layer in layers:
            layer.flush()
    _record_sizes(folder, lease, disk)
    return missing


def _is_recorded(digests: DigestChain, offset: int, length: int, data: bytes) -> bool:
    """Whether the piece at `offset` has the leaf that was committed."""
    if len(data) != length:
        return False
    wanted = digests.leaves(offset // PAGE)[offset % PAGE // PIECE]
    return bool(digesting.leaves(data)[0] == wanted)


def _write(layers: Sequence[vhdx.VhdxDisk], offset: int, data: bytes) -> None:
    """Put each part of a piece into the newest layer that says anything of it.

    Where none does (the mapping itself was lost) it goes into the newest: that changes this point
    and those above it that read through, which lost the same, and none below.
    """
    view = memoryview(data)
    todo = [(offset, offset + len(data))]
    for layer in layers:
        left: list[tuple[int, int]] = []
        for start, stop in todo:
            for extent in layer.layer_extents(start, stop):
                if extent.kind is Kind.HOLE:
                    left.append((extent.offset, extent.stop))
                else:
                    part = view[extent.offset - offset : extent.stop - offset]
                    layer.write(extent.offset, part)
        todo = left
    for start, stop in todo:
        layers[0].write(start, view[start - offset : stop - offset])


def _record_sizes(folder: ReplicaFolder, lease: WriterLease, disk: PointDisk) -> None:
    """A block that had to be added made a file longer: every record of it says so from now on."""
    now = {
        layer.file: layer_facts(folder.path, layer.file)
        for layer in disk.chain
        if layer_facts(folder.path, layer.file) != layer
    }
    if not now:
        return

    def updated(chain: tuple[LayerFile, ...]) -> tuple[LayerFile, ...]:
        return tuple(
            now[layer.file]
            if layer.file in now and now[layer.file].data_write_guid == layer.data_write_guid
            else layer
            for layer in chain
        )

    for point in folder.points():
        disks = tuple(replace(part, chain=updated(part.chain)) for part in point.disks)
        if disks != point.disks:
            lease.write(folder.point_path(point.id), encode_point(replace(point, disks=disks)))


def _add(extents: list[Extent], extent: Extent) -> None:
    if extents and extents[-1].stop == extent.offset:
        extents[-1] = Extent(extents[-1].offset, extents[-1].length + extent.length)
    else:
        extents.append(extent)
