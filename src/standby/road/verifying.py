"""Is a restore point what was committed? Every stored byte is read and compared with its digests.

The digests are believed only when their root is the one in the point's record (RULES 6); then each
piece that is wrong is named, and `repairing` can heal it from elsewhere. Where the digests are
damaged themselves, the disk is proved by what is left of them, down to the root in the record.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from standby.digesting import PAGE, PIECE, DigestChain, page_nodes
from standby.disk.vhdx import VhdxDisk
from standby.errors import OperationCancelled, SessionStopped, StandbyError
from standby.files import drop_cached
from standby.model.extent import Extent, Kind
from standby.model.point import PointDisk, RestorePoint
from standby.ports import Progress, VirtualDisk
from standby.road.pages import (
    Mask,
    data_mask,
    open_layers,
    page_range,
    read_leaves,
    runs_of,
    zero_page,
)
from standby.road.points import replicated_disks
from standby.road.rebuilding import (
    digests_of,
    mapped_in_order,
    read_pages,
    rebuild_digests,
    root_read,
    stored_pages,
)
from standby.road.replica import ReplicaFolder

__all__ = [
    "DiskVerdict",
    "PointVerdict",
    "read_pages",
    "rebuild_digests",
    "verify_point",
    "verify_replica",
]

_ALL = np.ones(PAGE // PIECE, dtype=np.bool_)


@dataclass(slots=True)
class DiskVerdict:
    """One disk of a point. `damaged` are runs of pieces that are not what was recorded (of whole
    pages, where their leaves are lost); `digests_ok` says that the digests have the recorded root
    and all leaves that were needed, else `digests_problem` what is wrong with them; `problem` what
    kept the disk's files from being read, '' if nothing."""

    disk_id: str
    damaged: tuple[Extent, ...] = ()
    digests_ok: bool = True
    root_ok: bool = True
    problem: str = ""
    bytes_read: int = 0
    digests_problem: str = ""

    @property
    def is_intact(self) -> bool:
        """Whether the disk is exactly what was committed, whatever its digests are."""
        return self.root_ok and not self.damaged and not self.problem

    @property
    def is_ok(self) -> bool:
        """Whether the disk is exactly what was committed, and provably so."""
        return self.is_intact and self.digests_ok


@dataclass(slots=True)
class PointVerdict:
    """What was found of one point. `record_problem` is what is wrong with its commit record, ''
    if nothing. `has_copy`: a copy that goes with the point's files stood in for it; without one
    nothing is known of its disks."""

    point_id: str
    disks: list[DiskVerdict] = field(default_factory=list)
    record_problem: str = ""
    has_copy: bool = False

    @property
    def is_ok(self) -> bool:
        """Whether every disk is what was committed, and provably so."""
        return not self.record_problem and all(disk.is_ok for disk in self.disks)

    @property
    def is_intact(self) -> bool:
        """Whether every disk is what was committed; at most digests are damaged."""
        return not self.record_problem and all(disk.is_intact for disk in self.disks)

    @property
    def root_ok(self) -> bool:
        """Whether the content of every disk has the recorded root."""
        return all(disk.root_ok for disk in self.disks)

    @property
    def digests_ok(self) -> bool:
        """Whether the digests of every disk have the recorded root."""
        return all(disk.digests_ok for disk in self.disks)

    @property
    def damaged(self) -> dict[str, tuple[Extent, ...]]:
        """The damaged runs by disk; disks without any are left out."""
        return {disk.disk_id: disk.damaged for disk in self.disks if disk.damaged}


def verify_point(
    folder: ReplicaFolder,
    point_id: str,
    *,
    device: bool = True,
    threads: int = 2,
    progress: Progress | None = None,
) -> PointVerdict:
    """Read every stored byte of the point and compare it with the digests committed with it.

    `device` drops cached pages first, so that the storage is read and not the memory. Raises
    NoSuchPoint; what is wrong with the files is in the verdict. Needs no lease.
    """
    point = folder.point(point_id)
    verdict = PointVerdict(point.id)
    for disk in replicated_disks(point):
        verdict.disks.append(_verified(folder, point, disk, None, device, threads, progress))
    return verdict


