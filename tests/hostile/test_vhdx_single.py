"""Damaged and hostile VHDX files without a parent: cases 1 to 84 of the list of hostile inputs.

Each is refused with what was checked, where and what was found, in little time and memory, whether
opened for reading or writing, and is not changed; or it opens with the right content.
"""

from __future__ import annotations

import hashlib
import re
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

import judging
from standby.disk import open_disk
from standby.disk.check import check_disk
from standby.disk.vhdx import structures
from standby.errors import DiskError
from standby.testing.disks import content, random_bytes
from standby.testing.vhdx_damage import LOG, PAGE, Patched, base_a
from standby.units import KiB, MiB, TiB

HEADERS, TABLES = structures.HEADER_OFFSETS, structures.REGION_TABLE_OFFSETS
BAT, METADATA = 2 * MiB, 3 * MiB
BLOCK_SIZE, FLAGS, DISK_SIZE = 0x310000, 0x310004, 0x310008
LOGICAL, PHYSICAL = 0x310020, 0x310024
ODD = b"\x51" * 16
NAMED = (48, b"\x4c" * 16, 0)
"""The patch of a header that names a log."""

CPU_S_MAX = 1.0
MEMORY_MAX = 64 * MiB

Damage = Callable[[Patched], object]
REFUSED: dict[str, Damage] = {}
OPENS: dict[str, Damage] = {}


def _add(cases: dict[str, Damage], number: int, title: str, damage: Damage) -> None:
    name = f"{number:03} {title}"
    assert name not in cases
    cases[name] = damage


def _refused(number: int, title: str, damage: Damage) -> None:
    _add(REFUSED, number, title, damage)


def _opens(number: int, title: str, damage: Damage) -> None:
    _add(OPENS, number, title, damage)


# --- identifier, headers -----------------------------------------------------------------------


def _equal_numbers(p: Patched) -> None:
    older = HEADERS[0] if p.current == HEADERS[1] else HEADERS[1]
    p.put(older + 8, p.get(p.current + 8, 8), 8)
    p.put(older + 32, b"\x5a" * 16)
    p.seal(older, structures.HEADER_SIZE)


