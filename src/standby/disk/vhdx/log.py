"""Reading the log: which entries are to be applied, and what they say (2.3).

The log comes from whoever owned the file, so every number in it is checked before it costs
anything: an entry's checksum is computed at most once, sectors that do not begin an entry of the
current log life are passed over in windows, and the bytes checksummed in all are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from standby.disk.vhdx.crc32c import crc32c
from standby.disk.vhdx.structures import (
    DESCRIPTOR_SIZE,
    ENTRY_HEADER,
    FILE_SIZE_MAX,
    LOG_SIZE_MAX,
    LOGGABLE_FROM,
    PAGE,
    EntryHeader,
    Header,
    guid_text,
    parse_entry_header,
)
from standby.errors import DiskCorrupt
from standby.files import BlockFile
from standby.units import MiB

_DESCRIPTOR_BYTES_MAX = 4 * MiB
_DESCRIPTORS_MAX = LOG_SIZE_MAX // PAGE
_CHECKSUMMED_MAX = 4
"""Times the log's length: entries of one life overlap at most twice in a ring."""

_DESCRIPTOR = np.dtype(
    [("kind", "S4"), ("trailing", "V4"), ("middle", "V8"), ("offset", "<u8"), ("sequence", "<u8")]
)
assert _DESCRIPTOR.itemsize == DESCRIPTOR_SIZE


@dataclass(frozen=True, slots=True)
class Entry:
    """A valid entry and its place in the log."""

    position: int
    header: EntryHeader


@dataclass(frozen=True, slots=True)
class Active:
    """The entries to apply, oldest first; never empty."""

    entries: tuple[Entry, ...]

    @property
    def flushed_size(self) -> int:
        """A shorter file was cut since."""
        return self.entries[-1].header.flushed_size

    @property
    def last_size(self) -> int:
        """Length the file needs to hold all that is allocated."""
        return max(entry.header.last_size for entry in self.entries)


def find_active(file: BlockFile, header: Header) -> Active:
    """The entries of the current log life that are to be applied; DiskCorrupt when there are none
    or when they ask for what cannot be."""
    ring = _Ring(file, header)
    entries = ring.active()
    path = str(file.path)
    if not entries:
        problem, offset, value = ring.rejected or (
            "no entry has its GUID",
            0,
            guid_text(header.log_guid),
        )
        raise DiskCorrupt(
            path,
            f"the header names a log, but the log holds no valid entries of it: {problem}",
            header.log_offset + offset,
            value,
            "The file was damaged or cut off from its log; restore it from elsewhere",
        )
    active = Active(entries)
    head = header.log_offset + entries[-1].position
    if active.flushed_size > file.size:
        raise DiskCorrupt(
            path,
            "the file is shorter than its log says: it was truncated",
            head + 48,
            f"{active.flushed_size:#x}, file {file.size:#x}",
        )
    if active.last_size > FILE_SIZE_MAX:
        raise DiskCorrupt(
            path, "the log asks for an absurd file length", head + 56, f"{active.last_size:#x}"
        )
    count = sum(entry.header.count for entry in entries)
    if count > _DESCRIPTORS_MAX:
        raise DiskCorrupt(path, "the log holds too many descriptors", head + 24, str(count))
    return active


Put = Callable[[int, bytes], None]
Clear = Callable[[int, int], None]


def check(file: BlockFile, header: Header, active: Active) -> None:
    """Raise DiskCorrupt when a descriptor aims at what the log may not change."""
    ring = _Ring(file, header)
    limit = max(file.size, active.last_size)
    for entry in active.entries:
        _check_targets(file, header, entry, ring.descriptors(entry), limit)


def apply(file: BlockFile, header: Header, active: Active, put: Put, clear: Clear) -> None:
    """Call `put(offset, page)` and `clear(offset, length)` for every descriptor, in order."""
    ring = _Ring(file, header)
    for entry in active.entries:
        position = entry.position + entry.header.descriptor_bytes
        for descriptor in ring.descriptors(entry):
            offset = int(descriptor["offset"])
            if descriptor["kind"] == b"zero":
                clear(offset, _zero_length(descriptor))
                continue
            sector = ring.read(position, PAGE)
            position += PAGE
            put(
                offset, bytes(descriptor["middle"]) + sector[8:4092] + bytes(descriptor["trailing"])
            )


def _zero_length(descriptor: np.void) -> int:
    return int.from_bytes(bytes(descriptor["middle"]), "little")


def _check_targets(
    file: BlockFile, header: Header, entry: Entry, descriptors: np.ndarray, limit: int
) -> None:
    where = header.log_offset + entry.position + ENTRY_HEADER.size
    log_stop = header.log_offset + header.log_length
    for index, descriptor in enumerate(descriptors):
        offset = int(descriptor["offset"])
        length = _zero_length(descriptor) if descriptor["kind"] == b"zero" else PAGE
        problem = ""
        if offset % PAGE or length % PAGE:
            problem = "is not whole pages"
        elif offset < LOGGABLE_FROM:
            problem = "lies in the headers"
        elif offset < log_stop and offset + length > header.log_offset:
            problem = "lies in the log"
        elif offset + length > limit:
            problem = f"lies beyond the file's end at {limit:#x}"
        if problem:
            raise DiskCorrupt(
                str(file.path),
                f"log: the target of a descriptor {problem}",
                where + DESCRIPTOR_SIZE * index,
                f"{offset:#x}+{length:#x}",
            )