def verify_replica(
    folder: ReplicaFolder,
    *,
    device: bool = True,
    threads: int = 2,
    progress: Progress | None = None,
) -> list[PointVerdict]:
    """`verify_point` of all points, oldest first, each layer's bytes read once: of a point above
    one that was verified already only its own layer is read; damage below shows in both."""
    verdicts: list[PointVerdict] = []
    before: dict[str, tuple[RestorePoint, PointDisk, DiskVerdict]] = {}
    for point in folder.points():
        verdict = PointVerdict(point.id)
        for disk in replicated_disks(point):
            below = before.get(disk.disk_id)
            found = _verified(folder, point, disk, below, device, threads, progress)
            verdict.disks.append(found)
            before[disk.disk_id] = (point, disk, found)
        verdicts.append(verdict)
    return verdicts


# --- one disk --------------------------------------------------------------------------------


def _verified(
    folder: ReplicaFolder,
    point: RestorePoint,
    disk: PointDisk,
    below: tuple[RestorePoint, PointDisk, DiskVerdict] | None,
    device: bool,
    threads: int,
    progress: Progress | None,
) -> DiskVerdict:
    verdict = DiskVerdict(disk.disk_id)
    chain = folder.chain_paths(point, disk.disk_id)
    with contextlib.ExitStack() as stack:
        try:
            digests = digests_of(folder, point, disk)
            stack.callback(digests.close)
        except StandbyError as exc:
            verdict.digests_ok = False
            verdict.digests_problem = str(exc)
            digests = None
        try:
            if device:
                for path in chain:
                    drop_cached(path)
            opened = open_layers(chain)
            stack.callback(opened.close)
            if digests is None:
                root, verdict.bytes_read = root_read(opened, disk.virtual_size, threads, progress)
                verdict.root_ok = root.hex() == disk.root
                if not verdict.root_ok:
                    verdict.problem = f"its content has the root {root.hex()}, not {disk.root}"
                return verdict
            masks = None
            if below is not None and _is_above(disk, below[1], below[2]):
                with contextlib.suppress(StandbyError):  # lost: then all is read
                    older = digests_of(folder, below[0], below[1])
                    stack.callback(older.close)
                    masks = _LayerMasks(opened, digests, older)
            check = _Check(opened, disk.virtual_size, digests, masks, threads, progress)
            bad = check.run()
            verdict.bytes_read = check.bytes_read
            verdict.digests_ok = not check.digests_problem
            verdict.digests_problem = check.digests_problem
            if masks is not None and below is not None:
                bad = _joined(bad, _inherited(below[2].damaged, masks))
            verdict.damaged = tuple(bad)
            verdict.root_ok = not bad
        except (OperationCancelled, SessionStopped):
            raise  # by `progress`: whoever asked does not want to know, and nothing is damaged
        except StandbyError as exc:
            verdict.root_ok = False
            verdict.problem = str(exc)
    return verdict


def _is_above(disk: PointDisk, below: PointDisk, verdict: DiskVerdict) -> bool:
    """Whether this point's disk is one layer above the verified one's."""
    return (
        len(disk.chain) > 1
        and tuple(layer.file for layer in disk.chain[1:])
        == tuple(layer.file for layer in below.chain)
        and disk.virtual_size == below.virtual_size
        and not verdict.problem
    )


