"""One segment of the cache in memory, and the shelf of all of them.

What is kept of a sealed segment is its header, its sizes and how often its records were hit; its
directory and its names are read from the footer when they are asked for, and the least recently
used ones are forgotten beyond a bound. So are open files.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby import killpoints
from standby.errors import StandbyError
from standby.files import File, remove_durably
from standby.wan.locations import NUMBER_MAX, Locations, Mask, numbers_of
from standby.wan.segment_file import (
    CONTENT,
    NAME,
    TRAILER,
    Directory,
    Header,
    Names,
    SegmentDamaged,
    footer_counts,
    footer_place,
    read_footer,
    read_header,
    scanned,
)

SUFFIX = ".segment"
OPEN_FILES_MAX = 64
_FEW = 16
"""Names read one by one cost some 3 us each, all of a segment's some 1 ms."""


def segment_path(folder: Path, number: int) -> Path:
    """Where a segment of that number stands."""
    return folder / f"{number:09d}{SUFFIX}"


def segment_paths(folder: Path) -> list[tuple[int, Path]]:
    """(number, path) of everything in the folder that is named like a segment, in order."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        if path.stem.isascii() and path.stem.isdigit() and 0 < int(path.stem) <= NUMBER_MAX:
            found.append((int(path.stem), path))
    return sorted(found)


class SegmentAway(SegmentDamaged):
    """Nothing is known to be wrong with the segment, but it cannot be read now."""


@dataclass(eq=False, slots=True)
class Segment:
    """One segment file. `size` and `pieces` of an open one grow."""

    path: Path
    header: Header
    start: int
    """Offset of the first record."""
    size: int
    records: int
    pieces: int
    is_sealed: bool
    live: Callable[[], tuple[Directory, Names]] | None = None
    """The open segment's directory and names, which no footer holds yet."""
    hits: npt.NDArray[np.uint8] | None = None
    """Per record, how often it was read since the last pass of the eviction; None: never."""
    bad: set[int] = field(default_factory=set)
    """Records that turned out to be damaged."""
    is_gone: bool = False
    users: int = 0
    file: File | None = None

    @property
    def number(self) -> int:
        """Its number."""
        return self.header.number

    def hit(self, records: npt.NDArray[np.int64]) -> None:
        """Count a read of these records."""
        if self.hits is None or len(self.hits) < self.records:
            grown = np.zeros(max(self.records, 64), dtype=np.uint8)
            if self.hits is not None:
                grown[: len(self.hits)] = self.hits
            self.hits = grown
        counts = self.hits[records].astype(np.int64) + 1
        self.hits[records] = np.minimum(counts, 255)


@dataclass(frozen=True, slots=True)
class Found:
    """A segment file as it was found: when not sealed, with what its records say."""

    segment: Segment
    directory: Directory | None = None
    names: Names | None = None
    problem: str = ""
    """What ends it early, '' when nothing does."""


def read_segment(path: Path, number: int) -> Found:
    """The segment in a file, changing nothing; raises SegmentDamaged where nothing of it can be
    used, DiskIO where it cannot be read.

    A sealed one is taken by its footer. Without a sound footer the records are read, up to the
    first that is not sound.
    """
    with File(path) as file:
        header, start = read_header(file)
        if header.number != number:
            raise SegmentDamaged(f"it says it is number {header.number}")
        problem = ""
        place = footer_place(file, header)
        if place is not None:
            try:
                records, pieces = footer_counts(file, header, place)
                segment = Segment(path, header, start, file.size, records, pieces, True)
                return Found(segment)
            except SegmentDamaged as exc:
                problem = str(exc)
        directory, names, end, torn = scanned(file, header, start)
        if end < file.size and not torn:
            problem = problem or "its end is damaged"
        segment = Segment(path, header, start, end, len(directory), len(names), False)
        return Found(segment, directory, names, problem or torn)


