"""A child merged into its parent: the chain reads the same at every instant."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from merge_pairs import small_pair
from standby.disk import merge, open_disk, vhdx
from standby.disk.check import check_disk
from standby.disk.merge import merge_file, merge_payload, space_needed
from standby.disk.vhdx import VhdxDisk
from standby.errors import DiskError, DiskFull, DiskUnsupported, ParentRefused
from standby.files import File
from standby.testing.disks import content, fill, random_bytes
from standby.units import KiB, MiB

SIZE = 9 * MiB + 4096


def make_base(folder: Path, *, block: int = MiB, sector: int = 512, size: int = SIZE) -> Path:
    disk = vhdx.create(folder / "base.vhdx", size, block_size=block, logical_sector_size=sector)
    fill(disk, 1, length_max=2 * MiB)
    disk.close()
    return disk.path


def make_child(
    parent: Path, name: str = "child.vhdx", *, block: int = MiB, seed: int = 2, count: int = 40
) -> Path:
    """A child with scattered sectors, whole blocks, and zero blocks over the parent's data."""
    disk = vhdx.create_child(parent.with_name(name), parent, block_size=block)
    fill(disk, seed, count=count, length_max=256 * KiB)
    disk.write(3 * MiB, random_bytes(2 * MiB, seed))
    disk.zero(6 * MiB, 2 * MiB)
    disk.close()
    return disk.path


def read_all(path: Path) -> bytes:
    with contextlib.closing(open_disk(path)) as disk:
        return content(disk)


@contextlib.contextmanager
def opened(
    child: Path, base: Path, *, child_writable: bool = False
) -> Iterator[tuple[VhdxDisk, VhdxDisk]]:
    with (
        vhdx.open_vhdx(base, writable=True, keep_data_write_guid=True) as lower,
        vhdx.open_vhdx(child, writable=child_writable, keep_data_write_guid=True) as upper,
    ):
        yield upper, lower


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize(("base_block", "child_block"), [(1, 1), (2, 1), (1, 4)])
def test_the_base_gets_the_content_and_keeps_its_identity(
    tmp_path: Path, base_block: int, child_block: int, sector: int
) -> None:
    base = make_base(tmp_path, block=base_block * MiB, sector=sector)
    child = make_child(base, block=child_block * MiB)
    expected = read_all(child)
    identity = vhdx.read_info(base).data_write_guid
    for _ in range(2):  # doing it again changes nothing
        with opened(child, base) as (upper, lower):
            copied = merge_payload(upper, lower)
            assert copied == sum(row[1] for row in upper.mapped().tolist())
        assert vhdx.read_info(base).data_write_guid == identity
        assert read_all(base) == expected
        assert read_all(child) == expected
    assert check_disk(base).is_ok


