"""The one door to the file system: positioned I/O, durability, holes, locks, clones.

Every system call that Windows lacks is here beside its Windows branch. Foreign `OSError`s become
`DiskIO` or `DiskFull` at this door. Tests wrap or replace `File` to record writes and syncs, to
tear them, and to inject errors.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from standby import clock
from standby.errors import DiskBusy, DiskFull, DiskIO, PathRefused, StandbyError
from standby.units import KiB

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Buffer = Any
"""Anything of contiguous bytes: bytes, bytearray, memoryview, a uint8 array."""

WRITE_SIZE = 256 * KiB
"""Bytes that one system call writes at most. Receiving a disk of 2 GB on ext4 in a virtual machine
cost the target mover 2.7 to 5.8 s of system time in calls of up to 16 MiB, 2.3 to 2.5 s in 512 KiB,
1.0 to 1.1 s in 256 KiB, 1.2 s in 128 KiB; on tmpfs calls of 256 KiB cost it 0.2 s more (1.4 for 1.2
to 1.3). The time goes into the copy to the page cache; the likely cause, not proven, is that ext4
takes pages as large as the call, from memory that the hypervisor has to provide anew."""


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


def _wrapped(path: Path, operation: str, offset: int, length: int, exc: OSError) -> StandbyError:
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            available = shutil.disk_usage(path.parent).free
        except OSError:
            available = 0
        return DiskFull(str(path), length, available)
    return DiskIO(str(path), operation, offset, length, exc.strerror or str(exc))


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
            if not _is_regular(status):
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
                raise _wrapped(self.path, "read", offset, len(view), exc) from exc
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
        return _wrapped(self.path, "read", offset, length, OSError(code, os.strerror(code)))

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
                raise _wrapped(self.path, "write", offset, len(view), exc) from exc
        self._size = max(self._size, offset + len(view))

    def resize(self, size: int) -> None:
        """Cut or extend to `size` bytes; an extension reads as zeros."""
        try:
            os.ftruncate(self.fd, size)
        except OSError as exc:
            raise _wrapped(self.path, "resize", self._size, abs(size - self._size), exc) from exc
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
            raise _wrapped(self.path, "sync", 0, 0, exc) from exc

    def close(self) -> None:
        """Close; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_regular(status: os.stat_result) -> bool:
    import stat

    return stat.S_ISREG(status.st_mode)


