"""Open files with positioned reads and writes, and their holes."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from ctypes import c_int, c_int64
from pathlib import Path
from typing import Any, Protocol

from standby.errors import DiskIO, StandbyError
from standby.files.confinement import open_confined
from standby.files.libc import libc_function
from standby.files.wrapping import wrapped
from standby.units import KiB

Buffer = Any
"""Anything of contiguous bytes: bytes, bytearray, memoryview, a uint8 array."""

WRITE_SIZE = 256 * KiB
"""Bytes that one system call writes at most. Receiving a disk of 2 GB on ext4 in a virtual machine
cost the target mover 2.7 to 5.8 s of system time in calls of up to 16 MiB, 2.3 to 2.5 s in 512 KiB,
1.0 to 1.1 s in 256 KiB, 1.2 s in 128 KiB; on tmpfs calls of 256 KiB cost it 0.2 s more (1.4 for 1.2
to 1.3). The time goes into the copy to the page cache; the likely cause, not proven, is that ext4
takes pages as large as the call, from memory that the hypervisor has to provide anew."""


_COPY_MAX = 16 << 20
"""Bytes that one system call copies at most: a signal waits for it."""


class BlockFile(Protocol):
    """What disk formats need of a file. `File` is the real one."""

    @property
    def path(self) -> Path: ...
    @property
    def size(self) -> int: ...
    @property
    def writable(self) -> bool: ...
    def read_into(self, buffer: Buffer, offset: int) -> None: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, data: Buffer, offset: int) -> None: ...
    def resize(self, size: int) -> None: ...
    def punch(self, offset: int, length: int) -> bool: ...
    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


class File:
    """One open file with positioned reads and writes that are whole or an error.

    Thread-safe for reads and writes of different ranges. `size` is tracked here: it is read once
    at open and follows our own writes and resizes.
    """

    def __init__(self, path: Path, *, writable: bool = False, create: bool = False) -> None:
        """Open `path`; `create` makes a new file and refuses an existing one (FileExistsError
        becomes DiskIO). A FIFO, device or folder is refused without blocking."""
        flags = os.O_RDWR if writable or create else os.O_RDONLY
        flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOINHERIT", 0)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        self.path = path
        self.writable = writable or create
        try:
            self.fd = open_confined(path, flags)
        except OSError as exc:
            raise DiskIO(str(path), "open", 0, 0, exc.strerror or str(exc)) from exc
        try:
            status = os.fstat(self.fd)
            if not stat.S_ISREG(status.st_mode):
                raise DiskIO(str(path), "open", 0, 0, "not a regular file")
        except BaseException:
            os.close(self.fd)
            self.fd = -1
            raise
        self._size = status.st_size

    @property
    def size(self) -> int:
        """Length in bytes, as opened and as changed through this object."""
        return self._size

    def read_into(self, buffer: Buffer, offset: int) -> None:
        """Fill `buffer` from `offset`; a short read is `DiskIO`, never zeros."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            try:
                count = _pread(self.fd, view[done:], offset + done)
            except OSError as exc:
                raise wrapped(self.path, "read", offset, len(view), exc) from exc
            if count == 0:
                raise DiskIO(
                    str(self.path), "read", offset, len(view), f"file ends after {done} bytes"
                )
            done += count

    def read_error(self, offset: int, length: int, done: int, code: int) -> StandbyError:
        """The error of a read that somebody else made with `fd` and that gave only `done` bytes:
        `code` is its errno, 0 at the file's end."""
        if not code:
            return DiskIO(str(self.path), "read", offset, length, f"file ends after {done} bytes")
        return wrapped(self.path, "read", offset, length, OSError(code, os.strerror(code)))

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; a short read is `DiskIO`."""
        data = bytearray(length)
        self.read_into(data, offset)
        return bytes(data)

    def write(self, data: Buffer, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            try:
                done += _pwrite(self.fd, view[done : done + WRITE_SIZE], offset + done)
            except OSError as exc:
                raise wrapped(self.path, "write", offset, len(view), exc) from exc
        self._size = max(self._size, offset + len(view))

    def copy_from(self, source: File, place: int, length: int, offset: int) -> int:
        """Have the system copy up to `length` bytes at `place` of `source` to `offset`, or let both
        files share them where the file system can (XFS, Btrfs); how many bytes that is. 0 where it
        can or will not: reading and writing then does it, or tells why not."""
        count = _copy_range(source.fd, place, min(length, _COPY_MAX), self.fd, offset)
        if count:
            self._size = max(self._size, offset + count)
        return count

    def resize(self, size: int) -> None:
        """Cut or extend to `size` bytes; an extension reads as zeros."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as exc:
            raise wrapped(self.path, "resize", self._size, abs(size - self._size), exc) from exc
        self._size = size

    def punch(self, offset: int, length: int) -> bool:
        """Turn the range into a hole that reads as zeros; False where that is not possible."""
        return _punch(self.fd, offset, length)

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of each part that is not a hole, in order, within [start, stop)."""
        return _data_ranges(self.fd, start, min(stop, self._size))

    def sync(self) -> None:
        """Return when everything written is on stable storage."""
        try:
            _fdatasync(self.fd)
        except OSError as exc:
            raise wrapped(self.path, "sync", 0, 0, exc) from exc

    def close(self) -> None:
        """Close; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


if sys.platform == "win32":

    def _pread(fd: int, view: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
        view[: len(data)] = data
        return len(data)

    def _pwrite(fd: int, view: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, view)

    def _copy_range(source: int, place: int, length: int, target: int, offset: int) -> int:
        return 0

    def _fdatasync(fd: int) -> None:
        os.fsync(fd)

    def _punch(fd: int, offset: int, length: int) -> bool:
        return False

    def _data_ranges(fd: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if start < stop:
            yield start, stop

else:

    def _pread(fd: int, view: memoryview, offset: int) -> int:
        return os.preadv(fd, [view], offset)

    def _pwrite(fd: int, view: memoryview, offset: int) -> int:
        return os.pwrite(fd, view, offset)

    def _copy_range(source: int, place: int, length: int, target: int, offset: int) -> int:
        copy = getattr(os, "copy_file_range", None)
        if copy is None:
            return 0
        try:
            return int(copy(source, target, length, place, offset))
        except OSError:
            return 0

    def _fdatasync(fd: int) -> None:
        getattr(os, "fdatasync", os.fsync)(fd)

    _FALLOC_FL_KEEP_SIZE = 1
    _FALLOC_FL_PUNCH_HOLE = 2

    def _punch(fd: int, offset: int, length: int) -> bool:
        fallocate = libc_function("fallocate", c_int, c_int, c_int64, c_int64)
        if fallocate is None:
            return False
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        return bool(fallocate(fd, mode, offset, length) == 0)

    def _data_ranges(fd: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        seek_data = getattr(os, "SEEK_DATA", None)
        if seek_data is None:
            if start < stop:
                yield start, stop
            return
        position = start
        while position < stop:
            try:
                first = os.lseek(fd, position, seek_data)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    return
                yield position, stop
                return
            if first >= stop:
                return
            last = min(os.lseek(fd, first, os.SEEK_HOLE), stop)
            yield first, last
            position = last