_refused(1, "wrong file signature", lambda p: p.put(7, 0x58, 1))
_refused(2, "empty file", lambda p: p.cut(0))
_refused(3, "cut at 100 KiB", lambda p: p.cut(100 * KiB))
_refused(4, "cut at 1 MiB", lambda p: p.cut(MiB))
_refused(5, "cut in the payload", lambda p: p.cut(len(p.data) - 3 * MiB // 2))
_opens(6, "current header damaged", lambda p: p.flip(p.current + 200))
_refused(7, "both headers damaged", lambda p: [p.flip(place + 200) for place in HEADERS])
_refused(8, "both header signatures wrong", lambda p: p.headers((0, b"haed", 0)))
_refused(9, "equal sequence numbers", _equal_numbers)
_refused(10, "header version 2", lambda p: p.headers((66, 2, 2)))
_refused(11, "log version 1", lambda p: p.headers((64, 1, 2), NAMED))
_refused(12, "log length 4 GiB", lambda p: p.headers((68, 0xFFF00000, 4), NAMED))
_refused(13, "log past the end", lambda p: p.headers((72, 1 << 40, 8), NAMED))
_refused(14, "log offset near 2^64", lambda p: p.headers((72, (1 << 64) - MiB, 8), NAMED))
_refused(15, "log over the BAT", lambda p: p.headers((72, BAT, 8)))
_refused(16, "log offset not aligned", lambda p: p.headers((72, 0x100200, 8), NAMED))
_refused(17, "log over the headers", lambda p: p.headers((72, 0, 8)))

# --- region tables -----------------------------------------------------------------------------


def _third_region(kind: bytes, offset: int) -> Damage:
    def damage(p: Patched) -> None:
        p.tables((8, 3, 4), (80, kind, 0), (96, offset, 8), (104, MiB, 4), (108, 1, 4))

    return damage


_opens(18, "first region table damaged", lambda p: p.flip(TABLES[0] + 1000, 1))
_refused(19, "both region tables damaged", lambda p: [p.flip(t + 1000, 1) for t in TABLES])
_refused(20, "2048 regions", lambda p: p.tables((8, 2048, 4)))
_refused(21, "2^32 - 1 regions", lambda p: p.tables((8, 0xFFFFFFFF, 4)))
_refused(22, "no regions", lambda p: p.tables((8, 0, 4)))
_refused(23, "no BAT region", lambda p: p.tables((16, ODD, 0)))
_refused(24, "unknown required region", _third_region(ODD, 8 * MiB))
_refused(25, "two BAT regions", _third_region(structures.BAT_REGION, 6 * MiB))
_refused(26, "BAT over the metadata", lambda p: p.tables((32, METADATA, 8)))
_refused(27, "BAT past the end", lambda p: p.tables((32, 1 << 40, 8)))
_refused(28, "BAT end beyond 2^64", lambda p: p.tables((32, (1 << 64) - MiB, 8), (40, 2 * MiB, 4)))
_refused(29, "BAT length 0", lambda p: p.tables((40, 0, 4)))
_refused(30, "BAT length 4 GiB", lambda p: p.tables((40, 0xFFF00000, 4)))
_refused(31, "BAT not aligned", lambda p: p.tables((32, 0x200200, 8)))
_refused(32, "metadata past the end", lambda p: p.tables((64, 1 << 40, 8)))

# --- metadata ----------------------------------------------------------------------------------


def _sixth_item(flags: int) -> Damage:
    def damage(p: Patched) -> None:
        entry = METADATA + 32 + 32 * 5
        p.put(METADATA + 10, 6, 2)
        p.put(entry, ODD)
        for offset, value in ((16, 69632), (20, 8), (24, flags)):
            p.put(entry + offset, value, 4)

    return damage


def _set(offset: int, value: int, size: int) -> Damage:
    return lambda p: p.put(offset, value, size)


_refused(33, "metadata signature", lambda p: p.put(METADATA, bytes(8)))
_refused(34, "2048 metadata items", _set(METADATA + 10, 2048, 2))
_refused(35, "65535 metadata items", _set(METADATA + 10, 65535, 2))
_refused(36, "no metadata items", _set(METADATA + 10, 0, 2))
_refused(37, "an item twice", lambda p: p.put(METADATA + 64, bytes(p.data[METADATA + 32 :][:16])))
_refused(38, "unknown required item", _sixth_item(4))
_opens(39, "unknown optional item", _sixth_item(0))
_refused(40, "item offset in the table", _set(METADATA + 48, 32, 4))
_refused(41, "item outside the region", _set(METADATA + 48, 0xFFFF0000, 4))
_refused(42, "item length 0", _set(METADATA + 52, 0, 4))
_refused(43, "item length 2^32 - 1", _set(METADATA + 52, 0xFFFFFFFF, 4))
for value in (0, 512, 3 * MiB, 512 * MiB, 0x80000000, 0xFFFFFFFF):
    _refused(44, f"block size {value:#x}", _set(BLOCK_SIZE, value, 4))
for value in (0, 64 * TiB + 512, 2**64 - 512, 1 << 63, 8 * MiB + 1, 64 * TiB):
    _refused(45, f"virtual size {value:#x}", _set(DISK_SIZE, value, 8))
for value in (0, 1, 513, 1024, 65536, 0xFFFFFFFF):
    _refused(46, f"logical sectors of {value:#x}", _set(LOGICAL, value, 4))
_refused(47, "physical sectors of 0", _set(PHYSICAL, 0, 4))
_refused(48, "file parameters: reserved bits", _set(FLAGS, 0xFFFFFFFC, 4))
_refused(49, "a parent without locator", _set(FLAGS, 2, 4))

# --- BAT ---------------------------------------------------------------------------------------

_refused(50, "payload past the end", _set(BAT, (1 << 40) + 6, 8))
_refused(51, "payload near 2^64", _set(BAT, 0xFFFFFFFFFFF00006, 8))
_refused(52, "payload in the headers", _set(BAT, 6, 8))
_refused(53, "payload in the log", _set(BAT, 0x100006, 8))
_refused(54, "payload in the metadata", _set(BAT, 0x300006, 8))
_refused(55, "two slots of one offset", lambda p: p.put(BAT + 16, p.get(BAT, 8), 8))
_refused(56, "state 4", _set(BAT, 4, 8))
_refused(57, "state 5", _set(BAT, 5, 8))
_refused(58, "partial without parent", lambda p: p.put(BAT, p.get(BAT, 8) | 7, 8))
_refused(59, "reserved bits", lambda p: p.put(BAT, p.get(BAT, 8) | 0xFFFF8, 8))
_refused(60, "last block half outside", lambda p: p.cut(len(p.data) - 512 * KiB))

# --- log ---------------------------------------------------------------------------------------


def _entry(offset: int, value: int, size: int) -> Damage:
    return lambda p: p.log_entry(lambda q: q.put(LOG + offset, value, size))


def _zero_descriptor(offset: int, length: int) -> Damage:
    def damage(p: Patched) -> None:
        p.put(LOG + 64, b"zero" + bytes(4))
        p.put(LOG + 72, length, 8)
        p.put(LOG + 80, offset, 8)
        p.put(LOG + 8, PAGE, 4)
        p.seal(LOG, PAGE)

    return lambda p: p.log_entry(damage, sealed=False)


def _torn_tail(p: Patched) -> None:
    p.log_entry(lambda q: q.flip(LOG + 2 * PAGE - 50), sealed=False)


def _all_sequence_zero(p: Patched) -> None:
    def damage(q: Patched) -> None:
        for offset, size in ((16, 8), (88, 8), (PAGE + 4, 4), (2 * PAGE - 4, 4)):
            q.put(LOG + offset, 0, size)

    p.log_entry(damage)


_refused(61, "a log without entries", lambda p: p.headers((48, b"\x11" * 16, 0)))
_refused(62, "entry checksum", _torn_tail)
_refused(63, "entry length 0", _entry(8, 0, 4))
_refused(64, "entry length 2 GiB", _entry(8, 0x7FFFF000, 4))
_refused(65, "descriptor count 2^32 - 1", _entry(24, 0xFFFFFFFF, 4))
_refused(66, "descriptor count that wraps", _entry(24, 0x08000001, 4))
_refused(67, "tail beyond the log", _entry(12, 0x7FFFF000, 4))
_refused(68, "tail not aligned", _entry(12, 100, 4))
_refused(69, "tail at no entry", _entry(12, 0x80000, 4))
_refused(70, "a page over header 1", _entry(80, 0x10000, 8))
_refused(71, "a page over the log", _entry(80, LOG, 8))
_refused(72, "a page not aligned", _entry(80, BAT + 8, 8))
_refused(73, "a page at 2^62", _entry(80, 1 << 62, 8))
_refused(74, "zeros of 2^62 bytes", _zero_descriptor(4 * MiB, 1 << 62))
_refused(75, "zeros of 64 GiB past the end", _zero_descriptor(8 * MiB, 64 << 30))
_refused(76, "file cut after the entry", lambda p: _entry(48, len(p.data) + 64 * MiB, 8)(p))
_refused(77, "last file offset 2^60", _entry(56, 1 << 60, 8))
_refused(78, "sequence number 0", _all_sequence_zero)
_refused(79, "low sequence number of a sector", _entry(2 * PAGE - 4, 99, 4))
_refused(
    80, "signature of a data sector", lambda p: p.log_entry(lambda q: q.put(LOG + PAGE, b"dat!"))
)
_refused(81, "sequence number of a descriptor", _entry(88, 77, 8))
_refused(82, "unknown descriptor", lambda p: p.log_entry(lambda q: q.put(LOG + 64, b"evil")))


def _ring(p: Patched, pages: int, count: int, tail: int | None) -> None:
    """`count` entries of `pages` pages of zero descriptors, round and round."""
    guid = b"\x11" * 16
    p.headers((48, guid, 0))
    for index in range(count):
        place = index * pages * PAGE % MiB
        entry = bytearray(pages * PAGE)
        head = structures.ENTRY_HEADER.pack(
            b"loge",
            0,
            len(entry),
            place if tail is None else tail,
            100 + index,
            0 if pages == 1 else 127,
            0,
            guid,
            len(p.data),
            len(p.data),
        )
        entry[: len(head)] = head
        for number in range(0 if pages == 1 else 127):
            at = 64 + 32 * number
            entry[at : at + 4] = b"zero"
            entry[at + 8 : at + 16] = PAGE.to_bytes(8, "little")
            entry[at + 16 : at + 24] = (4 * MiB).to_bytes(8, "little")
            entry[at + 24 : at + 32] = (100 + index).to_bytes(8, "little")
        p.put(LOG + place, bytes(entry))
        p.seal(LOG + place, len(entry))


_opens(83, "ring full of empty entries", lambda p: _ring(p, 1, 256, 0))
_opens(84, "ring overrun by entries", lambda p: _ring(p, 2, 200, None))


# --- running -----------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=["made", pytest.param("qemu-img", marks=pytest.mark.judge)],
)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Base A: made here, or by qemu-img, with the offsets that the patches mean."""
    data = base_a() if request.param == "made" else _by_qemu(tmp_path_factory.mktemp("base"))
    p = Patched(data)
    assert p.region(structures.BAT_REGION) == 16
    assert p.get(TABLES[0] + 32, 8) == BAT
    assert p.get(TABLES[0] + 64, 8) == METADATA
    assert p.get(HEADERS[0] + 72, 8) == LOG
    assert (p.get(BLOCK_SIZE, 4), p.get(DISK_SIZE, 8)) == (MiB, 8 * MiB)
    assert (p.get(LOGICAL, 4), p.get(PHYSICAL, 4)) == (512, 512)
    return data


def _by_qemu(folder: Path) -> bytes:
    path = folder / "A.vhdx"
    judging.run(
        judging.require_tool("qemu-img"),
        *("create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "8M"),
    )
    with open_disk(path, writable=True) as disk:
        for block in (0, 2, 7):
            disk.write(block * MiB, random_bytes(MiB, block))
    return path.read_bytes()


@pytest.fixture(scope="module")
def right(base: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The undamaged content."""
    path = tmp_path_factory.mktemp("right") / "A.vhdx"
    path.write_bytes(base)
    with open_disk(path) as disk:
        return content(disk)


def _read(path: Path, *, writable: bool) -> bytes:
    with open_disk(path, writable=writable) as disk:
        list(disk.extents())
        return content(disk)


@pytest.mark.parametrize("writable", [False, True], ids=["reading", "writing"])
@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str, writable: bool, base: bytes, tmp_path: Path) -> None:
    patched = Patched(base)
    REFUSED[name](patched)
    path = tmp_path / "A.vhdx"
    path.write_bytes(patched.data)
    before = hashlib.sha256(patched.data).digest()
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(DiskError) as refusal:
            _read(path, writable=writable)
        assert time.process_time() - start < CPU_S_MAX
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
    text = str(refusal.value)
    assert str(path) in text
    assert re.search(r"\d", text.replace(str(path), "")), text
    assert hashlib.sha256(path.read_bytes()).digest() == before
    assert not check_disk(path).is_ok


@pytest.mark.parametrize("writable", [False, True], ids=["reading", "writing"])
@pytest.mark.parametrize("name", OPENS)
def test_opens(name: str, writable: bool, base: bytes, right: bytes, tmp_path: Path) -> None:
    patched = Patched(base)
    OPENS[name](patched)
    path = tmp_path / "A.vhdx"
    path.write_bytes(patched.data)
    start = time.process_time()
    assert _read(path, writable=writable) == right
    assert time.process_time() - start < CPU_S_MAX
    assert check_disk(path).is_ok


def test_every_case_of_the_list_is_here() -> None:
    numbers = {int(name[:3]) for name in (*REFUSED, *OPENS)}
    assert numbers == set(range(1, 85))
