"""Changed pieces of which much is as it was: tables of inodes, pages of databases.

The target says what the old content of a changed piece looked like, 2 bytes of a keyed digest for
each 256 of it, and the source sends what differs: the rest is copied at the target from the place
itself. That costs 32 bytes a piece, so places are asked for as long as that pays, and then one unit
in so many, in case it does again. What the source holds itself needs no marks: deltas do better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from standby.wan.batches import UNDECIDED, Batch
from standby.wan.matching import Shared, row_of_parts
from standby.wan.names import MARK, MARKS, PART, marks
from standby.wan.references import PIECE, UNIT, Answer, Array, Kind

FIRST_PIECES = 4096
"""Of a session that are asked for before anything is known: 128 KiB of marks at most."""

ONE_UNIT_IN = 16
"""Where it does not pay."""

EQUAL_MIN = 4
"""Marks of a piece that must be equal: of all that differ one in 65,536 is equal by chance, and a
wrong copy costs a unit sent again."""

SAVED_PER_PART = PART // 4
"""What a part that is equal would have come to, compressed."""

_KEPT = 0.8
"""Of earlier batches in what tells whether it pays, per batch."""


class Marking:
    """What one disk's source asks for, and makes of it. Not thread-safe, but for `wanted` beside
    `take`."""

    def __init__(self) -> None:
        self._asked = 0
        self._cost = 0.0
        self._saved = 0.0
        self._has_heard = False

    def wanted(self, batch: Batch, undecided: Array, shared: Shared | None, base: int) -> Array:
        """The pieces, of those undecided, to ask marks for."""
        pieces = undecided
        if shared is not None and batch.refers and len(pieces):
            pieces = pieces[~shared.has((base + batch.offsets[pieces]) // PIECE)]
        pays = self._saved > self._cost if self._has_heard else self._asked < FIRST_PIECES
        if not pays:
            pieces = pieces[(pieces // UNIT + batch.serial) % ONE_UNIT_IN == 0]
        self._asked += len(pieces)
        return pieces

    def take(self, batch: Batch, told: Answer, base: int) -> None:
        """Decide for PARTS where marks say that much of a piece is as it was."""
        pieces = batch.marked[told.is_marked]
        equal = marks(batch.data[pieces], batch.key) == told.marks
        counts = equal.sum(axis=1)
        used = (batch.kinds[pieces] == UNDECIDED) & (counts >= EQUAL_MIN)
        self._cost = self._cost * _KEPT + len(pieces) * MARKS * MARK
        self._saved = self._saved * _KEPT + int(counts[used].sum()) * SAVED_PER_PART
        self._has_heard |= len(batch.marked) > 0
        if used.any():
            _refer(batch, pieces[used], equal[used], base)


def _refer(batch: Batch, pieces: Array, equal: NDArray[np.bool_], base: int) -> None:
    batch.by_marks = np.zeros(len(batch.kinds), bool)
    batch.by_marks[pieces] = True
    rows, parts = np.nonzero(equal)
    begins = pieces[rows] * PIECE + parts * PART
    addresses = base + batch.offsets[pieces[rows]] + parts * PART
    first = np.flatnonzero(np.diff(pieces, prepend=-2) != 1)
    last = np.append(first[1:], len(pieces)) - 1
    starts, stops = pieces[first], pieces[last] + 1
    edges = np.searchsorted(begins, np.append(starts, stops[-1]) * PIECE)
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        inside = slice(int(edges[number]), int(edges[number + 1]))
        begin = begins[inside]
        group = len(batch.parts) + 1
        batch.parts[group] = row_of_parts(
            begin, begin + PART, addresses[inside], start * PIECE, stop * PIECE
        )
        batch.groups[start:stop] = group
        batch.kinds[start:stop] = Kind.PARTS
