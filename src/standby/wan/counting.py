"""What a cache counts, and what it says of itself."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from standby.wan.segments import Segment, Shelf, is_content


class Counters:
    """Sums since the cache was opened. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values = dict.fromkeys(COUNTED, 0)

    def add(self, **more: int) -> None:
        """Count."""
        with self._lock:
            for name, count in more.items():
                self._values[name] += count

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def all(self) -> dict[str, int]:
        """Every sum by its name."""
        with self._lock:
            return dict(self._values)


COUNTED = (
    "asked",  # names looked up
    "found",  # of these, known
    "extended",  # of these, found only beside another one (sampled mode)
    "read",  # pieces handed out
    "missed",  # pieces that were asked for by location and were not there any more
    "false_hits",  # of these, places that held other content than was asked for
    "damaged",  # of these, pieces whose bytes were not what they had been
    "added",  # pieces taken in
    "not_cached",  # pieces not taken in: no room, or storage that fails
    "evicted",  # segments removed for room
    "copied_forward",  # pieces kept at that
    "invalidated",  # segments of entries into disk files that changed or went
)


@dataclass(frozen=True, slots=True)
class NamespaceStatus:
    """What one tenant's part of the cache takes."""

    fingerprint: str
    segments: int
    bytes: int
    pieces: int
    disk_pieces: int
    """Pieces that stand in disk files, not in the cache."""


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """What a cache says of itself. `mode`: 'full', each 4 KiB piece has its entry; 'sampled', one
    in 16 has, and its neighbours are found through it."""

    folder: str
    limit_bytes: int
    bytes: int
    segments: int
    open_segments: int
    pinned_segments: int
    pieces: int
    disk_pieces: int
    entries: int
    mode: str
    memory_bytes: int
    memory_max_bytes: int
    index_bytes: int
    """Of that, what the lookup table may take."""
    stopped_by: str
    """Why nothing is taken in at the moment, '' while it is."""
    problems: tuple[str, ...]
    """What was wrong with the folder when it was opened."""
    namespaces: tuple[NamespaceStatus, ...]
    counts: dict[str, int]


def cache_status(folder: Path, shelf: Shelf, **facts: Any) -> CacheStatus:
    """The status of the segments on a shelf, with the other `facts` as they are given."""
    segments = list(shelf)
    pieces = sum(segment.pieces for segment in segments if is_content(segment))
    by_namespace: dict[bytes, list[Segment]] = {}
    for segment in segments:
        by_namespace.setdefault(segment.header.namespace, []).append(segment)
    return CacheStatus(
        folder=str(folder),
        bytes=sum(segment.size for segment in segments),
        segments=len(segments),
        open_segments=sum(not segment.is_sealed for segment in segments),
        pinned_segments=sum(shelf.is_pinned(segment) for segment in segments),
        pieces=pieces,
        disk_pieces=sum(segment.pieces for segment in segments) - pieces,
        namespaces=tuple(
            _namespace_status(mark, held) for mark, held in sorted(by_namespace.items())
        ),
        **facts,
    )


def _namespace_status(mark: bytes, segments: list[Segment]) -> NamespaceStatus:
    content = sum(segment.pieces for segment in segments if is_content(segment))
    return NamespaceStatus(
        fingerprint=mark.hex(),
        segments=len(segments),
        bytes=sum(segment.size for segment in segments),
        pieces=content,
        disk_pieces=sum(segment.pieces for segment in segments) - content,
    )
