"""The target's global cache: content by its keyed name, shared by all sources (FORMAT.md).

One process has a cache folder open for writing. Everything in it is a hint: an entry that is lost
or damaged costs the bytes of one literal resend, never a wrong byte, because content is handed out
only after its name was computed from it again.
"""

from __future__ import annotations

import threading
from pathlib import Path

import blake3

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import ConfigurationError, StandbyError
from standby.files import ByteLock, make_folder_durably
from standby.wan.appending import OpenSegment
from standby.wan.counting import CacheStatus, Counters, NamespaceStatus
from standby.wan.disk_content import DiskReaders
from standby.wan.locations import NamePieces, NewTable, located
from standby.wan.namespace import Namespace, Pin
from standby.wan.segment_file import SegmentDamaged
from standby.wan.segments import Found, Segment, Shelf, is_content, read_segment, segment_paths
from standby.wan.writing import Intake, Limits, Warn

__all__ = ["GlobalCache", "Limits", "Namespace", "Pin", "fingerprint"]

LOCK_NAME = ".lock"
KEY_BYTES = 32
_CONTEXT = b"standby global cache: namespace"


def fingerprint(key: bytes) -> bytes:
    """What names a tenant's namespace on disk: it tells nothing of the key."""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            "tenant key", f"{len(key)} bytes", f"A tenant key has {KEY_BYTES} bytes"
        )
    return blake3.blake3(_CONTEXT, key=key).digest(16)


class GlobalCache:
    """An open cache. Thread-safe; `close` it, or use it as a context manager."""

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        *,
        new_table: NewTable,
        name_pieces: NamePieces,
        clock: Clock = SYSTEM_CLOCK,
        warn: Warn = lambda text: None,
    ) -> None:
        """Open the cache in `folder`, or begin one there. Raises DiskBusy where another process has
        it, DiskIO and DiskFull where the folder cannot be made.

        What was sealed is found by its footer; a segment that was open is read up to its last sound
        record and gone on with. A file of which nothing can be used is removed, and told.
        """
        self.folder = folder
        self.limits = limits
        self.shelf = Shelf(limits.facts_bytes)
        self.table = new_table(limits.index_bytes)
        self.counters = Counters()
        self.disks = DiskReaders()
        self.name_pieces = name_pieces
        self.problems: tuple[str, ...] = ()
        self._warn = warn
        self._namespaces: dict[bytes, Namespace] = {}
        self._lock = threading.Lock()
        self._is_closed = False
        make_folder_durably(folder)
        self._file_lock = ByteLock(folder / LOCK_NAME)
        self._file_lock.acquire_or_raise("another process uses the cache")
        try:
            found = self._load()
            self.intake = Intake(
                folder,
                self.shelf,
                self.table,
                limits,
                clock=clock,
                warn=warn,
                counters=self.counters,
            )
            self._resume(found)
        except BaseException:
            self.shelf.close()
            self._file_lock.release()
            raise

    # --- opening ---

    def _load(self) -> list[Found]:
        """Put every segment on the shelf and its names into the table; those that were open."""
        open_ones, problems = [], []
        segments: list[Segment] = []
        for number, path in segment_paths(self.folder):
            try:
                found = read_segment(path, number)
            except (SegmentDamaged, StandbyError) as exc:
                problems.append(f"{path.name}: {exc}")
                path.unlink(missing_ok=True)
                continue
            if found.problem:
                problems.append(
                    f"{path.name}: {found.problem}; {found.segment.pieces} pieces before that are "
                    "kept"
                )
            if not found.segment.is_sealed:
                open_ones.append(found)
            segments.append(found.segment)
        self.shelf.add(*segments)
        for segment in segments:
            if segment.is_sealed:
                problems.extend(self._index(segment))
        for found in open_ones:
            assert found.names is not None
            self.table.insert(found.names, located(found.segment.number, 0, len(found.names)))
        self.problems = tuple(problems)
        for text in problems:
            self._warn(f"the global cache in {self.folder}: {text}")
        return open_ones

    def _index(self, segment: Segment) -> list[str]:
        try:
            _, names = self.shelf.facts(segment)
        except (SegmentDamaged, StandbyError) as exc:
            self.shelf.take_off(segment)
            return [f"{segment.path.name}: {exc}"]
        self.table.insert(names, located(segment.number, 0, len(names)))
        return []

    def _resume(self, open_ones: list[Found]) -> None:
        for found in open_ones:
            try:
                opened = OpenSegment.resume(found)
                if is_content(found.segment):
                    self.intake.resume(opened)
                else:
                    self.intake.seal_entries(opened)
            except StandbyError as exc:
                self._warn(f"the global cache in {self.folder}: {exc}")
                self.intake.drop(found.segment)

    # --- using ---

    def namespace(self, key: bytes) -> Namespace:
        """The part of the cache that belongs to a tenant's key (32 bytes)."""
        mark = fingerprint(key)
        with self._lock:
            found = self._namespaces.get(mark)
            if found is None:
                found = self._namespaces[mark] = Namespace(self, key, mark)
            return found

    def clear(self, key: bytes | None = None) -> int:
        """Remove everything, or what belongs to a key; how many segments. Transfers under way get
        misses."""
        return self.intake.drop_all(None if key is None else fingerprint(key))

    def flush(self) -> None:
        """Return when everything taken in so far is on stable storage, as far as that works."""
        self.intake.flush()

    def status(self) -> CacheStatus:
        """What the cache takes, holds and has done since it was opened."""
        segments = list(self.shelf)
        content = [segment for segment in segments if is_content(segment)]
        by_namespace: dict[bytes, list[Segment]] = {}
        for segment in segments:
            by_namespace.setdefault(segment.header.namespace, []).append(segment)
        pieces = sum(segment.pieces for segment in content)
        return CacheStatus(
            folder=str(self.folder),
            limit_bytes=self.limits.limit_bytes,
            bytes=sum(segment.size for segment in segments),
            segments=len(segments),
            open_segments=sum(not segment.is_sealed for segment in segments),
            pinned_segments=sum(self.shelf.is_pinned(segment) for segment in segments),
            pieces=pieces,
            disk_pieces=sum(segment.pieces for segment in segments) - pieces,
            entries=self.table.entries,
            mode="sampled" if self.table.is_sampled else "full",
            memory_bytes=self.table.memory_bytes + self.shelf.facts_bytes,
            memory_max_bytes=self.limits.index_bytes + self.limits.facts_bytes,
            is_caching=not self.intake.stopped_by,
            stopped_by=self.intake.stopped_by,
            problems=self.problems,
            namespaces=tuple(
                namespace_status(mark, held) for mark, held in sorted(by_namespace.items())
            ),
            counts=self.counters.all(),
        )

    def close(self) -> None:
        """Make what was taken in stable and give the folder up; a second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        try:
            self.intake.close()
        finally:
            self.disks.close()
            self.shelf.close()
            self._file_lock.release()

    def __enter__(self) -> GlobalCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def namespace_status(mark: bytes, segments: list[Segment]) -> NamespaceStatus:
    """What the segments of one namespace take."""
    content = sum(segment.pieces for segment in segments if is_content(segment))
    return NamespaceStatus(
        fingerprint=mark.hex(),
        segments=len(segments),
        bytes=sum(segment.size for segment in segments),
        pieces=content,
        disk_pieces=sum(segment.pieces for segment in segments) - content,
    )
