"""What a source's accelerator remembers of disks."""

from __future__ import annotations

import numpy as np
import pytest

from standby.wan import remembering
from standby.wan.names import names
from standby.wan.references import NOW, PIECE
from standby.wan.remembering import INDEX_MIN, WRONG_MAX, DiskMemory, SourceMemory
from standby.wan.table import LookupTable
from wan_pairs import KEY, noise

OTHER = bytes(reversed(KEY))
SIZE = 1000 * PIECE


def memory(store_bytes: int = 400 * PIECE) -> SourceMemory:
    return SourceMemory(LookupTable, INDEX_MIN, store_bytes)


def opened(source: SourceMemory, replica: str = "a", key: bytes = KEY) -> DiskMemory:
    disk = source.disk(key, replica, "disk", SIZE)
    assert disk is not None
    return disk


def learn(disk: DiskMemory, first: int, data: np.ndarray, key: bytes = KEY) -> None:
    offsets = (first + np.arange(len(data))) * PIECE
    disk.learn(0, offsets, names(data, key), data)


def session(source: SourceMemory, before: str, name: str, first: int, data: np.ndarray) -> None:
    """Content is sent, whole."""
    disk = opened(source)
    disk.begin(before)
    learn(disk, first, data)
    disk.finished(name)
    disk.close()


