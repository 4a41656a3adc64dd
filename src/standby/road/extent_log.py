"""The extent log: what of a partial disk is acknowledged, and with which leaves (RULES 7).

A record goes into the log only after a data sync of the disk that covers it, so whatever a log
says is on stable storage with exactly those leaves. FORMAT.md describes the bytes. Memory is
12 bytes per (record, page) pair; the leaves themselves are read again from the file, each record
checked by its checksum whenever it is read.

One thread appends and syncs; the reading methods may be called from others meanwhile.
"""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.errors import DiskCorrupt, ProtocolError
from standby.files import File, write_durably

KIND_ZERO = 0
KIND_DATA = 1

MAGIC = b"STBYXLOG"
VERSION = 1
_PREAMBLE = struct.Struct("<8sII")
_HEAD = struct.Struct("<HHIII")  # type, reserved, payload length, record number, CRC-32
_EXTENTS = struct.Struct("<II")  # rows, leaves

_HEADER, _ROWS, _MARK, _CHECKPOINT, _OPEN, _CLOSE, _VERIFIED, _COPIED = range(1, 9)

ROWS_PER_RECORD = 1024
"""Records stay small (at most 56 KiB) because `overlay` reads and checks whole ones."""
_PAYLOAD_MAX = 1 << 20

Rows = npt.NDArray[np.int64]
Leaves = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class LogHeader:
    """What the log, and the partial disk beside it, belongs to.

    `parent_root` is hex of the digest root of the point it builds on, '' for a new base.
    `copy_of` names what a local copy fills the new file from before anything is received: '' for
    nothing, 'chain' for older files of the disk (RULES 14), else the '<point>.<generation>' of a
    fenced writer's partial file (RULES 3).
    """

    disk_id: str
    point_id: str
    generation: int
    checkpoint_id: str
    virtual_size: int
    parent_root: str = ""
    copy_of: str = ""


def checked_rows(rows: Rows, leaf_count: int, virtual_size: int) -> Rows:
    """`rows` as contiguous int64 (k, 3), refused (ProtocolError) unless ascending, disjoint,
    inside the disk, on 4 KiB borders (the end of the disk excepted), of a known kind, and with
    one leaf per data piece."""
    table = np.ascontiguousarray(rows, dtype=np.int64).reshape(-1, 3)
    offsets, lengths, kinds = table[:, 0], table[:, 1], table[:, 2]
    stops = offsets + lengths
    if len(table):
        good = (
            bool(((lengths > 0) & (lengths <= virtual_size)).all())
            and bool(((offsets >= 0) & (offsets <= virtual_size)).all())
            and bool((offsets % PIECE == 0).all())
            and bool((offsets[1:] >= stops[:-1]).all())
            and int(stops[-1]) <= virtual_size
            and bool(((stops % PIECE == 0) | (stops == virtual_size)).all())
            and bool(((kinds == KIND_DATA) | (kinds == KIND_ZERO)).all())
        )
        if not good:
            raise ProtocolError(
                "source mover", "a batch's extents are not in order or off the disk"
            )
    pieces = piece_counts(table)
    if int(pieces.sum()) != leaf_count:
        raise ProtocolError(
            "source mover",
            f"a batch of {int(pieces.sum())} data pieces came with {leaf_count} leaves",
        )
    return table


