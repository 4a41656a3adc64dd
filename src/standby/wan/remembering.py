"""What a source's accelerator remembers of the disks that went through it, in bounded memory.

Digests of what the target's newest restore point of each disk holds (knowledge.SourceIndex), and
the content that was sent last (source_store.SourceStore). Both are hints: the target checks what it
rebuilds. They live as long as the process, for all disks of all tenants together; a disk refers to
nothing but itself, because that is what the target opens for it.

What a session writes is learned as it goes, and counts when the target says that its newest point
is that session's. A target whose point is another one than expected (a session that went another
way, a failover, another source) has everything forgotten of that disk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from standby.wan.knowledge import SourceIndex
from standby.wan.locations import Names, NewTable
from standby.wan.references import PIECE, Array
from standby.wan.source_store import NOW_PIECES, SourceStore
from standby.wan.table import BUDGET_MIN

Pieces = NDArray[np.uint8]
Mask = NDArray[np.bool_]

INDEX_MIN = 4 * BUDGET_MIN
"""Of less there is no index, and nothing is remembered."""

DISKS_MAX = 4096

BYTES_PER_PIECE = 9
"""Of a disk that is written all over, in a session: what knowledge.SourceIndex has beside its
tables."""

PIECES_SHARE = 4
"""That may be so many times the tables' memory for all disks together, by their virtual sizes: half
a terabyte for 256 MiB. What a disk does not store takes nothing of it."""

WRONG_MAX = 16
"""Units that referred to a disk and came out wrong in a session: what is remembered of it is
wrong. As many may be the rare name taken for another one, or a disk damaged at the target."""


@dataclass(slots=True)
class _Disk:
    base: int
    size: int
    point: str = ""
    """The session whose restore point is what counts here, '' before the first one."""
    finished: str = ""
    """The last session that sent all of its disk by way of this accelerator."""
    is_empty: bool = True
    """Nothing was learned."""
    is_in_use: bool = False


class SourceMemory:
    """All that one accelerator remembers. Thread-safe."""

    def __init__(self, new_table: NewTable, index_bytes: int, store_bytes: int) -> None:
        """At most `index_bytes` of tables, PIECES_SHARE times as much beside them, and
        `store_bytes` of content (0: none)."""
        self._pieces_max = index_bytes * PIECES_SHARE // BYTES_PER_PIECE
        self._index: SourceIndex | None = None
        if index_bytes >= INDEX_MIN:
            self._index = SourceIndex(
                bytes(32), new_table, index_bytes, has_anchors=store_bytes >= PIECE, gives_now=False
            )
        self._store = SourceStore(store_bytes)
        self._lock = threading.RLock()
        self._disks: OrderedDict[tuple[bytes, str, str], _Disk] = OrderedDict()

    def disk(self, key: bytes, replica: str, disk_id: str, size: int) -> DiskMemory | None:
        """A disk's part, for one session at a time; `close` it. None: nothing is remembered, there
        is no room for it beside disks under way, or another task is at it."""
        if self._index is None or _pieces(size) > self._pieces_max:
            return None
        name = key, replica, disk_id
        with self._lock:
            found = self._disks.get(name)
            if found is not None and found.is_in_use:
                return None
            if found is not None and found.size != size:
                self._drop(name)
                found = None
            while found is None and not self._has_room(size):
                idle = next((n for n, disk in self._disks.items() if not disk.is_in_use), None)
                if idle is None:
                    return None
                self._drop(idle)
            if found is None:
                try:
                    found = _Disk(self._index.add_disk(size), size)
                except (ValueError, MemoryError):  # no addresses left, or none of the system's
                    return None
                self._disks[name] = found
            self._disks.move_to_end(name)
            found.is_in_use = True
            return DiskMemory(self._index, self._store, self._lock, found, key)

    @property
    def held_bytes(self) -> int:
        """Of content, now."""
        with self._lock:
            return self._store.held_bytes

    def _has_room(self, size: int) -> bool:
        taken = sum(_pieces(disk.size) for disk in self._disks.values())
        return len(self._disks) < DISKS_MAX and taken + _pieces(size) <= self._pieces_max

    def _drop(self, name: tuple[bytes, str, str]) -> None:
        disk = self._disks.pop(name)
        assert self._index is not None
        self._index.drop_disk(disk.base)
        self._store.clear(disk.base, disk.size)


def _pieces(size: int) -> int:
    return -(-size // PIECE)


class DiskMemory:
    """What is remembered of one disk, for one session; addresses count from its beginning.

    It is both what an Encoder knows (`encoding.Known`) and what it shares (`matching.Shared`).
    """

    def __init__(
        self,
        index: SourceIndex,
        store: SourceStore,
        lock: threading.RLock,
        disk: _Disk,
        key: bytes,
    ) -> None:
        self._index = index
        self._store = store
        self._lock = lock
        self._disk = disk
        self._key = key
        self._pieces = _pieces(disk.size)
        self._wrong = 0
        self.learns = True
        """Whether it may be of use to learn what is sent."""
        self.refers = False
        """Whether the target can read what is found here."""

    def begin(self, point: str | None) -> None:
        """The target's newest point is that session's, '' where there is none yet; None where it
        cannot be read there."""
        disk = self._disk
        if point is None:
            self.learns = not disk.is_empty  # else it may never be of use
            return
        if disk.finished and point == disk.finished:
            self._index.commit(disk.base)
            with self._lock:
                self._store.commit(disk.base, disk.size)
            disk.finished = ""
        elif point != disk.point and not disk.is_empty:
            self._forget()
        disk.point = point
        self.refers = bool(point) and not disk.is_empty

    def finished(self, session: str) -> None:
        """The target has all that the session wrote."""
        self._disk.finished = session

    def wrong(self, units: int) -> None:
        """So many units that referred to something here did not come out right."""
        self._wrong += units
        if self._wrong > WRONG_MAX and self.refers:
            self._forget()

    def close(self) -> None:
        """The session's part has ended."""
        self._disk.is_in_use = False

    def _forget(self) -> None:
        disk = self._disk
        self.refers = False
        self._index.clear_disk(disk.base)
        with self._lock:
            self._store.clear(disk.base, disk.size)
        disk.finished = ""
        disk.is_empty = True

    # --- encoding.Known ----------------------------------------------------------------------

    def find_pieces(self, names: Names) -> Array:
        """See encoding.Known."""
        return self._own(self._index.find_pieces(names) if self.refers else None, len(names))

    def find_parts(self, digests: Names) -> Array:
        """See encoding.Known."""
        return self._own(self._index.find_parts(digests) if self.refers else None, len(digests))

    def find_anchors(self, fingerprints: NDArray[np.uint64]) -> Array:
        """See encoding.Known."""
        found = self._index.find_anchors(fingerprints) if self.refers else None
        return self._own(found, len(fingerprints))

    def _own(self, found: Array | None, count: int) -> Array:
        if found is None:
            return np.full(count, -1, np.int64)
        places = found - self._disk.base
        return np.where((places >= 0) & (places < self._pieces * PIECE), places, -1)

    def learn(
        self,
        base: int,
        offsets: Array,
        names: Names,
        data: Pieces,
        parts: tuple[Array, Array, Names] | None = None,
    ) -> None:
        """See encoding.Known."""
        disk = self._disk
        if not self.learns:
            return
        disk.is_empty = False
        self._index.learn(disk.base, offsets, names, data, parts, self._key)
        if not self._store.size_bytes:
            return
        pieces = disk.base // PIECE + offsets // PIECE
        is_zero = ~data.view(np.uint64).any(axis=1)
        with self._lock:
            if is_zero.any():
                zeros = pieces[is_zero]
                self._store.overwrite(np.stack((zeros, np.ones_like(zeros)), 1))
                pieces, data = pieces[~is_zero], data[~is_zero]
            self._store.put(pieces + NOW_PIECES, data)

    def unlearn(self, runs: Array) -> None:
        """The session wrote into these runs, (n, 2) int64 first piece and pieces, ascending, what
        is not learned: zeros, and what went another way."""
        if self._disk.is_empty or not len(runs):
            return
        self._index.unlearn(self._disk.base, runs)
        with self._lock:
            self._store.overwrite(runs + np.array([self._disk.base // PIECE, 0]))

    # --- matching.Shared ---------------------------------------------------------------------

    def has(self, pieces: Array) -> Mask:
        """See matching.Shared."""
        if not self.refers:
            return np.zeros(len(pieces), bool)
        inside: Mask = (pieces >= 0) & (pieces < self._pieces)
        with self._lock:
            inside[inside] = self._store.has(self._disk.base // PIECE + pieces[inside])
        return inside

    def read(self, pieces: Array) -> Pieces:
        """See matching.Shared; KeyError for what is not here any more."""
        with self._lock:
            return self._store.read(self._disk.base // PIECE + pieces)
