"""Opening a partial disk: which file to go on with, what of it holds, what to copy into a new one.

The one danger is content in the file that the log does not describe: the source would compare its
disk with the log's leaves, find them equal and send nothing, and the replica would be wrong. So
open ranges are read again before anything else, and the work of a writer that may still be alive
is only ever copied piece by piece against its leaves, or cloned and read as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from standby import files
from standby.clock import Clock
from standby.digesting import PAGE
from standby.disk import vhdx
from standby.disk.chain import open_chain
from standby.errors import DiskCorrupt, DiskUnsupported, Fenced, ParentRefused
from standby.model.extent import Kind
from standby.ports import Progress
from standby.road import naming
from standby.road.baseline import Baseline
from standby.road.copying import COPY_OF_CHAIN, copy_local
from standby.road.extent_log import ExtentLog, LogHeader
from standby.road.pages import (
    data_mask,
    open_layers,
    page_range,
    piece_mask,
    read_leaves,
    rows_from,
    zero_page,
)

if TYPE_CHECKING:
    from standby.road.partial import PartialDisk, PartialSpec

_PAGES_PER_SYNC = 64
_UNUSABLE = (DiskCorrupt, DiskUnsupported, ParentRefused)


def partial_path(folder: Path, point_id: str, generation: int) -> Path:
    """The unfinished disk file."""
    return folder / f"{point_id}.{generation}.partial.vhdx"


def log_path(folder: Path, point_id: str, generation: int) -> Path:
    """Its extent log."""
    return folder / f"{point_id}.{generation}.extents"


def digests_path(folder: Path, point_id: str, generation: int) -> Path:
    """Its digests, once it is sealed."""
    return folder / f"{point_id}.{generation}.partial.digests"


def remove_partial(folder: Path, point_id: str, generation: int) -> None:
    """Remove a partial disk's files; the log first, because without it nothing can be resumed."""
    files.remove_durably(log_path(folder, point_id, generation))
    files.remove_durably(partial_path(folder, point_id, generation))
    files.remove_durably(digests_path(folder, point_id, generation))


@dataclass(slots=True)
class Candidate:
    """What is left of one transfer into this disk."""

    point_id: str
    generation: int
    kinds: set[str] = field(default_factory=set)
    header: LogHeader | None = None
    logged_bytes: int = 0

    def disk_path(self, folder: Path) -> Path:
        """Its disk file."""
        return partial_path(folder, self.point_id, self.generation)

    def log_path(self, folder: Path) -> Path:
        """Its extent log."""
        return log_path(folder, self.point_id, self.generation)

    @property
    def is_usable(self) -> bool:
        """Whether both its file and a log with a sound header are there."""
        return self.header is not None and "partial.vhdx" in self.kinds


def candidates(folder: Path) -> list[Candidate]:
    """Everything unfinished in a disk's folder, the newest generation first, of one generation
    the one with most in its log first."""
    found: dict[tuple[str, int], Candidate] = {}
    for path in files.listed(folder):
        name = naming.partial_name(path.name)
        if name is not None and name.kind in ("partial.vhdx", "partial.digests", "extents"):
            key = (name.point, name.generation)
            found.setdefault(key, Candidate(*key)).kinds.add(name.kind)
    for candidate in found.values():
        if "extents" in candidate.kinds:
            path = log_path(folder, candidate.point_id, candidate.generation)
            with contextlib.suppress(DiskCorrupt):
                log = ExtentLog.open(path, writable=False)
                candidate.header, candidate.logged_bytes = log.header, log.logged_bytes
                log.close()
    return sorted(
        found.values(), key=lambda item: (item.generation, item.logged_bytes), reverse=True
    )


def fits(header: LogHeader, spec: PartialSpec) -> bool:
    """Whether a log was begun for the same disk on top of the same state."""
    parent_root = spec.parent_root.hex() if spec.parent_chain else ""
    return (
        header.disk_id == spec.disk_id
        and header.virtual_size == spec.virtual_size
        and header.parent_root == parent_root
    )


def open_partial(
    cls: type[PartialDisk],
    folder: Path,
    spec: PartialSpec,
    sparse: bool,
    clock: Clock,
    progress: Progress | None,
) -> PartialDisk:
    """See `PartialDisk.open`."""
    files.make_folder_durably(folder)
    found = candidates(folder)
    if found and found[0].generation > spec.generation:
        raise Fenced(folder.parent.name, spec.generation, found[0].generation)
    if spec.parent_chain:
        # A parent that cannot be read now is no reason to discard what builds on it.
        open_layers(spec.parent_chain).close()
    partial = _continued(cls, folder, spec, found, sparse, clock)
    if partial is None:
        partial = _begun(cls, folder, spec, found, sparse, clock)
    try:
        partial.reread_open_ranges()
        copy_local(partial, folder, found, progress)
        if partial.log.checkpoint_id != spec.checkpoint_id:
            partial.log.append_checkpoint(spec.checkpoint_id)
            partial.log.sync()
        for candidate in found:
            if (candidate.point_id, candidate.generation) != (partial.point_id, spec.generation):
                remove_partial(folder, candidate.point_id, candidate.generation)
    except BaseException:
        partial.close()
        raise
    return partial


