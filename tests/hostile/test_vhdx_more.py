"""Hostile VHDX files without a base, failing files, and random damage: cases 111 to 120 of the list
of hostile inputs (118 and 119 are in tests/crash)."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from standby.disk import open_disk, vhdx
from standby.disk.vhdx import structures
from standby.disk.vhdx.metadata import Item, pack_table
from standby.errors import DiskBusy, DiskCorrupt, DiskError, DiskIO, DiskUnsupported
from standby.files import File
from standby.model.extent import Extent, Kind
from standby.testing.disks import content, random_bytes
from standby.testing.vhdx_damage import CHILD_NAME, PARENT_NAME, Patched, base_a, base_b
from standby.testing.vhdx_files import MemoryFile
from standby.units import KiB, MiB, TiB

FULL = os.environ.get("STANDBY_FUZZ") == "full"
pytestmark = [pytest.mark.timeout(3600)] if FULL else []
FLIPS = 10_000 if FULL else 200
BAT, METADATA = 2 * MiB, 3 * MiB


@contextmanager
def _bounded(cpu_s: float = 1.0, memory: int = 64 * MiB) -> Iterator[None]:
    """What is inside costs no more."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < memory
        assert time.process_time() - start < cpu_s
    finally:
        tracemalloc.stop()


# --- 111: a table too large to read ------------------------------------------------------------


def test_111_a_table_of_513_mib_is_not_read_at_open(tmp_path: Path) -> None:
    path = tmp_path / "bomb.vhdx"
    vhdx.create(path, 64 * TiB, block_size=MiB).close()
    assert vhdx.read_info(path).file_size > 513 * MiB
    with _bounded(memory=16 * MiB), open_disk(path) as disk:
        buffer = bytearray(MiB)
        disk.read_into(64 * TiB - MiB, buffer)
        assert buffer == bytes(MiB)


def test_111_extents_of_a_huge_disk_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.vhdx"
    with vhdx.create(path, 64 * TiB, block_size=MiB) as disk:
        disk.write(63 * TiB, random_bytes(MiB, 1))
    with _bounded(cpu_s=20.0, memory=32 * MiB), open_disk(path) as disk:
        assert list(disk.extents()) == [
            Extent(0, 63 * TiB, Kind.HOLE),
            Extent(63 * TiB, MiB, Kind.DATA),
            Extent(63 * TiB + MiB, TiB - MiB, Kind.HOLE),
        ]


def test_an_unchanged_child_of_two_million_blocks_is_mapped_at_once(tmp_path: Path) -> None:
    base, child = tmp_path / "base.vhdx", tmp_path / "child.vhdx"
    vhdx.create(base, 16 * TiB).close()
    vhdx.create_child(child, base).close()
    with _bounded(), open_disk(child) as disk:
        assert disk.virtual_size // disk.block_size == 1 << 21
        assert list(disk.extents()) == [Extent(0, 16 * TiB, Kind.HOLE)]


# --- 112: overlapping items --------------------------------------------------------------------


def test_112_overlapping_items_are_refused_before_they_are_read(tmp_path: Path) -> None:
    patched = Patched(base_a())
    items = tuple(
        Item(random_bytes(16, number), 64 * KiB + 4096 * number, MiB, 0) for number in range(2047)
    )
    first_five = bytes(patched.data[METADATA + 32 : METADATA + 32 + 160])
    table = bytearray(pack_table(items))
    table[32:192] = first_five
    region = 128 * MiB
    patched.tables((80 - 32 + 16, 16 * MiB, 8), (80 - 32 + 24, region, 4))
    path = tmp_path / "items.vhdx"
    with path.open("wb") as file:
        file.write(patched.data)
        file.seek(16 * MiB)
        file.write(table + patched.data[METADATA + len(table) : METADATA + len(table) + 64])
        file.truncate(16 * MiB + region)
    with _bounded(), pytest.raises(DiskCorrupt, match="overlap"):
        open_disk(path)


# --- 113, 114: the file changes or fails while open --------------------------------------------


def test_113_a_table_that_changes_while_open_crashes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    with vhdx.create(path, 16 * TiB) as disk:  # too large to be checked at open
        for block in (0, 5000, 1 << 20):
            disk.write(block * disk.block_size, random_bytes(MiB, block))
    with open_disk(path) as disk, path.open("r+b") as file:
        file.seek(3 * MiB + 8 * disk.layers[0].geometry.slot(1 << 20))  # type: ignore[attr-defined]
        file.write(((1 << 40) | 6).to_bytes(8, "little"))
        file.flush()
        with pytest.raises(DiskCorrupt, match="outside the file"):
            disk.read_into((1 << 20) * disk.block_size, bytearray(MiB))


