"""The global cache: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from standby.errors import ConfigurationError, DiskBusy
from standby.units import MiB
from standby.wan import reading
from standby.wan.cache import GlobalCache, fingerprint
from standby.wan.locations import NONE
from standby.wan.namespace import Namespace
from standby.wan.references import ASKED
from standby.wan.table import LookupTable
from standby.wan.transfers import CacheTransfer
from wan_caches import (
    KEY,
    OTHER_KEY,
    PIECE,
    DictTable,
    check_never_wrong,
    held,
    names_of,
    noise,
    open_cache,
    plain_names,
    sampled_table,
    text,
)


@pytest.fixture
def cache(tmp_path: Path):
    with open_cache(tmp_path / "cache") as opened:
        yield opened


def test_what_was_added_is_found_and_read(cache: GlobalCache) -> None:
    part = cache.namespace(KEY)
    pieces = np.concatenate([noise(70, 1), text(70, 2)])
    names = part.add(pieces)
    assert np.array_equal(names, plain_names(pieces, KEY))
    assert np.array_equal(held(part, names)[0], pieces)
    shuffled = np.random.default_rng(3).permutation(len(pieces))
    data, ok = held(part, names[shuffled])
    assert ok.all()
    assert np.array_equal(data, pieces[shuffled])


def test_what_two_sources_bring_at_once_is_there_once(
    cache: GlobalCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look what is new before either has taken it in, where they may."""
    both, right = threading.Barrier(2), Namespace.are_new

    def are_new(self: Namespace, names: np.ndarray) -> np.ndarray:
        found = right(self, names)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        return found

    monkeypatch.setattr(Namespace, "are_new", are_new)
    pieces = noise(64, 1)
    with ThreadPoolExecutor(2) as pool:
        taken = list(pool.map(lambda _: cache.namespace(KEY).take_in(pieces)[1], range(2)))
    assert sorted(taken) == [0, 64]
    assert cache.status().pieces == 64


def test_nothing_added_nothing_asked(cache: GlobalCache) -> None:
    part = cache.namespace(KEY)
    assert part.add(b"").shape == (0, 16)
    empty = np.empty((0, 16), dtype=np.uint8)
    assert len(part.lookup(empty)) == 0
    data, ok = part.read(part.lookup(empty), empty)
    assert (data.shape, ok.shape) == ((0, PIECE), (0,))


def test_what_is_unknown_is_a_miss(cache: GlobalCache) -> None:
    part = cache.namespace(KEY)
    part.add(noise(5, 1))
    names = names_of(noise(5, 2), KEY)
    assert (part.lookup(names) == NONE).all()
    data, ok = part.read(part.lookup(names), names)
    assert not ok.any()
    assert not data.any()


def test_data_that_is_not_whole_pieces_is_refused(cache: GlobalCache) -> None:
    with pytest.raises(ValueError, match="whole pieces"):
        cache.namespace(KEY).add(bytes(PIECE + 1))


def test_zeros_and_what_is_known_are_not_taken_in_again(cache: GlobalCache) -> None:
    part = cache.namespace(KEY)
    pieces = noise(10, 1)
    part.add(np.concatenate([pieces, np.zeros_like(pieces), pieces]))
    part.add(pieces)
    assert cache.status().pieces == 10
    assert cache.status().counts["added"] == 10


def test_content_that_compresses_takes_less_room(cache: GlobalCache) -> None:
    cache.namespace(KEY).add(text(320, 1))
    assert cache.status().bytes < 320 * PIECE // 4


def test_locations_of_a_stranger_are_misses(cache: GlobalCache) -> None:
    part = cache.namespace(KEY)
    part.add(noise(5, 1))
    made_up = np.array([0, 5, 1 << 20, (1 << 20) + 5, 1 << 47, int(NONE)], dtype=np.uint64)
    data, ok = part.read(made_up)
    assert ok.tolist() == [False, False, True, False, False, False]
    assert np.array_equal(data[2], noise(5, 1)[0])


