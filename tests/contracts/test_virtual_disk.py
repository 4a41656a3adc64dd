"""The rules of VirtualDisk and WritableDisk, run over every implementation."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from standby.disk import open_disk, vhdx
from standby.disk.overlay import OverlayDisk
from standby.disk.raw import RawDisk, create_raw
from standby.errors import DiskRange, StandbyError
from standby.model.extent import Kind
from standby.ports import VirtualDisk, WritableDisk
from standby.testing.disks import (
    MemoryDisk,
    check_extents,
    content,
    fill,
    random_bytes,
    random_operations,
)
from standby.units import GiB, KiB, MiB


@dataclass(frozen=True)
class Case:
    """One implementation: how to make a disk, and how to open it again after a clean close."""

    name: str
    make: Callable[[Path, int], WritableDisk]
    reopen: Callable[[Path], VirtualDisk] | None = None
    sector: int = 512

    def __str__(self) -> str:
        return self.name


def _raw(sector: int, folder: Path, size: int) -> WritableDisk:
    return create_raw(folder / "disk.raw", size, logical_sector_size=sector)


def _memory(sector: int, folder: Path, size: int) -> WritableDisk:
    return MemoryDisk(size, logical_sector_size=sector)


def _overlay(sector: int, folder: Path, size: int) -> WritableDisk:
    base = MemoryDisk(size, logical_sector_size=sector)
    fill(base, 7)
    return OverlayDisk(base, folder)


def _vhdx(sector: int, fixed: bool, folder: Path, size: int) -> WritableDisk:
    return vhdx.create(
        folder / "disk.vhdx", size, block_size=MiB, logical_sector_size=sector, fixed=fixed
    )


def _child(sector: int, folder: Path, size: int) -> WritableDisk:
    parent = folder / "parent.vhdx"
    with_content = vhdx.create(parent, size, block_size=2 * MiB, logical_sector_size=sector)
    fill(with_content, 8)
    with_content.close()
    return vhdx.create_child(folder / "disk.vhdx", parent, block_size=MiB)


def _reopen_raw(sector: int, path: Path) -> VirtualDisk:
    return RawDisk(path, logical_sector_size=sector)


def _cases() -> Iterator[Case]:
    bind = functools.partial
    for sector in (512, 4096):
        yield Case(f"memory {sector}", bind(_memory, sector), None, sector)
        yield Case(f"raw {sector}", bind(_raw, sector), bind(_reopen_raw, sector), sector)
        yield Case(f"overlay {sector}", bind(_overlay, sector), None, sector)
        for fixed in (False, True):
            kind = "fixed" if fixed else "dynamic"
            make = bind(_vhdx, sector, fixed)
            yield Case(f"vhdx {kind} {sector}", make, open_disk, sector)
        yield Case(f"vhdx child {sector}", bind(_child, sector), open_disk, sector)


@pytest.fixture(params=list(_cases()), ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


SIZE = 5 * MiB + 3 * 4096
"""Not a multiple of any block size: the last block is short."""


@pytest.fixture
def disk(case: Case, tmp_path: Path) -> Iterator[WritableDisk]:
    made = case.make(tmp_path, SIZE)
    yield made
    made.close()


def test_has_the_size_and_sectors_asked_for(case: Case, disk: WritableDisk) -> None:
    assert disk.virtual_size == SIZE
    assert disk.logical_sector_size == case.sector
    assert disk.physical_sector_size in (512, 4096)
    assert disk.physical_sector_size >= disk.logical_sector_size


def test_extents_cover_the_disk_and_tell_no_lies(disk: WritableDisk) -> None:
    check_extents(disk)
    fill(disk, 11)
    check_extents(disk)


def _borders(sector: int) -> list[tuple[int, int]]:
    """(offset, length) at every border that some implementation has."""
    found = [(0, sector), (0, SIZE), (SIZE - sector, sector), (5 * MiB, SIZE - 5 * MiB)]
    for border in (4096, 64 * KiB, MiB, 2 * MiB, 4 * MiB):
        found += [
            (border - sector, sector),
            (border, sector),
            (border - sector, 2 * sector),
            (border - 3 * sector, MiB + 5 * sector),
        ]
    found += [(MiB, MiB), (MiB, 2 * MiB), (MiB + sector, 2 * MiB)]
    return [(offset, length) for offset, length in found if offset >= 0]


def test_reads_back_what_was_written_at_every_border(case: Case, disk: WritableDisk) -> None:
    expected = bytearray(content(disk))
    for seed, (offset, length) in enumerate(_borders(case.sector)):
        data = random_bytes(length, seed)
        disk.write(offset, data)
        expected[offset : offset + length] = data
        part = bytearray(length)
        disk.read_into(offset, part)
        assert part == data, (offset, length)
    assert content(disk) == expected


def test_reads_zeros_where_zeroed_at_every_border(case: Case, disk: WritableDisk) -> None:
    for seed, (offset, length) in enumerate(_borders(case.sector)):
        data = random_bytes(SIZE, seed)
        disk.write(0, data)
        disk.zero(offset, length)
        expected = bytearray(data)
        expected[offset : offset + length] = bytes(length)
        assert content(disk) == expected, (offset, length)


@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_bytes_after_any_operations(case: Case, disk: WritableDisk, seed: int) -> None:
    expected = bytearray(content(disk))
    around = (MiB, 2 * MiB, 3 * MiB, 5 * MiB)
    for number, operation in enumerate(
        random_operations(
            seed, SIZE, 80, sector=case.sector, length_max=3 * MiB // 2, around=around
        )
    ):
        operation.apply(disk, expected)
        if number % 10 == 0:
            assert content(disk) == expected, f"seed {seed}, operation {number}"
    assert content(disk) == expected
    check_extents(disk)


@pytest.mark.parametrize("seed", range(3))
def test_what_was_flushed_or_closed_is_there_when_opened_again(
    case: Case, tmp_path: Path, seed: int
) -> None:
    if case.reopen is None:
        return  # a disk in memory, or one made to be thrown away
    disk = case.make(tmp_path, SIZE)
    expected = bytearray(content(disk))
    for operation in random_operations(seed, SIZE, 60, sector=case.sector, length_max=2 * MiB):
        operation.apply(disk, expected)
    disk.close()
    again = case.reopen(disk.path)
    assert again.virtual_size == SIZE
    assert content(again) == expected
    check_extents(again)
    again.close()


def test_extents_of_a_part_are_the_part_of_the_extents(case: Case, disk: WritableDisk) -> None:
    fill(disk, 3)
    kinds = bytearray(SIZE // case.sector)
    for extent in disk.extents():
        first, stop = extent.offset // case.sector, extent.stop // case.sector
        kinds[first:stop] = bytes([extent.kind]) * (stop - first)
    for offset, length in _borders(case.sector):
        position = offset
        for extent in disk.extents(offset, offset + length):
            assert extent.offset == position
            first, stop = extent.offset // case.sector, extent.stop // case.sector
            # An implementation may know a part of a range better than the whole: never the
            # other way round, data called a hole.
            if extent.kind != Kind.DATA:
                assert Kind.DATA not in kinds[first:stop]
            position = extent.stop
        assert position == offset + length


def test_extents_of_nothing_are_none(disk: WritableDisk) -> None:
    assert list(disk.extents(0, 0)) == []
    assert list(disk.extents(SIZE, SIZE)) == []
    assert list(disk.extents(SIZE)) == []


def test_nothing_read_or_written_is_no_error(disk: WritableDisk) -> None:
    before = content(disk)
    for offset in (0, MiB, SIZE):
        disk.read_into(offset, bytearray())
        disk.write(offset, b"")
        disk.zero(offset, 0)
    assert content(disk) == before


def test_refuses_what_is_outside_the_disk_or_no_whole_sectors(
    case: Case, disk: WritableDisk
) -> None:
    sector = case.sector
    before = content(disk)
    wrong = [
        (SIZE, sector),
        (SIZE - sector, 2 * sector),
        (-sector, sector),
        (sector // 2, sector),
        (0, sector + 1),
        (1 << 62, sector),
    ]
    for offset, length in wrong:
        with pytest.raises(DiskRange):
            disk.read_into(offset, bytearray(length))
        with pytest.raises(DiskRange):
            disk.write(offset, bytes(length))
        with pytest.raises(DiskRange):
            disk.zero(offset, length)
    with pytest.raises(DiskRange):
        disk.zero(0, -sector)
    assert content(disk) == before


def test_takes_and_fills_any_buffer(case: Case, disk: WritableDisk) -> None:
    data = random_bytes(64 * KiB, 5)
    disk.write(0, np.frombuffer(data, np.uint64).reshape(64, -1))
    disk.write(64 * KiB, memoryview(data))
    disk.write(128 * KiB, bytearray(data))
    for offset in (0, 64 * KiB, 128 * KiB):
        array = np.zeros((16, 512), np.uint64)
        disk.read_into(offset, array)
        assert array.tobytes() == data
        view = memoryview(bytearray(128 * KiB))
        disk.read_into(offset, view[64 * KiB :])
        assert view[64 * KiB :] == data
        assert not any(view[: 64 * KiB])


def test_a_failed_write_changes_no_caller_buffer_and_a_flush_repeats(
    disk: WritableDisk,
) -> None:
    data = bytearray(random_bytes(MiB, 6))
    disk.write(0, data)
    disk.flush()
    disk.flush()
    assert data == random_bytes(MiB, 6)
    assert content(disk)[:MiB] == data


def test_several_threads_read_at_once(case: Case, disk: WritableDisk) -> None:
    fill(disk, 21, count=60)
    expected = content(disk)
    problems: list[str] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(60):
            sectors = int(rng.integers(1, 300))
            at = int(rng.integers(0, SIZE // case.sector - sectors)) * case.sector
            part = bytearray(sectors * case.sector)
            disk.read_into(at, part)
            if part != expected[at : at + len(part)]:
                problems.append(f"seed {seed}: {at}+{len(part)}")

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_closes_twice(case: Case, tmp_path: Path) -> None:
    disk = case.make(tmp_path, SIZE)
    fill(disk, 2, count=5)
    disk.close()
    disk.close()


def test_reaches_beyond_four_gibibytes(case: Case, tmp_path: Path) -> None:
    if "fixed" in case.name:
        return  # its space is taken at creation
    size = 4 * GiB + MiB
    disk = case.make(tmp_path, size)
    data = random_bytes(8192, 9)
    part = bytearray(8192)
    for offset in (4 * GiB - 4096, size - 8192, 2 * GiB - 4096):
        disk.write(offset, data)
        disk.read_into(offset, part)
        assert part == data
    disk.zero(4 * GiB - 4096, 8192)
    disk.read_into(4 * GiB - 4096, part)
    assert not any(part)
    assert sum(extent.length for extent in disk.extents()) == size
    disk.close()


def test_a_disk_opened_for_reading_refuses_changes(case: Case, tmp_path: Path) -> None:
    if case.reopen is None:
        return
    case.make(tmp_path, SIZE).close()
    disk = case.reopen(tmp_path / ("disk.raw" if "raw" in case.name else "disk.vhdx"))
    before = content(disk)
    with pytest.raises(StandbyError):
        disk.write(0, bytes(4096))  # type: ignore[attr-defined]
    with pytest.raises(StandbyError):
        disk.zero(0, 4096)  # type: ignore[attr-defined]
    assert content(disk) == before
    disk.close()
