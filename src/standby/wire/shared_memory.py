"""Payload slots in memory that two processes of one machine share.

The sender reads a disk straight into a slot and hashes it there; the receiver writes the same
bytes to its file: no copy through a socket, which would cost each side a pass over the data.
The number of slots is the back-pressure. The backup server makes the memory (`handle`), both
movers inherit it (POSIX: an anonymous memory file's descriptor; Windows: a named mapping).
"""

from __future__ import annotations

import mmap
import os
import sys

from standby import clock


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
            fd = os.memfd_create("standby-ring", os.MFD_CLOEXEC)
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
