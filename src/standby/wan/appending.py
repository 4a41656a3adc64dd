"""Appending to the one open segment of a namespace.

Nothing is synced per record: what is lost with the power costs bytes, never truth. The file's data
is synced after every `SYNC_BYTES`, on `flush`, and before a segment counts as sealed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from standby import clock, killpoints
from standby.errors import StandbyError
from standby.files import File, remove_plainly, sync_folder
from standby.units import MiB
from standby.wan.segment_file import (
    DIRECTORY,
    NAME,
    PIECES_MAX,
    RECORD_HEAD,
    Buffer,
    Directory,
    DiskFile,
    Header,
    Names,
    Record,
    footer_size,
    packed_footer,
    packed_header,
    packed_record,
)
from standby.wan.segments import Found, Segment, segment_path

SYNC_BYTES = 64 * MiB
_WRITE_BYTES = 4 * MiB


@dataclass(frozen=True, slots=True)
class Run:
    """Pieces that become one record: their names, and the payload as it is to be stored."""

    names: Names
    payload: Buffer
    codec: int
    place: int = 0

    @property
    def length(self) -> int:
        """Bytes of the record."""
        return RECORD_HEAD + NAME * len(self.names) + len(self.payload)


class OpenSegment:
    """The segment that takes what is new. One thread at a time appends; others read meanwhile."""

    def __init__(self, file: File, found: Found) -> None:
        """`found`: what stands in `file` already."""
        assert found.directory is not None
        assert found.names is not None
        self.segment = found.segment
        self.segment.live = self._facts
        self._file = file
        self._unsynced = 0
        self._lock = threading.Lock()
        self._directory = _grown(found.directory, 64)
        self._names = _grown(found.names, 1024)

    @classmethod
    def create(
        cls,
        folder: Path,
        number: int,
        kind: int,
        namespace: bytes,
        disk: DiskFile | None = None,
    ) -> OpenSegment:
        """A new, empty segment."""
        header = Header(kind, number, clock.new_uuid().bytes, namespace, disk)
        data = packed_header(header)
        path = segment_path(folder, number)
        file = File(path, create=True)
        try:
            file.write(data, 0)
            sync_folder(folder)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError, StandbyError):
                remove_plainly(path)
            raise
        segment = Segment(path, header, len(data), len(data), 0, 0, False)
        empty = np.empty((0, NAME), dtype=np.uint8)
        return cls(file, Found(segment, np.empty(0, dtype=DIRECTORY), empty))

    @classmethod
    def resume(cls, found: Found) -> OpenSegment:
        """Go on with one that was left open; what stands behind its last sound record is cut."""
        file = File(found.segment.path, writable=True)
        try:
            if file.size > found.segment.size:
                file.resize(found.segment.size)
        except BaseException:
            file.close()
            raise
        return cls(file, found)

    def _facts(self) -> tuple[Directory, Names]:
        with self._lock:
            segment = self.segment
            return self._directory[: segment.records], self._names[: segment.pieces]

    def fitting(self, runs: Sequence[Run], size_max: int) -> int:
        """How many of the runs, from the first on, belong here still: sealed with them, the segment
        has at most `size_max` bytes."""
        segment = self.segment
        size, pieces, records = segment.size, segment.pieces, segment.records
        for number, run in enumerate(runs):
            size, pieces, records = size + run.length, pieces + len(run.names), records + 1
            if pieces > PIECES_MAX or size + footer_size(records, pieces) > size_max:
                return number
        return len(runs)

    def append(self, runs: Sequence[Run]) -> None:
        """Write one record per run. Raises DiskFull, DiskIO: then nothing of this call counts."""
        if not runs:
            return
        segment = self.segment
        rows, parts = [], []
        position, pieces, number = segment.size, segment.pieces, segment.records
        written = position
        try:
            for run in runs:
                count = len(run.names)
                record = Record(number, pieces, count, run.codec, run.place, run.names, run.payload)
                rows.append((position, run.place, pieces, count, len(run.payload), run.codec))
                parts.extend(packed_record(segment.header, record))
                position, pieces, number = position + run.length, pieces + count, number + 1
                if position - written >= _WRITE_BYTES:
                    self._file.write(b"".join(parts), written)
                    parts, written = [], position
            if parts:
                self._file.write(b"".join(parts), written)
            self._unsynced += position - segment.size
            if self._unsynced >= SYNC_BYTES:
                self.sync()
        except StandbyError:
            self._cut()
            raise
        killpoints.reach("cache: appended")
        with self._lock:
            self._directory = _extended(
                self._directory, segment.records, np.array(rows, dtype=DIRECTORY)
            )
            self._names = _extended(
                self._names, segment.pieces, np.concatenate([run.names for run in runs])
            )
            segment.size, segment.pieces, segment.records = position, pieces, number

    def _cut(self) -> None:
        """Give back what a failed write took; where that fails too, the next write or the next
        opening does it."""
        try:
            self._file.resize(self.segment.size)
        except StandbyError:
            pass

    def sync(self) -> None:
        """Make what was appended stable."""
        self._file.sync()
        self._unsynced = 0

    def seal(self) -> tuple[Directory, Names]:
        """Write the footer and make all of it stable; the segment's facts. Raises DiskFull, DiskIO:
        then it is still open."""
        segment = self.segment
        directory, names = self._facts()
        data = b"".join(packed_footer(segment.header, segment.size, directory, names))
        try:
            self._file.write(data, segment.size)
            killpoints.reach("cache: footer written")
            self._file.sync()
        except StandbyError:
            self._cut()
            raise
        segment.size += len(data)
        segment.is_sealed = True
        segment.live = None
        self._file.close()
        return directory, names

    def close(self, *, sync: bool = True) -> None:
        """Leave it as it is, to be gone on with."""
        try:
            if sync and self._unsynced:
                self.sync()
        finally:
            self._file.close()


def _grown(array: np.ndarray, least: int) -> np.ndarray:
    held = np.zeros((max(least, len(array)), *array.shape[1:]), dtype=array.dtype)
    held[: len(array)] = array
    return held


def _extended(array: np.ndarray, used: int, more: np.ndarray) -> np.ndarray:
    """`array` with `more` from `used` on; a larger one where it has no room, so that whoever reads
    the former is not disturbed."""
    needed = used + len(more)
    if needed > len(array):
        array = _grown(array[:used], max(needed, 2 * len(array)))
    array[used:needed] = more
    return array