class _Ring:
    """The log as a ring of bytes, positions counting from its start."""

    def __init__(self, file: BlockFile, header: Header) -> None:
        self._file = file
        self._header = header
        self._size = header.log_length
        self._budget = _CHECKSUMMED_MAX * self._size
        self.rejected: tuple[str, int, str] | None = None
        """Why the first entry that is none was refused: check, offset in the log, value."""

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`, round the end."""
        position %= self._size
        first = min(length, self._size - position)
        data = self._file.read(self._header.log_offset + position, first)
        if first < length:
            data += self._file.read(self._header.log_offset, length - first)
        return data

    def descriptors(self, entry: Entry) -> np.ndarray:
        """(count,) records of the entry's descriptors."""
        size = DESCRIPTOR_SIZE * entry.header.count
        data = self.read(entry.position + ENTRY_HEADER.size, size)
        return np.frombuffer(data, dtype=_DESCRIPTOR)

    def active(self) -> tuple[Entry, ...]:
        """The best run of valid entries from its tail on; () when there is none.

        The search of the reference goes on one page after an invalid run; a run whose last entry
        names a tail outside it stays invalid without its first entries, so all of it is passed.
        """
        best: tuple[Entry, ...] = ()
        reached = 0
        for position in self._marked():
            if position < reached:
                continue
            run = self._run(position)
            if not run:
                continue
            reached = position + sum(entry.header.length for entry in run)
            places = [entry.position for entry in run]
            tail = run[-1].header.tail
            newer = not best or run[-1].header.sequence > best[-1].header.sequence
            if tail not in places:
                self._reject("the tail is at no entry of the run", run[-1].position + 12, tail)
            elif newer:
                best = tuple(run[places.index(tail) :])
        return best

    def _marked(self) -> Iterator[int]:
        """Positions of pages that begin with an entry's signature and the current log's GUID."""
        wanted = np.frombuffer(self._header.log_guid, dtype=np.uint8)
        for start in range(0, self._size, MiB):
            pages = np.frombuffer(self.read(start, MiB), dtype=np.uint8).reshape(-1, PAGE)
            signed = (pages[:, :4] == np.frombuffer(b"loge", dtype=np.uint8)).all(axis=1)
            ours = (pages[:, 32:48] == wanted).all(axis=1)
            for index in np.flatnonzero(signed & ours).tolist():
                yield start + index * PAGE

    def _run(self, position: int) -> list[Entry]:
        run: list[Entry] = []
        total = 0
        while True:
            entry = self._entry((position + total) % self._size)
            if entry is None or total + entry.header.length > self._size:
                return run
            if run and entry.header.sequence != run[-1].header.sequence + 1:
                return run
            run.append(entry)
            total += entry.header.length
            if total == self._size:
                return run

    def _entry(self, position: int) -> Entry | None:
        """The entry at `position`; None when it is invalid in any way."""
        first = self.read(position, PAGE)
        if first[:4] != b"loge":
            return None
        header = parse_entry_header(first)
        if header.log_guid != self._header.log_guid:
            return None
        size, tail = header.length, header.tail
        for is_wrong, problem, field, value in (
            (not 0 < size <= self._size or size % PAGE, "entry length", 8, size),
            (tail % PAGE or tail >= self._size, "tail", 12, tail),
            (header.sequence == 0, "sequence number", 16, header.sequence),
            (
                header.descriptor_bytes > min(size, _DESCRIPTOR_BYTES_MAX),
                "count of descriptors",
                24,
                header.count,
            ),
        ):
            if is_wrong:
                self._reject(problem, position + field, value)
                return None
        entry = Entry(position, header)
        return entry if self._is_whole(entry) else None

    def _reject(self, problem: str, offset: int, value: int) -> None:
        if self.rejected is None:
            self.rejected = (problem, offset, f"{value:#x}")

    def _is_whole(self, entry: Entry) -> bool:
        header = entry.header
        descriptors = self.descriptors(entry)
        is_data = descriptors["kind"] == b"desc"
        known = is_data | (descriptors["kind"] == b"zero")
        ours = descriptors["sequence"] == header.sequence
        whole = header.descriptor_bytes + PAGE * int(is_data.sum())
        if not bool((known & ours).all()):
            index = int(np.flatnonzero(~(known & ours))[0])
            place = entry.position + ENTRY_HEADER.size + DESCRIPTOR_SIZE * index
            problem = "signature or sequence number of a descriptor"
            self._reject(problem, place, int(descriptors["sequence"][index]))
            return False
        if header.length != whole:
            self._reject("entry length and its descriptors", entry.position + 8, header.length)
            return False
        self._budget -= header.length
        if self._budget < 0:
            raise DiskCorrupt(
                str(self._file.path),
                "log: entries overlap in more ways than a log can",
                self._header.log_offset + entry.position,
                f"{header.length:#x}",
            )
        return self._has_checksum(entry)

    def _has_checksum(self, entry: Entry) -> bool:
        header = entry.header
        checksum = 0
        for start in range(0, header.length, MiB):
            size = min(MiB, header.length - start)
            data = bytearray(self.read(entry.position + start, size))
            if start == 0:
                data[4:8] = bytes(4)
            sectors = np.frombuffer(data, dtype="<u4").reshape(-1, PAGE // 4)
            sectors = sectors[max(0, (header.descriptor_bytes - start) // PAGE) :]
            signature, high, low = sectors[:, 0], sectors[:, 1], sectors[:, -1]
            whole = (
                (signature == int.from_bytes(b"data", "little"))
                & (high == header.sequence >> 32)
                & (low == header.sequence & 0xFFFFFFFF)
            )
            if not bool(whole.all()):
                self._reject("a data sector is of another entry", entry.position, header.sequence)
                return False
            checksum = crc32c(data, checksum)
        if checksum != header.checksum:
            self._reject("entry checksum", entry.position + 4, header.checksum)
        return checksum == header.checksum
