"""Taking content in: one open segment per namespace, the size limit, storage that is full.

Whatever goes wrong here costs the cache content, never the replication: nothing is raised. When
the storage is full or fails, taking in stops, with one warning, and is tried again later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from standby.clock import Clock
from standby.errors import DiskFull, StandbyError
from standby.files import free_bytes
from standby.units import format_bytes
from standby.wan.appending import OpenSegment, Run
from standby.wan.counting import Counters
from standby.wan.eviction import copied_runs, hot_records, victim
from standby.wan.limits import Limits
from standby.wan.locations import NUMBER_MAX, Table, located
from standby.wan.segment_file import CONTENT, IN_DISK, DiskFile, SegmentDamaged
from standby.wan.segments import Segment, Shelf, segment_paths

Warn = Callable[[str], None]

RETRY_S = 30.0


class _NoRoomError(Exception):
    """Everything that could go is pinned."""


class Intake:
    """Appends to the cache within its limits."""

    def __init__(
        self,
        folder: Path,
        shelf: Shelf,
        table: Table,
        limits: Limits,
        *,
        clock: Clock,
        warn: Warn,
        counters: Counters,
        told: Callable[[], None] = lambda: None,
    ) -> None:
        """`told` is called whenever a segment was begun."""
        self._folder = folder
        self._shelf = shelf
        self._table = table
        self._limits = limits
        self._segment_bytes = limits.segment_size()
        self._clock = clock
        self._warn = warn
        self._counters = counters
        self._told = told
        self._lock = threading.RLock()
        self._open: dict[bytes, OpenSegment] = {}
        self._open_entries: list[OpenSegment] = []
        numbers = [number for number, _ in segment_paths(folder)]
        self._next_number = max(numbers, default=0) + 1
        """Above all files, those too that cannot be used."""
        self._retry_at = 0.0
        self._has_warned = False
        self.stopped_by = ""
        """Why nothing is taken in at the moment, '' while it is."""

    @property
    def lock(self) -> threading.RLock:
        """Held while the cache's files change."""
        return self._lock

    # --- taking in ---

    def resume(self, open_segment: OpenSegment) -> None:
        """Go on with a segment that an earlier process left open."""
        former = self._open.get(open_segment.segment.header.namespace)
        if former is not None:
            try:
                self._seal(former)
            except StandbyError:
                former.close(sync=False)  # readable as it is, until the next opening
        self._open[open_segment.segment.header.namespace] = open_segment

    def take(self, namespace: bytes, runs: Sequence[Run]) -> int:
        """Append content; how many pieces are in the cache now, which may be fewer than given."""
        pieces = sum(len(run.names) for run in runs)
        taken = 0
        with self._lock:
            if not self._may_write():
                self._counters.add(not_cached=pieces)
                return 0
            try:
                for group in self._groups(namespace, runs):
                    taken += group
                self._go_on()
            except StandbyError as exc:
                self._stop(exc)
            except _NoRoomError:
                pass
        self._counters.add(added=taken, not_cached=pieces - taken)
        return taken

    def _groups(self, namespace: bytes, runs: Sequence[Run]) -> Iterator[int]:
        """Append the runs segment by segment; the pieces of each group."""
        index = 0
        while index < len(runs):
            opened = self._open_for(namespace, runs[index])
            count = max(1, opened.fitting(runs[index:], self._segment_bytes))
            yield self._append(opened, runs[index : index + count])
            index += count

    def _append(self, opened: OpenSegment, runs: Sequence[Run]) -> int:
        segment = opened.segment
        first = segment.pieces
        opened.append(runs)
        count = segment.pieces - first
        _, names = self._shelf.facts(segment)
        self._table.insert(names[first:], located(segment.number, first, count))
        return count

    def _open_for(self, namespace: bytes, run: Run) -> OpenSegment:
        opened = self._open.get(namespace)
        if opened is not None and opened.fitting([run], self._segment_bytes):
            return opened
        if opened is not None:
            self._seal(opened)
        self._check_room()
        created = self._create(namespace, CONTENT)
        self._open[namespace] = created
        self._evict()
        self._told()
        return created

    def _create(self, namespace: bytes, kind: int, disk: DiskFile | None = None) -> OpenSegment:
        number = self._next_number
        if number > NUMBER_MAX:
            raise DiskFull(str(self._folder), 0, 0)
        created = OpenSegment.create(self._folder, number, kind, namespace, disk)
        self._next_number = number + 1
        self._shelf.add(created.segment)
        return created

    def _seal(self, opened: OpenSegment) -> None:
        facts = opened.seal()
        self._open.pop(opened.segment.header.namespace, None)
        self._shelf.keep_facts(opened.segment, facts)

    def seal_open(self, segment: Segment) -> bool:
        """Seal a segment that is open; False where that cannot be done now."""
        with self._lock:
            opened = self._open.get(segment.header.namespace)
            try:
                if opened is not None and opened.segment is segment:
                    self._seal(opened)
            except StandbyError as exc:
                self._stop(exc)
            return segment.is_sealed

    # --- entries into disk files ---

    def open_disk_segment(self, namespace: bytes, disk: DiskFile) -> OpenSegment | None:
        """A new segment for entries into a disk file, None where nothing is taken in now."""
        with self._lock:
            if not self._may_write():
                return None
            try:
                self._check_room()
                created = self._create(namespace, IN_DISK, disk)
                self._open_entries.append(created)
                self._evict()
                return created
            except StandbyError as exc:
                self._stop(exc)
            except _NoRoomError:
                pass
            return None

    def take_entries(self, opened: OpenSegment, runs: Sequence[Run]) -> bool:
        """Append to such a segment; False where that cannot be done: it is full, or nothing is
        taken in now."""
        with self._lock:
            if opened.fitting(runs, self._segment_bytes) < len(runs):
                return False
            try:
                self._append(opened, runs)
                return True
            except StandbyError as exc:
                self._stop(exc)
                return False

    def seal_entries(self, opened: OpenSegment) -> None:
        """Nothing more comes into such a segment; an empty one goes."""
        with self._lock:
            self._open_entries = [other for other in self._open_entries if other is not opened]
            if opened.segment.pieces == 0:
                opened.close(sync=False)
                self._shelf.take_off(opened.segment)
                return
            try:
                self._shelf.keep_facts(opened.segment, opened.seal())
            except StandbyError as exc:
                self._stop(exc)
                self.drop(opened.segment)
                opened.close(sync=False)

    # --- room ---

    def _reserved(self) -> int:
        """Bytes that are used, each open segment counted as full."""
        used = self._shelf.used_bytes
        for opened in (*self._open.values(), *self._open_entries):
            used += max(0, self._segment_bytes - opened.segment.size)
        return used

    def _check_room(self) -> None:
        """See to it that a new segment stays within the limit; raises _NoRoomError where nothing
        can go. Mostly nothing is to be done: `_evict` leaves room for one."""
        while self._reserved() + self._segment_bytes > self._limits.limit_bytes:
            oldest = victim(self._shelf)
            if oldest is not None:
                self._evict_one(oldest, 0)
            elif not self._seal_oldest():
                raise _NoRoomError

    def _seal_oldest(self) -> bool:
        """Seal the oldest open segment that nobody counts on, so that it can go."""
        for opened in sorted(self._open.values(), key=lambda each: each.segment.number):
            if opened.segment.pieces and not self._shelf.is_pinned(opened.segment):
                self._seal(opened)
                return True
        return False

    def _evict(self) -> None:
        """Remove segments until there is room for a whole one more, or nothing can go."""
        room = self._segment_bytes // 2
        while self._reserved() + self._segment_bytes > self._limits.limit_bytes:
            oldest = victim(self._shelf)
            if oldest is None:
                return
            room -= self._evict_one(oldest, room)

    def _evict_one(self, segment: Segment, room: int) -> int:
        """Remove a segment, what was hit of it copied forward as far as `room` goes; the bytes of
        that."""
        runs: list[Run] = []
        opened = self._open.get(segment.header.namespace)
        if opened is None and room and segment.hits is not None:
            opened = self._open_for_copies(segment.header.namespace)
        if opened is not None and room:
            try:
                directory, _ = self._shelf.facts(segment)
                records = hot_records(segment, directory, room)
                runs = copied_runs(self._shelf, segment, directory, records)
            except (SegmentDamaged, StandbyError):
                runs = []
        if opened is not None and runs:
            runs = runs[: opened.fitting(runs, self._segment_bytes)]
        pieces, length = sum(len(run.names) for run in runs), sum(run.length for run in runs)
        if opened is not None and runs:
            self._append(opened, runs)
            self._counters.add(copied_forward=pieces)
        self.drop(segment)
        self._counters.add(evicted=1)
        return length

    def _open_for_copies(self, namespace: bytes) -> OpenSegment | None:
        """A new open segment for a namespace that has none, where the limit allows it."""
        if self._reserved() + self._segment_bytes > self._limits.limit_bytes:
            return None
        opened = self._open[namespace] = self._create(namespace, CONTENT)
        return opened

    def drop(self, segment: Segment) -> None:
        """Remove a segment and everything that leads to it."""
        with self._lock:
            self.forget(segment)
            self._shelf.take_off(segment)

    def forget(self, segment: Segment) -> None:
        """Remove from the table what leads to a segment."""
        try:
            _, names = self._shelf.facts(segment)
        except (SegmentDamaged, StandbyError):
            start = int(located(segment.number, 0, 1)[0])
            self._table.remove_between(start, start + segment.pieces)
            return
        self._table.remove(names, located(segment.number, 0, len(names)))

    def drop_all(self, namespace: bytes | None) -> int:
        """Remove all segments, or those of one namespace, open ones too; how many."""
        with self._lock:
            for fingerprint, opened in list(self._open.items()):
                if namespace in (None, fingerprint):
                    opened.close(sync=False)
                    del self._open[fingerprint]
            gone = [s for s in self._shelf if namespace in (None, s.header.namespace)]
            for segment in gone:
                if namespace is not None:
                    self.forget(segment)
                self._shelf.take_off(segment)
            if namespace is None:
                self._table.clear()
            self._go_on()
            return len(gone)

    # --- storage that is full, or fails ---

    def _may_write(self) -> bool:
        now = self._clock.monotonic()
        if self.stopped_by and now < self._retry_at:
            return False
        try:
            free = free_bytes(self._folder)
        except OSError as exc:
            self._stop(exc)
            return False
        if free < self._limits.keep_free_bytes:
            self._stop(
                f"{format_bytes(free)} are free in {self._folder}, "
                f"{format_bytes(self._limits.keep_free_bytes)} are to stay free"
            )
            return False
        return True

    def _stop(self, reason: object) -> None:
        self.stopped_by = str(reason)
        self._retry_at = self._clock.monotonic() + RETRY_S
        if not self._has_warned:
            self._has_warned = True
            self._warn(
                f"the global cache in {self._folder} takes nothing in for now: {reason}. "
                "Replication goes on; make room there, or lower the cache's limit"
            )

    def _go_on(self) -> None:
        if self.stopped_by:
            self.stopped_by, self._has_warned = "", False

    # --- the end ---

    def flush(self) -> None:
        """Make everything that was taken in stable."""
        with self._lock:
            try:
                for opened in self._open.values():
                    opened.sync()
            except StandbyError as exc:
                self._stop(exc)

    def close(self) -> None:
        """Leave the open segments to be gone on with, stable."""
        with self._lock:
            for opened in self._open.values():
                try:
                    opened.close()
                except StandbyError as exc:
                    self._warn(f"the global cache in {self._folder}: {exc}")
            self._open.clear()