class _LayerMasks:
    """Which pieces of a point have to be read when the point below was verified: those of which
    its own layer holds anything, and those whose leaf is another than below."""

    def __init__(self, disk: VhdxDisk, digests: DigestChain, older: DigestChain) -> None:
        self._disk = disk
        self._digests = digests
        self._older = older

    def pages(self, size: int) -> set[int]:
        """Pages with any such piece."""
        found = _differing_pages(self._digests, self._older)
        for extent in self._disk.layer_extents(0, size):
            if extent.kind is not Kind.HOLE and extent.length:
                found.update(range(extent.offset // PAGE, (extent.stop - 1) // PAGE + 1))
        return found

    def wanted(self, page_number: int, start: int, stop: int) -> Mask:
        """(4096,) bool: the pieces to check."""
        try:
            mask = self._digests.leaves(page_number) != self._older.leaves(page_number)
        except StandbyError:  # leaves that are lost: the whole page, by its node
            return _ALL
        for extent in self._disk.layer_extents(start, stop):
            if extent.kind is not Kind.HOLE:
                first = (extent.offset - start) // PIECE
                mask[first : -(-(extent.stop - start) // PIECE)] = True
        return np.asarray(mask, dtype=np.bool_)


def _differing_pages(newer: DigestChain, older: DigestChain) -> set[int]:
    """Pages whose nodes are not the same in both."""
    mine = dict(zip(newer.page_numbers.tolist(), map(bytes, newer.nodes), strict=True))
    theirs = dict(zip(older.page_numbers.tolist(), map(bytes, older.nodes), strict=True))
    return {page for page in mine.keys() | theirs.keys() if mine.get(page) != theirs.get(page)}


def _inherited(damaged: Sequence[Extent], masks: _LayerMasks) -> list[Extent]:
    """Damage of the point below that shows through this point's layer."""
    found: list[Extent] = []
    read = masks.pages(masks._disk.virtual_size) if damaged else set()
    for extent in damaged:
        for page_number in range(extent.offset // PAGE, (extent.stop - 1) // PAGE + 1):
            start = page_number * PAGE
            stop = min(start + PAGE, masks._disk.virtual_size)
            bad = np.zeros(PAGE // PIECE, dtype=np.bool_)
            first = (max(extent.offset, start) - start) // PIECE
            bad[first : -(-(min(extent.stop, stop) - start) // PIECE)] = True
            if page_number in read:
                bad &= ~masks.wanted(page_number, start, stop)
            found += _extents(bad, start, stop)
    return found


class _Check:
    """Compares a disk's pages with their digests, some threads at a time."""

    def __init__(
        self,
        disk: VirtualDisk,
        size: int,
        digests: DigestChain,
        masks: _LayerMasks | None,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.bytes_read = 0
        self.digests_problem = ""
        self._disk = disk
        self._size = size
        self._digests = digests
        self._masks = masks
        self._threads = threads
        self._progress = progress
        self._lock = threading.Lock()

    def run(self) -> list[Extent]:
        """The damaged runs, ascending."""
        if self._masks is not None:
            pages: list[int] = sorted(self._masks.pages(self._size))
        else:
            stored = stored_pages(self._disk, self._size)
            pages = sorted(stored | set(self._digests.page_numbers.tolist()))
        found: list[Extent] = []
        with ThreadPoolExecutor(max(1, self._threads), thread_name_prefix="verify") as pool:
            for place, bad in enumerate(mapped_in_order(pool, self._check_page, pages), start=1):
                found += bad
                if self._progress is not None and (place % 16 == 0 or place == len(pages)):
                    self._progress(place * PAGE, len(pages) * PAGE)
        return _joined(found, [])

    def _check_page(self, page_number: int) -> list[Extent]:
        start, stop = page_range(page_number, self._size)
        mask = self._masks.wanted(page_number, start, stop) if self._masks else _ALL
        problem = ""
        try:
            expected = self._digests.leaves(page_number)
        except StandbyError as exc:
            problem, mask = str(exc), _ALL
        actual = zero_page()
        wanted = mask & data_mask(self._disk, start, stop)
        count = read_leaves(self._disk, start, stop, wanted, actual)
        with self._lock:
            self.bytes_read += count
            self.digests_problem = self.digests_problem or problem
        if problem:  # the node is proved by the root, and the disk by the node
            is_same = page_nodes(actual.reshape(1, -1)).tobytes() == self._digests.node(page_number)
            return [] if is_same else [Extent(start, stop - start)]
        return _extents(mask & (actual != expected), start, stop)


def _extents(bad: Mask, start: int, stop: int) -> list[Extent]:
    return [
        Extent(start + first * PIECE, min(start + last * PIECE, stop) - start - first * PIECE)
        for first, last in runs_of(bad).tolist()
    ]


def _joined(first: Sequence[Extent], second: Sequence[Extent]) -> list[Extent]:
    """Both, ascending, neighbours joined."""
    result: list[Extent] = []
    for extent in sorted(itertools.chain(first, second), key=lambda item: item.offset):
        if result and result[-1].stop == extent.offset:
            result[-1] = Extent(result[-1].offset, result[-1].length + extent.length)
        else:
            result.append(extent)
    return result
