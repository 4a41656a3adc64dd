"""Opening a cache: the saved table brought up to date, or filled anew, however the last process
ended."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from standby.units import MiB
from standby.wan import saving, table_file
from standby.wan.loading import TABLE_NAME
from standby.wan.saving import TableSaver
from standby.wan.table import LookupTable
from wan_caches import KEY, check_never_wrong, noise, open_cache

BATCH = 200


def opened(folder: Path, limit: int = 64 * MiB, segment: int = MiB, **more):
    return open_cache(folder, limit, segment, new_table=None, **more)


def fill(cache, batches: range) -> None:
    for number in batches:
        cache.namespace(KEY).add(noise(BATCH, number))


def found(cache, batches: range) -> int:
    return sum(check_never_wrong(cache.namespace(KEY), noise(BATCH, n)) for n in batches)


def test_a_table_that_was_told_how_many_holds_them_without_growing() -> None:
    count = 200_000
    names = np.random.default_rng(1).integers(0, 256, (count, 16), dtype=np.uint8)
    table = LookupTable(4 * MiB)
    table.expect(count)
    size = table.memory_bytes
    table.insert(names, np.arange(count, dtype=np.uint64))
    assert table.memory_bytes < size * 1.1  # a shard that is fuller than others may grow a step
    assert table.entries > count * 0.999
    assert np.count_nonzero(table.lookup(names) == np.arange(count)) > count * 0.999
    assert (size - MiB) / count < 11.5  # 1 MiB is room to rebuild a shard


@pytest.mark.parametrize("count", [0, 1, 100_000_000])
def test_a_table_takes_any_expectation_within_its_budget(count: int) -> None:
    table = LookupTable(2 * MiB)
    table.expect(count)
    assert table.memory_bytes < 4 * MiB
    table.insert(np.ones((1, 16), dtype=np.uint8), np.ones(1, dtype=np.uint64))
    assert table.entries == 1


def test_a_saved_table_is_not_filled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as cache:
        fill(cache, range(8))
        entries = cache.table.entries
    monkeypatch.setattr(LookupTable, "insert", lambda *given: pytest.fail("filled again"))
    with opened(tmp_path) as cache:
        assert cache.table.entries == entries
        assert found(cache, range(8)) == 8 * BATCH


def killed(folder: Path) -> Path:
    """The folder as it is now, as a kill would leave it."""
    copy = folder.with_name("killed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def test_what_came_and_went_since_the_save_is_seen_to(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with opened(folder, 8 * MiB) as cache:
        fill(cache, range(6))
    with opened(folder, 8 * MiB) as cache:
        fill(cache, range(6, 20))
        cache.flush()
        copy = killed(folder)
        wanted, entries = found(cache, range(20)), cache.table.entries
        assert cache.status().counts["evicted"] > 3
    with opened(copy, 8 * MiB) as cache:
        assert found(cache, range(20)) == wanted
        assert cache.table.entries == entries


def test_a_segment_that_is_shorter_than_when_the_table_was_saved(tmp_path: Path) -> None:
    with opened(tmp_path, segment=8 * MiB) as cache:
        fill(cache, range(3))
    (path,) = tmp_path.glob("*.segment")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with opened(tmp_path, segment=8 * MiB) as cache:
        kept = cache.status().pieces
        assert cache.table.entries == kept
        assert found(cache, range(3)) == kept
        fill(cache, range(3, 6))
        assert found(cache, range(3, 6)) == 3 * BATCH


def test_many_gaps_are_seen_to_by_filling_the_table_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        fill(cache, range(32))
        assert cache.status().segments > 20
    for path in sorted(tmp_path.glob("*.segment"))[::2]:
        path.unlink()
    with opened(tmp_path) as cache:
        assert cache.table.entries == cache.status().pieces
        assert 0 < found(cache, range(32)) == cache.status().pieces


@pytest.mark.parametrize("note", [b"", b"x" * 17, bytes(160)])
def test_a_table_with_a_note_of_nonsense(tmp_path: Path, note: bytes) -> None:
    with opened(tmp_path) as cache:
        fill(cache, range(3))
        table_file.save(cache.table, tmp_path / "other", note)
    (tmp_path / "other").replace(tmp_path / TABLE_NAME)
    with opened(tmp_path) as cache:
        assert found(cache, range(3)) == 3 * BATCH


def test_another_budget_fills_a_table_of_that_budget(tmp_path: Path) -> None:
    from standby.wan.cache import GlobalCache, Limits

    with opened(tmp_path) as cache:
        fill(cache, range(3))
    with GlobalCache(tmp_path, Limits(64 * MiB, 3 * MiB, keep_free_bytes=0)) as cache:
        assert found(cache, range(3)) == 3 * BATCH


# --- saving beside all else --------------------------------------------------------------------


def test_the_table_is_saved_while_content_comes_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "NEW_MIN", BATCH)
    folder = tmp_path / "cache"
    with opened(folder) as cache:
        fill(cache, range(8))
        cache._saver.end()
        assert (folder / TABLE_NAME).exists()
        fill(cache, range(8, 10))
        cache.flush()
        copy = killed(folder)
    with opened(copy) as cache:
        assert found(cache, range(10)) == 10 * BATCH


def test_a_save_is_worth_it_when_enough_came_in() -> None:
    saved: list[int] = []

    def save() -> str:
        saved.append(1)
        return ""

    saver = TableSaver(save)
    for added, entries, times in (
        (saving.NEW_MIN - 1, 0, 0),
        (saving.NEW_MIN, 0, 1),
        (2 * saving.NEW_MIN - 1, 0, 1),
        (2 * saving.NEW_MIN, 16 * saving.NEW_MIN, 1),
        (3 * saving.NEW_MIN, 16 * saving.NEW_MIN, 2),
    ):
        saver.taken(added, entries)
        saver.end()
        assert len(saved) == times
