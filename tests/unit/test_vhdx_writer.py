"""What the VHDX writer puts where: states, bitmaps, identities, the log, space."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from standby.disk import open_disk, vhdx
from standby.disk.check import check_disk
from standby.disk.vhdx import VhdxDisk, structures
from standby.disk.vhdx.geometry import (
    FULLY_PRESENT,
    NOT_PRESENT,
    PARTIALLY_PRESENT,
    STATE_MASK,
    ZERO,
)
from standby.disk.vhdx.layer import Layer
from standby.disk.vhdx.planning import set_bits
from standby.errors import DiskIO, DiskRange, DiskUnsupported, ParentRefused
from standby.files import File
from standby.model.extent import Extent, Kind
from standby.testing.disks import content, random_bytes
from standby.testing.vhdx_files import MemoryFile
from standby.units import GiB, KiB, MiB, TiB

SECTOR = 512


def _states(disk: VhdxDisk) -> list[int]:
    layer = disk.layers[0]
    assert isinstance(layer, Layer)
    count = layer.geometry.block_count
    return (layer.table.entries(0, count) & np.uint64(STATE_MASK)).astype(int).tolist()


def _pair(folder: Path, blocks: int = 4, **options: Any) -> VhdxDisk:
    """An empty child over a parent full of content."""
    with vhdx.create(folder / "parent.vhdx", blocks * MiB, block_size=MiB) as parent:
        parent.write(0, random_bytes(blocks * MiB, 7))
    return vhdx.create_child(folder / "child.vhdx", folder / "parent.vhdx", **options)


# --- states ------------------------------------------------------------------------------------


def test_a_child_gets_full_partial_and_zero_blocks(tmp_path: Path) -> None:
    with _pair(tmp_path) as disk:
        disk.write(0, random_bytes(MiB, 1))
        disk.write(MiB + SECTOR, random_bytes(SECTOR, 2))
        disk.zero(2 * MiB, MiB)
        assert _states(disk) == [FULLY_PRESENT, PARTIALLY_PRESENT, ZERO, NOT_PRESENT]
        assert list(disk.layer_extents()) == [
            Extent(0, MiB, Kind.DATA),
            Extent(MiB, SECTOR, Kind.HOLE),
            Extent(MiB + SECTOR, SECTOR, Kind.DATA),
            Extent(MiB + 2 * SECTOR, MiB - 2 * SECTOR, Kind.HOLE),
            Extent(2 * MiB, MiB, Kind.ZERO),
            Extent(3 * MiB, MiB, Kind.HOLE),
        ]


def test_the_last_missing_sectors_make_a_block_full(tmp_path: Path) -> None:
    with _pair(tmp_path) as disk:
        disk.write(0, random_bytes(MiB - 3 * SECTOR, 1))
        assert _states(disk)[0] == PARTIALLY_PRESENT
        disk.write(MiB - 3 * SECTOR, random_bytes(3 * SECTOR, 2))
        assert _states(disk)[0] == FULLY_PRESENT


def test_a_part_written_into_a_zero_block_keeps_the_rest_zero(tmp_path: Path) -> None:
    with _pair(tmp_path) as disk:
        disk.zero(0, MiB)
        disk.write(5 * SECTOR, random_bytes(SECTOR, 1))
        assert _states(disk)[0] == FULLY_PRESENT
        expected = bytes(5 * SECTOR) + random_bytes(SECTOR, 1) + bytes(MiB - 6 * SECTOR)
        assert content(disk)[:MiB] == expected


def test_bits_of_an_earlier_life_are_cleared(tmp_path: Path) -> None:
    with _pair(tmp_path) as disk:
        below = content(disk)
        disk.write(0, random_bytes(8 * SECTOR, 1))
        disk.flush()
        disk.forget(0, MiB)
        assert _states(disk)[0] == NOT_PRESENT
        assert content(disk) == below
        disk.write(100 * SECTOR, random_bytes(SECTOR, 2))
    with open_disk(tmp_path / "child.vhdx") as disk:
        found = content(disk)
    assert found[: 100 * SECTOR] == below[: 100 * SECTOR]
    assert found[100 * SECTOR : 101 * SECTOR] == random_bytes(SECTOR, 2)
    assert found[101 * SECTOR :] == below[101 * SECTOR :]


def test_only_whole_blocks_of_a_child_are_forgotten(tmp_path: Path) -> None:
    with _pair(tmp_path) as disk:
        disk.write(MiB, random_bytes(MiB, 1))
        with pytest.raises(DiskUnsupported):
            disk.forget(MiB, SECTOR)
    with vhdx.open_vhdx(tmp_path / "parent.vhdx", writable=True) as disk:
        with pytest.raises(DiskUnsupported):
            disk.forget(0, MiB)


def test_writing_a_part_reads_nothing_from_the_parent(tmp_path: Path) -> None:
    with _pair(tmp_path) as disk:
        parent = disk.parent
        assert isinstance(parent, VhdxDisk)
        parent.file.close()  # any read of it fails from here on
        disk.write(3 * SECTOR, random_bytes(SECTOR, 1))
        disk.zero(MiB + SECTOR, SECTOR)
        disk.flush()


def test_zeroing_in_a_child_never_shows_the_parent(tmp_path: Path) -> None:
    for start, length in ((0, MiB), (SECTOR, SECTOR), (MiB - SECTOR, 2 * MiB), (0, 4 * MiB)):
        folder = tmp_path / f"{start}-{length}"
        folder.mkdir()
        with _pair(folder) as disk:
            expected = bytearray(content(disk))
            disk.zero(start, length)
            expected[start : start + length] = bytes(length)
        with open_disk(folder / "child.vhdx") as disk:
            assert content(disk) == expected


def test_a_fixed_disk_keeps_its_blocks(tmp_path: Path) -> None:
    with vhdx.create(tmp_path / "fixed.vhdx", 3 * MiB + 4 * KiB, fixed=True) as disk:
        assert _states(disk) == [FULLY_PRESENT] * 4
        size = disk.file.size
        disk.write(MiB, random_bytes(MiB, 1))
        disk.zero(0, 2 * MiB)
        assert _states(disk) == [FULLY_PRESENT] * 4
        assert disk.file.size == size
        assert content(disk) == bytes(3 * MiB + 4 * KiB)
        assert disk.info.is_fixed


# --- space -------------------------------------------------------------------------------------


def test_blocks_follow_each_other_in_the_order_they_are_written(tmp_path: Path) -> None:
    with vhdx.create(tmp_path / "disk.vhdx", 8 * MiB) as disk:
        for block in (5, 0, 3):
            disk.write(block * MiB, random_bytes(MiB, block))
        places = {int(row[0]): int(row[2]) for row in disk.mapped()}
        assert places[5 * MiB] < places[0] < places[3 * MiB]
        disk.write(6 * MiB, random_bytes(2 * MiB, 9))
        assert [int(row[1]) for row in disk.mapped() if row[0] >= 5 * MiB] == [MiB, 2 * MiB]


def test_a_whole_new_block_is_not_zeroed_first() -> None:
    file = MemoryFile()
    with vhdx.create(file, 8 * MiB) as disk:
        disk.flush()
        issued = len(file.changes)
        disk.write(0, random_bytes(4 * MiB, 1))
        written = sum(len(c.data) for c in file.changes[issued:] if c.kind == "write")
        assert written < 4 * MiB + 64 * KiB
        assert sum(1 for c in file.changes[issued:] if len(c.data) >= MiB) == 1


def test_released_space_is_used_again_only_after_the_release_is_durable(tmp_path: Path) -> None:
    with vhdx.create(tmp_path / "disk.vhdx", 8 * MiB) as disk:
        disk.write(0, random_bytes(2 * MiB, 1))
        disk.flush()
        size = disk.file.size
        disk.zero(0, 2 * MiB)
        disk.write(4 * MiB, random_bytes(MiB, 2))
        assert disk.file.size == size + MiB
        disk.flush()
        disk.write(5 * MiB, random_bytes(SECTOR, 3))
        assert disk.file.size == size + MiB
        assert content(disk)[5 * MiB :] == random_bytes(SECTOR, 3) + bytes(3 * MiB - SECTOR)


def test_nothing_is_sparse_when_it_must_not_be(disk_path: Path) -> None:
    base, child = disk_path / "base.vhdx", disk_path / "child.vhdx"
    with vhdx.create(base, 8 * MiB, sparse=False) as disk:
        disk.write(MiB + SECTOR, random_bytes(SECTOR, 1))
        disk.zero(4 * MiB, MiB)
        disk.write(3 * MiB, random_bytes(MiB, 1))
        disk.flush()
        disk.zero(3 * MiB, MiB)
    with vhdx.create_child(child, base, sparse=False) as disk:
        disk.write(MiB + SECTOR, random_bytes(SECTOR, 1))
        disk.zero(2 * MiB + SECTOR, 100 * KiB)
    for path in (base, child):
        with File(path) as file:
            assert list(file.data_ranges(0, file.size)) == [(0, file.size)]


def test_released_space_becomes_a_hole(disk_path: Path) -> None:
    path = disk_path / "disk.vhdx"
    with vhdx.create(path, 64 * MiB) as disk:
        disk.write(0, random_bytes(64 * MiB, 1))
        disk.flush()
        full = path.stat().st_blocks * 512
        disk.zero(0, 48 * MiB)
        disk.flush()
    assert path.stat().st_blocks * 512 <= full - 47 * MiB


# --- identities --------------------------------------------------------------------------------


def _guids(path: Path) -> tuple[str, str]:
    info = vhdx.read_info(path)
    return info.file_write_guid, info.data_write_guid


def test_a_session_that_writes_changes_both_identities_once(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhdx.create(path, 4 * MiB).close()
    before = _guids(path)
    with open_disk(path, writable=True) as disk:
        assert isinstance(disk, VhdxDisk)
        disk.write(0, random_bytes(SECTOR, 1))
        during = disk.data_write_guid
        disk.write(SECTOR, random_bytes(SECTOR, 1))
    after = _guids(path)
    assert before[0] != after[0]
    assert before[1] != after[1] == during


def test_a_session_that_changes_nothing_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhdx.create(path, 4 * MiB).close()
    stored = path.read_bytes()
    with open_disk(path, writable=True) as disk:
        content(disk)
        disk.flush()
    assert path.read_bytes() == stored


@pytest.mark.parametrize("change", ["write", "zero"])
def test_a_kept_data_identity_stays(change: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhdx.create(path, 4 * MiB, fixed=True).close()
    before = _guids(path)
    with vhdx.open_vhdx(path, writable=True, keep_data_write_guid=True) as disk:
        if change == "write":
            disk.write(0, random_bytes(SECTOR, 1))
        else:
            disk.zero(0, MiB)
    after = _guids(path)
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_both_headers_agree_after_a_close(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    with vhdx.create(path, 4 * MiB) as disk:
        disk.write(0, random_bytes(SECTOR, 1))
    data = path.read_bytes()
    first, second = (
        structures.parse_header(data[place : place + structures.HEADER_SIZE])
        for place in structures.HEADER_OFFSETS
    )
    assert first is not None
    assert second is not None
    assert abs(first.sequence - second.sequence) == 1
    assert first.log_guid == second.log_guid == structures.ZERO_GUID
    assert first.data_write_guid == second.data_write_guid
    assert first.file_write_guid == second.file_write_guid


def test_an_identity_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    wanted = "12345678-9abc-def0-1234-56789abcdef0"
    with vhdx.create(path, 4 * MiB) as disk:
        disk.write(0, random_bytes(SECTOR, 1))
        disk.set_data_write_guid(wanted)
        disk.write(0, random_bytes(SECTOR, 2))
        assert disk.data_write_guid == wanted
    assert vhdx.read_info(path).data_write_guid == wanted


# --- the log -----------------------------------------------------------------------------------


def test_a_changed_slot_leaves_its_neighbours_in_the_page_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    per_page = structures.PAGE // 8
    with vhdx.create(path, 2 * GiB) as disk:
        for block in range(0, 2048, 3):
            disk.write(block * MiB, random_bytes(SECTOR, block))
    for block in (0, per_page - 1, per_page, 2 * per_page, 2047):
        with open_disk(path, writable=True) as disk:
            disk.write(block * MiB, random_bytes(SECTOR, block))
    assert check_disk(path).is_ok
    with open_disk(path) as disk:
        buffer = bytearray(SECTOR)
        for block in range(0, 2048, 3):
            disk.read_into(block * MiB, buffer)
            assert buffer == random_bytes(SECTOR, block)


def test_the_log_goes_round_its_ring_many_times() -> None:
    file = MemoryFile()
    with vhdx.create(file, 64 * GiB, block_size=MiB) as disk:
        for step in range(150):
            for page in range(7):
                disk.write((page * 512 * 8 + step) * MiB, random_bytes(SECTOR, step * 7 + page))
            disk.flush()
            if step % 29 == 0:
                with vhdx.open_vhdx(file.copy(writable=False)) as reader:
                    assert reader.info.log_is_dirty
                    buffer = bytearray(SECTOR)
                    reader.read_into(step * MiB, buffer)
                    assert buffer == random_bytes(SECTOR, step * 7)
    with vhdx.open_vhdx(file.copy(writable=False)) as reader:
        for step, page in itertools.product(range(0, 150, 7), range(7)):
            buffer = bytearray(SECTOR)
            reader.read_into((page * 512 * 8 + step) * MiB, buffer)
            assert buffer == random_bytes(SECTOR, step * 7 + page)


def test_metadata_of_a_large_write_is_one_entry_and_two_syncs() -> None:
    file = MemoryFile()
    with vhdx.create(file, 3 * GiB, block_size=MiB) as disk:
        disk.write(0, bytes(SECTOR))
        disk.flush()
        issued = len(file.changes)
        for block in range(1, 2400):
            disk.write(block * MiB, b"\x01" * SECTOR)
        disk.flush()
        changes = file.changes[issued:]
        assert sum(c.kind == "sync" for c in changes) == 2
        log = [c for c in changes if c.kind == "write" and MiB <= c.offset < 2 * MiB]
        assert [len(c.data) for c in log] == [6 * structures.PAGE]


def test_too_many_changed_pages_are_committed_in_between(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    with vhdx.create(path, 16 * TiB) as disk:
        layer = disk.layers[0]
        assert isinstance(layer, Layer)
        for page in range(250):
            disk.write(page * 512 * disk.block_size, random_bytes(SECTOR, page))
            assert len(layer.pages.changed) <= 101
    with open_disk(path) as disk:
        buffer = bytearray(SECTOR)
        for page in range(250):
            disk.read_into(page * 512 * 8 * MiB, buffer)
            assert buffer == random_bytes(SECTOR, page)


def test_a_child_written_all_over_is_committed_in_order() -> None:
    """More bitmap pages than one entry holds: they come before the table's."""
    file = MemoryFile()
    with vhdx.create(file, 8 * GiB, block_size=256 * MiB) as disk:
        disk.flush()
    # one chunk of a child of 256 MiB blocks is 4 GiB, its bitmap 256 pages
    child = MemoryFile("child.vhdx")
    _child_of(child, file, 8 * GiB)
    with vhdx.open_vhdx(child, writable=True, parent=_reader(file)) as disk:
        for page in range(512):
            disk.write(page * 16 * MiB, random_bytes(SECTOR, page))
        disk.flush()
        for page in range(512):
            disk.write(page * 16 * MiB + SECTOR, random_bytes(SECTOR, page + 1000))
        disk.flush()
        middle = child.copy(writable=False)
    for left in (middle, child.copy(writable=False)):
        with vhdx.open_vhdx(left, parent=_reader(file)) as disk:
            buffer = bytearray(3 * SECTOR)
            for page in range(512):
                disk.read_into(page * 16 * MiB, buffer)
                expected = random_bytes(SECTOR, page) + random_bytes(SECTOR, page + 1000)
                assert buffer == expected + bytes(SECTOR)


