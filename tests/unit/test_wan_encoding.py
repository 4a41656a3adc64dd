"""Frames of a pair of WAN accelerators, from the source's pieces to the target's."""

from __future__ import annotations

import numpy as np
import pytest

from standby.testing.wan_target import MemoryTarget
from standby.wan.decoding import Decoded, Decoder
from standby.wan.encoding import Encoder
from standby.wan.knowledge import SourceIndex
from standby.wan.references import PIECE, UNIT, Kind
from standby.wan.table import LookupTable

KEY = bytes(range(32))
BUDGET = 4 << 20


class Pair:
    """A source and a target of one disk, in one process."""

    def __init__(self, pieces: int, *, asks: bool = True) -> None:
        self.index = SourceIndex(KEY, LookupTable, BUDGET)
        self.target = MemoryTarget(KEY)
        self.base = self.index.add_disk(pieces * PIECE)
        self.target.add_disk(self.base, np.zeros(pieces * PIECE, np.uint8))
        self.asks = asks
        self.begin()

    def begin(self) -> None:
        """A session."""
        self.encoder = Encoder(KEY, self.index, self.base, asks=self.asks, window_log=20)
        self.decoder = Decoder(KEY, self.target, window_log_max=20)

    def send(self, offsets: np.ndarray, data: np.ndarray) -> list[Decoded]:
        """One batch, and what must come again."""
        batch = self.encoder.prepare(offsets, data)
        answer = self.decoder.answer(batch.question) if batch.question else b""
        decoded = [self.decoder.decode(self.encoder.encode(batch, answer))]
        again = self.encoder.settle(decoded[0].receipt)
        if again:
            decoded.append(self.decoder.decode(again))
            assert self.encoder.settle(decoded[1].receipt) == b""
        for part in decoded:
            self.target.write(self.base, part.runs)
        return decoded

    def commit(self) -> None:
        """End of the session."""
        self.index.commit(self.base)
        self.target.commit(self.base)
        self.begin()

    def holds(self, offsets: np.ndarray, data: np.ndarray) -> bool:
        """Whether the target has the batch."""
        there = self.target.disk(self.base).reshape(-1, PIECE)[offsets // PIECE]
        return bool((there == data).all())


def noise(pieces: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (pieces, PIECE), np.uint8)


def text(pieces: int, seed: int = 1) -> np.ndarray:
    """Compressible, all pieces different."""
    return np.random.default_rng(seed).integers(97, 101, (pieces, PIECE), np.uint8)


def at(*pieces: int) -> np.ndarray:
    return np.array(pieces, np.int64) * PIECE


def test_a_batch_arrives_as_it_was() -> None:
    pair = Pair(400)
    offsets = np.arange(0, 300, 2) * PIECE
    data = np.concatenate((noise(50), text(50), np.zeros((50, PIECE), np.uint8)))
    (decoded,) = pair.send(offsets, data)
    assert decoded.is_complete and pair.holds(offsets, data)
    sent = pair.encoder.sent
    assert sent.pieces[Kind.ZERO] == 50 and sent.pieces[Kind.RAW] == 50 - 50 % 8
    assert sent.frames < 48 * PIECE + 52 * PIECE * 0.4


def test_zeros_cost_nearly_nothing() -> None:
    pair = Pair(4096)
    (decoded,) = pair.send(np.arange(4096) * PIECE, np.zeros((4096, PIECE), np.uint8))
    assert [run.data for run in decoded.runs] == [None]
    assert pair.encoder.sent.frames < 4096 // UNIT * 32 + 40


@pytest.mark.parametrize("asks", [False, True])
def test_content_that_the_target_has_elsewhere_is_named(asks: bool) -> None:
    pair = Pair(1000, asks=asks)
    data = noise(200)
    pair.send(np.arange(200) * PIECE, data)
    pair.commit()
    offsets = np.arange(700, 900) * PIECE
    pair.send(offsets, data)
    assert pair.holds(offsets, data)
    assert pair.encoder.sent.pieces[Kind.COPY] == 200
    assert pair.encoder.sent.wire_bytes < 4 * 32 + 60


def test_what_only_the_target_knows_is_found_by_asking() -> None:
    pair = Pair(1000)
    data = noise(300)
    other = pair.index.add_disk(300 * PIECE)
    pair.target.add_disk(other, data.reshape(-1))
    offsets = np.arange(300) * PIECE
    pair.send(offsets, data)
    assert pair.holds(offsets, data)
    assert pair.encoder.sent.pieces[Kind.ASKED] == 300
    assert pair.encoder.sent.wire_bytes < 300 * 6 + 5 * 32 + 100
