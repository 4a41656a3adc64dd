"""The disk in memory that other tests lean on."""

from __future__ import annotations

import errno

import pytest

from standby.errors import DiskFull, DiskIO
from standby.model.extent import Extent, Kind
from standby.testing.disks import MemoryDisk, content, random_bytes, random_operations
from standby.units import KiB, MiB, TiB


def test_faults_strike_where_and_as_often_as_told() -> None:
    disk = MemoryDisk(MiB)
    fault = disk.fail("read", 4096, 512, times=2)
    for _ in range(2):
        with pytest.raises(DiskIO):
            disk.read_into(0, bytearray(8192))
    disk.read_into(0, bytearray(8192))
    assert fault.struck == 2
    disk.fail("write", error=errno.ENOSPC)
    with pytest.raises(DiskFull):
        disk.write(0, bytes(512))
    disk.zero(0, 512)


def test_a_short_read_says_so_and_a_short_write_stores_whole_sectors() -> None:
    disk = MemoryDisk(MiB)
    disk.fail("read", 1000, short=True, times=1)
    with pytest.raises(DiskIO, match="file ends after 1000 bytes"):
        disk.read_into(0, bytearray(4096))
    disk.fail("write", 1300, short=True, times=1)
    with pytest.raises(DiskIO):
        disk.write(0, b"x" * 4096)
    assert content(disk) == b"x" * 1024 + bytes(MiB - 1024)


def test_a_hook_sees_every_call_before_it_happens() -> None:
    disk = MemoryDisk(MiB)
    seen: list[tuple[str, int, int]] = []
    disk.hook = lambda *call: seen.append(call)
    disk.write(0, bytes(512))
    disk.zero(512, 512)
    disk.read_into(0, bytearray(1024))
    disk.flush()
    assert seen == [("write", 0, 512), ("zero", 512, 512), ("read", 0, 1024), ("flush", 0, 1)]


def test_a_power_cut_keeps_what_was_flushed_and_some_of_the_rest() -> None:
    disk = MemoryDisk(MiB)
    old, new = random_bytes(MiB, 1), random_bytes(MiB, 2)
    disk.write(0, old)
    disk.flush()
    disk.write(0, new[: 512 * KiB])
    left = content(disk.crashed(7))
    assert left == content(disk.crashed(7))
    assert left[512 * KiB :] == old[512 * KiB :]
    kept = 0
    for at in range(0, 512 * KiB, 512):
        sector = left[at : at + 512]
        assert sector in (old[at : at + 512], new[at : at + 512])
        kept += sector == new[at : at + 512]
    assert 300 < kept < 700
    disk.flush()
    assert content(disk.crashed(7)) == content(disk)


def test_a_huge_disk_costs_what_was_written() -> None:
    disk = MemoryDisk(64 * TiB)
    disk.write(63 * TiB, bytes(512))
    assert list(disk.extents()) == [
        Extent(0, 63 * TiB, Kind.HOLE),
        Extent(63 * TiB, 512, Kind.DATA),
        Extent(63 * TiB + 512, TiB - 512, Kind.HOLE),
    ]


def test_operations_are_the_same_for_the_same_seed_and_stay_inside() -> None:
    for size in (512, 4096, MiB + 512):
        first = list(random_operations(5, size, 100, around=(0, size)))
        assert first == list(random_operations(5, size, 100, around=(0, size)))
        for operation in first:
            assert operation.offset % 512 == operation.length % 512 == 0
            assert operation.offset + operation.length <= size
            assert len(operation.data) in (0, operation.length)
    names = {operation.name for operation in random_operations(1, MiB, 200)}
    assert names == {"write", "zero", "flush"}
