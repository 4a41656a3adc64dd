"""Payload slots in memory that two processes of one machine share.

The sender reads a disk straight into a slot and hashes it there; the receiver writes the same
bytes to its file: no copy through a socket, which would cost each side a pass over the data.
The number of slots is the back-pressure. The backup server makes the memory (`handle`), both
movers inherit it (POSIX: an anonymous memory file's descriptor; Windows: a named mapping).

Service movers of one machine (`wire.plain`) offer it to each other: `offered` makes it, `taken`
opens what another process of the same user offers, where the system lets it (Linux, Windows).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Iterator

from standby import clock
from standby.units import MiB

COUNT_MAX, SLOT_SIZE_MAX = 16, 64 * MiB
_NAME = "standby-ring"


class SharedRing:
    """`count` slots of `slot_size` bytes each."""

    def __init__(self, handle: str, count: int, slot_size: int) -> None:
        """Map the memory behind `handle` (see `create`)."""
        self.count = count
        self.slot_size = slot_size
        self.handle = handle
        size = count * slot_size
        if sys.platform == "win32":
            self._map = mmap.mmap(-1, size, tagname=handle)
        else:
            self._map = mmap.mmap(int(handle), size)
        self._view = memoryview(self._map)

    @staticmethod
    def create(count: int, slot_size: int) -> str:
        """Make the memory; returns the handle to pass on. On POSIX a descriptor number, which the
        caller closes with `close_handle` once its children have it."""
        if sys.platform == "win32":
            return f"standby-{clock.new_token(16)}"
        else:
            fd = os.memfd_create(_NAME, os.MFD_CLOEXEC)
            os.ftruncate(fd, count * slot_size)
            return str(fd)

    @staticmethod
    def close_handle(handle: str) -> None:
        """Give up the creator's own hold on the memory."""
        if sys.platform != "win32":
            os.close(int(handle))

    def slot(self, index: int) -> memoryview:
        """The bytes of slot `index`; IndexError for a number out of range."""
        if not 0 <= index < self.count:
            raise IndexError(f"slot {index} of {self.count}")
        return self._view[index * self.slot_size : (index + 1) * self.slot_size]


@contextlib.contextmanager
def offered(count: int, slot_size: int) -> Iterator[tuple[SharedRing, str, bytes]]:
    """New memory, with the place and the mark by which another process may take it (`taken`) until
    the block ends."""
    handle = SharedRing.create(count, slot_size)
    try:
        ring = SharedRing(handle, count, slot_size)
        mark = bytes.fromhex(clock.new_token(32))
        ring.slot(0)[: len(mark)] = mark
        yield ring, handle if sys.platform == "win32" else f"{os.getpid()}/{handle}", mark
    finally:
        SharedRing.close_handle(handle)


def taken(place: str, mark: bytes, count: int, slot_size: int) -> SharedRing | None:
    """The memory that another process offers; None where it is not there, not for us, not of that
    size, or anything else than such memory."""
    if not (0 < count <= COUNT_MAX and len(mark) <= slot_size <= SLOT_SIZE_MAX):
        return None
    ring = _opened(place, count, slot_size)
    if ring is None or len(mark) < 16 or bytes(ring.slot(0)[: len(mark)]) != mark:
        return None
    return ring


def _opened(place: str, count: int, slot_size: int) -> SharedRing | None:
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            return SharedRing(place, count, slot_size) if place.startswith("standby-") else None
        return None
    process, _, number = place.partition("/")
    if not (process.isascii() and process.isdigit() and number.isascii() and number.isdigit()):
        return None
    path = f"/proc/{process}/fd/{number}"
    with contextlib.suppress(OSError):
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):  # noqa: PTH115
            return None
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(fd).st_size == count * slot_size:
                return SharedRing(str(fd), count, slot_size)
        finally:
            os.close(fd)
    return None
