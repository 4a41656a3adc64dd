"""A bounded store of content that the source has sent and the target therefore has.

One block of memory of the size the user chose (0 is allowed), in slots of a piece. What is put in
last stays longest; what is read meanwhile gets another round (CLOCK). Pieces go by their address:
as the newest restore point has them, or with NOW as the session under way has written them, until
`commit` or `give_up` says what became of that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from standby.wan.references import NOW, PIECE, Array

Pieces = NDArray[np.uint8]
Mask = NDArray[np.bool_]

BLOCK = 64
"""Pieces whose slots are kept as one row: 4 bytes per piece and some 100 per row."""

NOW_PIECES = NOW // PIECE

_LOOK = 4096
"""Slots the clock's hand passes at a time."""

_FREE = -1


class SourceStore:
    """Pieces by address, at most `size_bytes` of them. Not thread-safe."""

    def __init__(self, size_bytes: int) -> None:
        """Memory is taken as it fills."""
        slots = size_bytes // PIECE
        self.size_bytes = slots * PIECE
        self._content: Pieces = np.zeros((slots, PIECE), np.uint8)
        self._owner: Array = np.full(slots, _FREE, np.int64)
        self._is_used: Mask = np.zeros(slots, bool)
        self._rows: dict[int, Array] = {}
        self._is_old: Mask = np.zeros(slots, bool)
        """As it was before the session, which has written something else there."""
        self._hand = 0

    @property
    def held_bytes(self) -> int:
        """Of content now."""
        return int(np.count_nonzero(self._owner != _FREE)) * PIECE

    def has(self, pieces: Array) -> Mask:
        """Which piece addresses are here."""
        return self._slots(pieces) >= 0

    def read(self, pieces: Array) -> Pieces:
        """(n, PIECE); KeyError for one that is not here."""
        slots = self._slots(pieces)
        if (slots < 0).any():
            raise KeyError(int(pieces[slots < 0][0]))
        self._is_used[slots] = True
        return self._content[slots]

    def put(self, pieces: Array, content: Pieces) -> None:
        """Keep these, in place of what was at the same addresses and of the oldest.

        Everything that a session writes must come by here, with NOW, or by `overwrite`: even where
        it does not stay, `commit` must know that what was before is gone.
        """
        room = len(self._owner)
        if not room or not len(pieces):
            return
        before = self._slots(pieces[pieces >= NOW_PIECES] - NOW_PIECES)
        self._is_old[before[before >= 0]] = True
        pieces, content = pieces[-room:], content[-room:]
        slots = self._slots(pieces)
        there = slots >= 0
        self._content[slots[there]] = content[there]
        fresh = self._free_slots(int(np.count_nonzero(~there)), slots[there])
        fresh_pieces = pieces[~there][: len(fresh)]
        self._content[fresh] = content[~there][: len(fresh)]
        self._owner[fresh] = fresh_pieces
        self._is_used[fresh] = self._is_old[fresh] = False
        self._set(fresh_pieces, fresh)

    def drop(self, pieces: Array) -> None:
        """Forget these addresses."""
        slots = self._slots(pieces)
        there = slots >= 0
        self._owner[slots[there]] = _FREE
        self._set(pieces[there], np.full(int(there.sum()), _FREE, np.int64))

    def overwrite(self, runs: Array) -> None:
        """The session writes something that is not kept here into these runs, (n, 2) int64 first
        piece, without NOW, and pieces; ascending, apart."""
        starts, stops = runs[:, 0], runs[:, 0] + runs[:, 1]
        places = np.where(self._owner >= NOW_PIECES, self._owner - NOW_PIECES, self._owner)
        number = np.searchsorted(starts, places, side="right") - 1
        slots = np.flatnonzero((number >= 0) & (self._owner != _FREE))
        slots = slots[places[slots] < stops[number[slots]]]
        self._is_old[slots] = True
        self.drop(self._owner[slots[self._owner[slots] >= NOW_PIECES]])

    def commit(self, base: int, size: int) -> None:
        """What the session wrote into the disk at these addresses is its newest restore point."""
        first, stop = base // PIECE, base // PIECE + -(-size // PIECE)
        before = self._held(first, stop)
        self.drop(self._owner[before[self._is_old[before]]])
        slots = self._held(first + NOW_PIECES, stop + NOW_PIECES)
        written = self._owner[slots]
        self.drop(written - NOW_PIECES)
        self._set(written, np.full(len(written), _FREE, np.int64))
        self._owner[slots] = written - NOW_PIECES
        self._set(written - NOW_PIECES, slots)

    def give_up(self, base: int, size: int) -> None:
        """What the session wrote into the disk at these addresses does not count."""
        first, stop = base // PIECE, base // PIECE + -(-size // PIECE)
        self._is_old[self._held(first, stop)] = False
        self.drop(self._owner[self._held(first + NOW_PIECES, stop + NOW_PIECES)])

    def clear(self, base: int, size: int) -> None:
        """Forget everything of the disk at these addresses."""
        self.give_up(base, size)
        first = base // PIECE
        self.drop(self._owner[self._held(first, first + -(-size // PIECE))])

    def _held(self, first: int, stop: int) -> Array:
        """The slots of the piece addresses within [first, stop) that are here."""
        return np.flatnonzero((self._owner >= first) & (self._owner < stop))

    def _free_slots(self, count: int, kept: Array) -> Array:
        """Up to `count` slots, emptied; those in `kept` stay."""
        room = len(self._owner)
        taken = np.empty(0, np.int64)
        looked = 0
        while len(taken) < count and looked < 2 * room:
            slots = np.arange(self._hand, min(self._hand + _LOOK, room))
            candidates = slots[~self._is_used[slots]]
            candidates = np.setdiff1d(candidates, np.concatenate((taken, kept)))
            if len(candidates) > count - len(taken):
                candidates = candidates[: count - len(taken)]
                slots = slots[: int(candidates[-1]) + 1 - self._hand]
            self._is_used[slots] = False
            self._hand = (self._hand + len(slots)) % room
            looked += len(slots)
            taken = np.concatenate((taken, candidates))
        owners = self._owner[taken]
        owned = owners[owners != _FREE]
        self._set(owned, np.full(len(owned), _FREE, np.int64))
        self._owner[taken] = _FREE
        return taken

    def _slots(self, pieces: Array) -> Array:
        """The slot of each piece address, _FREE where there is none."""
        slots = np.full(len(pieces), _FREE, np.int64)
        blocks = pieces // BLOCK
        for block, rows in _groups(blocks):
            row = self._rows.get(block)
            if row is not None:
                slots[rows] = row[pieces[rows] % BLOCK]
        return slots

    def _set(self, pieces: Array, slots: Array) -> None:
        blocks = pieces // BLOCK
        for block, rows in _groups(blocks):
            row = self._rows.setdefault(block, np.full(BLOCK, _FREE, np.int64))
            row[pieces[rows] % BLOCK] = slots[rows]
            if (row == _FREE).all():
                del self._rows[block]


def _groups(blocks: Array) -> list[tuple[int, Array]]:
    """(block, rows with it) for each block."""
    order = np.argsort(blocks, kind="stable")
    ordered = blocks[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    return list(zip(ordered[first].tolist(), np.split(order, first[1:]), strict=bool(len(first))))