def test_a_place_that_holds_other_content_is_a_miss_and_stays(cache: GlobalCache) -> None:
    part = cache.namespace(KEY)
    names = part.add(noise(4, 1))
    places = part.lookup(names)
    data, ok = part.read(places[::-1].copy(), names)
    assert not ok.any()
    assert not data.any()
    assert cache.status().counts["false_hits"] == 4
    assert held(part, names)[1].all()


def test_tenants_see_nothing_of_each_other(cache: GlobalCache) -> None:
    ours, theirs = cache.namespace(KEY), cache.namespace(OTHER_KEY)
    pieces = noise(8, 1)
    names = ours.add(pieces)
    assert (theirs.lookup(names) == NONE).all()
    assert (theirs.lookup(theirs.names(pieces)) == NONE).all()
    assert not theirs.read(ours.lookup(names))[1].any()
    assert cache.clear(OTHER_KEY) == 0
    assert held(ours, names)[1].all()


def test_the_folder_does_not_tell_the_key(tmp_path: Path) -> None:
    with open_cache(tmp_path) as cache:
        cache.namespace(KEY).add(noise(3, 1))
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY not in data
    assert fingerprint(KEY) in data


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_is_refused(cache: GlobalCache, length: int) -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        cache.namespace(bytes(length))


def test_one_process_has_the_folder(cache: GlobalCache) -> None:
    with pytest.raises(DiskBusy):
        open_cache(cache.folder)


def test_a_restart_finds_everything(tmp_path: Path) -> None:
    pieces = noise(1500, 1)
    with open_cache(tmp_path) as cache:
        cache.namespace(KEY).add(pieces[:1400])
        before = cache.status()
        assert before.segments > 2
    with open_cache(tmp_path) as cache:
        part = cache.namespace(KEY)
        assert check_never_wrong(part, pieces) == 1400
        assert cache.status().pieces == 1400
        assert not cache.status().problems
        part.add(pieces)
        assert check_never_wrong(part, pieces) == 1500


def test_an_open_segment_is_gone_on_with(tmp_path: Path) -> None:
    for number in range(5):
        with open_cache(tmp_path) as cache:
            cache.namespace(KEY).add(noise(10, number))
            assert cache.status().segments == 1


def test_clear_leaves_nothing_and_goes_on(cache: GlobalCache) -> None:
    part = cache.namespace(KEY)
    names = part.add(noise(1000, 1))
    places = part.lookup(names)
    assert cache.clear() >= 2
    assert (part.lookup(names) == NONE).all()
    assert not part.read(places, names)[1].any()
    assert (cache.status().bytes, cache.status().entries) == (0, 0)
    assert not list(cache.folder.glob("*.segment"))
    part.add(noise(10, 2))
    assert held(part, names_of(noise(10, 2), KEY))[1].all()


class LyingTable(DictTable):
    """Knows every name, some of them at places that do not exist."""

    def lookup(self, wanted: np.ndarray) -> np.ndarray:
        found = super().lookup(wanted)
        unknown = np.flatnonzero(found == NONE)
        found[unknown] = (1 << 20) + (unknown * 7).astype(np.uint64) % 90
        return found


@pytest.mark.parametrize("sealed", [False, True])
def test_what_the_table_makes_up_is_not_believed(tmp_path: Path, sealed: bool) -> None:
    with open_cache(tmp_path, new_table=LyingTable) as cache:
        part = cache.namespace(KEY)
        part.add(noise(60, 1))  # from the 61st place on there is nothing
        assert cache.status().pieces == 60
        if sealed:
            assert all(cache.intake.seal_open(segment) for segment in cache.shelf)
    with open_cache(tmp_path, new_table=LyingTable) as cache:
        part = cache.namespace(KEY)
        for count in (3, 50):
            asked = names_of(np.concatenate([noise(count, 2), noise(60, 1)]), KEY)
            found = part.lookup(asked)
            assert (found[:count] == NONE).all()
            assert (found[count:] != NONE).all()


