"""What we write as VHDX, read by qemu-img, 7z, dissect.hypervisor and libvhdi, each where it is
known to be right."""

from __future__ import annotations

import hashlib
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import judging
from standby.disk import open_disk, vhdx
from standby.disk.vhdx import VhdxDisk
from standby.ports import VirtualDisk
from standby.testing.disks import content, fill, random_bytes
from standby.testing.vhdx_damage import Patched
from standby.units import GiB, KiB, MiB

pytestmark = pytest.mark.judge

SIZE = 70 * MiB + 32 * KiB
"""The last block is short whatever the block size. (7-Zip 26.02 refuses disks of 4096-byte sectors
that are not whole 32 KiB.)"""


def _sha256(disk: VirtualDisk) -> str:
    return hashlib.sha256(content(disk)).hexdigest()


def _written(path: Path, **options: Any) -> str:
    """A disk with a bit of everything, closed clean; the sum of its content."""
    with vhdx.create(path, SIZE, **options) as disk:
        fill(disk, 1, count=60, length_max=4 * MiB)
        disk.flush()
        fill(disk, 2, count=30, length_max=MiB)
        disk.write(SIZE - 4096, random_bytes(4096, 3))
        return _sha256(disk)


@pytest.mark.parametrize("fixed", [False, True], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("block_size", [MiB, 2 * MiB, 32 * MiB])
def test_all_four_read_a_disk(block_size: int, fixed: bool, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    right = _written(path, block_size=block_size, fixed=fixed)
    judging.qemu_img_check(path)
    assert judging.qemu_img_sha256(path, tmp_path) == right
    assert judging.seven_zip_sha256(path) == right
    assert judging.dissect_sha256(path) == right
    assert judging.libvhdi_sha256(path) == right


def test_all_four_read_a_disk_that_is_not_sparse(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    right = _written(path, sparse=False)
    judging.qemu_img_check(path)
    assert judging.qemu_img_sha256(path, tmp_path) == right
    assert judging.seven_zip_sha256(path) == right


def test_three_read_sectors_of_4096_bytes(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    right = _written(path, logical_sector_size=4096)
    assert judging.seven_zip_sha256(path) == right
    assert judging.dissect_sha256(path) == right
    assert judging.libvhdi_sha256(path) == right


def test_qemu_img_reads_a_disk_of_several_chunks(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    with vhdx.create(path, 9 * GiB, block_size=MiB) as disk:
        for place in (0, 4 * GiB - MiB, 4 * GiB, 8 * GiB + 3 * MiB, 9 * GiB - 4096):
            disk.write(place, random_bytes(4096, place // MiB))
    judging.qemu_img_check(path)
    raw = tmp_path / "disk.raw"
    judging.run(
        judging.require_tool("qemu-img"),
        *("convert", "-f", "vhdx", "-O", "raw", path, raw),
    )
    with raw.open("rb") as file:
        for place in (0, 4 * GiB - MiB, 4 * GiB, 8 * GiB + 3 * MiB, 9 * GiB - 4096):
            file.seek(place)
            assert file.read(4096) == random_bytes(4096, place // MiB)


def test_qemu_img_reads_a_disk_that_grew(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    _written(path, block_size=MiB)
    with open_disk(path, writable=True) as disk:
        assert isinstance(disk, VhdxDisk)
        disk.grow(150 * MiB)
        disk.write(140 * MiB, random_bytes(MiB, 1))
        right = _sha256(disk)
    judging.qemu_img_check(path)
    assert judging.qemu_img_sha256(path, tmp_path) == right
    assert judging.seven_zip_sha256(path) == right


def _chain(folder: Path, *, zeros: bool, sector: int = 512) -> tuple[list[Path], str]:
    """Three files, oldest first, and the sum of the newest's content."""
    paths = [folder / name for name in ("base.vhdx", "one.vhdx", "two.vhdx")]
    _written(paths[0], block_size=2 * MiB, logical_sector_size=sector)
    right = ""
    for below, path in pairwise(paths):
        with vhdx.create_child(path, below, block_size=2 * MiB) as disk:
            for number in range(8):
                disk.write(number * 9 * MiB + 4096 * 3, random_bytes(5 * 4096, number))
            disk.write(40 * MiB, random_bytes(4 * MiB, len(right)))
            if zeros:
                disk.zero(20 * MiB, 6 * MiB)
                disk.zero(4096, 3 * 4096)
            right = _sha256(disk)
    return paths, right


@pytest.mark.parametrize("sector", [512, 4096])
def test_7z_reads_a_chain_of_three(sector: int, tmp_path: Path) -> None:
    paths, right = _chain(tmp_path, zeros=True, sector=sector)
    assert judging.seven_zip_sha256(paths[-1]) == right


@pytest.mark.parametrize("sector", [512, 4096])
def test_7z_and_dissect_read_a_child(sector: int, tmp_path: Path) -> None:
    paths, _ = _chain(tmp_path, zeros=True, sector=sector)
    with open_disk(paths[1]) as disk:
        right = _sha256(disk)
    assert judging.seven_zip_sha256(paths[1]) == right
    assert judging.dissect_sha256(paths[1], paths[0]) == right


def test_libvhdi_reads_a_child_without_zero_blocks(tmp_path: Path) -> None:
    paths, _ = _chain(tmp_path, zeros=False)
    with open_disk(paths[1]) as disk:
        right = _sha256(disk)
    # It takes the file's start for a bitmap where a chunk has none; every chunk here has one.
    assert judging.libvhdi_sha256(paths[1], paths[0]) == right


def test_7z_follows_a_locator_that_was_changed(tmp_path: Path) -> None:
    paths, _ = _chain(tmp_path, zeros=False)
    with open_disk(paths[1]) as disk:
        right = _sha256(disk)
    paths[0].rename(tmp_path / "moved.vhdx")
    with vhdx.open_vhdx(paths[1], writable=True) as disk:
        linkage = disk.info.locator["parent_linkage"]
        disk.set_parent_locator(linkage, ".\\moved.vhdx", None)
    assert judging.seven_zip_sha256(paths[1]) == right


def test_qemu_img_replays_our_log(tmp_path: Path) -> None:
    path, copy = tmp_path / "disk.vhdx", tmp_path / "copy.vhdx"
    with vhdx.create(path, 24 * MiB, block_size=MiB) as disk:
        disk.write(0, random_bytes(3 * MiB, 1))
        disk.flush()
        disk.write(20 * MiB, random_bytes(MiB, 2))
        disk.zero(MiB, MiB)
        disk.flush()
        right = _sha256(disk)
        shutil.copy(path, copy)
    patched = Patched(copy.read_bytes())
    patched.put(3 * MiB, bytes(4096))  # the table in its place: only the log has it
    copy.write_bytes(patched.data)
    assert vhdx.read_info(copy).log_is_dirty
    judging.run(judging.require_tool("qemu-img"), "check", "-r", "all", copy, accept=(0, 2, 3))
    judging.qemu_img_check(copy)
    assert judging.qemu_img_sha256(copy, tmp_path) == right


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("block_size", ["1M", "8M", "64M"])
def test_we_read_and_write_what_qemu_img_made(
    block_size: str, subformat: str, tmp_path: Path
) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.vhdx"
    raw.write_bytes(random_bytes(3 * MiB, 1) + bytes(30 * MiB) + random_bytes(2 * MiB + 512, 2))
    options = f"block_size={block_size},subformat={subformat}"
    judging.run(
        judging.require_tool("qemu-img"),
        *("convert", "-f", "raw", "-O", "vhdx", "-o", options, raw, path),
    )
    with open_disk(path, writable=True) as disk:
        held = bytearray(content(disk))
        assert held[: raw.stat().st_size] == raw.read_bytes()
        disk.write(MiB - 512, random_bytes(MiB, 3))
        held[MiB - 512 : 2 * MiB - 512] = random_bytes(MiB, 3)
        disk.write(len(held) - 512, random_bytes(512, 4))
        held[len(held) - 512 :] = random_bytes(512, 4)
    judging.qemu_img_check(path)
    assert judging.qemu_img_sha256(path, tmp_path) == hashlib.sha256(held).hexdigest()