def piece_counts(rows: Rows) -> Rows:
    """(k,) int64: how many leaves each row has; 0 for zero rows."""
    return np.where(rows[:, 2] == KIND_DATA, -(-rows[:, 1] // PIECE), 0)


@dataclass(slots=True)
class _Records:
    """Encoded rows: the record's payload and, per page, an index entry."""

    payload: bytes
    pages: npt.NDArray[np.int32]
    is_whole_zero: npt.NDArray[np.bool_]


def _split_at_pages(rows: Rows) -> Rows:
    """The same extents with data rows cut at page borders; zero rows stay whole."""
    stops = rows[:, 0] + rows[:, 1]
    first = rows[:, 0] // PAGE
    count = np.where(rows[:, 2] == KIND_DATA, (stops - 1) // PAGE - first + 1, 1)
    total = int(count.sum())
    if total == len(rows):
        return rows
    owner = np.repeat(np.arange(len(rows)), count)
    step = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
    is_data = rows[owner, 2] == KIND_DATA
    begin = np.where(
        is_data, np.maximum(rows[owner, 0], (first[owner] + step) * PAGE), rows[owner, 0]
    )
    end = np.where(
        is_data, np.minimum(stops[owner], (first[owner] + step + 1) * PAGE), stops[owner]
    )
    return np.stack([begin, end - begin, rows[owner, 2]], axis=1)


def _encode(rows: Rows, leaves: Leaves, virtual_size: int) -> Iterator[_Records]:
    """Cut one ascending batch into records of at most a page of leaves and 1,024 rows."""
    rows = _split_at_pages(rows)
    ends = np.cumsum(piece_counts(rows))
    start = 0
    while start < len(rows):
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + LEAVES_PER_PAGE, side="right"))
        stop = min(max(stop, start + 1), start + ROWS_PER_RECORD)
        part = np.ascontiguousarray(rows[start:stop])
        part_leaves = np.ascontiguousarray(leaves[before : int(ends[stop - 1])])
        pages, is_whole_zero = _index_entries(part, virtual_size)
        payload = _EXTENTS.pack(len(part), len(part_leaves))
        payload += part.astype("<i8").tobytes() + part_leaves.astype("<u8").tobytes()
        yield _Records(payload, pages, is_whole_zero)
        start = stop


def _index_entries(
    rows: Rows, virtual_size: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """The pages that a record's rows touch, ascending; whether one zero row covers all of each."""
    stops = rows[:, 0] + rows[:, 1]
    first = rows[:, 0] // PAGE
    count = (stops - 1) // PAGE - first + 1
    owner = np.repeat(np.arange(len(rows)), count)
    pages = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    page_stops = np.minimum((pages + 1) * PAGE, virtual_size)
    is_whole_zero = (
        (rows[owner, 2] == KIND_ZERO)
        & (rows[owner, 0] <= pages * PAGE)
        & (stops[owner] >= page_stops)
    )
    kept = np.ones(len(pages), dtype=np.bool_)
    kept[1:] = pages[1:] != pages[:-1]
    return pages[kept].astype(np.int32), is_whole_zero[kept]


def _decode_rows(path: Path, position: int, payload: bytes) -> tuple[Rows, Leaves]:
    if len(payload) < _EXTENTS.size:
        raise DiskCorrupt(str(path), "an extent record is too short", position, str(len(payload)))
    row_count, leaf_count = _EXTENTS.unpack_from(payload)
    if len(payload) != _EXTENTS.size + 24 * row_count + 8 * leaf_count:
        raise DiskCorrupt(
            str(path), "an extent record's length is wrong", position, str(len(payload))
        )
    rows = np.frombuffer(payload, "<i8", 3 * row_count, _EXTENTS.size).reshape(-1, 3)
    leaves = np.frombuffer(payload, "<u8", leaf_count, _EXTENTS.size + 24 * row_count)
    return rows, leaves


@dataclass(slots=True)
class _Staged:
    kind: int
    payload: bytes
    records: _Records | None = None


@dataclass(slots=True)
class _Index:
    """(page, record position) pairs in order of appending, sorted by page when asked."""

    pages: list[npt.NDArray[np.int32]] = field(default_factory=list)
    positions: list[npt.NDArray[np.int64]] = field(default_factory=list)
    zeros: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(self, position: int, records: _Records) -> None:
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
        data += _framed(_HEADER, 0, json.dumps(values, sort_keys=True).encode())
        if open_ranges:
            data += _framed(_OPEN, 1, np.array(open_ranges, dtype="<i8").tobytes())
        write_durably(path, data)
        return cls.open(path)

    @classmethod
    def open(cls, path: Path, *, writable: bool = True) -> ExtentLog:
        """The log at `path` with everything up to its first damaged record; the rest is cut off
        when `writable`. Raises DiskCorrupt when not even the header is whole."""
        file = File(path, writable=writable)
        try:
            log = cls._read(file)
            if writable and file.size > log._end:
                file.resize(log._end)
                file.sync()
        except BaseException:
            file.close()
            raise
        return log

    @classmethod
    def _read(cls, file: File) -> ExtentLog:
        path = str(file.path)
        if file.size < _PREAMBLE.size + _HEAD.size:
            raise DiskCorrupt(path, "the extent log ends in its header", 0, f"{file.size} bytes")
        magic, version, _ = _PREAMBLE.unpack(file.read(0, _PREAMBLE.size))
        if magic != MAGIC or version != VERSION:
            raise DiskCorrupt(path, "not an extent log of version 1", 0, f"{magic!r} {version}")
        log: ExtentLog | None = None
        position = _PREAMBLE.size
        number = 0
        while (record := _read_record(file, position, number)) is not None:
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
            position += _HEAD.size + len(payload)
            number += 1
        if log is None:
            raise DiskCorrupt(path, "the extent log's header is damaged", _PREAMBLE.size, "CRC-32")
        log._end, log._number = position, number
        return log

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
        for records in _encode(table, leaves, self.header.virtual_size):
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
            pieces.append(_framed(staged.kind, number, staged.payload))
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

    def _apply(self, kind: int, payload: bytes, position: int, records: _Records | None) -> None:
        if kind == _ROWS:
            rows, leaves = _decode_rows(self.path, position, payload)
            if records is None:
                try:
                    checked_rows(rows, len(leaves), self.header.virtual_size)
                except ProtocolError as exc:
                    raise DiskCorrupt(str(self.path), exc.problem, position, "extents") from exc
                records = _Records(b"", *_index_entries(rows, self.header.virtual_size))
            with self._lock:
                self._index.add(position, records)
            self.logged_bytes += int(rows[:, 1].sum())
        elif kind == _MARK:
            (self.mark,) = struct.unpack("<q", payload)
        elif kind == _CHECKPOINT:
            self.checkpoint_id = payload.decode()
            self.mark = 0
        elif kind == _OPEN:
            ranges = np.frombuffer(payload, "<i8").reshape(-1, 2)
            self.open_ranges.extend((int(start), int(stop)) for start, stop in ranges)
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
                _overlay_rows(rows, row_leaves, page_number, leaves, mask)

    def _rows_at(self, position: int) -> tuple[Rows, Leaves]:
        cached = self._cached
        if cached is not None and cached[0] == position:
            return cached[1], cached[2]
        record = _read_record(self._file, position, None)
        if record is None or record[0] != _ROWS:
            raise DiskCorrupt(str(self.path), "a record's checksum is wrong", position, "CRC-32")
        rows, leaves = _decode_rows(self.path, position, record[1])
        self._cached = (position, rows, leaves)
        return rows, leaves


def _overlay_rows(
    rows: Rows,
    row_leaves: Leaves,
    page_number: int,
    leaves: Leaves | None,
    mask: npt.NDArray[np.bool_] | None,
) -> None:
    if mask is not None:
        mark_pieces(rows, page_number, mask)
    if leaves is None:
        return
    low = page_number * PAGE
    first = int(np.searchsorted(rows[:, 0] + rows[:, 1], low, side="right"))
    last = int(np.searchsorted(rows[:, 0], low + PAGE, side="left"))
    leaf = int(piece_counts(rows[:first]).sum())
    for offset, length, kind in rows[first:last].tolist():
        begin = (max(offset, low) - low) // PIECE
        end = -(-(min(offset + length, low + PAGE) - low) // PIECE)
        if kind == KIND_DATA:
            skipped = (max(offset, low) - offset) // PIECE
            leaves[begin:end] = row_leaves[leaf + skipped : leaf + skipped + end - begin]
            leaf += -(-length // PIECE)
        else:
            leaves[begin:end] = ZERO_LEAF


def mark_pieces(rows: Rows, page_number: int, mask: npt.NDArray[np.bool_]) -> None:
    """Set True in `mask` (4096,) the pieces of a page that ascending `rows` touch."""
    low = page_number * PAGE
    stops = rows[:, 0] + rows[:, 1]
    first = int(np.searchsorted(stops, low, side="right"))
    last = int(np.searchsorted(rows[:, 0], low + PAGE, side="left"))
    for offset, length, _ in rows[first:last].tolist():
        begin = (max(offset, low) - low) // PIECE
        mask[begin : -(-(min(offset + length, low + PAGE) - low) // PIECE)] = True


def _framed(kind: int, number: int, payload: bytes) -> bytes:
    head = _HEAD.pack(kind, 0, len(payload), number, 0)
    checksum = zlib.crc32(payload, zlib.crc32(head))
    return _HEAD.pack(kind, 0, len(payload), number, checksum) + payload


def _read_record(file: File, position: int, number: int | None) -> tuple[int, bytes] | None:
    """(type, payload) of the record at `position`; None where there is no whole one. `number`
    is the record number expected there: a leftover of an earlier life has another."""
    if position + _HEAD.size > file.size:
        return None
    kind, reserved, length, found, checksum = _HEAD.unpack(file.read(position, _HEAD.size))
    if length > _PAYLOAD_MAX or position + _HEAD.size + length > file.size:
        return None
    payload = file.read(position + _HEAD.size, length)
    head = _HEAD.pack(kind, reserved, length, found, 0)
    if zlib.crc32(payload, zlib.crc32(head)) != checksum or number not in (None, found):
        return None
    return kind, payload


def _header_from(path: Path, payload: bytes) -> LogHeader:
    try:
        values = json.loads(payload)
        header = LogHeader(**values)
        if not isinstance(header.virtual_size, int) or not isinstance(header.generation, int):
            raise TypeError("sizes are numbers")
        return header
    except (ValueError, TypeError) as exc:
        raise DiskCorrupt(str(path), "the extent log's header is unreadable", 16, str(exc)) from exc
