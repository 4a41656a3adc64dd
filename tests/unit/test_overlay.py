"""Throw-away overlays: nothing below changes, nothing stays."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from standby.disk.overlay import OverlayDisk
from standby.errors import DiskFull, DiskIO
from standby.files import File
from standby.model.extent import Extent, Kind
from standby.testing.disks import MemoryDisk, content, fill, random_bytes, random_operations
from standby.units import GiB, KiB, MiB, TiB


def test_the_base_never_changes_and_is_not_closed(tmp_path: Path) -> None:
    base = MemoryDisk(8 * MiB)
    fill(base, 1)
    before = content(base)
    base.calls.clear()
    overlay = OverlayDisk(base, tmp_path)
    for operation in random_operations(2, 8 * MiB, 200):
        operation.apply(overlay)
    overlay.close()
    assert content(base) == before
    assert set(base.calls) == {"read"}
    assert not base.is_closed


@pytest.mark.skipif(sys.platform == "win32", reason="an open file keeps its name there")
def test_leaves_no_name_in_the_folder_even_while_open(tmp_path: Path) -> None:
    overlay = OverlayDisk(MemoryDisk(MiB), tmp_path)
    overlay.write(0, bytes(4096))
    assert list(tmp_path.iterdir()) == []
    overlay.close()


def test_tells_its_layers_apart(tmp_path: Path) -> None:
    base = MemoryDisk(MiB)
    base.write(0, bytes(64 * KiB))
    overlay = OverlayDisk(base, tmp_path)
    overlay.write(128 * KiB, random_bytes(4096, 1))
    overlay.zero(32 * KiB, 64 * KiB)
    assert list(overlay.extents()) == [
        Extent(0, 32 * KiB, Kind.DATA),
        Extent(32 * KiB, 64 * KiB, Kind.ZERO),
        Extent(96 * KiB, 32 * KiB, Kind.HOLE),
        Extent(128 * KiB, 4 * KiB, Kind.DATA),
        Extent(132 * KiB, MiB - 132 * KiB, Kind.HOLE),
    ]
    overlay.close()


def test_copies_up_only_the_edges_of_a_write(tmp_path: Path) -> None:
    base = MemoryDisk(MiB)
    base.write(0, random_bytes(MiB, 1))
    overlay = OverlayDisk(base, tmp_path)
    base.calls.clear()
    overlay.write(4096, bytes(64 * KiB))
    assert "read" not in base.calls
    overlay.write(512, bytes(4096))
    assert base.calls["read"] == 1  # the first piece; the second is in the overlay already
    overlay.close()


def test_a_write_that_finds_no_base_leaves_the_old_content(tmp_path: Path) -> None:
    base = MemoryDisk(MiB)
    base.write(0, random_bytes(MiB, 1))
    before = content(base)
    fault = base.fail("read", 0, 4096)
    overlay = OverlayDisk(base, tmp_path)
    with pytest.raises(DiskIO):
        overlay.write(512, bytes(512))
    base.faults.remove(fault)
    assert content(overlay) == before
    overlay.write(512, bytes(512))
    assert content(overlay) == before[:512] + bytes(512) + before[1024:]
    overlay.close()


def test_a_full_file_system_is_an_error_and_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = MemoryDisk(MiB)
    base.write(0, random_bytes(MiB, 1))
    overlay = OverlayDisk(base, tmp_path)

    def refuse(*_: object) -> None:
        raise DiskFull(str(tmp_path), 4096, 0)

    with monkeypatch.context() as patch:
        patch.setattr(File, "write", refuse)
        with pytest.raises(DiskFull):
            overlay.write(0, bytes(4096))
    assert content(overlay) == content(base)
    overlay.close()


def test_zeroes_by_writing_where_holes_cannot_be_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(File, "punch", lambda *_: False)
    base = MemoryDisk(3 * MiB + 512)
    base.write(0, random_bytes(3 * MiB + 512, 1))
    overlay = OverlayDisk(base, tmp_path)
    overlay.zero(1024, 3 * MiB + 512 - 1024)
    assert content(overlay) == content(base)[:1024] + bytes(3 * MiB + 512 - 1024)
    overlay.close()


def test_memory_follows_what_was_written_not_the_size(tmp_path: Path) -> None:
    overlay = OverlayDisk(MemoryDisk(8 * TiB), tmp_path)
    for offset in range(0, 8 * TiB, 256 * GiB):
        overlay.write(offset, bytes(4096))
    assert sum(chunk.nbytes for chunk in overlay._chunks.values()) == 32 * 2048
    part = bytearray(8192)
    overlay.read_into(256 * GiB, part)
    assert not any(part)
    overlay.close()


def test_refuses_writes_after_close(tmp_path: Path) -> None:
    overlay = OverlayDisk(MemoryDisk(MiB), tmp_path)
    overlay.close()
    with pytest.raises(DiskIO):
        overlay.write(0, bytes(512))