def test_113_a_file_cut_while_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    with vhdx.create(path, 8 * MiB) as disk:
        disk.write(0, random_bytes(8 * MiB, 1))
    with open_disk(path) as disk:
        os.truncate(path, 6 * MiB)
        with pytest.raises(DiskIO, match="file ends"):
            disk.read_into(0, bytearray(8 * MiB))


def test_114_every_failed_read_surfaces(tmp_path: Path) -> None:
    file = MemoryFile()
    with vhdx.create(file, 8 * MiB) as disk:
        disk.write(MiB, random_bytes(3 * MiB, 1))
    reads = 0

    def count(operation: str, offset: int) -> None:
        nonlocal reads
        reads += operation == "read"

    def run(fail_at: int | None) -> bytes:
        nonlocal reads
        reads = 0
        again = file.copy(writable=False)

        def fail(operation: str, offset: int) -> None:
            count(operation, offset)
            if operation == "read" and reads == fail_at:
                raise DiskIO("memory.vhdx", "read", offset, 0, "simulated failure")

        again.fail = fail
        with vhdx.open_vhdx(again) as disk:
            return content(disk)

    right = run(None)
    total = reads
    assert total > 5
    for number in range(1, total + 1):
        with pytest.raises(DiskIO, match="simulated"):
            run(number)
    assert run(None) == right


# --- 115: signatures, not names ----------------------------------------------------------------


def test_115_the_signature_decides_not_the_name(tmp_path: Path) -> None:
    named_vhdx, named_vhd = tmp_path / "a.vhdx", tmp_path / "b.vhd"
    named_vhdx.write_bytes(b"conectix" + bytes(4 * MiB))
    with pytest.raises(DiskUnsupported, match="VHD"):
        open_disk(named_vhdx)
    named_vhd.write_bytes(base_a())
    with open_disk(named_vhd) as disk:
        assert isinstance(disk, vhdx.VhdxDisk)
    fixed_vhd = tmp_path / "c.img"
    fixed_vhd.write_bytes(bytes(MiB) + b"conectix" + bytes(504))
    with pytest.raises(DiskUnsupported, match="VHD"):
        open_disk(fixed_vhd)


# --- 116: a dirty log on read-only media -------------------------------------------------------


def _dirty(path: Path) -> bytes:
    """A file whose log holds a flushed change; its content."""
    with vhdx.create(path, 4 * MiB) as disk:
        disk.write(0, random_bytes(MiB, 1))
        disk.flush()
        right = content(disk)
        stale = Patched(path.read_bytes())
    patched = Patched(bytes(stale.data))
    patched.put(3 * MiB, bytes(4096))  # the table in its place was never written
    path.write_bytes(patched.data)
    return right


def test_116_a_dirty_file_that_cannot_be_written_reads_through_its_log(tmp_path: Path) -> None:
    folder = tmp_path / "medium"
    folder.mkdir()
    path = folder / "dirty.vhdx"
    right = _dirty(path)
    path.chmod(0o400)
    folder.chmod(0o500)
    try:
        before, stored = path.stat(), hashlib.sha256(path.read_bytes()).digest()
        with open_disk(path) as disk:
            assert disk.info.log_is_dirty
            assert content(disk) == right
        after = path.stat()
        assert hashlib.sha256(path.read_bytes()).digest() == stored
        assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
        assert list(folder.iterdir()) == [path]
    finally:
        folder.chmod(0o700)


def test_116_a_writable_open_replays_and_keeps_the_identity_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "dirty.vhdx"
    right = _dirty(path)
    before = vhdx.read_info(path)
    with open_disk(path, writable=True) as disk:
        assert content(disk) == right
    after = vhdx.read_info(path)
    assert before.log_is_dirty
    assert not after.log_is_dirty
    assert after.data_write_guid == before.data_write_guid
    assert after.file_write_guid != before.file_write_guid


# --- 117: random damage ------------------------------------------------------------------------


class _Target:
    """A file to flip bytes of, in place and back."""

    def __init__(self, path: Path, stop: int) -> None:
        self.path = path
        self.stop = stop
        with open_disk(path) as disk:
            self.right = content(disk)

    def check(self, offset: int, mask: int) -> None:
        with self.path.open("r+b") as file:
            file.seek(offset)
            old = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([old ^ mask]))
        try:
            with open_disk(self.path) as disk:
                found = content(disk) if disk.virtual_size == len(self.right) else b"another size"
        except DiskError:
            found = self.right
        finally:
            with self.path.open("r+b") as file:
                file.seek(offset)
                file.write(bytes([old]))
        if found != self.right:
            self.explain(offset, mask, found)

    def explain(self, offset: int, mask: int, found: bytes) -> None:
        """A table entry that still is one, and another size, are not told from right ones: nothing
        in the format protects them."""
        unprotected = self.unprotected
        assert any(start <= offset < stop for start, stop in unprotected), (offset, mask)

    unprotected: tuple[tuple[int, int], ...] = ()