def test_a_transfer_asks_by_some_bytes_of_the_names(tmp_path: Path) -> None:
    with open_cache(tmp_path, 8 * MiB, MiB, new_table=LookupTable) as cache:
        part = cache.namespace(KEY)
        pieces = noise(100, 1)
        names = part.add(pieces)
        transfer = CacheTransfer(part)
        hits, found = transfer.find(np.concatenate([names, names_of(noise(50, 2), KEY)])[:, ASKED])
        assert hits[:100].mean() > 0.9
        assert not hits[100:].any()
        kept = found[hits]
        for seed in range(3, 40):  # far beyond the limit
            part.add(noise(100, seed))
        data = np.zeros((len(kept), PIECE), np.uint8)
        ok = transfer.read_found(kept, np.arange(len(kept)), data)
        assert ok.all()
        assert np.array_equal(data, pieces[hits[:100]])
        transfer.release(kept[:5])
        assert cache.status().pinned_segments == 1
        transfer.release(kept[5:])
        assert cache.status().pinned_segments == 0
        transfer.find(names[:, ASKED])
        transfer.close()
        assert cache.status().pinned_segments == 0


def test_a_sampled_table_finds_what_stands_beside_a_hit(tmp_path: Path) -> None:
    with open_cache(tmp_path, new_table=sampled_table) as cache:
        part = cache.namespace(KEY)
        pieces = noise(1200, 1)
        part.add(pieces)
        assert cache.table.entries < 150
        assert check_never_wrong(part, pieces) > 1100
        assert cache.status().counts["extended"] > 1000
        assert cache.status().mode == "sampled"
        part.add(pieces)
        assert cache.status().pieces < 1300
        moved = np.concatenate([noise(5, 2), pieces[700:900], noise(5, 3)])
        found = part.lookup(names_of(moved, KEY))
        assert (found[:5] == NONE).all()
        assert (found[-5:] == NONE).all()
        assert np.count_nonzero(found != NONE) > 150


def test_pieces_asked_for_in_any_order_read_each_record_once(
    cache: GlobalCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = cache.namespace(KEY)
    pieces = noise(128, 1)
    names = part.add(pieces)
    shuffled = np.random.default_rng(1).permutation(128)
    reads = []
    plain = reading.parsed_record
    monkeypatch.setattr(
        reading,
        "parsed_record",
        lambda *given, **more: reads.append(len(given[1])) or plain(*given, **more),
    )
    data, ok = held(part, names[shuffled])
    assert ok.all()
    assert np.array_equal(data, pieces[shuffled])
    assert len(reads) == 4


def test_a_table_that_gets_full_goes_on_with_samples(tmp_path: Path) -> None:
    """130,000 pieces over a table for some 110,000: all of them are found still, but for few."""
    batches, size = 26, 5000
    with open_cache(tmp_path, 256 * MiB, 8 * MiB, new_table=None) as cache:
        part = cache.namespace(KEY)
        known = [part.add(text(size, seed)) for seed in range(batches)]
        status = cache.status()
        assert status.mode == "sampled"
        assert status.memory_bytes <= status.memory_max_bytes + 2 * MiB
        assert status.pieces > 0.99 * batches * size
        for seed in (0, 12, 25):
            found = part.lookup(known[seed])
            assert np.count_nonzero(found != NONE) > 0.99 * size
            data, ok = part.read(found[:300], known[seed][:300])
            assert np.array_equal(data[ok], text(size, seed)[:300][ok])
            assert ok.mean() > 0.9
    with open_cache(tmp_path, 256 * MiB, 8 * MiB, new_table=None) as cache:
        assert cache.status().mode == "sampled"
        assert np.count_nonzero(cache.namespace(KEY).lookup(known[3]) != NONE) > 0.99 * size
