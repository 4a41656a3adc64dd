"""VHDX disks as their guests see them: chains, sizes, growing, reading in parallel, the check."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from standby.disk import RawDisk, open_disk, vhdx
from standby.disk.check import check_disk
from standby.disk.vhdx import VhdxDisk, structures
from standby.errors import DiskUnsupported, ParentRefused
from standby.model.extent import Extent, Kind
from standby.testing.disks import MemoryDisk, check_extents, content, fill, random_bytes
from standby.testing.vhdx_damage import Patched, base_a
from standby.testing.vhdx_files import MemoryFile
from standby.units import GiB, KiB, MiB, TiB

SECTOR = 512


# --- random chains against plain bytes ---------------------------------------------------------


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "whole"])
@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("seed", range(4))
def test_a_chain_reads_as_what_was_written(
    seed: int, sector: int, sparse: bool, tmp_path: Path
) -> None:
    choice = random.Random(seed)
    size = 5 * MiB + 3 * sector
    held = bytearray(size)
    paths = [tmp_path / "0.vhdx"]
    disk = vhdx.create(paths[0], size, block_size=MiB, logical_sector_size=sector, sparse=sparse)
    for step in range(120):
        first = choice.randrange(size // sector)
        length = min(choice.choice([1, 3, 8, 100, 2048, 5000]), size // sector - first) * sector
        offset = first * sector
        action = choice.random()
        if action < 0.5:
            held[offset : offset + length] = random_bytes(length, step)
            disk.write(offset, held[offset : offset + length])
        elif action < 0.7:
            held[offset : offset + length] = bytes(length)
            disk.zero(offset, length)
        elif action < 0.8:
            disk.flush()
        elif action < 0.85:
            disk.close()
            again = open_disk(paths[-1], writable=True)
            assert isinstance(again, VhdxDisk)
            disk = again
        elif action < 0.9:
            disk.close()
            paths.append(tmp_path / f"{len(paths)}.vhdx")
            block_size = choice.choice([1, 2, 4]) * MiB
            disk = vhdx.create_child(paths[-1], paths[-2], block_size=block_size, sparse=sparse)
        else:
            buffer = bytearray(length)
            disk.read_into(offset, buffer)
            assert buffer == held[offset : offset + length]
    assert content(disk) == held
    check_extents(disk)
    disk.close()
    with open_disk(paths[-1]) as reader:
        assert content(reader) == held
        check_extents(reader)
    report = check_disk(paths[-1])
    assert report.findings == ()
    assert report.layers == len(paths)


def _child(folder: Path, size: int, **options: int) -> Path:
    """A child, of one written block, of a full parent of `size`."""
    with vhdx.create(folder / "parent.vhdx", size, block_size=2 * MiB) as parent:
        parent.write(0, random_bytes(size, 1))
    with vhdx.create_child(folder / "child.vhdx", folder / "parent.vhdx", **options) as disk:
        disk.write(MiB, random_bytes(MiB, 2))
    return folder / "child.vhdx"


def test_a_child_larger_than_its_parent_is_zero_beyond(tmp_path: Path) -> None:
    path = _child(tmp_path, 3 * MiB + SECTOR, virtual_size=6 * MiB)
    right = random_bytes(3 * MiB + SECTOR, 1)
    right = right[:MiB] + random_bytes(MiB, 2) + right[2 * MiB :]
    with open_disk(path) as disk:
        assert content(disk) == right.ljust(6 * MiB, b"\0")
        check_extents(disk)


def test_a_child_smaller_than_its_parent_shows_its_part(tmp_path: Path) -> None:
    path = _child(tmp_path, 8 * MiB, virtual_size=3 * MiB + SECTOR)
    right = random_bytes(8 * MiB, 1)
    right = (right[:MiB] + random_bytes(MiB, 2) + right[2 * MiB :])[: 3 * MiB + SECTOR]
    with open_disk(path) as disk:
        assert content(disk) == right


def test_a_grandparent_does_not_show_beyond_a_shorter_parent(tmp_path: Path) -> None:
    base, middle, top = (tmp_path / name for name in ("base.vhdx", "middle.vhdx", "top.vhdx"))
    with vhdx.create(base, 8 * MiB) as disk:
        disk.write(0, random_bytes(8 * MiB, 1))
    vhdx.create_child(middle, base, virtual_size=2 * MiB).close()
    vhdx.create_child(top, middle, virtual_size=8 * MiB).close()
    with open_disk(top) as disk:
        assert content(disk) == random_bytes(8 * MiB, 1)[: 2 * MiB].ljust(8 * MiB, b"\0")
        assert list(disk.extents())[-1].kind != Kind.DATA


def test_a_long_chain_is_read_and_closed_without_recursion(tmp_path: Path) -> None:
    vhdx.create(tmp_path / "0.vhdx", 2 * MiB).close()
    for number in range(1, 30):
        path = tmp_path / f"{number}.vhdx"
        below = [tmp_path / f"{n}.vhdx" for n in range(number - 2, -1, -1)]
        with vhdx.create_child(path, tmp_path / f"{number - 1}.vhdx", parents=below) as disk:
            disk.write(number * 8 * SECTOR, random_bytes(SECTOR, number))
    with open_disk(tmp_path / "29.vhdx") as disk:
        found = content(disk)
        for number in range(1, 30):
            place = number * 8 * SECTOR
            assert found[place : place + SECTOR] == random_bytes(SECTOR, number)


def test_any_disk_can_be_the_parent(tmp_path: Path) -> None:
    path = _child(tmp_path, 3 * MiB)
    other = MemoryDisk(3 * MiB)
    fill(other, 5)
    with vhdx.open_vhdx(path, parent=other) as disk:
        expected = content(other)[:MiB] + random_bytes(MiB, 2) + content(other)[2 * MiB :]
        assert content(disk) == expected
        check_extents(disk)
    content(other)  # it is the caller's to close


def test_given_parents_are_used_and_must_fit(tmp_path: Path) -> None:
    path = _child(tmp_path, 3 * MiB)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "parent.vhdx").rename(elsewhere / "p")
    with open_disk(path, parents=[elsewhere / "p"]) as disk:
        assert content(disk)[:MiB] == random_bytes(3 * MiB, 1)[:MiB]
    vhdx.create(tmp_path / "wrong.vhdx", 3 * MiB).close()
    with pytest.raises(ParentRefused, match="another disk"):
        open_disk(path, parents=[tmp_path / "wrong.vhdx"])
    with pytest.raises(ParentRefused, match="was not given"):
        open_disk(path, parents=[])
    with pytest.raises(ParentRefused, match="has no parent"):
        open_disk(elsewhere / "p", format="vhdx", parents=[path])


def test_the_relative_path_is_stored_as_windows_writes_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    vhdx.create(tmp_path / "a" / "base.vhdx", MiB).close()
    options = {"parent_path_on_host": "C:\\replicas\\base.vhdx"}
    vhdx.create_child(tmp_path / "a" / "x.vhdx", tmp_path / "a" / "base.vhdx", **options).close()
    vhdx.create_child(tmp_path / "b" / "y.vhdx", tmp_path / "a" / "base.vhdx").close()
    near = vhdx.read_info(tmp_path / "a" / "x.vhdx").locator
    far = vhdx.read_info(tmp_path / "b" / "y.vhdx").locator
    assert near["relative_path"] == ".\\base.vhdx"
    assert near["absolute_win32_path"] == "C:\\replicas\\base.vhdx"
    assert far["relative_path"] == "..\\a\\base.vhdx"
    assert set(far) == {"parent_linkage", "relative_path"}
    with open_disk(tmp_path / "b" / "y.vhdx", folders=[tmp_path / "a"]) as disk:
        assert content(disk) == bytes(MiB)


def test_a_child_is_the_same_disk_to_its_guest(tmp_path: Path) -> None:
    page83 = "01234567-89ab-cdef-0123-456789abcdef"
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    vhdx.create(base, 64 * MiB, logical_sector_size=4096, page83=page83).close()
    vhdx.create_child(child, base).close()
    info, below = vhdx.read_info(child), vhdx.read_info(base)
    assert info.page83 == below.page83 == page83
    assert (info.virtual_size, info.logical_sector_size) == (64 * MiB, 4096)
    assert info.locator["parent_linkage"] == "{" + below.data_write_guid + "}"


def test_a_second_identity_is_accepted_while_a_parent_changes(tmp_path: Path) -> None:
    path = _child(tmp_path, 3 * MiB)
    right = _content_of(path)
    old = vhdx.read_info(tmp_path / "parent.vhdx").data_write_guid
    new = "0f0e0d0c-0b0a-0908-0706-050403020100"
    with vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True) as disk:
        disk.set_parent_locator(new, ".\\parent.vhdx", "/x/parent.vhdx", old)
    assert _content_of(path) == right
    with vhdx.open_vhdx(tmp_path / "parent.vhdx", writable=True) as disk:
        disk.set_data_write_guid(new)
    assert _content_of(path) == right
    with vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True) as disk:
        disk.set_parent_locator(new, ".\\parent.vhdx", "/x/parent.vhdx")
    assert _content_of(path) == right
    assert "parent_linkage2" not in vhdx.read_info(path).locator


def _content_of(path: Path) -> bytes:
    with open_disk(path) as disk:
        return content(disk)


# --- growing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("new_size", [5 * MiB, 3 * MiB + 2 * SECTOR, 200 * MiB])
def test_a_disk_grows_by_zeros(new_size: int, fixed: bool, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    size = 3 * MiB + SECTOR
    with vhdx.create(path, size, block_size=MiB, fixed=fixed) as disk:
        disk.write(0, random_bytes(size, 1))
        before = disk.data_write_guid
    patched = Patched(path.read_bytes())  # what a careless writer leaves behind the disk's end
    last = patched.get(3 * MiB + 8 * 3, 8) & ~0xFFFFF
    patched.put(last + SECTOR, b"\xee" * SECTOR)
    patched.put(3 * MiB + 8 * 4, 0x1234500006, 8)
    path.write_bytes(patched.data)
    with open_disk(path, writable=True) as disk:
        assert isinstance(disk, VhdxDisk)
        disk.grow(new_size)
        assert disk.data_write_guid != before
        disk.write(new_size - SECTOR, random_bytes(SECTOR, 2))
    expected = random_bytes(size, 1).ljust(new_size - SECTOR, b"\0") + random_bytes(SECTOR, 2)
    assert _content_of(path) == expected
    assert check_disk(path).is_ok
    assert vhdx.read_info(path).virtual_size == new_size


def test_a_child_that_grows_does_not_show_what_its_parent_has_there(tmp_path: Path) -> None:
    path = _child(tmp_path, 8 * MiB, virtual_size=2 * MiB + SECTOR, block_size=MiB)
    with open_disk(path, writable=True) as disk:
        assert isinstance(disk, VhdxDisk)
        disk.write(2 * MiB, random_bytes(SECTOR, 3))
        expected = content(disk)
        disk.grow(10 * MiB)
        assert content(disk) == expected.ljust(10 * MiB, b"\0")
    assert _content_of(path) == expected.ljust(10 * MiB, b"\0")


def test_a_table_that_is_too_small_moves(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    with vhdx.create(path, 3 * GiB, block_size=MiB) as disk:
        disk.write(2 * GiB, random_bytes(MiB, 1))
    with open_disk(path, writable=True) as disk:
        assert isinstance(disk, VhdxDisk)
        disk.grow(300 * GiB)
        disk.write(299 * GiB, random_bytes(MiB, 2))
    with open_disk(path) as disk:
        data = [extent for extent in disk.extents() if extent.kind == Kind.DATA]
        assert data == [Extent(2 * GiB, MiB), Extent(299 * GiB, MiB)]
        buffer = bytearray(MiB)
        disk.read_into(2 * GiB, buffer)
        assert buffer == random_bytes(MiB, 1)
    assert check_disk(path).is_ok


@pytest.mark.parametrize("new_size", [0, MiB, 4 * MiB + 1, 65 * TiB])
def test_shrinking_and_odd_sizes_are_refused(new_size: int, tmp_path: Path) -> None:
    with vhdx.create(tmp_path / "disk.vhdx", 4 * MiB) as disk:
        with pytest.raises(DiskUnsupported, match="resizing"):
            disk.grow(new_size)
        disk.grow(4 * MiB)
        assert disk.virtual_size == 4 * MiB


# --- other ways in -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, MiB),
        (2 * TiB, MiB),
        (2 * TiB + 512, 2 * MiB),
        (4 * TiB, 2 * MiB),
        (64 * TiB, 32 * MiB),
    ],
)
def test_the_default_block_size_makes_at_most_two_million_blocks(size: int, expected: int) -> None:
    assert vhdx.default_block_size(size) == expected


def test_a_disk_beyond_4_gib_reads_at_every_chunk(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    places = [0, 4 * GiB - MiB, 4 * GiB, 8 * GiB - SECTOR, 8 * GiB, 12 * GiB + 3 * SECTOR]
    with vhdx.create(path, 13 * GiB, block_size=MiB) as disk:
        for place in places:
            disk.write(place, random_bytes(SECTOR, place // SECTOR))
    child = tmp_path / "child.vhdx"
    with vhdx.create_child(child, path, block_size=MiB) as disk:
        for place in places:
            disk.write(place + SECTOR if place != places[3] else 0, random_bytes(SECTOR, 9))
    with open_disk(child) as disk:
        buffer = bytearray(SECTOR)
        for place in places[1:]:
            disk.read_into(place, buffer)
            assert buffer == random_bytes(SECTOR, place // SECTOR)


def test_changes_not_yet_in_the_file_are_not_passed_over(tmp_path: Path) -> None:
    with vhdx.create(tmp_path / "disk.vhdx", 16 * TiB, block_size=MiB) as disk:
        for block in (3, 5_000_000, 16_000_000):
            disk.write(block * MiB, random_bytes(SECTOR, block))
            assert Extent(block * MiB, MiB) in list(disk.extents())
        disk.flush()
        data = [extent.offset // MiB for extent in disk.extents() if extent.kind == Kind.DATA]
        assert data == [3, 5_000_000, 16_000_000]
        assert disk.mapped()[:, 0].tolist() == [block * MiB for block in data]


def test_many_threads_read_what_one_would(tmp_path: Path) -> None:
    path = _child(tmp_path, 16 * MiB)
    with open_disk(path) as disk:
        right = content(disk)
        wrong: list[int] = []

        def read(seed: int) -> None:
            choice = random.Random(seed)
            for _ in range(60):
                offset = choice.randrange(16 * MiB // SECTOR - 4096) * SECTOR
                buffer = bytearray(choice.choice([1, 8, 4096]) * SECTOR)
                disk.read_into(offset, buffer)
                if buffer != right[offset : offset + len(buffer)]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_the_format_is_told_by_signature_and_can_be_forced(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(base_a())
    with open_disk(path) as disk:
        assert isinstance(disk, VhdxDisk)
    with open_disk(path, format="raw") as disk:
        assert isinstance(disk, RawDisk)
    with pytest.raises(DiskUnsupported, match="qcow2"):
        open_disk(path, format="qcow2")


def test_an_open_file_object_serves_as_well() -> None:
    file = MemoryFile()
    with vhdx.create(file, 4 * MiB) as disk:
        disk.write(MiB, random_bytes(MiB, 1))
    with vhdx.open_vhdx(file.copy(writable=False)) as disk:
        assert list(disk.extents()) == [
            Extent(0, MiB, Kind.HOLE),
            Extent(MiB, MiB, Kind.DATA),
            Extent(2 * MiB, 2 * MiB, Kind.HOLE),
        ]


# --- the check ---------------------------------------------------------------------------------


def test_the_check_counts_and_notes(tmp_path: Path) -> None:
    path = _child(tmp_path, 4 * MiB, block_size=MiB)
    with vhdx.open_vhdx(path, writable=True) as disk:
        disk.write(3 * MiB, random_bytes(SECTOR, 1))
    report = check_disk(path)
    assert report.is_ok
    assert (report.blocks, report.blocks_present, report.blocks_partial) == (4, 2, 1)
    assert (report.layers, report.log_is_dirty) == (2, False)
    patched = Patched(path.read_bytes())
    patched.flip(structures.REGION_TABLE_OFFSETS[0] + 100)
    patched.data += bytes(MiB)
    path.write_bytes(patched.data)
    report = check_disk(path)
    assert report.is_ok
    assert len(report.notes) == 2


def test_the_check_finds_overlaps_in_a_table_too_large_for_the_open(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    with vhdx.create(path, 1 * TiB, block_size=MiB) as disk:
        disk.write(0, random_bytes(SECTOR, 1))
        disk.write(900 * GiB, random_bytes(SECTOR, 2))
    with path.open("r+b") as file:
        file.seek(3 * MiB)
        entry = file.read(8)
        slot = 900 * 1024 + 900 * 1024 // 4096
        file.seek(3 * MiB + 8 * slot)
        file.write(entry)
    open_disk(path).close()
    report = check_disk(path)
    assert len(report.findings) == 1
    assert "share space" in report.findings[0]


def test_the_check_finds_damage_in_a_parent(tmp_path: Path) -> None:
    path = _child(tmp_path, 4 * MiB)
    parent = tmp_path / "parent.vhdx"
    patched = Patched(parent.read_bytes())
    patched.put(3 * MiB, patched.get(3 * MiB + 8, 8), 8)
    parent.write_bytes(patched.data)
    report = check_disk(path)
    assert any(str(parent) in finding for finding in report.findings)


def test_a_note_names_blocks_that_a_fixed_disk_lacks(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhdx.create(path, 4 * MiB, fixed=True).close()
    patched = Patched(path.read_bytes())
    patched.put(3 * MiB, 2, 8)
    path.write_bytes(patched.data)
    report = check_disk(path)
    assert report.is_ok
    assert any("fixed" in note for note in report.notes)
    with open_disk(path, writable=True) as disk:
        disk.write(4 * KiB, random_bytes(SECTOR, 1))
    assert _content_of(path)[4 * KiB : 4 * KiB + SECTOR] == random_bytes(SECTOR, 1)
