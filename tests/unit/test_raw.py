"""Raw images: holes, odd lengths, padding."""

from __future__ import annotations

from pathlib import Path

import pytest

from standby.disk.raw import RawDisk, create_raw
from standby.errors import DiskIO, DiskRange, DiskUnsupported
from standby.files import File
from standby.model.extent import Extent, Kind
from standby.testing.disks import content, random_bytes
from standby.units import MiB


def test_a_new_image_is_one_hole_and_takes_no_space(tmp_path: Path) -> None:
    with create_raw(tmp_path / "a.raw", 64 * MiB) as disk:
        assert list(disk.extents()) == [Extent(0, 64 * MiB, Kind.HOLE)]
    assert (tmp_path / "a.raw").stat().st_blocks == 0
    assert (tmp_path / "a.raw").stat().st_size == 64 * MiB


def test_tells_data_from_holes(tmp_path: Path) -> None:
    with create_raw(tmp_path / "a.raw", 4 * MiB) as disk:
        disk.write(MiB, bytes(MiB))
        assert list(disk.extents()) == [
            Extent(0, MiB, Kind.HOLE),
            Extent(MiB, MiB, Kind.DATA),
            Extent(2 * MiB, 2 * MiB, Kind.HOLE),
        ]


def test_zeroing_gives_space_back(tmp_path: Path) -> None:
    with create_raw(tmp_path / "a.raw", 4 * MiB) as disk:
        disk.write(0, random_bytes(4 * MiB, 1))
        disk.zero(MiB, 2 * MiB)
        assert (tmp_path / "a.raw").stat().st_blocks * 512 == 2 * MiB
        assert content(disk)[MiB : 3 * MiB] == bytes(2 * MiB)


def test_writes_zeros_where_holes_cannot_be_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(File, "punch", lambda *_: False)
    with create_raw(tmp_path / "a.raw", 4 * MiB) as disk:
        data = random_bytes(4 * MiB, 1)
        disk.write(0, data)
        disk.zero(512, 3 * MiB)
        assert content(disk) == data[:512] + bytes(3 * MiB) + data[512 + 3 * MiB :]


def test_an_image_that_ends_inside_a_sector_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(random_bytes(1000, 1))
    with pytest.raises(DiskUnsupported, match="truncate -s 1024"):
        RawDisk(path)
    with pytest.raises(DiskUnsupported, match="truncate -s 4096"):
        RawDisk(path, logical_sector_size=4096)


def test_padding_reads_as_zeros_and_leaves_a_file_opened_for_reading_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    data = random_bytes(1000, 1)
    path.write_bytes(data)
    with RawDisk(path, pad=True) as disk:
        assert disk.virtual_size == 1024
        assert content(disk) == data + bytes(24)
        last = bytearray(512)
        disk.read_into(512, last)
        assert last == data[512:] + bytes(24)
        assert sum(extent.length for extent in disk.extents()) == 1024
    assert path.stat().st_size == 1000


def test_padding_extends_a_writable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    data = random_bytes(1000, 1)
    path.write_bytes(data)
    with RawDisk(path, writable=True, pad=True) as disk:
        assert disk.virtual_size == 1024
        disk.write(512, bytes(512))
    assert path.read_bytes() == data[:512] + bytes(512)


@pytest.mark.parametrize("size", [0, 512, 4096 - 512])
def test_small_disks_are_disks(tmp_path: Path, size: int) -> None:
    with create_raw(tmp_path / "a.raw", size) as disk:
        assert content(disk) == bytes(size)
        assert sum(extent.length for extent in disk.extents()) == size


def test_refuses_sizes_sectors_and_files_that_cannot_be(tmp_path: Path) -> None:
    for size in (-512, 100):
        with pytest.raises(DiskRange):
            create_raw(tmp_path / "a.raw", size)
    assert not (tmp_path / "a.raw").exists()
    with pytest.raises(DiskUnsupported):
        create_raw(tmp_path / "a.raw", MiB, logical_sector_size=1024)
    assert not (tmp_path / "a.raw").exists()
    create_raw(tmp_path / "a.raw", MiB).close()
    with pytest.raises(DiskIO):
        create_raw(tmp_path / "a.raw", MiB)
    with pytest.raises(DiskIO):
        RawDisk(tmp_path / "missing.raw")
    with pytest.raises(DiskIO):
        RawDisk(tmp_path)


def test_a_file_cut_short_behind_our_back_is_an_error_and_no_zeros(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(random_bytes(MiB, 1))
    with RawDisk(path) as disk:
        with path.open("r+b") as file:
            file.truncate(MiB // 2)
        with pytest.raises(DiskIO, match="file ends after"):
            disk.read_into(0, bytearray(MiB))
