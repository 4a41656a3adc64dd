"""Ranges copied between open files, by the system and by ourselves."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from standby.errors import DiskFull, DiskIO
from standby.files import File, copy_range
from standby.testing.disks import random_bytes
from standby.testing.vhdx_files import MemoryFile
from standby.units import KiB, MiB

DATA = random_bytes(MiB + 5, 3)


@pytest.fixture(params=["by the system", "no call for it", "refused", "in small parts"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[File, File]]:
    """A file with DATA and one of zeros."""
    real = getattr(os, "copy_file_range", None)

    def refused(*_: int) -> int:
        raise OSError(errno.EXDEV, "other file system")

    def small(source: int, target: int, length: int, place: int, offset: int) -> int:
        assert real is not None
        return int(real(source, target, min(length, 4097), place, offset))

    if request.param == "no call for it":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif request.param == "refused":
        monkeypatch.setattr(os, "copy_file_range", refused, raising=False)
    elif request.param == "in small parts" and real is not None:
        monkeypatch.setattr(os, "copy_file_range", small)
    (tmp_path / "source").write_bytes(DATA)
    (tmp_path / "target").write_bytes(bytes(1000))
    source, target = tmp_path / "source", tmp_path / "target"
    with File(source) as one, File(target, writable=True) as other:
        yield one, other


@pytest.mark.parametrize("length", [0, 1, 300 * KiB, MiB])
def test_a_range_is_copied_and_nothing_else(pair: tuple[File, File], length: int) -> None:
    source, target = pair
    copy_range(source, 5, length, target, 77)
    expected = bytearray(max(1000, 77 + length))
    expected[77 : 77 + length] = DATA[5 : 5 + length]
    assert target.path.read_bytes() == expected
    assert target.size == len(expected)


def test_a_source_that_ends_too_soon_is_told(pair: tuple[File, File]) -> None:
    source, target = pair
    with pytest.raises(DiskIO, match="file ends after"):
        copy_range(source, MiB, KiB, target, 0)


def test_a_target_that_takes_nothing_is_told(pair: tuple[File, File]) -> None:
    source, target = pair
    with File(target.path) as read_only, pytest.raises(DiskIO, match="write"):
        copy_range(source, 0, KiB, read_only, 0)


def test_a_full_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    monkeypatch.setattr(os, "pwrite", full, raising=False)
    (tmp_path / "source").write_bytes(DATA)
    with (
        File(tmp_path / "source") as source,
        File(tmp_path / "target", create=True) as target,
        pytest.raises(DiskFull),
    ):
        copy_range(source, 0, KiB, target, 0)


def test_a_file_that_is_none_of_the_system_is_read(tmp_path: Path) -> None:
    held = MemoryFile()
    held.write(DATA, 0)
    with File(tmp_path / "target", create=True) as target:
        copy_range(held, 9, 300 * KiB, target, 0)
        assert target.read(0, 300 * KiB) == DATA[9 : 9 + 300 * KiB]
