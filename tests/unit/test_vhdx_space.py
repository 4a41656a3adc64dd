"""Space that a killed writer took and never committed is used again, or cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crashing import crashing
from standby import killpoints
from standby.disk import open_disk, vhdx
from standby.disk.chain import open_chain
from standby.disk.check import check_disk
from standby.disk.vhdx import VhdxDisk, structures
from standby.files import File
from standby.testing.disks import content, random_bytes
from standby.units import MiB

SECTOR = 512
SIZE = 16 * MiB
FIRST = random_bytes(2 * MiB, 1)
PIECE = random_bytes(SECTOR, 3)


def _new(folder: Path, *, sparse: bool, child: bool) -> VhdxDisk:
    path = folder / "disk.vhdx"
    if not child:
        return vhdx.create(path, SIZE, block_size=MiB, sparse=sparse)
    with vhdx.create(folder / "parent.vhdx", SIZE, block_size=MiB) as parent:
        parent.write(0, random_bytes(SIZE, 9))
    return vhdx.create_child(path, folder / "parent.vhdx", block_size=MiB, sparse=sparse)


def _opened(folder: Path, *, sparse: bool, child: bool) -> VhdxDisk:
    parents = [folder / "parent.vhdx"] if child else []
    return open_chain(folder / "disk.vhdx", writable=True, parents=parents, sparse=sparse)


def _killed_before_the_commit(
    folder: Path, patch: pytest.MonkeyPatch, *, sparse: bool, child: bool
) -> int:
    """A disk with two committed blocks; the writer died with six more in the file, whole and in
    part. The file's size at the commit."""
    with _new(folder, sparse=sparse, child=child) as disk:
        disk.write(0, FIRST)
        disk.flush()
        size = disk.file.size
    with crashing(patch, kill_point=("payload written", 1)) as crasher:
        disk = _opened(folder, sparse=sparse, child=child)
        disk.write(2 * MiB, random_bytes(5 * MiB, 2))
        disk.write(9 * MiB + SECTOR, PIECE)
        killpoints.reach("payload written")
    assert crasher.is_dead
    assert (folder / "disk.vhdx").stat().st_size >= size + 6 * MiB
    return size


def _before(*, child: bool) -> bytearray:
    expected = bytearray(random_bytes(SIZE, 9) if child else bytes(SIZE))
    expected[: len(FIRST)] = FIRST
    return expected


def _write_sectors(disk: VhdxDisk, expected: bytearray, *, count: int) -> None:
    """One sector into each of `count` blocks that have no space."""
    for block in range(2, 2 + count):
        offset = block * MiB + 7 * SECTOR
        disk.write(offset, PIECE)
        expected[offset : offset + SECTOR] = PIECE


def _check_all(folder: Path, expected: bytearray) -> None:
    report = check_disk(folder / "disk.vhdx")
    assert (report.findings, report.notes) == ((), ())
    with open_disk(folder / "disk.vhdx") as disk:
        assert content(disk) == expected


both = pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "filled"])
kinds = pytest.mark.parametrize("child", [False, True], ids=["base", "child"])


@both
@kinds
def test_the_end_that_nothing_owns_is_cut_off(
    sparse: bool, child: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = _killed_before_the_commit(tmp_path, monkeypatch, sparse=sparse, child=child)
    with _opened(tmp_path, sparse=sparse, child=child) as disk:
        disk.take_back_unowned()
        assert disk.file.size == size
    expected = _before(child=child)
    _check_all(tmp_path, expected)
    with _opened(tmp_path, sparse=sparse, child=child) as disk:
        disk.take_back_unowned()
        _write_sectors(disk, expected, count=6)
    _check_all(tmp_path, expected)


@both
@kinds
def test_a_gap_between_blocks_is_used_again_and_shows_no_old_bytes(
    sparse: bool, child: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that knew nothing of it has put a block behind the gap."""
    _killed_before_the_commit(tmp_path, monkeypatch, sparse=sparse, child=child)
    expected = _before(child=child)
    with _opened(tmp_path, sparse=sparse, child=child) as disk:
        disk.write(12 * MiB, FIRST)
        expected[12 * MiB : 14 * MiB] = FIRST
    report = check_disk(tmp_path / "disk.vhdx")
    gap = 7 * MiB if child else 6 * MiB  # a child's bitmap, too
    assert [f"{gap} bytes" in note for note in report.notes] == [True]
    size = (tmp_path / "disk.vhdx").stat().st_size
    with _opened(tmp_path, sparse=sparse, child=child) as disk:
        disk.take_back_unowned()
        _write_sectors(disk, expected, count=gap // MiB)
        bitmap = MiB if child else 0
        assert disk.file.size == size + bitmap
    _check_all(tmp_path, expected)


@both
def test_a_kill_at_any_change_of_the_session_that_takes_back(
    sparse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_before_the_commit(tmp_path, monkeypatch, sparse=sparse, child=False)
    stored = (tmp_path / "disk.vhdx").read_bytes()
    before, after = _before(child=False), _before(child=False)
    at = 0
    while True:
        at += 1
        (tmp_path / "disk.vhdx").write_bytes(stored)
        after[:] = before
        with crashing(monkeypatch, at, power_seed=at) as crasher:
            with _opened(tmp_path, sparse=sparse, child=False) as disk:
                disk.take_back_unowned()
                _write_sectors(disk, after, count=2)
        with _opened(tmp_path, sparse=sparse, child=False) as disk:
            disk.take_back_unowned()
            found = bytearray(content(disk))
        assert found in ((before, after) if crasher.is_dead else (after,)), f"change {at}"
        _check_all(tmp_path, found)
        if not crasher.is_dead:
            break
    assert at > 10


def test_a_file_with_a_region_that_we_do_not_know_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_before_the_commit(tmp_path, monkeypatch, sparse=True, child=False)
    with _opened(tmp_path, sparse=True, child=False) as disk:
        regions = disk.image.regions
        size = disk.file.size
    foreign = replace(
        regions.bat, kind=bytes(range(16)), offset=size, length=MiB, is_required=False
    )
    with File(tmp_path / "disk.vhdx", writable=True) as file:
        file.resize(size + 2 * MiB)
        for place in structures.REGION_TABLE_OFFSETS:
            file.write(structures.pack_region_table((*regions.all, foreign)), place)
    with _opened(tmp_path, sparse=True, child=False) as disk:
        disk.take_back_unowned()
        disk.write(3 * MiB, PIECE)
        assert disk.file.size == size + 3 * MiB


def test_a_place_that_a_block_without_content_still_names_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other writers leave it in the table when a guest trims a block, to have it again."""
    size = _killed_before_the_commit(tmp_path, monkeypatch, sparse=True, child=False)
    unmapped = 3
    with _opened(tmp_path, sparse=True, child=False) as disk:
        slot = disk.image.regions.bat.offset + 8 * 5
    with File(tmp_path / "disk.vhdx", writable=True) as file:
        file.write((size | unmapped).to_bytes(8, "little"), slot)
        file.write((1 << 50 | unmapped).to_bytes(8, "little"), slot + 8)  # beyond the file
    with _opened(tmp_path, sparse=True, child=False) as disk:
        disk.take_back_unowned()
        assert disk.file.size == size + MiB
        disk.write(9 * MiB, PIECE)
        assert disk.file.size == size + 2 * MiB
