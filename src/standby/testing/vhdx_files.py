"""Files in memory for disk formats: recording, crashing, filling up, failing.

A `MemoryFile` keeps what was written to it and in which order, so that a test can ask for the file
as a crash at any moment would leave it: everything before the last sync is there, of the rest any
part, in any order, torn at sectors or pages.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from standby.errors import DiskFull, DiskIO
from standby.ports import Buffer
from standby.units import KiB

_PAGE = 4 * KiB
_ZERO_PAGE = bytes(_PAGE)


@dataclass(frozen=True, slots=True)
class Change:
    """One recorded operation: 'write', 'resize', 'punch' or 'sync'."""

    kind: str
    offset: int = 0
    data: bytes = b""
    length: int = 0


class MemoryFile:
    """A sparse BlockFile in memory that records every change.

    `room` is the number of bytes that can be allocated before writes are DiskFull. `fail` is asked
    before every operation, with its kind ('read', 'write', 'resize', 'punch', 'sync') and offset,
    and may raise.
    """

    def __init__(
        self,
        name: str = "memory.vhdx",
        *,
        writable: bool = True,
        room: int | None = None,
        fail: Callable[[str, int], None] | None = None,
    ) -> None:
        self.path = Path(name)
        self.writable = writable
        self.room = room
        self.fail = fail
        self.changes: list[Change] = []
        self.is_closed = False
        self._pages: dict[int, bytes] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def _enter(self, kind: str, offset: int) -> None:
        if self.is_closed:
            raise DiskIO(str(self.path), kind, offset, 0, "the file is closed")
        if self.fail is not None:
            self.fail(kind, offset)

    def read_into(self, buffer: Buffer, offset: int) -> None:
        """Fill `buffer`; past the end is DiskIO."""
        self._enter("read", offset)
        view = memoryview(buffer).cast("B")
        stop = offset + len(view)
        if stop > self._size:
            raise DiskIO(str(self.path), "read", offset, len(view), "short read")
        for number, first, last in _pages(offset, stop):
            page = self._pages.get(number, _ZERO_PAGE)
            at = number * _PAGE
            view[first - offset : last - offset] = page[first - at : last - at]

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`."""
        data = bytearray(length)
        self.read_into(data, offset)
        return bytes(data)

    def write(self, data: Buffer, offset: int) -> None:
        """Store and record; what fits is stored before DiskFull is raised."""
        self._enter("write", offset)
        content = bytes(memoryview(data).cast("B"))
        stored = self._store(content, offset)
        self.changes.append(Change("write", offset, content[:stored]))
        if stored < len(content):
            raise DiskFull(str(self.path), len(content) - stored, 0)

    def _store(self, content: bytes, offset: int) -> int:
        for number, first, last in _pages(offset, offset + len(content)):
            at = number * _PAGE
            is_full = self.room is not None and (len(self._pages) + 1) * _PAGE > self.room
            if is_full and number not in self._pages:
                self._size = max(self._size, first)
                return first - offset
            part = content[first - offset : last - offset]
            if len(part) < _PAGE:
                old = self._pages.get(number, _ZERO_PAGE)
                part = old[: first - at] + part + old[last - at :]
            self._pages[number] = part
        self._size = max(self._size, offset + len(content))
        return len(content)

    def resize(self, size: int) -> None:
        """Cut or extend, and record."""
        self._enter("resize", size)
        self._resize(size)
        self.changes.append(Change("resize", length=size))

    def _resize(self, size: int) -> None:
        if size < self._size:
            number, inside = divmod(size, _PAGE)
            for page in [page for page in self._pages if page > number or page * _PAGE >= size]:
                del self._pages[page]
            if inside and number in self._pages:
                self._pages[number] = self._pages[number][:inside].ljust(_PAGE, b"\0")
        self._size = size

    def punch(self, offset: int, length: int) -> bool:
        """Make a hole, and record."""
        self._enter("punch", offset)
        self._punch(offset, length)
        self.changes.append(Change("punch", offset, length=length))
        return True

    def _punch(self, offset: int, length: int) -> None:
        for number, first, last in _pages(offset, min(offset + length, self._size)):
            at = number * _PAGE
            if last - first == _PAGE:
                self._pages.pop(number, None)
            elif number in self._pages:
                old = self._pages[number]
                self._pages[number] = old[: first - at] + bytes(last - first) + old[last - at :]

    def data_ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Stored pages, joined."""
        held: tuple[int, int] | None = None
        for number in sorted(self._pages):
            first, last = max(start, number * _PAGE), min(stop, self._size, (number + 1) * _PAGE)
            if first >= last:
                continue
            if held is not None and held[1] == first:
                held = (held[0], last)
                continue
            if held is not None:
                yield held
            held = (first, last)
        if held is not None:
            yield held

    def sync(self) -> None:
        """Record that all before is stable."""
        self._enter("sync", 0)
        self.changes.append(Change("sync"))

    def close(self) -> None:
        """The content stays for the test."""
        self.is_closed = True

    @property
    def allocated(self) -> int:
        """Bytes of pages that are no holes."""
        return len(self._pages) * _PAGE

    def copy(self, *, writable: bool = True) -> MemoryFile:
        """An open file of the same content and no history."""
        other = MemoryFile(self.path.name, writable=writable)
        other._pages = dict(self._pages)
        other._size = self._size
        return other

    def apply(self, change: Change) -> None:
        """Do a recorded change here, unrecorded."""
        if change.kind == "write":
            self._store(change.data, change.offset)
        elif change.kind == "resize":
            self._resize(change.length)
        elif change.kind == "punch":
            self._punch(change.offset, change.length)


def _pages(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(page number, first, last) of the parts of [start, stop) by page."""
    while start < stop:
        number = start // _PAGE
        last = min(stop, (number + 1) * _PAGE)
        yield number, start, last
        start = last


MODES = ("all", "none", "some", "sectors", "pages")
"""What a crash keeps of the changes since the last sync: all, none, some of them whole, or some
sectors of 512 or pages of 4096 bytes of each."""


class CrashPoints:
    """The files that crashes could leave, moment by moment. `start` is the file before the first
    change; `at` is called with rising moments."""

    def __init__(self, start: MemoryFile, changes: list[Change]) -> None:
        self._changes = changes
        self._stable = start.copy()
        self._stable_until = 0

    def at(self, moment: int, mode: str, seed: int) -> MemoryFile:
        """The file after a crash with `moment` changes issued."""
        for index in range(self._stable_until, moment):
            if self._changes[index].kind == "sync":
                for change in self._changes[self._stable_until : index]:
                    self._stable.apply(change)
                self._stable_until = index + 1
        left = self._stable.copy()
        pending = self._changes[self._stable_until : moment]
        if mode == "none":
            return left
        if mode == "all":
            for change in pending:
                left.apply(change)
            return left
        choice = random.Random(seed)
        unit = {"some": 0, "sectors": 512, "pages": _PAGE}[mode]
        parts = [part for change in pending for part in _split(change, unit)]
        kept = [part for part in parts if choice.random() < 0.5]
        for change in kept:
            left.apply(change)
        return left


def _split(change: Change, unit: int) -> list[Change]:
    if change.kind != "write" or not unit:
        return [change]
    step = unit - change.offset % unit
    cuts = [0, *range(step, len(change.data), unit), len(change.data)]
    return [
        Change("write", change.offset + first, change.data[first:last])
        for first, last in pairwise(cuts)
        if first < last
    ]
