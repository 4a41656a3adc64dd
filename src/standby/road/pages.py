"""Reading and hashing parts of a 16 MiB page of a disk, piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby import comparing, digesting
from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.disk import RawDisk
from standby.disk.chain import open_chain
from standby.disk.vhdx import VhdxDisk
from standby.model.extent import Extent, Kind
from standby.ports import VirtualDisk
from standby.road.extent_log import KIND_DATA, KIND_ZERO, Rows
from standby.units import KiB, MiB

Mask = npt.NDArray[np.bool_]
Leaves = npt.NDArray[np.uint64]
Runs = npt.NDArray[np.int64]

_READ_SIZE = MiB
"""Bytes read and then hashed at once: small enough to be in the L2 cache when hashed."""

_SCRATCH_SIZE = 256 * KiB
"""Bytes read at once where only leaves are wanted. Reading back 2 GB through 256 KiB took two
thirds of the time of reading it to 16 MiB: the copy does not leave the L2 cache."""

_PLAIN_MIN = 512 * KiB
"""So much is read by one call of a kernel where plain files hold it. 256 KiB at a time from here
cost 45 us of Python each, a fifth of a target mover's time, in which the thread that writes often
waited for the interpreter."""

_local = threading.local()

_GAP_PIECES = 8
"""A gap of so many pieces costs less to read and hash (8 leaves: under 2 us) than another call."""


def page_range(page_number: int, virtual_size: int) -> tuple[int, int]:
    """(start, stop) bytes of a page."""
    return page_number * PAGE, min((page_number + 1) * PAGE, virtual_size)


def zero_page() -> Leaves:
    """(4096,) zero leaves, a fresh array."""
    return np.full(LEAVES_PER_PAGE, ZERO_LEAF, dtype=np.uint64)


_ZERO_PAGE = zero_page()
_KEPT: Leaves = np.empty(_SCRATCH_SIZE // PIECE + 1, dtype=np.uint64)


def runs_of(mask: Mask) -> Runs:
    """(k, 2) int64 half-open runs of True."""
    edges = np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def piece_mask(extents: Iterable[Extent], start: int, kinds: tuple[Kind, ...]) -> Mask:
    """(4096,) bool: pieces of the page at `start` that have any byte in an extent of `kinds`."""
    mask = np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
    for extent in extents:
        if extent.kind in kinds:
            first = (extent.offset - start) // PIECE
            mask[first : -(-(extent.stop - start) // PIECE)] = True
    return mask


def data_mask(disk: VirtualDisk, start: int, stop: int) -> Mask:
    """(4096,) bool: pieces of the page at `start` that are stored; the others read as zeros.
    Beyond the disk's own end nothing is."""
    stop = min(stop, disk.virtual_size)
    if start >= stop:
        return np.zeros(LEAVES_PER_PAGE, dtype=np.bool_)
    return piece_mask(disk.extents(start, stop), start, (Kind.DATA,))


def open_layers(files: Sequence[Path]) -> VhdxDisk:
    """The disk whose layers are these files, newest first, read-only; closing it closes all."""
    return open_chain(files[0], parents=files[1:])


def _joined(runs: Runs) -> Runs:
    """Runs with gaps of at most 8 pieces closed."""
    if len(runs) < 2:
        return runs
    cuts = np.flatnonzero(runs[1:, 0] - runs[:-1, 1] > _GAP_PIECES)
    return np.stack([runs[np.append(0, cuts + 1), 0], runs[np.append(cuts, -1), 1]], axis=1)


def _scratch() -> memoryview:
    """This thread's own piece of memory."""
    if not hasattr(_local, "scratch"):
        _local.scratch = comparing.aligned_buffer(_SCRATCH_SIZE).data
    view: memoryview = _local.scratch
    return view


def _scratch_rows() -> Runs:
    """This thread's own table for what a kernel says of a page."""
    if not hasattr(_local, "rows"):
        _local.rows = np.empty((2 * LEAVES_PER_PAGE, 3), dtype=np.int64)
    rows: Runs = _local.rows
    return rows


def read_leaves(
    disk: VirtualDisk,
    start: int,
    stop: int,
    wanted: Mask,
    leaves: Leaves,
    buffer: memoryview | None = None,
) -> int:
    """Read the `wanted` pieces of the page [start, stop) to their places in `buffer` (16 MiB) and
    put their leaves into `leaves` (4096,); the bytes read. Small gaps are read too: in them leaves
    and buffer are those of the disk as well. Without a buffer only the leaves are kept, and all
    reads go through one small piece of memory that stays in the cache."""
    runs = _joined(runs_of(wanted))
    if buffer is None and int((runs[:, 1] - runs[:, 0]).sum()) * PIECE >= _PLAIN_MIN:
        found = _read_files(disk, start, stop, runs, leaves)
        if found is not None:
            return found
    total = 0
    scratch = _scratch() if buffer is None else None
    step = _READ_SIZE if scratch is None else _SCRATCH_SIZE
    for first, last in runs.tolist():
        position, end = first * PIECE, min(last * PIECE, stop - start)
        while position < end:
            size = min(step, end - position)
            if buffer is not None:
                view = buffer[position : position + size]
            else:
                assert scratch is not None
                view = scratch[:size]
            disk.read_into(start + position, view)
            piece = position // PIECE
            digesting.leaves(view, leaves[piece : piece + -(-size // PIECE)])
            position += size
            total += size
    return total


def proved_leaves(disk: VirtualDisk, page_number: int, node: bytes) -> Leaves | None:
    """(4096,) leaves of what the disk holds of a page; None where they do not make `node`."""
    start, stop = page_range(page_number, disk.virtual_size)
    leaves = zero_page()
    read_leaves(disk, start, stop, data_mask(disk, start, stop), leaves)
    return leaves if digesting.page_nodes(leaves.reshape(1, -1)).tobytes() == node else None


def _read_files(disk: VirtualDisk, start: int, stop: int, runs: Runs, leaves: Leaves) -> int | None:
    """As `read_leaves` of these runs of pieces, without a buffer, by one call of a kernel; None
    where plain files do not hold them."""
    if not comparing.CAN_READ_FILES or not isinstance(disk, VhdxDisk | RawDisk):
        return None
    windows = np.empty((len(runs), 3), dtype=np.int64)
    windows[:, :2] = np.minimum(start + runs * PIECE, stop)
    windows[:, 2] = runs[:, 0]
    ranges = disk.file_ranges(int(windows[0, 0]), int(windows[-1, 1]))
    if ranges is None:
        return None
    scan = comparing.FileScan(windows, ranges.rows, ranges.files, _ZERO_PAGE, leaves)
    total, is_done = 0, False
    while not is_done:
        is_done = scan.run(_scratch(), _scratch_rows(), _KEPT, keeps=False)
        total += scan.read[0]
    return total


def rows_from(mask: Mask, leaves: Leaves, start: int, stop: int) -> tuple[Rows, Leaves]:
    """The masked pieces of a page as rows, zero pieces as zeros, with the leaves of the others."""
    is_zero = mask & (leaves == ZERO_LEAF)
    rows: list[tuple[int, int, int]] = []
    for kind, part in ((KIND_ZERO, is_zero), (KIND_DATA, mask & ~is_zero)):
        for first, last in runs_of(part).tolist():
            offset = start + first * PIECE
            rows.append((offset, min(start + last * PIECE, stop) - offset, kind))
    rows.sort()
    return np.array(rows, dtype=np.int64).reshape(-1, 3), leaves[mask & ~is_zero]