def test_nothing_the_child_does_not_hold_is_touched(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    child = vhdx.create_child(tmp_path / "child.vhdx", base, block_size=MiB)
    child.write(MiB + 512, random_bytes(1024, 1))
    child.close()
    before = read_all(base)
    with opened(child.path, base) as (upper, lower):
        assert merge_payload(upper, lower) == 1024
    after = read_all(base)
    assert after == before[: MiB + 512] + random_bytes(1024, 1) + before[MiB + 1536 :]


def test_an_empty_child_copies_nothing(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    child = vhdx.create_child(tmp_path / "child.vhdx", base, block_size=MiB)
    child.close()
    before = read_all(base)
    with opened(child.path, base) as (upper, lower):
        assert merge_payload(upper, lower) == 0
        assert space_needed(upper, lower) == 0
    assert read_all(base) == before


def test_zeros_over_data_free_the_space_of_the_base(tmp_path: Path) -> None:
    base = vhdx.create(tmp_path / "base.vhdx", 8 * MiB, block_size=MiB)
    base.write(0, random_bytes(8 * MiB, 1))
    base.close()
    child = vhdx.create_child(tmp_path / "child.vhdx", base.path, block_size=MiB)
    child.zero(2 * MiB, 4 * MiB)
    child.close()
    used = base.path.stat().st_blocks
    with opened(child.path, base.path) as (upper, lower):
        assert merge_payload(upper, lower) == 0
    assert read_all(base.path)[2 * MiB : 6 * MiB] == bytes(4 * MiB)
    assert base.path.stat().st_blocks <= used - 4 * MiB // 512


def test_says_how_much_space_it_needs(tmp_path: Path) -> None:
    base = vhdx.create(tmp_path / "base.vhdx", 600 * MiB, block_size=2 * MiB)
    base.write(4 * MiB, random_bytes(512, 1))
    base.close()
    child = vhdx.create_child(tmp_path / "child.vhdx", base.path, block_size=MiB)
    for offset in (0, 4 * MiB, 5 * MiB, 7 * MiB, 8 * MiB - 512, 300 * MiB, 600 * MiB - 512):
        child.write(offset, random_bytes(1024, 1)[: min(1024, 600 * MiB - offset)])
    child.close()
    with opened(child.path, base.path) as (upper, lower):
        needed = space_needed(upper, lower)
        before = lower.file.size
        merge_payload(upper, lower)
        # Blocks 0, 3, 4, 150 and 299 of the base; its block 2 was there.
        assert needed == 5 * 2 * MiB
        assert lower.file.size - before == needed


@pytest.mark.parametrize("slice_bytes", [1, MiB, 3 * MiB, 1 << 40])
def test_slices_give_the_child_s_space_back(tmp_path: Path, slice_bytes: int) -> None:
    base = make_base(tmp_path)
    child = make_child(base)
    expected = read_all(child)
    identity = vhdx.read_info(child).data_write_guid
    used = child.stat().st_blocks
    with opened(child, base, child_writable=True) as (upper, lower):
        merge_payload(upper, lower, slice_bytes=slice_bytes)
    assert read_all(base) == expected
    assert read_all(child) == expected
    assert vhdx.read_info(child).data_write_guid == identity
    assert check_disk(child).is_ok
    if slice_bytes <= MiB:
        assert child.stat().st_blocks < used / 2


def test_a_child_that_grew_makes_the_base_grow(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    child = vhdx.create_child(tmp_path / "child.vhdx", base, block_size=MiB)
    child.grow(SIZE + 5 * MiB)
    child.write(SIZE + 4 * MiB, random_bytes(MiB, 3))
    child.close()
    expected = read_all(child.path)
    assert merge_file(child.path).base.samefile(base)
    assert read_all(base) == expected
    assert vhdx.read_info(base).virtual_size == SIZE + 5 * MiB


def test_merges_a_file_and_passes_its_identity_on(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    child = make_child(base)
    expected = read_all(child)
    identity = vhdx.read_info(child).data_write_guid
    merged = merge_file(child)
    assert merged.base.samefile(base)
    assert merged.copied > 0
    assert not child.exists()
    info = vhdx.read_info(base)
    assert info.data_write_guid == identity
    assert not info.log_is_dirty
    assert read_all(base) == expected
    assert check_disk(base).is_ok


def test_punches_nothing_where_files_may_not_be_sparse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path)
    child = make_child(base)
    expected = read_all(child)
    punched: list[object] = []
    monkeypatch.setattr(File, "punch", lambda *call: bool(punched.append(call)))
    merge_file(child, sparse=False, slice_bytes=MiB)
    assert not punched
    assert read_all(base) == expected


def test_merges_the_top_of_a_longer_chain(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    middle = make_child(base, "middle.vhdx", seed=3)
    top = make_child(middle, "top.vhdx", seed=4)
    before, expected = read_all(base), read_all(top)
    assert merge_file(top).base.samefile(middle)
    assert read_all(middle) == expected
    assert read_all(base) == before
    assert check_disk(middle).is_ok
    merge_file(middle)
    assert read_all(base) == expected


def test_refuses_while_others_stand_on_one_of_the_two(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    child = make_child(base)
    other = make_child(base, "other.vhdx", seed=5)
    above = make_child(child, "above.vhdx", seed=6)
    before = {path: read_all(path) for path in (base, child, other, above)}
    with pytest.raises(DiskUnsupported, match=r"above\.vhdx, other\.vhdx"):
        merge_file(child)
    for path, expected in before.items():
        assert read_all(path) == expected
    other.unlink()
    with pytest.raises(DiskUnsupported, match=r"while above\.vhdx may"):
        merge_file(child)
    above.unlink()
    (tmp_path / "noise.vhdx").write_bytes(b"not a disk")
    merge_file(child)
    assert read_all(base) == before[child]


def test_refuses_what_does_not_fit_together(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    child = make_child(base)
    with pytest.raises(DiskUnsupported, match="no VHDX parent"):
        merge_file(base)
    with vhdx.open_vhdx(base) as lower, vhdx.open_vhdx(child) as upper:
        with pytest.raises(DiskUnsupported, match="read-only"):
            merge_payload(upper, lower)
    with opened(child, base) as (upper, lower):
        with pytest.raises(DiskUnsupported, match="slices with a child opened read-only"):
            merge_payload(upper, lower, slice_bytes=MiB)


def test_refuses_parents_of_other_sectors_or_larger(tmp_path: Path) -> None:
    child = make_child(make_base(tmp_path))
    for name, sector, size in (("4k", 4096, SIZE), ("large", 512, SIZE + MiB)):
        (tmp_path / name).mkdir()
        other = make_base(tmp_path / name, sector=sector, size=size)
        with opened(child, other) as (upper, lower), pytest.raises(DiskUnsupported):
            merge_payload(upper, lower)


def test_a_parent_changed_behind_the_child_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    child = make_child(base)
    with contextlib.closing(open_disk(base, writable=True)) as disk:
        disk.write(0, bytes(512))
    with pytest.raises(ParentRefused):
        merge_file(child)


def test_a_short_file_system_is_said_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = vhdx.create(tmp_path / "base.vhdx", SIZE, block_size=MiB)
    base.close()
    child = make_child(base.path)
    expected = read_all(child)
    before = base.path.stat().st_size
    monkeypatch.setattr(merge, "free_bytes", lambda _: MiB)
    with pytest.raises(DiskFull) as caught:
        merge_file(child)
    assert caught.value.available == MiB
    assert caught.value.needed > MiB
    assert base.path.stat().st_size == before
    merge_file(child, slice_bytes=MiB)
    assert read_all(base.path) == expected


def test_a_full_file_system_midway_leaves_a_chain_to_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = vhdx.create(tmp_path / "base.vhdx", SIZE, block_size=MiB)
    base.close()
    child = make_child(base.path)
    expected = read_all(child)
    write = File.write
    room = 2 * MiB

    def limited(self: File, data: Any, offset: int) -> None:
        nonlocal room
        if self.path == base.path:
            room -= memoryview(data).nbytes
            if room < 0:
                raise DiskFull(str(self.path), 1, 0)
        write(self, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(File, "write", limited)
        patch.setattr(File, "copy_from", lambda *_: 0)
        with pytest.raises(DiskFull):
            merge_file(child)
    assert read_all(child) == expected
    merge_file(child)
    assert read_all(base.path) == expected


# --- at every instant, and killed at each ---------------------------------------------------


CHANGING = ("write", "copy_from", "sync", "resize", "punch")


def on_each_change(patch: pytest.MonkeyPatch, before: Callable[[], None]) -> None:
    """Call `before` ahead of every call that changes a file or makes changes stable."""
    for name in CHANGING:
        original = getattr(File, name)

        def call(self: File, *arguments: Any, _original: Any = original) -> Any:
            before()
            return _original(self, *arguments)

        patch.setattr(File, name, call)


@pytest.mark.parametrize("slice_bytes", [None, MiB])
def test_the_child_reads_the_same_at_every_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_bytes: int | None
) -> None:
    base, child = small_pair(tmp_path)
    expected = read_all(child)
    snapshots = tmp_path / "snapshots"
    inside = False
    count = 0

    def look() -> None:
        # Copies, as a process that came after a kill would find them; opening them may not lock
        # or replay the originals.
        nonlocal inside, count
        if inside or not child.exists():
            return
        inside = True
        count += 1
        folder = snapshots / str(count)
        folder.mkdir(parents=True)
        for path in (base, child):
            shutil.copyfile(path, folder / path.name)
        assert read_all(folder / child.name) == expected
        shutil.rmtree(folder)
        inside = False

    with monkeypatch.context() as patch:
        on_each_change(patch, look)
        merge_file(child, slice_bytes=slice_bytes)
    assert count > 20
    assert read_all(base) == expected


def run_and_be_killed(child: Path, number: int, slice_bytes: int | None) -> bool:
    """Merge in a forked process that dies before its change `number`; True if it did."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1] == signal.SIGKILL
    left = number

    def count() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    code = 1
    try:
        on_each_change(pytest.MonkeyPatch(), count)
        merge_file(child, slice_bytes=slice_bytes)
        code = 0
    finally:
        os._exit(code)


@pytest.mark.skipif(sys.platform == "win32", reason="fork and SIGKILL")
@pytest.mark.parametrize(("slice_bytes", "step"), [(None, 3), (MiB, 1)])
def test_killed_at_every_change_the_chain_reads_the_same_and_a_repeat_completes(
    tmp_path: Path, slice_bytes: int | None, step: int
) -> None:
    # With slices every change of a merge without them happens too; that one in larger steps.
    origin = tmp_path / "origin"
    origin.mkdir()
    base, child = small_pair(origin)
    expected = read_all(child)
    killed = number = 0
    while True:
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in (base, child):
            shutil.copyfile(path, folder / path.name)
        here = folder / child.name
        if not run_and_be_killed(here, number, slice_bytes):
            break
        killed += 1
        assert read_all(here) == expected, f"after change {number}"
        merge_file(here, slice_bytes=slice_bytes)
        assert read_all(folder / base.name) == expected, f"after change {number}, repeated"
        shutil.rmtree(folder)
        number += step
    assert killed * step > 20
    assert not here.exists()
    assert read_all(folder / base.name) == expected


def test_a_failure_is_one_of_our_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, child = small_pair(tmp_path)
    expected = read_all(child)
    sync = File.sync
    for number in range(3, 9):
        left = number

        def failing(self: File) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise DiskFull(str(self.path), 1, 0)
            sync(self)

        with monkeypatch.context() as patch:
            patch.setattr(File, "sync", failing)
            with pytest.raises(DiskError):
                merge_file(child)
        assert read_all(child) == expected
    merge_file(child)
    assert read_all(base) == expected
