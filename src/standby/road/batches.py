"""A batch on its way: filled at the source, cut apart at the target (wire.messages.Batch).

    payload = rows (n, 3) int64 | leaves (pieces,) uint64 | data bytes

Rows are (offset, length, kind): kind 1 carries `length` bytes of data, kind 0 says the range is
zero now. Offsets are multiples of 4 KiB; a length may end at the disk's end instead. On a link of
one machine the data stays in a shared slot and the leaves travel; on a network everything is one
zstd frame, the leaves are left out (the receiver computes them anyway) and their digest goes along.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from standby import comparing, digesting
from standby.digesting import PIECE
from standby.errors import ProtocolError
from standby.model.extent import Kind
from standby.wire.messages import Batch

Rows = npt.NDArray[np.int64]
LeafArray = npt.NDArray[np.uint64]

DATA, ZERO = 1, 0
ROWS_MAX = 65536
"""Rows a batch may have: 1.5 MiB of row table beside at most 8 MiB of data."""


class BatchBuilder:
    """Collects changed runs into one slot of memory. One per scanning thread.

    Without `keeps` only the rows are collected: what changed, not its content.
    """

    def __init__(self, virtual_size: int, *, keeps: bool = True) -> None:
        self.virtual_size = virtual_size
        self.keeps = keeps
        self.slot: memoryview = memoryview(b"")
        self.filled = 0
        self._rows: list[Rows] = []
        self._leaves: list[LeafArray] = []
        self.row_count = 0

    def begin(self, slot: memoryview) -> None:
        """Start an empty batch in `slot`."""
        self.slot = slot
        self.clear()

    def clear(self) -> None:
        """Drop what was collected."""
        self.filled = 0
        self.row_count = 0
        self._rows = []
        self._leaves = []

    def room(self) -> int:
        """Bytes of data that still fit, 0 when the row table is full."""
        return len(self.slot) - self.filled if self.row_count < ROWS_MAX - 4096 else 0

    def tail(self, length: int) -> memoryview:
        """Where the next `length` bytes of disk may be read to."""
        return self.slot[self.filled : self.filled + length]

    def keep(self, offset: int, length: int, runs: Rows, leaves: LeafArray) -> None:
        """Keep, of the `length` bytes that were read to `tail` from disk offset `offset`, the
        changed `runs` (piece numbers relative to `offset`, kind) and their leaves."""
        if len(runs) == 0:
            return
        rows = np.empty((len(runs), 3), np.int64)
        rows[:, 0] = offset + runs[:, 0] * PIECE
        rows[:, 1] = (runs[:, 1] - runs[:, 0]) * PIECE
        rows[:, 2] = runs[:, 2]
        over = int(rows[-1, 0] + rows[-1, 1]) - self.virtual_size
        if over > 0:
            rows[-1, 1] -= over
        is_data = runs[:, 2] == DATA
        kept = int(rows[is_data, 1].sum()) if self.keeps else 0
        if kept:
            if kept != length:
                comparing.compact(self.tail(length), runs)
            for first, stop, _ in runs[is_data].tolist():
                self._leaves.append(leaves[first:stop].copy())
        self.filled += kept
        self._rows.append(rows)
        self.row_count += len(rows)

    def take(self, rows: Rows, leaves: LeafArray, filled: int) -> None:
        """Take over what a `comparing.FileScan` made at `rest`: its rows, the leaves of its data
        rows, and how many bytes of data lie there. The arrays may be used again."""
        if len(rows):
            self._rows.append(rows.copy())
            self._leaves.append(leaves.copy())
            self.row_count += len(rows)
            self.filled += filled

    @property
    def rest(self) -> memoryview:
        """The free part of the slot."""
        return self.slot[self.filled :]

    def zero(self, offset: int, runs: npt.NDArray[np.int64]) -> None:
        """Say that these runs of pieces (relative to `offset`) are zero now."""
        if len(runs):
            rows = np.zeros((len(runs), 3), np.int64)
            rows[:, :2] = runs[:, :2]
            rows[:, 2] = ZERO
            self.keep(offset, 0, rows, np.empty(0, np.uint64))

    @property
    def is_empty(self) -> bool:
        """True when nothing was collected."""
        return self.row_count == 0

    def tables(self) -> tuple[Rows, LeafArray]:
        """All rows, neighbours of one kind joined, and the leaves of all data rows' pieces."""
        rows = joined_rows(np.concatenate(self._rows)) if self._rows else np.empty((0, 3), np.int64)
        leaves = np.concatenate(self._leaves) if self._leaves else np.empty(0, np.uint64)
        return rows, leaves


