"""One tenant's part of the cache: take in, look up, read.

Names are computed at the target from the bytes (RULES 21): when content comes in, and again before
it is handed out. What does not fit its name is never given to anybody, but for transfers that prove
what they rebuild of it by a digest of their own (`read_into`).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from standby.errors import StandbyError
from standby.wan.appending import Run
from standby.wan.counting import Counters
from standby.wan.disk_content import DiskChanged, DiskReaders
from standby.wan.locations import (
    NONE,
    Locations,
    Mask,
    NamePieces,
    Table,
    located,
    numbers_of,
    positions_of,
)
from standby.wan.neighbours import Columns, confirmed, extended, groups, widened
from standby.wan.payloads import RUN_PIECES, Buffer, Pieces, packed
from standby.wan.reading import decoded_records, spans
from standby.wan.segment_file import (
    NAME,
    PIECE,
    Directory,
    Names,
    SegmentDamaged,
)
from standby.wan.segments import Segment, SegmentAway, Shelf, is_content
from standby.wan.writing import Intake


class Core(Protocol):
    """What the namespaces of a cache share."""

    shelf: Shelf
    table: Table
    intake: Intake
    counters: Counters
    disks: DiskReaders
    name_pieces: NamePieces


class Pin:
    """Keeps segments from eviction while a transfer counts on what it was told. Release it in the
    end, or use it as a context manager. Thread-safe."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._held: dict[int, int] = {}

    def hold(self, locations: Locations) -> None:
        """Keep the segments of these locations, as far as they are there."""
        self._shelf.pin(_counted(locations), self._held)

    def let_go(self, locations: Locations) -> None:
        """Give up so much of what was held: a segment is kept while any location of it is."""
        self._shelf.unpin(_counted(locations), self._held)

    def release(self) -> None:
        """Give them all up; a second call does nothing."""
        self._shelf.unpin(None, self._held)

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _counted(locations: Locations) -> dict[int, int]:
    """How many of the locations lie in each segment."""
    numbers, counts = np.unique(numbers_of(locations[locations != NONE]), return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist(), strict=True))


