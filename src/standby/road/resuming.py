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

import numpy as np

from standby import digesting, files
from standby.clock import Clock
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.disk import open_disk, vhdx
from standby.disk.chain import open_chain
from standby.errors import DiskCorrupt, DiskUnsupported, Fenced, ParentRefused, StandbyError
from standby.model.extent import Kind
from standby.ports import Progress, VirtualDisk
from standby.road import naming
from standby.road.baseline import Baseline
from standby.road.extent_log import KIND_DATA, KIND_ZERO, ExtentLog, Leaves, LogHeader, Rows
from standby.road.pages import (
    Mask,
    data_mask,
    open_layers,
    page_range,
    piece_mask,
    read_leaves,
    runs_of,
    zero_page,
)

if TYPE_CHECKING:
    from standby.road.partial import PartialDisk, PartialSpec

COPY_OF_CHAIN = "chain"
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

    @property
    def is_usable(self) -> bool:
        """Whether both its file and a log with a sound header are there."""
        return self.header is not None and "partial.vhdx" in self.kinds


def candidates(folder: Path) -> list[Candidate]:
    """Everything unfinished in a disk's folder, the newest generation first, of one generation
    the one with most in its log first."""
    found: dict[tuple[str, int], Candidate] = {}
    for path in folder.iterdir():
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
    partial = _continued(cls, folder, spec, found, sparse, clock)
    if partial is None:
        partial = _begun(cls, folder, spec, found, sparse, clock)
    try:
        partial.reread_open_ranges()
        _copy(partial, folder, found, progress)
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
        return vhdx.create_child(path, parent, parents=parents, sparse=sparse)
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
            rows, leaves = _rows_from(differs, actual, start, stop)
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


def _rows_from(mask: Mask, leaves: Leaves, start: int, stop: int) -> tuple[Rows, Leaves]:
    """The masked pieces of a page as rows, zero pieces as zeros, with the leaves of the others."""
    is_zero = mask & (leaves == ZERO_LEAF)
    rows: list[tuple[int, int, int]] = []
    for kind, part in ((KIND_ZERO, is_zero), (KIND_DATA, mask & ~is_zero)):
        for first, last in runs_of(part).tolist():
            offset = start + first * PIECE
            rows.append((offset, min(start + last * PIECE, stop) - offset, kind))
    rows.sort()
    return np.array(rows, dtype=np.int64).reshape(-1, 3), leaves[mask & ~is_zero]


# --- copying ---------------------------------------------------------------------------------


def _copy(
    partial: PartialDisk, folder: Path, found: Sequence[Candidate], progress: Progress | None
) -> None:
    """Do, or finish, the local copy that the log's header asks for."""
    log, size = partial.log, partial.spec.virtual_size
    if not log.header.copy_of or log.copied >= size:
        return
    if log.header.copy_of == COPY_OF_CHAIN:
        if partial.spec.copy_from:
            _copy_chain(partial, progress)
    else:
        for candidate in found:
            if f"{candidate.point_id}.{candidate.generation}" == log.header.copy_of:
                _copy_acknowledged(partial, folder, candidate, progress)
    partial.group_commit()
    log.append_copied(size)
    log.sync()


