"""Healing damaged pieces of restore points in place (RULES 16)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

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
from standby.road.rebuilding import mend_digests
from standby.road.record_copies import write_record
from standby.road.records import inner_path, layer_facts
from standby.road.replica import ReplicaFolder
from standby.road.verifying import DiskVerdict, PointVerdict

ReadPiece = Callable[[str, int, int], bytes | None]
"""read_piece(disk id, offset, length): bytes from the source, another replica or a cache, which
may be wrong ones; None where there are none."""


@dataclass(slots=True)
class RepairReport:
    """What a repair did: bytes healed, per disk the runs that nobody had right, and per disk the
    points whose digests were computed again from the disk and written anew. `is_record_restored`:
    the commit record was written again from its copy; `record_problem` why a lost one was not."""

    point_id: str
    healed_bytes: int = 0
    missing: dict[str, tuple[Extent, ...]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    digests: dict[str, tuple[str, ...]] = field(default_factory=dict)
    is_record_restored: bool = False
    record_problem: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether everything that was damaged is healed."""
        return not self.missing and not self.problems and not self.record_problem


def repair(
    folder: ReplicaFolder,
    lease: WriterLease,
    verdict: PointVerdict,
    read_piece: ReadPiece,
    *,
    sparse: bool = True,
) -> RepairReport:
    """Write what `read_piece` has of the damaged pieces of a point, where its leaf is the recorded
    one; data-write GUIDs stay. It goes into the layer that holds the piece, if the point that
    layer came with has the same leaf recorded there, else into this point's own: a mapping that
    is itself damaged must not make an older point pay.

    `sparse` False for hosts that refuse sparse files (RULES 13).
    Damaged digests are written anew first, from a disk that is proved (`mend_digests`). Disks whose
    digests nothing proves, or whose files cannot be opened, are named in `problems`.
    Verify again afterwards: points that share a layer may be healed too.
    """
    lease.check()
    sparse = sparse and not folder.record().host_folder
    point = folder.point(verdict.point_id)
    report = RepairReport(point.id)
    for found in verdict.disks:
        disk = disk_of(point, found.disk_id)
        if disk is None or found.is_ok:
            continue
        try:
            if not found.digests_ok:
                mended = mend_digests(folder, point, disk, lease.check)
                if mended:
                    report.digests[found.disk_id] = tuple(mended)
            missing = _repair_disk(folder, lease, point, disk, found, read_piece, report, sparse)
        except StandbyError as exc:
            lease.check()
            report.problems[found.disk_id] = str(exc)
            continue
        if missing:
            report.missing[found.disk_id] = tuple(missing)
        elif not found.damaged and found.problem and not _is_settled(folder, point, disk, found):
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
    sparse: bool,
) -> list[Extent]:
    if not verdict.damaged:
        if verdict.problem and verdict.root_ok:
            _settle(folder, lease, disk, sparse)
        return []
    missing: list[Extent] = []
    with contextlib.ExitStack() as stack:
        paths = folder.digest_paths(point.id, disk.disk_id)
        digests = open_digests(paths, disk.virtual_size, bytes.fromhex(disk.root))
        stack.callback(digests.close)
        layers = [_Layer(folder, stack, layer, disk.disk_id, sparse) for layer in disk.chain]
        for extent in verdict.damaged:
            for offset in range(extent.offset, extent.stop, PIECE):
                length = min(PIECE, disk.virtual_size - offset)
                data = read_piece(disk.disk_id, offset, length)
                leaf = _leaf_at(digests, offset)
                if data is None or len(data) != length or digesting.leaves(data)[0] != leaf:
                    _add(missing, Extent(offset, length))
                    continue
                lease.check()
                _write(layers, offset, data, leaf)
                report.healed_bytes += length
        for layer in layers:
            layer.disk.flush()
    _record_sizes(folder, lease, disk)
    return missing


class _Layer:
    """One file of the chain, open for writing alone, and what the point it came with recorded."""

    def __init__(
        self,
        folder: ReplicaFolder,
        stack: contextlib.ExitStack,
        layer: LayerFile,
        disk_id: str,
        sparse: bool,
    ) -> None:
        path = inner_path(folder.path, layer.file)
        self.disk = stack.enter_context(
            vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True, sparse=sparse)
        )
        self.disk.take_back_unowned()  # what a killed repair took and never committed
        self._digests: DigestChain | None = None
        for point in folder.points():
            part = disk_of(point, disk_id)
            if part is not None and part.chain[0].file == layer.file:
                with contextlib.suppress(StandbyError):
                    paths = folder.digest_paths(point.id, disk_id)
                    root = bytes.fromhex(part.root)
                    self._digests = open_digests(paths, part.virtual_size, root)
                    stack.callback(self._digests.close)
                break

    def may_hold(self, offset: int, leaf: np.uint64) -> bool:
        """Whether the layer's own point has that leaf recorded for the piece at `offset`."""
        return self._digests is not None and bool(_leaf_at(self._digests, offset) == leaf)


def _leaf_at(digests: DigestChain, offset: int) -> np.uint64:
    """What was committed for the piece at `offset`."""
    leaf: np.uint64 = digests.leaves(offset // PAGE)[offset % PAGE // PIECE]
    return leaf


def _write(layers: Sequence[_Layer], offset: int, data: bytes, leaf: np.uint64) -> None:
    """Put each part of a piece into the newest layer that says anything of it, where that is
    right for that layer's own point; else, or where no layer has it, into the first layer. That
    changes this point, and those above it that read through, and none below."""
    view = memoryview(data)
    todo = [(offset, offset + len(data))]
    own: list[tuple[int, int]] = []
    for layer in layers:
        left: list[tuple[int, int]] = []
        for start, stop in todo:
            for extent in layer.disk.layer_extents(start, stop):
                if extent.kind is Kind.HOLE:
                    left.append((extent.offset, extent.stop))
                elif layer.may_hold(offset, leaf):
                    part = view[extent.offset - offset : extent.stop - offset]
                    layer.disk.write(extent.offset, part)
                else:
                    own.append((extent.offset, extent.stop))
        todo = left
    for start, stop in (*own, *todo):
        layers[0].disk.write(start, view[start - offset : stop - offset])


def _settle(folder: ReplicaFolder, lease: WriterLease, disk: PointDisk, sparse: bool) -> None:
    """Record the size of files that a killed repair had made longer: they are the ones that were
    committed, by their GUIDs, and so is what they hold."""
    for layer in disk.chain:
        now = layer_facts(folder.path, layer.file)
        if now == layer or now.data_write_guid != layer.data_write_guid:
            continue
        lease.check()
        path = inner_path(folder.path, layer.file)
        with vhdx.open_vhdx(
            path, writable=True, keep_data_write_guid=True, sparse=sparse
        ) as opened:
            opened.take_back_unowned()
    _record_sizes(folder, lease, disk)


def _is_settled(
    folder: ReplicaFolder, point: RestorePoint, disk: PointDisk, verdict: DiskVerdict
) -> bool:
    """Whether nothing is left of a problem that was the files' sizes alone."""
    now = disk_of(folder.point(point.id), disk.disk_id)
    return (
        verdict.root_ok
        and now is not None
        and all(layer_facts(folder.path, layer.file) == layer for layer in now.chain)
    )


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
            write_record(folder, lease, replace(point, disks=disks))


def _add(extents: list[Extent], extent: Extent) -> None:
    if extents and extents[-1].stop == extent.offset:
        extents[-1] = Extent(extents[-1].offset, extents[-1].length + extent.length)
    else:
        extents.append(extent)
