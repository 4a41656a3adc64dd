"""What a target holds: the cache by name, disks by address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from standby.errors import DiskIO
from standby.wan.decoding import Decoder
from standby.wan.encoding import Encoder
from standby.wan.holding import Holding
from standby.wan.knowledge import SourceIndex
from standby.wan.names import names
from standby.wan.references import NOW, PIECE, Kind
from standby.wan.table import LookupTable
from standby.wan.transfers import CacheTransfer
from wan_caches import KEY, open_cache
from wan_pairs import BUDGET, noise, shifted, text

CACHED = text(60, 6)


class Content:
    """A disk in memory."""

    def __init__(self, content: np.ndarray, *, fails: bool = False) -> None:
        self.content = content.reshape(-1)
        self.virtual_size = self.content.size
        self.fails = fails

    def read_into(self, offset: int, buffer: Any) -> None:
        end = offset + len(buffer)
        assert offset % 512 == 0, "no sector"
        assert end % 512 == 0 or end == self.virtual_size, "no sector"
        if self.fails:
            raise DiskIO("disk", "read", offset, len(buffer), "gone")
        buffer[:] = self.content[offset : offset + len(buffer)]


@pytest.fixture
def transfer(tmp_path: Path):
    with open_cache(tmp_path, new_table=None) as cache:
        cache.namespace(KEY).add(CACHED)
        transfer = CacheTransfer(cache.namespace(KEY))
        yield transfer
        transfer.close()


def read(holding: Holding, *ranges: tuple[int, int]) -> tuple[list[bool], np.ndarray]:
    addresses, lengths = np.array(ranges, np.int64).T
    out = np.full(int(lengths.sum()), 7, np.uint8)
    return holding.read(addresses, lengths, out).tolist(), out


def test_disks_are_read_at_their_addresses(transfer: CacheTransfer) -> None:
    holding = Holding(transfer)
    first, second, written = noise(4, 1), noise(4, 2), noise(4, 3)
    holding.add_disk(4 * PIECE, before=Content(second), now=Content(written))
    holding.add_disk(0, before=Content(first), now=None)
    ok, out = read(holding, (10, 20), (5 * PIECE + 3, 9), ((4 * PIECE + 1) | NOW, 5))
    assert ok == [True, True, True]
    assert out[:20].tobytes() == first.reshape(-1)[10:30].tobytes()
    assert out[20:29].tobytes() == second.reshape(-1)[PIECE + 3 : PIECE + 12].tobytes()
    assert out[29:].tobytes() == written.reshape(-1)[1:6].tobytes()


def test_what_is_not_there_is_not_held(transfer: CacheTransfer) -> None:
    holding = Holding(transfer)
    assert read(holding, (0, 10))[0] == [False]
    holding.add_disk(PIECE, before=Content(noise(2)), now=None)
    holding.add_disk(9 * PIECE, before=Content(noise(2), fails=True), now=None)
    places = (0, 3 * PIECE, PIECE | NOW, 9 * PIECE, 2 * PIECE)
    assert read(holding, *((place, PIECE) for place in places))[0] == [False] * 4 + [True]
    assert read(holding, (2 * PIECE, 2 * PIECE))[0] == [False]


def test_a_short_last_piece_is_padded_with_zeros(transfer: CacheTransfer) -> None:
    holding = Holding(transfer)
    content = noise(2)[:, :-6].reshape(-1)
    holding.add_disk(0, before=Content(content), now=None)
    ok, out = read(holding, (PIECE, PIECE))
    assert ok == [True]
    assert out[:-12].tobytes() == content[PIECE:].tobytes()
    assert not out[-12:].any()


def test_a_disk_goes_over_with_all_that_the_target_holds(transfer: CacheTransfer) -> None:
    index, holding = SourceIndex(KEY, LookupTable, BUDGET), Holding(transfer)
    sibling = noise(80, 5)
    other, base = index.add_disk(sibling.size), index.add_disk(400 * PIECE)
    index.learn(other, np.arange(80) * PIECE, names(sibling, KEY), sibling)
    index.commit(other)
    holding.add_disk(other, before=Content(sibling), now=None)
    written = Content(np.zeros(400 * PIECE, np.uint8))
    holding.add_disk(base, before=Content(np.zeros(400 * PIECE, np.uint8)), now=written)
    data = np.concatenate((sibling[:30], shifted(sibling, 333)[31:70], CACHED[:50], noise(9)))
    encoder, decoder = Encoder(KEY, index, base), Decoder(KEY, holding)
    for start in (0, 200):
        batch = encoder.prepare((start + np.arange(len(data))) * PIECE, data)
        answer = decoder.answer(batch.question) if batch.question else b""
        decoded = decoder.decode(encoder.encode(batch, answer))
        assert decoded.is_complete
        for run in decoded.runs:
            assert run.data is not None
            written.content[run.offset : run.offset + run.length] = np.frombuffer(
                run.data, np.uint8
            )
        assert encoder.settle(decoded.receipt) == b""
    there = written.content.reshape(-1, PIECE)
    assert (there[: len(data)] == data).all()
    assert (there[200 : 200 + len(data)] == data).all()
    assert encoder.sent.pieces[Kind.COPY] == 30 + len(data)
    assert encoder.sent.pieces[Kind.ASKED] == 50
    assert encoder.sent.pieces[Kind.PARTS] > 30
