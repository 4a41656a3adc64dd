"""What a target holds, in memory: the decoder's other side where no cache is wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from standby.wan.decoding import Rebuilt
from standby.wan.names import names
from standby.wan.references import ASKED, NOW, PIECE, Array

Pieces = NDArray[np.uint8]

_AT_ONCE = 16 << 20


class MemoryTarget:
    """Disks in one space of addresses, each as it was and as it is being written.

    Look-ups are exact: every nonzero piece of `add_disk` and `write` is known by its truncated
    name, wherever it still stands. Set `lies` to a function that changes what is read.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._disks: list[tuple[int, Pieces, Pieces]] = []
        self._places: dict[bytes, int] = {}
        self.lies: Any = None

    def add_disk(self, base: int, content: Pieces, now: Pieces | None = None) -> None:
        """A disk of whole pieces, whose first byte has the address `base`. The session writes into
        `now`, which has the same content; a copy without it."""
        self._disks.append((base, content, content.copy() if now is None else now))
        for start in range(0, len(content), _AT_ONCE):
            part = content[start : start + _AT_ONCE]
            self._know(base, start + np.arange(0, len(part), PIECE), part.reshape(-1, PIECE))

    def write(self, base: int, runs: list[Rebuilt]) -> None:
        """The session under way writes into a disk."""
        now = self.disk(base)
        for run in runs:
            part = now[run.offset : run.offset + run.length]
            part[:] = 0 if run.data is None else np.frombuffer(run.data, np.uint8)
            pieces = part.reshape(-1, PIECE)
            self._know(base | NOW, np.arange(run.offset, run.offset + run.length, PIECE), pieces)

    def commit(self, base: int) -> None:
        """What was written is the newest restore point."""
        for at, before, now in self._disks:
            if at == base:
                before[:] = now

    def disk(self, base: int) -> Pieces:
        """A disk as it is being written."""
        return next(now for at, _, now in self._disks if at == base)

    def find(self, asked: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.uint64]]:
        """Held.find."""
        found = [self._places.get(name.tobytes(), -1) for name in asked]
        places = np.array(found, np.int64)
        hits = np.flatnonzero(places >= 0)
        content = np.empty(len(hits) * PIECE, np.uint8)
        self._read(places[hits], np.full(len(hits), PIECE), content)
        still = (names(content, self._key)[:, ASKED] == asked[hits]).all(axis=1)
        places[hits[~still]] = -1
        return places >= 0, np.maximum(places, 0).astype(np.uint64)

    def read_found(
        self, locations: NDArray[np.uint64], rows: Array, out: Pieces
    ) -> NDArray[np.bool_]:
        """Held.read_found."""
        content = np.empty(len(locations) * PIECE, np.uint8)
        lengths = np.full(len(locations), PIECE)
        ok = self.read(locations.astype(np.int64), lengths, content)
        out[rows] = content.reshape(-1, PIECE)
        return ok

    def disprove(self, locations: NDArray[np.uint64], names: NDArray[np.uint8]) -> None:
        """Held.disprove."""

    def release(self, locations: NDArray[np.uint64]) -> None:
        """Held.release."""

    def read(self, addresses: Array, lengths: Array, out: Pieces) -> NDArray[np.bool_]:
        """Held.read."""
        ok = self._read(addresses, lengths, out)
        if self.lies is not None:
            ok = self.lies(out, ok)
        return ok

    def _read(self, addresses: Array, lengths: Array, out: Pieces) -> NDArray[np.bool_]:
        ok = np.zeros(len(addresses), bool)
        at = 0
        for row, (address, length) in enumerate(
            zip(addresses.tolist(), lengths.tolist(), strict=True)
        ):
            for base, before, now in self._disks:
                start = (address & ~NOW) - base
                if start >= 0 and start + length <= len(now):
                    content = now if address & NOW else before
                    out[at : at + length] = content[start : start + length]
                    ok[row] = True
            at += length
        return ok

    def _know(self, base: int, offsets: Array, pieces: Pieces) -> None:
        stored = pieces.any(axis=1)
        named = names(np.ascontiguousarray(pieces[stored]), self._key)[:, ASKED]
        for name, offset in zip(named, offsets[stored].tolist(), strict=True):
            self._places[name.tobytes()] = base + offset
