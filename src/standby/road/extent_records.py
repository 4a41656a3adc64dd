"""Records of the extent log: rows and leaves to bytes and back, and laid over a page's leaves.

FORMAT.md describes the bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from standby.digesting import LEAVES_PER_PAGE, PAGE, PIECE, ZERO_LEAF
from standby.errors import DiskCorrupt, ProtocolError
from standby.files import File

KIND_ZERO = 0
KIND_DATA = 1

HEAD = struct.Struct("<HHIII")  # type, reserved, payload length, record number, CRC-32
_EXTENTS = struct.Struct("<II")  # rows, leaves

ROWS_PER_RECORD = 1024
"""Records stay small (at most 56 KiB) because `overlay` reads and checks whole ones."""
_PAYLOAD_MAX = 1 << 20

Rows = npt.NDArray[np.int64]
Leaves = npt.NDArray[np.uint64]


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
class Records:
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


def encoded(rows: Rows, leaves: Leaves, virtual_size: int) -> Iterator[Records]:
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
        pages, is_whole_zero = index_entries(part, virtual_size)
        payload = _EXTENTS.pack(len(part), len(part_leaves))
        payload += part.astype("<i8").tobytes() + part_leaves.astype("<u8").tobytes()
        yield Records(payload, pages, is_whole_zero)
        start = stop


def index_entries(
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


def decoded_rows(path: Path, position: int, payload: bytes) -> tuple[Rows, Leaves]:
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


def overlay_rows(
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


def framed(kind: int, number: int, payload: bytes) -> bytes:
    head = HEAD.pack(kind, 0, len(payload), number, 0)
    checksum = zlib.crc32(payload, zlib.crc32(head))
    return HEAD.pack(kind, 0, len(payload), number, checksum) + payload


def read_record(file: File, position: int, number: int | None) -> tuple[int, bytes] | None:
    """(type, payload) of the record at `position`; None where there is no whole one. `number`
    is the record number expected there: a leftover of an earlier life has another."""
    if position + HEAD.size > file.size:
        return None
    kind, reserved, length, found, checksum = HEAD.unpack(file.read(position, HEAD.size))
    if length > _PAYLOAD_MAX or position + HEAD.size + length > file.size:
        return None
    payload = file.read(position + HEAD.size, length)
    head = HEAD.pack(kind, reserved, length, found, 0)
    if zlib.crc32(payload, zlib.crc32(head)) != checksum or number not in (None, found):
        return None
    return kind, payload
