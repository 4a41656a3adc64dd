"""Damaged and hostile differencing VHDX files: cases 85 to 110 of the list of hostile inputs."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

import judging
from standby.disk import open_disk, vhdx
from standby.disk.chain import DEPTH_MAX
from standby.disk.check import check_disk
from standby.disk.vhdx import structures
from standby.errors import DiskCorrupt, DiskError, DiskUnsupported, ParentRefused
from standby.testing.disks import content, random_bytes
from standby.testing.vhdx_damage import CHILD_NAME, PARENT_NAME, Patched, base_a, base_b
from standby.units import MiB, TiB

BAT, METADATA = 3 * MiB, 2 * MiB
FLAGS, DISK_SIZE, LOGICAL = 0x210004, 0x210008, 0x210010
LOCATOR, KEY_COUNT, KEYS = 0x210028, 0x21003A, 0x21003C
LINKAGE_KEY, LINKAGE, RELATIVE = 0x210078, 0x210094, 0x210176
BITMAP_SLOT = 0x304000

CPU_S_MAX = 1.0
MEMORY_MAX = 64 * MiB

Damage = Callable[[Patched], object]


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le")


def _set(offset: int, value: int, size: int) -> Damage:
    return lambda p: p.put(offset, value, size)


def _state(slot: int, state: int) -> Damage:
    return lambda p: p.put(slot, p.get(slot, 8) & ~7 | state, 8)


def _relative(text: str) -> Damage:
    """Another relative path, of any length up to the stored one's."""

    def damage(p: Patched) -> None:
        p.put(RELATIVE, _utf16(text))
        for index in range(p.get(KEY_COUNT, 2)):
            entry = KEYS + 12 * index
            if LOCATOR + p.get(entry + 4, 4) == RELATIVE:
                p.put(entry + 10, len(_utf16(text)), 2)
                return
        raise AssertionError("no relative_path")

    return damage


def _linkage_text(p: Patched) -> None:
    old = p.data[LINKAGE + 2]
    p.put(LINKAGE + 2, ord("f") if old != ord("f") else ord("e"), 1)


REFUSED: dict[str, tuple[Damage, type[DiskError]]] = {
    "085 no bitmap block": (_set(BITMAP_SLOT, 0, 8), DiskCorrupt),
    "086 bitmap past the end": (_set(BITMAP_SLOT, (1 << 40) + 6, 8), DiskCorrupt),
    "087 bitmap in the headers": (_set(BITMAP_SLOT, 6, 8), DiskCorrupt),
    "088 bitmap state 3": (_state(BITMAP_SLOT, 3), DiskCorrupt),
    "088 bitmap state 7": (_state(BITMAP_SLOT, 7), DiskCorrupt),
    "089 bitmap and payload share space": (
        lambda p: p.put(BITMAP_SLOT, p.get(BAT, 8) & ~7 | 6, 8),
        DiskCorrupt,
    ),
    "090 BAT region of length 0": (
        lambda p: p.tables((p.region(structures.BAT_REGION) + 24, 0, 4)),
        DiskCorrupt,
    ),
    "090 64 TiB with a short BAT": (_set(DISK_SIZE, 64 * TiB, 8), DiskCorrupt),
    "091 parent flag cleared": (_set(FLAGS, 0, 4), DiskCorrupt),
    "093 parent_linkage differs": (_linkage_text, ParentRefused),
    "095 parent_linkage is no GUID": (lambda p: p.put(LINKAGE, _utf16("z" * 38)), DiskCorrupt),
    "096 parent_linkage missing": (_set(LINKAGE_KEY, ord("q"), 1), DiskCorrupt),
    "097 a key twice": (
        lambda p: [
            p.put(KEYS + 48, bytes(p.data[KEYS : KEYS + 4])),
            p.put(KEYS + 56, bytes(p.data[KEYS + 8 : KEYS + 10])),
        ],
        DiskCorrupt,
    ),
    "098 65535 keys": (_set(KEY_COUNT, 65535, 2), DiskCorrupt),
    "099 no keys": (_set(KEY_COUNT, 0, 2), DiskCorrupt),
    "100 key outside the item": (_set(KEYS, 0xFFFFFFF0, 4), DiskCorrupt),
    "100 value outside the item": (_set(KEYS + 4, 0xFFFFFFF0, 4), DiskCorrupt),
    "101 odd length": (_set(KEYS + 10, 75, 2), DiskCorrupt),
    "101 lone surrogate": (_set(LINKAGE, 0xD800, 2), DiskCorrupt),
    "101 NUL in the text": (_set(RELATIVE + 4, 0, 2), DiskCorrupt),
    "102 unknown locator type": (lambda p: p.put(LOCATOR, b"\x51" * 16), DiskUnsupported),
    "103 path traversal": (_relative("..\\..\\..\\etc\\pass"), ParentRefused),
    "103 absolute path": (_relative("C:\\fat-parent.vhd"), ParentRefused),
    "103 rooted path": (_relative("\\fat-parent.vhdx"), ParentRefused),
    "103 UNC path": (_relative("\\\\host\\share\\x"), ParentRefused),
    "103 device path": (_relative("\\\\.\\PhysicalD0"), ParentRefused),
    "103 POSIX path": (_relative("/dev/zero"), ParentRefused),
    "103 device by dots": (_relative("..\\..\\..\\dev\\zero"), ParentRefused),
    "107 sectors of 4096 bytes": (_set(LOGICAL, 4096, 4), ParentRefused),
}


