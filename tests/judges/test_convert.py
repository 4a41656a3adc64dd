"""Converted disks, read by others."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest

import judging
from standby.disk import open_disk, vhdx
from standby.disk.convert import convert
from standby.disk.merge import merge_file
from standby.disk.raw import create_raw
from standby.testing.disks import content, fill
from standby.units import MiB

pytestmark = pytest.mark.judge

SIZE = 21 * MiB + 8192
"""An even number of sectors: 7-Zip 26.02 refuses disks of an odd one (it tests the size against the
sector size as a bit)."""


@pytest.fixture
def source(tmp_path: Path) -> tuple[Path, str]:
    """A raw image and the sha256 of its content."""
    with create_raw(tmp_path / "source.raw", SIZE) as disk:
        fill(disk, 1, count=60, length_max=2 * MiB)
        return disk.path, hashlib.sha256(content(disk)).hexdigest()


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("block", [1, 2, 32])
def test_a_vhdx_we_wrote_reads_the_same_everywhere(
    source: tuple[Path, str], tmp_path: Path, block: int, fixed: bool
) -> None:
    path, expected = source
    target = tmp_path / "target.vhdx"
    convert(path, target, "vhdx", block_size=block * MiB, fixed=fixed)
    judging.qemu_img_check(target)
    assert judging.qemu_img_sha256(target, tmp_path) == expected
    assert judging.seven_zip_sha256(target) == expected
    assert judging.dissect_sha256(target) == expected
    assert judging.libvhdi_sha256(target) == expected


def test_a_vhdx_with_large_sectors_reads_the_same_everywhere(
    source: tuple[Path, str], tmp_path: Path
) -> None:
    path, expected = source
    target = tmp_path / "target.vhdx"
    convert(path, target, "vhdx", logical_sector_size=4096)
    assert judging.seven_zip_sha256(target) == expected
    assert judging.dissect_sha256(target) == expected


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_a_vhdx_of_qemu_arrives_whole(
    source: tuple[Path, str], tmp_path: Path, subformat: str
) -> None:
    path, expected = source
    made = tmp_path / "qemu.vhdx"
    tool = judging.require_tool("qemu-img")
    options = f"subformat={subformat}"
    judging.run(tool, "convert", "-f", "raw", "-O", "vhdx", "-o", options, path, made)
    convert(made, tmp_path / "target.raw", "raw")
    assert judging.sha256_of_file(tmp_path / "target.raw") == expected
    convert(made, tmp_path / "target.vhdx", "vhdx", block_size=2 * MiB)
    assert judging.qemu_img_sha256(tmp_path / "target.vhdx", tmp_path) == expected


def test_a_raw_image_we_wrote_compares_equal(source: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = source
    convert(path, tmp_path / "target.raw", "raw")
    tool = judging.require_tool("qemu-img")
    judging.run(tool, "compare", "-f", "raw", "-F", "raw", path, tmp_path / "target.raw")


@pytest.mark.parametrize("sector", [512, 4096])
def test_a_merged_base_reads_the_same_everywhere(tmp_path: Path, sector: int) -> None:
    base = vhdx.create(tmp_path / "base.vhdx", SIZE, block_size=2 * MiB, logical_sector_size=sector)
    fill(base, 3, length_max=2 * MiB)
    base.close()
    child = vhdx.create_child(tmp_path / "child.vhdx", base.path, block_size=MiB)
    fill(child, 4, count=60)
    child.zero(6 * MiB, 4 * MiB)
    child.close()
    with contextlib.closing(open_disk(child.path)) as disk:
        expected = hashlib.sha256(content(disk)).hexdigest()
    assert judging.seven_zip_sha256(child.path) == expected
    merge_file(child.path)
    assert judging.seven_zip_sha256(base.path) == expected
    assert judging.dissect_sha256(base.path) == expected
    if sector == 512:
        judging.qemu_img_check(base.path)
        assert judging.qemu_img_sha256(base.path, tmp_path) == expected


def test_a_child_half_merged_in_slices_reads_the_same_to_others(tmp_path: Path) -> None:
    base = vhdx.create(tmp_path / "base.vhdx", SIZE, block_size=2 * MiB)
    fill(base, 3, length_max=2 * MiB)
    base.close()
    child = vhdx.create_child(tmp_path / "child.vhdx", base.path, block_size=MiB)
    fill(child, 4, count=60)
    child.close()
    with contextlib.closing(open_disk(child.path)) as disk:
        expected = hashlib.sha256(content(disk)).hexdigest()

    class StoppedError(Exception):
        pass

    def stop(_done: int, _total: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        merge_file(child.path, slice_bytes=MiB, progress=stop)
    with contextlib.closing(open_disk(child.path)) as disk:
        assert hashlib.sha256(content(disk)).hexdigest() == expected
    assert judging.seven_zip_sha256(child.path) == expected
