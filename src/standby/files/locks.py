"""Locks on bytes of a file, held by a process and gone with it."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

from standby.errors import DiskBusy, DiskIO
from standby.files.confinement import open_confined
from standby.files.listing import is_there
from standby.files.positioned import File
from standby.files.wrapping import wrapped

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HINTS = {
    errno.EROFS: ": nothing can be written there. Mount it writable, then repeat",
    errno.EACCES: ". This user may not write it: give it write access to it and its folder",
    errno.EPERM: ". This user may not write it: give it write access to it and its folder",
}
"""What to do, where it is not plain from what the system says."""

_FLOCK = "hhqqi4x"  # struct flock of Linux on 64 bits: type, whence, start, length, pid


class ByteLock:
    """An exclusive lock on one byte of a lock file, held until `release` or the process ends.

    Linux: open-file-description locks, so threads and re-opens in one process exclude each other
    too. Windows: a locked byte range. The file is created if missing and never renamed or removed.
    """

    def __init__(self, path: Path, byte: int = 0) -> None:
        self.path = path
        self.byte = byte
        self._fd = -1

    def acquire(self) -> bool:
        """True when the lock is ours now; False when another holder has it. Does not wait."""
        if self._fd >= 0:
            return True
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
            fd = open_confined(self.path, flags)
        except OSError as exc:  # read-only storage, a missing folder
            error = wrapped(self.path, "open lock", 0, 0, exc)
            if isinstance(error, DiskIO) and exc.errno in _HINTS:
                error.reason += _HINTS[exc.errno]
            raise error from exc
        try:
            if _lock_byte(fd, self.byte):
                self._fd = fd
                return True
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return False

    def acquire_or_raise(self, holder: str) -> None:
        """`acquire`, or DiskBusy saying `holder`."""
        if not self.acquire():
            raise DiskBusy(str(self.path), holder)

    def is_in_place(self) -> bool:
        """Whether the file that is locked is the one at `path` still."""
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def is_held(self) -> bool:
        """True while this object holds the lock."""
        return self._fd >= 0

    def __enter__(self) -> ByteLock:
        self.acquire_or_raise("locked by another process")
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_byte_locked(path: Path, byte: int = 0) -> bool:
    """Whether someone else holds the lock on that byte now; False when the file is missing."""
    if not is_there(path):
        return False
    if sys.platform == "win32":
        probe = ByteLock(path, byte)
        if probe.acquire():
            probe.release()
            return False
        return True
    return is_range_locked(path, byte, 1)  # looks without writing: also on read-only storage


def is_range_locked(path: Path, start: int, length: int) -> bool:
    """Whether another process, or another descriptor of this one, holds any lock (a shared one
    too) in the byte range. The lock is looked at, never taken. Always False on Windows."""
    if sys.platform == "win32":
        return False
    else:
        ask = getattr(fcntl, "F_OFD_GETLK", fcntl.F_GETLK)
        request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        with File(path) as file:
            try:
                answer = fcntl.fcntl(file.fd, ask, request)
            except OSError as exc:
                raise wrapped(path, "look at locks", start, length, exc) from exc
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


if sys.platform == "win32":

    def _lock_byte(fd: int, byte: int) -> bool:
        os.lseek(fd, byte, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:

    def _lock_byte(fd: int, byte: int) -> bool:
        set_lock = getattr(fcntl, "F_OFD_SETLK", fcntl.F_SETLK)
        request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        try:
            fcntl.fcntl(fd, set_lock, request)
        except OSError as exc:
            if exc.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True
