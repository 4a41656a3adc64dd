"""Raw images: the disk's bytes one after another, holes where nothing was ever written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from standby.disk.file_ranges import FileRanges, plain
from standby.errors import DiskError, DiskRange, DiskUnsupported
from standby.files import BlockFile, File
from standby.model.extent import Extent, Kind, coalesced
from standby.ports import Buffer
from standby.units import MiB

SECTOR_SIZES = (512, 4096)

_ZEROS = bytes(MiB)


def check_range(disk_path: Path, offset: int, length: int, size: int, sector: int) -> None:
    """Raise DiskRange unless [offset, offset + length) is whole sectors inside the disk."""
    if offset < 0 or length < 0 or offset + length > size or (offset | length) & (sector - 1):
        raise DiskRange(str(disk_path), offset, length, size)


class RawDisk:
    """A raw image as a WritableDisk.

    The file's holes (SEEK_DATA) are HOLE extents; `zero` punches, and writes zeros where the file
    system cannot. A raw image says nothing of its sector sizes, so the caller does.
    """

    def __init__(
        self,
        file: Path | BlockFile,
        *,
        writable: bool = False,
        logical_sector_size: int = 512,
        physical_sector_size: int = 4096,
        pad: bool = False,
    ) -> None:
        """Open an image. A length that is not whole sectors is refused (DiskUnsupported), or with
        `pad` rounded up: the missing bytes read as zeros, and a writable file is extended."""
        if logical_sector_size not in SECTOR_SIZES or physical_sector_size not in SECTOR_SIZES:
            raise DiskUnsupported(
                str(file if isinstance(file, Path) else file.path),
                f"a sector size of {logical_sector_size} (physical {physical_sector_size})",
                "Sector sizes are 512 and 4096",
            )
        self._file: BlockFile = File(file, writable=writable) if isinstance(file, Path) else file
        self.path = self._file.path
        self.logical_sector_size = logical_sector_size
        self.physical_sector_size = physical_sector_size
        self.writable = self._file.writable
        self.virtual_size = self._file.size
        self._closed = False
        missing = -self._file.size % logical_sector_size
        if not missing:
            return
        if not pad:
            self._file.close()
            raise DiskUnsupported(
                str(self.path),
                f"a raw image of {self._file.size} bytes, not whole sectors of "
                f"{logical_sector_size},",
                f"Extend it by {missing} zero bytes (truncate -s {self._file.size + missing})",
            )
        self.virtual_size += missing
        if self.writable:
            self._file.resize(self.virtual_size)

    @property
    def file(self) -> BlockFile:
        """The file behind the disk; offsets in it are offsets of the disk."""
        return self._file

    def extents(self, start: int = 0, stop: int | None = None) -> Iterator[Extent]:
        """DATA and HOLE ranges of [start, stop), as the file system tells them."""
        stop = self.virtual_size if stop is None else stop
        check_range(self.path, start, stop - start, self.virtual_size, self.logical_sector_size)
        return coalesced(self._ranges(start, stop))

    def _ranges(self, start: int, stop: int) -> Iterator[Extent]:
        mask = self.logical_sector_size - 1
        position = start
        for first, last in self._file.data_ranges(start, stop):
            first = max(first & ~mask, position)
            last = min((last + mask) & ~mask, stop)
            if first > position:
                yield Extent(position, first - position, Kind.HOLE)
            if last > first:
                yield Extent(first, last - first, Kind.DATA)
                position = last
        if position < stop:
            yield Extent(position, stop - position, Kind.HOLE)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` from `offset`; raises DiskRange past the end, DiskIO on a failed read."""
        view = memoryview(buffer).cast("B")
        check_range(self.path, offset, len(view), self.virtual_size, self.logical_sector_size)
        stored = min(len(view), max(0, self._file.size - offset))
        self._file.read_into(view[:stored], offset)
        if stored < len(view):  # padding of an image that ends inside a sector
            view[stored:] = bytes(len(view) - stored)

    def file_ranges(self, start: int, stop: int) -> FileRanges | None:
        """Where the file stores [start, stop); None when only `read_into` can read it."""
        file = plain(self._file)
        check_range(self.path, start, stop - start, self.virtual_size, self.logical_sector_size)
        if file is None:
            return None
        rows = [(first, last - first, first, 0) for first, last in file.data_ranges(start, stop)]
        return FileRanges(np.array(rows, np.int64).reshape(-1, 4), (file,))

    def write(self, offset: int, data: Buffer) -> None:
        """Write whole sectors; stable after `flush`."""
        view = memoryview(data).cast("B")
        self._check_writable(offset, len(view))
        self._file.write(view, offset)

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, and free its space where the file system can."""
        self._check_writable(offset, length)
        if not length or self._file.punch(offset, length):
            return
        for position in range(offset, offset + length, len(_ZEROS)):
            count = min(len(_ZEROS), offset + length - position)
            self._file.write(memoryview(_ZEROS)[:count], position)

    def flush(self) -> None:
        """Return when everything written is on stable storage."""
        if self.writable:
            self._file.sync()

    def close(self) -> None:
        """Flush if writable and close; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self.flush()
        finally:
            self._file.close()

    def _check_writable(self, offset: int, length: int) -> None:
        check_range(self.path, offset, length, self.virtual_size, self.logical_sector_size)
        if not self.writable:
            raise read_only(self.path)

    def __enter__(self) -> RawDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_only(path: Path) -> DiskError:
    """The error of a write to a disk that was opened for reading."""
    return DiskUnsupported(str(path), "writing to a disk opened read-only", "Open it writable")


def create_raw(
    path: Path,
    virtual_size: int,
    *,
    logical_sector_size: int = 512,
    physical_sector_size: int = 4096,
) -> RawDisk:
    """A new image of `virtual_size` bytes, all hole, open for writing; an existing file is refused
    (DiskIO)."""
    if virtual_size < 0 or virtual_size % logical_sector_size:
        raise DiskRange(str(path), 0, virtual_size, virtual_size)
    file = File(path, create=True)
    try:
        file.resize(virtual_size)
        return RawDisk(
            file,
            logical_sector_size=logical_sector_size,
            physical_sector_size=physical_sector_size,
        )
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
