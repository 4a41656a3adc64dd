"""The global cache within its limit: eviction, what stays at that, pins, storage that is full."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from standby.errors import ConfigurationError, DiskIO
from standby.files import File
from standby.units import MiB
from standby.wan.appending import Run
from standby.wan.cache import GlobalCache, Limits, fingerprint
from standby.wan.locations import NONE
from standby.wan.segment_file import RAW, DiskFile
from standby.wan.writing import RETRY_S
from wan_caches import (
    KEY,
    OTHER_KEY,
    HeldClock,
    check_never_wrong,
    held,
    names_of,
    noise,
    open_cache,
    text,
)

LIMIT = 16 * MiB
SEGMENT = 2 * MiB
BATCH = 256
"""Pieces: 1 MiB."""


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.segment"))


def fill(cache, batches: range, key: bytes = KEY) -> None:
    """Add batches of 1 MiB; the files never take more than the limit."""
    for seed in batches:
        cache.namespace(key).add(noise(BATCH, seed))
        assert bytes_in(cache.folder) <= LIMIT


@pytest.fixture
def cache(tmp_path: Path):
    with open_cache(tmp_path, LIMIT, SEGMENT) as opened:
        yield opened


def test_the_oldest_goes_when_the_limit_is_reached(cache) -> None:
    fill(cache, range(40))
    part = cache.namespace(KEY)
    found = [check_never_wrong(part, noise(BATCH, seed)) for seed in range(40)]
    assert found[0] == 0
    assert found[-1] == BATCH
    assert sorted(found) == found
    assert sum(found) * 4096 > LIMIT - 3 * SEGMENT
    status = cache.status()
    assert status.counts["evicted"] > 10
    assert status.entries == status.pieces
    assert status.bytes == bytes_in(cache.folder)


def test_what_is_read_stays(cache) -> None:
    part = cache.namespace(KEY)
    names = part.add(noise(BATCH // 2, 0))
    for seed in range(1, 60):
        fill(cache, range(seed, seed + 1))
        assert held(part, names)[1].all()
    status = cache.status()
    assert status.counts["copied_forward"] >= BATCH // 2
    assert status.entries == status.pieces


def test_what_was_read_once_gets_one_second_chance(cache) -> None:
    part = cache.namespace(KEY)
    names = part.add(noise(BATCH // 2, 0))
    assert held(part, names)[1].all()
    fill(cache, range(1, 12))
    assert (part.lookup(names) != NONE).all()
    fill(cache, range(12, 60))
    assert (part.lookup(names) == NONE).all()


def test_reading_everything_does_not_stop_the_turnover(cache) -> None:
    part = cache.namespace(KEY)
    known = []
    for seed in range(30):
        known.append(part.add(noise(BATCH, seed)))
        assert bytes_in(cache.folder) <= LIMIT
        for names in known[-12:]:
            held(part, names)
    assert check_never_wrong(part, noise(BATCH, 29)) == BATCH
    assert cache.status().counts["not_cached"] == 0


def test_what_is_pinned_waits(cache) -> None:
    part = cache.namespace(KEY)
    names = part.add(noise(BATCH, 0))
    with part.pin() as pin:
        places = part.lookup(names, pin)
        assert cache.status().pinned_segments == 1
        fill(cache, range(1, 40))
        data, ok = part.read(places, names)
        assert ok.all()
        assert np.array_equal(data, noise(BATCH, 0))
        assert cache.status().counts["evicted"] > 5
    assert cache.status().pinned_segments == 0
    fill(cache, range(40, 60))
    assert (part.lookup(names) == NONE).sum() > BATCH // 2


def test_everything_pinned_takes_nothing_in_and_stays_within_the_limit(cache) -> None:
    part = cache.namespace(KEY)
    with part.pin() as pin:
        for seed in range(40):
            names = part.add(noise(BATCH, seed))
            part.lookup(names, pin)
            assert bytes_in(cache.folder) <= LIMIT
        assert cache.status().counts["not_cached"] > 0
        assert not cache.status().stopped_by
        assert check_never_wrong(part, noise(BATCH, 0)) == BATCH
    fill(cache, range(40, 44))
    assert check_never_wrong(part, noise(BATCH, 43)) == BATCH


def test_a_pin_of_nothing_and_a_second_release_do_nothing(cache) -> None:
    part = cache.namespace(KEY)
    pin = part.pin()
    part.lookup(names_of(noise(3, 1), KEY), pin)
    pin.release()
    pin.release()
    first, second = part.pin(), part.pin()
    names = part.add(noise(3, 1))
    part.lookup(names, first)
    part.lookup(names, second)
    first.release()
    assert cache.status().pinned_segments == 1
    second.release()
    assert cache.status().pinned_segments == 0


def test_tenants_share_the_limit(cache) -> None:
    for seed in range(30):
        fill(cache, range(seed, seed + 1), KEY if seed % 2 else OTHER_KEY)
    fill(cache, range(30, 50))
    assert cache.status().bytes <= LIMIT
    assert check_never_wrong(cache.namespace(KEY), noise(BATCH, 49)) == BATCH


def test_more_tenants_than_segments_fit(cache) -> None:
    for number in range(30):
        key = bytes([number]) * 32
        cache.namespace(key).add(noise(BATCH, number))
        assert bytes_in(cache.folder) <= LIMIT
        assert held(cache.namespace(key), names_of(noise(BATCH, number), key))[1].all()


def test_a_lower_limit_counts_after_a_restart(tmp_path: Path) -> None:
    with open_cache(tmp_path, LIMIT, SEGMENT) as cache:
        fill(cache, range(14))
    with open_cache(tmp_path, 8 * MiB, SEGMENT) as cache:
        cache.namespace(KEY).add(noise(2 * BATCH, 20))
        assert bytes_in(tmp_path) <= 8 * MiB


def test_a_limit_too_small_for_segments_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least"):
        open_cache(tmp_path, MiB)
    with pytest.raises(ConfigurationError, match="at least"):
        GlobalCache(tmp_path, Limits(LIMIT, MiB - 1))
    assert not list(tmp_path.iterdir())


def test_the_size_of_segments_follows_the_limit() -> None:
    sizes = [Limits(limit, MiB).segment_size() for limit in (4 * MiB, 1 << 30, 1 << 33, 1 << 40)]
    assert sizes == [MiB, 64 * MiB, 128 * MiB, 256 * MiB]


def test_footers_count_to_the_size_of_a_segment(tmp_path: Path) -> None:
    """Content that packs so well that names are a third of a segment."""
    with open_cache(tmp_path, LIMIT, MiB) as cache:
        for seed in range(12):
            cache.namespace(KEY).add(text(2000, seed))
        sealed = [segment for segment in cache.shelf if segment.is_sealed]
        assert len(sealed) >= 2
        for segment in sealed:
            assert segment.path.stat().st_size <= MiB
            assert segment.size == segment.path.stat().st_size


def test_entries_into_disk_files_stay_within_the_limit_too(tmp_path: Path) -> None:
    disk = DiskFile("/disk", "0" * 32, 1 << 40)
    with open_cache(tmp_path, 4 * MiB, MiB) as cache:
        place = 0
        for _ in range(8):
            opened = cache.intake.open_disk_segment(fingerprint(KEY), disk)
            assert opened is not None
            while True:
                names = np.random.default_rng(place).integers(0, 256, (500, 16), dtype=np.uint8)
                if not cache.intake.take_entries(opened, [Run(names, b"", RAW, place)]):
                    break
                place += 500
                assert bytes_in(tmp_path) <= 4 * MiB
            cache.intake.seal_entries(opened)
            assert opened.segment.is_sealed
            assert opened.segment.size <= MiB
            assert bytes_in(tmp_path) <= 4 * MiB
        assert place > 8 * 30_000
        assert not cache.status().stopped_by
        assert cache.table.entries == cache.status().disk_pieces < place


# --- storage that is full, or fails ------------------------------------------------------------


class Storage:
    """Fails writes of segment files once `room` bytes are used."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self.code = errno.ENOSPC
        plain = File.write

        def write(file: File, data: object, offset: int) -> None:
            view = memoryview(data).cast("B")  # type: ignore[arg-type]
            if self.room is not None and file.path.suffix == ".segment":
                taken = bytes_in(file.path.parent)
                if taken + len(view) > self.room:
                    fits = max(0, self.room - taken)
                    plain(file, view[:fits], offset)
                    file._size = max(file._size, offset + fits)
                    if self.code == errno.ENOSPC:
                        from standby.errors import DiskFull

                        raise DiskFull(str(file.path), len(view), 0)
                    raise DiskIO(str(file.path), "write", offset, len(view), "Input/output error")
            plain(file, view, offset)

        patch.setattr(File, "write", write)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_full_storage_stops_the_taking_in_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    storage, clock, told = Storage(monkeypatch), HeldClock(), []
    storage.code = code
    with open_cache(tmp_path, LIMIT, SEGMENT, clock=clock, warn=told.append) as cache:
        part = cache.namespace(KEY)
        fill(cache, range(3))
        storage.room = bytes_in(tmp_path) + MiB // 2
        fill(cache, range(3, 10))
        assert bytes_in(tmp_path) <= storage.room
        assert len(told) == 1
        assert "takes nothing in for now" in told[0]
        assert cache.status().stopped_by
        assert cache.status().counts["not_cached"] > 6 * BATCH
        for seed in range(10):
            assert check_never_wrong(part, noise(BATCH, seed)) == (BATCH if seed < 3 else 0)
        clock.at += RETRY_S
        fill(cache, range(10, 12))  # tried again, full still: not told again
        assert len(told) == 1
        storage.room = None
        fill(cache, range(12, 13))  # not tried before its time
        assert check_never_wrong(part, noise(BATCH, 12)) == 0
        clock.at += RETRY_S
        fill(cache, range(13, 20))
        assert not cache.status().stopped_by
        assert check_never_wrong(part, noise(BATCH, 19)) == BATCH
        assert check_never_wrong(part, noise(BATCH, 0)) == BATCH
    with open_cache(tmp_path, LIMIT, SEGMENT) as cache:
        assert not cache.status().problems
        assert check_never_wrong(cache.namespace(KEY), noise(BATCH, 19)) == BATCH


