"""The extent log: what of a partial disk is acknowledged, and with which leaves (RULES 7).

A record goes into the log only after a data sync of the disk that covers it, so whatever a log
says is on stable storage with exactly those leaves. FORMAT.md describes the bytes. Memory is
12 bytes per (record, page) pair; the leaves themselves are read again from the file, each record
checked by its checksum whenever it is read.

What is appended and its `sync` is one thread's at a time; the reading methods may be called from
others meanwhile.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby.errors import DiskCorrupt, ProtocolError
from standby.files import File, write_durably
from standby.road.extent_records import (
    HEAD,
    KIND_DATA,
    KIND_ZERO,
    Leaves,
    Records,
    Rows,
    checked_rows,
    decoded_rows,
    encoded,
    framed,
    index_entries,
    mark_pieces,
    overlay_rows,
    piece_counts,
    read_record,
)

__all__ = [
    "KIND_DATA",
    "KIND_ZERO",
    "ExtentLog",
    "Leaves",
    "LogHeader",
    "Rows",
    "checked_rows",
    "mark_pieces",
    "piece_counts",
]

MAGIC = b"STBYXLOG"
VERSION = 2
"""2 has records that say which ranges *only* are open; a log of version 1 is read, and becomes one
of version 2 when it is continued."""
_VERSIONS = (1, 2)
_PREAMBLE = struct.Struct("<8sII")
_HEADER, _ROWS, _MARK, _CHECKPOINT, _OPEN, _CLOSE, _VERIFIED, _COPIED, _ONLY_OPEN = range(1, 10)


@dataclass(frozen=True, slots=True)
class LogHeader:
    """What the log, and the partial disk beside it, belongs to.

    `parent_root` is hex of the digest root of the point it builds on, '' for a new base.
    `copy_of` names what a local copy fills the new file from before anything is received: '' for
    nothing, 'chain' for older files of the disk (RULES 14), 'seed' for nothing because the file is
    a seed (RULES 16), else the '<point>.<generation>' of a fenced writer's partial file (RULES 3).
    """

    disk_id: str
    point_id: str
    generation: int
    checkpoint_id: str
    virtual_size: int
    parent_root: str = ""
    copy_of: str = ""


@dataclass(slots=True)
class _Staged:
    kind: int
    payload: bytes
    records: Records | None = None


@dataclass(slots=True)
class _Index:
    """(page, record position) pairs in order of appending, sorted by page when asked."""

    pages: list[npt.NDArray[np.int32]] = field(default_factory=list)
    positions: list[npt.NDArray[np.int64]] = field(default_factory=list)
    zeros: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, position: int, records: Records) -> None:
        self.pages.append(records.pages)
        self.positions.append(np.full(len(records.pages), position, dtype=np.int64))
        self.zeros.append(records.is_whole_zero)

    def sorted(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Pages, record positions and whole-zero flags, by page and then in order of appending."""
        if len(self.pages) != 1:
            pages = np.concatenate([np.empty(0, dtype=np.int32), *self.pages])
            order = np.argsort(pages, kind="stable")
            positions = np.concatenate([np.empty(0, dtype=np.int64), *self.positions])[order]
            zeros = np.concatenate([np.empty(0, dtype=np.bool_), *self.zeros])[order]
            self.pages, self.positions, self.zeros = [pages[order]], [positions], [zeros]
        return self.pages[0], self.positions[0], self.zeros[0]


