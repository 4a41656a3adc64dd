"""What the file system below offers besides: room, clones, its cache."""

from __future__ import annotations

import os
import shutil
import sys
from ctypes import c_int, c_int64, c_uint
from pathlib import Path

from standby.files.confinement import open_confined
from standby.files.durability import remove_plainly
from standby.files.giving_back import wait_for_space
from standby.files.libc import libc_function
from standby.files.positioned import BlockFile, File
from standby.files.wrapping import wrapped

if sys.platform != "win32":
    import fcntl


def free_bytes(folder: Path) -> int:
    """Bytes an ordinary user can still write in the file system of `folder`, with what this process
    has removed."""
    wait_for_space()
    return shutil.disk_usage(folder).free


def clone(source: Path, target: Path) -> bool:
    """Make `target` a copy-on-write clone of `source` (FICLONE: btrfs, XFS). False, and no
    `target`, where the file system cannot; `target` must not exist."""
    if sys.platform == "win32":
        return False
    else:
        ficlone = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
        with File(source) as old, File(target, create=True) as new:
            try:
                fcntl.ioctl(new.fd, ficlone, old.fd)
                new.sync()
                return True
            except OSError:
                remove_plainly(target)
                return False


def start_writeback(file: BlockFile) -> None:
    """Have the device begin to take what was written to `file`, without waiting for it: a later
    sync finds little left to do. Only a hint: where the system lacks it, nothing happens."""
    if sys.platform == "linux" and isinstance(file, File):
        function = libc_function("sync_file_range", c_int, c_int64, c_int64, c_uint)
        if function is not None:
            function(file.fd, 0, 0, 2)  # SYNC_FILE_RANGE_WRITE, to the end of the file


def drop_cached(path: Path) -> bool:
    """Sync the file and drop its cached pages, so that the next read comes from the device; False
    where the system does not offer that."""
    if sys.platform == "win32":
        return _purged_by_unbuffered_open(path)
    else:
        if not hasattr(os, "posix_fadvise"):
            return False
        try:
            fd = open_confined(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        except OSError as exc:
            raise wrapped(path, "drop cached pages", 0, 0, exc) from exc
        return True


if sys.platform == "win32":

    def _purged_by_unbuffered_open(path: Path) -> bool:
        """Windows purges a file's cache when it is opened with FILE_FLAG_NO_BUFFERING."""
        import ctypes
        from ctypes import wintypes

        create = ctypes.WinDLL("kernel32", use_last_error=True).CreateFileW
        create.restype = wintypes.HANDLE
        handle = create(str(path), 0x80000000, 7, None, 3, 0x20000000, None)
        if handle is None or handle == wintypes.HANDLE(-1).value:
            return False
        ctypes.WinDLL("kernel32").CloseHandle(wintypes.HANDLE(handle))
        return True
