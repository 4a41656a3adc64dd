"""What the source knows that the target holds: digests, never content.

Every disk that goes through the accelerator has a range of addresses of its own; an address names
a byte of a disk as its previous restore point has it, or, with NOW added, as the session under way
has written it. The tables are hints with some 30 bits of each name; a check of 16 others stands at
the address itself, so that a wrong or outdated hint is dropped here and not at the target.

Per 4 KiB of disk, beside the tables: 2 bytes for the piece, 2 for the part that begins in it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from standby.chunking import WINDOW, anchors, cuts
from standby.wan.locations import NONE, Names, NewTable
from standby.wan.references import NOW, PIECE, Array

Pieces = NDArray[np.uint8]

PART_MIN, PART_TARGET, PART_MAX = 2048, 6144, 32768
"""Parts of about 8 KiB: of the sizes whose digests fit in 0.2 % of the data, the smallest."""

ANCHOR_PERIOD = 8192
"""Half as rare costs twice the memory for 1 to 5 % fewer bytes (bench/wan_bytes.py --small)."""


def run_borders(offsets: Array) -> Array:
    """First pieces of the batch's runs on the disk, and behind them the number of pieces."""
    breaks = np.flatnonzero(np.diff(offsets) != PIECE) + 1
    return np.concatenate(([0], breaks, [len(offsets)])).astype(np.int64)


def parts_of(data: Pieces, borders: Array, key: bytes) -> tuple[Array, Array, Names]:
    """(starts, lengths, digests) of the parts of every run: content-defined from cut to cut."""
    content: Any = data.reshape(-1)
    view = memoryview(content)
    starts: list[Array] = []
    lengths: list[Array] = []
    for first, stop in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        begin, length = first * PIECE, (stop - first) * PIECE
        ends = cuts(view[begin : begin + length], key, PART_MIN, PART_TARGET, PART_MAX)
        sizes = np.diff(ends, prepend=0)
        starts.append(begin + ends - sizes)
        lengths.append(sizes)
    if not starts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 16), np.uint8)
    at, sizes = np.concatenate(starts), np.concatenate(lengths)
    joined = b"".join(
        [
            blake3(view[start : start + size], key=key).digest(16)
            for start, size in zip(at.tolist(), sizes.tolist(), strict=True)
        ]
    )
    return at, sizes, np.frombuffer(joined, np.uint8).reshape(-1, 16)


def anchor_names(fingerprints: NDArray[np.uint64]) -> Names:
    """Fingerprints as keys of a table of names."""
    mixed = fingerprints * np.uint64(0x9E3779B97F4A7C15)
    return np.stack((fingerprints, mixed), 1).view(np.uint8)


@dataclass(slots=True)
class _Checks:
    """16 bits of a name per piece of one disk: as it was, and as written in this session."""

    before: NDArray[np.uint16]
    now: NDArray[np.uint16]

    @staticmethod
    def of(pieces: int) -> _Checks:
        return _Checks(np.zeros(pieces, np.uint16), np.zeros(pieces, np.uint16))


@dataclass(slots=True)
class _Disk:
    base: int
    pieces: _Checks
    parts: _Checks
    is_written: NDArray[np.bool_] = field(repr=False)

    def forget(self) -> None:
        """Nothing is written in a session."""
        pieces = len(self.is_written)
        self.pieces.now = np.zeros(pieces, np.uint16)
        self.parts.now = np.zeros(pieces, np.uint16)
        self.is_written = np.zeros(pieces, bool)


def _checks(names: Names, addresses: Array) -> NDArray[np.uint16]:
    """16 bits of each name and of where in its piece it begins, or it would be taken for the same
    content elsewhere in that piece; never 0, which says that nothing is known."""
    words = np.ascontiguousarray(names).view("<u4")[:, 2].astype(np.uint32)
    within = (addresses % PIECE).astype(np.uint32) * np.uint32(0x9E3779B1)
    mixed: NDArray[np.uint16] = ((words ^ within) >> np.uint32(16)).astype(np.uint16)
    return np.maximum(mixed, np.uint16(1))