class ExtentLog:
    """One open extent log. What is appended counts from the `sync` after it."""

    def __init__(self, file: File, header: LogHeader) -> None:
        self._file = file
        self.header = header
        self.checkpoint_id = header.checkpoint_id
        self.mark = 0
        self.copied = 0
        self.logged_bytes = 0
        self.logged_data_bytes = 0
        """Of these, of data; the others are zeros."""
        self.open_ranges: list[tuple[int, int]] = []
        """(start, stop) ranges that may hold writes which no record describes."""
        self.verified_position = 0
        """Extent records from this file offset on have not been read back yet."""
        self._end = _PREAMBLE.size
        self._number = 0
        self._lock = threading.Lock()
        self._index = _Index()
        self._staged: list[_Staged] = []
        self._cached: tuple[int, Rows, Leaves] | None = None

    # --- opening ---------------------------------------------------------------------------

    @classmethod
    def create(
        cls, path: Path, header: LogHeader, open_ranges: Sequence[tuple[int, int]] = ()
    ) -> ExtentLog:
        """A new log in place of any other of that name, durable and whole when this returns."""
        values = {name: getattr(header, name) for name in LogHeader.__slots__}
        data = _PREAMBLE.pack(MAGIC, VERSION, 0)
        data += framed(_HEADER, 0, json.dumps(values, sort_keys=True).encode())
        if open_ranges:
            data += framed(_OPEN, 1, np.array(open_ranges, dtype="<i8").tobytes())
        write_durably(path, data)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> ExtentLog:
        """The log at `path` with everything up to its first damaged record; the rest is cut off
        when `writable`. Raises DiskCorrupt when not even the header is whole."""
        file = File(path, writable=writable)
        try:
            log = cls._read(file)
            if writable:
                log._make_current()
        except BaseException:
            file.close()
            raise
        return log

    @classmethod
    def _read(cls, file: File) -> ExtentLog:
        path = str(file.path)
        if file.size < _PREAMBLE.size + HEAD.size:
            raise DiskCorrupt(path, "the extent log ends in its header", 0, f"{file.size} bytes")
        magic, version, _ = _PREAMBLE.unpack(file.read(0, _PREAMBLE.size))
        if magic != MAGIC or version not in _VERSIONS:
            raise DiskCorrupt(
                path, "not an extent log of a known version", 0, f"{magic!r} {version}"
            )
        log: ExtentLog | None = None
        position = _PREAMBLE.size
        number = 0
        while (record := read_record(file, position, number)) is not None:
            kind, payload = record
            if log is None:
                if kind != _HEADER:
                    break
                log = cls(file, _header_from(file.path, payload))
            else:
                try:
                    log._apply(kind, payload, position, None)
                except (DiskCorrupt, ValueError, struct.error):
                    break
            position += HEAD.size + len(payload)
            number += 1
        if log is None:
            raise DiskCorrupt(path, "the extent log's header is damaged", _PREAMBLE.size, "CRC-32")
        log._end, log._number = position, number
        return log

    def _make_current(self) -> None:
        """Cut off what is damaged, and say that what follows is of the present version."""
        if self._file.size > self._end:
            self._file.resize(self._end)
            self._file.sync()
        preamble = _PREAMBLE.pack(MAGIC, VERSION, 0)
        if self._file.read(0, _PREAMBLE.size) != preamble:
            self._file.write(preamble, 0)
            self._file.sync()

    @property
    def path(self) -> Path:
        """Where the log lies."""
        return self._file.path

    @property
    def end(self) -> int:
        """File offset behind the last synced record."""
        return self._end

    def close(self) -> None:
        """Close; what was appended and not synced is dropped."""
        self._staged.clear()
        self._file.close()

    # --- appending -------------------------------------------------------------------------

    def append(self, rows: Rows, leaves: Leaves) -> None:
        """Stage extents (k, 3) int64 offset, length, kind, with the leaves of all data pieces in
        order. Rows ascend within one call and may overlap earlier calls': later ones win."""
        table = checked_rows(rows, len(leaves), self.header.virtual_size)
        for records in encoded(table, leaves, self.header.virtual_size):
            self._staged.append(_Staged(_ROWS, records.payload, records))

    def append_mark(self, offset: int) -> None:
        """Everything below `offset` has been scanned and, where it changed, logged."""
        self._stage(_MARK, struct.pack("<q", offset))

    def append_checkpoint(self, checkpoint_id: str) -> None:
        """The transfer goes on with another checkpoint; the mark begins at 0 again."""
        self._stage(_CHECKPOINT, checkpoint_id.encode())

    def append_open(self, ranges: Sequence[tuple[int, int]]) -> None:
        """From the next sync on these (start, stop) ranges may hold unlogged writes."""
        if ranges:
            self._stage(_OPEN, np.array(ranges, dtype="<i8").tobytes())

    def append_close(self) -> None:
        """Everything written so far is described by records: no range is open."""
        self._stage(_CLOSE, b"")

    def append_only_open(self, ranges: Sequence[tuple[int, int]]) -> None:
        """These (start, stop) ranges may hold unlogged writes and no other does: one record, so
        that writing may go on in them while it is synced."""
        self._stage(_ONLY_OPEN, np.array(ranges, dtype="<i8").tobytes())

    def append_verified(self, position: int) -> None:
        """All extents in records before that file offset (an earlier `end`) were read back."""
        self._stage(_VERIFIED, struct.pack("<q", position))

    def append_copied(self, offset: int) -> None:
        """The local copy that a new base starts from is done below `offset`."""
        self._stage(_COPIED, struct.pack("<q", offset))

    def sync(self) -> int:
        """Write what is staged in one piece, make it stable, let it count; the bytes of disk it
        acknowledges. Repeatable after an error: nothing counts before the data is stable."""
        if not self._staged:
            return 0
        pieces: list[bytes] = []
        for number, staged in enumerate(self._staged, start=self._number):
            pieces.append(framed(staged.kind, number, staged.payload))
        self._file.write(b"".join(pieces), self._end)
        self._file.sync()
        before = self.logged_bytes
        for staged, piece in zip(self._staged, pieces, strict=True):
            self._apply(staged.kind, staged.payload, self._end, staged.records)
            self._end += len(piece)
            self._number += 1
        self._staged.clear()
        return self.logged_bytes - before

    def _stage(self, kind: int, payload: bytes) -> None:
        self._staged.append(_Staged(kind, payload))

    def _apply(self, kind: int, payload: bytes, position: int, records: Records | None) -> None:
        if kind == _ROWS:
            rows, leaves = decoded_rows(self.path, position, payload)
            if records is None:
                try:
                    checked_rows(rows, len(leaves), self.header.virtual_size)
                except ProtocolError as exc:
                    raise DiskCorrupt(str(self.path), exc.problem, position, "extents") from exc
                records = Records(b"", *index_entries(rows, self.header.virtual_size))
            with self._lock:
                self._index.add(position, records)
            self.logged_bytes += int(rows[:, 1].sum())
            self.logged_data_bytes += int(rows[rows[:, 2] == KIND_DATA, 1].sum())
        elif kind == _MARK:
            (self.mark,) = struct.unpack("<q", payload)
        elif kind == _CHECKPOINT:
            self.checkpoint_id = payload.decode()
            self.mark = 0
        elif kind == _OPEN:
            self.open_ranges.extend(_ranges_from(payload))
        elif kind == _ONLY_OPEN:
            self.open_ranges = _ranges_from(payload)
        elif kind == _CLOSE:
            self.open_ranges.clear()
        elif kind == _VERIFIED:
            (self.verified_position,) = struct.unpack("<q", payload)
        elif kind == _COPIED:
            (self.copied,) = struct.unpack("<q", payload)
        elif kind != _HEADER:
            raise DiskCorrupt(str(self.path), "unknown record type", position, str(kind))

    # --- reading ---------------------------------------------------------------------------

    def pages(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.int64]:
        """Sorted numbers of the pages touched by extents in records at file offsets from `start`
        up to `stop`."""
        with self._lock:
            pages, positions, _ = self._index.sorted()
        chosen = positions >= start
        if stop is not None:
            chosen &= positions < stop
        return np.unique(pages[chosen]).astype(np.int64)

    def zeroed_pages(self) -> npt.NDArray[np.int64]:
        """Pages whose newest record makes all of them zero: nobody needs to overlay those."""
        with self._lock:
            pages, _, zeros = self._index.sorted()
        is_last = np.ones(len(pages), dtype=np.bool_)
        is_last[:-1] = pages[1:] != pages[:-1]
        return pages[is_last & zeros].astype(np.int64)

    def overlay(
        self,
        page_number: int,
        leaves: Leaves | None,
        *,
        start: int = 0,
        stop: int | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Lay what is logged of a page over `leaves` (4096,), if given; later records win.

        `mask` (4096,) is set True where a record speaks; `start` and `stop` leave out records
        at file offsets outside. Raises DiskCorrupt when a record fails its checksum now.
        """
        with self._lock:
            pages, positions, _ = self._index.sorted()
        # The needle is int32 like the pages: anything else would convert the whole index.
        first, last = np.searchsorted(pages, np.array([page_number, page_number + 1], np.int32))
        for position in positions[first:last].tolist():
            if position >= start and (stop is None or position < stop):
                rows, row_leaves = self._rows_at(position)
                overlay_rows(rows, row_leaves, page_number, leaves, mask)

    def _rows_at(self, position: int) -> tuple[Rows, Leaves]:
        cached = self._cached
        if cached is not None and cached[0] == position:
            return cached[1], cached[2]
        record = read_record(self._file, position, None)
        if record is None or record[0] != _ROWS:
            raise DiskCorrupt(str(self.path), "a record's checksum is wrong", position, "CRC-32")
        rows, leaves = decoded_rows(self.path, position, record[1])
        self._cached = (position, rows, leaves)
        return rows, leaves


def _ranges_from(payload: bytes) -> list[tuple[int, int]]:
    ranges = np.frombuffer(payload, "<i8").reshape(-1, 2)
    return [(int(start), int(stop)) for start, stop in ranges]


def _header_from(path: Path, payload: bytes) -> LogHeader:
    try:
        values = json.loads(payload)
        header = LogHeader(**values)
        if not isinstance(header.virtual_size, int) or not isinstance(header.generation, int):
            raise TypeError("sizes are numbers")
        return header
    except (ValueError, TypeError) as exc:
        raise DiskCorrupt(str(path), "the extent log's header is unreadable", 16, str(exc)) from exc