if sys.platform == "win32":

    def _pread(fd: int, view: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
        view[: len(data)] = data
        return len(data)

    def _pwrite(fd: int, view: memoryview, offset: int) -> int:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.write(fd, view)

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

    def _fdatasync(fd: int) -> None:
        getattr(os, "fdatasync", os.fsync)(fd)

    _FALLOC_FL_KEEP_SIZE = 1
    _FALLOC_FL_PUNCH_HOLE = 2

    def _punch(fd: int, offset: int, length: int) -> bool:
        fallocate = _libc_fallocate()
        if fallocate is None:
            return False
        mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
        return bool(fallocate(fd, mode, offset, length) == 0)

    def _libc_sync_file_range() -> Any:
        global _sync_file_range
        if _sync_file_range is False:
            import ctypes

            try:
                function = ctypes.CDLL(None, use_errno=True).sync_file_range
                function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
                function.restype = ctypes.c_int
                _sync_file_range = function
            except (OSError, AttributeError):
                _sync_file_range = None
        return _sync_file_range

    _sync_file_range: Any = False

    def _libc_fallocate() -> Any:
        global _fallocate
        if _fallocate is False:
            import ctypes

            try:
                function = ctypes.CDLL(None, use_errno=True).fallocate
                function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
                function.restype = ctypes.c_int
                _fallocate = function
            except (OSError, AttributeError):
                _fallocate = None
        return _fallocate

    _fallocate: Any = False

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


# --- confinement -----------------------------------------------------------------------------
#
# A service mover opens nothing outside of its configured folders, whatever a path, a parent
# locator or a vm.toml says (RULES 20). From `confine` on every open, rename, link, removal and
# mkdir of this module walks from the folder's descriptor component by component without following
# links, and acts relative to the descriptor it arrived at: what is exchanged for a link behind the
# walk's back cannot lead it out. Windows has no such calls: there the real path is looked at just
# before, and someone who exchanges folders for junctions in that instant is not kept out.

_confined: tuple[Path, ...] = ()


def confine(folders: Sequence[Path]) -> None:
    """From now on, and for the life of this process, open nothing but what lies below `folders`,
    and reach it through no link; () lifts that (for tests). Links above the folders are whoever's
    who configured them. Everything else raises PathRefused."""
    global _confined
    _confined = tuple(plain_absolute(folder) for folder in folders)


def confined_to() -> tuple[Path, ...]:
    """The folders this process is confined to, () if it is not."""
    return _confined


def plain_absolute(path: Path) -> Path:
    """`path` absolute, '.' and '..' taken off by name: below a confined folder there are no links
    that could make that another file."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - `resolve` follows links


def check_links(folder: Path, path: Path) -> None:
    """Raise PathRefused where a component of `path` below `folder` is a link, or something that is
    no folder has one below it; what is missing is nobody's harm."""
    place = folder
    parts = path.relative_to(folder).parts
    for number, part in enumerate(parts, start=1):
        place = place / part
        try:
            status = place.lstat()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise PathRefused(str(place), exc.strerror or str(exc)) from exc
        if _is_link(status):
            raise PathRefused(str(place), "is a link")
        if number < len(parts) and not _is_folder(status):
            raise PathRefused(str(place), "is no folder")


def check_confined(path: Path) -> None:
    """Raise PathRefused where `path` lies outside of what this process may open, or behind a link:
    for files that others (SQLite, QEMU) open."""
    if _confined:
        check_links(_folder_of(path)[0], plain_absolute(path))


def _folder_of(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The confined folder that `path` lies in, and the components below it."""
    if "\0" in str(path):
        raise PathRefused(str(path).replace("\0", "?"), "holds a NUL")
    plain = plain_absolute(path)
    for folder in _confined:
        if plain == folder or plain.is_relative_to(folder):
            return folder, plain.relative_to(folder).parts
    raise PathRefused(str(path), "lies outside of the folders this mover may open")


def _is_link(status: os.stat_result) -> bool:
    import stat

    reparse = getattr(status, "st_file_attributes", 0) & 0x400  # junctions and the like
    return stat.S_ISLNK(status.st_mode) or bool(reparse)


def _is_folder(status: os.stat_result) -> bool:
    import stat

    return stat.S_ISDIR(status.st_mode)


def open_confined(path: Path, flags: int, mode: int = 0o600) -> int:
    """`os.open`, within the confinement."""
    with _at(path) as (name, folder):
        if folder is None:
            return os.open(name, flags, mode)
        try:
            return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), mode, dir_fd=folder)
        except OSError as exc:
            if exc.errno == errno.ELOOP:
                raise PathRefused(str(path), "is a link") from exc
            raise


@contextlib.contextmanager
def _at(path: Path) -> Iterator[tuple[str, int | None]]:
    """What to give an *at call: (name, descriptor of its folder); (path, None) where this process
    is not confined, and on Windows, where the real path was looked at."""
    if not _confined:
        yield str(path), None
        return
    folder, parts = _folder_of(path)
    if sys.platform == "win32":
        check_links(folder, plain_absolute(path))
        real = Path(os.path.realpath(path))
        if not real.is_relative_to(os.path.realpath(folder)):
            raise PathRefused(str(path), "leads through a link")
        yield str(path), None
    else:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(folder, flags)
        try:
            for part in parts[:-1]:
                try:
                    below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
                except OSError as exc:
                    if exc.errno in (errno.ELOOP, errno.ENOTDIR):
                        raise PathRefused(
                            str(path), f"{part} on the way to it is a link, or no folder"
                        ) from exc
                    raise
                os.close(fd)
                fd = below
            yield parts[-1] if parts else ".", fd
        finally:
            os.close(fd)


def write_plainly(path: Path, data: bytes) -> None:
    """Replace what a small file holds, neither durably nor at once: for what is only shown."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    fd = open_confined(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


# --- durability ------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """Make the folder's entries (creations, renames, removals) stable. Windows does so itself."""
    if sys.platform == "win32":
        return
    fd = open_confined(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by a file of `data`, whole or not at all: write beside it, sync, rename,
    sync the folder."""
    temporary = path.with_name(f".{path.name}.{clock.new_token(4)}.new")
    try:
        with File(temporary, create=True) as file:
            file.write(data, 0)
            file.sync()
        rename_durably(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def rename_durably(old: Path, new: Path) -> None:
    """Rename within a file system, replacing `new`, and make that stable."""
    try:
        with _at(old) as (old_name, old_folder), _at(new) as (new_name, new_folder):
            os.replace(old_name, new_name, src_dir_fd=old_folder, dst_dir_fd=new_folder)
        sync_folder(new.parent)
        if old.parent != new.parent:
            sync_folder(old.parent)
    except OSError as exc:
        raise _wrapped(new, "rename", 0, 0, exc) from exc


def rename_to_new(old: Path, new: Path) -> bool:
    """Rename within a file system unless `new` exists, and make that stable; False where it does.

    A kill in between may leave both names for the one file; calling again removes the old one.
    """
    try:
        if sys.platform == "win32":
            check_confined(old)
            check_confined(new)
            old.rename(new)
        else:
            with _at(old) as (old_name, old_folder), _at(new) as (new_name, new_folder):
                try:
                    os.link(
                        old_name,
                        new_name,
                        src_dir_fd=old_folder,
                        dst_dir_fd=new_folder,
                        follow_symlinks=False,
                    )
                except FileExistsError:
                    if not old.samefile(new):
                        raise
                except OSError as exc:
                    if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                        raise
                    if new.exists():  # no links in this file system: not atomic, but the best
                        return False
                    os.replace(old_name, new_name, src_dir_fd=old_folder, dst_dir_fd=new_folder)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(old_name, dir_fd=old_folder)
        sync_folder(new.parent)
        if old.parent != new.parent:
            sync_folder(old.parent)
    except FileExistsError:
        return False
    except OSError as exc:
        raise _wrapped(new, "rename", 0, 0, exc) from exc
    return True


def remove_durably(path: Path) -> None:
    """Remove a file, if it is there, and make that stable."""
    try:
        with _at(path) as (name, folder), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        sync_folder(path.parent)
    except OSError as exc:
        raise _wrapped(path, "remove", 0, 0, exc) from exc


def make_folder_durably(path: Path) -> None:
    """Make `path` and its missing parents, stable each in its own parent."""
    if path.is_dir():
        check_confined(path)
        return
    make_folder_durably(path.parent)
    try:
        with _at(path) as (name, folder):
            try:
                os.mkdir(name, 0o700, dir_fd=folder)
            except FileExistsError:
                if not path.is_dir():
                    raise
        sync_folder(path.parent)
    except OSError as exc:
        raise _wrapped(path, "make folder", 0, 0, exc) from exc


def free_bytes(folder: Path) -> int:
    """Bytes an ordinary user can still write in the file system of `folder`."""
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
                target.unlink()
                return False


def start_writeback(file: BlockFile) -> None:
    """Have the device begin to take what was written to `file`, without waiting for it: a later
    sync finds little left to do. Only a hint: where the system lacks it, nothing happens."""
    if sys.platform == "linux" and isinstance(file, File):
        function = _libc_sync_file_range()
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
            raise _wrapped(path, "drop cached pages", 0, 0, exc) from exc
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


# --- locks -----------------------------------------------------------------------------------

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
            raise _wrapped(self.path, "open lock", 0, 0, exc) from exc
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
    if not path.exists():
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
                raise _wrapped(path, "look at locks", start, length, exc) from exc
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