def found(disk: DiskMemory, data: np.ndarray) -> list[int]:
    return (disk.find_pieces(names(data, KEY)) // PIECE).tolist()


def test_what_was_committed_is_found_at_its_place_in_the_disk() -> None:
    source = memory()
    opened(source, "other").begin("")  # the first addresses are another disk's
    data = noise(20)
    session(source, "", "s1", 30, data)
    disk = opened(source)
    disk.begin("s1")
    assert disk.refers
    assert found(disk, data) == list(range(30, 50))
    assert disk.has(np.arange(28, 52)).tolist() == [False] * 2 + [True] * 20 + [False] * 2
    assert (disk.read(np.arange(30, 50)) == data).all()
    assert disk.has(np.array([-1, 10_000, (NOW // PIECE) + 30])).tolist() == [False] * 3


def test_nothing_refers_to_the_session_under_way() -> None:
    source = memory()
    old, new = noise(20, 1), noise(20, 2)
    session(source, "", "s1", 0, old)
    disk = opened(source)
    disk.begin("s1")
    learn(disk, 0, new)
    assert set(found(disk, new)) == {-1}
    assert (disk.read(np.arange(20)) == old).all()
    disk.finished("s2")
    disk.close()
    disk = opened(source)
    disk.begin("s2")
    assert found(disk, new) == list(range(20))
    assert (disk.read(np.arange(20)) == new).all()


def test_an_interrupted_session_counts_with_the_one_that_ends_it() -> None:
    source = memory()
    session(source, "", "s1", 0, noise(20, 1))
    disk = opened(source)
    disk.begin("s1")
    learn(disk, 0, noise(5, 2))
    disk.close()
    session(source, "s1", "s3", 10, noise(5, 3))
    disk = opened(source)
    disk.begin("s3")
    assert found(disk, noise(5, 2)) == list(range(5))
    assert found(disk, noise(5, 3)) == list(range(10, 15))
    assert found(disk, noise(20, 1))[15:] == list(range(15, 20))


@pytest.mark.parametrize("point", ["elsewhere", ""])
def test_a_point_of_another_session_means_that_nothing_is_known(point: str) -> None:
    source = memory()
    data = noise(20)
    session(source, "", "s1", 0, data)
    disk = opened(source)
    disk.begin(point)
    assert not disk.refers
    assert set(found(disk, data)) == {-1}
    learn(disk, 0, data)
    disk.finished("s2")
    disk.close()
    disk = opened(source)
    disk.begin("s2")
    assert found(disk, data) == list(range(20))


def test_a_point_that_cannot_be_read_now_may_be_read_later() -> None:
    source = memory()
    old, new = noise(20, 1), noise(20, 2)
    session(source, "", "s1", 0, old)
    disk = opened(source)
    disk.begin(None)
    assert (disk.refers, disk.learns) == (False, True)
    assert set(found(disk, old)) == {-1}
    learn(disk, 40, new)
    disk.finished("s2")
    disk.close()
    disk = opened(source)
    disk.begin("s2")
    assert found(disk, old) == list(range(20))
    assert found(disk, new) == list(range(40, 60))


def test_a_point_that_was_never_read_is_not_learned_for() -> None:
    source = memory()
    disk = opened(source)
    disk.begin(None)
    learn(disk, 0, noise(20))
    assert not disk.learns
    assert source.held_bytes == 0


def test_what_is_overwritten_unseen_is_gone_with_the_commit() -> None:
    source = memory()
    data = noise(20)
    session(source, "", "s1", 0, data)
    disk = opened(source)
    disk.begin("s1")
    disk.unlearn(np.array([[2, 3], [18, 900]]))
    assert found(disk, data) == list(range(20))
    disk.finished("s2")
    disk.close()
    disk = opened(source)
    disk.begin("s2")
    gone = [2, 3, 4, 18, 19]
    assert found(disk, data) == [-1 if n in gone else n for n in range(20)]
    assert np.flatnonzero(~disk.has(np.arange(20))).tolist() == gone


def test_zeros_are_not_kept() -> None:
    source = memory()
    data = noise(20)
    session(source, "", "s1", 0, data)
    mixed = data.copy()
    mixed[5:10] = 0
    session(source, "s1", "s2", 0, mixed)
    disk = opened(source)
    disk.begin("s2")
    assert np.flatnonzero(~disk.has(np.arange(20))).tolist() == [5, 6, 7, 8, 9]


def test_a_disk_that_is_often_wrong_is_forgotten() -> None:
    source = memory()
    data = noise(20)
    session(source, "", "s1", 0, data)
    disk = opened(source)
    disk.begin("s1")
    disk.wrong(WRONG_MAX)
    assert disk.refers
    disk.wrong(1)
    assert not disk.refers
    assert set(found(disk, data)) == {-1}
    assert not disk.has(np.arange(20)).any()
    assert source.held_bytes == 0


def test_disks_and_tenants_do_not_see_each_other() -> None:
    source = memory()
    data = noise(20)
    session(source, "", "s1", 0, data)
    for disk in (opened(source, "b"), opened(source, "a", OTHER)):
        disk.begin("")
        learn(disk, 500, noise(5, 3))
        disk.finished("s1")
        disk.close()
    for disk in (opened(source, "b"), opened(source, "a", OTHER)):
        disk.begin("s1")
        assert disk.refers
        assert set(found(disk, data)) == {-1}
        assert not disk.has(np.arange(20)).any()


def test_a_disk_is_one_sessions_at_a_time() -> None:
    source = memory()
    disk = opened(source)
    assert source.disk(KEY, "a", "disk", SIZE) is None
    disk.close()
    assert source.disk(KEY, "a", "disk", SIZE) is not None


def test_a_disk_of_another_size_begins_anew() -> None:
    source = memory()
    data = noise(20)
    session(source, "", "s1", 0, data)
    disk = source.disk(KEY, "a", "disk", 2 * SIZE)
    assert disk is not None
    disk.begin("s1")
    assert not disk.refers
    assert source.held_bytes == 0


def test_the_disk_that_was_longest_away_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "DISKS_MAX", 2)
    source = memory()
    data = noise(20)
    session(source, "", "s1", 0, data)
    for name in ("b", "c"):
        opened(source, name).close()
    disk = opened(source)
    disk.begin("s1")
    assert not disk.refers
    opened(source, "d")
    assert source.disk(KEY, "e", "disk", SIZE) is None  # both are in use


def test_without_memory_there_is_none() -> None:
    assert SourceMemory(LookupTable, INDEX_MIN - 1, 0).disk(KEY, "a", "disk", SIZE) is None


def test_a_disk_beyond_all_memory_is_not_remembered() -> None:
    source = memory()
    assert source.disk(KEY, "a", "disk", 64 << 40) is None
    assert source.disk(KEY, "a", "disk", SIZE) is not None


def test_disks_together_stay_within_the_memory() -> None:
    source = memory()
    size = INDEX_MIN * remembering.PIECES_SHARE // remembering.BYTES_PER_PIECE // 2 * PIECE
    for name in "abc":
        disk = source.disk(KEY, name, "disk", size)
        assert disk is not None
        disk.begin("")
        learn(disk, 0, noise(5))
        disk.finished("s1")
        disk.close()
    for name, is_known in (("c", True), ("b", True), ("a", False)):
        disk = source.disk(KEY, name, "disk", size)
        assert disk is not None
        disk.begin("s1")
        assert disk.refers == is_known
        disk.close()


def test_memory_that_the_system_has_not_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def add_disk(self: object, size: int) -> int:
        raise MemoryError

    monkeypatch.setattr(remembering.SourceIndex, "add_disk", add_disk)
    assert memory().disk(KEY, "a", "disk", SIZE) is None
