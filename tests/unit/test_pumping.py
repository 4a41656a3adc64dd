"""Reading ahead: order, buffers, errors; windows of what has to be read."""

from __future__ import annotations

import threading

import pytest

from standby.disk.pumping import PIECE, WINDOW, data_windows, read_ahead
from standby.model.extent import Kind
from standby.testing.disks import MemoryDisk, fill
from standby.units import MiB


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_with_their_buffers_intact(workers: int) -> None:
    def work(task: int, buffer: memoryview) -> tuple[int, memoryview]:
        buffer[:4] = task.to_bytes(4, "big")
        return task, buffer

    seen = []
    for task, buffer in read_ahead(range(100), work, workers=workers, buffer_size=4):
        assert bytes(buffer) == task.to_bytes(4, "big")
        seen.append(task)
    assert seen == list(range(100))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_nothing_to_do_is_nothing_done(workers: int) -> None:
    assert list(read_ahead([], lambda task, _: task, workers=workers)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_comes_in_its_place_and_ends_it(workers: int) -> None:
    def work(task: int, _buffer: memoryview) -> int:
        if task == 5:
            raise ValueError("five")
        return task

    seen = []
    results = read_ahead(range(1000), work, workers=workers, buffer_size=1)
    with pytest.raises(ValueError, match="five"):
        seen.extend(results)
    assert seen in ([], [0, 1, 2, 3, 4])
    assert not [t for t in threading.enumerate() if t.name.startswith("read ahead")]


def test_reads_no_further_ahead_than_it_has_buffers() -> None:
    started = []
    results = read_ahead(range(100), lambda task, _: started.append(task), workers=2, buffer_size=1)
    next(results)
    results.close()
    assert len(started) <= 4
    assert not [t for t in threading.enumerate() if t.name.startswith("read ahead")]


@pytest.mark.parametrize("seed", range(5))
def test_windows_cover_all_data_and_stay_inside_their_borders(seed: int) -> None:
    disk = MemoryDisk(7 * MiB + 512)
    fill(disk, seed, count=15)
    windows = list(data_windows(disk))
    for first, stop in windows:
        assert 0 <= first < stop <= disk.virtual_size
        assert first // WINDOW == (stop - 1) // WINDOW
        assert first % PIECE == 0
        assert stop % PIECE == 0 or stop == disk.virtual_size
    numbers = [first // WINDOW for first, _ in windows]
    assert numbers == sorted(set(numbers))
    for extent in disk.extents():
        if extent.kind == Kind.DATA:
            for sector in range(extent.offset, extent.stop, 512):
                assert any(first <= sector < stop for first, stop in windows)


def test_a_disk_of_holes_has_no_windows() -> None:
    disk = MemoryDisk(64 * MiB)
    disk.zero(MiB, MiB)
    assert list(data_windows(disk)) == []