def joined_rows(rows: Rows) -> Rows:
    """`rows` with each run of rows that touch and are of one kind as one row: what was read in
    parts is written in one go."""
    if len(rows) < 2:
        return rows
    stops = rows[:, 0] + rows[:, 1]
    is_head = np.ones(len(rows), np.bool_)
    is_head[1:] = (rows[1:, 0] != stops[:-1]) | (rows[1:, 2] != rows[:-1, 2])
    heads = np.flatnonzero(is_head)
    joined = rows[heads]
    joined[:, 1] = stops[np.append(heads[1:], len(rows)) - 1] - joined[:, 0]
    return joined


@dataclass(frozen=True, slots=True)
class ReceivedBatch:
    """A batch as the target sees it; arrays and `data` lie in the link's or slot's memory."""

    rows: Rows
    leaves: LeafArray
    data: memoryview


def parsed_batch(
    message: Batch, payload: memoryview, slot: memoryview | None, virtual_size: int, peer: str
) -> ReceivedBatch:
    """Cut `payload` apart and check every field; raises ProtocolError naming what is wrong."""

    def refuse(problem: str) -> ProtocolError:
        return ProtocolError(peer, f"batch refused: {problem}")

    if not 0 < message.rows <= ROWS_MAX or message.pieces < 0 or message.data_length < 0:
        raise refuse(f"{message.rows} rows, {message.pieces} pieces, {message.data_length} bytes")
    leaf_bytes = 0 if message.digest else message.pieces * 8
    data_bytes = 0 if slot is not None else message.data_length
    expected = message.rows * 24 + leaf_bytes + data_bytes
    if len(payload) != expected:
        raise refuse(f"payload of {len(payload)} bytes where {expected} were announced")
    rows = np.frombuffer(payload, np.int64, message.rows * 3).reshape(-1, 3)
    data = payload[message.rows * 24 + leaf_bytes :] if slot is None else slot
    if message.data_length > len(data):
        raise refuse(f"{message.data_length} bytes of data in a slot of {len(data)}")
    data = data[: message.data_length]
    offsets, lengths, kinds = rows[:, 0], rows[:, 1], rows[:, 2]
    if (
        (offsets < 0).any()
        or (lengths <= 0).any()
        or (offsets > virtual_size).any()
        or (lengths > virtual_size - offsets).any()
        or (offsets % PIECE != 0).any()
        or ((lengths % PIECE != 0) & (offsets + lengths != virtual_size)).any()
        or ((kinds != DATA) & (kinds != ZERO)).any()
    ):
        raise refuse("a row lies outside the disk or is not whole pieces")
    data_lengths = lengths[kinds == DATA]
    pieces = -(-data_lengths // PIECE)
    if int(data_lengths.sum()) != message.data_length or int(pieces.sum()) != message.pieces:
        raise refuse("rows, pieces and data length do not agree")
    if message.digest:
        leaves = leaves_of_rows(data, data_lengths)
        if digesting.leaves_digest(leaves) != message.digest:
            raise refuse("the data is not what was sent (leaf digest differs)")
    else:
        leaves = np.frombuffer(payload, np.uint64, message.pieces, message.rows * 24)
    return ReceivedBatch(rows, leaves, data)


def leaves_of_rows(data: memoryview, lengths: npt.NDArray[np.int64]) -> LeafArray:
    """Leaves of the pieces of consecutive runs of `lengths` bytes in `data`; only the last piece
    of the disk can be short, so all runs but one are whole pieces."""
    if len(lengths) == 0:
        return np.empty(0, np.uint64)
    short = np.flatnonzero(lengths % PIECE)
    if len(short) == 0 or int(short[0]) == len(lengths) - 1:
        return digesting.leaves(data)
    cut = int(lengths[: int(short[0]) + 1].sum())
    return np.concatenate([digesting.leaves(data[:cut]), digesting.leaves(data[cut:])])


def piece_ranges(
    extents: Any, start: int, stop: int, virtual_size: int
) -> list[tuple[int, int, bool]]:
    """[start, stop) as (first, end, is_data) ranges on 4 KiB borders, from extents on sector
    borders: a piece with any stored byte is data. `start` is a multiple of 4 KiB."""
    ranges: list[tuple[int, int, bool]] = []
    position = start
    for extent in extents:
        if extent.kind != Kind.DATA:
            continue
        first = max(position, extent.offset // PIECE * PIECE)
        end = min(stop, virtual_size, -(-extent.stop // PIECE) * PIECE)
        if end <= first:
            continue
        if first > position:
            ranges.append((position, first, False))
        if ranges and ranges[-1][2] and ranges[-1][1] == first:
            ranges[-1] = (ranges[-1][0], end, True)
        else:
            ranges.append((first, end, True))
        position = end
    if position < stop:
        ranges.append((position, min(stop, virtual_size), False))
    return ranges