class Namespace:
    """The content of one tenant key. Thread-safe: any number of sources at once."""

    def __init__(self, core: Core, key: bytes, fingerprint: bytes) -> None:
        self._core = core
        self.key = key
        self.fingerprint = fingerprint
        self._owner = core.shelf.namespace(fingerprint)
        zero = np.zeros((1, PIECE), dtype=np.uint8)
        self._zero_name: Names = core.name_pieces(zero, key)[0]

    def names(self, data: Buffer) -> Names:
        """The names of the pieces of `data`, whose length is whole pieces: (n, 16) uint8."""
        return self._core.name_pieces(as_pieces(data), self.key)

    # --- taking in ---

    def add(self, data: Buffer) -> Names:
        """Take in the pieces of `data`, as far as they are neither zeros nor known; the names of
        all of them. Never raises for storage that is full or fails."""
        return self.take_in(data)[0]

    def take_in(self, data: Buffer, names: Names | None = None) -> tuple[Names, int]:
        """As `add`; the names, and how many pieces are in the cache that were not before. `names`
        of a caller that has just computed them from these very bytes."""
        pieces = as_pieces(data)
        if names is None:
            names = self.names(pieces)
        if len(names) != len(pieces):
            raise ValueError(f"{len(names)} names of {len(pieces)} pieces")
        with self._core.intake.lock:  # or what two sources bring at once would be there twice
            fresh = np.flatnonzero(self.are_new(names))
            if not len(fresh):
                return names, 0
            runs = list(_runs(pieces, names, fresh))
            return names, self._core.intake.take(self.fingerprint, runs)

    def are_new(self, names: Names) -> Mask:
        """Which names are worth taking in: the first of each that is neither known nor zeros."""
        known = self._found(names) != NONE
        new: Mask = ~known & ~self.are_zero(names)
        places = np.flatnonzero(new)
        whole = np.ascontiguousarray(names[places]).view(f"V{NAME}").ravel()
        _, first = np.unique(whole, return_index=True)
        new[:] = False
        new[places[first]] = True
        return new

    def are_zero(self, names: Names) -> Mask:
        """Which names are that of a piece of zeros."""
        equal: Mask = (names == self._zero_name).all(axis=1)
        return equal

    # --- looking up ---

    def lookup(self, names: Names, pin: Pin | None = None, columns: Columns = ()) -> Locations:
        """A location per name, NONE for those that the cache does not have. `pin` keeps what was
        found. With `columns` only those bytes of the names count, and are what is asked for:
        (n, len(columns)). An answer is a hint: reading proves it."""
        if columns:
            names = widened(names, columns)
        found = self._found(names, columns)
        if pin is not None:
            pin.hold(found)
            gone = ~self._core.shelf.usable(found, self._owner)
            pin.let_go(found[gone])
            found = np.where(gone, NONE, found)
        self._core.counters.add(asked=len(names), found=int(np.count_nonzero(found != NONE)))
        return found

    def _found(self, names: Names, columns: Columns = ()) -> Locations:
        if not len(names):
            return np.empty(0, dtype=np.uint64)
        core = self._core
        found = core.table.lookup(np.ascontiguousarray(names))
        found = np.where(core.shelf.usable(found, self._owner), found, NONE)
        found = confirmed(names, found, columns, core.shelf.names_at)
        if core.table.is_sampled:
            found, added = extended(names, found, columns, core.shelf.names_of)
            core.counters.add(extended=added)
        return found

    def pin(self) -> Pin:
        """A new pin for one transfer."""
        return Pin(self._core.shelf)

    # --- reading ---

    def read(self, locations: Locations, names: Names | None = None) -> tuple[Pieces, Mask]:
        """The pieces at `locations`, (n, 4096) uint8, and which of them are what they should be;
        the others are zeros. With `names`, (n, 16), only content of just these names is given out.

        The name of each piece is computed from the bytes read. Content that does not fit its name
        is dropped from the cache, and counted.
        """
        data = np.empty((len(locations), PIECE), dtype=np.uint8)
        expected, is_read = self._read_all(locations, np.arange(len(locations)), data)
        ok = is_read.copy()
        if names is not None:
            ok &= (expected == names).all(axis=1)
        false_hits = int(np.count_nonzero(is_read & ~ok))
        rows = np.flatnonzero(ok)
        part = data if len(rows) == len(data) else data[rows]
        if len(rows):
            wrong = rows[(self._core.name_pieces(part, self.key) != expected[rows]).any(axis=1)]
            self._drop(expected[wrong], locations[wrong])
            ok[wrong] = False
        data[~ok] = 0
        given = int(np.count_nonzero(ok))
        self._core.counters.add(read=given, missed=len(ok) - given, false_hits=false_hits)
        return data, ok

    def read_into(self, locations: Locations, rows: npt.NDArray[np.int64], out: Pieces) -> Mask:
        """Fill these rows of `out` (m, 4096) with what stands at `locations`, and say which could
        be read. Nothing is proven: for callers that check what comes of it against a digest, and
        tell `disprove` where that fails."""
        _, is_read = self._read_all(locations, rows, out)
        ok = is_read[rows]
        given = int(np.count_nonzero(ok))
        self._core.counters.add(read=given, missed=len(ok) - given)
        return ok

    def disprove(self, locations: Locations, names: Names) -> None:
        """Content read at `locations` had these names (n, 16): drop what should have others."""
        core = self._core
        for group in groups(numbers_of(locations)):
            held = core.shelf.names_at(
                int(numbers_of(locations[group])[0]), positions_of(locations[group])
            )
            if held is not None:
                wrong = (held != names[group]).any(axis=1)
                self._drop(held[wrong], locations[group[wrong]])

    def _read_all(
        self, locations: Locations, rows: npt.NDArray[np.int64], out: Pieces
    ) -> tuple[Names, Mask]:
        """Fill rows of `out`; the names that these should have, and which were read, by row."""
        expected = np.zeros((len(out), NAME), dtype=np.uint8)
        is_read = np.zeros(len(out), dtype=np.bool_)
        usable = np.flatnonzero(self._core.shelf.usable(locations, self._owner))
        numbers = numbers_of(locations[usable])
        for group in groups(numbers):
            chosen = usable[group]
            segment = self._core.shelf.get(int(numbers[group[0]]))
            if segment is not None:
                positions = positions_of(locations[chosen])
                self._read_from(segment, rows[chosen], positions, out, expected, is_read)
        return expected, is_read

    def _drop(self, names: Names, locations: Locations) -> None:
        if len(names):
            self._core.table.remove(np.ascontiguousarray(names), locations)
            self._core.counters.add(damaged=len(names))

    def _read_from(
        self,
        segment: Segment,
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        data: Pieces,
        expected: Names,
        is_read: Mask,
    ) -> None:
        """Fill the rows of one segment."""
        core = self._core
        try:
            directory, held = core.shelf.facts(segment)
        except SegmentAway:
            return
        except (SegmentDamaged, StandbyError):
            core.intake.drop(segment)
            core.counters.add(damaged=len(rows))
            return
        order = np.argsort(positions, kind="stable")
        order = order[positions[order] < len(held)]
        rows, positions = rows[order], positions[order]
        expected[rows] = held[positions]
        records = np.searchsorted(directory["first"], positions, side="right") - 1
        if not is_content(segment):
            self._read_disk(segment, directory, records, rows, positions, data, is_read)
            return
        self._read_content(segment, directory, held, records, rows, positions, data, is_read)
        segment.hit(np.unique(records[is_read[rows]]))

    def _read_content(
        self,
        segment: Segment,
        directory: Directory,
        held: Names,
        records: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        data: Pieces,
        is_read: Mask,
    ) -> None:
        runs: dict[int, list[tuple[int, int, int]]] = {}
        for row, position, index, count in spans(rows, positions, records):
            runs.setdefault(index, []).append((row, position, count))
        wanted = np.array(list(runs), dtype=np.int64)
        firsts = directory["first"][wanted].astype(np.int64).tolist()
        first_of = dict(zip(runs, firsts, strict=True))
        try:
            for index, pieces in decoded_records(self._core.shelf, segment, directory, wanted):
                if pieces is None:
                    count = sum(run[2] for run in runs[index])
                    self._drop_record(segment, directory, held, index, count)
                    continue
                first = first_of[index]
                for row, position, count in runs[index]:
                    data[row : row + count] = pieces[position - first : position - first + count]
                    is_read[row : row + count] = True
        except SegmentDamaged:
            self._core.intake.drop(segment)
            self._core.counters.add(damaged=len(rows))

    def _drop_record(
        self, segment: Segment, directory: Directory, held: Names, index: int, count: int
    ) -> None:
        segment.bad.add(index)
        first, pieces = int(directory["first"][index]), int(directory["count"][index])
        names = held[first : first + pieces]
        self._core.table.remove(np.ascontiguousarray(names), located(segment.number, first, pieces))
        self._core.counters.add(damaged=count)

    def _read_disk(
        self,
        segment: Segment,
        directory: Directory,
        records: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        data: Pieces,
        is_read: Mask,
    ) -> None:
        disk = segment.header.disk
        assert disk is not None
        firsts = directory["first"][records].astype(np.int64)
        places = directory["place"][records].astype(np.int64) + (positions - firsts)
        try:
            pieces, ok = self._core.disks.read(disk, places)
        except DiskChanged:
            self._core.intake.drop(segment)
            self._core.counters.add(invalidated=1)
            return
        data[rows] = pieces
        is_read[rows] = ok


def as_pieces(data: Buffer) -> Pieces:
    """`data`, any contiguous bytes of whole pieces, as (n, 4096) uint8 without a copy."""
    flat = np.frombuffer(data, dtype=np.uint8) if not isinstance(data, np.ndarray) else data
    flat = flat.reshape(-1)
    if flat.dtype != np.uint8 or len(flat) % PIECE:
        raise ValueError(f"{len(flat)} bytes are not whole pieces of {PIECE}")
    return np.ascontiguousarray(flat.reshape(-1, PIECE))


def _runs(pieces: Pieces, names: Names, fresh: npt.NDArray[np.int64]) -> Iterator[Run]:
    for start in range(0, len(fresh), RUN_PIECES):
        chosen = fresh[start : start + RUN_PIECES]
        if int(chosen[-1]) - int(chosen[0]) == len(chosen) - 1:
            held = pieces[int(chosen[0]) : int(chosen[-1]) + 1]
        else:
            held = pieces[chosen]
        payload, codec = packed(held)
        yield Run(names[chosen], payload, codec)