class Shelf:
    """All segments, by number: which of them count for which namespace, who uses them now, and the
    bounded memory of their directories and names. Thread-safe."""

    def __init__(self, facts_bytes: int) -> None:
        self._lock = threading.RLock()
        self._segments: dict[int, Segment] = {}
        self._namespaces: dict[bytes, int] = {}
        self._numbers = np.empty(0, dtype=np.int64)
        self._owners = np.empty(0, dtype=np.int64)
        """The numbers in order, and the namespace of each."""
        self._pins: dict[int, int] = {}
        """How many owners of pins hold each segment."""
        self._facts: OrderedDict[int, tuple[Directory, Names]] = OrderedDict()
        self._facts_max = facts_bytes
        self._facts_size = 0
        self._open: OrderedDict[int, Segment] = OrderedDict()

    # --- what is there ---

    def __iter__(self) -> Iterator[Segment]:
        with self._lock:
            return iter([self._segments[number] for number in sorted(self._segments)])

    def __len__(self) -> int:
        return len(self._segments)

    def get(self, number: int) -> Segment | None:
        """The segment of that number, None where there is none."""
        return self._segments.get(number)

    @property
    def used_bytes(self) -> int:
        """Bytes of all segment files."""
        with self._lock:
            return sum(segment.size for segment in self._segments.values())

    @property
    def facts_bytes(self) -> int:
        """Memory that directories and names of sealed segments take now."""
        return self._facts_size

    def namespace(self, fingerprint: bytes) -> int:
        """A small number for a namespace, the same in this process for the same fingerprint."""
        with self._lock:
            return self._namespaces.setdefault(fingerprint, len(self._namespaces))

    def add(self, *segments: Segment) -> None:
        """From now on the segments' pieces can be found."""
        with self._lock:
            self._segments.update({segment.number: segment for segment in segments})
            self._renumber()

    def _renumber(self) -> None:
        self._numbers = np.array(sorted(self._segments), dtype=np.int64)
        self._owners = np.array(
            [self.namespace(self._segments[n].header.namespace) for n in self._numbers.tolist()],
            dtype=np.int64,
        )

    def usable(self, locations: Locations, namespace: int) -> Mask:
        """Which locations lie in a segment that is there and belongs to the namespace."""
        with self._lock:
            numbers, owners = self._numbers, self._owners
        if not len(numbers):
            return np.zeros(len(locations), dtype=np.bool_)
        wanted = numbers_of(locations)
        places = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        found: Mask = (numbers[places] == wanted) & (owners[places] == namespace)
        return found

    def take_off(self, segment: Segment) -> None:
        """Nothing finds the segment any more; its file goes as soon as nobody reads it."""
        with self._lock:
            if self._segments.pop(segment.number, None) is None:
                return
            self._renumber()
            self._forget_facts(segment.number)
            segment.is_gone = True
            if segment.users == 0:
                self._remove(segment)

    def _remove(self, segment: Segment) -> None:
        self._close_file(segment)
        killpoints.reach("cache: removing")
        with contextlib.suppress(StandbyError):  # then the next opening finds it again
            remove_durably(segment.path)

    # --- pins ---

    def pin(self, counts: dict[int, int], held: dict[int, int]) -> None:
        """Keep these segments, as far as they are there, from eviction; `held` counts what its
        owner keeps of each."""
        with self._lock:
            for number, count in counts.items():
                if number in held:
                    held[number] += count
                elif number in self._segments:
                    held[number] = count
                    self._pins[number] = self._pins.get(number, 0) + 1

    def unpin(self, counts: dict[int, int] | None, held: dict[int, int]) -> None:
        """Take so much off what is held of each, None: all."""
        with self._lock:
            for number, count in list((held if counts is None else counts).items()):
                if number not in held:
                    continue
                held[number] -= count
                if held[number] <= 0:
                    del held[number]
                    self._pins[number] -= 1
                    if not self._pins[number]:
                        del self._pins[number]

    def is_pinned(self, segment: Segment) -> bool:
        """Whether a transfer counts on it."""
        return segment.number in self._pins

    # --- reading ---

    @contextlib.contextmanager
    def using(self, segment: Segment) -> Iterator[File]:
        """The segment's open file, which stays open and there until the block ends. Raises
        SegmentAway when it is gone already or cannot be opened now, SegmentDamaged when its file
        is missing."""
        with self._lock:
            if segment.is_gone:
                raise SegmentAway("the segment is gone")
            if segment.file is None:
                segment.file = self._opened(segment)
            segment.users += 1
            self._open[segment.number] = segment
            self._open.move_to_end(segment.number)
            self._close_some()
            file = segment.file
        try:
            yield file
        finally:
            with self._lock:
                segment.users -= 1
                if segment.is_gone and segment.users == 0:
                    self._remove(segment)

    def _opened(self, segment: Segment) -> File:
        try:
            return File(segment.path)
        except StandbyError as exc:
            if segment.path.exists():
                raise SegmentAway(str(exc)) from exc
            raise SegmentDamaged("the file is missing") from exc

    def _close_some(self) -> None:
        for number in list(self._open):
            if len(self._open) <= OPEN_FILES_MAX:
                return
            segment = self._open[number]
            if segment.users == 0 and segment.is_sealed:
                self._close_file(segment)

    def _close_file(self, segment: Segment) -> None:
        self._open.pop(segment.number, None)
        if segment.file is not None:
            segment.file.close()
            segment.file = None

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for segment in list(self._segments.values()):
                self._close_file(segment)

    def facts(self, segment: Segment) -> tuple[Directory, Names]:
        """The segment's directory and names. Raises SegmentDamaged, DiskIO."""
        if segment.live is not None:
            return segment.live()
        with self._lock:
            held = self._facts.get(segment.number)
            if held is not None:
                self._facts.move_to_end(segment.number)
                return held
        with self.using(segment) as file:
            place = footer_place(file, segment.header)
            if place is None:
                raise SegmentDamaged("the end of the segment is damaged")
            read = read_footer(file, segment.header, place)
        if (len(read[0]), len(read[1])) != (segment.records, segment.pieces):
            raise SegmentDamaged("the footer is another one than it was")
        self.keep_facts(segment, read)
        return read

    def names_of(self, number: int) -> Names | None:
        """The names of a segment, zeros for those of damaged records; None where it is gone or its
        footer damaged."""
        segment = self.get(number)
        if segment is None:
            return None
        try:
            directory, names = self.facts(segment)
        except (SegmentDamaged, StandbyError):
            return None
        if segment.bad:
            names = names.copy()
            for index in sorted(segment.bad):
                first = int(directory["first"][index])
                names[first : first + int(directory["count"][index])] = 0
        return names

    def names_at(self, number: int, positions: npt.NDArray[np.int64]) -> Names | None:
        """The names at some positions, zeros behind the end; None as `names_of`. A few are read
        alone where the segment's names are not in memory."""
        segment = self.get(number)
        if segment is None:
            return None
        few = len(positions) <= _FEW and segment.live is None and not segment.bad
        if few and number not in self._facts:
            return self._read_names(segment, positions)
        names = self.names_of(number)
        if names is None:
            return None
        found = np.zeros((len(positions), NAME), dtype=np.uint8)
        inside = positions < len(names)
        found[inside] = names[positions[inside]]
        return found

    def _read_names(self, segment: Segment, positions: npt.NDArray[np.int64]) -> Names | None:
        found = np.zeros((len(positions), NAME), dtype=np.uint8)
        start = segment.size - TRAILER - NAME * segment.pieces
        try:
            with self.using(segment) as file:
                for row, position in enumerate(positions.tolist()):
                    if position < segment.pieces:
                        file.read_into(found[row].data, start + NAME * position)
        except (SegmentDamaged, StandbyError):
            return None
        return found

    def keep_facts(self, segment: Segment, facts: tuple[Directory, Names]) -> None:
        """Remember a sealed segment's directory and names, as long as there is room."""
        with self._lock:
            if segment.is_gone or segment.number in self._facts:
                return
            self._facts[segment.number] = facts
            self._facts_size += _size(facts)
            while self._facts_size > self._facts_max and len(self._facts) > 1:
                self._forget_facts(next(iter(self._facts)))

    def _forget_facts(self, number: int) -> None:
        held = self._facts.pop(number, None)
        if held is not None:
            self._facts_size -= _size(held)


def _size(facts: tuple[Directory, Names]) -> int:
    return int(facts[0].nbytes + facts[1].nbytes)


def is_content(segment: Segment) -> bool:
    """Whether the segment holds pieces itself."""
    return segment.header.kind == CONTENT
