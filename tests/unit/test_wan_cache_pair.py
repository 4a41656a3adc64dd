"""A pair of accelerators over the global cache: content that another disk brought costs a few
bytes, and whatever happens to the cache costs a resend at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from standby.units import MiB
from standby.wan.cache import GlobalCache
from standby.wan.decoding import Decoded, Decoder
from standby.wan.transfers import CacheTransfer
from wan_caches import KEY, PIECE, noise, open_cache
from wan_pairs import KEY as PAIR_KEY
from wan_pairs import WINDOW_LOG, Pair

COUNT = 256
SHARED = noise(COUNT, 1)
OFFSETS = np.arange(COUNT, dtype=np.int64) * PIECE


class CachedTarget:
    """What a decoder asks for: found content from the cache, the disks' own from memory."""

    def __init__(self, pair: Pair, transfer: CacheTransfer) -> None:
        self.read = pair.target.read
        self.find = transfer.find
        self.read_found = transfer.read_found
        self.disprove = transfer.disprove
        self.release = transfer.release


class CachedPair(Pair):
    """A pair whose target asks the cache, and fills it."""

    def __init__(self, cache: GlobalCache) -> None:
        self.part = cache.namespace(KEY)
        self.transfer = CacheTransfer(self.part)
        super().__init__(COUNT)

    def begin(self) -> None:
        super().begin()
        target = CachedTarget(self, self.transfer)
        self.decoder = Decoder(KEY, target, window_log_max=WINDOW_LOG)

    def fill(self, decoded: list[Decoded]) -> None:
        """What the target accelerator does with what was rebuilt."""
        for part in decoded:
            for run in part.runs:
                if run.data is not None:
                    self.part.add(run.data)


@pytest.fixture
def cache(tmp_path: Path):
    with open_cache(tmp_path, new_table=None) as opened:
        first = CachedPair(opened)
        first.fill(first.send(OFFSETS, SHARED))
        assert first.holds(OFFSETS, SHARED)
        yield opened


def sent_through(cache: GlobalCache, between: Callable[[], object]) -> tuple[int, list[Decoded]]:
    """Send what the cache knows as another disk; `between` is done after the target answered. The
    bytes of the first frame, and what was decoded."""
    pair = CachedPair(cache)
    batch = pair.encoder.prepare(OFFSETS, SHARED)
    answer = pair.decoder.answer(batch.question)
    between()
    frame = pair.encoder.encode(batch, answer)
    decoded = [pair.decoder.decode(frame)]
    again = pair.encoder.settle(decoded[0].receipt)
    if again:
        decoded.append(pair.decoder.decode(again))
    for part in decoded:
        pair.target.write(pair.base, part.runs)
    assert pair.holds(OFFSETS, SHARED)
    assert cache.status().pinned_segments == 0
    return len(frame), decoded


def test_what_another_disk_brought_is_not_sent_again(cache: GlobalCache) -> None:
    assert KEY == PAIR_KEY
    length, decoded = sent_through(cache, lambda: None)
    assert len(decoded) == 1
    assert length < 2048
    assert cache.status().counts["read"] == COUNT


def test_what_is_promised_stays_however_much_comes_in(tmp_path: Path) -> None:
    with open_cache(tmp_path, 8 * MiB, MiB, new_table=None) as cache:
        cache.namespace(KEY).add(SHARED)

        def flood() -> None:
            for seed in range(10, 40):
                cache.namespace(KEY).add(noise(COUNT, seed))

        length, decoded = sent_through(cache, flood)
        assert len(decoded) == 1
        assert length < 2048


def damaged(cache: GlobalCache) -> None:
    for path in cache.folder.glob("*.segment"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


def deleted(cache: GlobalCache) -> None:
    cache.shelf.close()
    for path in cache.folder.glob("*.segment"):
        path.unlink()


@pytest.mark.parametrize("happens", [GlobalCache.clear, damaged, deleted])
def test_whatever_happens_to_the_cache_costs_one_resend(cache: GlobalCache, happens) -> None:
    _, decoded = sent_through(cache, lambda: happens(cache))
    assert len(decoded) == 2
    assert decoded[1].is_complete


def test_a_table_that_lies_is_not_believed(
    cache: GlobalCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that collide in what the table keeps of them: made by shuffling its answers."""
    part = cache.namespace(KEY)
    found = part.lookup(part.names(SHARED))
    monkeypatch.setattr(cache.table, "lookup", lambda names: np.roll(found, 3)[: len(names)])
    length, _ = sent_through(cache, lambda: None)
    assert length > COUNT * PIECE // 2  # the segments' names say that they are none
