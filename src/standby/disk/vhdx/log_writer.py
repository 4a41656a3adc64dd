"""Writing the log: entries one after another round the ring."""

from __future__ import annotations

from standby.disk.vhdx.structures import DESCRIPTOR_SIZE, ENTRY_HEADER, PAGE, pack_entry
from standby.files import BlockFile

PAGES_PER_ENTRY = (PAGE - ENTRY_HEADER.size) // DESCRIPTOR_SIZE
"""126: one sector of descriptors. Such an entry takes 508 KiB, so that the last committed entry
still fits beside it in the smallest log (1 MiB)."""


class LogWriter:
    """The ring while a file is open for writing. It never syncs: the caller says when it did.

    A reader must find a valid run at every moment at which the header names the log, so a life of
    the log begins with an empty entry, written and synced before the header; and the last entry
    known to be durable is not written over before a newer one is durable too.
    """

    def __init__(self, file: BlockFile, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._size = size
        self._guid = b""
        self._head = 0
        self._tail = 0
        self._sequence = 0
        self._used = 0
        self._reserved = 0
        self._last = 0

    def begin(self, guid: bytes) -> None:
        """Write the empty first entry of a new life."""
        self._guid = guid
        self._head = self._tail = self._used = self._reserved = 0
        self._sequence = 0
        self.append([], self._file.size, self._file.size)
        self.settle()

    @staticmethod
    def length(count: int) -> int:
        """Bytes of an entry of `count` pages, at most PAGES_PER_ENTRY."""
        return PAGE + PAGE * count

    def has_room(self, count: int) -> bool:
        """Whether an entry of `count` pages fits without touching what may still be needed."""
        return self._used + self._reserved + self.length(count) <= self._size

    def append(self, pages: list[tuple[int, bytes]], flushed_size: int, last_size: int) -> None:
        """Write an entry; it counts once the caller has synced the file."""
        assert len(pages) <= PAGES_PER_ENTRY
        if not self._used:
            self._tail = self._head
        self._sequence += 1
        entry = pack_entry(
            pages,
            sequence=self._sequence,
            tail=self._tail,
            log_guid=self._guid,
            flushed_size=flushed_size,
            last_size=last_size,
        )
        first = min(len(entry), self._size - self._head)
        self._file.write(memoryview(entry)[:first], self._offset + self._head)
        if first < len(entry):
            self._file.write(memoryview(entry)[first:], self._offset)
        self._head = (self._head + len(entry)) % self._size
        self._used += len(entry)
        self._last = len(entry)

    def settle(self) -> None:
        """All entries are durable, and so is what they say in its own place: their room is free,
        but for the last one, which a reader still wants to find."""
        self._used = 0
        self._reserved = self._last
