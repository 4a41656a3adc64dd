"""One disk as it is offered: its flags, the order of its operations, its errors as NBD numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import cast

from standby.disk.serve import protocol
from standby.errors import DiskFull, DiskIO, DiskRange, StandbyError
from standby.model.extent import Kind
from standby.ports import Buffer, VirtualDisk, WritableDisk
from standby.units import KiB, MiB

_ZEROS = bytes(MiB)


class _TurnLock:
    """Many readers or one writer; a waiting writer goes before new readers."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._readers = 0
        self._writers_waiting = 0
        self._is_writing = False

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        with self._condition:
            while self._is_writing or self._writers_waiting:
                self._condition.wait()
            self._readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._readers -= 1
                if not self._readers:
                    self._condition.notify_all()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        with self._condition:
            self._writers_waiting += 1
            try:
                while self._is_writing or self._readers:
                    self._condition.wait()
            finally:
                self._writers_waiting -= 1
            self._is_writing = True
        try:
            yield
        finally:
            with self._condition:
                self._is_writing = False
                self._condition.notify_all()


class Export:
    """A disk under a name, for any number of connections.

    All connections share the one disk object, so a flush on one covers what was written through
    the others and several connections are safe (CAN_MULTI_CONN). Once a flush has failed with an
    I/O error, every later write and flush fails too: the system forgets such errors, and a later
    success would cover up lost data.
    """

    def __init__(self, name: str, disk: VirtualDisk, *, writable: bool) -> None:
        self.name = name
        self.disk = disk
        self.writable = writable
        self.size = disk.virtual_size
        self.sector_size = disk.logical_sector_size
        self._lock = _TurnLock() if writable else None
        self._flush_error: StandbyError | None = None

    @property
    def flags(self) -> int:
        """Transmission flags."""
        flags = protocol.FLAG_HAS_FLAGS | protocol.FLAG_CAN_MULTI_CONN
        if not self.writable:
            return flags | protocol.FLAG_READ_ONLY
        return (
            flags
            | protocol.FLAG_SEND_FLUSH
            | protocol.FLAG_SEND_FUA
            | protocol.FLAG_SEND_TRIM
            | protocol.FLAG_SEND_WRITE_ZEROES
        )

    @property
    def block_sizes(self) -> tuple[int, int, int]:
        """(minimum, preferred, maximum) as announced."""
        preferred = max(4 * KiB, self.sector_size, self.disk.physical_sector_size)
        return self.sector_size, preferred, protocol.PAYLOAD_MAX

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._lock is None else self._lock.reading()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        if self._lock is None:
            raise PermissionError(f"{self.name} is read-only")
        if self._flush_error is not None:
            raise self._flush_error
        return self._lock.writing()

    @property
    def _target(self) -> WritableDisk:
        return cast(WritableDisk, self.disk)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer`; any alignment, inside the disk."""
        view = memoryview(buffer)
        mask = self.sector_size - 1
        with self._reading():
            if not (offset | len(view)) & mask:
                self.disk.read_into(offset, view)
                return
            first = offset & ~mask
            whole = bytearray(((offset + len(view) + mask) & ~mask) - first)
            self.disk.read_into(first, whole)
        view[:] = whole[offset - first : offset - first + len(view)]

    def write(self, offset: int, data: Buffer) -> None:
        """Write whole sectors."""
        with self._writing():
            self._target.write(offset, data)

    def zero(self, offset: int, length: int, *, keep_space: bool) -> None:
        """Make the range read as zeros; with `keep_space` by writing them."""
        if not keep_space:
            with self._writing():
                self._target.zero(offset, length)
            return
        stop = offset + length
        for position in range(offset, stop, len(_ZEROS)):
            self.write(position, memoryview(_ZEROS)[: min(len(_ZEROS), stop - position)])

    def trim(self, offset: int, length: int) -> None:
        """Give up the whole sectors inside the range; they read as zeros."""
        mask = self.sector_size - 1
        first = (offset + mask) & ~mask
        last = (offset + length) & ~mask
        if last > first:
            self.zero(first, last - first, keep_space=False)

    def flush(self) -> None:
        """Return when everything written through any connection is stable."""
        if self._lock is None:
            return
        with self._writing():
            try:
                self._target.flush()
            except DiskIO as exc:
                self._flush_error = exc
                raise

    def allocation(self, offset: int, length: int, count_max: int) -> list[tuple[int, int]]:
        """(length, state) from `offset` on, at most `count_max`, together at most `length`."""
        mask = self.sector_size - 1
        stop = offset + length
        found: list[tuple[int, int]] = []
        with self._reading():
            for extent in self.disk.extents(offset & ~mask, (stop + mask) & ~mask):
                count = min(extent.stop, stop) - max(extent.offset, offset)
                is_data = extent.kind == Kind.DATA
                state = 0 if is_data else protocol.STATE_HOLE | protocol.STATE_ZERO
                if found and found[-1][1] == state:
                    found[-1] = (found[-1][0] + count, state)
                elif len(found) == count_max:
                    break
                else:
                    found.append((count, state))
        return found


def error_number(error: BaseException) -> int:
    """The NBD number that says best what happened."""
    if isinstance(error, DiskFull):
        return protocol.ENOSPC
    if isinstance(error, DiskRange):
        return protocol.EINVAL
    if isinstance(error, PermissionError):
        return protocol.EPERM
    return protocol.EIO