@pytest.fixture(params=["dynamic", "differencing", "dirty"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> _Target:
    path = tmp_path / "A.vhdx"
    if request.param == "dynamic":
        path.write_bytes(base_a())
        found = _Target(path, 4 * MiB)
        found.unprotected = ((BAT, BAT + 64), (METADATA, METADATA + 64 * KiB + 40))
    elif request.param == "differencing":
        found = _Target(base_b(tmp_path), 4 * MiB + 512)
        found.unprotected = (
            (3 * MiB, 3 * MiB + 16),
            (3 * MiB + 8 * 2048, 3 * MiB + 8 * 2049),
            (2 * MiB, 2 * MiB + 65 * KiB),
            (4 * MiB, 4 * MiB + 512),
        )
    else:
        _dirty(path)
        found = _Target(path, 4 * MiB)
        last_entry = (MiB + 4 * KiB, MiB + 12 * KiB)  # damaged, it looks like one that was torn
        found.unprotected = (
            last_entry,
            (3 * MiB, 3 * MiB + 32),
            (2 * MiB, 2 * MiB + 64 * KiB + 48),
        )
    return found


def _places(target: _Target) -> st.SearchStrategy[int]:
    """Any byte, and more often one that means something."""
    busy = [(0, 16), (64 * KiB, 100), (128 * KiB, 100), (192 * KiB, 96), (256 * KiB, 96)]
    busy += [(MiB, 12 * KiB), (2 * MiB, 512), (3 * MiB, 512), (2 * MiB + 64 * KiB, 600)]
    busy += [(3 * MiB + 64 * KiB, 64), (3 * MiB + 8 * 2048, 8)]
    some = [st.integers(start, start + length - 1) for start, length in busy]
    return st.one_of(st.integers(0, target.stop - 1), *some)


def test_117_a_flipped_byte_is_an_error_or_harmless(target: _Target) -> None:
    @settings(
        max_examples=FLIPS,
        deadline=None,
        derandomize=not FULL,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_places(target), st.integers(1, 255))
    def flip(offset: int, mask: int) -> None:
        target.check(offset, mask)

    flip()


def test_117_a_truncated_file_is_an_error_or_harmless(tmp_path: Path) -> None:
    data = base_a()
    path = tmp_path / "A.vhdx"
    path.write_bytes(data)
    with open_disk(path) as disk:
        right = content(disk)
    choice = random.Random(117)
    for size in sorted(choice.randrange(len(data)) for _ in range(300 if FULL else 40)):
        path.write_bytes(data[:size])
        with pytest.raises(DiskError), open_disk(path) as disk:
            assert content(disk) == right


# --- 120: two writers --------------------------------------------------------------------------


def test_120_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    vhdx.create(path, MiB).close()
    with open_disk(path, writable=True) as first:
        first.write(0, random_bytes(512, 1))
        first.flush()
        with pytest.raises(DiskBusy, match="open for writing"):
            open_disk(path, writable=True)
        with open_disk(path) as reader:
            assert content(reader)[:512] == random_bytes(512, 1)
        with pytest.raises(DiskBusy):
            vhdx.create_child(tmp_path / "child.vhdx", path)
    open_disk(path, writable=True).close()


def test_120_a_file_being_made_is_locked(tmp_path: Path) -> None:
    with vhdx.create(tmp_path / "disk.vhdx", MiB), pytest.raises(DiskBusy):
        open_disk(tmp_path / "disk.vhdx", writable=True)


def test_a_file_that_exists_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    path.write_bytes(b"precious")
    with pytest.raises(DiskIO):
        vhdx.create(path, MiB)
    assert path.read_bytes() == b"precious"


def test_a_device_or_folder_is_not_opened(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        if path.exists():
            with pytest.raises(DiskIO):
                open_disk(path)


def test_the_bases_of_this_file_are_copied_not_shared(tmp_path: Path) -> None:
    path = base_b(tmp_path)
    assert path.name == CHILD_NAME
    shutil.copy(tmp_path / PARENT_NAME, tmp_path / "copy.vhdx")
    with File(tmp_path / "copy.vhdx") as file:
        assert file.read(0, 8) == structures.IDENTIFIER_SIGNATURE