def _copy_chain(partial: PartialDisk, progress: Progress | None) -> None:
    """Fill a new base with an older chain's content, cut or extended with zeros (RULES 14)."""
    chain = partial.spec.copy_from
    size = partial.spec.virtual_size
    with contextlib.closing(open_disk(chain[0], parents=list(chain[1:]))) as source:
        limit = min(size, source.virtual_size)
        buffer = memoryview(bytearray(PAGE))
        for page_number in range(partial.log.copied // PAGE, -(-limit // PAGE)):
            start, stop = page_range(page_number, size)
            _copy_page(partial, source, start, min(stop, limit), stop, buffer)
            if partial.should_commit():
                _commit_copied(partial, stop)
                if progress is not None:
                    progress(stop, limit)


def _copy_page(
    partial: PartialDisk,
    source: VirtualDisk,
    start: int,
    limit: int,
    stop: int,
    buffer: memoryview,
) -> None:
    """Receive the stored, non-zero pieces of [start, limit) of the source as part of the new
    disk's page [start, stop). A piece that `limit` cuts is filled up with zeros."""
    mask = data_mask(source, start, limit)
    if not mask.any():
        return
    leaves = zero_page()
    whole = start + -(-(limit - start) // PIECE) * PIECE
    readable = min(whole, source.virtual_size)  # `limit` may cut a sector of the source
    read_leaves(source, start, readable, mask, leaves, buffer)
    last = (limit - start - 1) // PIECE
    if whole > limit and mask[last]:
        buffer[limit - start : whole - start] = bytes(whole - limit)
        digesting.leaves(buffer[last * PIECE : whole - start], leaves[last : last + 1])
    rows, row_leaves = _rows_from(mask & (leaves != ZERO_LEAF), leaves, start, stop)
    if len(rows):
        partial.receive(rows, row_leaves, _payload(rows, start, buffer))


def _payload(rows: Rows, start: int, buffer: memoryview) -> bytes:
    """The bytes of the data rows, in order, out of a page's buffer."""
    return b"".join(
        buffer[offset - start : offset - start + length]
        for offset, length, kind in rows.tolist()
        if kind == KIND_DATA
    )


def _commit_copied(partial: PartialDisk, offset: int) -> None:
    """A group commit of copied data, proven while it is still in memory."""
    partial.group_commit()
    partial.read_back()
    partial.log.append_copied(offset)
    partial.log.sync()


def _copy_acknowledged(
    partial: PartialDisk, folder: Path, older: Candidate, progress: Progress | None
) -> None:
    """Take over what a fenced writer's log acknowledges, wherever its file really holds it.

    Its writer may be alive and write on: nothing is believed but leaves that match. What does not
    is left out, and the mark does not pass it.
    """
    with contextlib.ExitStack() as stack:
        log = ExtentLog.open(log_path(folder, older.point_id, older.generation), writable=False)
        stack.callback(log.close)
        source: VirtualDisk | None = None
        with contextlib.suppress(StandbyError):
            path = partial_path(folder, older.point_id, older.generation)
            source = open_layers((path, *partial.spec.parent_chain))
            stack.callback(source.close)
        pages = log.pages()
        buffer = memoryview(bytearray(PAGE))
        for place, page_number in enumerate(pages[pages * PAGE >= partial.log.copied].tolist()):
            if source is not None:
                _copy_matching(partial, log, source, page_number, buffer)
            if partial.should_commit():
                _commit_copied(partial, page_number * PAGE)
                if progress is not None:
                    progress(place + 1, len(pages))
        partial.group_commit()
        if log.checkpoint_id == partial.log.checkpoint_id and log.mark:
            partial.mark(min(log.mark, _first_difference(partial, log)))


def _copy_matching(
    partial: PartialDisk,
    log: ExtentLog,
    source: VirtualDisk,
    page_number: int,
    buffer: memoryview,
) -> None:
    start, stop = page_range(page_number, partial.spec.virtual_size)
    wanted, mask = _logged(log, page_number)
    missing = mask & (wanted != partial.baseline.leaves(page_number))
    if not missing.any():
        return
    actual = zero_page()
    try:
        stored = missing & (data_mask(source, start, stop) | (wanted != ZERO_LEAF))
        read_leaves(source, start, stop, stored, actual, buffer)
    except StandbyError:
        return  # its file is in the middle of a change, or damaged: the source sends this again
    rows, leaves = _rows_from(missing & (actual == wanted), actual, start, stop)
    if len(rows):
        partial.receive(rows, leaves, _payload(rows, start, buffer))


def _logged(log: ExtentLog, page_number: int) -> tuple[Leaves, Mask]:
    leaves = zero_page()
    mask = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
    log.overlay(page_number, leaves, mask=mask)
    return leaves, mask


def _first_difference(partial: PartialDisk, log: ExtentLog) -> int:
    """The lowest offset that `log` acknowledges and the baseline has otherwise."""
    for page_number in log.pages().tolist():
        wanted, mask = _logged(log, page_number)
        differs = np.flatnonzero(mask & (wanted != partial.baseline.leaves(page_number)))
        if len(differs):
            return int(page_number) * PAGE + int(differs[0]) * PIECE
    return partial.spec.virtual_size