def _reader(file: MemoryFile) -> VhdxDisk:
    return vhdx.open_vhdx(file.copy(writable=False))


def _child_of(child: MemoryFile, parent: MemoryFile, size: int) -> None:
    from standby.disk.vhdx.creating import make_file
    from standby.disk.vhdx.geometry import Geometry
    from standby.disk.vhdx.housekeeping import locator_values

    make_file(
        child,
        Geometry(size, 256 * MiB, SECTOR, has_parent=True),
        physical_sector_size=4096,
        page83=bytes(16),
        fixed=False,
        sparse=True,
        locator=locator_values(_reader(parent).data_write_guid, ".\\parent.vhdx"),
    )


# --- refusals ----------------------------------------------------------------------------------


def test_a_disk_opened_for_reading_refuses_changes(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhdx.create(path, 4 * MiB).close()
    changes: list[Callable[[VhdxDisk], None]] = [
        lambda disk: disk.write(0, bytes(SECTOR)),
        lambda disk: disk.zero(0, MiB),
        lambda disk: disk.grow(8 * MiB),
        lambda disk: disk.set_data_write_guid("0" * 32),
    ]
    with vhdx.open_vhdx(path) as disk:
        for change in changes:
            with pytest.raises(DiskUnsupported, match="read-only"):
                change(disk)
        disk.flush()


@pytest.mark.parametrize(
    ("offset", "length"), [(1, SECTOR), (0, 1), (4 * MiB, SECTOR), (-SECTOR, SECTOR)]
)
def test_ranges_off_the_disk_or_its_sectors_are_refused(
    offset: int, length: int, tmp_path: Path
) -> None:
    with vhdx.create(tmp_path / "disk.vhdx", 4 * MiB) as disk:
        for act in (
            lambda: disk.write(offset, bytes(length)),
            lambda: disk.zero(offset, length),
            lambda: disk.read_into(offset, bytearray(length)),
        ):
            with pytest.raises(DiskRange):
                act()


@pytest.mark.parametrize(
    "options",
    [
        {"virtual_size": 0},
        {"virtual_size": 64 * TiB + SECTOR},
        {"virtual_size": 1000},
        {"block_size": 3 * MiB},
        {"block_size": 512 * KiB},
        {"block_size": 512 * MiB},
        {"logical_sector_size": 1024},
        {"physical_sector_size": 0},
        {"logical_sector_size": 4096, "virtual_size": MiB + 512},
    ],
    ids=str,
)
def test_impossible_disks_are_not_made(options: dict[str, int], tmp_path: Path) -> None:
    wanted: dict[str, Any] = {"virtual_size": 4 * MiB, **options}
    with pytest.raises(DiskUnsupported):
        vhdx.create(tmp_path / "disk.vhdx", **wanted)
    assert list(tmp_path.iterdir()) == []


def test_a_child_opened_without_parent_refuses_only_what_it_does_not_hold(tmp_path: Path) -> None:
    with _pair(tmp_path) as disk:
        disk.write(0, random_bytes(MiB, 1))
    with vhdx.open_vhdx(tmp_path / "child.vhdx") as disk:
        buffer = bytearray(MiB)
        disk.read_into(0, buffer)
        assert buffer == random_bytes(MiB, 1)
        assert [e.kind for e in disk.layer_extents()] == [Kind.DATA, Kind.HOLE]
        assert disk.mapped()[:, :2].tolist() == [[0, MiB]]
        with pytest.raises(ParentRefused, match="not opened"):
            disk.read_into(MiB, buffer)
        with pytest.raises(ParentRefused, match="not opened"):
            list(disk.extents())


def test_set_bits_equals_one_bit_after_another() -> None:
    for first, last in itertools.combinations(range(41), 2):
        row = np.zeros(5, np.uint8)
        set_bits(row, first, last)
        expected = np.zeros(40, np.uint8)
        expected[first:last] = 1
        assert np.unpackbits(row, bitorder="little").tolist() == expected.tolist()


# --- many runs at once -------------------------------------------------------------------------


def test_runs_copied_together_go_where_single_writes_go(tmp_path: Path) -> None:
    """Into a present block, over its end, into a missing, a partial and a zero block."""
    runs = [(SECTOR, 3 * SECTOR), (MiB - SECTOR, 2 * SECTOR), (2 * MiB, SECTOR)]
    runs += [(3 * MiB + SECTOR, SECTOR), (4 * MiB + SECTOR, SECTOR), (5 * MiB, MiB)]
    pieces = [random_bytes(length, seed) for seed, (_, length) in enumerate(runs)]
    (tmp_path / "pieces").write_bytes(b"before" + b"".join(pieces))
    places = np.cumsum([6] + [len(piece) for piece in pieces])
    rows = np.array([(*run, place) for run, place in zip(runs, places.tolist(), strict=False)])
    found = []
    for name in ("together", "single"):
        (tmp_path / name).mkdir()
        with _pair(tmp_path / name, 6) as disk, File(tmp_path / "pieces") as source:
            disk.write(0, random_bytes(MiB, 20))
            disk.write(3 * MiB, random_bytes(SECTOR, 21))
            disk.zero(4 * MiB, MiB)
            disk.flush()
            if name == "together":
                disk.copy_runs(rows, source)
            else:
                for (offset, _), piece in zip(runs, pieces, strict=True):
                    disk.write(offset, piece)
        with open_disk(tmp_path / name / "child.vhdx") as disk:
            found.append((content(disk), list(disk.layer_extents())))
    assert found[0] == found[1]


def test_runs_into_present_blocks_begin_a_session_and_are_synced(tmp_path: Path) -> None:
    (tmp_path / "piece").write_bytes(bytes(SECTOR))
    with vhdx.create(tmp_path / "a.vhdx", MiB, block_size=MiB) as disk:
        disk.write(0, random_bytes(MiB, 1))
    before = vhdx.read_info(tmp_path / "a.vhdx").data_write_guid
    with (
        vhdx.open_vhdx(tmp_path / "a.vhdx", writable=True) as disk,
        File(tmp_path / "piece") as source,
    ):
        syncs = []
        assert isinstance(disk.file, File)
        disk.copy_runs(np.array([(SECTOR, SECTOR, 0)]), source)
        assert disk.data_write_guid != before
        sync = disk.file.sync
        disk.file.sync = lambda: syncs.append(sync())  # type: ignore[method-assign,func-returns-value]
        disk.flush()
        assert syncs


def test_runs_outside_of_the_disk_or_of_the_file_they_come_from_are_refused(tmp_path: Path) -> None:
    (tmp_path / "piece").write_bytes(bytes(SECTOR))
    with (
        vhdx.create(tmp_path / "a.vhdx", MiB, block_size=MiB) as disk,
        File(tmp_path / "piece") as source,
    ):
        disk.copy_runs(np.empty((0, 3), dtype=np.int64), source)
        with pytest.raises(DiskRange):
            disk.copy_runs(np.array([(MiB, SECTOR, 0)]), source)
        with pytest.raises(DiskRange):
            disk.copy_runs(np.array([(0, 100, 0)]), source)
        with pytest.raises(DiskIO, match="file ends after"):
            disk.copy_runs(np.array([(0, 2 * SECTOR, 0)]), source)
        assert _states(disk) == [NOT_PRESENT]
