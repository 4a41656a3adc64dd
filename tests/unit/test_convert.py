"""Conversion between formats: content, zeros, and the target whole or absent."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from standby.disk import convert as converting
from standby.disk import open_disk, vhdx
from standby.disk.convert import ZEROS_MIN, convert, copy_disk
from standby.disk.pumping import WINDOW
from standby.disk.raw import RawDisk, create_raw
from standby.disk.vhdx import VhdxDisk
from standby.errors import (
    ConfigurationError,
    DiskFull,
    DiskIO,
    DiskUnsupported,
    ParentRefused,
    StandbyError,
)
from standby.files import File
from standby.testing.disks import MemoryDisk, content, fill, random_bytes
from standby.units import KiB, MiB

SIZE = 9 * MiB + 4096


def make_raw(folder: Path, size: int = SIZE, seed: int = 1) -> tuple[Path, bytes]:
    with create_raw(folder / "source.raw", size) as disk:
        fill(disk, seed, length_max=MiB)
        return disk.path, content(disk)


def make_chain(folder: Path, sector: int = 512) -> tuple[Path, bytes]:
    """A child over a child over a base, each with content of its own."""
    disk = vhdx.create(folder / "base.vhdx", SIZE, block_size=MiB, logical_sector_size=sector)
    fill(disk, 1, length_max=MiB)
    disk.close()
    for name, block in (("middle", 2), ("top", 1)):
        disk = vhdx.create_child(folder / f"{name}.vhdx", disk.path, block_size=block * MiB)
        fill(disk, block + 5, count=20)
        disk.close()
    with contextlib.closing(open_disk(disk.path)) as chain:
        return disk.path, content(chain)


def read_all(path: Path, sector: int = 512) -> bytes:
    disk: Any = open_disk(path) if path.suffix == ".vhdx" else RawDisk(path)
    with contextlib.closing(disk):
        return content(disk)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("format", ["raw", "vhdx"])
def test_a_raw_image_arrives_whole(tmp_path: Path, format: str, threads: int) -> None:
    source, expected = make_raw(tmp_path)
    target = tmp_path / f"target.{format}"
    done = convert(source, target, format, threads=threads)
    assert read_all(target) == expected
    assert done.virtual_size == SIZE
    assert 0 < done.written <= done.read <= SIZE
    assert {path.name for path in tmp_path.iterdir()} == {source.name, target.name}


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("format", ["raw", "vhdx"])
def test_a_chain_becomes_one_file(tmp_path: Path, format: str, sector: int) -> None:
    source, expected = make_chain(tmp_path, sector)
    target = tmp_path / f"target.{format}"
    convert(source, target, format)
    assert read_all(target) == expected
    if format == "vhdx":
        info = vhdx.read_info(target)
        assert not info.has_parent
        assert info.logical_sector_size == sector
        assert info.virtual_size == SIZE
        assert not info.log_is_dirty


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("block", [1, 2, 32])
def test_a_vhdx_target_is_made_as_asked(tmp_path: Path, block: int, fixed: bool) -> None:
    source, expected = make_raw(tmp_path)
    target = tmp_path / "target.vhdx"
    convert(source, target, "vhdx", block_size=block * MiB, fixed=fixed, physical_sector_size=512)
    info = vhdx.read_info(target)
    assert (info.block_size, info.is_fixed, info.physical_sector_size) == (block * MiB, fixed, 512)
    assert read_all(target) == expected


def test_sectors_may_change_where_the_size_allows(tmp_path: Path) -> None:
    source, expected = make_raw(tmp_path)
    target = tmp_path / "target.vhdx"
    convert(source, target, "vhdx", logical_sector_size=4096)
    assert vhdx.read_info(target).logical_sector_size == 4096
    assert read_all(target) == expected
    odd = tmp_path / "odd.raw"
    create_raw(odd, MiB + 512).close()
    with pytest.raises(DiskUnsupported, match="4096"):
        convert(odd, tmp_path / "odd.vhdx", "vhdx", logical_sector_size=4096)


def test_a_raw_image_that_ends_inside_a_sector_is_padded(tmp_path: Path) -> None:
    source = tmp_path / "odd.img"
    source.write_bytes(random_bytes(MiB + 100, 1))
    convert(source, tmp_path / "target.vhdx", "vhdx", source_format="raw")
    assert read_all(tmp_path / "target.vhdx") == random_bytes(MiB + 100, 1) + bytes(412)


def test_an_odd_raw_image_is_padded_without_being_named_raw(tmp_path: Path) -> None:
    source = tmp_path / "odd.img"
    source.write_bytes(random_bytes(MiB + 100, 1))
    convert(source, tmp_path / "target.raw", "raw")
    assert read_all(tmp_path / "target.raw") == random_bytes(MiB + 100, 1) + bytes(412)


@pytest.mark.parametrize("format", ["raw", "vhdx"])
def test_an_empty_disk_arrives_empty(tmp_path: Path, format: str) -> None:
    create_raw(tmp_path / "source.raw", 64 * MiB).close()
    target = tmp_path / f"target.{format}"
    done = convert(tmp_path / "source.raw", target, format)
    assert (done.read, done.written) == (0, 0)
    assert target.stat().st_blocks * 512 < 5 * MiB
    assert read_all(target) == bytes(64 * MiB)


def test_zeros_are_not_stored(tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    data = random_bytes(MiB, 1)
    source.write_bytes(data + bytes(20 * MiB) + data)
    done = convert(source, tmp_path / "target.raw", "raw")
    assert (done.read, done.written) == (22 * MiB, 2 * MiB)
    assert (tmp_path / "target.raw").stat().st_blocks * 512 == 2 * MiB
    convert(source, tmp_path / "target.vhdx", "vhdx", block_size=MiB)
    with contextlib.closing(open_disk(tmp_path / "target.vhdx")) as disk:
        assert isinstance(disk, VhdxDisk)
        assert int(disk.mapped()[:, 1].sum()) == 2 * MiB


def test_short_stretches_of_zeros_are_written_along() -> None:
    source, target = MemoryDisk(WINDOW), MemoryDisk(WINDOW)
    source.write(0, b"x" * WINDOW)
    source.write(4096, bytes(ZEROS_MIN - 4096))
    source.write(MiB, bytes(ZEROS_MIN))
    done = copy_disk(source, target)
    assert content(target) == content(source)
    assert target.calls["write"] == 2
    assert done.written == WINDOW - ZEROS_MIN


@pytest.mark.parametrize("threads", [1, 2])
def test_what_holes_hide_is_not_read(threads: int) -> None:
    source, target = MemoryDisk(64 * 1024 * MiB), MemoryDisk(64 * 1024 * MiB)
    for offset in (512, 3 * MiB, 40 * 1024 * MiB):
        source.write(offset, random_bytes(512, offset))
    done = copy_disk(source, target, threads=threads)
    assert source.calls["read"] == 3
    assert done.read == 3 * 4096
    for offset in (512, 3 * MiB, 40 * 1024 * MiB):
        part = bytearray(512)
        target.read_into(offset, part)
        assert part == random_bytes(512, offset)


def test_reports_progress_up_to_the_whole(tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    with create_raw(source, 200 * MiB) as disk:
        for offset in range(0, 200 * MiB, MiB):
            disk.write(offset, b"x" * 512)
    seen: list[tuple[int, int]] = []
    convert(
        source, tmp_path / "a.raw", "raw", progress=lambda done, total: seen.append((done, total))
    )
    dones = [done for done, _ in seen]
    assert dones == sorted(dones)
    assert seen[-1] == (200 * MiB, 200 * MiB)
    assert 2 <= len(seen) <= 10


def test_an_existing_target_is_refused_unless_asked(tmp_path: Path) -> None:
    source, expected = make_raw(tmp_path)
    target = tmp_path / "target.raw"
    target.write_bytes(b"precious")
    with pytest.raises(ConfigurationError, match="exists already"):
        convert(source, target, "raw")
    assert target.read_bytes() == b"precious"
    convert(source, target, "raw", replace=True)
    assert read_all(target) == expected


def test_refuses_what_makes_no_sense(tmp_path: Path) -> None:
    source, expected = make_raw(tmp_path)
    with pytest.raises(ConfigurationError, match="stands on this file"):
        convert(source, source, "raw", replace=True)
    with pytest.raises(ConfigurationError, match="raw, vhdx"):
        convert(source, tmp_path / "target", "qcow2")
    with pytest.raises(ConfigurationError, match="block size"):
        convert(source, tmp_path / "target", "raw", block_size=MiB)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match="not a file"):
        convert(source, tmp_path / "folder", "raw", replace=True)
    with pytest.raises(StandbyError):
        convert(source, tmp_path / "target", "vhdx", block_size=3 * MiB)
    with pytest.raises(DiskIO):
        convert(tmp_path / "missing.raw", tmp_path / "target", "raw")
    with pytest.raises(DiskIO):
        convert(source, tmp_path / "nowhere" / "target", "raw")
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "folder"}
    assert read_all(source) == expected


def test_a_parent_outside_the_folders_is_refused_until_permitted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    source, expected = make_chain(tmp_path)
    (tmp_path / "base.vhdx").rename(tmp_path / "elsewhere" / "base.vhdx")
    with pytest.raises(ParentRefused):
        convert(source, tmp_path / "target.vhdx", "vhdx")
    parents = [tmp_path / "middle.vhdx", tmp_path / "elsewhere" / "base.vhdx"]
    convert(source, tmp_path / "target.vhdx", "vhdx", parents=parents)
    assert read_all(tmp_path / "target.vhdx") == expected


@pytest.mark.parametrize("format", ["raw", "vhdx"])
@pytest.mark.parametrize("operation", ["write", "sync", "resize"])
def test_a_failure_leaves_no_target_and_no_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, operation: str
) -> None:
    source, _ = make_raw(tmp_path)
    original = getattr(File, operation)
    calls = 0

    def failing(self: File, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise DiskFull(str(self.path), 1, 0)
        return original(self, *arguments)

    for stop in range(1, 60):
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(File, operation, failing)
            with contextlib.suppress(DiskFull):
                convert(source, tmp_path / "target", format, threads=1)
        if calls < stop:
            break
        assert [path.name for path in tmp_path.iterdir()] == [source.name], stop
    assert stop > 1


def test_an_unreadable_source_leaves_no_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = make_raw(tmp_path)
    disk = MemoryDisk(SIZE)
    disk.write(0, random_bytes(8 * MiB, 1))
    disk.fail("read", 5 * MiB, 512)
    monkeypatch.setattr(converting, "open_disk", lambda *_, **__: disk)
    with pytest.raises(DiskIO):
        convert(source, tmp_path / "target.vhdx", "vhdx", source_format="vhdx")
    assert [path.name for path in tmp_path.iterdir()] == [source.name]
    assert disk.is_closed


def test_large_blocks_of_data_survive_a_round_trip(tmp_path: Path) -> None:
    source, expected = make_raw(tmp_path, 33 * MiB + 512, seed=4)
    convert(source, tmp_path / "a.vhdx", "vhdx", block_size=2 * MiB)
    convert(tmp_path / "a.vhdx", tmp_path / "b.vhdx", "vhdx", block_size=8 * MiB, fixed=True)
    convert(tmp_path / "b.vhdx", tmp_path / "c.raw", "raw")
    assert (tmp_path / "c.raw").read_bytes() == expected
    used = (tmp_path / "c.raw").stat().st_blocks * 512
    assert used <= source.stat().st_blocks * 512 + 64 * KiB
