"""Real VHDX files, by Windows, Hyper-V and QEMU, and hand-made ones, against their manifest.

Of a large sample only what `extents` calls data is read; the rest goes into the sum as zeros.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

import judging
from standby.disk import open_disk, vhdx
from standby.disk.check import check_disk
from standby.errors import ParentRefused
from standby.model.extent import Kind
from standby.ports import VirtualDisk
from standby.testing.disks import check_extents
from standby.units import MiB

pytestmark = pytest.mark.samples

_WRONG_LINKAGE = "bad_linkage.avhdx"
_PARENTS = {
    "fat-differential.vhdx": "fat-parent.vhdx",
    "child1.avhdx": "base.vhdx",
    "child4k.avhdx": "base4k.vhdx",
    _WRONG_LINKAGE: "base.vhdx",
}
_NAMES = sorted(set(judging.known_samples()) - {_WRONG_LINKAGE})
_SMALL = 128 * MiB
_WINDOW = 4 * MiB
_FULL = os.environ.get("STANDBY_FUZZ") == "full"

_CONDENSED = {
    # btrfs.vhdx
    "0b959f9cb4e18348ad8b646f152178282542c8304f02fddf765e3fd1a1de6864":
    "491a099f2f120370ac90ed00183280a8f76f5d6c1522b82ddf1baf86740c80a2",
    # iotest-dirtylog-10G-4M.vhdx
    "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f":
    "423d34fc2df0ee71557c29c744ce621e9aacdd37a748c99c7c01ea6ef381d695",
    # iotest-dynamic-1G.vhdx
    "d3d112d8dab7fd360609f7d5a7b769904b7a2a7d7b6b8c535f65a23293c05478":
    "8c85dbf7b8804b0a8b7a3a44a266f847470f9f02f03d9dc57b7a8e204c54784c",
    # swap.vhdx
    "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49":
    "931e0c441356fad09c37286307ab48f9fb9e17e4bcfa500a47ee0ca59d073af4",
}  # fmt: skip
"""By the manifest's sum of a large sample's content, that of `_condensed`, which takes no time for
gigabytes of zeros. Both were added up over the same bytes; STANDBY_FUZZ=full does so again."""


def _unpacked(name: str, folder: Path) -> Path:
    known = judging.known_samples()
    if name in _PARENTS:
        judging.unpack_sample(known[_PARENTS[name]].packed, folder)
    return judging.unpack_sample(known[name].packed, folder)


def _sha256(disk: VirtualDisk) -> str:
    digest = hashlib.sha256()
    zeros = bytes(4 * MiB)
    for extent in disk.extents():
        for offset in range(extent.offset, extent.stop, len(zeros)):
            buffer = bytearray(min(len(zeros), extent.stop - offset))
            if extent.kind == Kind.DATA or disk.virtual_size <= _SMALL:
                disk.read_into(offset, buffer)
            digest.update(buffer)
    return digest.hexdigest()


def _condensed(disk: VirtualDisk) -> str:
    """A sum of the size and of every sector that is not zero, with its number: the same exactly
    where the content is."""
    digest = hashlib.sha256(f"{disk.virtual_size} ".encode())
    windows: dict[int, None] = {}
    for extent in disk.extents():
        if extent.kind == Kind.DATA:
            windows |= dict.fromkeys(range(extent.offset // _WINDOW, -(-extent.stop // _WINDOW)))
    for window in windows:
        offset = window * _WINDOW
        buffer = bytearray(min(_WINDOW, disk.virtual_size - offset))
        disk.read_into(offset, buffer)
        sectors = np.frombuffer(buffer, np.uint8).reshape(-1, 512)
        held = np.flatnonzero(sectors.any(axis=1))
        digest.update((held + offset // 512).astype("<i8").tobytes())
        digest.update(sectors[held].tobytes())
    return digest.hexdigest()


def _data(disk: VirtualDisk) -> list[tuple[int, bytes]]:
    found = []
    for extent in disk.extents():
        if extent.kind == Kind.DATA:
            buffer = bytearray(extent.length)
            disk.read_into(extent.offset, buffer)
            found.append((extent.offset, bytes(buffer)))
    assert found
    return found


def test_the_samples_are_here(samples: Path) -> None:
    assert len(_NAMES) == 15


@pytest.mark.parametrize("name", _NAMES)
def test_reads_as_the_manifest_says(name: str, tmp_path: Path) -> None:
    path = _unpacked(name, tmp_path)
    wanted = judging.known_samples()[name].content_sha256
    with open_disk(path) as disk:
        if wanted in _CONDENSED:
            assert _condensed(disk) == _CONDENSED[wanted]
        if wanted not in _CONDENSED or _FULL:
            assert _sha256(disk) == wanted


@pytest.mark.parametrize("name", _NAMES)
def test_passes_the_check_and_is_not_changed(name: str, tmp_path: Path) -> None:
    path = _unpacked(name, tmp_path)
    report = check_disk(path)
    assert report.findings == ()
    assert report.log_is_dirty == judging.known_samples()[name].is_dirty
    assert report.layers == (2 if name in _PARENTS else 1)
    assert judging.sha256_of_file(path) == judging.known_samples()[name].file_sha256


@pytest.mark.parametrize("name", [n for n in _NAMES if judging.known_samples()[n].is_dirty])
def test_replaying_gives_what_reading_through_the_log_gave(name: str, tmp_path: Path) -> None:
    path = _unpacked(name, tmp_path)
    before = vhdx.read_info(path)
    assert before.log_is_dirty
    with open_disk(path) as disk:
        laid_over = _data(disk)
    open_disk(path, writable=True).close()
    after = vhdx.read_info(path)
    assert not after.log_is_dirty
    assert after.data_write_guid == before.data_write_guid
    with open_disk(path) as disk:
        assert _data(disk) == laid_over


def test_a_wrong_parent_is_refused(tmp_path: Path) -> None:
    judging.samples_folder()
    path = _unpacked(_WRONG_LINKAGE, tmp_path)
    with pytest.raises(ParentRefused, match="written to since"):
        open_disk(path)


def test_windows_says_what_it_is(tmp_path: Path) -> None:
    judging.samples_folder()
    info = vhdx.read_info(_unpacked("fat-differential.vhdx", tmp_path))
    parent = vhdx.read_info(tmp_path / "fat-parent.vhdx")
    assert info.creator == "Microsoft Windows 10.0.19041.0"
    assert (info.virtual_size, info.block_size) == (4 * MiB, 2 * MiB)
    assert (info.logical_sector_size, info.physical_sector_size) == (512, 4096)
    assert (info.has_parent, info.is_fixed, info.log_is_dirty) == (True, False, False)
    assert info.locator["parent_linkage"].strip("{}").lower() == parent.data_write_guid
    assert info.page83 == parent.page83
    assert parent.is_fixed


@pytest.mark.parametrize("name", ["child1.avhdx", "child4k.avhdx", "fat-differential.vhdx"])
def test_extents_of_a_child_tell_no_lies(name: str, tmp_path: Path) -> None:
    judging.samples_folder()
    with open_disk(_unpacked(name, tmp_path)) as disk:
        check_extents(disk)


@pytest.mark.parametrize("name", ["swap.vhdx", "btrfs.vhdx", "base.vhdx", "fat-parent.vhdx"])
def test_a_file_of_windows_can_be_written(name: str, tmp_path: Path) -> None:
    judging.samples_folder()
    path = _unpacked(name, tmp_path)
    with open_disk(path, writable=True) as disk:
        last = disk.virtual_size - disk.virtual_size % MiB - MiB
        for offset in (0, 3 * MiB + 4096, last):
            disk.write(offset, b"\xa5" * 4096)
        disk.zero(0, 2048)
    assert check_disk(path).is_ok
    with open_disk(path) as disk:
        buffer = bytearray(4096)
        disk.read_into(0, buffer)
        assert buffer == bytes(2048) + b"\xa5" * 2048
        disk.read_into(last, buffer)
        assert buffer == b"\xa5" * 4096