class SourceIndex:
    """Digests of what the target holds, by content. Thread-safe: one for all disks; a look-up
    beside a change finds the hint or does not."""

    def __init__(
        self,
        key: bytes,
        new_table: NewTable,
        budget_bytes: int,
        *,
        has_anchors: bool = True,
        gives_now: bool = True,
    ) -> None:
        """`budget_bytes` for all tables together. Without `has_anchors`, which only deltas need,
        there is a quarter less to remember. Without `gives_now` nothing refers to what the session
        under way wrote: for targets that cannot read it."""
        self._has_anchors = has_anchors
        self._gives_now = gives_now
        self._key = key
        self._names = new_table(budget_bytes // 2)
        self._parts = new_table(budget_bytes // 4)
        self._anchors = new_table(budget_bytes // 4)
        self._disks: tuple[_Disk, ...] = ()
        self._changing = threading.Lock()

    def add_disk(self, size: int) -> int:
        """The first address of a disk of `size` bytes."""
        pieces = -(-size // PIECE)
        with self._changing:
            last = self._disks[-1] if self._disks else None
            base = last.base + len(last.is_written) * PIECE if last else 0
            if base + pieces * PIECE > NOW:
                raise ValueError(f"no addresses left for a disk of {size} bytes")
            written = np.zeros(pieces, bool)
            made = _Disk(base, _Checks.of(pieces), _Checks.of(pieces), written)
            self._disks = (*self._disks, made)
            return base

    def drop_disk(self, base: int) -> None:
        """Forget the disk at `base`. Its addresses are given out again where no disk is behind."""
        with self._changing:
            self._disks = tuple(disk for disk in self._disks if disk.base != base)

    def clear_disk(self, base: int) -> None:
        """Forget what is in the disk at `base`."""
        with self._changing:
            disk = self._disk(base)
            disk.forget()
            disk.pieces.before = np.zeros_like(disk.pieces.now)
            disk.parts.before = np.zeros_like(disk.parts.now)

    @property
    def memory_bytes(self) -> int:
        """Of tables and checks."""
        tables = (self._names, self._parts, self._anchors)
        checks = sum(c.before.nbytes for d in self._disks for c in (d.pieces, d.parts))
        return sum(table.memory_bytes for table in tables) + checks

    @property
    def entries(self) -> tuple[int, int, int]:
        """Pieces, parts, anchors."""
        return self._names.entries, self._parts.entries, self._anchors.entries

    def find_pieces(self, names: Names) -> Array:
        """Addresses (n,) int64 of pieces with these names, -1 for those not known."""
        return self._confirmed(self._names.lookup(names), names, "pieces")

    def find_parts(self, digests: Names) -> Array:
        """Addresses (n,) int64 of parts with these digests, -1 for those not known."""
        return self._confirmed(self._parts.lookup(digests), digests, "parts")

    def find_anchors(self, fingerprints: NDArray[np.uint64]) -> Array:
        """Addresses (n,) int64 where such anchors were seen, -1 for those not known; without a
        check and without NOW: a hint where to look."""
        found = self._anchors.lookup(anchor_names(fingerprints))
        return np.where(found == NONE, np.int64(-1), found.astype(np.int64))

    def learn(
        self,
        base: int,
        offsets: Array,
        names: Names,
        data: Pieces,
        parts: tuple[Array, Array, Names] | None = None,
        key: bytes = b"",
    ) -> None:
        """The target has written this batch into the disk at `base`; `parts` as from `parts_of`,
        where they are made already; `key` where the disk has another one than the index."""
        key = key or self._key
        starts, _, digests = parts or parts_of(data, run_borders(offsets), key)
        part_places = offsets[starts // PIECE] + starts % PIECE
        marks, anchor_places = self._marks(offsets, data, key)
        with self._changing:
            disk = self._disk(base)
            self._names.insert(names, (base + offsets).astype(np.uint64))
            self._parts.insert(digests, (base + part_places).astype(np.uint64))
            self._anchors.insert(marks, (base + anchor_places).astype(np.uint64))
            disk.pieces.now[offsets // PIECE] = _checks(names, offsets)
            disk.parts.now[part_places // PIECE] = _checks(digests, part_places)
            disk.is_written[offsets // PIECE] = True

    def unlearn(self, base: int, runs: Array) -> None:
        """The target has written into these runs of the disk at `base`, (n, 2) int64 first piece
        and pieces, what is not known here."""
        with self._changing:
            disk = self._disk(base)
            for first, count in runs.tolist():
                written = slice(first, first + count)
                disk.pieces.now[written] = 0
                disk.parts.now[written] = 0
                disk.is_written[written] = True

    def _marks(self, offsets: Array, data: Pieces, key: bytes) -> tuple[Names, Array]:
        """The anchors of a batch as keys of the table, and where on the disk they are."""
        if not self._has_anchors:
            return np.empty((0, 16), np.uint8), np.empty(0, np.int64)
        positions, fingerprints = anchors(data.reshape(-1), key, ANCHOR_PERIOD)
        inside = positions - WINDOW
        return anchor_names(fingerprints), offsets[inside // PIECE] + inside % PIECE

    def commit(self, base: int) -> None:
        """What the session wrote into the disk at `base` is its newest restore point."""
        with self._changing:
            disk = self._disk(base)
            written = np.flatnonzero(disk.is_written)
            disk.pieces.before[written] = disk.pieces.now[written]
            for back in range(PART_MAX // PIECE + 1):
                disk.parts.before[np.maximum(written - back, 0)] = 0
            fresh = np.flatnonzero(disk.parts.now)
            disk.parts.before[fresh] = disk.parts.now[fresh]
            disk.forget()

    def give_up(self, base: int) -> None:
        """What the session wrote into the disk at `base` does not count."""
        with self._changing:
            self._disk(base).forget()

    def _disk(self, base: int) -> _Disk:
        return next(disk for disk in self._disks if disk.base == base)

    def _by_disk(self, addresses: Array) -> list[tuple[_Disk, Array, Array]]:
        """(disk, rows of `addresses` within it, their pieces)."""
        disks = self._disks
        bases = np.array([disk.base for disk in disks], np.int64)
        numbers = np.searchsorted(bases, addresses, side="right") - 1
        found = []
        for number in np.unique(numbers[(addresses >= 0) & (numbers >= 0)]).tolist():
            disk = disks[number]
            rows = np.flatnonzero((numbers == number) & (addresses >= 0))
            index = (addresses[rows] - disk.base) // PIECE
            inside = index < len(disk.is_written)
            found.append((disk, rows[inside], index[inside]))
        return found

    def _confirmed(self, hints: NDArray[np.uint64], names: Names, of: str) -> Array:
        hinted = np.where(hints == NONE, np.int64(-1), hints.astype(np.int64))
        checks = _checks(names, hinted)
        confirmed = np.full(len(hints), -1, np.int64)
        for disk, rows, index in self._by_disk(hinted):
            there: _Checks = disk.pieces if of == "pieces" else disk.parts
            now = (there.now[index] == checks[rows]) & self._gives_now
            before = there.before[index] == checks[rows]
            addresses = hinted[rows] + np.where(before, 0, NOW)
            confirmed[rows] = np.where(before | now, addresses, -1)
        return confirmed
