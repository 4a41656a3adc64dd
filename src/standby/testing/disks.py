"""Disks for tests: one in memory with faults on demand, and builders of content from a seed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from standby.disk.raw import check_range
from standby.errors import DiskFull, DiskIO, StandbyError
from standby.model.extent import Extent, Kind, coalesced
from standby.ports import Buffer, VirtualDisk, WritableDisk
from standby.units import KiB

_PAGE = 64 * KiB


@dataclass
class Fault:
    """A failure of `operation` ('read', 'write', 'zero' or 'flush') wherever it touches
    [offset, offset + length)."""

    operation: str
    offset: int = 0
    length: int = 1 << 62
    error: int = errno.EIO
    short: bool = False
    """A read stops at `offset`, as at the end of a file cut short; a write stores what comes
    before `offset` and fails then."""
    times: int = -1
    """How often it strikes; -1: always."""
    struck: int = field(default=0, init=False)


class MemoryDisk:
    """A WritableDisk in memory, sparse, with faults on demand.

    `faults` strike as described in `Fault`. `hook(operation, offset, length)` runs before every
    operation: a test blocks it on an event to make the disk slow, or counts calls. `crashed`
    gives the disk as a power cut would leave it.
    """

    def __init__(
        self,
        virtual_size: int,
        *,
        logical_sector_size: int = 512,
        physical_sector_size: int = 4096,
        name: str = "memory",
    ) -> None:
        if virtual_size < 0 or virtual_size % logical_sector_size:
            raise ValueError(f"{virtual_size} bytes are not whole sectors of {logical_sector_size}")
        self.path = Path(name)
        self.virtual_size = virtual_size
        self.logical_sector_size = logical_sector_size
        self.physical_sector_size = physical_sector_size
        self.writable = True
        self.is_closed = False
        self.faults: list[Fault] = []
        self.hook: Callable[[str, int, int], None] | None = None
        self.calls: dict[str, int] = {}
        self._pages: dict[int, bytearray] = {}
        self._kinds: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
        self._stable: dict[int, tuple[bytes, bytes] | None] = {}

    # --- faults ---

    def fail(
        self,
        operation: str,
        offset: int = 0,
        length: int = 1 << 62,
        *,
        error: int = errno.EIO,
        short: bool = False,
        times: int = -1,
    ) -> Fault:
        """Add a fault; the one added is returned, so that it can be removed from `faults`."""
        fault = Fault(operation, offset, length, error, short, times)
        self.faults.append(fault)
        return fault

    def _enter(self, operation: str, offset: int, length: int) -> Fault | None:
        self.calls[operation] = self.calls.get(operation, 0) + 1
        if self.hook is not None:
            self.hook(operation, offset, length)
        for fault in self.faults:
            if (
                fault.operation == operation
                and fault.struck != fault.times
                and (offset < fault.offset + fault.length and fault.offset < offset + length)
            ):
                fault.struck += 1
                return fault
        return None

    def _error(self, fault: Fault, operation: str, offset: int, length: int) -> StandbyError:
        if fault.error in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(str(self.path), length, 0)
        reason = os.strerror(fault.error)
        if fault.short:
            reason = f"file ends after {max(0, fault.offset - offset)} bytes"
        return DiskIO(str(self.path), operation, offset, length, reason)

    # --- VirtualDisk ---

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """DATA where written, ZERO where zeroed, HOLE elsewhere."""
        stop = self.virtual_size if stop is None else stop
        check_range(self.path, start, stop - start, self.virtual_size, self.logical_sector_size)
        return coalesced(self._ranges(start, stop))

    def _ranges(self, start: int, stop: int) -> Iterator[Extent]:
        sector = self.logical_sector_size
        position = start
        for number in sorted(self._kinds):
            first, last = max(start, number * _PAGE), min(stop, (number + 1) * _PAGE)
            if last <= first:
                continue
            if first > position:
                yield Extent(position, first - position, Kind.HOLE)
            at = number * _PAGE
            kinds = self._kinds[number][(first - at) // sector : (last - at) // sector]
            cuts = (np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist()
            for run, end in pairwise([0, *cuts, len(kinds)]):
                kind = Kind(int(kinds[run]))
                yield Extent(first + run * sector, (end - run) * sector, kind)
            position = last
        if position < stop:
            yield Extent(position, stop - position, Kind.HOLE)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer`, unless a fault strikes."""
        view = memoryview(buffer).cast("B")
        check_range(self.path, offset, len(view), self.virtual_size, self.logical_sector_size)
        fault = self._enter("read", offset, len(view))
        if fault is not None:
            raise self._error(fault, "read", offset, len(view))
        for number, first, last in _pages(offset, offset + len(view)):
            page = self._pages.get(number)
            at = number * _PAGE
            view[first - offset : last - offset] = (
                bytes(last - first) if page is None else page[first - at : last - at]
            )

    def write(self, offset: int, data: Buffer) -> None:
        """Store `data`, unless a fault strikes."""
        view = memoryview(data).cast("B")
        check_range(self.path, offset, len(view), self.virtual_size, self.logical_sector_size)
        fault = self._enter("write", offset, len(view))
        if fault is not None:
            if fault.short:
                done = max(0, fault.offset - offset) & -self.logical_sector_size
                self._store(offset, view[:done], Kind.DATA)
            raise self._error(fault, "write", offset, len(view))
        self._store(offset, view, Kind.DATA)

    def zero(self, offset: int, length: int) -> None:
        """Make the range a ZERO extent, unless a fault strikes."""
        check_range(self.path, offset, length, self.virtual_size, self.logical_sector_size)
        fault = self._enter("zero", offset, length)
        if fault is not None:
            raise self._error(fault, "zero", offset, length)
        for _, first, last in _pages(offset, offset + length):
            self._store(first, memoryview(bytes(last - first)), Kind.ZERO)

    def flush(self) -> None:
        """Make what was written survive `crashed`, unless a fault strikes."""
        fault = self._enter("flush", 0, 1)
        if fault is not None:
            raise self._error(fault, "flush", 0, 0)
        self._stable.clear()

    def close(self) -> None:
        """Flush; the content stays readable for the test."""
        if not self.is_closed:
            self.is_closed = True
            self.flush()

    def _store(self, offset: int, view: memoryview, kind: Kind) -> None:
        for number, first, last in _pages(offset, offset + len(view)):
            at = number * _PAGE
            page, kinds = self._pages.get(number), self._kinds.get(number)
            if page is None or kinds is None:
                self._stable.setdefault(number, None)
                page = self._pages[number] = bytearray(_PAGE)
                kinds = np.zeros(_PAGE // self.logical_sector_size, np.uint8)
                self._kinds[number] = kinds
            elif number not in self._stable:
                self._stable[number] = (bytes(page), kinds.tobytes())
            page[first - at : last - at] = view[first - offset : last - offset]
            sector = self.logical_sector_size
            kinds[(first - at) // sector : (last - at) // sector] = kind

    def crashed(self, seed: int) -> MemoryDisk:
        """A disk as a power cut leaves this one: what was flushed, and of every sector written
        since either the old or the new value, by `seed`."""
        rng = np.random.default_rng(seed)
        sector = self.logical_sector_size
        left = MemoryDisk(
            self.virtual_size,
            logical_sector_size=sector,
            physical_sector_size=self.physical_sector_size,
            name=str(self.path),
        )
        for number, page in self._pages.items():
            kinds = self._kinds[number].copy()
            content = np.frombuffer(bytes(page), np.uint8).reshape(-1, sector).copy()
            if number in self._stable:
                before = self._stable[number] or (bytes(_PAGE), bytes(_PAGE // sector))
                lost = rng.random(len(kinds)) < 0.5
                content[lost] = np.frombuffer(before[0], np.uint8).reshape(-1, sector)[lost]
                kinds[lost] = np.frombuffer(before[1], np.uint8)[lost]
            left._pages[number] = bytearray(content.tobytes())
            left._kinds[number] = kinds
        return left


def _pages(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(page number, first, last) of the parts of [start, stop) by page."""
    while start < stop:
        number = start // _PAGE
        last = min(stop, (number + 1) * _PAGE)
        yield number, start, last
        start = last


# --- builders --------------------------------------------------------------------------------


def random_bytes(length: int, seed: int) -> bytes:
    """`length` bytes that do not compress, the same for the same seed."""
    return np.random.default_rng(seed).bytes(length)


@dataclass(frozen=True)
class Operation:
    """One step of a random workload: 'write' with its bytes, 'zero' or 'flush'."""

    name: str
    offset: int = 0
    length: int = 0
    data: bytes = b""

    def apply(self, disk: WritableDisk, content: bytearray | None = None) -> None:
        """Do it to `disk`, and to the plain bytes that `disk` should equal."""
        if self.name == "write":
            disk.write(self.offset, self.data)
        elif self.name == "zero":
            disk.zero(self.offset, self.length)
        else:
            disk.flush()
        if content is not None and self.length:
            content[self.offset : self.offset + self.length] = self.data or bytes(self.length)


def random_operations(
    seed: int,
    virtual_size: int,
    count: int,
    *,
    sector: int = 512,
    length_max: int = 256 * KiB,
    around: tuple[int, ...] = (),
) -> Iterator[Operation]:
    """`count` operations: writes of random bytes, of zeros, zeroing, now and then a flush.

    Lengths go from one sector to `length_max`, evenly by magnitude. Offsets named in `around`
    (block borders, say) attract every third operation.
    """
    rng = np.random.default_rng(seed)
    sectors = virtual_size // sector
    length_bits = max(1, (length_max // sector).bit_length())
    for _ in range(count):
        length = int(rng.integers(1, 1 << int(rng.integers(1, length_bits + 1))))
        start = int(rng.integers(0, sectors))
        if around and rng.random() < 1 / 3:
            start = int(rng.choice(around)) // sector - int(rng.integers(0, length + 1))
        start = min(max(start, 0), sectors - 1)
        length = min(length, sectors - start, length_max // sector)
        choice = rng.random()
        if choice < 0.05:
            yield Operation("flush")
        elif choice < 0.25:
            yield Operation("zero", start * sector, length * sector)
        elif choice < 0.32:
            yield Operation("write", start * sector, length * sector, bytes(length * sector))
        else:
            data = rng.bytes(length * sector)
            yield Operation("write", start * sector, length * sector, data)


def fill(disk: WritableDisk, seed: int, count: int = 40, **options: Any) -> None:
    """Do `count` random operations to `disk`."""
    for operation in random_operations(
        seed, disk.virtual_size, count, sector=disk.logical_sector_size, **options
    ):
        operation.apply(disk)


def content(disk: VirtualDisk) -> bytes:
    """All bytes of a (small) disk."""
    data = bytearray(disk.virtual_size)
    disk.read_into(0, data)
    return bytes(data)


def check_extents(disk: VirtualDisk) -> None:
    """Assert that the extents cover the disk in order, without gaps, coalesced, and that what
    they call HOLE or ZERO reads as zeros."""
    position = 0
    previous = None
    for extent in disk.extents():
        assert extent.offset == position, (extent, position)
        assert extent.length > 0, extent
        assert extent.kind != previous, extent
        if extent.kind != Kind.DATA:
            data = bytearray(extent.length)
            disk.read_into(extent.offset, data)
            assert data.count(0) == len(data), extent
        position, previous = extent.stop, extent.kind
    assert position == disk.virtual_size