def _continued(
    cls: type[PartialDisk],
    folder: Path,
    spec: PartialSpec,
    found: Sequence[Candidate],
    sparse: bool,
    clock: Clock,
) -> PartialDisk | None:
    """The partial disk of our own generation that fits, open for writing."""
    for candidate in found:
        if candidate.generation != spec.generation or not candidate.is_usable:
            continue
        assert candidate.header is not None
        if not fits(candidate.header, spec):
            continue
        path = partial_path(folder, candidate.point_id, candidate.generation)
        try:
            disk = _open_writable(path, spec, sparse)
        except _UNUSABLE:
            continue
        try:
            log = ExtentLog.open(log_path(folder, candidate.point_id, candidate.generation))
            return cls(folder, spec, disk, log, clock)
        except BaseException:
            disk.close()
            raise
    return None


def _open_writable(path: Path, spec: PartialSpec, sparse: bool) -> vhdx.VhdxDisk:
    disk = open_chain(path, writable=True, parents=spec.parent_chain, sparse=sparse)
    if disk.virtual_size != spec.virtual_size or (
        disk.logical_sector_size != spec.logical_sector_size
    ):
        found = f"{disk.virtual_size} bytes, sectors of {disk.logical_sector_size}"
        disk.close()
        raise DiskCorrupt(str(path), "the partial disk is of another size", 0, found)
    try:
        # What a killed process took and never committed must not stay in the restore point.
        disk.take_back_unowned()
    except BaseException:
        disk.close()
        raise
    return disk


def _begun(
    cls: type[PartialDisk],
    folder: Path,
    spec: PartialSpec,
    found: Sequence[Candidate],
    sparse: bool,
    clock: Clock,
) -> PartialDisk:
    """A new partial disk, which knows what it has to be filled from."""
    older = next(
        (
            item
            for item in found
            if item.generation < spec.generation
            and item.is_usable
            and item.header is not None
            and fits(item.header, spec)
        ),
        None,
    )
    point_id, copy_of = spec.point_id, COPY_OF_CHAIN if spec.copy_from else ""
    if older is not None:
        point_id, copy_of = older.point_id, f"{older.point_id}.{older.generation}"
    remove_partial(folder, point_id, spec.generation)
    path = partial_path(folder, point_id, spec.generation)
    open_ranges: list[tuple[int, int]] = []
    disk: vhdx.VhdxDisk | None = None
    if older is not None and files.clone(
        partial_path(folder, older.point_id, older.generation), path
    ):
        try:
            disk = _open_writable(path, spec, sparse)
            open_ranges = [(0, spec.virtual_size)]
        except _UNUSABLE:
            files.remove_durably(path)
    if disk is None:
        disk = _created(path, spec, sparse)
    header = LogHeader(
        spec.disk_id,
        point_id,
        spec.generation,
        spec.checkpoint_id,
        spec.virtual_size,
        spec.parent_root.hex() if spec.parent_chain else "",
        copy_of,
    )
    try:
        files.sync_folder(folder)
        log = ExtentLog.create(log_path(folder, point_id, spec.generation), header, open_ranges)
        return cls(folder, spec, disk, log, clock)
    except BaseException:
        disk.close()
        raise


def _created(path: Path, spec: PartialSpec, sparse: bool) -> vhdx.VhdxDisk:
    if spec.parent_chain:
        parent, *parents = spec.parent_chain
        on_host = spec.parent_on_host or None
        return vhdx.create_child(
            path, parent, parents=parents, parent_path_on_host=on_host, sparse=sparse
        )
    return vhdx.create(
        path,
        spec.virtual_size,
        logical_sector_size=spec.logical_sector_size,
        physical_sector_size=spec.physical_sector_size,
        page83=spec.page83 or None,
        sparse=sparse,
    )


# --- reading again ---------------------------------------------------------------------------


def reread(disk: vhdx.VhdxDisk, log: ExtentLog, baseline: Baseline) -> int:
    """Log what this layer holds within the log's open ranges wherever that is not what the
    baseline says; the lowest offset where it was not (beyond the disk if nowhere).

    Reads what the layer stores there and nothing else.
    """
    size = log.header.virtual_size
    lowest = size + 1
    if not log.open_ranges:
        return lowest
    # What a killed process wrote may be in memory only: it is stable before the log says so.
    disk.file.sync()
    buffer = memoryview(bytearray(PAGE))
    for count, page_number in enumerate(_pages_of(log.open_ranges, disk), start=1):
        start, stop = page_range(page_number, size)
        present = piece_mask(disk.layer_extents(start, stop), start, (Kind.DATA, Kind.ZERO))
        if not present.any():
            continue
        actual = zero_page()
        read_leaves(disk, start, stop, present & data_mask(disk, start, stop), actual, buffer)
        known = baseline.leaves(page_number)
        differs = present & (actual != known)
        if differs.any():
            rows, leaves = rows_from(differs, actual, start, stop)
            log.append(rows, leaves)
            lowest = min(lowest, int(rows[0, 0]))
        if count % _PAGES_PER_SYNC == 0:
            log.sync()
    return lowest


def _pages_of(ranges: Sequence[tuple[int, int]], disk: vhdx.VhdxDisk) -> Iterator[int]:
    """Numbers of the pages in `ranges` of which the layer holds anything, ascending."""
    done = -1
    for start, stop in sorted(ranges):
        for extent in disk.layer_extents(start, min(stop, disk.virtual_size)):
            if extent.kind is Kind.HOLE or extent.length == 0:
                continue
            first = max(extent.offset // PAGE, done + 1)
            last = (extent.stop - 1) // PAGE
            yield from range(first, last + 1)
            done = max(done, last)
