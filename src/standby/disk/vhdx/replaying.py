"""What a dirty log means for the file: replayed into it, or laid over it in memory."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby import clock
from standby.disk.vhdx import log
from standby.disk.vhdx.headers import Headers
from standby.disk.vhdx.structures import PAGE, ZERO_GUID, Header
from standby.errors import DiskIO, DiskUnsupported
from standby.files import BlockFile
from standby.ports import Buffer
from standby.units import MiB

_PAGES_MAX = 32 * MiB // PAGE
_RANGES_MAX = 16384
_ZEROS = bytes(MiB)


def replay(file: BlockFile, headers: Headers) -> None:
    """Apply the log to the file and empty it (2.3.3). A crash in between starts again at the next
    open. The file's identity changes first, the identity of its data never."""
    active = log.find_active(file, headers.current)
    log.check(file, headers.current, active)
    headers.update(file_write_guid=clock.new_uuid().bytes_le)
    if file.size < active.last_size:
        file.resize(active.last_size)

    def put(offset: int, page: bytes) -> None:
        file.write(page, offset)

    def clear(offset: int, length: int) -> None:
        write_zeros(file, offset, length)

    log.apply(file, headers.current, active, put, clear)
    file.sync()
    headers.update(log_guid=ZERO_GUID)


def write_zeros(file: BlockFile, offset: int, length: int, *, may_punch: bool = True) -> None:
    """Make the range read as zeros: a hole where that is possible, else written."""
    if may_punch and file.punch(offset, length):
        return
    view = memoryview(_ZEROS)
    for start in range(offset, offset + length, MiB):
        file.write(view[: min(MiB, offset + length - start)], start)


def overlaid(file: BlockFile, header: Header) -> OverlaidFile:
    """The file as it will be after replay, read-only; `file` itself is not touched."""
    active = log.find_active(file, header)
    log.check(file, header, active)
    result = OverlaidFile(file, max(file.size, active.last_size))
    log.apply(file, header, active, result.put, result.clear)
    return result


class OverlaidFile:
    """A BlockFile whose log is applied in memory: pages of 4 KiB over zeroed ranges over the file.

    At most 32 MiB of pages are held; a log with more is refused (DiskUnsupported) here and can be
    replayed by opening the file writable.
    """

    writable = False

    def __init__(self, base: BlockFile, size: int) -> None:
        self._base = base
        self._size = size
        self._pages: dict[int, bytes] = {}
        self._offsets: list[int] = []
        self._zeroed: list[tuple[int, int]] = []

    @property
    def path(self) -> Path:
        """The file's path."""
        return self._base.path

    @property
    def size(self) -> int:
        """The length after replay."""
        return self._size

    def put(self, offset: int, page: bytes) -> None:
        """Lay a page over."""
        if offset not in self._pages:
            insort(self._offsets, offset)
        self._pages[offset] = page
        self._check_cost()

    def clear(self, offset: int, length: int) -> None:
        """Lay zeros over, pages put before included."""
        first = bisect_left(self._offsets, offset)
        last = bisect_left(self._offsets, offset + length)
        for covered in self._offsets[first:last]:
            del self._pages[covered]
        del self._offsets[first:last]
        self._zeroed.append((offset, offset + length))
        self._check_cost()

    def _check_cost(self) -> None:
        if len(self._pages) > _PAGES_MAX or len(self._zeroed) > _RANGES_MAX:
            raise DiskUnsupported(
                str(self.path),
                f"reading through a log of more than {_PAGES_MAX} pages",
                "Open the disk for writing once, or mount it on its host: that replays the log",
            )

    @property
    def base(self) -> BlockFile:
        """The file below."""
        return self._base

    def changes(self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> bool:
        """Whether any of these ranges, each [start, stop), may read otherwise than the file below
        does: the log lays something over it, or the file ends before."""
        if not starts.size:
            return False
        if int(stops.max()) > self._base.size:
            return True
        pages = np.array(self._offsets, dtype=np.int64)
        firsts, lasts = (
            np.searchsorted(pages, starts - PAGE, "right"),
            np.searchsorted(pages, stops),
        )
        if (firsts < lasts).any():
            return True
        return any(bool(((starts < last) & (stops > first)).any()) for first, last in self._zeroed)

    def read_into(self, buffer: Buffer, offset: int) -> None:
        """Fill `buffer`; past the end is DiskIO."""
        view = memoryview(buffer).cast("B")
        stop = offset + len(view)
        if stop > self._size:
            raise DiskIO(str(self.path), "read", offset, len(view), "past the end of the file")
        stored = max(0, min(len(view), self._base.size - offset))
        if stored:
            self._base.read_into(view[:stored], offset)
        target = np.frombuffer(view, dtype=np.uint8)
        target[stored:] = 0
        for first, last in self._zeroed:
            if first < stop and last > offset:
                target[max(first - offset, 0) : last - offset] = 0
        index = bisect_left(self._offsets, offset - PAGE + 1)
        for page_offset in self._offsets[index:]:
            if page_offset >= stop:
                break
            page = self._pages[page_offset]
            begin, end = max(page_offset, offset), min(page_offset + PAGE, stop)
            view[begin - offset : end - offset] = page[begin - page_offset : end - page_offset]

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        data = bytearray(length)
        self.read_into(data, offset)
        return bytes(data)

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """One range: what the log changes is not told apart."""
        if start < min(stop, self._size):
            yield start, min(stop, self._size)

    def write(self, data: Buffer, offset: int) -> None:
        """Refused."""
        raise DiskIO(str(self.path), "write", offset, len(data), "opened read-only")

    def resize(self, size: int) -> None:
        """Refused."""
        raise DiskIO(str(self.path), "resize", size, 0, "opened read-only")

    def punch(self, offset: int, length: int) -> bool:
        """Never."""
        return False

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the file."""
        self._base.close()
