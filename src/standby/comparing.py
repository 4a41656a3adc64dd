"""What changed and what is zero: single passes over a disk's 4 KiB pieces.

Owns the kernel `blocks` together with `digesting`. Everything here releases the GIL, reads any
contiguous buffer, and takes the last piece as padded with zeros. Pieces are numbered from the
start of the buffer; runs are half-open and maximal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from standby._kernels import blocks
from standby._kernels.buffers import flat
from standby.digesting import PIECE
from standby.files import File

Buffer = Any
Runs = NDArray[np.int64]

ZERO = 0
DATA = 1

CAN_READ_FILES: bool = blocks.READS_FILES
"""Whether `FileScan` works here; where it does not (Windows), read and call `scan`."""

READ_CHUNK: int = blocks.READ_CHUNK
"""Bytes that `FileScan` reads and hashes at a time, and the room it needs to go on."""


def scan(
    data: Buffer, stored: NDArray[np.uint64], leaves_out: NDArray[np.uint64], runs_out: Runs
) -> int:
    """How many runs of changed pieces `data` has; they are the first rows of `runs_out`.

    One pass, while a piece is in the L1 cache: the zero test, the leaf of every piece into
    `leaves_out` (n,) uint64 (a zero piece has ZERO_LEAF and is not hashed), the comparison with
    `stored` (n,) uint64. `runs_out` (m, 3) int64 has rows (first piece, stop piece, kind), kind
    DATA = 1 or ZERO = 0; m >= n always suffices and is required. ValueError for wrong lengths
    and overlapping buffers. Thread-safe.
    """
    return blocks.scan(flat(data), stored, leaves_out, runs_out)


class FileScan:
    """`scan` over what files store of a disk, read on the way: one call goes on until everything
    is scanned or there is no room, without the GIL. Another thread does another scan.

    `windows` (n, 3) int64 are the parts to look at, ascending: (disk offset on a piece's border,
    stop, index of the first piece in the arrays of leaves). `segments` (m, 4) int64 say where their
    content is, ascending: (disk offset, length, file offset, index in `files`); what is in none of
    them is zeros. `stored` and `leaves` are (k,) uint64; `leaves` is changed for the pieces in
    windows only. ValueError for numbers that do not ascend, lie outside, or overlap.
    """

    def __init__(
        self,
        windows: Runs,
        segments: Runs,
        files: Sequence[File],
        stored: NDArray[np.uint64],
        leaves: NDArray[np.uint64],
    ) -> None:
        self._files = files
        descriptors = np.array([file.fd for file in files], np.int32)
        self._kernel = blocks.FileScan(windows, segments, descriptors, stored, leaves)

    def run(
        self, slot: Buffer, rows_out: Runs, leaves_out: NDArray[np.uint64], *, keeps: bool = True
    ) -> bool:
        """Go on; True when all of it is scanned. At least READ_CHUNK bytes of `slot` and as many
        rows as that has pieces bring it further.

        Then `made` says how many bytes of changed data lie at the start of `slot`, how many rows
        (disk offset, length, kind) in `rows_out` (n, 3) int64, and how many leaves of changed data
        in `leaves_out`, which is longer than the pieces in `slot`. Without `keeps` only the rows
        are made. A short or failing read raises DiskIO.
        """
        answer = self._kernel.run(slot, keeps, rows_out, leaves_out)
        if answer == blocks.READ_FAILED:
            index, offset, length, done, code = self._kernel.failure
            raise self._files[index].read_error(offset, length, done, code)
        return answer == blocks.ALL_DONE

    @property
    def made(self) -> tuple[int, int, int]:
        """(bytes, rows, leaves) of the last call."""
        return self._kernel.made

    @property
    def read(self) -> tuple[int, float]:
        """(bytes, seconds) that the last call read."""
        count, nanoseconds = self._kernel.read
        return count, nanoseconds / 1e9

    @property
    def place(self) -> tuple[int, int]:
        """(window, disk offset) where the next call goes on."""
        return self._kernel.place


def compact(data: Buffer, runs: Runs) -> int:
    """Move the DATA runs of `data` to its front, in order; returns the bytes kept.

    `runs` (k, 3) int64 as from `scan`. The last piece counts with the bytes it has. ValueError
    when the runs do not ascend within the data.
    """
    if not len(runs):
        return 0
    return blocks.compact(flat(data), np.ascontiguousarray(runs, np.int64))


def changed_runs(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> Runs:
    """(k, 2) int64: runs of positions where two arrays of leaves differ."""
    runs = np.empty(((len(a) + 1) // 2, 2), np.int64)
    return runs[: blocks.changed(a, b, runs)].copy()


def differing_extents(a: Buffer, b: Buffer, granularity: int = PIECE) -> Runs:
    """(k, 2) int64: runs of pieces of `granularity` bytes in which two equally long buffers
    differ."""
    first, second = flat(a), flat(b)
    runs = np.empty((_pieces(first, granularity) // 2 + 1, 2), np.int64)
    return runs[: blocks.differing(first, second, granularity, runs)].copy()


def runs_of_zero(data: Buffer, granularity: int = PIECE) -> Runs:
    """(k, 3) int64: all pieces of `data` as runs (first, stop, kind), kind 0 where they are
    zeros."""
    view = flat(data)
    runs = np.empty((_pieces(view, granularity), 3), np.int64)
    return runs[: blocks.zero_runs(view, granularity, runs)].copy()


def is_zero(data: Buffer) -> bool:
    """Whether all bytes are 0; leaves at the first that is not."""
    return blocks.is_zero(flat(data))


def aligned_buffer(length: int) -> NDArray[np.uint8]:
    """A new (length,) uint8 array that starts on a 4 KiB border; not cleared.

    Read into these: vectors that straddle cache lines cost `scan` a third of its speed in cache,
    and O_DIRECT wants the same alignment.
    """
    room = np.empty(length + PIECE, np.uint8)
    start = -room.ctypes.data % PIECE
    return room[start : start + length]


def kernel_variant() -> str:
    """The CPU variant in use: scalar, sse2, avx2 or avx512."""
    return blocks.variant()


def available_variants() -> tuple[str, ...]:
    """The CPU variants this machine runs, slowest first; STANDBY_KERNEL forces one."""
    return blocks.variants()


def _pieces(data: Buffer, granularity: int) -> int:
    if granularity < 1:
        raise ValueError(f"granularity must be positive, not {granularity}")
    return -(-memoryview(data).nbytes // granularity)