@pytest.fixture(params=["made", pytest.param("windows", marks=pytest.mark.samples)])
def child(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Base B in a folder of its own: made here, or by Windows, with the same offsets."""
    folder = tmp_path / "b"
    folder.mkdir()
    if request.param == "made":
        path = base_b(folder)
    else:
        known = judging.known_samples()
        judging.samples_folder()
        judging.unpack_sample(known[PARENT_NAME].packed, folder)
        path = judging.unpack_sample(known[CHILD_NAME].packed, folder)
    p = Patched(path.read_bytes())
    assert (p.get(DISK_SIZE, 8), p.get(LOGICAL, 4), p.get(FLAGS, 4)) == (4 * MiB, 512, 2)
    assert p.get(KEY_COUNT, 2) == 5
    assert p.data[LINKAGE_KEY : LINKAGE_KEY + 28] == _utf16("parent_linkage")
    assert p.data[RELATIVE : RELATIVE + 34] == _utf16(".\\" + PARENT_NAME)
    assert (p.get(BAT, 8) & 7, p.get(BITMAP_SLOT, 8) & 7) == (7, 6)
    return path


def _patch(path: Path, damage: Damage) -> None:
    patched = Patched(path.read_bytes())
    damage(patched)
    path.write_bytes(patched.data)


def _read(path: Path, *folders: Path) -> bytes:
    with open_disk(path, folders=folders) as disk:
        list(disk.extents())
        return content(disk)


def _assert_refused(path: Path, kind: type[DiskError]) -> str:
    before = {file: hashlib.sha256(file.read_bytes()).digest() for file in _files(path.parent)}
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(kind) as refusal:
            _read(path)
        assert time.process_time() - start < CPU_S_MAX
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
    assert not check_disk(path).is_ok
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in before} == before
    return str(refusal.value)


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file()]


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str, child: Path) -> None:
    damage, kind = REFUSED[name]
    _patch(child, damage)
    text = _assert_refused(child, kind)
    assert str(child) in text


def test_both_identities_are_named_when_they_differ(child: Path) -> None:
    _patch(child, _linkage_text)
    with open_disk(child.parent / PARENT_NAME) as parent:
        have = parent.data_write_guid
    wanted = vhdx.read_info(child).locator["parent_linkage"].strip("{}").lower()
    text = _assert_refused(child, ParentRefused)
    assert have in text
    assert wanted in text


def test_092_a_missing_parent_is_refused(child: Path) -> None:
    (child.parent / PARENT_NAME).unlink()
    assert PARENT_NAME in _assert_refused(child, ParentRefused)


def test_094_a_parent_modified_since_is_refused(child: Path) -> None:
    _patch(child.parent / PARENT_NAME, lambda p: p.headers((32, b"\x5e" * 16, 0)))
    assert "written to since" in _assert_refused(child, ParentRefused)


def test_094_a_parent_written_by_us_is_refused(child: Path) -> None:
    with open_disk(child.parent / PARENT_NAME, writable=True) as parent:
        parent.write(0, random_bytes(512, 9))
    _assert_refused(child, ParentRefused)


@pytest.mark.parametrize("name", ["link", "folder link"])
def test_103_no_link_is_followed(name: str, child: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (child.parent / PARENT_NAME).rename(outside / PARENT_NAME)
    if name == "link":
        (child.parent / PARENT_NAME).symlink_to(outside / PARENT_NAME)
    else:
        (child.parent / "in").symlink_to(outside)
        _patch(child, _relative(".\\in\\p.vhdx"))
        (outside / PARENT_NAME).rename(outside / "p.vhdx")
    assert "symbolic link" in _assert_refused(child, ParentRefused)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no FIFOs")
def test_103_a_fifo_is_refused_and_blocks_nothing(child: Path) -> None:
    (child.parent / PARENT_NAME).unlink()
    os.mkfifo(child.parent / PARENT_NAME)
    with pytest.raises(ParentRefused, match="not a regular file"):
        _read(child)


def test_103_a_permitted_folder_opens_what_lies_in_it_only(child: Path, tmp_path: Path) -> None:
    right = _read(child)
    permitted = tmp_path / "a" / "b"
    permitted.mkdir(parents=True)
    (child.parent / PARENT_NAME).rename(permitted / "p.vhdx")
    _patch(child, _relative("..\\a\\b\\p.vhdx"))
    assert _read(child, tmp_path / "a") == right
    with pytest.raises(ParentRefused, match="outside the permitted folders"):
        _read(child)
    with pytest.raises(ParentRefused, match="outside the permitted folders"):
        _read(child, tmp_path / "a" / "b" / "c")


def test_103_an_absolute_path_needs_a_permitted_folder(tmp_path: Path) -> None:
    far, near = tmp_path / "far", tmp_path / "near"
    far.mkdir()
    near.mkdir()
    vhdx.create(far / "base.vhdx", 4 * MiB).close()
    vhdx.create_child(
        near / "child.vhdx", far / "base.vhdx", parent_path_on_host=str(far / "base.vhdx")
    ).close()
    shutil.move(near / "child.vhdx", tmp_path / "near" / "moved.vhdx")
    with vhdx.open_vhdx(near / "moved.vhdx", writable=True) as disk:
        locator = disk.info.locator
        disk.set_parent_locator(
            locator["parent_linkage"], ".\\gone.vhdx", locator["absolute_win32_path"]
        )
    assert _read(near / "moved.vhdx", far) == bytes(4 * MiB)
    with pytest.raises(ParentRefused, match="outside the permitted folders"):
        _read(near / "moved.vhdx")


def _name_parent(path: Path, linkage: str, relative: str) -> None:
    with vhdx.open_vhdx(path, writable=True) as disk:
        disk.set_parent_locator(linkage, relative, None)


def test_104_a_file_that_is_its_own_parent_is_refused(child: Path) -> None:
    _name_parent(child, vhdx.read_info(child).data_write_guid, ".\\" + child.name)
    assert "cycle" in _assert_refused(child, ParentRefused)


@pytest.mark.parametrize("way", ["name", "other spelling", "hard link"])
def test_105_a_cycle_of_two_is_refused(way: str, child: Path) -> None:
    other = child.with_name("other.vhdx")
    shutil.copy(child, other)
    names = {"name": child.name, "other spelling": ".\\.\\" + child.name, "hard link": "hard.vhdx"}
    if way == "hard link":
        os.link(child, child.with_name("hard.vhdx"))
    identity = vhdx.read_info(child).data_write_guid
    _name_parent(child, identity, ".\\other.vhdx")
    _name_parent(other, identity, ".\\" + names[way])
    assert "cycle" in _assert_refused(child, ParentRefused)


def test_106_a_chain_of_many_children_meets_the_limit(tmp_path: Path) -> None:
    vhdx.create(tmp_path / "0.vhdx", MiB).close()
    identity = vhdx.read_info(tmp_path / "0.vhdx").data_write_guid
    vhdx.create_child(tmp_path / "1.vhdx", tmp_path / "0.vhdx").close()
    _name_parent(tmp_path / "1.vhdx", identity, ".\\0.vhdx")
    with vhdx.open_vhdx(tmp_path / "1.vhdx", writable=True) as disk:
        disk.set_data_write_guid(identity)
    for number in range(2, DEPTH_MAX + 44):
        path = tmp_path / f"{number}.vhdx"
        shutil.copy(tmp_path / "1.vhdx", path)
        _name_parent(path, identity, f".\\{number - 1}.vhdx")
    with open_disk(tmp_path / f"{DEPTH_MAX - 1}.vhdx") as disk:
        assert content(disk) == bytes(MiB)
    with pytest.raises(ParentRefused, match=str(DEPTH_MAX)):
        _read(tmp_path / f"{DEPTH_MAX + 43}.vhdx")


@pytest.mark.parametrize("difference", [-MiB, MiB], ids=["smaller", "larger"])
def test_108_a_parent_of_another_size_opens(difference: int, child: Path) -> None:
    right = _read(child)
    size = 4 * MiB - difference
    _patch(child, _set(DISK_SIZE, size, 8))
    with open_disk(child) as disk:
        assert disk.virtual_size == size
        assert content(disk) == right[:size].ljust(size, b"\0")
        assert sum(extent.length for extent in disk.extents()) == size


def _exchange(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "VHD":
        path.write_bytes(b"conectix" + bytes(MiB))
    else:
        path.write_bytes({"text": b"hello\n" * 100_000, "empty": b""}[kind])


@pytest.mark.parametrize("kind", ["text", "VHD", "empty", "folder"])
def test_109_a_parent_that_is_no_vhdx_is_refused(kind: str, child: Path) -> None:
    _exchange(child.parent / PARENT_NAME, kind)
    _assert_refused(child, ParentRefused)


def test_110_a_parent_with_a_dirty_log_is_read_through_it(child: Path) -> None:
    right = _read(child)
    parent = child.parent / PARENT_NAME
    before = parent.stat()

    def rewrite_in_log(p: Patched) -> None:
        def damage(q: Patched) -> None:
            page = bytes(q.data[BAT : BAT + 4096])
            q.put(BAT, bytes(8))  # the table in its place is stale
            q.put(MiB + 4096 + 8, page[8:4092])
            q.put(MiB + 64 + 8, page[:8])

        p.log_entry(damage)

    _patch(parent, rewrite_in_log)
    os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    stored = parent.read_bytes()
    assert _read(child) == right
    assert parent.read_bytes() == stored
    assert parent.stat().st_mtime_ns == before.st_mtime_ns


def test_110_a_parent_with_a_broken_log_is_refused(child: Path) -> None:
    _patch(child.parent / PARENT_NAME, lambda p: p.headers((48, b"\x11" * 16, 0)))
    assert "log" in _assert_refused(child, ParentRefused)


def test_every_case_of_the_list_is_here() -> None:
    numbers = {int(name[:3]) for name in REFUSED}
    by_test = {
        int(name[5:8]) for name in globals() if name.startswith("test_") and name[5:8].isdigit()
    }
    assert numbers | by_test == set(range(85, 111))


def test_the_bases_themselves_are_in_order(child: Path, tmp_path: Path) -> None:
    assert check_disk(child).is_ok
    path = tmp_path / "A.vhdx"
    path.write_bytes(base_a())
    assert check_disk(path).is_ok
