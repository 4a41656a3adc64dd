"""A source and a target WAN accelerator of one disk, in one process."""

from __future__ import annotations

import numpy as np

from standby.testing.wan_target import MemoryTarget
from standby.wan.decoding import Decoded, Decoder
from standby.wan.encoding import Encoder
from standby.wan.knowledge import SourceIndex
from standby.wan.names import names
from standby.wan.references import NOW, PIECE
from standby.wan.source_store import SourceStore
from standby.wan.table import LookupTable

KEY = bytes(range(32))
BUDGET = 4 << 20
WINDOW_LOG = 20


class Pair:
    """What is sent goes into the source's store, as the accelerator would put it there."""

    def __init__(
        self, pieces: int, *, asks: bool = True, marks: bool = False, store_bytes: int = 0
    ) -> None:
        self.index = SourceIndex(KEY, LookupTable, BUDGET)
        self.target = MemoryTarget(KEY)
        self.size = pieces * PIECE
        self.base = self.index.add_disk(self.size)
        self.target.add_disk(self.base, np.zeros(self.size, np.uint8))
        self.asks = asks
        self.marks = marks
        self.store = SourceStore(store_bytes)
        self.begin()

    def begin(self) -> None:
        """A session."""
        shared = self.store if self.store.size_bytes else None
        self.encoder = Encoder(
            KEY,
            self.index,
            self.base,
            shared=shared,
            asks=self.asks,
            marks=self.marks,
            window_log=WINDOW_LOG,
        )
        self.decoder = Decoder(KEY, self.target, window_log_max=WINDOW_LOG)

    def encode(self, offsets: np.ndarray, data: np.ndarray) -> bytes:
        """The frame of a batch."""
        batch = self.encoder.prepare(offsets, data)
        answer = self.decoder.answer(batch.question) if batch.question else b""
        return self.encoder.encode(batch, answer)

    def send(self, offsets: np.ndarray, data: np.ndarray) -> list[Decoded]:
        """One batch, and what must come again."""
        decoded = [self.decoder.decode(self.encode(offsets, data))]
        again = self.encoder.settle(decoded[0].receipt)
        if again:
            decoded.append(self.decoder.decode(again))
            assert self.encoder.settle(decoded[1].receipt) == b""
        for part in decoded:
            self.target.write(self.base, part.runs)
        self.store.put((self.base + offsets + NOW) // PIECE, data)
        return decoded

    def commit(self) -> None:
        """End of the session."""
        self.index.commit(self.base)
        self.target.commit(self.base)
        self.store.commit(self.base, self.size)
        self.begin()

    def holds(self, offsets: np.ndarray, data: np.ndarray) -> bool:
        """Whether the target has the batch."""
        there = self.target.disk(self.base).reshape(-1, PIECE)[offsets // PIECE]
        return bool((there == data).all())

    def other_disk(self, content: np.ndarray, *, is_known: bool) -> int:
        """Another disk that the target holds; whether the source knows."""
        base = self.index.add_disk(content.size)
        self.target.add_disk(base, content.reshape(-1))
        if is_known:
            offsets = np.arange(len(content)) * PIECE
            self.index.learn(base, offsets, names(content, KEY), content)
            self.index.commit(base)
        return base


def noise(pieces: int, seed: int = 1) -> np.ndarray:
    """Incompressible, all pieces different."""
    return np.random.default_rng(seed).integers(0, 256, (pieces, PIECE), np.uint8)


def text(pieces: int, seed: int = 1) -> np.ndarray:
    """Compressible, all pieces different."""
    return np.random.default_rng(seed).integers(97, 101, (pieces, PIECE), np.uint8)


def shifted(content: np.ndarray, distance: int) -> np.ndarray:
    """The same bytes `distance` later, in as many pieces; noise in front."""
    flat = np.concatenate((noise(1, 9).reshape(-1)[:distance], content.reshape(-1)))
    return flat[: content.size].reshape(-1, PIECE).copy()