def test_every_amount_of_room_leaves_a_cache_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(monkeypatch)
    for room in range(0, 3 * MiB, 277_777):
        folder = tmp_path / str(room)
        storage.room = room
        with open_cache(folder, LIMIT, MiB) as cache:
            for seed in range(4):
                cache.namespace(KEY).add(noise(BATCH, seed))
        storage.room = None
        with open_cache(folder, LIMIT, MiB) as cache:
            assert not cache.status().problems
            kept = sum(check_never_wrong(cache.namespace(KEY), noise(BATCH, s)) for s in range(4))
            assert kept * 4096 <= max(room, 0)


def test_nothing_is_taken_in_below_the_room_that_is_to_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, told, clock = 10 * MiB, [], HeldClock()
    monkeypatch.setattr("standby.wan.writing.free_bytes", lambda folder: free)
    with open_cache(tmp_path, LIMIT, SEGMENT, warn=told.append, clock=clock) as cache:
        object.__setattr__(cache.limits, "keep_free_bytes", 10 * MiB)
        part = cache.namespace(KEY)
        part.add(noise(10, 1))
        free = 10 * MiB - 1
        part.add(noise(10, 2))
        part.add(noise(10, 3))
        assert check_never_wrong(part, noise(10, 1)) == 10
        assert check_never_wrong(part, noise(10, 2)) == 0
        assert len(told) == 1
        free = 11 * MiB
        clock.at += RETRY_S
        part.add(noise(10, 2))
        assert check_never_wrong(part, noise(10, 2)) == 10
        free = 0
        part.add(noise(10, 4))
        assert len(told) == 2
