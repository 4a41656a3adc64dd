"""Where two disks differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from standby.disk.compare import compare_disks
from standby.disk.overlay import OverlayDisk
from standby.disk.pumping import PIECE, WINDOW
from standby.errors import DiskIO
from standby.model.extent import Extent, Kind
from standby.testing.disks import MemoryDisk, content, fill, random_bytes
from standby.units import GiB, KiB, MiB


def expected_differences(a: bytes, b: bytes) -> list[Extent]:
    """The slow truth."""
    size = max(len(a), len(b))
    a, b = a.ljust(size, b"\0"), b.ljust(size, b"\0")
    found: list[Extent] = []
    for offset in range(0, size, PIECE):
        length = min(PIECE, size - offset)
        if a[offset : offset + length] == b[offset : offset + length]:
            continue
        if found and found[-1].stop == offset:
            found[-1] = Extent(found[-1].offset, found[-1].length + length)
        else:
            found.append(Extent(offset, length))
    return found


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(9 * MiB + 512, 9 * MiB + 512), (5 * MiB, 7 * MiB + 1536)])
def test_finds_every_difference_and_no_other(
    seed: int, threads: int, sizes: tuple[int, int]
) -> None:
    a, b = (MemoryDisk(size, name=str(size)) for size in sizes)
    fill(a, seed, count=20)
    shared = content(a)[: min(sizes)]
    for offset in range(0, len(shared), 64 * KiB):
        b.write(offset, shared[offset : offset + 64 * KiB])
    fill(b, seed + 100, count=15, length_max=32 * KiB)
    found = list(compare_disks(a, b, threads=threads))
    assert found == expected_differences(content(a), content(b))
    assert list(compare_disks(b, a, threads=threads)) == found


def test_equal_disks_have_no_differences_whatever_their_layers(tmp_path: Path) -> None:
    a = MemoryDisk(8 * MiB)
    fill(a, 1)
    overlay = OverlayDisk(a, tmp_path)
    assert list(compare_disks(a, overlay)) == []
    data = content(a)
    overlay.write(0, data)
    assert list(compare_disks(a, overlay)) == []
    overlay.write(MiB + 512, b"\xff" * 512)
    if data[MiB + 512 : MiB + 1024] != b"\xff" * 512:
        assert list(compare_disks(a, overlay)) == [Extent(MiB, 4096, Kind.DATA)]
    overlay.close()


def test_zeros_equal_holes() -> None:
    a, b = MemoryDisk(4 * MiB), MemoryDisk(4 * MiB)
    a.write(0, bytes(MiB))
    b.zero(2 * MiB, MiB)
    assert list(compare_disks(a, b)) == []


def test_does_not_read_what_both_do_not_hold() -> None:
    a, b = MemoryDisk(64 * GiB), MemoryDisk(64 * GiB)
    a.write(40 * GiB, random_bytes(4096, 1))
    b.zero(10 * GiB, MiB)
    assert list(compare_disks(a, b)) == [Extent(40 * GiB, 4096)]
    assert a.calls["read"] == 1
    assert b.calls["read"] == 1


def test_a_shorter_disk_counts_as_followed_by_zeros() -> None:
    a, b = MemoryDisk(MiB), MemoryDisk(2 * MiB + 512)
    assert list(compare_disks(a, b)) == []
    b.write(2 * MiB, b"x" * 512)
    assert list(compare_disks(a, b)) == [Extent(2 * MiB, 512)]


def test_joins_runs_across_windows() -> None:
    a, b = MemoryDisk(3 * WINDOW), MemoryDisk(3 * WINDOW)
    a.write(PIECE, b"x" * (3 * WINDOW - 2 * PIECE))
    assert list(compare_disks(a, b)) == [Extent(PIECE, 3 * WINDOW - 2 * PIECE)]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_unreadable_disk_is_an_error_and_no_difference(threads: int) -> None:
    a, b = MemoryDisk(32 * MiB), MemoryDisk(32 * MiB)
    for disk in (a, b):
        for offset in range(0, 32 * MiB, MiB):
            disk.write(offset, b"x" * 512)
    b.fail("read", 20 * MiB, 4096)
    with pytest.raises(DiskIO):
        list(compare_disks(a, b, threads=threads))


def test_may_be_left_early() -> None:
    a, b = MemoryDisk(64 * MiB), MemoryDisk(64 * MiB)
    for offset in range(0, 64 * MiB, MiB):
        a.write(offset, b"x" * 512)
    assert next(compare_disks(a, b)) == Extent(0, 4096)


def test_reports_progress_up_to_the_whole() -> None:
    a, b = MemoryDisk(200 * MiB), MemoryDisk(100 * MiB)
    for offset in range(0, 200 * MiB, MiB):
        a.write(offset, b"x" * 512)
    seen: list[tuple[int, int]] = []
    list(compare_disks(a, b, progress=lambda done, total: seen.append((done, total))))
    dones = [done for done, _ in seen]
    assert dones == sorted(dones)
    assert seen[-1] == (200 * MiB, 200 * MiB)
    assert 2 <= len(seen) <= 10


def test_sectors_of_different_size_compare() -> None:
    a, b = MemoryDisk(4 * MiB), MemoryDisk(4 * MiB, logical_sector_size=4096)
    data = random_bytes(4 * MiB, 3)
    a.write(0, data)
    b.write(0, data)
    a.write(512, np.zeros(64, np.uint64))
    assert list(compare_disks(a, b)) == [Extent(0, 4096)]
