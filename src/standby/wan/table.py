"""From names to locations, in memory: the index of the global cache.

Owns the kernel `wan_cache`; `ext/include/wan_bucket.h` draws the buckets. An entry takes about 10
bytes: 64-byte buckets hold 7 entries of 22 bits of the name and a 48-bit location, 75 to 97 % full.
The table begins with a 64th of its budget and grows shard by shard, each step a few milliseconds at
most, few of them in one call (putting 3 million names into a table of 30 MiB, 4,096 a call, no call
took more than 7 ms of processor time). Everything in it is a hint: losing an entry costs bytes on
the wire, never truth.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from standby._kernels import wan_cache

Names = NDArray[np.uint8]
Locations = NDArray[np.uint64]
Room = NDArray[np.uint8]

NONE = np.uint64(wan_cache.NONE)
"""What `lookup` answers for a name it does not know: 2^64 - 1."""

LOCATION_LAST: int = wan_cache.LOCATION_LAST
"""The largest location, 2^48 - 2. Counted in pieces of 4 KiB that reaches 2^60 bytes, 1 EiB."""

BUDGET_MIN: int = wan_cache.SHARD_BYTES
"""One shard: 1 MiB, some 110,000 entries."""

SAMPLED_ONE_IN = 16
"""The share of names that a table beyond its budget keeps: those whose first byte has its low four
bits 0."""

_WORDS = 4
_VERSION, _BUCKETS, _ENTRIES, _MARKS = range(_WORDS)


@dataclass(frozen=True, slots=True)
class TableStats:
    """What a table holds and what it takes."""

    entries: int
    memory_bytes: int
    """Buckets in use, descriptions of shards, and the room to rebuild one."""
    budget_bytes: int
    is_sampled: bool
    """Beyond its budget: one in SAMPLED_ONE_IN names is kept."""
    dropped: int
    """Names that were not put in, since the table was made: no samples, or no room."""


class LookupTable:
    """Names (n, 16) uint8 to locations (n,) uint64, in at most `budget_bytes` of buckets.

    Every name goes in while there is room. Beyond that the table keeps samples, one name in 16 by
    its own bits, and drops the others (those put in before, too, as their shards fill up); a hit on
    a sample tells where to look for its neighbours. What finds no room even so is dropped. Emptied
    with `clear` it begins anew with every name.

    Names must be evenly spread, as keyed digests are; their bytes 0 to 3, 14 and 15 count. Answers
    may be wrong: 15 to 21 bits of a name decide within a bucket, so a name that was never put in
    has an answer with a probability of up to 1 in 2,500 (samples: 1 in 150), and a name may hide
    behind one that came later: callers verify content.

    Thread-safe: look-ups take no lock and run beside one writer; writers take turns. A look-up that
    meets a shard in change asks again, and at last waits for the writer. Calls release the GIL.
    """

    def __init__(self, budget_bytes: int) -> None:
        """An empty table. ValueError for less than BUDGET_MIN; a budget is used in whole MiB."""
        if budget_bytes < BUDGET_MIN:
            raise ValueError(f"a budget has at least {BUDGET_MIN} bytes, not {budget_bytes}")
        self._count = budget_bytes // BUDGET_MIN
        self._map, start = _reserved(self._count * BUDGET_MIN)
        self._room: Room = np.frombuffer(self._map, np.uint8, self._count * BUDGET_MIN, start)
        self._start = start
        self._is_huge = np.zeros(self._count // 2, bool)
        self._shards = np.zeros((self._count, _WORDS), np.uint32)
        self._shards[:, _BUCKETS] = wan_cache.BUCKETS_FIRST
        self._scratch = np.empty(wan_cache.SHARD_BYTES, np.uint8)
        self._counts = np.zeros(3, np.int64)
        self._is_sampled = False
        self._writing = threading.Lock()

    def insert(self, names: Names, locations: Locations) -> int:
        """Put in names (n, 16) uint8 with locations (n,) uint64 of at most LOCATION_LAST; returns
        how many are in now. A name that is there gets the new location. ValueError for shapes and
        locations that do not fit, then nothing is put in."""
        names, locations = _rows(names), _numbers(locations)
        if len(names) != len(locations):
            raise ValueError(f"{len(names)} names, but {len(locations)} locations")
        if not len(names):
            return 0
        if int(locations.max()) > LOCATION_LAST:
            raise ValueError(f"a location is at most {LOCATION_LAST}, not {int(locations.max())}")
        with self._writing:
            before = int(self._counts[2])
            done = 0
            while True:
                done = wan_cache.insert(
                    self._room,
                    self._shards,
                    names,
                    locations,
                    done,
                    self._is_sampled,
                    self._scratch,
                    self._counts,
                )
                if done == len(names):
                    self._use_huge_pages()
                    return done - (int(self._counts[2]) - before)
                self._is_sampled = True

    def lookup(self, names: Names, out: Locations | None = None) -> Locations:
        """(n,) uint64: a location for each of names (n, 16) uint8, NONE where there is none.
        Written into `out` where given."""
        names = _rows(names)
        found = np.empty(len(names), np.uint64) if out is None else out
        if len(names) and self._look(names, found):
            with self._writing:
                self._look(names, found)
        return found

    def _look(self, names: Names, found: Locations) -> int:
        return wan_cache.lookup(self._room, self._shards, names, found, True)

    def remove(self, names: Names, locations: Locations) -> int:
        """Forget the names that are at just these locations; returns how many were."""
        names, locations = _rows(names), _numbers(locations)
        if len(names) != len(locations):
            raise ValueError(f"{len(names)} names, but {len(locations)} locations")
        if not len(names):
            return 0
        with self._writing:
            return wan_cache.remove(self._room, self._shards, names, locations)

    def remove_between(self, start: int, stop: int) -> int:
        """Forget every name whose location lies in start <= x < stop; returns how many did. Reads
        the whole table, shard by shard, while other writers have their turns."""
        stop = min(stop, LOCATION_LAST + 1)
        if start >= stop:
            return 0
        if start < 0:
            raise ValueError(f"locations are not negative: {start}")
        removed = 0
        for first in range(0, self._count, _SHARDS_AT_ONCE):
            last = min(first + _SHARDS_AT_ONCE, self._count)
            with self._writing:
                removed += wan_cache.remove_between(
                    self._room, self._shards, first, last, start, stop
                )
        return removed

    def clear(self) -> None:
        """Forget everything and begin anew with every name; the memory goes back where the system
        takes it (Linux)."""
        with self._writing:
            self._shards[:, _VERSION] += 1
            if sys.platform == "linux":
                self._map.madvise(mmap.MADV_DONTNEED)
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
                self._is_huge[:] = False
            else:
                for index in range(self._count):
                    self.shard(index)[:] = 0
            self._shards[:, _BUCKETS] = wan_cache.BUCKETS_FIRST
            self._shards[:, _ENTRIES] = 0
            self._shards[:, _MARKS] = 0
            self._is_sampled = False
            self._shards[:, _VERSION] += 1

    @property
    def entries(self) -> int:
        """How many names are in."""
        return int(self._shards[:, _ENTRIES].sum())

    @property
    def memory_bytes(self) -> int:
        """Bytes of memory the table uses now."""
        buckets = int(self._shards[:, _BUCKETS].sum()) * wan_cache.BUCKET_BYTES
        return buckets + self._shards.nbytes + self._scratch.nbytes

    @property
    def is_sampled(self) -> bool:
        """Whether only one in SAMPLED_ONE_IN names is kept."""
        return self._is_sampled

    def stats(self) -> TableStats:
        """All figures at once."""
        return TableStats(
            entries=self.entries,
            memory_bytes=self.memory_bytes,
            budget_bytes=self._count * BUDGET_MIN,
            is_sampled=self._is_sampled,
            dropped=int(self._counts[2]),
        )

    def _use_huge_pages(self) -> None:
        """Put full-grown shards, two by two, into one huge page each: a look-up then finds its
        bucket's address without reading page tables (`bench/wan_index.py` has what that is worth).
        Earlier it would cost the memory that the shards have yet to grow into."""
        if sys.platform == "linux":
            grown = self._shards[: 2 * len(self._is_huge), _BUCKETS].reshape(-1, 2).min(axis=1)
            for pair in np.flatnonzero((grown >= _HUGE_FROM) & ~self._is_huge):
                self._is_huge[pair] = True
                with contextlib.suppress(OSError):  # a kernel without, or before Linux 6.1
                    place = self._start + int(pair) * _HUGE_PAGE
                    self._map.madvise(mmap.MADV_HUGEPAGE, place, _HUGE_PAGE)
                    self._map.madvise(_MADV_COLLAPSE, place, _HUGE_PAGE)

    # --- for table_file ----------------------------------------------------------------------

    @property
    def shard_count(self) -> int:
        """How many shards the budget is."""
        return self._count

    def shard(self, index: int) -> Room:
        """The used buckets of a shard, in place: whole pieces of 4 KiB."""
        start = index * wan_cache.SHARD_BYTES
        used = int(self._shards[index, _BUCKETS]) * wan_cache.BUCKET_BYTES
        return self._room[start : start + used]

    def copy_of_shard(self, index: int, out: Room) -> int:
        """Copy a shard as it is at one moment to the start of `out`; returns its bytes."""
        with self._writing:
            used = self.shard(index)
            out[: len(used)] = used
            return len(used)

    def take_sizes(self, buckets: NDArray[np.uint32], *, is_sampled: bool) -> None:
        """Give the shards of an empty table, that nobody else knows yet, these sizes. ValueError
        where they are none that shards have."""
        shards = self._shards.copy()
        shards[:, _BUCKETS] = buckets
        wan_cache.check(shards)
        self._shards[:] = shards
        self._is_sampled = is_sampled
        self._use_huge_pages()

    def expect(self, count: int) -> None:
        """Give an empty table, that nobody else knows yet, the size that `count` names need: put in
        then, 4 million took a fifth of the time they take in a table that grows."""
        needed = int(count / self._count / (wan_cache.SLOTS * _EXPECTED_FULL)) + 1
        step, last = wan_cache.BUCKETS_STEP, wan_cache.BUCKETS_LAST
        buckets = min(max(-(-needed // step) * step, wan_cache.BUCKETS_FIRST), last)
        self.take_sizes(np.full(self._count, buckets, np.uint32), is_sampled=False)

    def recount(self) -> None:
        """Count the entries after the shards were filled in place."""
        wan_cache.recount(self._room, self._shards)


_EXPECTED_FULL = 0.88
"""How full `expect` lets a shard become: it would grow at 0.97, and not all are of one size."""

_SHARDS_AT_ONCE = 8
"""Shards that one hold of the lock sweeps: about 5 ms."""


_HUGE_PAGE = 2 * BUDGET_MIN
_HUGE_FROM = wan_cache.BUCKETS_LAST * 7 // 8
_MADV_COLLAPSE = 25
"""linux/mman.h; at once, where MADV_HUGEPAGE alone waits for a thread of the kernel."""


def _reserved(size: int) -> tuple[mmap.mmap, int]:
    """Zeroed memory that is real only where it is touched, and where in it `size` bytes begin on
    the border of a huge page. Without huge pages at first, which would make every two shards take
    one at their first entry."""
    if sys.platform == "win32":
        return mmap.mmap(-1, size), 0
    else:
        room = mmap.mmap(-1, size + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        advice = getattr(mmap, "MADV_NOHUGEPAGE", None)
        if advice is not None:
            room.madvise(advice)
        return room, -np.frombuffer(room, np.uint8).ctypes.data % _HUGE_PAGE


def _rows(names: Any) -> Names:
    rows = np.ascontiguousarray(names)
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != 16:
        raise ValueError(f"names are (n, 16) uint8, not {rows.shape} {rows.dtype}")
    return rows


def _numbers(locations: Any) -> Locations:
    numbers = np.ascontiguousarray(locations)
    if numbers.dtype != np.uint64 or numbers.ndim != 1:
        raise ValueError(f"locations are (n,) uint64, not {numbers.shape} {numbers.dtype}")
    return numbers
